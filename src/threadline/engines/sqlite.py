"""SQLite: one file, many processes, nothing to set up.

One thread owns the write connection and commits whatever is queued in one transaction (group
commit), so concurrent appends share one fsync. Reads run on connections of their own, which
WAL keeps out of the writer's way. Limits: 2^31 sessions a file, 2^32 events a session.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import weakref
from typing import TYPE_CHECKING, TypeVar

import msgspec

from threadline.engines import statements
from threadline.engines.base import (
    NO_STATE,
    Appended,
    ErasedUser,
    EventClashError,
    Head,
    Scope,
    SessionRow,
    Snapshot,
    StateRows,
    Window,
    check_row,
    digest,
    is_expired,
)
from threadline.engines.sqlite_threads import (
    Readers,
    Writer,
    begin,
    connect,
    retry_busy,
    shut,
    translate,
)
from threadline.errors import (
    AlreadyExistsError,
    EngineClosedError,
    ForeignDatabaseError,
    SessionNotFoundError,
    StaleSessionError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from threadline.engines.base import (
        EventRow,
        Handle,
        Migration,
        NewEvent,
        NewSession,
        SessionChange,
        SessionKey,
        SessionQuery,
    )

T = TypeVar("T")

SQL = statements.load("sqlite")
_SELECT_SESSIONS = {
    (scope, order, descending): SQL["select_sessions"].format(
        scope=scope, time=order, beyond=beyond, direction=direction
    )
    for scope in ("app_key", "owner")
    for order in ("updated", "created")
    for descending, beyond, direction in ((False, ">", "ASC"), (True, "<", "DESC"))
}

MEMORY = ":memory:"
SEQ_BITS = 32
_SYNCHRONOUS = {"full": "FULL", "normal": "NORMAL"}


class SqliteEngine:
    """Sessions in one SQLite file, or in memory with the path `:memory:`.

    `durability` is "full" (an append that returned survives power loss) or "normal" (it
    survives the death of the process). `busy_timeout_s` bounds the wait for other processes.
    """

    dialect = "sqlite"
    schema = None
    channel = None

    def __init__(
        self, path: str, *, durability: str = "full", busy_timeout_s: float = 30.0
    ) -> None:
        self.path = self.where = path
        self._durability = durability
        self._busy_timeout_s = busy_timeout_s
        self._opening = threading.Lock()
        self._is_open = False
        self._writer: Writer | None = None
        self._readers: Readers | None = None

    # -- life ---------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect; more than once does no harm."""
        await asyncio.to_thread(self._open)
        self._is_open = True

    def _open(self) -> None:
        with self._opening:
            if self._writer is not None:
                return
            try:
                db = connect(self.path, self._busy_timeout_s)
                try:
                    self._make_ready(db)
                except BaseException:
                    db.close()
                    raise
            except sqlite3.Error as error:
                raise translate(error, self.path) from error
            self._writer = Writer(db, self.path, self._busy_timeout_s)
            if self.path != MEMORY:
                self._readers = Readers(self.path, self._busy_timeout_s)
            # Threads must not keep a forgotten engine alive, nor outlive it.
            self._finalizer = weakref.finalize(self, shut, self._writer, self._readers)
            _connected.add(self)

    async def close(self) -> None:
        """Finish what is queued, then let go of every connection and thread."""
        self._is_open = False
        if self._writer is not None:
            self._writer = self._readers = None
            await asyncio.to_thread(self._finalizer)

    def before_fork(self) -> None:
        """Close the file, and let nobody open it until the fork is done.

        SQLite keeps its locks in the process's memory, which a fork copies: a child with an
        inherited connection, or beside a parent that closes one, loses what it writes. Both
        sides open the file again when they next use it.
        """
        self._opening.acquire()
        if self._writer is not None and self.path != MEMORY:
            self._writer = self._readers = None
            self._finalizer()

    def after_fork(self) -> None:
        """Let it be opened again."""
        self._opening.release()

    def _make_ready(self, db: sqlite3.Connection) -> None:
        tables = {name for (name,) in db.execute(SQL["select_tables"])}
        if "threadline_migration" not in tables and {"sessions", "events"} <= tables:
            raise ForeignDatabaseError(
                f"{self.path} was written by google-adk, whose tables differ from threadline's. "
                "Give threadline a file of its own: `threadline import adk FILE --db URL` copies "
                "what is in this one. The file was not changed."
            )
        db.execute("PRAGMA busy_timeout = 0")  # the waiting is done by retry_busy
        # Before anything is changed, so that a file we cannot write is named as that.
        begin(db, self.path, self._busy_timeout_s)
        db.execute("ROLLBACK")
        if self.path != MEMORY and db.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            retry_busy(
                lambda: db.execute("PRAGMA journal_mode = WAL"), self.path, self._busy_timeout_s
            )
        db.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[self._durability]}")
        # What was deleted is overwritten, not only unlinked.
        db.execute("PRAGMA secure_delete = ON")

    # -- schema -------------------------------------------------------------------------

    async def version(self) -> int | None:
        """Read the ledger's newest version; None where there is no ledger."""

        def work(db: sqlite3.Connection) -> int | None:
            if ("threadline_migration",) not in db.execute(SQL["select_tables"]).fetchall():
                return None
            version: int | None = db.execute(SQL["select_version"]).fetchone()[0]
            return version

        return await self._read(work)

    async def migrate(self, migrations: Sequence[Migration]) -> list[str]:
        """Run those that are not in the ledger, under the write lock; return their names."""

        def work(db: sqlite3.Connection) -> list[str]:
            tables = db.execute(SQL["select_tables"]).fetchall()
            current = 0
            if ("threadline_migration",) in tables:
                current = db.execute(SQL["select_version"]).fetchone()[0] or 0
            due = [step for step in migrations if step.version > current]
            for step in due:
                for statement in _statements(step.sql):
                    db.execute(statement)
            return [step.name for step in due]

        return await self._write(work)

    # -- rows ---------------------------------------------------------------------------

    async def create(self, session: NewSession, state: StateRows, *, now: float) -> Snapshot:
        """Store a session and return it as `load` would, or raise AlreadyExistsError."""
        key = session.key
        values = {**msgspec.structs.asdict(key), **msgspec.structs.asdict(session)}
        del values["key"], values["scopes"]

        def work(db: sqlite3.Connection) -> Snapshot:
            before = _find(db, key)
            if before is not None and not is_expired(before, now):
                raise AlreadyExistsError(f"The session {key.id!r} already exists.")
            if before is not None:
                _drop(db, key, before)
            row = SessionRow(*db.execute(SQL["insert_session"], values).fetchone())
            _apply(db, key, state)
            return Snapshot(row, _merged(db, key), [])

        return await self._write(work)

    async def load(
        self, key: SessionKey, window: Window, *, now: float, state: bool = True
    ) -> Snapshot | None:
        """Read a session, its state (of all scopes) and the events in the window."""

        def work(db: sqlite3.Connection) -> Snapshot | None:
            row = _find(db, key)
            if row is None or is_expired(row, now):
                return None
            rows = _merged(db, key) if state else NO_STATE
            return Snapshot(row, rows, _select(db, row.incarnation, window))

        return await self._read(work)

    async def heads(self, keys: Sequence[SessionKey], *, now: float) -> list[Head | None]:
        """Read where each of the sessions is, in one go; None where there is none."""

        def work(db: sqlite3.Connection) -> list[Head | None]:
            # There is no way to the database that one statement for all would save.
            places = [(key.owner, key.session, now) for key in keys]
            found = [db.execute(SQL["select_head"], place).fetchone() for place in places]
            return [one and Head(*one) for one in found]

        return await self._read(work)

    async def append(
        self, handle: Handle, events: Sequence[NewEvent], *, rebase: bool, now: float
    ) -> Appended:
        """Store events at the end of the log, with their state; skip those that are there."""
        id_keys = [digest(event.id) for event in events]

        def work(db: sqlite3.Connection) -> Appended:
            return _append_next(db, handle, events, id_keys, now) or _append_carefully(
                db, handle, events, id_keys, rebase, now
            )

        return await self._write(work)

    async def patch(
        self,
        scope: Scope,
        keys: Sequence[str],
        change: Callable[[Mapping[str, bytes]], Mapping[str, bytes | None]],
        *,
        now: float,
    ) -> Mapping[str, bytes | None]:
        """Change keys of one scope by a function of their values; None deletes a key."""
        where = (scope.owner, scope.session)

        def work(db: sqlite3.Connection) -> Mapping[str, bytes | None]:
            if scope.session:
                found = db.execute(SQL["select_session"], where).fetchone()
                if found is None or is_expired(SessionRow(*found), now):
                    raise SessionNotFoundError("The session to be patched does not exist.")
            stored = {}
            for key in keys:
                found = db.execute(SQL["select_state_key"], (*where, key)).fetchone()
                if found is not None:
                    stored[key] = found[0]
            changes = change(stored)
            for key, value in changes.items():
                if value is None:
                    db.execute(SQL["delete_state_key"], (*where, key))
                else:
                    db.execute(SQL["upsert_state"], (*where, key, value))
            return changes

        return await self._write(work)

    async def state(self, scope: Scope) -> Mapping[str, bytes]:
        """Read a user's or an app's state."""
        return await self._read(lambda db: _state(db, scope))

    async def sessions(
        self, query: SessionQuery, *, now: float
    ) -> list[tuple[SessionRow, StateRows]]:
        """Read a page of sessions, each with its state of all scopes if asked for."""
        scope = "app_key" if query.owner is None else "owner"
        statement = _SELECT_SESSIONS[scope, query.order, query.descending]
        beginning = (float("inf" if query.descending else "-inf"), "", "")
        after, user, id = query.after or beginning
        values = {
            "scope": query.app_key if query.owner is None else query.owner,
            "time": after,
            "user": user,
            "id": id,
            "now": now,
            "limit": -1 if query.limit is None else query.limit,
        }

        def work(db: sqlite3.Connection) -> list[tuple[SessionRow, StateRows]]:
            page = []
            app = _state(db, Scope(query.app_key)) if query.state else {}
            users: dict[bytes, dict[str, bytes]] = {}
            for *row, owner, session in db.execute(statement, values).fetchall():
                state = NO_STATE
                if query.state:
                    if owner not in users:
                        users[owner] = _state(db, Scope(owner))
                    state = StateRows(app, users[owner], _state(db, Scope(owner, session)))
                page.append((SessionRow(*row), state))
            return page

        return await self._read(work)

    async def find(self, app_key: bytes, id: str, *, now: float) -> list[SessionRow]:
        """Read the sessions of an app that have this id, one for each user, in any order."""
        where = (app_key, digest(id), id, now)
        found = await self._read(lambda db: db.execute(SQL["select_by_id"], where).fetchall())
        return [SessionRow(*row) for row in found]

    async def apps(self) -> list[str]:
        """Read which apps have sessions, in order, at a cost that does not grow with those."""

        def work(db: sqlite3.Connection) -> list[str]:
            apps, after = [], b""
            while found := db.execute(SQL["select_next_app"], (after,)).fetchone():
                after, app = found
                apps.append(app)
            return sorted(apps)

        return await self._read(work)

    async def describe(self, key: SessionKey, change: SessionChange, *, now: float) -> bool:
        """Change a session's title, labels and expiry; tell whether it was there."""
        place = {"owner": key.owner, "session": key.session, "now": now}
        values = {**change.values, **place}
        return await self._write(
            lambda db: db.execute(SQL["describe_session"], values).rowcount == 1
        )

    async def delete(self, key: SessionKey) -> bool:
        """Remove a session, its events and its state; tell whether it was there."""

        def work(db: sqlite3.Connection) -> bool:
            row = _find(db, key)
            if row is not None:
                _drop(db, key, row)
            return row is not None

        return await self._write(work)

    async def erase(self, user: Scope) -> ErasedUser:
        """Remove a user's sessions and the user's state; tell how much it was."""
        owner = {"owner": user.owner}

        def work(db: sqlite3.Connection) -> ErasedUser:
            nos = [no for (no,) in db.execute(SQL["delete_sessions_of_user"], owner).fetchall()]
            places = ((no << SEQ_BITS, (no + 1) << SEQ_BITS) for no in nos)
            return ErasedUser(
                sessions=len(nos),
                events=db.executemany(SQL["delete_events"], places).rowcount,
                state_keys=db.execute(SQL["delete_state_of_user"], owner).rowcount,
            )

        return await self._write(work)

    # -- transactions -------------------------------------------------------------------

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await (await self._connected()).submit(work)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        writer = await self._connected()
        return await (self._readers or writer).submit(work)  # in memory there is one connection

    async def _connected(self) -> Writer:
        if self._writer is None and self._is_open:  # since a fork
            await self.open()
        if self._writer is None:
            raise EngineClosedError(f"The engine of {self.path} is not open.")
        return self._writer


_connected: weakref.WeakSet[SqliteEngine] = weakref.WeakSet()
_forking: list[SqliteEngine] = []


def _before_fork() -> None:
    _forking.extend(_connected)
    for engine in _forking:
        engine.before_fork()


def _after_fork() -> None:
    for engine in _forking:
        engine.after_fork()
    _forking.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


# -- statements, inside a transaction ---------------------------------------------------


def _append_next(
    db: sqlite3.Connection,
    handle: Handle,
    events: Sequence[NewEvent],
    id_keys: Sequence[bytes],
    now: float,
) -> Appended | None:
    """Append to the revision that the handle knows, as most appends can; else change nothing.

    Two statements an event, and no question asked first: a place or an id that is taken says
    that the handle is stale or the event a repeated one.
    """
    no, key = handle.incarnation, handle.key
    if no is None:
        return None
    head = handle.revision
    for event, id_key in zip(events, id_keys, strict=True):
        row = (no << SEQ_BITS | head + 1, id_key, event.timestamp, event.body)
        if db.execute(SQL["insert_event"], row).rowcount == 0:
            break
        head += 1
    else:
        updated = events[-1].timestamp
        place = (no, handle.revision, key.owner, key.session, now)
        if db.execute(SQL["bump_known_session"], (head, updated, *place)).rowcount == 1:
            for event in events:
                _apply(db, key, event.state)
            return Appended(
                seqs=range(handle.revision + 1, head + 1),
                missed=(),
                incarnation=no,
                revision=head,
                updated=updated,
            )
    if head > handle.revision:  # take back what was inserted
        after = no << SEQ_BITS | handle.revision
        db.execute(SQL["delete_events"], (after, no << SEQ_BITS | head + 1))
    return None


def _append_carefully(
    db: sqlite3.Connection,
    handle: Handle,
    events: Sequence[NewEvent],
    id_keys: Sequence[bytes],
    rebase: bool,
    now: float,
) -> Appended:
    """Append through a handle that may be stale, skipping the events that are there."""
    key = handle.key
    row = _find(db, key)
    if row is None or is_expired(row, now) or handle.incarnation not in (None, row.incarnation):
        raise SessionNotFoundError(f"The session {key.id!r} does not exist.")
    no = row.incarnation
    known: dict[int, int] = {}
    for index, event in enumerate(events):
        stored: EventRow | None = db.execute(
            SQL["select_event_by_id"], (no, id_keys[index])
        ).fetchone()
        if stored is not None:
            if stored[1] != event.body:
                raise EventClashError(index, stored)
            known[index] = stored[0]
    seen = max([handle.revision, *known.values()])
    if len(known) < len(events) and not rebase and seen != row.revision:
        raise StaleSessionError(
            f"The session {key.id!r} is at revision {row.revision}, not {seen}.",
            expected=seen,
            revision=row.revision,
            missed=_select(db, no, Window(after_seq=handle.revision)),
        )
    seqs: list[int] = []
    head, updated = row.revision, row.updated
    for index, event in enumerate(events):
        if index not in known:
            head, updated = head + 1, event.timestamp
            place = no << SEQ_BITS | head
            db.execute(SQL["insert_event"], (place, id_keys[index], updated, event.body))
            _apply(db, key, event.state)
        seqs.append(known.get(index, head))
    if head > row.revision:
        db.execute(SQL["bump_session"], (head, updated, no))
    revision = max([handle.revision, *seqs])
    between = _select(db, no, Window(after_seq=handle.revision, before_seq=revision))
    return Appended(
        seqs=seqs,
        missed=[event for event in between if event[0] not in seqs],
        incarnation=no,
        revision=revision,
        updated=updated,
    )


def _find(db: sqlite3.Connection, key: SessionKey) -> SessionRow | None:
    found = db.execute(SQL["select_session"], (key.owner, key.session)).fetchone()
    if found is None:
        return None
    row = SessionRow(*found)
    check_row(key, row)
    return row


def _select(db: sqlite3.Connection, no: int, window: Window) -> list[EventRow]:
    if window.limit == 0:
        return []
    end = (1 << SEQ_BITS) if window.before_seq is None else window.before_seq
    values = {
        "after": no << SEQ_BITS | window.after_seq,
        "before": (no << SEQ_BITS) + end,
        "since": float("-inf") if window.after_timestamp is None else window.after_timestamp,
        "limit": -1 if window.limit is None else window.limit,
    }
    if not window.newest:
        return db.execute(SQL["select_events"], values).fetchall()
    return db.execute(SQL["select_newest_events"], values).fetchall()[::-1]


def _state(db: sqlite3.Connection, scope: Scope) -> dict[str, bytes]:
    return dict(db.execute(SQL["select_state"], (scope.owner, scope.session)).fetchall())


def _merged(db: sqlite3.Connection, key: SessionKey) -> StateRows:
    return StateRows(*(_state(db, scope) for scope in key.scopes))


def _apply(db: sqlite3.Connection, key: SessionKey, delta: StateRows) -> None:
    for scope, rows in zip(key.scopes, delta, strict=True):
        for name, value in rows.items():
            db.execute(SQL["upsert_state"], (scope.owner, scope.session, name, value))


def _drop(db: sqlite3.Connection, key: SessionKey, row: SessionRow) -> None:
    no = row.incarnation
    db.execute(SQL["delete_events"], (no << SEQ_BITS, (no + 1) << SEQ_BITS))
    db.execute(SQL["delete_state"], {"owner": key.owner, "session": key.session})
    db.execute(SQL["delete_session"], {"no": no})


def _statements(script: str) -> Iterator[str]:
    """Split a script; `executescript` would commit before it begins."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
