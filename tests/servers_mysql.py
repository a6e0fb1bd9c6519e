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
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import asyncmy
import pytest


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
    if shutil.which("mariadbd") and shutil.which("mariadb-install-db"):
        return start()
    missing = (
        "mysql: no server at THREADLINE_TEST_MYSQL_URL or 127.0.0.1:3306, and no mariadbd to start "
        "one (apt install mariadb-server)"
    )
    if "mysql" in os.environ.get("THREADLINE_REQUIRE_ENGINES", ""):
        pytest.fail(missing)
    pytest.skip(missing)


def start() -> Server:
    """Start a private MariaDB in a temporary folder; it ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="threadline-mariadb-", dir="/var/tmp"))
    owner = pwd.getpwuid(os.getuid()).pw_name
    if os.getuid() == 0:  # the server refuses root
        owner = "mysql"
    (folder / "tmp").mkdir()
    for path in (folder, folder / "tmp"):
        path.chmod(0o755)
        if os.getuid() == 0:
            shutil.chown(path, owner)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = ["--no-defaults", f"--user={owner}", f"--datadir={folder}/data"]
    common.append(f"--tmpdir={folder}/tmp")
    environment = {**os.environ, "TMPDIR": f"{folder}/tmp"}
    subprocess.run(
        ["mariadb-install-db", *common, "--auth-root-authentication-method=normal"],
        check=True,
        capture_output=True,
        env=environment,
    )
    process = subprocess.Popen(
        [
            "mariadbd",
            *common,
            f"--port={port}",
            "--bind-address=127.0.0.1",
            f"--socket={folder}/s",
            f"--pid-file={folder}/pid",
            f"--log-error={folder}/log",
            "--skip-name-resolve",
        ],
        env=environment,
    )

    def stop() -> None:
        process.terminate()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    found = Server("127.0.0.1", port, "root", "")
    for _ in range(600):
        with contextlib.suppress(asyncmy.errors.Error):
            found.run("SELECT 1")
            return found
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError((folder / "log").read_text())


@contextlib.contextmanager
def database(options: str = "") -> Iterator[str]:
    """Yield the name of a new database, and drop it afterwards."""
    name = f"threadline_test_{uuid.uuid4().hex[:12]}"
    server().run(f"CREATE DATABASE {name} {options}")
    try:
        yield name
    finally:
        server().run(f"DROP DATABASE {name}")
