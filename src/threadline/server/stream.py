"""The live tail of a session, as server-sent events.

A tail reads the store: at once when this process has appended to the session, else every
`poll_s`, as other processes append too. It reads a page and sends it before it reads the next, so
a slow reader costs one page of memory; one that takes nothing for `send_timeout_s` is cut off and
may go on from its last event.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import Response

from threadline import wire
from threadline.errors import InvalidInputError, SessionNotFoundError, ThreadlineError
from threadline.models import GetSessionConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

    from threadline.server.heads import Ids
    from threadline.service import BaseSessionService

POLL_S = 0.5
HEARTBEAT_S = 15.0
SEND_TIMEOUT_S = 30.0
PAGE = 50


class Tails:
    """The tails of one process: woken by its appends, ended by its shutdown."""

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
        self._open: dict[Ids, set[Tail]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._open.values()))

    async def open(self, ids: Ids, after_seq: int | None, last_event_id: str | None) -> Tail:
        """Return a tail from after an event on: the one last seen, else the one given."""
        seq, incarnation = after_seq or 0, None
        if last_event_id:
            seq, incarnation = _place(last_event_id)
        tail = Tail(self, ids, seq, incarnation)
        await tail.check()
        return tail

    def wake(self, ids: Ids) -> None:
        """Let the tails of a session look at once."""
        for tail in self._open.get(ids, ()):
            tail.wake.set()

    def close(self) -> None:
        """End every tail; its reader may go on elsewhere from its last event."""
        self.is_closing = True
        for ids in list(self._open):
            self.wake(ids)

    def add(self, tail: Tail) -> None:
        """Count a tail in and wake it from now on."""
        self._open.setdefault(tail.ids, set()).add(tail)

    def remove(self, tail: Tail) -> None:
        """Forget a tail."""
        tails = self._open.get(tail.ids, set())
        tails.discard(tail)
        if not tails:
            self._open.pop(tail.ids, None)


class Tail(Response):
    """An answer that goes on until its reader, the session or the server is gone."""

    def __init__(self, tails: Tails, ids: Ids, seq: int, incarnation: int | None) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self.tails = tails
        self.ids = ids
        self.wake = asyncio.Event()
        self._seq = seq
        self._incarnation = incarnation
        self._is_read = True

    async def check(self) -> None:
        """Raise SessionNotFoundError unless the session, and no successor of it, is there."""
        app, user, session = self.ids
        found = await self.tails.service.get_session(
            app_name=app,
            user_id=user,
            session_id=session,
            config=GetSessionConfig(num_recent_events=0),
        )
        if found is None or self._incarnation not in (None, found.incarnation):
            raise SessionNotFoundError(f"The session {session!r} does not exist any more.")
        self._incarnation = found.incarnation

    async def __call__(
        self,
        scope: Scope,  # noqa: ARG002 - the request was read
        receive: Receive,
        send: Send,
    ) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        listener = asyncio.create_task(self._listen(receive))
        self.tails.add(self)
        try:
            async for frame in self._frames():
                async with asyncio.timeout(self.tails.send_timeout_s):
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
            if self._is_read:
                await send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            pass  # the reader takes nothing; the server closes the connection of half an answer
        finally:
            self.tails.remove(self)
            listener.cancel()

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._is_read = False
        self.wake.set()

    async def _frames(self) -> AsyncIterator[bytes]:
        app, user, session = self.ids
        quiet_s = 0.0
        yield b": open\n\n"
        try:
            while self._is_read and not self.tails.is_closing:
                self.wake.clear()
                page = await self.tails.service.list_events(
                    app_name=app,
                    user_id=user,
                    session_id=session,
                    after_seq=self._seq,
                    limit=PAGE,
                )
                for event in wire.bodies(page.events):
                    self._seq = wire.row(event)[0]
                    quiet_s = 0.0
                    yield b"id: %d.%d\ndata: %b\n\n" % (
                        self._seq, self._incarnation or 0, bytes(event),
                    )  # fmt: skip
                if page.has_more:
                    continue
                if quiet_s >= self.tails.heartbeat_s:
                    quiet_s = 0.0
                    await self.check()
                    yield b": still here\n\n"
                quiet_s += self.tails.poll_s
                try:
                    async with asyncio.timeout(self.tails.poll_s):
                        await self.wake.wait()
                except TimeoutError:
                    pass
        except ThreadlineError as error:
            yield b"event: error\ndata: %b\n\n" % wire.error_body(error)


def _place(last_event_id: str) -> tuple[int, int | None]:
    seq, _, incarnation = last_event_id.partition(".")
    try:
        return int(seq), int(incarnation) if incarnation else None
    except ValueError:
        raise InvalidInputError(
            f"Last-Event-ID is not one that a tail sent: {last_event_id!r}."
        ) from None
