"""What the PostgreSQL engine has on an event loop: a pool, and appends that share a commit."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from threadline.engines.base import EventClashError
from threadline.engines.lanes import Lanes
from threadline.errors import ThreadlineError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence

    from threadline.engines.base import Appended, SessionKey, StateRows
    from threadline.engines.lanes import Append
    from threadline.engines.pool import Pool
    from threadline.engines.postgres_borrowed import BorrowedPool
    from threadline.engines.postgres_driver import Link, PostgresDriver

T = TypeVar("T")

LANES_MAX = 2
BATCH_MAX = 128
BATCH_BYTES_MAX = 4 << 20


class Desk:
    """What the engine has on one event loop: a pool, and the appends that wait for it."""

    def __init__(
        self,
        driver: PostgresDriver,
        pool: Pool[Link] | BorrowedPool,
        sql: Mapping[str, str],
        *,
        group_commit: bool,
    ) -> None:
        self.pool = pool
        self._driver = driver
        self._sql = sql
        self.lanes = Lanes(
            append_one=self._append_one,
            append_together=self._append_together,
            claims=_claims,
            lanes_max=LANES_MAX if group_commit else sys.maxsize,
            batch_max=BATCH_MAX,
            batch_bytes_max=BATCH_BYTES_MAX,
        )

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
                await link.db.fetchval(self._sql["confirm"])
        except asyncio.CancelledError:
            link.warning = warning  # for whoever says why there was not enough time
            raise

    async def _append_together(self, batch: list[Append]) -> set[int]:
        values = _batch_values(batch)

        async def work(db: asyncpg.Connection) -> set[int]:
            try:
                return {number for (number,) in await db.fetch(self._sql["append_batch"], *values)}
            except asyncpg.UniqueViolationError:  # one of them spoils it: each finds out alone
                return set()

        return await self.run(work)

    async def _append_one(self, job: Append) -> Appended | None:
        handle, events = job.handle, job.events
        place = (handle.key.owner, handle.key.session, handle.incarnation, handle.revision)
        last = events[-1]
        delta = _delta(job)
        values: tuple[Any, ...]
        if len(events) == 1 and not delta:
            values = (*place, last.timestamp, job.now, job.id_keys[0], last.body)
            head = await self._append_new("append_next", values)
        else:
            values = (*place, last.timestamp, job.now, *_event_columns(job), *columns(delta, 4))
            head = await self._append_new("append_next_with_state", values)
        return None if head is None else job.appended()

    async def append_rebased(self, job: Append) -> int | None:
        """Append at whatever revision the session is; return the one after it, or None."""
        handle = job.handle
        place = (handle.key.owner, handle.key.session, handle.incarnation)
        values = (
            *(*place, job.events[-1].timestamp, job.now),
            *(*_event_columns(job), *columns(_delta(job), 4)),
        )
        return await self._append_new("append_rebased", values)

    async def _append_new(self, statement: str, values: Sequence[Any]) -> int | None:
        """Return what the statement does; None if an event is there already."""

        async def work(db: asyncpg.Connection) -> int | None:
            with contextlib.suppress(asyncpg.UniqueViolationError):
                head: int | None = await db.fetchval(self._sql[statement], *values)
                return head
            return None

        return await self.run(work)

    async def close(self) -> None:
        """Finish the appends that wait, then close the pool."""
        await self.lanes.close()
        await self.pool.close()


def _claims(job: Append) -> set[Hashable]:
    """Return the rows that one statement cannot change twice: the session's, and shared state."""
    key = job.handle.key
    shared = {where[:3] for where in _delta(job) if not where[1]}
    return {(key.owner, key.session), *shared}


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


def _event_columns(job: Append) -> tuple[list[float], list[bytes], list[bytes]]:
    events = job.events
    return [event.timestamp for event in events], job.id_keys, [event.body for event in events]


def _delta(job: Append) -> list[tuple[bytes, bytes, bytes, bytes]]:
    return delta_rows(job.handle.key, [event.state for event in job.events])


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
        state += [(n, *row) for row in _delta(job)]
    return [
        *columns(heads, 7),
        max(job.now for job in batch),
        *columns(events, 5),
        *columns(state, 5),
    ]
