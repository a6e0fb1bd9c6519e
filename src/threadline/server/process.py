"""Running the application: sockets, worker processes, and an end at which nothing is lost."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec

from threadline.connect import is_private
from threadline.errors import InvalidInputError, MissingExtraError
from threadline.server import adk_ui
from threadline.server.app import BODY_BYTES_MAX, create_app
from threadline.server.auth import KeyFile, is_loopback
from threadline.store import DatabaseSessionService

try:
    import uvicorn
except ModuleNotFoundError as error:
    raise MissingExtraError("Serving needs uvicorn: pip install 'threadline[server]'") from error

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from threadline.server.vertex_grpc import Listener

log = logging.getLogger("threadline.server")

KEEP_IDLE_S = 75
"""Longer than clients keep an idle connection: none is closed as a request comes in."""
RESTART_PAUSE_S = 1.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a server is started with."""

    db: str
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    keys: str | None = None
    cors_origins: tuple[str, ...] = ()
    body_bytes_max: int = BODY_BYTES_MAX
    with_adk_ui: bool = False
    drain_s: int = 30
    grpc_port: int | None = None

    def check(self) -> None:
        """Raise what stands against serving."""
        if self.keys is None and not is_loopback(self.host):
            raise InvalidInputError(
                f"Whoever reaches {self.host} could read every conversation: name a file of keys "
                "with --keys (`threadline keys create` makes one), or serve 127.0.0.1."
            )
        if self.keys is not None:
            KeyFile(self.keys).all()
        if self.workers > 1 and is_private(self.db):
            raise InvalidInputError(
                f"{self.workers} workers would each have sessions of their own in memory: serve a "
                "database, or with one worker."
            )
        if self.with_adk_ui:
            adk_ui.folder()
        if self.grpc_port is not None:
            # The workers share this port, and would share it with another server as well.
            _listen(self.host, self.grpc_port).close()
            import threadline.server.vertex_grpc  # noqa: F401 - or say which extra is missing


class Server(uvicorn.Server):
    """uvicorn's server, which ends the tails before it waits for what is under way."""

    def __init__(self, config: uvicorn.Config, calls: Listener | None = None) -> None:
        super().__init__(config)
        self._calls = calls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the service and take requests, of gRPC as well if there is a listener for it."""
        await super().startup(sockets)
        if self._calls is not None and self.started:
            await self._calls.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, answer every request that was accepted, then end."""
        app: Any = self.config.loaded_app
        app.state.tails.close()
        if self._calls is not None and self.started:
            ending = asyncio.create_task(self._calls.stop(self.config.timeout_graceful_shutdown))
            # uvicorn waits for these before it closes the service.
            self.server_state.tasks.add(ending)
            ending.add_done_callback(self.server_state.tasks.discard)
        await super().shutdown(sockets)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    settings.check()
    asyncio.run(_prepare(settings))
    listener = _listen(settings.host, settings.port)
    log.info("Serving on http://%s:%d", *listener.getsockname()[:2])
    if settings.with_adk_ui:
        log.info("ADK's web UI is at %s/", adk_ui.PATH)
    if settings.grpc_port is not None:
        log.info("Serving gRPC on %s, port %d", settings.host, settings.grpc_port)
    if settings.workers == 1:
        _work(settings, listener)
    else:
        _supervise(settings, listener)


def server(app: Starlette, *, drain_s: int = 30, calls: Listener | None = None) -> Server:
    """Return a server of an application."""
    return Server(
        uvicorn.Config(
            app,
            # Its access log would have the query, and so a key.
            access_log=False,
            log_config=None,
            proxy_headers=False,
            lifespan="on",
            server_header=False,
            timeout_keep_alive=KEEP_IDLE_S,
            timeout_graceful_shutdown=drain_s,
        ),
        calls,
    )


async def _prepare(settings: Settings) -> None:
    """Make or upgrade the tables before there are workers, or raise what stands against it."""
    async with DatabaseSessionService(settings.db):
        pass


def _work(settings: Settings, listener: socket.socket) -> None:
    service = DatabaseSessionService(settings.db)
    keys = None if settings.keys is None else KeyFile(settings.keys)
    app = create_app(
        service,
        keys=keys,
        cors_origins=settings.cors_origins,
        body_bytes_max=settings.body_bytes_max,
        with_adk_ui=settings.with_adk_ui,
    )
    calls = None
    if settings.grpc_port is not None:
        from threadline.server.vertex_grpc import Listener

        calls = Listener(
            app, settings.host, settings.grpc_port, body_bytes_max=settings.body_bytes_max
        )
    running = server(app, drain_s=settings.drain_s, calls=calls)

    def end(*_: object) -> None:
        running.should_exit = True

    # uvicorn listens a moment later, and raises the signal again when it has ended gracefully:
    # what comes before must not be lost, and what comes after is no failure.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, end)
    running.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InvalidInputError(f"Cannot listen on {host}:{port}: {error}") from error
    listener.listen(2048)
    listener.set_inheritable(True)
    return listener


# -- several processes ------------------------------------------------------------------


def _supervise(settings: Settings, listener: socket.socket) -> None:
    """Keep the workers running; end them all, gracefully, when told to."""
    context = multiprocessing.get_context("spawn")
    is_ending = False

    def end(*_: object) -> None:
        nonlocal is_ending
        is_ending = True

    def begin() -> Any:
        worker = context.Process(target=_worker, args=(settings, listener))
        worker.start()
        return worker

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, end)
    workers = [begin() for _ in range(settings.workers)]
    while not is_ending:
        time.sleep(0.1)
        for number, worker in enumerate(workers):
            if not worker.is_alive() and not is_ending:
                log.error("A worker ended with %s; another one takes its place.", worker.exitcode)
                time.sleep(RESTART_PAUSE_S)
                workers[number] = begin()
    listener.close()
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join()


def _worker(settings: Settings, listener: socket.socket) -> None:
    set_up_logging()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _work(settings, listener)


def _end_with_parent() -> None:
    """End gracefully when the process that would tell us to is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def set_up_logging() -> None:
    """Write one line for each message to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name in ("threadline", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO if name == "threadline" else logging.WARNING)
        logger.propagate = False
