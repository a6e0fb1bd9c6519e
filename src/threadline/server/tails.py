"""The tails of one process, and what wakes them.

A tail reads its session when it is woken: at once when this process has appended to it, and else
by one query every `poll_s`, which asks for all tails together where their sessions are. That
finds everything, whoever appended. Where the database carries word from process to process, each
also sends word of its own appends and wakes its tails as word comes in; what is lost of that, the
query finds. Where a service can tell of one session at a time only, the tails are woken every
`poll_s` and look for themselves.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from threadline import clock
from threadline.engines.base import session_key
from threadline.errors import EngineClosedError, InvalidInputError, ThreadlineError
from threadline.server.stream import Tail
from threadline.store import EngineSessionService

if TYPE_CHECKING:
    from threadline.engines.base import Channel, Scope
    from threadline.server.heads import Ids
    from threadline.service import BaseSessionService

log = logging.getLogger("threadline.server")

POLL_S = 0.5
HEARTBEAT_S = 15.0
SEND_TIMEOUT_S = 30.0
TELL_PAUSE_S = 0.01
"""How long word of appends is collected after some was sent."""
TELL_REST_S = 5.0
"""How long none is sent after some could not be."""


class Tails:
    """The tails of one process: woken by appends, ended by its shutdown."""

    def __init__(
        self,
        service: BaseSessionService,
        *,
        poll_s: float = POLL_S,
        heartbeat_s: float = HEARTBEAT_S,
        send_timeout_s: float = SEND_TIMEOUT_S,
    ) -> None:
        self.service = service
        self.poll_s = poll_s
        self.heartbeat_s = heartbeat_s
        self.send_timeout_s = send_timeout_s
        self.is_closing = False
        self._engine = service.tailable if isinstance(service, EngineSessionService) else None
        self._channel = None if self._engine is None else self._engine.channel
        self._teller = None if self._channel is None else Teller(self._channel)
        self._open: dict[Scope, set[Tail]] = {}
        self._is_poll_due = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return sum(map(len, self._open.values()))

    async def open(self, ids: Ids, after_seq: int | None, last_event_id: str | None) -> Tail:
        """Return a tail from after an event on: the one last seen, else the one given."""
        seq, incarnation = after_seq or 0, None
        if last_event_id:
            seq, incarnation = _place(last_event_id)
        tail = Tail(self, session_key(*ids), seq, incarnation)
        await tail.check()
        return tail

    def tell(self, ids: Ids) -> None:
        """Let the tails of a session that this process changed look at once, wherever they are."""
        scope = session_key(*ids).scopes[2]
        self._hear(scope)
        if self._teller is not None:
            self._teller.tell(scope)

    def close(self) -> None:
        """End every tail; its reader may go on elsewhere from its last event."""
        self.is_closing = True
        self._wake_all()

    def add(self, tail: Tail) -> None:
        """Count a tail in and wake it from now on."""
        self._open.setdefault(tail.key.scopes[2], set()).add(tail)
        if self._watch is None:
            self._watch = asyncio.create_task(self._watch_over())

    def remove(self, tail: Tail) -> None:
        """Forget a tail."""
        scope = tail.key.scopes[2]
        tails = self._open.get(scope, set())
        tails.discard(tail)
        if not tails:
            self._open.pop(scope, None)
        if not self._open and self._watch is not None:
            self._watch.cancel()
            self._watch = None

    # -- while there are tails --------------------------------------------------------------

    async def _watch_over(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll())
            if self._channel is not None:
                tasks.create_task(self._channel.listen(self._hear))

    async def _poll(self) -> None:
        while True:
            self._is_poll_due.clear()
            try:
                await self._look()
            except Exception as error:
                # Whatever it is, every tail finds it out by itself and tells its reader.
                log.warning("The sessions of tails cannot be looked for together: %s", error)
                self._wake_all()
            try:
                async with asyncio.timeout(self.poll_s):
                    await self._is_poll_due.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        """Wake the tails that are behind, or all of them if that cannot be told."""
        if self._engine is None:
            self._wake_all()
            return
        watched = [(next(iter(tails)).key, tails) for tails in self._open.values()]
        heads = await self._engine.heads([key for key, _ in watched], now=clock.now())
        for (_, tails), head in zip(watched, heads, strict=True):
            for tail in tails:
                if tail.is_behind(head):
                    tail.wake.set()

    def _hear(self, scope: Scope | None) -> None:
        if scope is None:
            self._is_poll_due.set()
        else:
            for tail in self._open.get(scope, ()):
                tail.wake.set()

    def _wake_all(self) -> None:
        for scope in self._open:
            self._hear(scope)


class Teller:
    """Sends word of appends, that of some milliseconds together, while nobody waits for it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._untold: set[Scope] = set()
        self._task: asyncio.Task[None] | None = None

    def tell(self, scope: Scope) -> None:
        """Send word of a session: at once, if none was sent just now."""
        self._untold.add(scope)
        if self._task is None:
            self._task = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        level = logging.WARNING
        try:
            while self._untold:
                told, self._untold = self._untold, set()
                try:
                    await self._channel.tell(told)
                except EngineClosedError:
                    return  # the server is ending, and whoever listens elsewhere polls
                except ThreadlineError as error:
                    log.log(level, "No word of appends goes out: %s", error)
                    level = logging.DEBUG  # until it has gone well again
                    await asyncio.sleep(TELL_REST_S)
                else:
                    level = logging.WARNING
                    await asyncio.sleep(TELL_PAUSE_S)
        finally:
            self._task = None


def _place(last_event_id: str) -> tuple[int, int | None]:
    """Return seq and incarnation, which is 0 where the service knows of none."""
    seq, _, incarnation = last_event_id.partition(".")
    try:
        return int(seq), int(incarnation or 0) or None
    except ValueError:
        raise InvalidInputError(
            f"Last-Event-ID is not one that a tail sent: {last_event_id!r}."
        ) from None
