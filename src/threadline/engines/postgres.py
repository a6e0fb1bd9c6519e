"""PostgreSQL: one round trip an append, behind a pooler or not.

An append is one statement and its own transaction: it compares the session's revision, inserts
the events and sets their state. Appends that come while others are under way share a statement
and a commit. Whatever else happens (a stale handle, a repeated event) is sorted out in an
explicit transaction that holds the session's row. Lost connections, deadlocks and serialization
failures are tried again: every call is written so that trying again is safe.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any

from threadline.engines import statements
from threadline.engines.base import (
    Appended,
    ErasedUser,
    Head,
    Scope,
    SessionRow,
    Snapshot,
    StateRows,
    check_row,
    digest,
    is_expired,
    quoted,
    session_row,
)
from threadline.engines.lanes import Append
from threadline.engines.pool import EachLoop, Pool
from threadline.engines.postgres_borrowed import BorrowedPool
from threadline.engines.postgres_channel import PostgresChannel
from threadline.engines.postgres_desk import Desk, columns, delta_rows
from threadline.engines.postgres_driver import PostgresDriver
from threadline.errors import (
    AlreadyExistsError,
    SessionNotFoundError,
    StaleSessionError,
    StorageUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from threadline.engines.base import (
        EventRow,
        Handle,
        Migration,
        NewEvent,
        NewSession,
        SessionChange,
        SessionKey,
        SessionQuery,
        Window,
    )
    from threadline.engines.postgres_driver import Link

SQL = statements.load("postgres")

INT64_MAX = 2**63 - 1


class PostgresEngine:
    """Sessions in the tables of one schema of a PostgreSQL database.

    Every event loop that uses it has a pool of its own, of `pool_min` to `pool_max` connections,
    made by `connect_with(dsn, **options)` (by default `asyncpg.connect`), unless it borrows those
    of a `pool`. `busy_timeout_s`
    bounds the wait for locks, for a free connection and for a server that went away. With
    `durability` "normal" the last appends may be lost if the server goes down.
    """

    dialect = "postgres"

    def __init__(
        self,
        dsn: str = "",
        *,
        schema: str = "public",
        pool_min: int = 1,
        pool_max: int = 10,
        statement_cache_size: int = 100,
        durability: str = "full",
        busy_timeout_s: float = 30.0,
        group_commit: bool = True,
        connect_with: Callable[..., Awaitable[Any]] | None = None,
        pool: asyncpg.Pool | None = None,
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
                schema=self._schema,
                scope=scope,
                time=order,
                indexed=indexed,
                place=place,
                beyond=beyond,
                direction=direction,
            )
            for scope in ("app_key", "owner")
            for order, indexed, place in (
                ("updated", "updated_slot", "floor(floor($2::double precision) / 32)"),
                ("created", "created", "$2"),
            )
            for descending, beyond, direction in ((False, ">", "ASC"), (True, "<", "DESC"))
        }
        self._pool_min, self._pool_max = pool_min, pool_max
        driver = PostgresDriver(
            dsn,
            connect_with=connect_with,
            statement_cache_size=statement_cache_size,
            busy_timeout_s=busy_timeout_s,
            durability=durability,
        )
        self._driver = driver
        self.where = driver.where

        def new_pool() -> Pool[Link] | BorrowedPool:
            if pool is not None:
                return BorrowedPool(pool, wait_max_s=busy_timeout_s)
            return Pool(driver, size_max=pool_max, wait_max_s=busy_timeout_s)

        self._desks = EachLoop(
            lambda: Desk(driver, new_pool(), self._sql, group_commit=group_commit), self.where
        )
        self.channel = PostgresChannel(
            # How many connections a given pool has is a promise, so none of them listens.
            None if pool is not None else driver,
            self._desks,
            self._sql,
            schema=schema,
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

    def connection(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Lend a connection of its own, which need not be open, to work on other tables."""
        return self._driver.lend()

    # -- schema -------------------------------------------------------------------------

    async def version(self) -> int | None:
        """Read the ledger's newest version; None where there is no ledger."""
        return await self._desks.here().run(self._version)

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

        return await self._desks.here().run(work, is_bounded=False)

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
            *columns(delta_rows(key, [state]), 4),
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

        return Snapshot(row, await self._desks.here().run(work), [])

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
        return await self._desks.here().run(
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
                row = session_row(record[4:])
            else:
                scopes[part - 1][record[2].decode()] = record[3]
        if row is None:  # there is no part without the session's
            raise AssertionError(found)
        check_row(key, row)
        events.sort()  # the order of a UNION's parts is the server's choice
        return Snapshot(row, StateRows(*scopes), events)

    async def heads(self, keys: Sequence[SessionKey], *, now: float) -> list[Head | None]:
        """Read where each of the sessions is, in one go; None where there is none."""
        places = [key.owner for key in keys], [key.session for key in keys]
        found = await self._desks.here().run(
            lambda db: db.fetch(self._sql["select_heads"], *places, now)
        )
        heads = {n: Head(*head) for n, *head in found}
        return [heads.get(n) for n in range(1, len(keys) + 1)]

    async def append(
        self, handle: Handle, events: Sequence[NewEvent], *, rebase: bool, now: float
    ) -> Appended:
        """Store events at the end of the log, with their state; skip those that are there."""
        desk = self._desks.here()
        job = Append(handle, events, rebase, now)
        if handle.incarnation is not None and handle.revision < INT64_MAX:
            outcome = await desk.lanes.append(job)
            if outcome is None and rebase:
                outcome = await self._append_rebased(desk, job)
            if outcome is not None:
                return outcome

        async def work(db: asyncpg.Connection) -> Appended:
            async with db.transaction(isolation="read_committed"):
                return await self._append_carefully(db, job)

        return await desk.run(work)

    async def _append_rebased(self, desk: Desk, job: Append) -> Appended | None:
        """Append behind whatever is there; None if an event is there already, or no session.

        The row is held for one statement. What the handle has missed is read afterwards, and
        not with it: it may have been stored while the statement waited for the row.
        """
        head = await desk.append_rebased(job)
        if head is None:
            return None
        key, known = job.handle.key, job.handle.revision
        before = head - len(job.events)
        missed = await desk.run(lambda db: self._between(db, key, known, before))
        if len(missed) != max(before - known, 0):
            raise SessionNotFoundError(f"The session {key.id!r} was deleted meanwhile.")
        return Appended(
            seqs=range(before + 1, head + 1),
            missed=missed,
            incarnation=job.handle.incarnation or 0,
            revision=max(head, known),
            updated=job.events[-1].timestamp,
        )

    async def _append_carefully(self, db: asyncpg.Connection, job: Append) -> Appended:
        """Append through a handle that may be stale, skipping the events that are there."""
        handle, events, id_keys = job.handle, job.events, job.id_keys
        key = handle.key
        row = job.check(await self._find(db, key))
        found = await db.fetch(self._sql["select_events_by_id"], key.owner, key.session, id_keys)
        known = job.known({id_key: (seq, body) for id_key, seq, body in found})
        seen = max([handle.revision, *known.values()])
        if len(known) < len(events) and not job.rebase and seen != row.revision:
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
                *columns(delta_rows(key, [events[index].state for index in fresh]), 4),
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

        attempt: Sequence[Any] | None = None
        changes: Mapping[str, bytes | None] = {}

        async def work(db: asyncpg.Connection) -> Mapping[str, bytes | None]:
            nonlocal attempt, changes
            # Cut off at its commit, an attempt may have been the last one. It is not to be done
            # again blindly: an increment would count twice.
            if attempt is not None and await self._was_committed(db, attempt):
                return changes
            attempt = None
            async with db.transaction(isolation="read_committed"):
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
                attempt = await db.fetchrow(
                    self._sql["write_state"], *where, sorted(gone), *columns(kept, 2)
                )
            return changes

        return await self._desks.here().run(work)

    async def _was_committed(self, db: asyncpg.Connection, attempt: Sequence[Any]) -> bool:
        """Ask what became of a transaction whose connection was lost at its commit."""
        while True:
            outcome = await db.fetchval(self._sql["select_outcome"], *attempt)
            if outcome is None:
                raise StorageUnavailableError(
                    "The connection was lost while a patch was committed; whether it was written "
                    "is not known. Read the state before you try again."
                )
            if outcome == "committed":
                await db.execute(self._sql["confirm"])
            if outcome != "in progress":
                return bool(outcome == "committed")
            await asyncio.sleep(0.01)

    async def state(self, scope: Scope) -> Mapping[str, bytes]:
        """Read a user's or an app's state."""
        found = await self._desks.here().run(
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
        found = await self._desks.here().run(lambda db: db.fetch(statement, *values))
        page: list[tuple[bytes, bytes, SessionRow]] = []
        scopes: dict[tuple[int, bytes, bytes | None], dict[str, bytes]] = {}
        for part, name, value, owner, session, *row in found:
            if part == 0:
                page.append((owner, session, session_row(row)))
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

    async def find(self, app_key: bytes, id: str, *, now: float) -> list[SessionRow]:
        """Read the sessions of an app that have this id, one for each user, in any order."""
        where = (app_key, digest(id), id.encode(), now)
        found = await self._desks.here().run(lambda db: db.fetch(self._sql["select_by_id"], *where))
        return [session_row(row) for row in found]

    async def apps(self) -> list[str]:
        """Read which apps have sessions, in order, at a cost that does not grow with those."""
        found = await self._desks.here().run(lambda db: db.fetch(self._sql["select_apps"]))
        return sorted(app.decode() for (app,) in found)

    async def describe(self, key: SessionKey, change: SessionChange, *, now: float) -> bool:
        """Change a session's title, labels and expiry; tell whether it was there."""
        new = change.values
        values = (
            *(key.owner, key.session, now),
            *(new["sets_display_name"], _encoded(new["display_name"])),
            *(new["sets_labels"], _encoded(new["labels"])),
            *(new["sets_expires"], new["expires"]),
        )
        done = await self._desks.here().run(
            lambda db: db.fetchval(self._sql["describe_session"], *values)
        )
        return done is not None

    async def delete(self, key: SessionKey) -> bool:
        """Remove a session, its events and its state; tell whether it was there."""
        was_there = False

        async def work(db: asyncpg.Connection) -> None:
            nonlocal was_there
            async with db.transaction(isolation="read_committed"):
                if await self._find(db, key) is not None:
                    was_there = True  # also for an attempt after this one
                    await db.execute(self._sql["delete_session"], key.owner, key.session)
                elif was_there:
                    await db.execute(self._sql["confirm"])

        await self._desks.here().run(work)
        return was_there

    async def erase(self, user: Scope) -> ErasedUser:
        """Remove a user's sessions and the user's state; tell how much it was."""
        erased = ErasedUser()

        async def work(db: asyncpg.Connection) -> None:
            nonlocal erased
            async with db.transaction(isolation="read_committed"):
                held = await self._hold_user(db, user)
                # What came while others were waited for is not held yet. Where a second look finds
                # no more, nothing that can be seen is half of what somebody stored.
                while (again := await self._hold_user(db, user)) != held:
                    held = again
                if any(held):
                    found = await db.fetchrow(self._sql["delete_user"], user.owner, *held)
                    erased = ErasedUser(*found)
                elif erased != ErasedUser():  # by an attempt before this one
                    await db.execute(self._sql["confirm"])

        await self._desks.here().run(work)
        return erased

    # -- inside a transaction -----------------------------------------------------------

    async def _find(self, db: asyncpg.Connection, key: SessionKey) -> SessionRow | None:
        """Read a session's row and hold it until the transaction ends."""
        found = await db.fetchrow(self._sql["lock_session"], key.owner, key.session)
        if found is None:
            return None
        row = session_row(found)
        check_row(key, row)
        return row

    async def _hold_user(
        self, db: asyncpg.Connection, user: Scope
    ) -> tuple[list[bytes], list[bytes]]:
        """Hold a user's sessions, then the keys of the user's state, as an append does."""
        sessions = await db.fetch(self._sql["lock_sessions_of_user"], user.owner)
        keys = await db.fetch(self._sql["lock_state_of_user"], user.owner)
        return [session for (session,) in sessions], [key for (key,) in keys]

    async def _between(
        self, db: asyncpg.Connection, key: SessionKey, after: int, up_to: int
    ) -> list[EventRow]:
        if after >= up_to:
            return []
        found = await db.fetch(self._sql["select_events"], key.owner, key.session, after, up_to)
        return [(seq, body) for seq, body in found]


# -- rows and columns -------------------------------------------------------------------


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _check_patched(record: Sequence[Any] | None, now: float) -> None:
    if record is None or is_expired(session_row(record), now):
        raise SessionNotFoundError("The session to be patched does not exist.")
