"""MySQL 8 and later, MariaDB 10.6 and later, and what speaks their protocol.

An append is one packet and one transaction: a compare in an UPDATE, an INSERT that fails where
the compare did, and a COMMIT which the server does not reach after a failure. A stale handle
and a repeated event take a second way, in a transaction that locks the session's row. Every
transaction is tried again, within a time, after a deadlock or a lost connection. In a Galera
cluster every statement is a packet of its own.

The driver is asyncmy: aiomysql 0.3.2 beside PyMySQL 1.2.4 raises TypeError on bytes parameters.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import itertools
import os
import random
import re
import secrets
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import asyncmy
import msgspec
from asyncmy import converters

from threadline.engines import statements
from threadline.engines.base import (
    NO_STATE,
    Appended,
    EventClashError,
    SessionRow,
    Snapshot,
    StateRows,
    Window,
    check_row,
    digest,
    is_expired,
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
    ThreadlineError,
    UnsupportedUrlError,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import (
        Awaitable,
        Callable,
        Coroutine,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

    from asyncmy.connection import Connection

    from threadline.engines.base import (
        Handle,
        Migration,
        NewEvent,
        NewSession,
        Scope,
        SessionKey,
        SessionQuery,
    )

T = TypeVar("T")
_Sql = dict[str, str]
_Row = tuple[Any, ...]

PREFIX = "threadline_"
POOL_MAX = 10
LANES_MAX = 3
BATCH_MAX = 64
CONFLICTS_MAX = 3
LOCK_WAIT_MAX_S = 5.0
IDLE_MAX_S = 300.0
STATEMENT_BYTES = 1 << 20
_LIMIT_MAX = 2**64 - 1
_SEQ_END = 2**32
_TIME_MAX = 1.7976931348623157e308  # no literal means infinity
_ID_MAX = b"\xff"  # behind all UTF-8
_PREFIX = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")

# What the server says, by what is to be done about it.
_BAD_NULL, _DUPLICATE_KEY, _NO_SUCH_TABLE, _PACKET_TOO_LARGE = 1048, 1062, 1146, 1153
_ROLLED_BACK = {
    1020,  # a record has changed since it was read (MariaDB's snapshot isolation)
    1205,  # lock wait timeout
    1213,  # deadlock; also a certification failure in a Galera cluster, at COMMIT
    1317,  # the query was killed
    1614,  # deadlock in a distributed transaction
    3100,  # refused by a hook of Group Replication
    3101,  # rolled back by Group Replication
    6235,  # OceanBase: a record has changed since the snapshot
    8002,  # TiDB: a write conflict under FOR UPDATE
    9007,  # TiDB: a write conflict
}
_LOST = {
    0,  # the driver: not connected
    1040,  # too many connections
    1047,  # a Galera node without its cluster
    1053,  # server shutdown
    1079,  # server shut down
    1158,  # errors in reading and writing packets
    1159,
    1160,
    1161,
    1203,  # too many connections of this user
    1290,  # read only: a primary that became a replica
    1836,  # the same
    1927,  # MariaDB: the connection was killed
    2003,  # nobody answers
    2006,  # the server has gone away
    2013,  # the connection was lost during a query
    2055,
    3032,  # the server is going offline
    4031,  # MySQL: disconnected because of inactivity
}
_NOT_HERE = {1047, 1290, 1836}  # of those, what another host may be able to do


class MysqlEngine:
    """Sessions in a MySQL or MariaDB database.

    `connect_with` makes a new connection of asyncmy, for credentials that change; without it, one
    is made of host, port, user, password, database, unix_socket and tls. Each of `other_hosts` is
    tried in turn where the one before is away or takes no writes. A pool of at most `pool_max`
    connections is kept for each event loop. `busy_timeout_s` bounds the wait for locks and for a
    server that is away, `answer_timeout_s` the wait for an answer.
    """

    dialect = "mysql"
    schema = None

    def __init__(
        self,
        *,
        database: str,
        host: str = "127.0.0.1",
        port: int = 3306,
        other_hosts: Sequence[tuple[str, int]] = (),
        user: str | None = None,
        password: str = "",
        unix_socket: str | None = None,
        tls: ssl.SSLContext | None = None,
        connect_with: Callable[[], Awaitable[Connection]] | None = None,
        connect_timeout_s: float = 10.0,
        pool_min: int = 1,
        pool_max: int = POOL_MAX,
        table_prefix: str = PREFIX,
        isolation: str = "READ COMMITTED",
        busy_timeout_s: float = 30.0,
        answer_timeout_s: float = 60.0,
    ) -> None:
        if not _PREFIX.fullmatch(table_prefix):
            raise UnsupportedUrlError(
                f"table_prefix must be 1 to 32 letters, digits and underscores and begin with "
                f"no digit, got {table_prefix!r}."
            )
        if not 0 <= pool_min <= pool_max or pool_max < 1:
            raise UnsupportedUrlError(
                f"The pool needs 0 <= pool_min <= pool_max and a connection, got {pool_min} and "
                f"{pool_max}."
            )
        hosts = [(host, port), *other_hosts]
        self.where = f"{database} at {unix_socket or ','.join(f'{h}:{p}' for h, p in hosts)}"
        self.table_prefix = table_prefix
        self._database = database
        self._sql = _load(table_prefix, isolation)
        self._pool_min = pool_min
        self._pool_max = pool_max
        self._busy_timeout_s = busy_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._hosts: list[Callable[[], Awaitable[Connection]]] = [
            functools.partial(
                asyncmy.connect,
                host=host,
                port=port,
                user=user,
                password=password.encode(),  # the driver would want Latin-1
                database=database,
                unix_socket=unix_socket,
                ssl=tls,
                connect_timeout=connect_timeout_s,
                autocommit=None,
                charset="utf8mb4",
            )
            for host, port in hosts
        ]
        if connect_with is not None:
            self._hosts = [connect_with]
        self._host = 0
        self._lock = threading.Lock()
        self._pools: dict[asyncio.AbstractEventLoop, _Pool] = {}
        self._is_open = False
        self._pid = 0

    # -- life ---------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect; more than once does no harm."""
        with self._lock:
            if not self._is_open:
                self._is_open, self._pid = True, os.getpid()
        pool = self._pool()
        if pool.is_warm:
            return
        try:
            await pool.warm(max(self._pool_min, 1))
        except Exception as error:
            raise _translate(error, self.where) from error

    async def close(self) -> None:
        """Let go of every connection; calls that are under way end first."""
        with self._lock:
            pools, self._pools = self._pools, {}
            self._is_open = False
        if self._pid != os.getpid():  # a fork: the connections are the parent's
            return
        here = asyncio.get_running_loop()
        for loop, pool in pools.items():
            if loop is here:
                await pool.close()
            else:  # a closed loop has nothing left to let go
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(pool.drop)

    def _pool(self) -> _Pool:
        """Return the event loop's own pool: a connection works on the loop it was made on."""
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is not None and self._pid == os.getpid():
            return pool
        with self._lock:
            if not self._is_open:
                raise EngineClosedError(f"The engine of {self.where} is not open.")
            if self._pid != os.getpid():
                raise EngineClosedError(
                    "This service was opened before the process was forked; connections do not "
                    "survive that. Create a service in the child."
                )
            for other in [other for other in self._pools if other.is_closed()]:
                del self._pools[other]
            pool = self._pools[loop] = _Pool(self._new_connection, self._pool_max)
            return pool

    async def _new_connection(self) -> _Connection:
        """Connect to the host that answered last, or to the next one that takes writes."""
        first = place = self._host
        while True:
            try:
                db = await self._connect(self._hosts[place])
            except (asyncmy.errors.Error, OSError) as error:
                place = (place + 1) % len(self._hosts)
                if place == first or _code(error) not in _LOST | _ROLLED_BACK:
                    raise
            else:
                self._host = db.host = place
                return db

    async def _connect(self, connect: Callable[[], Awaitable[Connection]]) -> _Connection:
        driver = await connect()
        try:
            db = _Connection(driver)
            # One that waits longer tries again, and does not hold up the others meanwhile.
            values = {"lock_timeout_s": max(1, round(min(self._busy_timeout_s, LOCK_WAIT_MAX_S)))}
            (rows,) = await db.fetch(_bind(self._sql["prepare_connection"], **values))
            server: dict[str, str] = dict(rows)
            db.packet_max = int(server["max_allowed_packet"])
            db.is_galera = server.get("wsrep_on") == "ON"
            if len(self._hosts) > 1:
                await self._check_host(db, server)
        except BaseException:
            driver.close()
            raise
        return db

    async def _check_host(self, db: _Connection, server: dict[str, str]) -> None:
        """Refuse one of several hosts that takes no writes, or is behind the others for long."""
        if server.get("read_only", "OFF") != "OFF":
            raise asyncmy.errors.OperationalError(1290, "none of the hosts takes writes")
        if db.is_galera:
            await db.fetch(self._sql["catch_up"])

    # -- schema -------------------------------------------------------------------------

    def ddl(self, sql: str) -> str:
        """Return a migration's statements with the names of this engine's tables."""
        return _renamed(sql, self.table_prefix)

    async def version(self) -> int | None:
        """Read the ledger's newest version; None where there is no ledger."""
        return await self._transact(self._version)

    async def _version(self, db: _Connection) -> int | None:
        try:
            ((row,),) = await db.fetch(self._sql["select_version"])
        except asyncmy.errors.Error as error:
            if _code(error) == _NO_SUCH_TABLE:
                return None
            raise
        version: int | None = row[0]
        return version

    async def migrate(self, migrations: Sequence[Migration]) -> list[str]:
        """Run those that are not in the ledger, under a named lock; return their names."""
        sql = self._sql
        # A lock's name has at most 64 characters and is one for the whole server.
        name = hashlib.sha256(f"{self._database} {self.table_prefix}".encode()).hexdigest()[:32]
        lock = {"lock": f"threadline {name}".encode(), "lock_timeout_s": self._busy_timeout_s}
        ran: list[str] = []

        async def work(db: _Connection) -> list[str]:
            ((row,),) = await db.fetch(_bind(sql["lock_migrations"], **lock))
            if row[0] != 1:
                raise StorageBusyError(
                    f"{self.where}: another migration held the lock for {self._busy_timeout_s} s."
                )
            try:
                current = await self._version(db) or 0
                for step in migrations:
                    if step.version > current:
                        for statement in _statements(self.ddl(step.sql)):
                            await db.execute(statement)
                        ran.append(step.name)
            finally:
                await db.fetch(_bind(sql["unlock_migrations"], lock=lock["lock"]))
            return ran

        return await self._transact(work, answer_timeout_s=None)

    # -- rows ---------------------------------------------------------------------------

    async def create(self, session: NewSession, state: StateRows, *, now: float) -> Snapshot:
        """Store a session and return it as `load` would, or raise AlreadyExistsError."""
        sql, key = self._sql, session.key
        row = SessionRow(
            app=key.app,
            user=key.user,
            id=key.id,
            incarnation=secrets.randbits(63),
            revision=0,
            created=session.created,
            updated=session.created,
            expires=session.expires,
            display_name=session.display_name,
            labels=session.labels,
        )
        place = {"owner": key.owner, "session": key.session}
        values = {**msgspec.structs.asdict(row), **place, "app_key": key.app_key}
        insert = [
            _bind(sql["insert_session"], **values),
            *_upserts(sql, [(key, state)]),
            _bind(sql["select_merged_state"], **place, app_key=key.app_key),
            sql["commit"],
        ]

        async def work(db: _Connection) -> Snapshot:
            try:
                (merged,) = await db.fetch(sql["begin"], *insert)
            except asyncmy.errors.Error as error:
                if _code(error) != _DUPLICATE_KEY:
                    raise
            else:
                return Snapshot(row, _scoped(merged), [])
            lock = _bind(sql["lock_session"], **place)
            (found,) = await db.fetch(sql["rollback"], sql["begin"], lock)
            before = _checked(key, found)
            if before is not None and before.incarnation == row.incarnation:
                # It is this one: the answer to an earlier attempt was lost.
                merge = _bind(sql["select_merged_state"], **place, app_key=key.app_key)
                (merged,) = await db.fetch(merge, sql["commit"])
                return Snapshot(row, _scoped(merged), [])
            if before is not None and not is_expired(before, now):
                raise AlreadyExistsError(f"The session {key.id!r} already exists.")
            (merged,) = await db.fetch(*_drops(sql, place), *insert)
            return Snapshot(row, _scoped(merged), [])

        return await self._transact(work)

    async def load(
        self, key: SessionKey, window: Window, *, now: float, state: bool = True
    ) -> Snapshot | None:
        """Read a session, its state (of all scopes) and the events in the window."""
        sql = self._sql
        place = {"owner": key.owner, "session": key.session}
        packet = [sql["begin_read"], _bind(sql["select_session"], **place)]
        if state:
            packet.append(_bind(sql["select_merged_state"], **place, app_key=key.app_key))
        packet += [_select(sql, place, window), sql["commit"]]

        async def work(db: _Connection) -> Snapshot | None:
            found, *states, events = await db.fetch(*packet)
            row = _checked(key, found)
            if row is None or is_expired(row, now):
                return None
            rows = _scoped(states[0]) if state else NO_STATE
            return Snapshot(row, rows, list(events[::-1] if window.newest else events))

        return await self._transact(work)

    async def append(
        self, handle: Handle, events: Sequence[NewEvent], *, rebase: bool, now: float
    ) -> Appended:
        """Store events at the end of the log, with their state; skip those that are there."""
        job = _Append(handle, events, rebase, now)
        lanes = self._pool().lanes
        if lanes.free == 0 and handle.incarnation is not None:
            return await lanes.join(job)
        lanes.free -= 1
        try:
            return await self._append_alone(job)
        finally:
            self._go_on(lanes)

    async def _append_alone(self, job: _Append) -> Appended:
        async def work(db: _Connection) -> Appended:
            if job.handle.incarnation is not None and await _append_next(db, self._sql, [job]):
                return job.appended()
            return await _append_carefully(db, self._sql, job)

        return await self._transact(work)

    def _go_on(self, lanes: _Lanes) -> None:
        """Give a lane that has become free to those who wait, together."""
        lanes.free += 1
        if lanes.free > 0 and lanes.waiting:
            lanes.free -= 1
            lanes.start(self._append_together(lanes.take()), lambda: self._go_on(lanes))

    async def _append_together(self, jobs: list[_Append]) -> None:
        """Append for several callers in one transaction; who cannot take part goes alone."""
        try:
            stored: list[_Append] = []
            if len(jobs) > 1:
                # Whatever is wrong with some of them, each finds out alone.
                with contextlib.suppress(asyncmy.errors.Error, OSError, ThreadlineError):
                    stored = await self._attempt(
                        lambda db: _append_next(db, self._sql, jobs), self._answer_timeout_s
                    )
            for job in stored:
                job.settle(job.appended())
            alone = [job for job in jobs if job not in stored]
            outcomes = await asyncio.gather(*map(self._append_alone, alone), return_exceptions=True)
            for job, outcome in zip(alone, outcomes, strict=True):
                job.settle(outcome)
        except BaseException as error:  # such as the end of the event loop
            for job in jobs:
                job.settle(error)
            raise

    async def patch(
        self,
        scope: Scope,
        keys: Sequence[str],
        change: Callable[[Mapping[str, bytes]], Mapping[str, bytes | None]],
        *,
        now: float,
    ) -> Mapping[str, bytes | None]:
        """Change keys of one scope by a function of their values; None deletes a key."""
        sql = self._sql
        where = {"owner": scope.owner, "session": scope.session}
        names = sorted(keys)

        async def work(db: _Connection) -> Mapping[str, bytes | None]:
            added: list[str] = []
            if scope.session:  # its row is locked by all who write the session's keys
                lock = _bind(sql["lock_session"], **where)
                (found,) = await db.fetch(sql["begin"], lock)
                if not found or is_expired(_row(found[0]), now):
                    raise SessionNotFoundError("The session to be patched does not exist.")
            else:
                locks = [_bind(sql["lock_state_key"], **where, name=name) for name in names]
                counts = await db.execute(sql["begin"], *locks)
                added = [name for name, count in zip(names, counts[1:], strict=True) if count]
            stored: dict[str, bytes] = {}
            if names:
                (found,) = await db.fetch(_bind(sql["select_state_keys"], **where, names=names))
                stored = {key.decode(): value for key, value in found}
            changes = change({key: stored[key] for key in stored if key not in added})
            new = {key: value for key, value in changes.items() if value is not None}
            # Keys that were put there to be locked go, unless they have a value now.
            gone = sorted({*added, *changes} - new.keys())
            packet = [] if not gone else [_bind(sql["delete_state_keys"], **where, names=gone)]
            packet += _upsert(sql, [(scope, name, value) for name, value in sorted(new.items())])
            # Whether it was done cannot be seen in the rows, so it is not done twice.
            db.is_final = True
            await db.execute(*packet, sql["commit"])
            return changes

        return await self._transact(work)

    async def state(self, scope: Scope) -> Mapping[str, bytes]:
        """Read a user's or an app's state."""
        select = _bind(self._sql["select_state"], owner=scope.owner, session=scope.session)

        async def work(db: _Connection) -> Mapping[str, bytes]:
            (rows,) = await db.fetch(select)
            return {name.decode(): value for name, value in rows}

        return await self._transact(work)

    async def sessions(
        self, query: SessionQuery, *, now: float
    ) -> list[tuple[SessionRow, StateRows]]:
        """Read a page of sessions, each with its state of all scopes if asked for."""
        sql = self._sql
        whose = "app" if query.owner is None else "user"
        beginning = (_TIME_MAX, _ID_MAX, _ID_MAX) if query.descending else (-_TIME_MAX, b"", b"")
        time, user, id = query.after or beginning
        values = {
            "app_key": query.app_key,
            "owner": query.owner,
            "time": time,
            "user": user,
            "id": id,
            "now": now,
            "limit": _LIMIT_MAX if query.limit is None else query.limit,
        }
        words = {
            "time": query.order,
            "beyond": "<" if query.descending else ">",
            "direction": "DESC" if query.descending else "ASC",
        }
        select = sql[f"select_sessions_of_{whose}"]
        page = _bind(select.format(columns=sql["session_columns"], **words), **values)
        packet = [sql["begin_read"], page]
        if query.state:
            keys = _bind(select.format(columns="owner, session", **words), **values)
            packet += [
                sql["select_state_of_sessions"].format(page=keys),
                sql["select_state_of_users"].format(page=keys),
                _bind(sql["select_state"], owner=query.app_key, session=b""),
            ]

        async def work(db: _Connection) -> list[tuple[SessionRow, StateRows]]:
            found, *states = await db.fetch(*packet, sql["commit"])
            if not query.state:
                return [(_row(row), NO_STATE) for *row, _, _ in found]
            of_sessions, of_users, of_app = states
            app = {name.decode(): value for name, value in of_app}
            others: dict[tuple[bytes, bytes], dict[str, bytes]] = {}
            for owner, session, name, value in (*of_sessions, *of_users):
                others.setdefault((owner, session), {})[name.decode()] = value
            return [
                (
                    _row(row),
                    StateRows(app, others.get((owner, b""), {}), others.get((owner, session), {})),
                )
                for *row, owner, session in found
            ]

        return await self._transact(work)

    async def delete(self, key: SessionKey) -> bool:
        """Remove a session, its events and its state; tell whether it was there."""
        sql = self._sql
        place = {"owner": key.owner, "session": key.session}

        async def work(db: _Connection) -> bool:
            lock = _bind(sql["lock_session"], **place)
            (found,) = await db.fetch(sql["begin"], lock)
            if _checked(key, found) is None:
                await db.execute(sql["rollback"])
                return False
            await db.execute(*_drops(sql, place), sql["commit"])
            return True

        return await self._transact(work)

    # -- transactions -------------------------------------------------------------------

    async def _transact(
        self,
        work: Callable[[_Connection], Awaitable[T]],
        *,
        answer_timeout_s: float | None = -1.0,
    ) -> T:
        """Do a transaction's work in a connection, again if it was rolled back or cut off."""
        loop = asyncio.get_running_loop()
        deadline: float | None = None
        pause_s = 0.002
        if answer_timeout_s is not None and answer_timeout_s < 0:
            answer_timeout_s = self._answer_timeout_s
        while True:
            try:
                return await self._attempt(work, answer_timeout_s)
            except (asyncmy.errors.Error, OSError) as error:
                is_unknown = isinstance(error, _OutcomeUnknownError)
                if is_unknown or _code(error) not in _ROLLED_BACK | _LOST:
                    raise _translate(error, self.where) from error
                now = loop.time()
                deadline = deadline or now + self._busy_timeout_s
                if now >= deadline:
                    raise _translate(error, self.where) from error
            # Those that met each other should not meet again.
            await asyncio.sleep(pause_s * (0.5 + random.random()))  # noqa: S311
            pause_s = min(pause_s * 2, 0.5)

    async def _attempt(
        self, work: Callable[[_Connection], Awaitable[T]], answer_timeout_s: float | None
    ) -> T:
        pool = self._pool()
        db = await pool.acquire()
        is_usable = False
        try:
            async with asyncio.timeout(answer_timeout_s):
                try:
                    result = await work(db)
                except (ThreadlineError, EventClashError):
                    await db.execute(self._sql["rollback"])
                    is_usable = True
                    raise
                except (asyncmy.errors.Error, OSError) as error:
                    if _code(error) in _LOST:
                        pool.empty()  # where one was cut off, the others were too
                        if _code(error) in _NOT_HERE and db.host == self._host:
                            self._host = (self._host + 1) % len(self._hosts)
                        if db.is_final:
                            raise _OutcomeUnknownError(*error.args) from error
                        raise
                    await db.execute(self._sql["rollback"])
                    is_usable = True
                    raise
            is_usable = True
        except TimeoutError as error:
            raise StorageError(
                f"{self.where} did not answer within {answer_timeout_s} s. Whether a write was "
                "stored is not known; an append may be repeated with the same event."
            ) from error
        else:
            return result
        finally:
            pool.release(db, is_usable=is_usable)


# -- statements, inside a transaction ---------------------------------------------------


class _Append:
    """One call of append."""

    __slots__ = ("events", "future", "handle", "id_keys", "now", "rebase")

    def __init__(
        self, handle: Handle, events: Sequence[NewEvent], rebase: bool, now: float
    ) -> None:
        self.handle = handle
        self.events = events
        self.id_keys = [digest(event.id) for event in events]
        self.rebase = rebase
        self.now = now
        self.future: asyncio.Future[Appended] | None = None

    def appended(self) -> Appended:
        """Return the outcome where the handle was right and every event new."""
        handle, head = self.handle, self.handle.revision + len(self.events)
        return Appended(
            seqs=range(handle.revision + 1, head + 1),
            missed=(),
            incarnation=handle.incarnation or 0,
            revision=head,
            updated=self.events[-1].timestamp,
        )

    def settle(self, outcome: Appended | BaseException) -> None:
        """Tell the caller, who may have been cancelled."""
        if self.future is None or self.future.done():
            return
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


async def _append_next(db: _Connection, sql: _Sql, jobs: Sequence[_Append]) -> list[_Append]:
    """Append to the revisions that handles know, as most appends can; return those done.

    No question is asked first: a compare that fails, a place or an id that is taken says that
    the handle is stale or the event a repeated one. The others try again without it.
    """
    # In one order, so that two transactions do not each wait for the other.
    rest = sorted(jobs, key=lambda job: job.handle.key.owner + job.handle.key.session)
    for _ in range(CONFLICTS_MAX):
        parts = [_next_event(sql, job) for job in rest]
        deltas = ((job.handle.key, event.state) for job in rest for event in job.events)
        packet = [sql["begin"], *itertools.chain(*parts), *_upserts(sql, deltas), sql["commit"]]
        try:
            await db.execute(*packet)
        except asyncmy.errors.Error as error:
            if _code(error) not in (_BAD_NULL, _DUPLICATE_KEY):
                raise
            if len(jobs) == 1:  # the careful way begins with the rollback
                return []
            await db.execute(sql["rollback"])
            begins = itertools.accumulate(map(len, parts), initial=1)
            del rest[sum(begin <= db.done for begin in begins) - 1]
            if not rest:
                return []
        else:
            return rest
    return []


def _next_event(sql: _Sql, job: _Append) -> list[str]:
    """Return the statements that append through a handle which is right."""
    handle, key = job.handle, job.handle.key
    place = {"owner": key.owner, "session": key.session}
    bump = _bind(
        sql["bump_known_session"],
        **place,
        head=handle.revision + len(job.events),
        updated=job.events[-1].timestamp,
        incarnation=handle.incarnation,
        revision=handle.revision,
        now=job.now,
    )
    first, *others = job.events
    insert = _bind(
        sql["insert_next_event"],
        **place,
        seq=handle.revision + 1,
        id_key=job.id_keys[0],
        timestamp=first.timestamp,
        body=first.body,
    )
    if not others:
        return [bump, insert]
    numbered = zip(itertools.count(handle.revision + 2), others, job.id_keys[1:], strict=False)
    return [bump, insert, *_inserts(sql, key, numbered)]


async def _append_carefully(db: _Connection, sql: _Sql, job: _Append) -> Appended:
    """Append through a handle that may be stale, skipping the events that are there.

    Two packets: one locks the session and reads what is to be known, one writes.
    """
    handle, key, events, id_keys = job.handle, job.handle.key, job.events, job.id_keys
    place = {"owner": key.owner, "session": key.session}
    found, repeated, news = await db.fetch(
        sql["rollback"],
        sql["begin"],
        _bind(sql["lock_session"], **place),
        _bind(sql["select_events_by_id"], **place, id_keys=id_keys),
        _select(sql, place, Window(after_seq=handle.revision)),
    )
    row = _checked(key, found)
    if row is None or is_expired(row, job.now) or handle.incarnation not in (None, row.incarnation):
        raise SessionNotFoundError(f"The session {key.id!r} does not exist.")
    stored = {id_key: (seq, body) for id_key, seq, body in repeated}
    known: dict[int, int] = {}
    for index, event in enumerate(events):
        if id_keys[index] in stored:
            seq, body = stored[id_keys[index]]
            if body != event.body:
                raise EventClashError(index, (seq, body))
            known[index] = seq
    seen = max([handle.revision, *known.values()])
    if len(known) < len(events) and not job.rebase and seen != row.revision:
        raise StaleSessionError(
            f"The session {key.id!r} is at revision {row.revision}, not {seen}.",
            expected=seen,
            revision=row.revision,
            missed=list(news),
        )
    new = [index for index in range(len(events)) if index not in known]
    head, updated = row.revision + len(new), row.updated
    seqs = {**known, **dict(zip(new, range(row.revision + 1, head + 1), strict=True))}
    packet: list[str] = []
    if new:
        updated = events[new[-1]].timestamp
        packet += _inserts(sql, key, ((seqs[i], events[i], id_keys[i]) for i in new))
        packet.append(_bind(sql["bump_session"], **place, head=head, updated=updated))
        packet += _upserts(sql, [(key, events[index].state) for index in new])
    await db.execute(*packet, sql["commit"])
    given = set(seqs.values())
    revision = max(handle.revision, *given)
    return Appended(
        seqs=[seqs[index] for index in range(len(events))],
        missed=[event for event in news if event[0] not in given and event[0] < revision],
        incarnation=row.incarnation,
        revision=revision,
        updated=updated,
    )


def _inserts(
    sql: _Sql, key: SessionKey, events: Iterable[tuple[int, NewEvent, bytes]]
) -> Iterator[str]:
    rows = (
        _literals((key.owner, key.session, seq, id_key, event.timestamp, event.body))
        for seq, event, id_key in events
    )
    for chunk in _chunks(rows):
        yield _bind(sql["insert_events"], rows=chunk)


def _upserts(sql: _Sql, deltas: Iterable[tuple[SessionKey, StateRows]]) -> Iterator[str]:
    """Write the keys of several deltas, of which the last has its way.

    Everybody takes the rows in one order, those that many share last and for the shortest time.
    """
    merged: dict[tuple[int, bytes, bytes, str], tuple[Scope, str, bytes]] = {}
    for key, delta in deltas:
        for rank, rows in enumerate(delta):
            for name, value in rows.items():
                scope = key.scopes[rank]
                merged[-rank, scope.owner, scope.session, name] = (scope, name, value)
    return _upsert(sql, [merged[place] for place in sorted(merged)])


def _upsert(sql: _Sql, rows: Sequence[tuple[Scope, str, bytes]]) -> Iterator[str]:
    texts = (_literals((scope.owner, scope.session, *rest)) for scope, *rest in rows)
    for chunk in _chunks(texts):
        yield _bind(sql["upsert_state"], rows=chunk)


def _drops(sql: _Sql, place: Mapping[str, bytes]) -> list[str]:
    return [
        _bind(sql["delete_events"], **place),
        _bind(sql["delete_state"], **place),
        _bind(sql["delete_session"], **place),
    ]


def _select(sql: _Sql, place: Mapping[str, bytes], window: Window) -> str:
    return _bind(
        sql["select_newest_events"] if window.newest else sql["select_events"],
        **place,
        after=window.after_seq,
        before=_SEQ_END if window.before_seq is None else window.before_seq,
        since=-_TIME_MAX if window.after_timestamp is None else window.after_timestamp,
        limit=_LIMIT_MAX if window.limit is None else window.limit,
    )


def _checked(key: SessionKey, found: Sequence[_Row]) -> SessionRow | None:
    if not found:
        return None
    row = _row(found[0])
    check_row(key, row)
    return row


def _row(values: Sequence[Any]) -> SessionRow:
    app, user, id, incarnation, revision, created, updated, expires, name, labels = values
    return SessionRow(
        app=app.decode(),
        user=user.decode(),
        id=id.decode(),
        incarnation=incarnation,
        revision=revision,
        created=created,
        updated=updated,
        expires=expires,
        display_name=None if name is None else name.decode(),
        labels=None if labels is None else labels.decode(),
    )


def _scoped(rows: Iterable[_Row]) -> StateRows:
    state = StateRows({}, {}, {})
    for scope, name, value in rows:
        state[scope][name.decode()] = value  # type: ignore[index]
    return state


# -- text -------------------------------------------------------------------------------


@functools.cache
def _load(prefix: str, isolation: str) -> _Sql:
    sql = {name: _renamed(text, prefix) for name, text in statements.load("mysql").items()}
    sql["prepare_connection"] = sql["prepare_connection"].format(isolation=isolation)
    return sql


def _renamed(sql: str, prefix: str) -> str:
    return re.sub(rf"\b{PREFIX}", prefix, sql)


def _statements(script: str) -> Iterator[str]:
    """Split a migration, whose statements end with a line."""
    code = "\n".join(line for line in script.splitlines() if not line.startswith("--"))
    return (part.strip() for part in re.split(r";\s*$", code, flags=re.MULTILINE) if part.strip())


class _Text(str):
    """SQL that is ready as it is."""

    __slots__ = ()


def _bind(sql: str, **values: object) -> str:
    return sql % {name: _literal(value) for name, value in values.items()}


def _literals(values: Iterable[object]) -> str:
    return f"({','.join(map(_literal, values))})"


def _literal(value: Any) -> str:
    """Write a value as SQL; text and bytes are binary, so no character set has a say in them.

    Bytes that are no ASCII stand in the text as surrogates, until it is sent.
    """
    match value:
        case bytes() if len(value) == 16:
            return f"0x{value.hex()}"
        case bytes():
            return converters.escape_bytes_prefixed(value)
        case _Text():
            return value
        case str():
            return converters.escape_bytes_prefixed(value.encode())
        case int():
            return str(value)
        case float():
            return converters.escape_float(value)
        case None:
            return "NULL"
        case _:
            return ",".join(map(_literal, value))


def _chunks(rows: Iterable[str]) -> Iterator[_Text]:
    """Join rows to lists that make statements of ordinary size."""
    chunk: list[str] = []
    size = 0
    for row in rows:
        if chunk and size + len(row) > STATEMENT_BYTES:
            yield _Text(",".join(chunk))
            chunk, size = [], 0
        chunk.append(row)
        size += len(row)
    if chunk:
        yield _Text(",".join(chunk))


# -- connections ------------------------------------------------------------------------


class _Connection:
    """A connection of the driver, and packets of several statements."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.host = 0
        self.is_galera = False
        self.packet_max = 1 << 20
        self.idle_since = 0.0
        self.is_final = False
        self.done = 0

    async def execute(self, *statements: str) -> list[int]:
        """Run statements that return no rows; return how many rows each affected.

        Nothing after a statement that fails is run.
        """
        counts: list[int] = []
        self.done = 0
        query, next_result = self.driver.query, self.driver.next_result
        for packet, number in self._packets(statements):
            counts.append(await query(packet))
            # Where one of them failed, `done` says how many did not.
            for self.done in range(len(counts), len(counts) + number - 1):
                counts.append(await next_result())
            self.done = len(counts)
        return counts

    async def fetch(self, *statements: str) -> list[Sequence[_Row]]:
        """Run statements; return the rows of those that return any."""
        results: list[Sequence[_Row]] = []
        for packet, _ in self._packets(statements):
            cursor = self.driver.cursor()
            await cursor.execute(packet)
            while True:
                if cursor.description:
                    results.append(await cursor.fetchall())
                if not await cursor.nextset():
                    break
        return results

    def _packets(self, statements: Sequence[str]) -> Iterator[tuple[bytes, int]]:
        """Join statements to as few packets as the server takes."""
        if (longest := max(map(len, statements))) + 1 >= self.packet_max:
            raise InvalidInputError(
                f"A statement of {longest:,} bytes is more than the server takes: its "
                f"max_allowed_packet is {self.packet_max:,}. Nothing was written. Raise it on "
                "the server, or store large content elsewhere (an artifact) and its name here."
            )
        if self.is_galera:
            # A transaction that gives way to another node's between two statements of one packet
            # is rolled back without an error, and the server commits the rest without it.
            for statement in statements:
                yield _encoded([statement]), 1
            return
        if sum(map(len, statements)) + len(statements) < self.packet_max:
            yield _encoded(statements), len(statements)
            return
        packet: list[str] = []
        size = 0
        for statement in statements:
            if packet and size + len(statement) + 1 >= self.packet_max:
                yield _encoded(packet), len(packet)
                packet, size = [], 0
            packet.append(statement)
            size += len(statement) + 1
        yield _encoded(packet), len(packet)


def _encoded(statements: Sequence[str]) -> bytes:
    return ";".join(statements).encode("ascii", "surrogateescape")


class _Lanes:
    """The appends of one event loop that are under way at once, and those that wait.

    A few transactions with several appends each are faster than many with one.
    """

    def __init__(self, free: int) -> None:
        self.free = free
        self.waiting: list[_Append] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def join(self, job: _Append) -> asyncio.Future[Appended]:
        """Wait for the next transaction."""
        job.future = asyncio.get_running_loop().create_future()
        self.waiting.append(job)
        return job.future

    def take(self) -> list[_Append]:
        """Return some that wait, of different sessions; of one, the second would be stale."""
        taken: dict[bytes, _Append] = {}
        size = 0
        for job in self.waiting:
            key = job.handle.key
            place = key.owner + key.session
            if place not in taken:
                size += sum(len(event.body) for event in job.events)
                if len(taken) == BATCH_MAX or (taken and size > STATEMENT_BYTES):
                    break
                taken[place] = job
        batch = list(taken.values())
        self.waiting = [job for job in self.waiting if job not in batch]
        return [job for job in batch if job.future and not job.future.done()]

    def start(self, work: Coroutine[Any, Any, None], then: Callable[[], None]) -> None:
        """Run a transaction in a task of its own."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            then()

        task.add_done_callback(done)


class _Pool:
    """The connections of one event loop."""

    def __init__(self, connect: Callable[[], Awaitable[_Connection]], size_max: int) -> None:
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(size_max)
        self._idle: list[_Connection] = []
        self._is_open = True
        self.is_warm = False
        self.lanes = _Lanes(min(LANES_MAX, size_max))

    async def warm(self, size: int) -> None:
        """Connect ahead of the first call."""
        ready = [await self.acquire() for _ in range(size)]
        for db in ready:
            self.release(db, is_usable=True)
        self.is_warm = True

    async def acquire(self) -> _Connection:
        """Return a connection that nobody uses, the one that was used last."""
        await self._slots.acquire()
        try:
            while self._idle:
                db = self._idle.pop()
                # What was idle for long may have been forgotten on the way, without a word.
                is_fresh = self._loop.time() - db.idle_since < IDLE_MAX_S
                # Not public, so it may go; then a dead connection is found out by using it.
                if is_fresh and not getattr(db.driver, "_stream_broken", False):
                    return db
                db.driver.close()
            return await self._connect()
        except BaseException:
            self._slots.release()
            raise

    def release(self, db: _Connection, *, is_usable: bool) -> None:
        """Take a connection back; one that was interrupted is closed."""
        db.is_final = False
        if is_usable and self._is_open:
            db.idle_since = self._loop.time()
            self._idle.append(db)
        else:
            db.driver.close()
        self._slots.release()

    def empty(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().driver.close()

    def drop(self) -> None:
        """Close the idle connections, and the others when they come back."""
        self._is_open = False
        self.empty()

    async def close(self) -> None:
        """Take leave of the server, which would log an aborted connection otherwise."""
        self._is_open = False
        idle, self._idle = self._idle, []
        for db in idle:
            with contextlib.suppress(asyncmy.errors.Error, TimeoutError):
                async with asyncio.timeout(1):
                    await db.driver.ensure_closed()


# -- failing ----------------------------------------------------------------------------


class _OutcomeUnknownError(asyncmy.errors.OperationalError):
    """The connection was lost while a change that cannot be repeated was committed."""


def _code(error: BaseException) -> int | None:
    if isinstance(error, OSError):  # raised while a connection is made
        return 2003
    if isinstance(error, asyncmy.errors.InternalError) and not isinstance(error.args[0], int):
        return 2013  # packets out of order: an answer of the server's shutdown
    if error.args[:1] == (1180,) and "149" in str(error.args[-1]):
        return 1213  # Group Replication with several primaries: a deadlock, found at COMMIT
    return error.args[0] if error.args and isinstance(error.args[0], int) else None


def _translate(error: Exception, name: str) -> Exception:
    """Turn the driver's errors into ours, with what to do; the cause is kept."""
    if isinstance(error, _OutcomeUnknownError):
        ours: Exception = StorageError(
            f"{name}: the connection was lost while a change was committed, and whether it was "
            "is not known. Read the state before you try again."
        )
    elif isinstance(error, asyncmy.errors.Error | OSError):
        code = _code(error)
        kind, advice = _ADVICE.get(code or 0, (StorageError, "{name}: {said}"))
        said = str(error.args[-1]) if error.args else type(error).__name__
        ours = kind(advice.format(name=name, said=said.rstrip(".")))
    elif isinstance(error, RuntimeError) and "cryptography" in str(error):
        ours = StorageError(f"{name}: {error}: pip install 'threadline[mysql]'")
    else:
        return error
    ours.__cause__ = error
    return ours


_BUSY = (StorageBusyError, "{name} could not let the write through in time ({said}). Try again.")
_AWAY = (
    StorageError,
    "{name} does not answer ({said}). Check host and port, and that the server is running.",
)
_DENIED = (StorageError, "{name} refused the login ({said}). Check user and password.")
_FULL = (StorageFullError, "{name} has no room ({said}); nothing was written.")
_READ_ONLY = (ReadOnlyDatabaseError, "{name} takes no writes ({said}).")
_NO_RIGHT = (
    "{name}: {said}. Threadline's tables need SELECT, INSERT, UPDATE and DELETE; to create them, "
    "a DBA can run what `threadline db ddl` prints."
)
_ADVICE: dict[int, tuple[type[ThreadlineError], str]] = {
    **dict.fromkeys(_ROLLED_BACK, _BUSY),
    **dict.fromkeys(_LOST, _AWAY),
    1040: (StorageBusyError, "{name} has no connection left ({said}). Lower pool_max."),
    1203: (StorageBusyError, "{name} has no connection left ({said}). Lower pool_max."),
    1044: (StorageError, _NO_RIGHT),
    1142: (StorageError, _NO_RIGHT),
    1045: _DENIED,
    1698: _DENIED,
    1049: (StorageError, "{name}: {said}. Create it first: CREATE DATABASE ..."),
    1021: _FULL,
    1114: _FULL,
    1290: _READ_ONLY,
    1792: _READ_ONLY,
    1836: _READ_ONLY,
    _NO_SUCH_TABLE: (StorageError, "{name}: {said}. Run `threadline db upgrade`."),
    _PACKET_TOO_LARGE: (InvalidInputError, "{name}: {said}; nothing was written."),
}
