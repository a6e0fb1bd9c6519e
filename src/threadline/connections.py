"""HTTP connections, kept open between calls: a pool for each event loop that makes calls."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING

from threadline.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

KEEP_IDLE_S = 30.0
"""How long an idle connection is kept; less than the server keeps it, which closes them at 75."""


class Connections:
    """The connections of one service; `extra` is what brings httpx to those who lack it."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout_s: float, extra: str) -> None:
        self._url = url
        self._headers = dict(headers)
        self._timeout_s = timeout_s
        self._extra = extra
        # A connection belongs to the event loop that made it.
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = (
            weakref.WeakKeyDictionary()
        )

    def client(self) -> httpx.AsyncClient:
        """Return the running loop's client, made when it is first asked for."""
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            try:
                import httpx
            except ModuleNotFoundError as error:
                raise MissingExtraError(
                    f"This service needs httpx: pip install 'threadline[{self._extra}]'"
                ) from error
            client = self._clients[loop] = httpx.AsyncClient(
                headers=self._headers,
                timeout=self._timeout_s,
                # Reading the certificates takes longer than many a call.
                verify=self._url.startswith("https:"),
                limits=httpx.Limits(keepalive_expiry=KEEP_IDLE_S),
            )
        return client

    async def close(self) -> None:
        """Let go of the running loop's connections; the next call makes new ones."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()
