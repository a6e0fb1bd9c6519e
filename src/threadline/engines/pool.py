"""The connections of an engine: a pool for each event loop, since a connection works on one only.

asyncpg's own pool resets a connection after every use and wraps it before, which costs nearly as
much as an append; asyncmy's has no bound on the wait. Ours have no state to be reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from threadline.errors import EngineClosedError, StorageBusyError

if TYPE_CHECKING:
    from collections.abc import Callable

C = TypeVar("C")
T = TypeVar("T", bound="Closable")

IDLE_MAX_S = 300.0
LEAVE_MAX_S = 1.0


class Driver(Protocol[C]):
    """What a pool asks of a database's driver."""

    where: str
    """What messages call the database; no password is in it."""

    async def connect(self) -> C:
        """Make a connection, ready to be used."""

    def is_lost(self, db: C) -> bool:
        """Tell whether a connection is known to be of no use any more."""

    def drop(self, db: C) -> None:
        """Close a connection at once."""

    async def leave(self, db: C) -> None:
        """Close a connection as the server likes it."""


class Pool(Generic[C]):
    """Up to `size_max` connections of one event loop; a call waits `wait_max_s` for one."""

    def __init__(self, driver: Driver[C], *, size_max: int, wait_max_s: float) -> None:
        self._driver = driver
        self._size_max = size_max
        self._wait_max_s = wait_max_s
        self._loop = asyncio.get_running_loop()
        self._idle: list[tuple[C, float]] = []
        self._waiting: deque[asyncio.Future[C | None]] = deque()
        self._size = 0
        self._is_closed = False

    async def fill(self, size: int) -> None:
        """Open as many connections as are always to be there, at least one."""
        taken = [await self.take() for _ in range(max(size, 1) - self._size)]
        for db in taken:
            self.give(db)

    async def take(self) -> C:
        """Return a connection that nobody else uses, the one that was used last."""
        while True:
            while self._idle:
                db, since = self._idle.pop()
                # What was idle for long may have been forgotten on the way, without a word.
                is_fresh = self._loop.time() - since < IDLE_MAX_S
                if is_fresh and not self._driver.is_lost(db):
                    return db
                self._drop(db)
            if self._size < self._size_max:
                self._size += 1
                try:
                    return await self._driver.connect()
                except BaseException:
                    self._size -= 1
                    self._wake(None)
                    raise
            handed = await self._wait()
            if handed is not None:
                return handed

    async def _wait(self) -> C | None:
        """Return what another caller gives back; None says that there is room for a new one."""
        turn: asyncio.Future[C | None] = self._loop.create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._wait_max_s):
                return await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # it was handed to one who has left
                handed = turn.result()
                if handed is None:
                    self._wake(None)
                else:
                    self.give(handed)
            if isinstance(error, TimeoutError):
                raise StorageBusyError(
                    f"All {self._size_max} connections to {self._driver.where} were in use for "
                    f"{self._wait_max_s} s; nothing was written. Raise pool_max."
                ) from error
            raise

    def give(self, db: C) -> None:
        """Take a connection back."""
        if self._is_closed or self._driver.is_lost(db):
            self._drop(db)
            self._wake(None)
        elif not self._wake(db):
            self._idle.append((db, self._loop.time()))

    def _wake(self, db: C | None) -> bool:
        """Give the first who waits a connection, or with None the right to make one."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(db)
                return True
        return False

    def _drop(self, db: C) -> None:
        self._size -= 1
        self._driver.drop(db)

    def empty(self) -> None:
        """Close the idle connections: where one was cut off, the others probably were too."""
        while self._idle:
            self._drop(self._idle.pop()[0])

    async def close(self) -> None:
        """Close what is idle now, and the others when they come back."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        self._size -= len(idle)
        for db, _ in idle:
            with contextlib.suppress(Exception):  # it may be lost already
                async with asyncio.timeout(LEAVE_MAX_S):
                    await self._driver.leave(db)


class Closable(Protocol):
    """What an engine has on each event loop."""

    async def close(self) -> None:
        """Finish what is queued, then let go of every connection."""


class EachLoop(Generic[T]):
    """What an engine has on each event loop that it is used on, made when it is first asked for."""

    def __init__(self, make: Callable[[], T], where: str) -> None:
        self._make = make
        self._where = where
        self._lock = threading.Lock()
        self._made: dict[asyncio.AbstractEventLoop, T] = {}
        self._is_open = False
        self._pid = 0

    def open(self) -> None:
        """Allow it to be used; more than once does no harm."""
        with self._lock:
            if not self._is_open:
                self._is_open, self._pid = True, os.getpid()

    def here(self) -> T:
        """Return the running event loop's own."""
        loop = asyncio.get_running_loop()
        made = self._made.get(loop)
        if made is not None and self._pid == os.getpid():
            return made
        with self._lock:
            if not self._is_open:
                raise EngineClosedError(f"The engine of {self._where} is not open.")
            if self._pid != os.getpid():
                raise EngineClosedError(
                    "This service was opened before the process was forked; connections do not "
                    "survive that. Create a service in the child."
                )
            for other in [other for other in self._made if other.is_closed()]:
                del self._made[other]  # its connections went with it
            made = self._made[loop] = self._make()
        return made

    async def close(self) -> None:
        """Close them all, each on its own loop."""
        with self._lock:
            all_made, self._made = self._made, {}
            self._is_open = False
        if self._pid != os.getpid():  # a fork: the connections are the parent's
            return
        here = asyncio.get_running_loop()
        for loop, made in all_made.items():
            if loop is here:
                await made.close()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(made.close(), loop))
