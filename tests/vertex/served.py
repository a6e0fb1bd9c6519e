"""Serve a database as `threadline serve` would, to tests that are real clients.

    python -m tests.vertex.served sqlite:////tmp/x/sessions.db

prints the port and serves until its standard input is closed.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware

from threadline import BaseSessionService, DatabaseSessionService
from threadline.server import adk_routes, vertex_routes
from threadline.server.access import GRANT, Grant
from threadline.server.paths import EncodedPath


class Granted:
    """Say whose every request is."""

    def __init__(self, app, grant=Grant("everybody", writes=True)):
        self._app, self._grant = app, grant

    async def __call__(self, scope, receive, send):
        await self._app({**scope, GRANT: self._grant}, receive, send)


def application(service: BaseSessionService, grant: Grant = Grant("everybody", writes=True)):
    """Return the routes as an application, all of whose requests have one grant."""
    return Starlette(
        routes=[*vertex_routes.routes(service), *adk_routes.routes(service)],
        middleware=[Middleware(EncodedPath), Middleware(Granted, grant=grant)],
    )


async def main(url: str) -> None:
    async with DatabaseSessionService(url) as service:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(application(service), log_level="warning"))
        print(listener.getsockname()[1], flush=True)

        async def stop() -> None:
            await asyncio.to_thread(sys.stdin.read)
            server.should_exit = True

        await asyncio.gather(server.serve(sockets=[listener]), stop())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
