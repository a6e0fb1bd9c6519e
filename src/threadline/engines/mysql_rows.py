"""Rows on their way to MySQL and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from threadline.engines.base import SessionRow, StateRows, check_row, session_row
from threadline.engines.mysql_text import bind, chunks, literals

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from threadline.engines.base import NewEvent, Scope, SessionKey, Window
    from threadline.engines.mysql_driver import Row
    from threadline.engines.mysql_text import Sql

TIME_MAX = 1.7976931348623157e308  # no literal means infinity
LIMIT_MAX = 2**64 - 1
_SEQ_END = 2**32


def inserts(
    sql: Sql, key: SessionKey, events: Iterable[tuple[int, NewEvent, bytes]]
) -> Iterator[str]:
    rows = (
        literals((key.owner, key.session, seq, id_key, event.timestamp, event.body))
        for seq, event, id_key in events
    )
    for chunk in chunks(rows):
        yield bind(sql["insert_events"], rows=chunk)


def upserts(sql: Sql, deltas: Iterable[tuple[SessionKey, StateRows]]) -> Iterator[str]:
    """Write the keys of several deltas, of which the last has its way.

    Everybody takes the rows in one order, those that many share last and for the shortest time.
    """
    merged: dict[tuple[int, bytes, bytes, str], tuple[Scope, str, bytes]] = {}
    for key, delta in deltas:
        for rank, rows in enumerate(delta):
            for name, value in rows.items():
                scope = key.scopes[rank]
                merged[-rank, scope.owner, scope.session, name] = (scope, name, value)
    return upsert(sql, [merged[place] for place in sorted(merged)])


def upsert(sql: Sql, rows: Sequence[tuple[Scope, str, bytes]]) -> Iterator[str]:
    texts = (literals((scope.owner, scope.session, *rest)) for scope, *rest in rows)
    for chunk in chunks(texts):
        yield bind(sql["upsert_state"], rows=chunk)


def drops(sql: Sql, place: Mapping[str, bytes]) -> list[str]:
    """Return what removes a session, its events and its state."""
    return [
        bind(sql["delete_events"], **place),
        bind(sql["delete_state"], **place),
        bind(sql["delete_session"], **place),
    ]


def select_events(sql: Sql, place: Mapping[str, bytes], window: Window) -> str:
    """Return what reads the events in a window, from either end."""
    return bind(
        sql["select_newest_events"] if window.newest else sql["select_events"],
        **place,
        after=window.after_seq,
        before=_SEQ_END if window.before_seq is None else window.before_seq,
        since=-TIME_MAX if window.after_timestamp is None else window.after_timestamp,
        limit=LIMIT_MAX if window.limit is None else window.limit,
    )


def checked(key: SessionKey, found: Sequence[Row]) -> SessionRow | None:
    """Return the session's row, if there is one."""
    if not found:
        return None
    row = session_row(found[0])
    check_row(key, row)
    return row


def scoped(rows: Iterable[Row]) -> StateRows:
    """Sort the state that a session sees by its scopes."""
    state = StateRows({}, {}, {})
    for scope, name, value in rows:
        state[scope][name.decode()] = value  # type: ignore[index]
    return state
