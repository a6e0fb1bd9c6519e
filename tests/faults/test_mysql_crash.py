"""A MariaDB that crashes under load, by kill -9 and by a power cut; its clients go on.

Two processes write, six tasks each, and none of them is started anew or told of anything.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from servers_mysql import Private, check_installed, private

from .children import Child, running
from .disks import DiskUnavailableError, LoopDisk, loop_disk, unavailable
from .evidence import survey

WRITERS = 2
LIFE_S_MAX = 0.5
SOAK_KILLS = int(os.environ.get("THREADLINE_SOAK_KILLS", "10"))
POWER_CUTS = 8
DISK_MIB = 320  # the server's own files take half of it


def writers_of(stack: ExitStack, url: str, **more: Any) -> list[Child]:
    """Start the processes that write, and wait until all of them do."""
    # No patches: whether one was committed as its connection died, its caller cannot know.
    job = {"url": url, "seed": 1, "patches": False, **more}
    writers = [
        stack.enter_context(running("writer.py", {**job, "generation": number}))
        for number in range(WRITERS)
    ]
    for writer in writers:
        writer.wait_for(20)
    return writers


def crash(server: Private, writers: list[Child], how: Callable[[], None]) -> float:
    """Let the server crash and start again; return the seconds until every writer goes on."""
    how()
    before = [len(writer.lines) for writer in writers]
    server.start()
    start = time.perf_counter()
    for writer, count in zip(writers, before, strict=True):
        writer.wait_for(count + 20)  # a few may have been on their way
    return time.perf_counter() - start


def ended(writers: list[Child]) -> list[dict[str, Any]]:
    """End the processes and return all that they said."""
    for writer in writers:
        assert writer.kill() == -9, writer.errors()
        assert writer.errors() == ""
    return [line for writer in writers for line in writer.lines]


def check(url: str, said: list[dict[str, Any]]) -> int:
    """Hold the database to what was acknowledged; return how much that was."""
    found = asyncio.run(survey(url, said))
    found.check_nothing_lost()
    assert found.acknowledged
    return found.acknowledged


@pytest.mark.parametrize("kills", [1, pytest.param(SOAK_KILLS, marks=pytest.mark.soak)])
def test_kill_9_of_the_server_loses_nothing_and_its_clients_go_on(
    kills: int, report: Callable[[str], None]
) -> None:
    server, rng = private(), random.Random("kill")
    server.server.run("CREATE OR REPLACE DATABASE killed")
    url = server.server.url("killed")
    waits = []
    with ExitStack() as stack:
        writers = writers_of(stack, url)
        for _ in range(kills):
            time.sleep(rng.uniform(0, LIFE_S_MAX))
            waits.append(crash(server, writers, server.kill))
        acknowledged = check(url, ended(writers))
    report(
        f"kill -9 of MariaDB: {kills} kills under {WRITERS} processes, {acknowledged} events "
        f"acknowledged, 0 lost; all wrote again at most {max(waits):.2f} s after its restart"
    )


@pytest.fixture
def disk(open_path: Path) -> Iterator[LoopDisk]:
    """Give a disk whose power can be cut, or skip the test by name."""
    with ExitStack() as stack:
        try:
            ready = stack.enter_context(loop_disk(open_path, size_mib=DISK_MIB))
        except DiskUnavailableError as error:
            unavailable("power cut of MariaDB on a loop device", error)
        yield ready


@pytest.fixture
def new_server(disk: LoopDisk) -> Iterator[Callable[..., Private]]:
    """Start servers whose data is on the disk."""
    check_installed()
    with ExitStack() as stack:

        def new(*options: str) -> Private:
            server = Private(*options, parent=disk.folder)
            stack.callback(server.remove)
            server.start()
            server.server.run("CREATE DATABASE agents")
            return server

        yield new


def cut_power(server: Private, disk: LoopDisk) -> None:
    """Take the power from a server and its disk; both come back without what was not synced."""
    # The filesystem's death would leave the server alive, and let some syncs return success.
    server.freeze()
    disk.cut_power()
    server.kill()
    disk.restore_power()


@pytest.mark.soak
def test_a_power_cut_of_a_server_that_flushes_at_commit_loses_nothing(
    disk: LoopDisk, new_server: Callable[..., Private], report: Callable[[str], None]
) -> None:
    server, rng = new_server("--innodb-flush-log-at-trx-commit=1"), random.Random("power")
    url = server.server.url("agents")
    with ExitStack() as stack:
        writers = writers_of(stack, url)
        for _ in range(POWER_CUTS):
            time.sleep(rng.uniform(0, LIFE_S_MAX))
            crash(server, writers, lambda: cut_power(server, disk))
        acknowledged = check(url, ended(writers))
    report(
        f"power cut of MariaDB ({disk.filesystem}), innodb_flush_log_at_trx_commit=1: "
        f"{POWER_CUTS} cuts, {acknowledged} events acknowledged, 0 lost"
    )


@pytest.mark.soak
@pytest.mark.parametrize("setting", [2, 0])
def test_a_power_cut_of_a_server_that_flushes_each_second_leaves_a_prefix(
    disk: LoopDisk, setting: int, new_server: Callable[..., Private], report: Callable[[str], None]
) -> None:
    server = new_server(f"--innodb-flush-log-at-trx-commit={setting}")
    url = server.server.url("agents")
    with ExitStack() as stack:
        writers = writers_of(stack, url)
        time.sleep(2.5)
        server.freeze()
        said = ended(writers)  # their handles would be ahead of what is left
        cut_power(server, disk)
        server.start()
    found = asyncio.run(survey(url, said))  # raises for anything but a lost tail
    report(
        f"power cut of MariaDB ({disk.filesystem}), innodb_flush_log_at_trx_commit={setting}: "
        f"{found.acknowledged} events acknowledged, {len(found.lost)} lost"
    )
