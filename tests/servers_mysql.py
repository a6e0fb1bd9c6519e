"""Find a MySQL or MariaDB server for the tests, or start one, or say why there is none.

`THREADLINE_TEST_MYSQL_URL` names one (mysql://user:password@host:port/ of a user who may create
databases); else the default port of this machine is tried; else a private server is started
from installed binaries. With `mysql` in `THREADLINE_REQUIRE_ENGINES` a skip is a failure.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import asyncmy

from servers import free_port, missing


class Server(NamedTuple):
    """Where a server is and who may create databases there."""

    host: str
    port: int
    user: str
    password: str

    def url(self, database: str, options: str = "") -> str:
        """Return the URL of one of its databases."""
        return f"mysql://{self.user}:{self.password}@{self.host}:{self.port}/{database}{options}"

    def run(self, *statements: str, database: str | None = None) -> list[tuple]:
        """Run statements as the administrator; return the rows of the last."""

        async def run() -> list[tuple]:
            db = await self.connect(database)
            try:
                async with db.cursor() as cursor:
                    for statement in statements:
                        await cursor.execute(statement)
                    return list(await cursor.fetchall()) if cursor.description else []
            finally:
                await db.ensure_closed()

        return asyncio.run(run())

    async def connect(self, database: str | None = None) -> asyncmy.Connection:
        """Return a connection of the administrator's."""
        return await asyncmy.connect(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            database=database,
            autocommit=True,
        )


@functools.cache
def server() -> Server:
    """Return the server, or skip the test by name."""
    if url := os.environ.get("THREADLINE_TEST_MYSQL_URL"):
        parts = urlsplit(url)
        return Server(
            parts.hostname or "127.0.0.1",
            parts.port or 3306,
            unquote(parts.username or "root"),
            unquote(parts.password or ""),
        )
    here = Server("127.0.0.1", 3306, "root", "")
    with contextlib.suppress(asyncmy.errors.Error):
        here.run("SELECT 1")
        return here
    return private().server


@functools.cache
def private() -> Private:
    """Return a server of our own that ends with this process, or skip the test by name."""
    check_installed()
    found = Private()
    atexit.register(found.remove)
    found.start()
    return found


def check_installed() -> None:
    """Skip the test by name where no server of our own can be started."""
    if not (shutil.which("mariadbd") and shutil.which("mariadb-install-db")):
        missing(
            "mysql",
            "there is no server at THREADLINE_TEST_MYSQL_URL or 127.0.0.1:3306, and no mariadbd "
            "to start one (apt install mariadb-server)",
        )


class Private:
    """A MariaDB in a temporary folder, which can be frozen, killed and started again.

    `options` are the server's own; `parent` is where the folder is made. One that is not
    `initialized` gets its data from the cluster that it joins.
    """

    def __init__(self, *options: str, parent: Path | None = None, initialized: bool = True) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="threadline-mariadb-", dir=parent))
        owner = pwd.getpwuid(os.getuid()).pw_name
        if os.getuid() == 0:  # the server refuses root
            owner = "mysql"
        for path in (self._folder, self._folder / "tmp", self._folder / "data"):
            path.mkdir(exist_ok=True)
            shutil.chown(path, owner)
        self.server = Server("127.0.0.1", free_port(), "root", "")
        self._more = options
        self._options = [
            "--no-defaults",
            f"--user={owner}",
            f"--datadir={self._folder}/data",
            f"--tmpdir={self._folder}/tmp",
        ]
        self._environment = {**os.environ, "TMPDIR": f"{self._folder}/tmp"}
        if initialized:
            subprocess.run(
                ["mariadb-install-db", *self._options, "--auth-root-authentication-method=normal"],
                check=True,
                capture_output=True,
                env=self._environment,
            )

    def start(self, *options: str) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            [
                "mariadbd",
                *self._options,
                f"--port={self.server.port}",
                "--bind-address=127.0.0.1",
                f"--socket={self._folder}/socket",
                f"--pid-file={self._folder}/pid",
                f"--log-error={self._folder}/log",
                "--skip-name-resolve",
                *self._more,
                *options,
            ],
            env=self._environment,
            stderr=subprocess.DEVNULL,  # what it says before it has opened its log
        )
        for _ in range(1200):
            with contextlib.suppress(asyncmy.errors.Error):
                self.server.run("SELECT 1")
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError((self._folder / "log").read_text())

    def freeze(self) -> None:
        """Stop every thread of it where it is; from here on it acknowledges nothing."""
        self._process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self._process.pid}/task")
        while any(_state(task / "stat") not in "TZ" for task in tasks.iterdir()):
            time.sleep(0.001)

    def kill(self) -> None:
        """Kill it as a crash would."""
        self._process.kill()
        self._process.wait()

    def remove(self) -> None:
        """End it and leave nothing behind."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def _state(stat: Path) -> str:
    """Return the kernel's letter for a thread: T is stopped, Z is dead or gone."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


@contextlib.contextmanager
def database(options: str = "") -> Iterator[str]:
    """Yield the name of a new database, and drop it afterwards."""
    name = f"threadline_test_{uuid.uuid4().hex[:12]}"
    server().run(f"CREATE DATABASE {name} {options}")
    try:
        yield name
    finally:
        server().run(f"DROP DATABASE {name}")


def connections(url: str, *, kill: bool = False) -> int:
    """Return how many connections a database has, from outside of it; kill them if asked to."""
    name = urlsplit(url).path[1:]
    found = server().run(f"SELECT id FROM information_schema.processlist WHERE db = '{name}'")
    for (number,) in found if kill else ():
        with contextlib.suppress(asyncmy.errors.Error):  # it has ended by itself
            server().run(f"KILL {number}")
    return len(found)
