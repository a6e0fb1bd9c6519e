"""threadline behind google-adk's own classes: change one import and keep the application.

    from threadline.integrations.adk import DatabaseSessionService

The services here are google-adk's `BaseSessionService`; they take and return its `Session` and
`Event`, raise its errors (which are threadline's as well), and store with threadline's
guarantees. They work wherever google-adk takes a session service: `Runner`, `App`, `adk web`,
`adk api_server`, `adk run`.
"""

from threadline.errors import MissingExtraError

try:
    import google.adk  # noqa: F401 - whether it is there
except ModuleNotFoundError as error:
    if error.name not in ("google", "google.adk"):
        raise
    raise MissingExtraError("google-adk is not installed: pip install 'threadline[adk]'") from error

from threadline.integrations.adk.errors import (
    AlreadyExistsError,
    SessionNotFoundError,
    StaleSessionError,
    StateSchemaError,
)
from threadline.integrations.adk.schemes import register_schemes
from threadline.integrations.adk.service import (
    DatabaseSessionService,
    InMemorySessionService,
    ThreadlineSessionService,
    adk_service,
)
from threadline.integrations.adk.vertex import VertexAiSessionService

__all__ = [
    "AlreadyExistsError",
    "DatabaseSessionService",
    "InMemorySessionService",
    "SessionNotFoundError",
    "StaleSessionError",
    "StateSchemaError",
    "ThreadlineSessionService",
    "VertexAiSessionService",
    "adk_service",
    "register_schemes",
]
