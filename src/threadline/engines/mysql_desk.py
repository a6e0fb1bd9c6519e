"""What the MySQL engine has on an event loop: a pool, and appends that share a commit."""

from __future__ import annotations

import asyncio
import random
import sys
from typing import TYPE_CHECKING, TypeVar

import asyncmy

from threadline.engines.base import EventClashError
from threadline.engines.lanes import Lanes
from threadline.engines.mysql_appends import append_carefully, append_next
from threadline.engines.mysql_driver import LOST, ROLLED_BACK, OutcomeUnknownError, code_of
from threadline.errors import StorageUnavailableError, ThreadlineError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from threadline.engines.base import Appended
    from threadline.engines.lanes import Append
    from threadline.engines.mysql_driver import Connection, MysqlDriver
    from threadline.engines.mysql_text import Sql
    from threadline.engines.pool import Pool

T = TypeVar("T")

LANES_MAX = 3
BATCH_MAX = 64
BATCH_BYTES_MAX = 1 << 20


class Desk:
    """What the engine has on one event loop: a pool, and the appends that wait for it."""

    def __init__(
        self, driver: MysqlDriver, pool: Pool[Connection], sql: Sql, *, group_commit: bool
    ) -> None:
        self.pool = pool
        self._driver = driver
        self._sql = sql
        self.lanes = Lanes(
            append_one=self.append_alone,
            append_together=self._append_together,
            claims=_claims,
            lanes_max=LANES_MAX if group_commit else sys.maxsize,
            batch_max=BATCH_MAX,
            batch_bytes_max=BATCH_BYTES_MAX,
        )

    async def run(
        self, work: Callable[[Connection], Awaitable[T]], *, is_bounded: bool = True
    ) -> T:
        """Do a transaction's work in a connection, again if it was rolled back or cut off."""
        loop = asyncio.get_running_loop()
        limit = self._driver.busy_timeout_s
        deadline: float | None = None
        pause_s = 0.002
        while True:
            try:
                return await self._attempt(work, limit if is_bounded else None)
            except (asyncmy.errors.Error, OSError) as error:
                is_unknown = isinstance(error, OutcomeUnknownError)
                now = loop.time()
                deadline = deadline or now + limit
                if is_unknown or code_of(error) not in ROLLED_BACK | LOST or now >= deadline:
                    raise self._driver.translate(error) from error
            # Those that met each other should not meet again.
            await asyncio.sleep(pause_s * (0.5 + random.random()))  # noqa: S311
            pause_s = min(pause_s * 2, 0.5)

    async def _attempt(
        self, work: Callable[[Connection], Awaitable[T]], limit_s: float | None
    ) -> T:
        db = await self.pool.take()
        is_usable = False
        try:
            async with asyncio.timeout(limit_s):
                try:
                    result = await work(db)
                except (ThreadlineError, EventClashError):
                    await db.execute(self._sql["rollback"])
                    is_usable = True
                    raise
                except (asyncmy.errors.Error, OSError) as error:
                    if code_of(error) in LOST:
                        self.pool.empty()  # where one was cut off, the others were too
                        self._driver.pass_over(db, error)
                        if db.is_final:
                            raise OutcomeUnknownError(*error.args) from error
                        raise
                    await db.execute(self._sql["rollback"])
                    is_usable = True
                    raise
            is_usable = True
        except TimeoutError as error:
            raise StorageUnavailableError(
                f"{self._driver.where} did not answer within {limit_s} s; whether the call was "
                "written is not known. To append the same event again is safe."
            ) from error
        else:
            return result
        finally:
            db.is_final = False
            if not is_usable:
                self._driver.drop(db)
            self.pool.give(db)

    async def append_alone(self, job: Append) -> Appended:
        """Append through a handle that may be stale; the careful way needs the same connection."""

        async def work(db: Connection) -> Appended:
            if job.handle.incarnation is not None and await append_next(db, self._sql, [job]):
                return job.appended()
            return await append_carefully(db, self._sql, job)

        return await self.run(work)

    async def _append_together(self, batch: list[Append]) -> set[int]:
        try:
            done = await self._attempt(
                lambda db: append_next(db, self._sql, batch), self._driver.busy_timeout_s
            )
        except (asyncmy.errors.Error, OSError, ThreadlineError):
            # Whatever is wrong with some of them, each finds out alone.
            return set()
        return {number for number, job in enumerate(batch) if job in done}

    async def close(self) -> None:
        """Finish the appends that wait, then close the pool."""
        await self.lanes.close()
        await self.pool.close()


def _claims(job: Append) -> set[Hashable]:
    """Return the session: of two appends of one, the second would be stale."""
    return {job.handle.key.owner + job.handle.key.session}
