"""Appends that share a commit, for databases with a server.

An append that comes while fewer than `lanes_max` are under way is sent at once. Those that come
meanwhile wait, and go together when one of them is done: a few transactions with several appends
each are faster than many with one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from threadline.engines.base import Appended, EventClashError, digest, is_expired
from threadline.errors import SessionNotFoundError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence

    from threadline.engines.base import EventRow, Handle, NewEvent, SessionRow


class Append:
    """One append through a handle that is probably up to date."""

    __slots__ = ("events", "future", "handle", "id_keys", "now", "rebase")

    def __init__(
        self, handle: Handle, events: Sequence[NewEvent], rebase: bool, now: float
    ) -> None:
        self.handle = handle
        self.events = events
        self.id_keys = [digest(event.id) for event in events]
        self.rebase = rebase
        self.now = now
        self.future: asyncio.Future[Appended | None] | None = None

    def size(self) -> int:
        """Return the bytes of its events."""
        return sum(len(event.body) for event in self.events)

    def appended(self) -> Appended:
        """Return the outcome where the handle was right and every event new."""
        handle, head = self.handle, self.handle.revision + len(self.events)
        return Appended(
            seqs=range(handle.revision + 1, head + 1),
            missed=(),
            incarnation=handle.incarnation or 0,
            revision=head,
            updated=self.events[-1].timestamp,
        )

    def check(self, row: SessionRow | None) -> SessionRow:
        """Return the session that the handle is of, or raise SessionNotFoundError."""
        handle = self.handle
        if (
            row is None
            or is_expired(row, self.now)
            or handle.incarnation not in (None, row.incarnation)
        ):
            raise SessionNotFoundError(f"The session {handle.key.id!r} does not exist.")
        return row

    def known(self, stored: Mapping[bytes, EventRow]) -> dict[int, int]:
        """Return the seqs of its events that are stored, or raise EventClashError."""
        known: dict[int, int] = {}
        for index, event in enumerate(self.events):
            if self.id_keys[index] in stored:
                seq, body = stored[self.id_keys[index]]
                if body != event.body:
                    raise EventClashError(index, (seq, body))
                known[index] = seq
        return known

    def settle(self, outcome: Appended | BaseException | None) -> None:
        """Tell the caller, who may have been cancelled."""
        if self.future is None or self.future.done():
            return
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class Lanes:
    """The appends of one event loop.

    `append_one` returns None where a handle was not right, and leaves it to the caller what to do
    then. `append_together` stores several in one transaction and returns the numbers of those that
    it did; `claims` tells what of an append no other of the same transaction may change.
    """

    def __init__(
        self,
        *,
        append_one: Callable[[Append], Awaitable[Appended | None]],
        append_together: Callable[[list[Append]], Awaitable[set[int]]],
        claims: Callable[[Append], set[Hashable]],
        lanes_max: int,
        batch_max: int,
        batch_bytes_max: int,
    ) -> None:
        self._append_one = append_one
        self._append_together = append_together
        self._claims = claims
        self._lanes_max = lanes_max
        self._batch_max = batch_max
        self._batch_bytes_max = batch_bytes_max
        self._lanes = 0
        self._under_way = 0
        self._waiting: deque[Append] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def append(self, job: Append) -> Appended | None:
        """Append to the revision that the handle knows; None if that could not be done."""
        if self._lanes < self._lanes_max and not self._waiting:
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
        if self._waiting and self._lanes < self._lanes_max:
            self._lanes += 1
            task = asyncio.create_task(self._drain())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _drain(self) -> None:
        try:
            while batch := self._take_batch():
                self._under_way += len(batch)
                try:
                    await self._append_batch(batch)
                finally:
                    self._under_way -= len(batch)
        finally:
            self._lanes -= 1

    def _take_batch(self) -> list[Append]:
        """Take those that wait, but of those that would change the same rows the first."""
        batch: list[Append] = []
        later: list[Append] = []
        claimed: set[Hashable] = set()
        size = 0
        # A lane leaves the others their share: while one waits for the server, the next one's
        # callers are at work. In one convoy client and server would wait for each other.
        share = -(-(len(self._waiting) + self._under_way) // self._lanes_max)
        most = min(share, self._batch_max)
        while self._waiting and len(batch) < most and size < self._batch_bytes_max:
            job = self._waiting.popleft()
            if job.future is None or job.future.done():  # the caller was cancelled
                continue
            claims = self._claims(job)
            if claimed.isdisjoint(claims):
                batch.append(job)
                size += job.size()
            else:
                later.append(job)
            claimed |= claims
        self._waiting.extendleft(reversed(later))
        return batch

    async def _append_batch(self, batch: list[Append]) -> None:
        try:
            if len(batch) == 1:
                batch[0].settle(await self._append_one(batch[0]))
                return
            done = await self._append_together(batch)
        except BaseException as error:
            for job in batch:
                job.settle(error)
            if not isinstance(error, Exception):  # such as the end of the event loop
                raise
        else:
            for number, job in enumerate(batch):
                job.settle(job.appended() if number in done else None)

    async def close(self) -> None:
        """Finish the appends that wait."""
        while self._tasks:
            await asyncio.wait(self._tasks)
