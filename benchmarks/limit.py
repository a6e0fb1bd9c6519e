"""The limit: what the standard library's sqlite3 can do with the same rows.

One connection, one thread, no asyncio, no checks: threadline's tables with their indexes, and
one transaction an event. A service that answers each caller alone cannot be faster; one that
commits for several callers at once can.
"""

from __future__ import annotations

import hashlib
import sqlite3
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import conversation
from benchmarks.peers import Store, Threadline

if TYPE_CHECKING:
    from pathlib import Path

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

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._threadline = Threadline(path)  # makes the tables and the sessions

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
        event = self._threadline.event(index, delta)
        return _Rows(
            hashlib.blake2b(event.id.encode(), digest_size=16).digest(),
            event.timestamp,
            event.to_json().encode(),
            [(key, b"%d" % value) for key, value in conversation.delta(index).items()],
        )

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
