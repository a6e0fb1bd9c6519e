"""What the PostgreSQL engine has on an event loop: a pool, and appends that share a commit."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from threadline.engines.base import EventClashError
from threadline.errors import ThreadlineError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from threadline.engines.base import Handle, NewEvent, SessionKey, StateRows
    from threadline.engines.pool import Pool
    from threadline.engines.postgres_driver import Link, PostgresDriver

T = TypeVar("T")

LANES_MAX = 2
BATCH_MAX = 128
BATCH_BYTES_MAX = 4 << 20


class Append:
    """One append through a handle that is probably up to date."""

    __slots__ = ("delta", "events", "future", "handle", "id_keys", "now")

    def __init__(
        self, handle: Handle, events: Sequence[NewEvent], id_keys: Sequence[bytes], now: float
    ) -> None:
        self.handle = handle
        self.events = events
        self.id_keys = id_keys
        self.now = now
        self.delta = delta_rows(handle.key, [event.state for event in events])
        self.future: asyncio.Future[bool] | None = None

    def claims(self) -> set[tuple[bytes, ...]]:
        """Return what no other append of the same statement may change."""
        key = self.handle.key
        shared = {where[:3] for where in self.delta if not where[1]}
        return {(key.owner, key.session), *shared}

    def size(self) -> int:
        return sum(len(event.body) for event in self.events)


class Desk:
    """What the engine has on one event loop: a pool, and the appends that wait for it.

    An append that comes while fewer than LANES_MAX are under way is sent at once; those that
    come meanwhile go together when one of them is done.
    """

    def __init__(self, driver: PostgresDriver, pool: Pool[Link], sql: Mapping[str, str]) -> None:
        self.pool = pool
        self._driver = driver
        self._sql = sql
        self._lanes = 0
        self._under_way = 0
        self._waiting: deque[Append] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(
        self, work: Callable[[asyncpg.Connection], Awaitable[T]], *, is_bounded: bool = True
    ) -> T:
        """Do one piece of work on a connection; again, within bounds, if it may pass."""
        loop = asyncio.get_running_loop()
        limit = self._driver.busy_timeout_s
        deadline: float | None = None
        pause_s = 0.005
        while True:
            link: Link | None = None
            try:
                link = await self.pool.take()
                async with asyncio.timeout(limit if is_bounded else None):
                    result = await work(link.db)
                    if link.warning:
                        await self._wait_for_standby(link)
            except (ThreadlineError, EventClashError):
                raise
            except Exception as error:
                now = loop.time()
                deadline = deadline or now + limit
                if link is not None and isinstance(error, TimeoutError):
                    self._driver.drop(link)  # what the server is doing is not known
                if not self._driver.is_passing(error, link) or now >= deadline:
                    raise self._driver.translate(error, link) from error
            except BaseException:  # cancelled
                if link is not None:
                    self._driver.drop(link)
                raise
            else:
                return result
            finally:
                if link is not None:
                    self.pool.give(link)
            await asyncio.sleep(pause_s * random.random())  # noqa: S311 - only to keep apart
            pause_s = min(pause_s * 2, 0.5)

    async def _wait_for_standby(self, link: Link) -> None:
        """Return when what was committed in this connection is on the synchronous standby.

        A later commit in the same connection is on the same server and later in its log, so
        the standby that has it has the earlier one.
        """
        warning = link.warning
        try:
            while link.warning:
                link.warning = None
                await link.db.fetchval(self._sql["wait_for_standby"])
        except asyncio.CancelledError:
            link.warning = warning  # for whoever says why there was not enough time
            raise

    async def append_next(self, job: Append) -> bool:
        """Append to the revision that the handle knows; tell whether it could be done."""
        if self._lanes < LANES_MAX and not self._waiting:
            self._lanes += 1
            try:
                return await self._append_one(job)
            finally:
                self._lanes -= 1
                self._go_on()
        job.future = asyncio.get_running_loop().create_future()
        self._waiting.append(job)
        return await job.future

    def _go_on(self) -> None:
        if self._waiting and self._lanes < LANES_MAX:
            self._lanes += 1
            task = asyncio.create_task(self._drain())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _drain(self) -> None:
        try:
            while batch := self._take_batch():
                self._under_way += len(batch)
                try:
                    await self._append_all(batch)
                finally:
                    self._under_way -= len(batch)
        finally:
            self._lanes -= 1

    def _take_batch(self) -> list[Append]:
        """Take those that wait, but of those that would change the same rows the first."""
        batch: list[Append] = []
        later: list[Append] = []
        claimed: set[tuple[bytes, ...]] = set()
        size = 0
        # A lane leaves the others their share: while one waits for the server, the next one's
        # callers are at work. In one convoy client and server would wait for each other.
        most = min(-(-(len(self._waiting) + self._under_way) // LANES_MAX), BATCH_MAX)
        while self._waiting and len(batch) < most and size < BATCH_BYTES_MAX:
            job = self._waiting.popleft()
            if job.future is None or job.future.done():  # the caller was cancelled
                continue
            claims = job.claims()
            if claimed.isdisjoint(claims):
                batch.append(job)
                size += job.size()
            else:
                later.append(job)
            claimed |= claims
        self._waiting.extendleft(reversed(later))
        return batch

    async def _append_all(self, batch: list[Append]) -> None:
        done: set[int] = set()
        try:
            if len(batch) == 1:
                done = {0} if await self._append_one(batch[0]) else set()
            else:
                values = _batch_values(batch)

                async def work(db: asyncpg.Connection) -> set[int]:
                    return {n for (n,) in await db.fetch(self._sql["append_batch"], *values)}

                done = await self.run(work)
        except ThreadlineError as error:
            if isinstance(error.__cause__, asyncpg.UniqueViolationError) and len(batch) > 1:
                for job in batch:  # one of them spoilt it: each finds out alone
                    await self._append_all([job])
                return
            for job in batch:
                if job.future is not None and not job.future.done():
                    job.future.set_exception(error)
            return
        for n, job in enumerate(batch):
            if job.future is not None and not job.future.done():
                job.future.set_result(n in done)

    async def _append_one(self, job: Append) -> bool:
        handle, events = job.handle, job.events
        place = (handle.key.owner, handle.key.session, handle.incarnation, handle.revision)
        last = events[-1]
        values: list[Any]
        if len(events) == 1 and not job.delta:
            statement = self._sql["append_next"]
            values = [*place, last.timestamp, job.now, job.id_keys[0], last.body]
        else:
            statement = self._sql["append_next_with_state"]
            values = [
                *(*place, last.timestamp, job.now),
                [event.timestamp for event in events],
                job.id_keys,
                [event.body for event in events],
                *columns(job.delta, 4),
            ]

        async def work(db: asyncpg.Connection) -> bool:
            try:
                return await db.fetchval(statement, *values) is not None
            except asyncpg.UniqueViolationError:  # an event that is there already
                return False

        return await self.run(work)

    async def close(self) -> None:
        """Finish the appends that wait, then close the pool."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self.pool.close()


def delta_rows(
    key: SessionKey, deltas: Iterable[StateRows]
) -> list[tuple[bytes, bytes, bytes, bytes]]:
    """Return the rows that a run of deltas sets, in the order in which all lock them."""
    rows = {}
    for delta in deltas:
        for scope, values in zip(key.scopes, delta, strict=True):
            for name, value in values.items():
                rows[scope.owner, scope.session, name.encode()] = value
    return [(*where, value) for where, value in sorted(rows.items())]


def columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[tuple[Any, ...]]:
    """Turn rows into the arrays that `unnest` turns into rows."""
    return list(zip(*rows, strict=True)) if rows else [()] * width


def _batch_values(batch: Sequence[Append]) -> list[Any]:
    """Return the arguments of append_batch: the time, and its sessions, events and state."""
    heads, events, state = [], [], []
    for n, job in enumerate(batch):
        handle = job.handle
        known, last = handle.revision, job.events[-1].timestamp
        where = (handle.key.owner, handle.key.session, handle.incarnation)
        heads.append((n, *where, known, known + len(job.events), last))
        for seq, (event, id_key) in enumerate(zip(job.events, job.id_keys, strict=True), known + 1):
            events.append((n, seq, event.timestamp, id_key, event.body))
        state += [(n, *row) for row in job.delta]
    return [
        *columns(heads, 7),
        max(job.now for job in batch),
        *columns(events, 5),
        *columns(state, 5),
    ]
