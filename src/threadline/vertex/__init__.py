"""The Vertex AI Agent Engine Sessions API; `wire` is its JSON."""
