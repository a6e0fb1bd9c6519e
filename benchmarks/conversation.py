"""The one conversation that every store keeps: same texts, same state deltas."""

from __future__ import annotations

import uuid
from typing import Any

APP = "benchmark"
USER = "user"

TEXT_BYTES = 300
STATE_KEYS = 10
"""How many different session keys the deltas write to."""

_FILLER = "The quick brown fox asks the agent about a flight, a seat and a refund. "


def text(index: int) -> str:
    """Return the message of event `index`: 300 bytes, different for every event."""
    start = f"{index:06d} "
    return start + (_FILLER * 5)[: TEXT_BYTES - len(start)]


def delta(index: int) -> dict[str, Any]:
    """Return the state delta of event `index`: one key in every third event."""
    return {f"key_{index % STATE_KEYS}": index} if index % 3 == 0 else {}


def author(index: int) -> str:
    """Return who speaks: user and agent take turns."""
    return "agent" if index % 2 else "user"


def role(index: int) -> str:
    """Return the model's name for who speaks."""
    return "model" if index % 2 else "user"


def invocation_id(index: int) -> str:
    """Return the id of the turn, in ADK's form."""
    return f"e-{uuid.uuid5(uuid.NAMESPACE_OID, str(index // 2))}"


def state(keys: int) -> dict[str, Any]:
    """Return a session state of `keys` small values."""
    return {f"setting_{number:05d}": f"value {number}" for number in range(keys)}
