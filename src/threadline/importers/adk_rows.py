"""What the rows of google-adk's tables say, whatever release wrote them.

Schema v0 has a column for each of an event's fields, and a pickle; schema v1 and
SqliteSessionService have the event as JSON. A row that cannot be read raises an
InvalidInputError that says why.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

from threadline.errors import InvalidInputError
from threadline.importers import adk_pickle
from threadline.importers.adk_source import METADATA, Row
from threadline.models import Event

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

V0, V1, SQLITE_SERVICE = "v0", "v1", "SqliteSessionService"

MILLISECONDS_FROM = 1e11
"""A time from here on is not in seconds (it would be the year 5138): JavaScript wrote it."""

_JSON = (
    "content",
    "grounding_metadata",
    "custom_metadata",
    "usage_metadata",
    "citation_metadata",
    "input_transcription",
    "output_transcription",
)
_FLAGS = ("partial", "turn_complete", "interrupted")
_PLACE = ("app_name", "user_id", "session_id")


def schema_of(name: str, columns: Mapping[str, set[str]], versions: Sequence[Row]) -> str:
    """Return which schema a database has, or raise InvalidInputError naming what it is not."""
    events = columns.get("events", set())
    if "sessions" in columns and {*_PLACE, "id", "timestamp"} <= events:
        if METADATA in columns:
            found = {row["value"] for row in versions if row["key"] == "schema_version"}
            if found == {"1"} and "event_data" in events:
                return V1
            raise InvalidInputError(
                f"{name} has schema version {', '.join(sorted(found)) or 'none'} of google-adk's; "
                "this threadline reads 0 and 1."
            )
        if "event_data" in events:
            return SQLITE_SERVICE
        if "actions" in events:
            return V0
    raise InvalidInputError(
        f"{name} is no session database of google-adk's: it has no tables `sessions` and `events` "
        "as google-adk makes them."
    )


def read_state(row: Row) -> dict[str, Any]:
    """Return the state in a row."""
    state = _json(row, "state")
    if not isinstance(state, dict):
        raise InvalidInputError(f"state is {_kind(state)}, not an object.")
    return state


def read_event(schema: str, row: Row, zone: dt.tzinfo) -> Event:
    """Return the event of a row; `zone` is that of the naive times in schema v0."""
    fields = _v0_fields(row) if schema == V0 else _json(row, "event_data") or {}
    if not isinstance(fields, dict):
        raise InvalidInputError(f"event_data is {_kind(fields)}, not an object.")
    exact = None if schema == V0 else fields.get("timestamp")
    fields = {
        **fields,
        "id": row["id"],
        # What the release itself returns is the column's, and the JSON's where it is empty.
        "invocation_id": row["invocation_id"] or fields.get("invocation_id", ""),
        "timestamp": to_seconds(row["timestamp"] if exact is None else exact, zone),
    }
    return Event.from_dict(fields)


def _v0_fields(row: Row) -> dict[str, Any]:
    known = {*_PLACE, "id", "invocation_id", "timestamp", "actions", "long_running_tool_ids_json"}
    fields: dict[str, Any] = {}
    for name, value in row.items():
        if name in known or value is None:
            continue
        if name in _JSON:
            # Some releases wrote the text "null" where they had nothing.
            fields[name] = _json(row, name)
        elif name in _FLAGS:
            fields[name] = bool(value)
        else:
            fields[name] = value
    if ids := _json(row, "long_running_tool_ids_json"):
        fields["long_running_tool_ids"] = ids
    if row["actions"] is not None:
        if not isinstance(row["actions"], bytes):
            raise InvalidInputError(f"actions is {_kind(row['actions'])}, not a pickle.")
        fields["actions"] = adk_pickle.load(row["actions"])
    return {name: value for name, value in fields.items() if value is not None}


def to_seconds(value: Any, zone: dt.tzinfo) -> float:
    """Return a time as seconds since the epoch; a naive one is in this zone."""
    if isinstance(value, str):
        try:
            value = dt.datetime.fromisoformat(value)
        except ValueError as error:
            raise InvalidInputError(f"the time {value[:40]!r} cannot be read.") from error
    if isinstance(value, dt.datetime):
        return (value if value.tzinfo else value.replace(tzinfo=zone)).timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInputError(f"a time is {_kind(value)}.")
    return value / 1000 if value >= MILLISECONDS_FROM else float(value)


def _json(row: Row, name: str) -> Any:
    """Return what a column holds: JSON as text, or as the driver has decoded it."""
    text = row.get(name)
    if not isinstance(text, str | bytes):
        return text
    try:
        if isinstance(text, str):
            text.encode()
        return json.loads(text)
    except (UnicodeError, RecursionError) as error:
        raise InvalidInputError(f"{name} cannot be read: {error}.") from error
    except ValueError as error:
        raise InvalidInputError(f"{name} is not JSON: {error}.") from error


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bytes: "binary", bool: "a flag"}
    return "null" if value is None else names.get(type(value), "a number")
