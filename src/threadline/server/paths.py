"""Ids in paths: percent-encoded, so that any id can be a path segment.

`{name:id}` in a route's path matches one segment and gives the handler the id decoded. The
application routes by the path as it was sent (`EncodedPath`), where `%2F` is not a slash yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from starlette.convertors import Convertor, register_url_convertor

from threadline.wire import segment

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class IdConvertor(Convertor[str]):
    """Decode one path segment; bytes that are not UTF-8 become what no engine takes as an id."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        """Return the id in a segment."""
        return unquote(value, errors="surrogateescape")

    def to_string(self, value: str) -> str:
        """Return the segment that stands for an id."""
        return segment(value)


register_url_convertor("id", IdConvertor())


class EncodedPath:
    """Route by the path as it was sent; the server has decoded it, and `%2F` is lost there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path")
        if raw and scope["type"] == "http":
            root = quote(scope.get("root_path", ""))
            path = raw.partition(b"?")[0].decode("latin-1")
            scope = {**scope, "path": path, "root_path": root}
        await self._app(scope, receive, send)
