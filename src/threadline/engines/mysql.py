"""MySQL 8 and later, MariaDB 10.6 and later, and what speaks their protocol.

An append is one packet and one transaction: a compare in an UPDATE, an INSERT that fails where
the compare did, and a COMMIT which the server does not reach after a failure. A stale handle
and a repeated event take a second way, in a transaction that locks the session's row. Every
transaction is tried again, within a time, after a deadlock or a lost connection. In a Galera
cluster every statement is a packet of its own.

The driver is asyncmy: aiomysql 0.3.2 beside PyMySQL 1.2.4 raises TypeError on bytes parameters.
"""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
from typing import TYPE_CHECKING

import asyncmy
import msgspec

from threadline.engines.base import (
    NO_STATE,
    Appended,
    ErasedUser,
    Head,
    SessionRow,
    Snapshot,
    StateRows,
    Window,
    digest,
    is_expired,
    session_row,
)
from threadline.engines.lanes import Append
from threadline.engines.mysql_desk import Desk
from threadline.engines.mysql_driver import DUPLICATE_KEY, NO_SUCH_TABLE, MysqlDriver, code_of
from threadline.engines.mysql_rows import (
    LIMIT_MAX,
    TIME_MAX,
    checked,
    drops,
    scoped,
    select_events,
    upsert,
    upserts,
)
from threadline.engines.mysql_text import (
    PREFIX,
    Text,
    bind,
    chunks,
    literal,
    literals,
    load,
    renamed,
    split,
)
from threadline.engines.pool import EachLoop, Pool
from threadline.errors import (
    AlreadyExistsError,
    SessionNotFoundError,
    StorageBusyError,
    UnsupportedUrlError,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from asyncmy.connection import Connection as DriverConnection

    from threadline.engines.base import (
        Handle,
        Migration,
        NewEvent,
        NewSession,
        Scope,
        SessionChange,
        SessionKey,
        SessionQuery,
    )
    from threadline.engines.mysql_driver import Connection

HEADS_MAX = 400
"""How many sessions one statement looks for: MariaDB turns a list of 1,000 values into a join."""
_ID_MAX = b"\xff"  # behind all UTF-8
_PREFIX = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")


class MysqlEngine:
    """Sessions in a MySQL or MariaDB database.

    `connect_with` makes a new connection of asyncmy, for credentials that change; without it, one
    is made of host, port, user, password, database, unix_socket and tls. Each of `other_hosts` is
    tried in turn where the one before is away or takes no writes. Every event loop that uses the
    engine has a pool of its own, of `pool_min` to `pool_max` connections. `busy_timeout_s` bounds
    the wait for locks, for a free connection and for a server that went away.
    """

    dialect = "mysql"
    schema = None
    channel = None

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
        connect_with: Callable[[], Awaitable[DriverConnection]] | None = None,
        connect_timeout_s: float = 10.0,
        pool_min: int = 1,
        pool_max: int = 10,
        table_prefix: str = PREFIX,
        isolation: str = "READ COMMITTED",
        busy_timeout_s: float = 30.0,
        group_commit: bool = True,
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
        self._sql = load(table_prefix, isolation)
        self._pool_min = pool_min
        self._pool_max = pool_max
        self._busy_timeout_s = busy_timeout_s
        connections: list[Callable[[], Awaitable[DriverConnection]]] = [
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
        driver = MysqlDriver(
            [connect_with] if connect_with else connections,
            where=self.where,
            sql=self._sql,
            busy_timeout_s=busy_timeout_s,
        )
        self._driver = driver
        self._desks = EachLoop(
            lambda: Desk(
                driver,
                Pool(driver, size_max=pool_max, wait_max_s=busy_timeout_s),
                self._sql,
                group_commit=group_commit,
            ),
            self.where,
        )

    # -- life ---------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, so that a wrong URL is told at once; more than once does no harm."""
        self._desks.open()
        try:
            await self._desks.here().pool.fill(self._pool_min)
        except Exception as error:
            await self.close()
            raise self._driver.translate(error) from error

    async def close(self) -> None:
        """Finish what is queued, then let go of every connection."""
        await self._desks.close()

    def connection(self) -> AbstractAsyncContextManager[DriverConnection]:
        """Lend a connection of its own, which need not be open, to work on other tables."""
        return self._driver.lend()

    # -- schema -------------------------------------------------------------------------

    def ddl(self, sql: str) -> str:
        """Return a migration's statements with the names of this engine's tables."""
        return renamed(sql, self.table_prefix)

    async def version(self) -> int | None:
        """Read the ledger's newest version; None where there is no ledger."""
        return await self._desks.here().run(self._version)

    async def _version(self, db: Connection) -> int | None:
        try:
            ((row,),) = await db.fetch(self._sql["select_version"])
        except asyncmy.errors.Error as error:
            if code_of(error) == NO_SUCH_TABLE:
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

        async def work(db: Connection) -> list[str]:
            ((row,),) = await db.fetch(bind(sql["lock_migrations"], **lock))
            if row[0] != 1:
                raise StorageBusyError(
                    f"{self.where}: another migration held the lock for {self._busy_timeout_s} s."
                )
            try:
                current = await self._version(db) or 0
                for step in migrations:
                    if step.version > current:
                        for statement in split(self.ddl(step.sql)):
                            await db.execute(statement)
                        ran.append(step.name)
            finally:
                await db.fetch(bind(sql["unlock_migrations"], lock=lock["lock"]))
            return ran

        return await self._desks.here().run(work, is_bounded=False)

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
            bind(sql["insert_session"], **values),
            *upserts(sql, [(key, state)]),
            bind(sql["select_merged_state"], **place, app_key=key.app_key),
            sql["commit"],
        ]

        async def work(db: Connection) -> Snapshot:
            try:
                (merged,) = await db.fetch(sql["begin"], *insert)
            except asyncmy.errors.Error as error:
                if code_of(error) != DUPLICATE_KEY:
                    raise
            else:
                return Snapshot(row, scoped(merged), [])
            lock = bind(sql["lock_session"], **place)
            (found,) = await db.fetch(sql["rollback"], sql["begin"], lock)
            before = checked(key, found)
            if before is not None and before.incarnation == row.incarnation:
                # It is this one: the answer to an earlier attempt was lost.
                merge = bind(sql["select_merged_state"], **place, app_key=key.app_key)
                (merged,) = await db.fetch(merge, sql["commit"])
                return Snapshot(row, scoped(merged), [])
            if before is not None and not is_expired(before, now):
                raise AlreadyExistsError(f"The session {key.id!r} already exists.")
            (merged,) = await db.fetch(*drops(sql, place), *insert)
            return Snapshot(row, scoped(merged), [])

        return await self._desks.here().run(work)

    async def load(
        self, key: SessionKey, window: Window, *, now: float, state: bool = True
    ) -> Snapshot | None:
        """Read a session, its state (of all scopes) and the events in the window."""
        sql = self._sql
        place = {"owner": key.owner, "session": key.session}
        packet = [sql["begin_read"], bind(sql["select_session"], **place)]
        if state:
            packet.append(bind(sql["select_merged_state"], **place, app_key=key.app_key))
        packet += [select_events(sql, place, window), sql["commit"]]

        async def work(db: Connection) -> Snapshot | None:
            found, *states, events = await db.fetch(*packet)
            row = checked(key, found)
            if row is None or is_expired(row, now):
                return None
            rows = scoped(states[0]) if state else NO_STATE
            return Snapshot(row, rows, list(events[::-1] if window.newest else events))

        return await self._desks.here().run(work)

    async def heads(self, keys: Sequence[SessionKey], *, now: float) -> list[Head | None]:
        """Read where each of the sessions is, in one go; None where there is none."""
        rows = [literals((key.owner, key.session)) for key in keys]
        selects = [
            bind(self._sql["select_heads"], keys=Text(",".join(rows[n : n + HEADS_MAX])), now=now)
            for n in range(0, len(rows), HEADS_MAX)
        ]
        if not selects:
            return []

        async def work(db: Connection) -> list[Head | None]:
            found = {
                (owner, session): Head(*head)
                for rows in await db.fetch(*selects)
                for owner, session, *head in rows
            }
            return [found.get((key.owner, key.session)) for key in keys]

        return await self._desks.here().run(work)

    async def append(
        self, handle: Handle, events: Sequence[NewEvent], *, rebase: bool, now: float
    ) -> Appended:
        """Store events at the end of the log, with their state; skip those that are there."""
        desk = self._desks.here()
        job = Append(handle, events, rebase, now)
        if handle.incarnation is not None:
            outcome = await desk.lanes.append(job)
            if outcome is not None:
                return outcome
        return await desk.append_alone(job)

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

        async def work(db: Connection) -> Mapping[str, bytes | None]:
            added: list[str] = []
            if scope.session:  # its row is locked by all who write the session's keys
                lock = bind(sql["lock_session"], **where)
                (found,) = await db.fetch(sql["begin"], lock)
                if not found or is_expired(session_row(found[0]), now):
                    raise SessionNotFoundError("The session to be patched does not exist.")
            else:
                locks = [bind(sql["lock_state_key"], **where, name=name) for name in names]
                counts = await db.execute(sql["begin"], *locks)
                added = [name for name, count in zip(names, counts[1:], strict=True) if count]
            stored: dict[str, bytes] = {}
            if names:
                (found,) = await db.fetch(bind(sql["select_state_keys"], **where, names=names))
                stored = {key.decode(): value for key, value in found}
            changes = change({key: stored[key] for key in stored if key not in added})
            new = {key: value for key, value in changes.items() if value is not None}
            # Keys that were put there to be locked go, unless they have a value now.
            gone = sorted({*added, *changes} - new.keys())
            packet = [] if not gone else [bind(sql["delete_state_keys"], **where, names=gone)]
            packet += upsert(sql, [(scope, name, value) for name, value in sorted(new.items())])
            # Whether it was done cannot be seen in the rows, so it is not done twice.
            db.is_final = True
            await db.execute(*packet, sql["commit"])
            return changes

        return await self._desks.here().run(work)

    async def state(self, scope: Scope) -> Mapping[str, bytes]:
        """Read a user's or an app's state."""
        select = bind(self._sql["select_state"], owner=scope.owner, session=scope.session)

        async def work(db: Connection) -> Mapping[str, bytes]:
            (rows,) = await db.fetch(select)
            return {name.decode(): value for name, value in rows}

        return await self._desks.here().run(work)

    async def sessions(
        self, query: SessionQuery, *, now: float
    ) -> list[tuple[SessionRow, StateRows]]:
        """Read a page of sessions, each with its state of all scopes if asked for."""
        sql = self._sql
        whose = "app" if query.owner is None else "user"
        beginning = (TIME_MAX, _ID_MAX, _ID_MAX) if query.descending else (-TIME_MAX, b"", b"")
        time, user, id = query.after or beginning
        values = {
            "app_key": query.app_key,
            "owner": query.owner,
            "time": time,
            "user": user,
            "id": id,
            "now": now,
            "limit": LIMIT_MAX if query.limit is None else query.limit,
        }
        words = {
            "time": query.order,
            "beyond": "<" if query.descending else ">",
            "direction": "DESC" if query.descending else "ASC",
        }
        select = sql[f"select_sessions_of_{whose}"]
        page = bind(select.format(columns=sql["session_columns"], **words), **values)
        packet = [sql["begin_read"], page]
        if query.state:
            keys = bind(select.format(columns="owner, session", **words), **values)
            packet += [
                sql["select_state_of_sessions"].format(page=keys),
                sql["select_state_of_users"].format(page=keys),
                bind(sql["select_state"], owner=query.app_key, session=b""),
            ]

        async def work(db: Connection) -> list[tuple[SessionRow, StateRows]]:
            found, *states = await db.fetch(*packet, sql["commit"])
            if not query.state:
                return [(session_row(row), NO_STATE) for *row, _, _ in found]
            of_sessions, of_users, of_app = states
            app = {name.decode(): value for name, value in of_app}
            others: dict[tuple[bytes, bytes], dict[str, bytes]] = {}
            for owner, session, name, value in (*of_sessions, *of_users):
                others.setdefault((owner, session), {})[name.decode()] = value
            return [
                (
                    session_row(row),
                    StateRows(app, others.get((owner, b""), {}), others.get((owner, session), {})),
                )
                for *row, owner, session in found
            ]

        return await self._desks.here().run(work)

    async def find(self, app_key: bytes, id: str, *, now: float) -> list[SessionRow]:
        """Read the sessions of an app that have this id, one for each user, in any order."""
        select = bind(
            self._sql["select_by_id"], app_key=app_key, session=digest(id), id=id, now=now
        )

        async def work(db: Connection) -> list[SessionRow]:
            (found,) = await db.fetch(select)
            return [session_row(row) for row in found]

        return await self._desks.here().run(work)

    async def apps(self) -> list[str]:
        """Read which apps have sessions, in order, at a cost that does not grow with those."""

        async def work(db: Connection) -> list[str]:
            apps: list[str] = []
            after = b""
            while True:
                (found,) = await db.fetch(bind(self._sql["select_next_app"], after=after))
                if not found:
                    return sorted(apps)
                ((after, app),) = found
                apps.append(app.decode())

        return await self._desks.here().run(work)

    async def describe(self, key: SessionKey, change: SessionChange, *, now: float) -> bool:
        """Change a session's title, labels and expiry; tell whether it was there."""
        sql = self._sql
        place = {"owner": key.owner, "session": key.session}
        update = bind(sql["describe_session"], **place, **change.values)

        async def work(db: Connection) -> bool:
            # Rows that are equal already do not count as affected, so the row is looked at first.
            (found,) = await db.fetch(sql["begin"], bind(sql["lock_session"], **place))
            row = checked(key, found)
            if row is None or is_expired(row, now):
                await db.execute(sql["rollback"])
                return False
            await db.execute(update, sql["commit"])
            return True

        return await self._desks.here().run(work)

    async def delete(self, key: SessionKey) -> bool:
        """Remove a session, its events and its state; tell whether it was there."""
        sql = self._sql
        place = {"owner": key.owner, "session": key.session}

        async def work(db: Connection) -> bool:
            lock = bind(sql["lock_session"], **place)
            (found,) = await db.fetch(sql["begin"], lock)
            if checked(key, found) is None:
                await db.execute(sql["rollback"])
                return False
            await db.execute(*drops(sql, place), sql["commit"])
            return True

        return await self._desks.here().run(work)

    async def erase(self, user: Scope) -> ErasedUser:
        """Remove a user's sessions and the user's state; tell how much it was."""
        sql, owner = self._sql, user.owner
        lock = [
            bind(sql["lock_sessions_of_user"], owner=owner),
            bind(sql["lock_state_of_user"], owner=owner),
        ]

        async def work(db: Connection) -> ErasedUser:
            if db.is_galera:
                await db.fetch(sql["catch_up"])  # what was stored at another node is erased too
            held = await db.fetch(sql["begin"], *lock)
            # What came while others were waited for is not held yet. Where a second look finds no
            # more, nothing that can be seen is half of what somebody stored.
            while (again := await db.fetch(*lock)) != held:
                held = again
            sessions, names = ([value for (value,) in rows] for rows in held)
            packet: list[str] = []
            for session in sessions:
                packet += drops(sql, {"owner": owner, "session": session})
            own = len(packet)
            for chunk in chunks(map(literal, names)):
                packet.append(bind(sql["delete_state_keys"], owner=owner, session=b"", names=chunk))
            counts = await db.execute(*packet, sql["commit"])
            events, keys, _ = (sum(counts[at:own:3]) for at in range(3))
            return ErasedUser(
                sessions=len(sessions), events=events, state_keys=keys + sum(counts[own:])
            )

        return await self._desks.here().run(work)
