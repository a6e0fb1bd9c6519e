"""Power cuts of a PostgreSQL server, under clients that go on."""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
from collections.abc import Callable

import pytest

import servers

from .children import running
from .disks import LoopDisk
from .evidence import survey
from .load import write_through
from .postgres_server import PostgresServer, check_indexes, postgres_server

LIFE_S_MAX = 1.5
CUTS = 3

pytestmark = [pytest.mark.soak, pytest.mark.parametrize("disk", [512], indirect=True)]


def sync(disk: LoopDisk) -> None:
    """Make an empty server safe, which is not done when it is made for a test."""
    subprocess.run(["sync", "-f", disk.folder], check=True)


def cut_power(server: PostgresServer, disk: LoopDisk) -> None:
    """Cut the power of a server and its disk at one moment."""
    # Unlike a power cut, the filesystem's death leaves the processes alive, and ext4 lets some
    # syncs that are under way return success. Nothing may be answered after it.
    server.freeze()
    disk.cut_power()
    server.kill()
    disk.restore_power()


def test_full_durability_loses_nothing_in_a_power_cut_of_the_server(
    disk: LoopDisk, report: Callable[[str], None]
) -> None:
    with postgres_server(parent=disk.folder) as server:
        sync(disk)

        def fail() -> None:
            cut_power(server, disk)
            server.start()

        load = write_through(server.url, CUTS, fail)
        found = asyncio.run(survey(server.url, load.said))
        found.check_nothing_lost()
        check_indexes(server.url)
    report(
        f"power cut of PostgreSQL ({disk.filesystem}), full: {CUTS} cuts, {found.acknowledged} "
        f"events acknowledged, 0 lost, {load.silence_s:.1f} s at most without an acknowledgement"
    )


def test_normal_durability_loses_only_the_newest_commits_in_a_power_cut_of_the_server(
    disk: LoopDisk, report: Callable[[str], None]
) -> None:
    rng = random.Random("normal")
    results = []
    with postgres_server(parent=disk.folder) as server:
        sync(disk)
        for _ in range(CUTS):
            # A database of its own: after a loss, old numbers are given to new events.
            with servers.new_database(server.url) as url:
                job = {"url": url, "durability": "normal", "seed": 1, "generation": 0}
                with running("writer.py", job) as writer:
                    writer.wait_for(2)
                    time.sleep(rng.uniform(0, LIFE_S_MAX))
                    cut_power(server, disk)
                    writer.kill()
                    assert writer.errors() == ""
                server.start()
                found = asyncio.run(survey(url, writer.lines))
                check_indexes(url)
                results.append((found.acknowledged, len(found.lost)))
    report(
        f"power cut of PostgreSQL ({disk.filesystem}), normal: "
        + ", ".join(f"{lost} of {acknowledged}" for acknowledged, lost in results)
        + " acknowledged events lost"
    )
