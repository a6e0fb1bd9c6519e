"""The live tail of a session, as server-sent events.

It reads a page and sends it before it reads the next, so a slow reader costs one page of memory;
one that takes nothing for `send_timeout_s` is cut off and may go on from its last event.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from threadline import wire
from threadline.errors import SessionNotFoundError, ThreadlineError
from threadline.models import GetSessionConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

    from threadline.engines.base import Head, SessionKey
    from threadline.models import ListEventsResponse
    from threadline.server.tails import Tails

PAGE = 50


class Tail(Response):
    """An answer that goes on until its reader, the session or the server is gone."""

    def __init__(self, tails: Tails, key: SessionKey, seq: int, incarnation: int | None) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self.tails = tails
        self.key = key
        self.wake = asyncio.Event()
        self._ids: Any = {"app_name": key.app, "user_id": key.user, "session_id": key.id}
        self._seq = seq
        self._incarnation = incarnation
        self._is_read = True
        self._sent_at = 0.0

    def is_behind(self, head: Head | None) -> bool:
        """Tell whether there is something to send: events, or that the session is gone."""
        return head is None or head.incarnation != self._incarnation or head.revision > self._seq

    async def check(self) -> None:
        """Raise SessionNotFoundError unless the session, and no successor of it, is there."""
        config = GetSessionConfig(num_recent_events=0)
        found = await self.tails.service.get_session(**self._ids, config=config)
        if found is None:
            raise self._gone()
        self._check_incarnation(found.incarnation)
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
                self._sent_at = asyncio.get_running_loop().time()
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
        yield b": open\n\n"
        try:
            while self._is_read and not self.tails.is_closing:
                # Cleared before the read: whoever wakes it later has news that this may lack.
                self.wake.clear()
                page = await self._page()
                for event in wire.bodies(page.events):
                    self._seq = wire.row(event)[0]
                    yield b"id: %d.%d\ndata: %b\n\n" % (
                        self._seq, self._incarnation or 0, bytes(event),
                    )  # fmt: skip
                while not page.has_more and not await self._is_woken():
                    if page.incarnation is None:
                        await self.check()
                    yield b": still here\n\n"
        except ThreadlineError as error:
            yield b"event: error\ndata: %b\n\n" % wire.error_body(error)

    async def _page(self) -> ListEventsResponse:
        """Read what comes next, of this session and no successor."""
        page = await self.tails.service.list_events(**self._ids, after_seq=self._seq, limit=PAGE)
        self._check_incarnation(page.incarnation)
        return page

    async def _is_woken(self) -> bool:
        """Wait for something to look for; return False when the reader is to hear a heartbeat."""
        try:
            async with asyncio.timeout_at(self._sent_at + self.tails.heartbeat_s):
                await self.wake.wait()
        except TimeoutError:
            return False
        return True

    def _check_incarnation(self, found: int | None) -> None:
        if None not in (found, self._incarnation) and found != self._incarnation:
            raise self._gone()

    def _gone(self) -> SessionNotFoundError:
        return SessionNotFoundError(f"The session {self.key.id!r} does not exist any more.")
