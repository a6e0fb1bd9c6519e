"""HTTP servers for tests: the real application behind a real socket on 127.0.0.1."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Mount

from servers import free_port
from threadline.server.app import create_app
from threadline.server.paths import EncodedPath
from threadline.server.process import server
from threadline.service import BaseSessionService

plain = httpx.Client(verify=False)
"""A client that reads no certificates: there are none to check, and it takes a while."""


class Host:
    """One server on a thread, under this process's clock, with an application for each test.

    Ending a server takes a moment, and hundreds of tests want one.
    """

    def __init__(self) -> None:
        self.mounts: list[BaseRoute] = []
        app = Starlette(middleware=[Middleware(EncodedPath)])
        app.router.routes = self.mounts
        app.state.tails = self  # what a server of ours closes first
        self.server = server(app)
        self.server.config.host, self.server.config.port = "127.0.0.1", free_port()
        self.url = f"http://127.0.0.1:{self.server.config.port}"
        self.count = itertools.count()
        threading.Thread(target=self.server.run, daemon=True).start()
        wait_until(lambda: self.server.started)

    def close(self) -> None:
        """Do nothing: there are no tails here."""


@functools.cache
def host() -> Host:
    """Return the process's host."""
    return Host()


@contextlib.contextmanager
def served(service: BaseSessionService, **options: Any) -> Iterator[str]:
    """Serve a service until the block ends; yield the URL."""
    name = f"/{next(host().count)}"
    mount = Mount(name, create_app(service, **options))
    host().mounts.append(mount)
    try:
        yield host().url + name
    finally:
        host().mounts.remove(mount)
        asyncio.run(service.close())


class Command:
    """`threadline serve` as a process of its own."""

    def __init__(self, db: str, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # A file: a pipe that nobody empties stops the server, after some thousand audit lines.
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed at the end
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *self.program(db, options)],
            stderr=self.log,
            start_new_session=True,  # its workers die with it
        )

    def program(self, db: str, options: Sequence[str]) -> list[str]:
        """Return what Python runs."""
        port = str(self.port)
        return ["-m", "threadline.cli", "serve", "--db", db, "--port", port, *options]

    def wait(self) -> None:
        """Wait until it answers."""

        def answers() -> bool:
            assert self.process.poll() is None, self.written()
            try:
                # Not kept: it would be there when the server is not any more.
                answer = plain.get(f"{self.url}/readyz", headers={"connection": "close"})
            except httpx.TransportError:
                return False
            return answer.status_code == 200

        wait_until(answers)

    def kill(self) -> None:
        """End it and its workers at once, as a power cut would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()

    def end(self) -> tuple[int, str]:
        """End it gracefully; return its exit code and what it wrote."""
        self.process.terminate()
        code, written = self.process.wait(timeout=30), self.written()
        self.log.close()
        return code, written

    def written(self) -> str:
        """Return what it has written."""
        self.log.seek(0)
        return self.log.read()


@contextlib.contextmanager
def command(db: str, *options: str) -> Iterator[Command]:
    """Run `threadline serve` until the block ends."""
    running = Command(db, *options)
    try:
        running.wait()
        yield running
    finally:
        if running.process.poll() is None:
            running.kill()


def wait_until(is_so: Any, seconds: float = 20.0) -> None:
    """Wait for something that takes a moment, or fail."""
    give_up = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < give_up, "it took too long"
        time.sleep(0.02)


def path(*ids: str) -> str:
    """Return ids as they stand in a path, each of their bytes encoded."""
    return "/".join(re.sub("..", r"%\g<0>", id.encode().hex()) for id in ids)
