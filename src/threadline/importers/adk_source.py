"""Read the tables of google-adk in SQLite files, PostgreSQL, and MySQL or MariaDB.

All of it is read as of one moment, in one transaction that writes nothing. Sessions come one
after the other, each with its events in google-adk's order: by the column `timestamp`. Where
that is equal, a SQLite file still knows which row was written first, and that decides; on a
server the id does, as for google-adk.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from threadline.connect import connect
from threadline.engines.memory import MemoryEngine
from threadline.engines.sqlite import MEMORY
from threadline.engines.sqlite_threads import translate
from threadline.errors import InvalidInputError, UnsupportedUrlError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import asyncmy
    import asyncpg

    from threadline.engines.mysql import MysqlEngine
    from threadline.engines.postgres import PostgresEngine

Row = dict[str, Any]
"""A row by its columns' names, as the driver gave it."""

TABLES = ("app_states", "user_states", "sessions", "events")
METADATA = "adk_internal_metadata"
ANSWER_TIMEOUT_S = 3600.0
"""Bounds the wait for a server that sorts a large table."""

ROWS = 256
"""Rows that are fetched at a time."""


class Group(NamedTuple):
    """A session's row and those of its events; no session for events that lost theirs."""

    session: Row | None
    events: list[Row]


class Source(Protocol):
    """A database of google-adk, open for reading."""

    name: str
    """What messages call it; no password is in it."""

    async def columns(self) -> dict[str, set[str]]:
        """Return the names of the columns of google-adk's tables that are there."""

    def rows(self, sql: str) -> AsyncIterator[Row]:
        """Yield what a statement selects."""

    def groups(self) -> AsyncIterator[Group]:
        """Yield all sessions with their events, and events without a session."""


def locate(database: str | Path) -> Any:
    """Return the Path, or the engine of the server, that a path or SQLAlchemy's URL names."""
    if "://" not in str(database):
        return Path(database)
    url = str(database)
    engine: Any = connect(url, busy_timeout_s=ANSWER_TIMEOUT_S)
    path = getattr(engine, "path", None)
    if isinstance(engine, MemoryEngine) or path == MEMORY:
        raise UnsupportedUrlError(f"{url!r} is gone when it is closed; name a file or a server.")
    return engine if path is None else Path(path)


def connect_source(source: str | Path) -> contextlib.AbstractAsyncContextManager[Source]:
    """Return what opens a database for reading, by a file's path or by SQLAlchemy's URL."""
    place = locate(source)
    if isinstance(place, Path):
        return _sqlite(place)
    return _postgres(place) if place.dialect == "postgres" else _mysql(place)


# -- a SQLite file ----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _sqlite(path: Path) -> AsyncIterator[Source]:
    if not path.is_file():  # noqa: ASYNC240 - nobody waits for this
        raise InvalidInputError(f"There is no database file {path}.")
    try:
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",  # noqa: ASYNC240
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        )
        with contextlib.closing(db):
            # A text that is no UTF-8 is one damaged row, not the end of the reading.
            db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
            db.execute("BEGIN")
            yield SqliteSource(db, str(path))
    except sqlite3.Error as error:
        raise translate(error, str(path)) from error


class SqliteSource:
    """A SQLite file that google-adk wrote."""

    sessions = "SELECT * FROM sessions ORDER BY app_name, user_id, id"
    events = "SELECT * FROM events ORDER BY app_name, user_id, session_id, timestamp, rowid"

    def __init__(self, db: sqlite3.Connection, name: str) -> None:
        self._db = db
        self.name = name

    async def columns(self) -> dict[str, set[str]]:
        """Return the names of the columns of google-adk's tables that are there."""
        sql = "SELECT name FROM pragma_table_info(?)"
        found = {
            table: {name for (name,) in self._db.execute(sql, (table,))}
            for table in (*TABLES, METADATA)
        }
        return {table: names for table, names in found.items() if names}

    async def rows(self, sql: str) -> AsyncIterator[Row]:
        """Yield what a statement selects."""
        cursor = await asyncio.to_thread(self._db.execute, sql)
        names = [column[0] for column in cursor.description]
        while found := await asyncio.to_thread(cursor.fetchmany, ROWS):
            for row in found:
                yield dict(zip(names, row, strict=True))

    def groups(self) -> AsyncIterator[Group]:
        """Yield all sessions with their events, and events without a session."""
        return _merged(self.rows(self.sessions), self.rows(self.events))


# -- a PostgreSQL server ----------------------------------------------------------------


@contextlib.asynccontextmanager
async def _postgres(engine: PostgresEngine) -> AsyncIterator[Source]:
    async with (
        engine.connection() as db,
        db.transaction(isolation="repeatable_read", readonly=True),
    ):
        yield PostgresSource(db, engine.where)


class PostgresSource:
    """The tables of google-adk in a PostgreSQL database."""

    # Texts are ordered by their bytes, as Python compares them. Only the tie goes by the
    # database's own order: it is the one that google-adk shows.
    sessions = (
        'SELECT * FROM sessions ORDER BY app_name COLLATE "C", user_id COLLATE "C", id COLLATE "C"'
    )
    events = (
        'SELECT * FROM events ORDER BY app_name COLLATE "C", user_id COLLATE "C", '
        'session_id COLLATE "C", timestamp, id'
    )

    def __init__(self, db: asyncpg.Connection, name: str) -> None:
        self._db = db
        self.name = name

    async def columns(self) -> dict[str, set[str]]:
        """Return the names of the columns of google-adk's tables that are there."""
        sql = (
            "SELECT attrelid::regclass::text, attname FROM pg_attribute "
            "WHERE attrelid = ANY (ARRAY(SELECT to_regclass(name) FROM unnest($1::text[]) name)) "
            "AND attnum > 0 AND NOT attisdropped"
        )
        return _by_table(await self._db.fetch(sql, [*TABLES, METADATA]))

    async def rows(self, sql: str) -> AsyncIterator[Row]:
        """Yield what a statement selects."""
        async for record in self._db.cursor(sql, prefetch=ROWS):
            yield dict(record)

    def groups(self) -> AsyncIterator[Group]:
        """Yield all sessions with their events, and events without a session."""
        return _merged(self.rows(self.sessions), self.rows(self.events))


# -- a MySQL or MariaDB server ----------------------------------------------------------


@contextlib.asynccontextmanager
async def _mysql(engine: MysqlEngine) -> AsyncIterator[Source]:
    async with engine.connection() as db:
        source = MysqlSource(db, engine.where)
        await source.fetch("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        yield source


class MysqlSource:
    """The tables of google-adk in a MySQL or MariaDB database.

    Here the database decides which session an event belongs to: its collation may hold texts
    to be equal that differ. The foreign key has an index, so asking for each session is quick.
    """

    def __init__(self, db: asyncmy.Connection, name: str) -> None:
        self._db = db
        self.name = name

    async def columns(self) -> dict[str, set[str]]:
        """Return the names of the columns of google-adk's tables that are there."""
        sql = (
            "SELECT table_name AS name, column_name AS part FROM information_schema.columns "
            "WHERE table_schema = DATABASE() AND table_name IN (%s, %s, %s, %s, %s)"
        )
        found = await self.fetch(sql, (*TABLES, METADATA))
        return _by_table([(row["name"], row["part"]) for row in found])

    async def fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return all rows that a statement selects."""
        from asyncmy.cursors import DictCursor

        async with self._db.cursor(cursor=DictCursor) as cursor:
            await cursor.execute(sql, values or None)
            return list(await cursor.fetchall()) if cursor.description else []

    async def rows(self, sql: str) -> AsyncIterator[Row]:
        """Yield what a statement selects."""
        for row in await self.fetch(sql):
            yield row

    async def groups(self) -> AsyncIterator[Group]:
        """Yield all sessions with their events, and events without a session."""
        page = "SELECT * FROM sessions {after} ORDER BY app_name, user_id, id LIMIT %s"
        after = "WHERE (app_name, user_id, id) > (%s, %s, %s)"
        of_session = (
            "SELECT * FROM events WHERE app_name = %s AND user_id = %s AND session_id = %s "
            "ORDER BY timestamp, id"
        )
        orphans = (
            "SELECT e.* FROM events e LEFT JOIN sessions s ON s.app_name = e.app_name "
            "AND s.user_id = e.user_id AND s.id = e.session_id WHERE s.id IS NULL"
        )
        sessions = await self.fetch(page.format(after=""), (ROWS,))
        while sessions:
            for session in sessions:
                key = (session["app_name"], session["user_id"], session["id"])
                yield Group(session, await self.fetch(of_session, key))
            sessions = await self.fetch(page.format(after=after), (*key, ROWS))
        if found := await self.fetch(orphans):
            yield Group(None, found)


# -- both -------------------------------------------------------------------------------


def _by_table(pairs: Sequence[Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for table, column in pairs:
        found.setdefault(table, set()).add(column)
    return found


async def _merged(sessions: AsyncIterator[Row], events: AsyncIterator[Row]) -> AsyncIterator[Group]:
    """Put events to their sessions, both being in the order of (app, user, session)."""
    event = await anext(events, None)

    async def take(key: tuple[str, str, str]) -> list[Row]:
        nonlocal event
        taken = []
        while event is not None and _session_of(event) == key:
            taken.append(event)
            event = await anext(events, None)
        return taken

    async for session in sessions:
        key = (session["app_name"], session["user_id"], session["id"])
        while event is not None and _order(_session_of(event)) < _order(key):
            yield Group(None, await take(_session_of(event)))
        yield Group(session, await take(key))
    while event is not None:
        yield Group(None, await take(_session_of(event)))


def _session_of(event: Row) -> tuple[str, str, str]:
    return event["app_name"], event["user_id"], event["session_id"]


def _order(key: tuple[str, str, str]) -> list[bytes]:
    """Return what databases compare: the bytes."""
    return [str(part).encode("utf-8", "surrogateescape") for part in key]
