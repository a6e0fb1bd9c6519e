"""Word of appends from process to process, by PostgreSQL's NOTIFY.

A message is who sends it and the keys of sessions, as many as it holds. Whoever listens has one
connection for it, which no pool counts.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
import logging
import os
import secrets
from typing import TYPE_CHECKING, Any

from threadline.engines.base import Scope, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    import asyncpg

    from threadline.engines.pool import EachLoop
    from threadline.engines.postgres_desk import Desk
    from threadline.engines.postgres_driver import PostgresDriver

log = logging.getLogger("threadline.engines")

KEYS_MAX = 180
"""How many sessions are in one message, which PostgreSQL wants below 8,000 bytes."""
PROBE_S = 15.0
"""How long a connection may be silent before it is asked whether it still is one."""
PAUSE_S, PAUSE_MAX_S = 0.1, 30.0


class PostgresChannel:
    """The word that goes round about the sessions of one schema; without a driver, none comes in.

    Behind a pooler none comes in either: it would be told to whoever has the connection then.
    """

    def __init__(
        self,
        driver: PostgresDriver | None,
        desks: EachLoop[Desk],
        sql: Mapping[str, str],
        *,
        schema: str,
    ) -> None:
        self._driver = driver
        self._desks = desks
        self._sql = sql
        self._name = f"threadline_{digest(schema).hex()}"  # a schema's own may be too long
        self._token = secrets.token_hex(4)

    @property
    def _sender(self) -> str:
        return f"{self._token}.{os.getpid()}"  # made before a fork, it is of several processes

    async def tell(self, scopes: Collection[Scope]) -> None:
        """Send word of sessions to whoever listens in another process."""
        messages = [f"{self._sender} {keys}" for keys in _packed(scopes)]
        await self._desks.here().run(lambda db: db.execute(self._sql["tell"], self._name, messages))

    async def listen(self, hear: Callable[[Scope | None], None]) -> None:
        """Call `hear` with every session of which there is word, until this is cancelled."""
        pause_s, level = PAUSE_S, logging.WARNING
        while self._driver is not None:
            try:
                link = await self._driver.connect()
                try:
                    async with asyncio.timeout(PROBE_S):
                        can_listen = await self._begin(link.db, hear)
                    if not can_listen:
                        log.info("No word of appends comes through a pooler; tails poll.")
                        return
                    pause_s, level = PAUSE_S, logging.WARNING
                    await self._wait_for_loss(link.db)
                finally:
                    self._driver.drop(link)
            except Exception as error:
                # Whatever it is may be over at the next attempt; until then, tails poll.
                log.log(level, "No word of appends comes in: %s", self._driver.translate(error))
                level = logging.DEBUG  # until it has gone well again
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    async def _begin(self, db: asyncpg.Connection, hear: Callable[[Scope | None], None]) -> bool:
        """Listen from now on; return False, and do nothing, behind a pooler."""

        def heard(*word: Any) -> None:
            sender, _, keys = word[-1].partition(" ")
            if sender != self._sender:
                for scope in _unpacked(keys):
                    hear(scope)

        if await db.fetchval(self._sql["select_backend"]) != db.get_server_pid():
            return False
        await db.add_listener(self._name, heard)
        hear(None)
        return True

    async def _wait_for_loss(self, db: asyncpg.Connection) -> None:
        """Return when the connection is lost, or raise what shows that it is."""
        lost = asyncio.Event()
        db.add_termination_listener(lambda _: lost.set())
        while not lost.is_set() and not db.is_closed():
            try:
                async with asyncio.timeout(PROBE_S):
                    await lost.wait()
            except TimeoutError:
                await db.fetchval(self._sql["select_backend"], timeout=PROBE_S)


def _packed(scopes: Collection[Scope]) -> Iterator[str]:
    keys = iter([scope.owner + scope.session for scope in scopes])
    while some := b"".join(itertools.islice(keys, KEYS_MAX)):
        yield base64.b64encode(some).decode()


def _unpacked(keys: str) -> Iterator[Scope]:
    """Return the sessions in a message; there are none in what others may send."""
    try:
        data = base64.b64decode(keys, validate=True)
    except (binascii.Error, ValueError):
        return
    for place in range(0, len(data) - 31, 32):
        yield Scope(data[place : place + 16], data[place + 16 : place + 32])
