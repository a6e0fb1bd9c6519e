"""What lies around the routes: limits, compression, the audit log, the numbers."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware, IdentityResponder

from threadline.errors import RequestTooLargeError
from threadline.server.access import ACCESS, Access

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from threadline.server.metrics import Metrics

audit = logging.getLogger("threadline.audit")

COMPRESSED_BYTES_MIN = 1024
GZIP_LEVEL = 1
"""Conversations shrink to a third at any level; the others only take longer."""


class BodyLimit:
    """Refuse a body that is too large, as soon as that is known, or one that is compressed."""

    def __init__(self, app: ASGIApp, bytes_max: int) -> None:
        self._app = app
        self._bytes_max = bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length, received = headers.get("content-length", "0"), 0
        is_refused = length.isdigit() and int(length) > self._bytes_max

        async def limited() -> Message:
            nonlocal received
            message: Message = {} if is_refused else await receive()
            received += len(message.get("body", b""))
            if received and headers.get("content-encoding", "identity") != "identity":
                raise HTTPException(415, "A request's body must not be compressed.")
            if is_refused or received > self._bytes_max:
                raise RequestTooLargeError(
                    f"A request may have {self._bytes_max:,} bytes. Send fewer events at once."
                )
            return message

        await self._app(scope, limited, send)


class Compression(GZipMiddleware):
    """Compress answers as the client likes: zstd if it takes it and the library is there."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, COMPRESSED_BYTES_MIN, GZIP_LEVEL)
        try:
            import zstandard
        except ModuleNotFoundError:
            self._zstd: Any = None
        else:
            self._zstd = zstandard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and self._zstd is not None
            and "zstd" in Headers(scope=scope).get("accept-encoding", "")
        ):
            await _Zstd(self.app, self._zstd)(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class _Zstd(IdentityResponder):
    content_encoding = "zstd"

    def __init__(self, app: ASGIApp, zstandard: Any) -> None:
        super().__init__(app, COMPRESSED_BYTES_MIN)
        self._compressor = zstandard.ZstdCompressor(level=1).compressobj()
        self._flush_block = zstandard.COMPRESSOBJ_FLUSH_BLOCK

    async def apply_compression(self, body: bytes, *, more_body: bool) -> bytes:
        """Compress the next piece; a reader can have all of it before the next one comes."""
        piece: bytes = self._compressor.compress(body)
        rest: bytes = self._compressor.flush(*([self._flush_block] if more_body else []))
        return piece + rest


class Observation:
    """Count every request, write the audit line of a write, and find handlers that forgot to ask.

    An audit line is one JSON object: the key's id, app, user, method, path, status. The path is
    as it was sent, percent-encoded and without the query, which may hold a key.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, begun = 500, time.perf_counter()

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                if message["status"] < 300 and ACCESS not in scope and "endpoint" in scope:
                    raise RuntimeError(f"The route {scope['path']} did not call `authorize`.")
                status = message["status"]
            await send(message)

        self._metrics.in_flight += 1
        try:
            await self._app(scope, receive, observed)
        finally:
            self._metrics.in_flight -= 1
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path", "")
            self._metrics.observe(scope["method"], route, status, seconds)
            access: Access | None = scope.get(ACCESS)
            if access is not None and access.write:
                audit.info(_line(scope, access, status))


def _line(scope: Scope, access: Access, status: int) -> str:
    return json.dumps(
        {
            "key": access.grant.name,
            "app": access.app,
            "user": access.user,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
        }
    )
