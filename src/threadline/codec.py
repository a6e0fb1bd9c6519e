"""Models to rows and back.

What is stored of an event is its canonical JSON without `seq`, whole: fields that this version
does not know included. State values are stored one by one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from threadline import state
from threadline.canonical import decode, encode, encode_again, encode_checked
from threadline.engines.base import NO_STATE, NewEvent, StateRows, check_id
from threadline.errors import DamagedDataError, InvalidInputError
from threadline.models import Event, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from threadline.engines.base import EventRow, SessionRow


def event_to_row(event: Event) -> tuple[NewEvent, Event]:
    """Return the row of an event, and the event as it will come back (without its seq)."""
    check_id("event.id", event.id)
    timestamp = event.timestamp
    if not isinstance(timestamp, int | float) or not math.isfinite(timestamp):
        raise InvalidInputError(f"event.timestamp must be a finite number, got {timestamp!r}.")
    delta = event.actions.state_delta
    changes: dict[str, Any] = {} if event.seq is None else {"seq": None}
    if delta and (temp := state.temp_keys(delta)):
        kept = {key: value for key, value in delta.items() if key not in temp}
        changes["actions"] = msgspec.structs.replace(event.actions, state_delta=kept)
    if changes:
        event = msgspec.structs.replace(event, **changes)
        delta = event.actions.state_delta
    body, stored, is_strict = encode_checked(event, "event")
    rows = state_to_rows(delta, encode_again if is_strict else encode) if delta else NO_STATE
    return NewEvent(id=event.id, timestamp=float(timestamp), body=body, state=rows), stored


def row_to_event(row: EventRow) -> Event:
    """Return the event of a row, or raise DamagedDataError naming its seq."""
    seq, body = row
    try:
        event: Event = decode(Event, body)
    except (ValueError, RecursionError) as error:
        raise DamagedDataError(f"The event with seq {seq} cannot be read: {error}") from error
    set_seq(event, seq)
    return event


def set_seq(event: Event, seq: int) -> None:
    """Set the store's number on an event that nobody else holds yet."""
    msgspec.structs.force_setattr(event, "seq", seq)


def state_to_rows(
    delta: Mapping[str, Any], encode: Callable[[Any, str], bytes] = encode
) -> StateRows:
    """Split a delta by scope and encode its values."""
    app, user, session = state.split(delta)
    return StateRows(
        {key: encode(value, f"state['app:{key}']") for key, value in app.items()},
        {key: encode(value, f"state['user:{key}']") for key, value in user.items()},
        {key: encode(value, f"state['{key}']") for key, value in session.items()},
    )


def rows_to_state(rows: StateRows) -> dict[str, Any]:
    """Return the merged state, read-only all the way down."""
    merged = state.merge(state.Scopes(*map(values, rows)))
    return state.ReadOnlyDict({key: state.read_only(value) for key, value in merged.items()})


def values(rows: Mapping[str, bytes]) -> dict[str, Any]:
    """Decode the values of one scope."""
    return {key: decode(None, value) for key, value in rows.items()}


def row_to_session(row: SessionRow, rows: StateRows, events: Sequence[Event]) -> Session:
    """Return the session of a row, with its state and some of its events."""
    return Session(
        id=row.id,
        app_name=row.app,
        user_id=row.user,
        state=rows_to_state(rows),
        events=events,
        last_update_time=row.updated,
        create_time=row.created,
        display_name=row.display_name,
        labels={} if row.labels is None else msgspec.json.decode(row.labels),
        expire_time=row.expires,
        revision=row.revision,
        incarnation=row.incarnation,
    )
