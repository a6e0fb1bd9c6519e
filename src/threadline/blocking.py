"""A private event loop on a thread of its own, for callers that block."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from threadline.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


class _LoopThread:
    """The process's one loop thread, begun at the first call and again after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="threadline-blocking", daemon=True
                )
                self._pid = os.getpid()
                self._thread.start()
            if threading.current_thread() is self._thread:
                raise InvalidInputError(
                    "A blocking call was made on threadline's own event loop, which would wait "
                    "for itself. Inside of an agent, await the async service."
                )
            return self._loop


_thread = _LoopThread()


def start(
    work: Coroutine[Any, Any, T],
) -> tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]:
    """Make a task of a coroutine on the loop thread; return the loop and the task."""

    async def begin() -> asyncio.Task[T]:
        return asyncio.get_running_loop().create_task(work)

    return _thread.loop(), call(begin())


def call(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop thread and wait for its result."""
    try:
        loop = _thread.loop()
    except InvalidInputError:
        work.close()
        raise
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        raise
