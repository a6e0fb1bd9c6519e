"""PostgreSQL: one round trip an append, behind a pooler or not.

An append is one statement and its own transaction: it compares the session's revision, inserts
the events and sets their state. Appends that come while others are under way share a statement
and a commit. Whatever else happens (a stale handle, a repeated event) is sorted out in an
explicit transaction that holds the session's row. Lost connections, deadlocks and serialization
failures are tried again: every call is written so that trying again is safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import threading
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import asyncpg

from threadline.engines import statements
from threadline.engines.base import (
    Appended,
    EventClashError,
    Scope,
    SessionRow,
    Snapshot,
    StateRows,
    check_row,
    digest,
    is_expired,
    quoted,
)
from threadline.errors import (
    AlreadyExistsError,
    EngineClosedError,
    InvalidInputError,
    ReadOnlyDatabaseError,
    SessionNotFoundError,
    StaleSessionError,
    StorageBusyError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    ThreadlineError,
    UnsupportedUrlError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

    from threadline.engines.base import (
        EventRow,
        Handle,
        Migration,
        NewEvent,
        NewSession,
        SessionKey,
        SessionQuery,
        Window,
    )

T = TypeVar("T")

SQL = statements.load("postgres")

BATCH_MAX = 128
BATCH_BYTES_MAX = 4 << 20
LANES_MAX = 2
IDLE_MAX_S = 300.0
CONNECT_TIMEOUT_S = 10.0
INT64_MAX = 2**63 - 1


class PostgresEngine:
    """Sessions in the tables of one schema of a PostgreSQL database.

    Every event loop that uses it has a pool of its own, of `pool_min` to `pool_max` connections,
    made by `connect_with(dsn, **options)` (by default `asyncpg.connect`). `busy_timeout_s`
    bounds the wait for locks, for a free connection and for a server that went away. With
    `durability` "normal" the last appends may be lost if the server goes down.
    """

    dialect = "postgres"

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "public",
        pool_min: int = 1,
        pool_max: int = 10,
        statement_cache_size: int = 100,
        durability: str = "full",
        busy_timeout_s: float = 30.0,
        connect_with: Callable[..., Awaitable[Any]] | None = None,
    ) -> None:
        self.schema: str | None = schema
        self._schema = quoted(schema)
        self._sql = {name: text.replace("{schema}", self._schema) for name, text in SQL.items()}
        self._load = {
            newest: self._sql["load"].replace("{direction}", "DESC" if newest else "ASC")
            for newest in (False, True)
        }
        self._sessions = {
            (scope, order, descending): SQL["select_sessions"].format(
                schema=self._schema, scope=scope, time=order, beyond=beyond, direction=direction
            )
            for scope in ("app_key", "owner")
            for order in ("updated", "created")
            for descending, beyond, direction in ((False, ">", "ASC"), (True, "<", "DESC"))
        }
        self._settings = _Settings(
            dsn,
            connect_with or asyncpg.connect,
            pool_min=pool_min,
            pool_max=pool_max,
            busy_timeout_s=busy_timeout_s,
            options={
                "connection_class": _Connection,
                "timeout": min(CONNECT_TIMEOUT_S, busy_timeout_s),
                "command_timeout": busy_timeout_s,
                "statement_cache_size": statement_cache_size,
                "max_cached_statement_lifetime": 0,
                "server_settings": {"synchronous_commit": "off"} if durability == "normal" else {},
            },
        )
        self.where = self._settings.place
        self._lock = threading.Lock()
        self._is_open = False
        self._pid = 0
        self._desks: dict[asyncio.AbstractEventLoop, _Desk] = {}

    # -- life ---------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, so that a wrong URL is told at once; more than once does no harm."""
        if not self._is_open:
            self._pid = os.getpid()
            self._is_open = True
        desk = self._desk()
        try:
            await desk.pool.fill()
        except Exception as error:
            await self.close()
            raise _translate(error, self._settings) from error

    async def close(self) -> None:
        """Finish what is queued, then let go of every connection."""
        with self._lock:
            desks, self._desks = self._desks, {}
            self._is_open = False
        if self._pid != os.getpid():  # a fork: the connections are the parent's
            return
        here = asyncio.get_running_loop()
        for loop, desk in desks.items():
            if loop is here:
                await desk.close()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(desk.close(), loop))

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection of its own, which need not be open, to work on other tables."""
        try:
            db = await self._settings.connect()
        except Exception as error:
            raise _translate(error, self._settings) from error
        try:
            yield db
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise _translate(error, self._settings) from error
        finally:
            await db.close()

    def _desk(self) -> _Desk:
        loop = asyncio.get_running_loop()
        desk = self._desks.get(loop)
        if desk is not None and self._pid == os.getpid():
            return desk
        with self._lock:
            if not self._is_open:
                raise EngineClosedError(f"The engine of {self._settings.place} is not open.")
            if self._pid != os.getpid():
                raise EngineClosedError(
                    "This service was opened before the process was forked; connections do not "
                    "survive that. Create a service in the child."
                )
            for other in [other for other in self._desks if other.is_closed()]:
                del self._desks[other]  # its connections went with it
            desk = self._desks[loop] = _Desk(self._settings, self._sql)
        return desk

    # -- schema -------------------------------------------------------------------------

    async def version(self) -> int | None:
        """Read the ledger's newest version; None where there is no ledger."""
        return await self._desk().run(self._version)

    async def _version(self, db: asyncpg.Connection) -> int | None:
        ledger = f"{self._schema}.threadline_migration"
        if not await db.fetchval(self._sql["select_ledger"], ledger):
            return None
        version: int | None = await db.fetchval(self._sql["select_version"])
        return version

    async def migrate(self, migrations: Sequence[Migration]) -> list[str]:
        """Run those that are not in the ledger, under a lock; return their names."""

        async def work(db: asyncpg.Connection) -> list[str]:
            async with db.transaction(isolation="read_committed"):
                await db.execute(self._sql["lock_migrations"], f"threadline:{self.schema}")
                if not await db.fetchval(self._sql["select_schema"], self.schema):
                    await db.execute(self._sql["create_schema"])
                current = await self._version(db) or 0
                due = [step for step in migrations if step.version > current]
                for step in due:
                    await db.execute(step.sql)
            return [step.name for step in due]

        return await self._desk().run(work)

    # -- rows ---------------------------------------------------------------------------

    async def create(self, session: NewSession, state: StateRows, *, now: float) -> Snapshot:
        """Store a session and return it as `load` would, or raise AlreadyExistsError."""
        key = session.key
        row = SessionRow(
            app=key.app,
            user=key.user,
            id=key.id,
            # Every JSON number can hold it, and two sessions with one id hardly share it.
            incarnation=secrets.randbelow(2**53 - 1) + 1,
            revision=0,
            created=session.created,
            updated=session.created,
            expires=session.expires,
            display_name=session.display_name,
            labels=session.labels,
        )
        values = (
            *(key.owner, key.session, key.app_key),
            *(row.incarnation, row.created, row.expires),
            *(key.app.encode(), key.user.encode(), key.id.encode()),
            *(_encoded(row.display_name), _encoded(row.labels)),
            *_columns(_delta(key, [state]), 4),
        )

        async def insert(db: asyncpg.Connection) -> StateRows | None:
            found = await db.fetch(self._sql["insert_session"], *values)
            if not any(part == 0 for part, _, _ in found):
                return None
            scopes: tuple[dict[str, bytes], ...] = ({}, {})
            for part, name, value in found:
                if part:
                    scopes[part - 1][name.decode()] = value
            return StateRows({**scopes[0], **state.app}, {**scopes[1], **state.user}, state.session)

        async def work(db: asyncpg.Connection) -> StateRows:
            stored = await insert(db)
            while stored is None:
                async with db.transaction(isolation="read_committed"):
                    before = await self._find(db, key)
                    if before is not None and before.incarnation == row.incarnation:
                        break  # an earlier attempt, whose answer was lost, made it
                    if before is not None and not is_expired(before, now):
                        raise AlreadyExistsError(f"The session {key.id!r} already exists.")
                    await db.execute(self._sql["delete_session"], key.owner, key.session)
                    stored = await insert(db)
            else:
                return stored
            loaded = await self._load_with(db, key, (now, True, 0, 0, float("-inf"), 0))
            if loaded is None:
                raise SessionNotFoundError(f"The session {key.id!r} was deleted meanwhile.")
            return loaded.state

        return Snapshot(row, await self._desk().run(work), [])

    async def load(
        self, key: SessionKey, window: Window, *, now: float, state: bool = True
    ) -> Snapshot | None:
        """Read a session, its state (of all scopes) and the events in the window."""
        values = (
            now,
            state,
            window.after_seq,
            INT64_MAX if window.before_seq is None else window.before_seq,
            float("-inf") if window.after_timestamp is None else window.after_timestamp,
            window.limit,
        )
        return await self._desk().run(
            lambda db: self._load_with(db, key, values, newest=window.newest)
        )

    async def _load_with(
        self,
        db: asyncpg.Connection,
        key: SessionKey,
        values: tuple[Any, ...],
        *,
        newest: bool = False,
    ) -> Snapshot | None:
        found = await db.fetch(self._load[newest], key.owner, key.session, key.app_key, *values)
        if not found:
            return None
        row: SessionRow | None = None
        scopes: tuple[dict[str, bytes], ...] = ({}, {}, {})
        events: list[EventRow] = []
        for record in found:
            part = record[0]
            if part == 4:
                events.append((record[1], record[3]))
            elif part == 0:
                row = _row(record[4:])
            else:
                scopes[part - 1][record[2].decode()] = record[3]
        if row is None:  # there is no part without the session's
            raise AssertionError(found)
        check_row(key, row)
        events.sort()  # the order of a UNION's parts is the server's choice
        return Snapshot(row, StateRows(*scopes), events)

    async def append(
        self, handle: Handle, events: Sequence[NewEvent], *, rebase: bool, now: float
    ) -> Appended:
        """Store events at the end of the log, with their state; skip those that are there."""
        desk = self._desk()
        id_keys = [digest(event.id) for event in events]
        if handle.incarnation is not None and handle.revision < INT64_MAX:
            job = _Append(handle, events, id_keys, now)
            if await desk.append_next(job):
                head = handle.revision + len(events)
                return Appended(
                    seqs=range(handle.revision + 1, head + 1),
                    missed=(),
                    incarnation=handle.incarnation,
                    revision=head,
                    updated=events[-1].timestamp,
                )

        async def work(db: asyncpg.Connection) -> Appended:
            async with db.transaction(isolation="read_committed"):
                return await self._append_carefully(db, handle, events, id_keys, rebase, now)

        return await desk.run(work)

    async def _append_carefully(
        self,
        db: asyncpg.Connection,
        handle: Handle,
        events: Sequence[NewEvent],
        id_keys: Sequence[bytes],
        rebase: bool,
        now: float,
    ) -> Appended:
        """Append through a handle that may be stale, skipping the events that are there."""
        key = handle.key
        row = await self._find(db, key)
        if row is None or is_expired(row, now) or handle.incarnation not in (None, row.incarnation):
            raise SessionNotFoundError(f"The session {key.id!r} does not exist.")
        found = await db.fetch(self._sql["select_events_by_id"], key.owner, key.session, id_keys)
        stored = {id_key: (seq, body) for id_key, seq, body in found}
        known: dict[int, int] = {}
        for index, event in enumerate(events):
            if id_keys[index] in stored:
                seq, body = stored[id_keys[index]]
                if body != event.body:
                    raise EventClashError(index, (seq, body))
                known[index] = seq
        seen = max([handle.revision, *known.values()])
        if len(known) < len(events) and not rebase and seen != row.revision:
            raise StaleSessionError(
                f"The session {key.id!r} is at revision {row.revision}, not {seen}.",
                expected=seen,
                revision=row.revision,
                missed=await self._between(db, key, handle.revision, row.revision),
            )
        fresh = [index for index in range(len(events)) if index not in known]
        head, updated = row.revision + len(fresh), row.updated
        if fresh:
            updated = events[fresh[-1]].timestamp
            await db.execute(
                self._sql["append_to_locked"],
                *(key.owner, key.session, head, updated),
                range(row.revision + 1, head + 1),
                [events[index].timestamp for index in fresh],
                [id_keys[index] for index in fresh],
                [events[index].body for index in fresh],
                *_columns(_delta(key, [events[index].state for index in fresh]), 4),
            )
        places = {**known, **dict(zip(fresh, range(row.revision + 1, head + 1), strict=True))}
        seqs = [places[index] for index in range(len(events))]
        revision = max([handle.revision, *seqs])
        between = await self._between(db, key, handle.revision, min(revision, row.revision))
        return Appended(
            seqs=seqs,
            missed=[event for event in between if event[0] not in seqs],
            incarnation=row.incarnation,
            revision=revision,
            updated=updated,
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
        where = (scope.owner, scope.session)
        locked = sorted({key.encode() for key in keys})

        async def work(db: asyncpg.Connection) -> Mapping[str, bytes | None]:
            transaction = db.transaction(isolation="read_committed")
            await transaction.start()
            try:
                if scope.session:
                    row = await db.fetchrow(self._sql["lock_session"], *where)
                    _check_patched(row, now)
                found = await db.fetch(self._sql["lock_state"], *where, locked) if locked else ()
                changes = change({k.decode(): value for k, value in found if value is not None})
                new = {k.encode(): value for k, value in changes.items()}
                kept = sorted((k, value) for k, value in new.items() if value is not None)
                # Also the keys that were put there only to be locked.
                gone = {k for k, value in found if value is None} | {*new}
                gone -= {k for k, _ in kept}
                number = await db.fetchval(
                    self._sql["write_state"], *where, sorted(gone), *_columns(kept, 2)
                )
            except BaseException:
                if not db.is_closed():
                    await transaction.rollback()
                raise
            try:
                await transaction.commit()
            except Exception as error:
                # Not to be done again blindly: an increment would count twice.
                if not _is_passing(error, db):
                    raise
                raise _UnknownOutcomeError(number, changes) from error
            return changes

        desk = self._desk()
        while True:
            try:
                return await desk.run(work)
            except _UnknownOutcomeError as unknown:
                if await self._was_committed(unknown.number):
                    return unknown.changes

    async def _was_committed(self, number: int) -> bool:
        """Ask what became of a transaction whose connection was lost at its commit."""
        desk = self._desk()
        while True:
            outcome = await desk.run(lambda db: db.fetchval(self._sql["select_outcome"], number))
            if outcome == "in progress":
                await asyncio.sleep(0.01)
            elif outcome is None:
                raise StorageUnavailableError(
                    "The connection was lost while a patch was committed; whether it was written "
                    "is not known. Read the state before you try again."
                )
            else:
                return bool(outcome == "committed")

    async def state(self, scope: Scope) -> Mapping[str, bytes]:
        """Read a user's or an app's state."""
        found = await self._desk().run(
            lambda db: db.fetch(self._sql["select_state"], scope.owner, scope.session)
        )
        return {key.decode(): value for key, value in found}

    async def sessions(
        self, query: SessionQuery, *, now: float
    ) -> list[tuple[SessionRow, StateRows]]:
        """Read a page of sessions, each with its state of all scopes if asked for."""
        scope = "app_key" if query.owner is None else "owner"
        statement = self._sessions[scope, query.order, query.descending]
        beginning = (float("inf" if query.descending else "-inf"), "", "")
        after, user, id = query.after or beginning
        values = (
            *(query.app_key if query.owner is None else query.owner, after),
            *(user.encode(), id.encode(), now, query.limit, query.app_key, query.state),
        )
        found = await self._desk().run(lambda db: db.fetch(statement, *values))
        page: list[tuple[bytes, bytes, SessionRow]] = []
        scopes: dict[tuple[int, bytes, bytes | None], dict[str, bytes]] = {}
        for part, name, value, owner, session, *row in found:
            if part == 0:
                page.append((owner, session, _row(row)))
            else:
                where = (part, b"", b"") if part == 1 else (part, owner, session)
                scopes.setdefault(where, {})[name.decode()] = value
        return [
            (
                row,
                StateRows(
                    scopes.get((1, b"", b""), {}),
                    scopes.get((2, owner, None), {}),
                    scopes.get((3, owner, session), {}),
                ),
            )
            for owner, session, row in page
        ]

    async def delete(self, key: SessionKey) -> bool:
        """Remove a session, its events and its state; tell whether it was there."""
        was_there = False

        async def work(db: asyncpg.Connection) -> None:
            nonlocal was_there
            async with db.transaction(isolation="read_committed"):
                if await self._find(db, key) is not None:
                    was_there = True  # also for an attempt after this one
                    await db.execute(self._sql["delete_session"], key.owner, key.session)

        await self._desk().run(work)
        return was_there

    # -- inside a transaction -----------------------------------------------------------

    async def _find(self, db: asyncpg.Connection, key: SessionKey) -> SessionRow | None:
        """Read a session's row and hold it until the transaction ends."""
        found = await db.fetchrow(self._sql["lock_session"], key.owner, key.session)
        if found is None:
            return None
        row = _row(found)
        check_row(key, row)
        return row

    async def _between(
        self, db: asyncpg.Connection, key: SessionKey, after: int, up_to: int
    ) -> list[EventRow]:
        if after >= up_to:
            return []
        found = await db.fetch(self._sql["select_events"], key.owner, key.session, after, up_to)
        return [(seq, body) for seq, body in found]


# -- rows and columns -------------------------------------------------------------------


def _row(record: Sequence[Any]) -> SessionRow:
    app, user, id, incarnation, revision, created, updated, expires, display_name, labels = record
    return SessionRow(
        app=app.decode(),
        user=user.decode(),
        id=id.decode(),
        incarnation=incarnation,
        revision=revision,
        created=created,
        updated=updated,
        expires=expires,
        display_name=None if display_name is None else display_name.decode(),
        labels=None if labels is None else labels.decode(),
    )


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _check_patched(record: Sequence[Any] | None, now: float) -> None:
    if record is None or is_expired(_row(record), now):
        raise SessionNotFoundError("The session to be patched does not exist.")


def _delta(key: SessionKey, deltas: Iterable[StateRows]) -> list[tuple[bytes, bytes, bytes, bytes]]:
    """Return the rows that a run of deltas sets, in the order in which all lock them."""
    rows = {}
    for delta in deltas:
        for scope, values in zip(key.scopes, delta, strict=True):
            for name, value in values.items():
                rows[scope.owner, scope.session, name.encode()] = value
    return [(*where, value) for where, value in sorted(rows.items())]


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[tuple[Any, ...]]:
    """Turn rows into the arrays that `unnest` turns into rows."""
    return list(zip(*rows, strict=True)) if rows else [()] * width


# -- connections ------------------------------------------------------------------------


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """One whose prepared statements have names that no other client of a pooler has."""

    def _get_unique_id(self, prefix: str) -> str:
        return f"threadline_{prefix}_{uuid.uuid4().hex}"


class _Settings:
    """How connections are made, and the name of where they lead, without the password."""

    def __init__(
        self,
        dsn: str,
        connect: Callable[..., Awaitable[Any]],
        *,
        pool_min: int,
        pool_max: int,
        busy_timeout_s: float,
        options: dict[str, Any],
    ) -> None:
        parts = urlsplit(dsn)
        self.place = f"{parts.netloc.rpartition('@')[2]}{parts.path}"
        self.user = parts.username
        self.secret = parts.password
        self.pool_min = pool_min
        self.pool_max = pool_max
        self.busy_timeout_s = busy_timeout_s
        self._dsn = dsn
        self._connect = connect
        self._options = options

    async def connect(self) -> asyncpg.Connection:
        return await self._connect(self._dsn, **self._options)


class _Pool:
    """The connections of one event loop.

    asyncpg's own pool resets a connection after every use and wraps it before, which costs
    nearly as much as an append; ours have no state to be reset.
    """

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._idle: list[tuple[asyncpg.Connection, float]] = []
        self._waiting: deque[asyncio.Future[asyncpg.Connection | None]] = deque()
        self._size = 0
        self._is_closed = False

    async def fill(self) -> None:
        """Open as many connections as are always to be there, at least one."""
        wanted = max(self._settings.pool_min, 1) - self._size
        taken = [await self.take() for _ in range(wanted)]
        for db in taken:
            self.give(db)

    async def take(self) -> asyncpg.Connection:
        """Return a connection that nobody else uses."""
        while True:
            while self._idle:
                db, since = self._idle.pop()
                if not db.is_closed() and self._loop.time() - since < IDLE_MAX_S:
                    return db
                self._drop(db)
            if self._size < self._settings.pool_max:
                self._size += 1
                try:
                    return await self._settings.connect()
                except BaseException:
                    self._size -= 1
                    self._wake(None)
                    raise
            turn: asyncio.Future[asyncpg.Connection | None] = self._loop.create_future()
            self._waiting.append(turn)
            try:
                async with asyncio.timeout(self._settings.busy_timeout_s):
                    handed = await turn
            except BaseException as error:
                if turn.done() and not turn.cancelled():
                    self._pass_on(turn.result())
                if isinstance(error, TimeoutError):
                    raise StorageBusyError(
                        f"All {self._settings.pool_max} connections to {self._settings.place} "
                        f"were in use for {self._settings.busy_timeout_s} s; nothing was written. "
                        "Raise pool_max."
                    ) from error
                raise
            if handed is not None:
                return handed

    def give(self, db: asyncpg.Connection) -> None:
        """Take a connection back."""
        if db.is_closed() or self._is_closed:
            self._drop(db)
            self._wake(None)
        elif not self._wake(db):
            self._idle.append((db, self._loop.time()))

    def _pass_on(self, handed: asyncpg.Connection | None) -> None:
        if handed is None:
            self._wake(None)
        else:
            self.give(handed)

    def _wake(self, db: asyncpg.Connection | None) -> bool:
        """Give the first who waits a connection, or with None the right to make one."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(db)
                return True
        return False

    def _drop(self, db: asyncpg.Connection) -> None:
        self._size -= 1
        db.terminate()

    async def close(self) -> None:
        """Close what is idle now, and the others when they come back."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        self._size -= len(idle)
        for db, _ in idle:
            with contextlib.suppress(Exception):  # it may be lost already
                await db.close(timeout=1.0)


# -- appends that share a commit --------------------------------------------------------


class _Append:
    """One append through a handle that is probably up to date."""

    __slots__ = ("delta", "events", "future", "handle", "id_keys", "now")

    def __init__(
        self, handle: Handle, events: Sequence[NewEvent], id_keys: Sequence[bytes], now: float
    ) -> None:
        self.handle = handle
        self.events = events
        self.id_keys = id_keys
        self.now = now
        self.delta = _delta(handle.key, [event.state for event in events])
        self.future: asyncio.Future[bool] | None = None

    def claims(self) -> set[tuple[bytes, ...]]:
        """Return what no other append of the same statement may change."""
        key = self.handle.key
        shared = {where[:3] for where in self.delta if not where[1]}
        return {(key.owner, key.session), *shared}

    def size(self) -> int:
        return sum(len(event.body) for event in self.events)


class _Desk:
    """What the engine has on one event loop: a pool, and the appends that wait for it.

    An append that comes while fewer than LANES_MAX are under way is sent at once; those that
    come meanwhile go together when one of them is done.
    """

    def __init__(self, settings: _Settings, sql: Mapping[str, str]) -> None:
        self.pool = _Pool(settings)
        self._settings = settings
        self._sql = sql
        self._lanes = 0
        self._under_way = 0
        self._waiting: deque[_Append] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """Do one piece of work on a connection; again, within bounds, if it may pass."""
        loop = asyncio.get_running_loop()
        deadline: float | None = None
        pause_s = 0.005
        while True:
            db: asyncpg.Connection | None = None
            try:
                db = await self.pool.take()
                return await work(db)
            except (ThreadlineError, EventClashError, _UnknownOutcomeError):
                raise
            except Exception as error:
                now = loop.time()
                deadline = deadline or now + self._settings.busy_timeout_s
                if not _is_passing(error, db) or now >= deadline:
                    raise _translate(error, self._settings) from error
            except BaseException:  # cancelled: what the server is doing is not known
                if db is not None:
                    db.terminate()
                raise
            finally:
                if db is not None:
                    self.pool.give(db)
            await asyncio.sleep(pause_s * random.random())  # noqa: S311 - only to keep apart
            pause_s = min(pause_s * 2, 0.5)

    async def append_next(self, job: _Append) -> bool:
        """Append to the revision that the handle knows; tell whether it could be done."""
        if self._lanes < LANES_MAX and not self._waiting:
            self._lanes += 1
            try:
                return await self._append_one(job)
            finally:
                self._lanes -= 1
                self._go_on()
        job.future = asyncio.get_running_loop().create_future()
        self._waiting.append(job)
        return await job.future

    def _go_on(self) -> None:
        if self._waiting and self._lanes < LANES_MAX:
            self._lanes += 1
            task = asyncio.create_task(self._drain())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _drain(self) -> None:
        try:
            while batch := self._take_batch():
                self._under_way += len(batch)
                try:
                    await self._append_all(batch)
                finally:
                    self._under_way -= len(batch)
        finally:
            self._lanes -= 1

    def _take_batch(self) -> list[_Append]:
        """Take those that wait, but of those that would change the same rows the first."""
        batch: list[_Append] = []
        later: list[_Append] = []
        claimed: set[tuple[bytes, ...]] = set()
        size = 0
        # A lane leaves the others their share: while one waits for the server, the next one's
        # callers are at work. In one convoy client and server would wait for each other.
        most = min(-(-(len(self._waiting) + self._under_way) // LANES_MAX), BATCH_MAX)
        while self._waiting and len(batch) < most and size < BATCH_BYTES_MAX:
            job = self._waiting.popleft()
            if job.future is None or job.future.done():  # the caller was cancelled
                continue
            claims = job.claims()
            if claimed.isdisjoint(claims):
                batch.append(job)
                size += job.size()
            else:
                later.append(job)
            claimed |= claims
        self._waiting.extendleft(reversed(later))
        return batch

    async def _append_all(self, batch: list[_Append]) -> None:
        done: set[int] = set()
        try:
            if len(batch) == 1:
                done = {0} if await self._append_one(batch[0]) else set()
            else:
                values = _batch_values(batch)

                async def work(db: asyncpg.Connection) -> set[int]:
                    return {n for (n,) in await db.fetch(self._sql["append_batch"], *values)}

                done = await self.run(work)
        except ThreadlineError as error:
            if isinstance(error.__cause__, asyncpg.UniqueViolationError) and len(batch) > 1:
                for job in batch:  # one of them spoilt it: each finds out alone
                    await self._append_all([job])
                return
            for job in batch:
                if job.future is not None and not job.future.done():
                    job.future.set_exception(error)
            return
        for n, job in enumerate(batch):
            if job.future is not None and not job.future.done():
                job.future.set_result(n in done)

    async def _append_one(self, job: _Append) -> bool:
        handle, events = job.handle, job.events
        place = (handle.key.owner, handle.key.session, handle.incarnation, handle.revision)
        last = events[-1]
        values: list[Any]
        if len(events) == 1 and not job.delta:
            statement = self._sql["append_next"]
            values = [*place, last.timestamp, job.now, job.id_keys[0], last.body]
        else:
            statement = self._sql["append_next_with_state"]
            values = [
                *(*place, last.timestamp, job.now),
                [event.timestamp for event in events],
                job.id_keys,
                [event.body for event in events],
                *_columns(job.delta, 4),
            ]

        async def work(db: asyncpg.Connection) -> bool:
            try:
                return await db.fetchval(statement, *values) is not None
            except asyncpg.UniqueViolationError:  # an event that is there already
                return False

        return await self.run(work)

    async def close(self) -> None:
        """Finish the appends that wait, then close the pool."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self.pool.close()


def _batch_values(batch: Sequence[_Append]) -> list[Any]:
    """Return the arguments of append_batch: the time, and its sessions, events and state."""
    heads, events, state = [], [], []
    for n, job in enumerate(batch):
        handle = job.handle
        known, last = handle.revision, job.events[-1].timestamp
        where = (handle.key.owner, handle.key.session, handle.incarnation)
        heads.append((n, *where, known, known + len(job.events), last))
        for seq, (event, id_key) in enumerate(zip(job.events, job.id_keys, strict=True), known + 1):
            events.append((n, seq, event.timestamp, id_key, event.body))
        state += [(n, *row) for row in job.delta]
    return [
        *_columns(heads, 7),
        max(job.now for job in batch),
        *_columns(events, 5),
        *_columns(state, 5),
    ]


# -- failing ----------------------------------------------------------------------------


class _UnknownOutcomeError(Exception):
    """The connection was lost at the commit of a transaction that is not to be done twice."""

    def __init__(self, number: int, changes: Mapping[str, bytes | None]) -> None:
        super().__init__(number)
        self.number = number
        self.changes = changes


_PASSING = {
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "53300",  # too_many_connections
    "57P01",  # admin_shutdown
    "57P02",  # crash_shutdown
    "57P03",  # cannot_connect_now
    "57P05",  # idle_session_timeout
    "25P03",  # idle_in_transaction_session_timeout
}


def _is_passing(error: Exception, db: asyncpg.Connection | None) -> bool:
    """Tell whether the same work may succeed if it is done again."""
    if isinstance(error, TimeoutError):
        return db is None  # to wait longer than the bound for a statement is not
    if isinstance(error, asyncpg.PostgresError):
        code = str(error.sqlstate)
        return code.startswith("08") or code in _PASSING
    if isinstance(error, ValueError):  # asyncpg.DataError among them
        return False
    return isinstance(error, OSError) or (db is not None and db.is_closed())


def _translate(error: Exception, settings: _Settings) -> ThreadlineError:
    """Turn the driver's errors into ours, with what to do, in one line without the password."""
    if isinstance(error, ThreadlineError):
        return error
    kind, advice = _advice(error)
    text = " ".join(str(error).split()) or type(error).__name__
    if settings.secret:
        text = text.replace(settings.secret, "***")
    return kind(
        advice.format(
            error=text,
            place=settings.place,
            user=settings.user,
            limit=settings.busy_timeout_s,
        )
    )


def _advice(error: Exception) -> tuple[type[ThreadlineError], str]:
    if isinstance(error, asyncpg.PostgresError):
        code = str(error.sqlstate)
        found = _ADVICE.get(code) or _ADVICE.get(code[:2])
        return found or (StorageError, "PostgreSQL at {place} refused: {error}")
    if isinstance(error, TimeoutError):
        return (
            StorageUnavailableError,
            (
                "PostgreSQL at {place} did not answer within {limit} s; whether the call was "
                "written is not known. To append the same event again is safe."
            ),
        )
    if isinstance(error, OSError):
        return (
            StorageUnavailableError,
            (
                "No PostgreSQL answers at {place} ({error}). Check host and port, and that the "
                "server runs."
            ),
        )
    if isinstance(error, asyncpg.DataError):
        return InvalidInputError, "PostgreSQL cannot store a value: {error}"
    if isinstance(error, ValueError):
        return UnsupportedUrlError, "{place} cannot be connected to: {error}"
    return StorageError, "The connection to PostgreSQL at {place} failed: {error}"


_ADVICE: dict[str, tuple[type[ThreadlineError], str]] = {
    "08": (
        StorageUnavailableError,
        (
            "The connection to PostgreSQL at {place} was lost ({error}); whether the call was "
            "written is not known. To append the same event again is safe."
        ),
    ),
    "28": (
        StorageError,
        "PostgreSQL at {place} refused the user {user} ({error}). Check user and password.",
    ),
    "3D": (
        StorageError,
        "PostgreSQL at {place}: {error}. Create it, or name another in the URL.",
    ),
    "25006": (
        ReadOnlyDatabaseError,
        "PostgreSQL at {place} only reads ({error}). Name the primary in the URL.",
    ),
    "42501": (
        StorageError,
        (
            "The user {user} may not do this at {place} ({error}). Have a DBA run what "
            "`threadline db ddl` prints, and grant SELECT, INSERT, UPDATE and DELETE."
        ),
    ),
    "26000": (
        StorageError,
        (
            "A pooler before {place} lost a prepared statement ({error}). Add "
            "?statement_cache_size=0 to the URL."
        ),
    ),
    "53100": (
        StorageFullError,
        "The disk of PostgreSQL at {place} is full; nothing was written. Make room and try again.",
    ),
    "53300": (
        StorageBusyError,
        (
            "PostgreSQL at {place} had no connection free for {limit} s ({error}). Lower pool_max, "
            "or put a pooler before it."
        ),
    ),
    "40": (
        StorageBusyError,
        (
            "Others kept writing the same rows at {place} for {limit} s ({error}); nothing was "
            "written. Try again."
        ),
    ),
    "57": (
        StorageUnavailableError,
        (
            "PostgreSQL at {place} is going down or starting ({error}); whether the call was "
            "written is not known. To append the same event again is safe."
        ),
    ),
}
_ADVICE["42P05"] = _ADVICE["26000"]
