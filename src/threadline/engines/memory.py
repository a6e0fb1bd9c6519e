"""The reference: dictionaries and no cleverness.

It keeps nothing when the process ends. What it does is what every other engine must do; the
conformance kit compares them with it. The lock is for callers on several threads.
"""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import msgspec

from threadline.engines.base import (
    NO_STATE,
    Appended,
    ErasedUser,
    EventClashError,
    Head,
    Position,
    Scope,
    SessionRow,
    Snapshot,
    StateRows,
    is_expired,
)
from threadline.errors import AlreadyExistsError, SessionNotFoundError, StaleSessionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from threadline.engines.base import (
        EventRow,
        Handle,
        NewEvent,
        NewSession,
        SessionChange,
        SessionKey,
        SessionQuery,
        Window,
    )


class _Thread:
    """One session's row and log, in the order of seq; `seqs` finds an event by its id."""

    def __init__(self, key: SessionKey, row: SessionRow) -> None:
        self.key = key
        self.row = row
        self.log: list[EventRow] = []
        self.timestamps: list[float] = []
        self.seqs: dict[str, int] = {}


class MemoryEngine:
    """Sessions in the memory of this process."""

    channel = None

    def __init__(self) -> None:
        self._threads: dict[Scope, _Thread] = {}
        self._state: dict[Scope, dict[str, bytes]] = {}
        self._incarnations = itertools.count(1)
        self._lock = threading.Lock()

    async def open(self) -> None:
        """There is nothing to connect to."""

    async def close(self) -> None:
        """Keep the sessions: they live as long as this object."""

    async def create(self, session: NewSession, state: StateRows, *, now: float) -> Snapshot:
        """Store a session and return it as `load` would, or raise AlreadyExistsError."""
        key = session.key
        with self._lock:
            if self._find(key, now):
                raise AlreadyExistsError(f"The session {key.id!r} already exists.")
            self._drop(key)
            row = SessionRow(
                app=key.app,
                user=key.user,
                id=key.id,
                incarnation=next(self._incarnations),
                revision=0,
                created=session.created,
                updated=session.created,
                expires=session.expires,
                display_name=session.display_name,
                labels=session.labels,
            )
            self._threads[key.scopes[2]] = _Thread(key, row)
            self._apply(key, state)
            return Snapshot(row, self._merged(key), [])

    async def load(
        self, key: SessionKey, window: Window, *, now: float, state: bool = True
    ) -> Snapshot | None:
        """Read a session, its state (of all scopes) and the events in the window."""
        with self._lock:
            thread = self._find(key, now)
            if thread is None:
                return None
            rows = self._merged(key) if state else NO_STATE
            return Snapshot(thread.row, rows, _select(thread, window))

    async def heads(self, keys: Sequence[SessionKey], *, now: float) -> list[Head | None]:
        """Read where each of the sessions is, in one go; None where there is none."""
        with self._lock:
            threads = [self._find(key, now) for key in keys]
            return [
                None if thread is None else Head(thread.row.incarnation, thread.row.revision)
                for thread in threads
            ]

    async def append(
        self, handle: Handle, events: Sequence[NewEvent], *, rebase: bool, now: float
    ) -> Appended:
        """Store events at the end of the log, with their state; skip those that are there."""
        with self._lock:
            thread = self._find(handle.key, now)
            if thread is None or handle.incarnation not in (None, thread.row.incarnation):
                raise SessionNotFoundError(f"The session {handle.key.id!r} does not exist.")
            known = {i: seq for i, e in enumerate(events) if (seq := thread.seqs.get(e.id))}
            for index, seq in known.items():
                if thread.log[seq - 1][1] != events[index].body:
                    raise EventClashError(index, thread.log[seq - 1])
            seen = max([handle.revision, *known.values()])
            if len(known) < len(events) and not rebase and seen != thread.row.revision:
                raise StaleSessionError(
                    f"The session {handle.key.id!r} is at revision {thread.row.revision}, "
                    f"not {seen}.",
                    expected=seen,
                    revision=thread.row.revision,
                    missed=thread.log[handle.revision :],
                )
            seqs = [known.get(i) or self._push(thread, event) for i, event in enumerate(events)]
            revision = max([handle.revision, *seqs])
            return Appended(
                seqs=seqs,
                missed=[
                    row for row in thread.log[handle.revision : revision] if row[0] not in seqs
                ],
                incarnation=thread.row.incarnation,
                revision=revision,
                updated=thread.row.updated,
            )

    async def patch(
        self,
        scope: Scope,
        keys: Sequence[str],
        change: Callable[[Mapping[str, bytes]], Mapping[str, bytes | None]],
        *,
        now: float,
    ) -> Mapping[str, bytes | None]:
        """Change keys of one scope by a function of their values; None deletes a key."""
        with self._lock:
            thread = self._threads.get(scope)
            if scope.session and (thread is None or is_expired(thread.row, now)):
                raise SessionNotFoundError("The session to be patched does not exist.")
            stored = self._state.get(scope, {})
            changes = change({key: stored[key] for key in keys if key in stored})
            merged = {**stored, **changes}
            self._state[scope] = {key: v for key, v in merged.items() if v is not None}
            return changes

    async def state(self, scope: Scope) -> Mapping[str, bytes]:
        """Read a user's or an app's state."""
        with self._lock:
            return self._copy(scope)

    async def sessions(
        self, query: SessionQuery, *, now: float
    ) -> list[tuple[SessionRow, StateRows]]:
        """Read a page of sessions, each with its state of all scopes if asked for."""

        def position(thread: _Thread) -> Position:
            row = thread.row
            return Position(
                row.created if query.order == "created" else row.updated, row.user, row.id
            )

        def wanted(thread: _Thread) -> bool:
            if query.after is not None:
                place = position(thread)
                if place >= query.after if query.descending else place <= query.after:
                    return False
            return (
                thread.key.app_key == query.app_key
                and query.owner in (None, thread.key.owner)
                and not is_expired(thread.row, now)
            )

        with self._lock:
            page = sorted(filter(wanted, self._threads.values()), key=position)
            if query.descending:
                page.reverse()
            return [
                (thread.row, self._merged(thread.key) if query.state else NO_STATE)
                for thread in page[: query.limit]
            ]

    async def find(self, app_key: bytes, id: str, *, now: float) -> list[SessionRow]:
        """Read the sessions of an app that have this id, one for each user, in any order."""
        with self._lock:
            return [
                thread.row
                for thread in self._threads.values()
                if (thread.key.app_key, thread.key.id) == (app_key, id)
                and not is_expired(thread.row, now)
            ]

    async def apps(self) -> list[str]:
        """Read which apps have sessions, in order."""
        with self._lock:
            return sorted({thread.key.app for thread in self._threads.values()})

    async def describe(self, key: SessionKey, change: SessionChange, *, now: float) -> bool:
        """Change a session's title, labels and expiry; tell whether it was there."""
        with self._lock:
            thread = self._find(key, now)
            if thread is not None:
                given = {
                    name: value
                    for name, value in msgspec.structs.asdict(change).items()
                    if value is not msgspec.UNSET
                }
                thread.row = msgspec.structs.replace(thread.row, **given)
            return thread is not None

    async def delete(self, key: SessionKey) -> bool:
        """Remove a session, its events and its state; tell whether it was there."""
        with self._lock:
            return self._drop(key)

    async def erase(self, user: Scope) -> ErasedUser:
        """Remove a user's sessions and the user's state; tell how much it was."""
        with self._lock:
            threads = [one for scope, one in self._threads.items() if scope.owner == user.owner]
            scopes = [user, *(thread.key.scopes[2] for thread in threads)]
            erased = ErasedUser(
                sessions=len(threads),
                events=sum(len(thread.log) for thread in threads),
                state_keys=sum(len(self._copy(scope)) for scope in scopes),
            )
            for thread in threads:
                self._drop(thread.key)
            self._state.pop(user, None)
            return erased

    # -- under the lock ---------------------------------------------------------------------

    def _find(self, key: SessionKey, now: float) -> _Thread | None:
        thread = self._threads.get(key.scopes[2])
        return None if thread is None or is_expired(thread.row, now) else thread

    def _drop(self, key: SessionKey) -> bool:
        self._state.pop(key.scopes[2], None)
        return self._threads.pop(key.scopes[2], None) is not None

    def _push(self, thread: _Thread, event: NewEvent) -> int:
        seq = thread.row.revision + 1
        thread.row = msgspec.structs.replace(thread.row, revision=seq, updated=event.timestamp)
        thread.log.append((seq, event.body))
        thread.timestamps.append(event.timestamp)
        thread.seqs[event.id] = seq
        self._apply(thread.key, event.state)
        return seq

    def _apply(self, key: SessionKey, state: StateRows) -> None:
        for scope, rows in zip(key.scopes, state, strict=True):
            if rows:
                self._state.setdefault(scope, {}).update(rows)

    def _merged(self, key: SessionKey) -> StateRows:
        return StateRows(*map(self._copy, key.scopes))

    def _copy(self, scope: Scope) -> dict[str, bytes]:
        return dict(self._state.get(scope, {}))


def _select(thread: _Thread, window: Window) -> list[EventRow]:
    end = None if window.before_seq is None else max(window.before_seq - 1, 0)
    rows = thread.log[window.after_seq : end]
    if window.after_timestamp is not None:
        since = window.after_timestamp
        rows = [row for row in rows if thread.timestamps[row[0] - 1] >= since]
    if window.limit is None:
        return rows
    return rows[max(len(rows) - window.limit, 0) :] if window.newest else rows[: window.limit]
