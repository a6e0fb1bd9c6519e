"""A proxy before a server: it notes the requests and answers some of them in its own way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

import httpx


class Request(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


class Reply(NamedTuple):
    """An answer; `cut_bytes` of its end are never sent."""

    status: int
    body: bytes
    headers: Mapping[str, str] = MappingProxyType({})
    cut_bytes: int = 0


Forward = Callable[[Request], Reply]
Fault = Callable[[Request, Forward], Reply | None]
"""What becomes of a request; None is a connection that breaks."""


class Proxy:
    """`faults` are used up in their order by the requests that a name is part of."""

    def __init__(self, upstream: str) -> None:
        self.log: list[Request] = []
        self.faults: list[tuple[str, Fault]] = []
        self._client = httpx.Client(timeout=30)
        self._upstream = upstream
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are sent apart

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:
                    self.close_connection = True

            def serve(self) -> None:
                parts = urlsplit(self.path)
                request = Request(
                    self.command,
                    parts.path,
                    dict(parse_qsl(parts.query)),
                    {name.lower(): value for name, value in self.headers.items()},
                    self.rfile.read(int(self.headers.get("content-length", 0))),
                )
                reply = proxy.answer(request)
                if reply is None:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(reply.body)))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body[: len(reply.body) - reply.cut_bytes])
                self.close_connection = bool(reply.cut_bytes)

            do_GET = do_POST = do_PATCH = do_DELETE = serve  # noqa: N815 - http.server's names

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._client.close()

    def answer(self, request: Request) -> Reply | None:
        self.log.append(request)
        line = f"{request.method} {request.path}"
        for place, (name, fault) in enumerate(self.faults):
            if name in line:
                del self.faults[place]
                return fault(request, self.forward)
        return self.forward(request)

    def forward(self, request: Request) -> Reply:
        answer = self._client.request(
            request.method,
            self._upstream + request.path,
            params=request.query,
            content=request.body or None,
            headers={k: v for k, v in request.headers.items() if k in KEPT},
        )
        return Reply(answer.status_code, answer.content)

    def count(self, name: str) -> int:
        """Return how many requests came with a name in their first line."""
        return sum(name in f"{one.method} {one.path}" for one in self.log)


KEPT = ("content-type", "authorization", "x-goog-api-key")


def refusing(status: int, **headers: str) -> Fault:
    """Answer with an error in Google's form, and do nothing."""
    body = {"error": {"code": status, "message": "said so", "status": "SAID_SO"}}
    return lambda *_: Reply(status, json.dumps(body).encode(), headers)


def breaking(request: Request, forward: Forward) -> None:
    """Break the connection before anything is done."""


def losing(request: Request, forward: Forward) -> None:
    """Do it, and break the connection."""
    forward(request)


def failing(request: Request, forward: Forward) -> Reply:
    """Do it, and say that it failed."""
    forward(request)
    return Reply(503, b"<html>no gateway</html>")


def changing(change: Callable[[Any], Any]) -> Fault:
    """Do it, and answer with another body."""

    def fault(request: Request, forward: Forward) -> Reply:
        reply = forward(request)
        return reply._replace(body=json.dumps(change(json.loads(reply.body))).encode())

    return fault


def saying(body: bytes) -> Fault:
    """Answer with a body of one's own."""
    return lambda *_: Reply(200, body)


def cutting(request: Request, forward: Forward) -> Reply:
    """Break the connection in the middle of the answer."""
    reply = forward(request)
    return reply._replace(cut_bytes=len(reply.body) // 2)
