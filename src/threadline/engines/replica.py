"""Reads from a replica, unless it has not caught up with what this process wrote.

What is written here is remembered: of a session its revision, of state the values. What a replica
shows is compared with that, and where it is older the primary is asked, so one's own writes are
always read. What others wrote comes as late as the replica is. Nothing is forgotten once it was
shown, since behind one address there may be several replicas.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import UNSET
from msgspec.structs import asdict

from threadline.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from threadline.engines.base import (
        Appended,
        Engine,
        ErasedUser,
        Handle,
        Head,
        Migratable,
        Migration,
        NewEvent,
        NewSession,
        Scope,
        SessionChange,
        SessionKey,
        SessionQuery,
        SessionRow,
        Snapshot,
        StateRows,
        Tailable,
        Window,
    )

T = TypeVar("T")

WRITTEN_MAX = 10_000
REST_S = 5.0


class _Written:
    """What was written of a scope, and is to be seen where a replica is to be believed."""

    __slots__ = ("app_key", "columns", "incarnation", "is_deleted", "revision", "state", "version")

    def __init__(self, app_key: bytes | None) -> None:
        self.app_key = app_key
        self.incarnation: int | None = None
        self.revision = 0
        self.is_deleted = False
        self.state: dict[str, bytes | None] = {}
        self.columns: dict[str, Any] = {}
        """What of a session's row was changed without an event."""
        self.version = 0
        """How often it was written, to notice a write that came during a read."""

    def is_shown(self, session: SessionRow | None, state: Mapping[str, bytes] | None) -> bool:
        """Tell whether what was read, of a session or of state, is as new as this."""
        if self.is_deleted:
            return False
        if session is not None and (
            self.incarnation not in (None, session.incarnation) or session.revision < self.revision
        ):
            return False
        if session is not None and any(
            getattr(session, name) != value for name, value in self.columns.items()
        ):
            return False
        return state is None or all(state.get(name) == value for name, value in self.state.items())

    def forget(self) -> None:
        """Expect nothing more of a session that is gone."""
        self.state.clear()
        self.columns.clear()


class ReplicaEngine:
    """An engine that writes to one server and reads from another that follows it.

    A replica that does not answer is left alone for REST_S while the primary does its work.
    The last WRITTEN_MAX sessions and scopes that were written here are remembered.
    """

    def __init__(self, primary: Any, replica: Engine) -> None:
        self._primary: Engine = primary
        self._replica = replica
        self._tables: Migratable = primary
        self._heads: Tailable = primary
        self.dialect = self._tables.dialect
        self.where = self._tables.where
        self.schema = self._tables.schema
        self.channel = self._heads.channel
        self._lock = threading.Lock()
        self._written: OrderedDict[Scope, _Written] = OrderedDict()
        self._rests_until = 0.0

    async def open(self) -> None:
        """Connect to both; a replica that is away is not waited for."""
        await self._primary.open()
        await self._ask_replica(self._replica.open)

    async def close(self) -> None:
        """Let go of both."""
        await self._replica.close()
        await self._primary.close()

    async def version(self) -> int | None:
        """Read the ledger's newest version; None where there is no ledger."""
        return await self._tables.version()

    async def migrate(self, migrations: Sequence[Migration]) -> list[str]:
        """Run those that are not in the ledger, under a lock; return their names."""
        return await self._tables.migrate(migrations)

    # -- writes -------------------------------------------------------------------------

    async def create(self, session: NewSession, state: StateRows, *, now: float) -> Snapshot:
        """Store a session and return it as `load` would, or raise AlreadyExistsError."""
        created = await self._primary.create(session, state, now=now)
        self._note_session(session.key, created.session.incarnation, 0, [state])
        return created

    async def append(
        self, handle: Handle, events: Sequence[NewEvent], *, rebase: bool, now: float
    ) -> Appended:
        """Store events at the end of the log, with their state; skip those that are there."""
        done = await self._primary.append(handle, events, rebase=rebase, now=now)
        states = [event.state for event in events]
        self._note_session(handle.key, done.incarnation, done.revision, states)
        return done

    async def patch(
        self,
        scope: Scope,
        keys: Sequence[str],
        change: Callable[[Mapping[str, bytes]], Mapping[str, bytes | None]],
        *,
        now: float,
    ) -> Mapping[str, bytes | None]:
        """Change keys of one scope by a function of their values; None deletes a key."""
        changes = await self._primary.patch(scope, keys, change, now=now)
        with self._lock:
            self._note(scope, None).state.update(changes)
        return changes

    async def delete(self, key: SessionKey) -> bool:
        """Remove a session, its events and its state; tell whether it was there."""
        was_there = await self._primary.delete(key)
        with self._lock:
            written = self._note(key.scopes[2], key.app_key)
            written.is_deleted = True
            written.forget()
        return was_there

    async def erase(self, user: Scope) -> ErasedUser:
        """Remove a user's sessions and the user's state; tell how much it was."""
        erased = await self._primary.erase(user)
        with self._lock:
            # Every session of theirs is read with this scope, and so from the primary.
            written = self._note(user, None)
            written.is_deleted = True
            written.forget()
        return erased

    async def describe(self, key: SessionKey, change: SessionChange, *, now: float) -> bool:
        """Change a session's title, labels and expiry; tell whether it was there."""
        was_there = await self._primary.describe(key, change, now=now)
        if was_there:
            with self._lock:
                written = self._note(key.scopes[2], key.app_key)
                written.columns.update(
                    {name: value for name, value in asdict(change).items() if value is not UNSET}
                )
        return was_there

    def _note_session(
        self, key: SessionKey, incarnation: int, revision: int, states: Sequence[StateRows]
    ) -> None:
        with self._lock:
            written = self._note(key.scopes[2], key.app_key)
            if written.is_deleted or written.incarnation not in (None, incarnation):
                written.is_deleted, written.revision = False, 0
                written.forget()
            written.incarnation = incarnation
            written.revision = max(written.revision, revision)
            for state in states:
                for scope, delta in zip(key.scopes[:2], state[:2], strict=True):
                    if delta:
                        self._note(scope, key.app_key).state.update(delta)
                # The session's own comes with its revision, but may overwrite what a patch set.
                patched = written.state.keys() & state.session.keys()
                written.state.update({name: state.session[name] for name in patched})

    def _note(self, scope: Scope, app_key: bytes | None) -> _Written:
        written = self._written.get(scope)
        if written is None:
            written = self._written[scope] = _Written(app_key)
            if len(self._written) > WRITTEN_MAX:
                self._written.popitem(last=False)
        else:
            self._written.move_to_end(scope)
        written.version += 1
        return written

    # -- reads --------------------------------------------------------------------------

    async def load(
        self, key: SessionKey, window: Window, *, now: float, state: bool = True
    ) -> Snapshot | None:
        """Read a session, its state (of all scopes) and the events in the window."""
        found = await self._ask_replica(
            lambda: self._replica.load(key, window, now=now, state=state)
        )
        if found is not None and found.session.revision >= window.after_seq:
            rows = found.state if state else (None, None, None)
            if self._believes(dict(zip(key.scopes, rows, strict=True)), found.session):
                return found
        before = self._versions(key.scopes)
        found = await self._primary.load(key, window, now=now, state=state)
        if found is not None and state:
            self._expect(before, dict(zip(key.scopes, found.state, strict=True)), found.session)
        return found

    async def heads(self, keys: Sequence[SessionKey], *, now: float) -> list[Head | None]:
        """Read where each of the sessions is, from where they are written."""
        return await self._heads.heads(keys, now=now)

    async def find(self, app_key: bytes, id: str, *, now: float) -> list[SessionRow]:
        """Read the sessions of an app that have this id, from where they are written.

        What a replica lacks cannot be seen in it, and who asks wants to know whether it is free.
        """
        return await self._primary.find(app_key, id, now=now)

    async def apps(self) -> list[str]:
        """Read which apps have sessions, from where they are written."""
        return await self._primary.apps()

    async def state(self, scope: Scope) -> Mapping[str, bytes]:
        """Read a user's or an app's state."""
        found = await self._ask_replica(lambda: self._replica.state(scope))
        if found is not None and self._believes({scope: found}, None):
            return found
        before = self._versions([scope])
        found = await self._primary.state(scope)
        self._expect(before, {scope: found}, None)
        return found

    async def sessions(
        self, query: SessionQuery, *, now: float
    ) -> list[tuple[SessionRow, StateRows]]:
        """Read a page of sessions, each with its state of all scopes if asked for."""
        with self._lock:
            # What a page of the replica's lacks cannot be seen in it.
            is_sure = not any(
                written.app_key in (None, query.app_key)
                and (query.owner in (None, scope.owner) or scope.owner == query.app_key)
                for scope, written in self._written.items()
            )
        if is_sure:
            page = await self._ask_replica(lambda: self._replica.sessions(query, now=now))
            if page is not None:
                return page
        return await self._primary.sessions(query, now=now)

    async def _ask_replica(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """Return the replica's answer, or None if it is away."""
        if time.monotonic() >= self._rests_until:
            try:
                return await ask()
            except StorageError:
                self._rests_until = time.monotonic() + REST_S
        return None

    def _believes(
        self, seen: Mapping[Scope, Mapping[str, bytes] | None], session: SessionRow | None
    ) -> bool:
        """Tell whether what a replica shows is as new as what was written here."""
        with self._lock:
            return all(
                self._written[scope].is_shown(session if scope.session else None, rows)
                for scope, rows in seen.items()
                if scope in self._written
            )

    def _versions(self, scopes: Sequence[Scope]) -> dict[Scope, int]:
        with self._lock:
            return {
                scope: self._written[scope].version for scope in scopes if scope in self._written
            }

    def _expect(
        self,
        before: Mapping[Scope, int],
        seen: Mapping[Scope, Mapping[str, bytes]],
        session: SessionRow | None,
    ) -> None:
        """Wait for what the primary shows from now on: others have overwritten what we wrote."""
        with self._lock:
            for scope, version in before.items():
                written = self._written.get(scope)
                if written is None or written.version != version:
                    continue  # written again, during the read
                written.state = {name: seen[scope].get(name) for name in written.state}
                if session is not None and scope.session:
                    written.is_deleted = False
                    written.incarnation, written.revision = session.incarnation, session.revision
                    written.columns = {name: getattr(session, name) for name in written.columns}
