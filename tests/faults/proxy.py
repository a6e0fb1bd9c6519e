"""A network between client and server that loses answers, falls silent, or is slow."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self

PACKETS_S = 0.05  # of an answer in several packets, the last comes after the commit


class Proxy:
    """A TCP proxy before a server: `port` is its own, `lost` counts the answers that it lost."""

    def __init__(self, host: str, port: int) -> None:
        self.lost = 0
        self.delay_s = 0.0
        self.silence = asyncio.Event()
        self._flow = asyncio.Event()
        self._server_at = host, port
        self._is_meant: Callable[[bytes], bool] | None = None
        self._let_through: int | None = None
        self._ends: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None] | None] = set()

    async def __aenter__(self) -> Self:
        self.thaw()
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()
        self.thaw()
        await asyncio.wait(self._tasks)

    def lose_answer_to(self, is_meant: Callable[[bytes], bool], *, let_through: int = 0) -> None:
        """Cut the connection at the answer to the next such request, after so many bytes."""
        self._is_meant, self._let_through = is_meant, let_through

    def freeze_at(self, is_meant: Callable[[bytes], bool]) -> None:
        """Freeze before the next such request has passed."""
        self._is_meant, self._let_through = is_meant, None

    def freeze(self) -> None:
        """Let nothing pass in any direction, not even the end of a connection."""
        self._flow.clear()
        self.silence.set()

    def thaw(self) -> None:
        """Let everything pass again, also what has come meanwhile."""
        self._flow.set()
        self.silence.clear()

    def cut(self) -> None:
        """Break every connection; new ones are let in."""
        for end in self._ends:
            end.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        self._ends.add(writer)
        is_doomed = False

        async def ask() -> None:
            nonlocal is_doomed
            while data := await _read(reader):
                if self._is_meant is not None and self._is_meant(data):
                    self._is_meant = None
                    is_doomed = self._let_through is not None
                    if not is_doomed:
                        self.freeze()
                await self._flow.wait()
                requests.write(data)
            requests.close()

        async def answer() -> None:
            while not is_doomed and (data := await _read(answers)):
                await asyncio.sleep(self.delay_s)
                await self._flow.wait()
                writer.write(data[: self._let_through if is_doomed else None])
            if is_doomed:
                self.lost += 1
                await asyncio.sleep(PACKETS_S)
            await self._flow.wait()
            writer.close()

        await self._flow.wait()
        with contextlib.suppress(OSError):
            answers, requests = await asyncio.open_connection(*self._server_at)
            self._ends.add(requests)
            await asyncio.gather(ask(), answer())
        writer.transport.abort()


async def _read(stream: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(OSError):
        return await stream.read(1 << 16)
    return b""
