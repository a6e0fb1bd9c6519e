"""google-adk's events to threadline's and back, by the JSON that both have.

What google-adk's `DatabaseSessionService` turns into JSON types is turned into them here; what
its JSON would lose, such as NaN, is kept.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, cast

from google.adk.events.event import Event as AdkEvent
from google.genai.types import Part
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, SchemaValidator, to_jsonable_python

from threadline.errors import DamagedDataError, UnsupportedValueError
from threadline.history import History
from threadline.models import Event
from threadline.state import temp_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from threadline.engines.base import EventRow

_log = logging.getLogger(__name__)


def to_threadline(event: AdkEvent) -> Event:
    """Return the event as it is to be stored: JSON types only, without `temp:` keys."""
    if event.actions.state_delta:
        delta = to_json_types(event.actions.state_delta)
        actions = event.actions.model_copy(update={"state_delta": delta})
        event = event.model_copy(update={"actions": actions})
    try:
        data = event.model_dump_json(by_alias=True, exclude_none=True)
    except PydanticSerializationError:
        return _to_threadline_slowly(event)
    # pydantic writes NaN and the infinities as null; most events hold no null at all.
    return _to_threadline_slowly(event) if "null" in data else Event.from_json(data)


def _to_threadline_slowly(event: AdkEvent) -> Event:
    plain = event.model_dump(by_alias=True, exclude_none=True)
    try:
        return Event.from_dict(to_jsonable_python(plain, bytes_mode="base64"))
    except PydanticSerializationError:
        pass
    try:  # google-adk's own way, which takes the `repr` of what an agent's state holds
        return Event.from_dict(event.model_dump(mode="json", by_alias=True, exclude_none=True))
    except PydanticSerializationError:
        return Event.from_dict(plain)  # the store names what it cannot keep


def to_json_types(delta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state delta in JSON types, without `temp:` keys, by google-adk's rules.

    Tuples become lists, models become dicts, dates become text, and what has no JSON form
    becomes its `repr`, with a warning.
    """
    temp = temp_keys(delta)
    kept = {key: value for key, value in delta.items() if key not in temp}
    try:
        plain: dict[str, Any] = to_jsonable_python(kept)
    except ValueError:
        plain = {key: _as_far_as_possible(key, value) for key, value in kept.items()}
        _log.warning("Values in the state delta that are not JSON are stored as their repr.")
    return plain


def _as_far_as_possible(key: str, value: Any) -> Any:
    try:
        return to_jsonable_python(value, serialize_unknown=True)
    except ValueError as error:  # bytes that are no text, or a container inside of itself
        raise UnsupportedValueError(f"state[{key!r}] has no JSON form: {error}") from error


def rows_of(events: Sequence[Event]) -> Iterator[EventRow]:
    """Yield the seq and the body of a session's events, decoding none where that is possible."""
    return History.of(events).rows()


def events_of(events: Sequence[Event]) -> list[AdkEvent]:
    """Return google-adk's events in the place of threadline's."""
    return [to_adk(row) for row in rows_of(events)]


def to_adk(row: EventRow) -> AdkEvent:
    """Return google-adk's event of a row, or raise DamagedDataError naming its seq."""
    seq, body = row
    try:
        return cast("AdkEvent", _decoder.validate_json(body))
    except ValidationError:
        pass  # a lone surrogate, or a field that this google-adk does not know
    try:
        return _to_adk_slowly(json.loads(body))
    except (ValueError, RecursionError) as error:
        raise DamagedDataError(f"The event with seq {seq} cannot be read: {error}") from error


def _to_adk_slowly(plain: Any) -> AdkEvent:
    """Leave out what this google-adk forbids, such as an action of a newer release.

    The stored event keeps it.
    """
    while True:
        try:
            return AdkEvent.model_validate(plain)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False)
            unknown = [one["loc"] for one in problems if one["type"] == "extra_forbidden"]
            if not unknown:
                raise
            for path in unknown:
                holder = plain
                for step in path[:-1]:
                    holder = holder[step]
                del holder[path[-1]]


# Two validators run in Python for every model inside of an event, and take most of the time of
# reading one. Neither has anything to say about JSON that an event was written as: one warns of
# instances of other models, one expands the shorthands of the constructor.
_NOT_FOR_JSON = {"BaseModel._check_field_type_mismatches", "Event._accept_convenience_kwargs"}


def _for_json(schema: Any) -> Any:
    """Return a core schema of pydantic's without what matters to callers of constructors only."""
    if isinstance(schema, list | tuple):
        return type(schema)(map(_for_json, schema))
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind == "function-before":
        function = schema["function"]["function"]
        if getattr(function, "__qualname__", "") in _NOT_FOR_JSON:
            return _for_json(schema["schema"])
    kept = {key: _for_json(value) for key, value in schema.items()}
    if kind == "model" and schema["cls"] is Part:
        kept["custom_init"] = False  # it takes one positional argument, for callers
    return kept


def _make_decoder() -> SchemaValidator:
    try:
        # Validators that exist would be taken for the models inside, with what was left out.
        return SchemaValidator(_for_json(AdkEvent.__pydantic_core_schema__), _use_prebuilt=False)
    except TypeError:  # a pydantic that knows no such argument
        return AdkEvent.__pydantic_validator__  # type: ignore[return-value]


_decoder = _make_decoder()
