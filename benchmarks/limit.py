"""The limit: what the standard library's sqlite3 can do with the same rows.

One connection, one thread, no asyncio, no checks: the statements of threadline's SQLite
engine on threadline's tables, one transaction an event, as the driver runs them. A service
that answers each caller alone cannot be faster; one that commits for several at once can.
"""

from __future__ import annotations

import importlib
import sqlite3
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import conversation
from benchmarks.conversation import APP, USER
from benchmarks.peers import Store, Threadline

if TYPE_CHECKING:
    from pathlib import Path


class _Thread:
    """A session as the limit knows it: its number, and how many events it has."""

    def __init__(self, number: int, owner: bytes, session: bytes) -> None:
        self.number = number
        self.owner = owner
        self.session = session
        self.revision = 0


class _Rows(NamedTuple):
    """An event, encoded: nothing is left to do but to write it."""

    id_hash: int
    timestamp: float
    body: bytes
    state: list[tuple[str, bytes]]


class RawSqlite(Store):
    """A bare sqlite3 connection in WAL mode with synchronous=FULL."""

    name = "raw sqlite3 (the limit)"
    package = "threadline"
    modules = ("threadline",)
    durability = "WAL, synced at every commit"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._threadline = Threadline(path)

    async def open(self) -> None:
        await self._threadline.open()
        await self._threadline.create("makes the tables")
        await self._threadline.close()
        self._sql = importlib.import_module("threadline.engines.statements").load("sqlite")
        self._key = importlib.import_module("threadline.engines.base").session_key
        self._db = sqlite3.connect(self.path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")

    async def close(self) -> None:
        self._db.close()

    async def create(self, session_id: str, state: dict[str, Any] | None = None) -> Any:
        del state
        key = self._key(APP, USER, session_id)
        values = {
            "app_key": key.app_key,
            "owner": key.owner,
            "session": key.session,
            "created": 0.0,
            "expires": None,
            "app": APP,
            "user": USER,
            "id": session_id,
            "display_name": None,
            "labels": None,
        }
        self._db.execute(self._sql["insert_session"], values).fetchall()
        ((number,),) = self._db.execute("SELECT last_insert_rowid()").fetchall()
        return _Thread(number, key.owner, key.session)

    def event(self, index: int, delta: dict[str, Any] | None = None) -> Any:
        event = self._threadline.event(index, delta)
        return _Rows(
            zlib.crc32(event.id.encode()),
            event.timestamp,
            event.to_json().encode(),
            [(key, b"%d" % value) for key, value in conversation.delta(index).items()],
        )

    async def append(self, handle: Any, event: Any) -> None:
        execute = self._db.execute
        handle.revision = revision = handle.revision + 1
        execute("BEGIN IMMEDIATE")
        execute(
            self._sql["insert_event"],
            (handle.number << 32 | revision, event.id_hash, event.timestamp, event.body),
        )
        for key, value in event.state:
            execute(self._sql["upsert_state"], (handle.owner, handle.session, key, value))
        execute(
            self._sql["bump_session"],
            {"no": handle.number, "revision": revision, "updated": event.timestamp},
        )
        execute("COMMIT")
