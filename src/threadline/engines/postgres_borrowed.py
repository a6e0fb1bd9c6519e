"""An asyncpg.Pool of the application's, used in the stead of the engine's own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from threadline.engines.postgres_driver import Link
from threadline.errors import InvalidInputError, StorageBusyError

if TYPE_CHECKING:
    import asyncpg


class BorrowedPool:
    """What `Pool` does, with connections that others use too.

    asyncpg resets a connection when it comes back, which is one more round trip a call, though
    nobody waits for it.
    """

    def __init__(self, pool: asyncpg.Pool, *, wait_max_s: float) -> None:
        # Not public, so it may go; then asyncpg says it in its own words.
        loop: Any = getattr(pool, "_loop", None)
        if loop not in (None, asyncio.get_running_loop()):
            raise InvalidInputError(
                "An asyncpg.Pool works on the event loop it was made on only; give a URL to a "
                "service that several event loops use, as threadline.sync does."
            )
        self._pool = pool
        self._wait_max_s = wait_max_s
        self._returning: set[asyncio.Task[None]] = set()

    async def fill(self, size: int) -> None:  # noqa: ARG002 - how many is the pool's own matter
        """See whether there is a connection."""
        await self._pool  # one that was not awaited by its maker is not ready
        self.give(await self.take())

    async def take(self) -> Link:
        """Return a connection that nobody else uses."""
        try:
            db = await self._pool.acquire(timeout=self._wait_max_s)
        except TimeoutError as error:
            raise StorageBusyError(
                f"The given asyncpg.Pool had no connection for {self._wait_max_s} s; nothing was "
                "written. Raise its max_size."
            ) from error
        return Link(db, has_statements=False)

    def give(self, link: Link) -> None:
        """Take a connection back."""
        link.forget()
        task = asyncio.get_running_loop().create_task(self._pool.release(link.db))
        self._returning.add(task)
        task.add_done_callback(self._returned)

    def _returned(self, task: asyncio.Task[None]) -> None:
        self._returning.discard(task)
        if not task.cancelled():
            task.exception()  # a connection that broke meanwhile is asyncpg's to replace

    async def close(self) -> None:
        """Give back what is on its way; the pool stays open."""
        if self._returning:
            await asyncio.wait(self._returning)
