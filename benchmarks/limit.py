"""The limit: what the drivers can do with the same rows, without a service.

No checks and one transaction an event, in threadline's tables with their indexes. A service that
answers each caller alone cannot be faster; one that commits for several callers at once can.

On SQLite the limit writes every row that threadline writes. On a server it writes one row, that
of the event: what any store that keeps events has to do at the least.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import sqlite3
from typing import Any, ClassVar, NamedTuple
from urllib.parse import unquote, urlsplit

from benchmarks import conversation
from benchmarks.conversation import APP, USER
from benchmarks.peers import SERVER_COMMIT, Store, Threadline

_FIND = "SELECT no, owner, session FROM threadline_session WHERE id = ?"
_INSERT_EVENT = "INSERT INTO threadline_event (place, id_key, timestamp, body) VALUES (?, ?, ?, ?)"
_UPDATE_SESSION = "UPDATE threadline_session SET revision = ?, updated = ? WHERE no = ?"
_UPSERT_STATE = """
INSERT INTO threadline_state (owner, session, key, value) VALUES (?, ?, ?, ?)
ON CONFLICT (owner, session, key) DO UPDATE SET value = excluded.value
"""


class _Thread:
    """A session as the limit knows it: its keys, and how many events it has."""

    def __init__(self, number: int, owner: bytes, session: bytes) -> None:
        self.number = number
        self.owner = owner
        self.session = session
        self.revision = 0


class _Rows(NamedTuple):
    """An event, encoded: nothing is left to do but to write it."""

    id_key: bytes
    timestamp: float
    body: bytes
    state: list[tuple[str, bytes]]


class RawSqlite(Store):
    """A bare sqlite3 connection in WAL mode with synchronous=FULL."""

    name = "raw sqlite3 (the limit)"
    package = "sqlite3"
    modules = ("threadline",)
    durability = "WAL, synced at every commit"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._threadline = Threadline(url)  # makes the tables and the sessions

    async def open(self) -> None:
        await self._threadline.open()
        await self._threadline.create("makes the tables")
        self._db = sqlite3.connect(self.path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")

    async def close(self) -> None:
        self._db.close()
        await self._threadline.close()

    async def create(self, session_id: str, state: dict[str, Any] | None = None) -> Any:
        await self._threadline.create(session_id, state)
        return _Thread(*self._db.execute(_FIND, (session_id,)).fetchone())

    def event(self, index: int, delta: dict[str, Any] | None = None) -> Any:
        return _rows(self._threadline.event(index, delta), index)

    async def append(self, handle: Any, event: Any) -> None:
        execute = self._db.execute
        handle.revision = revision = handle.revision + 1
        place = handle.number << 32 | revision
        execute("BEGIN IMMEDIATE")
        execute(_INSERT_EVENT, (place, event.id_key, event.timestamp, event.body))
        for key, value in event.state:
            execute(_UPSERT_STATE, (handle.owner, handle.session, key, value))
        execute(_UPDATE_SESSION, (revision, event.timestamp, handle.number))
        execute("COMMIT")


class _Place:
    """A session as a server's limit knows it."""

    def __init__(self, owner: bytes, session: bytes) -> None:
        self.owner = owner
        self.session = session
        self.revision = 0


class RawServer(Store):
    """Bare connections of a server's driver, each for one caller at a time."""

    connections: ClassVar[int]

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._threadline = Threadline(url)  # makes the tables and the sessions

    async def open(self) -> None:
        await self._threadline.open()
        await self._threadline.create("makes the tables")
        # The one that was used last comes first, so that one caller alone uses one.
        self._idle: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
        for _ in range(self.connections):
            self._idle.put_nowait(await self.connect())

    async def connect(self) -> Any:
        """Return a new connection of the driver's."""
        raise NotImplementedError

    async def disconnect(self, db: Any) -> None:
        """Close a connection."""
        raise NotImplementedError

    async def insert(self, db: Any, row: tuple[Any, ...]) -> None:
        """Store one row (owner, session, seq, timestamp, id_key, body) and commit."""
        raise NotImplementedError

    async def close(self) -> None:
        while not self._idle.empty():
            await self.disconnect(self._idle.get_nowait())
        await self._threadline.close()

    async def create(self, session_id: str, state: dict[str, Any] | None = None) -> Any:
        await self._threadline.create(session_id, state)
        key = importlib.import_module("threadline.engines.base").session_key(APP, USER, session_id)
        return _Place(key.owner, key.session)

    def event(self, index: int, delta: dict[str, Any] | None = None) -> Any:
        return _rows(self._threadline.event(index, delta), index)

    async def append(self, handle: Any, event: Any) -> None:
        handle.revision = revision = handle.revision + 1
        id_key, timestamp, body, _ = event
        db = await self._idle.get()
        try:
            await self.insert(db, (handle.owner, handle.session, revision, timestamp, id_key, body))
        finally:
            self._idle.put_nowait(db)


class RawPostgres(RawServer):
    """asyncpg on as many connections as threadline's pool has: one prepared INSERT an event."""

    name = "raw asyncpg, 10 connections"
    package = "asyncpg"
    modules = ("threadline", "asyncpg")
    durability = SERVER_COMMIT
    connections = 10

    async def connect(self) -> Any:
        return await importlib.import_module("asyncpg").connect(self.url)

    async def disconnect(self, db: Any) -> None:
        await db.close()

    async def insert(self, db: Any, row: tuple[Any, ...]) -> None:
        await db.execute(_INSERT_ON_POSTGRES, *row)


class RawPostgres64(RawPostgres):
    """The same on a connection for each of the sessions."""

    name = "raw asyncpg, 64 connections"
    connections = 64


class RawMysql(RawServer):
    """asyncmy on as many connections as threadline's pool has: INSERT and COMMIT an event."""

    name = "raw asyncmy, 10 connections"
    package = "asyncmy"
    modules = ("threadline", "asyncmy")
    durability = SERVER_COMMIT
    connections = 10
    autocommit = False

    async def connect(self) -> Any:
        parts = urlsplit(self.url)
        return await importlib.import_module("asyncmy").connect(
            host=parts.hostname,
            port=parts.port,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            database=parts.path.removeprefix("/"),
            autocommit=self.autocommit,
        )

    async def disconnect(self, db: Any) -> None:
        await db.ensure_closed()

    async def insert(self, db: Any, row: tuple[Any, ...]) -> None:
        async with db.cursor() as cursor:
            await cursor.execute(_INSERT_ON_MYSQL, row)
        if not self.autocommit:
            await db.commit()


class RawMysql64(RawMysql):
    """The same on a connection for each of the sessions."""

    name = "raw asyncmy, 64 connections"
    connections = 64


class RawMysqlAutocommit(RawMysql):
    """The same without a COMMIT of its own: one round trip less."""

    name = "raw asyncmy, autocommit"
    autocommit = True


def _rows(event: Any, index: int) -> _Rows:
    return _Rows(
        hashlib.blake2b(event.id.encode(), digest_size=16).digest(),
        event.timestamp,
        event.to_json().encode(),
        [(key, b"%d" % value) for key, value in conversation.delta(index).items()],
    )


_INSERT_ON_POSTGRES = """
INSERT INTO threadline_event (owner, session, seq, timestamp, id_key, body)
VALUES ($1, $2, $3, $4, $5, $6)
"""
_INSERT_ON_MYSQL = """
INSERT INTO threadline_event (owner, session, seq, timestamp, id_key, body)
VALUES (%s, %s, %s, %s, %s, %s)
"""
