"""Power cuts: what was not synced is gone, and nothing acknowledged may be among it.

Two of them. One cuts a real filesystem on a loop device under the real engine in a process of
its own; it needs root. The other replays every statement of the real engine through a file
system in Python that forgets what was not synced; it runs anywhere, and can cut between any
two writes of a commit or a checkpoint, with a random part of the unsynced sectors on the disk.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .children import running
from .disks import LoopDisk, unavailable
from .evidence import Survey, check_integrity, survey
from .writer import SESSIONS, TASKS_PER_SESSION, opened, work_on

LIFE_S_MAX = 0.3
CUTS_PER_FILE = 10


def cut_while_writing(
    disk: LoopDisk, job: dict[str, Any], pause: Callable[[Any], None]
) -> list[dict[str, Any]]:
    """Run a writer, cut the power under it, and return what it had acknowledged."""
    with running("writer.py", job) as writer:
        writer.wait_for(2)
        pause(writer)
        # Unlike a power cut, the filesystem's death leaves the process alive, and ext4 lets some
        # syncs that are under way return success. Nothing may be said after it.
        writer.freeze()
        disk.cut_power()
        writer.kill()
        assert writer.errors() == ""
        said = writer.lines
    disk.restore_power()
    return said


@pytest.mark.parametrize("cuts", [4, pytest.param(40, marks=pytest.mark.soak)])
def test_full_durability_loses_nothing_in_a_power_cut(
    disk: LoopDisk, cuts: int, report: Callable[[str], None]
) -> None:
    rng = random.Random("power")
    acknowledged = 0
    said: list[dict[str, Any]] = []
    path = disk.folder / "full.db"
    for generation in range(cuts):
        if generation % CUTS_PER_FILE == 0:
            path.unlink(missing_ok=True)
            said = []
        job = {"url": f"sqlite:///{path}", "durability": "full", "seed": 1}
        new = cut_while_writing(
            disk,
            {**job, "generation": generation},
            lambda writer: time.sleep(rng.uniform(0, LIFE_S_MAX)),
        )
        acknowledged += sum(line["op"] == "event" for line in new)
        said += new
        asyncio.run(survey(f"sqlite:///{path}", said)).check_nothing_lost()
        check_integrity(path)
    report(
        f"power cut ({disk.filesystem}), full: {cuts} cuts, {acknowledged} events acknowledged, "
        "0 lost"
    )


@pytest.mark.parametrize("events_max", [200, 2_000, pytest.param(20_000, marks=pytest.mark.soak)])
def test_normal_durability_loses_only_the_newest_commits_in_a_power_cut(
    disk: LoopDisk, events_max: int, report: Callable[[str], None]
) -> None:
    path = disk.folder / "normal.db"
    job = {
        "url": f"sqlite:///{path}",
        "durability": "normal",
        "seed": 1,
        "generation": 0,
        "events_max": events_max // (len(SESSIONS) * TASKS_PER_SESSION),
    }
    said = cut_while_writing(disk, job, lambda writer: writer.wait_for_end_of_work())
    found = asyncio.run(survey(f"sqlite:///{path}", said))
    check_integrity(path)
    report(
        f"power cut ({disk.filesystem}), normal: {found.acknowledged} events acknowledged, "
        f"{len(found.lost)} lost"
    )


def test_a_disk_that_dies_is_told_by_an_error_of_ours_and_holds_nobody_up(
    disk: LoopDisk,
) -> None:
    path = disk.folder / "dying.db"
    job = {"url": f"sqlite:///{path}", "seed": 1, "generation": 0}
    with running("writer.py", job) as writer:
        writer.wait_for(20)
        disk.cut_power()
        assert writer.wait() == 1
        last = writer.errors().splitlines()[-1]
    # SQLite calls a page damaged that cannot be read at all.
    assert re.match(r"threadline\.errors\.(Storage|NotADatabase)Error: ", last), last
    assert str(path) in last
    disk.restore_power()
    asyncio.run(survey(f"sqlite:///{path}", []))
    check_integrity(path)


# -- the drive that forgets ---------------------------------------------------------------


Step = tuple[int, str] | dict[str, Any]
"""A statement of one of the engine's connections, or an acknowledgement."""

Leftover = tuple[Path, list[dict[str, Any]]]
"""A database after a power cut, and what had been acknowledged before it."""

FILE = "replayed.db"
CUTS_PER_REPLAY = 50  # what they leave is many megabytes each


def record(
    folder: Path, durability: str, events_max: int, monkeypatch: pytest.MonkeyPatch
) -> list[Step]:
    """Let the real engine write, and return all its statements and acknowledgements in order."""
    steps: list[Step] = []
    numbers = itertools.count()
    connect = sqlite3.connect

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        number = next(numbers)
        connection.set_trace_callback(lambda statement: steps.append((number, statement)))
        return connection

    async def write() -> None:
        job = {
            "url": f"sqlite:///{folder / 'recorded.db'}",
            "durability": durability,
            "seed": 2,
            "generation": 0,
            "events_max": events_max // (len(SESSIONS) * TASKS_PER_SESSION),
        }
        async with opened(job) as service:
            await work_on(service, job, lambda *lines: steps.extend(lines))

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", traced)
        asyncio.run(write())
    return steps


def replay(
    steps: list[Step], folder: Path, cuts: dict[int, random.Random | None]
) -> tuple[int, list[Leftover]]:
    """Run the statements on a forgetful drive, whose power is cut at some of its operations.

    Return how many operations (writes and syncs) there were, and what each cut left.
    """
    import apsw

    from .drive import Drive

    folder.mkdir()
    said: list[dict[str, Any]] = []
    left: list[Leftover] = []
    operations = 0

    def look() -> None:
        nonlocal operations
        if operations in cuts:
            place = folder / f"cut{operations}"
            place.mkdir()
            for name, image in drive.cut(cuts[operations]).items():
                (place / name).write_bytes(image)
            left.append((place / FILE, list(said)))
        operations += 1

    drive = Drive("forgetful", look)
    connections: dict[int, apsw.Connection] = {}
    try:
        for step in steps:
            if isinstance(step, dict):
                said.append(step)
                continue
            number, statement = step
            if statement.startswith("SELECT"):
                continue  # reads nothing that matters here, and binds what SQL cannot spell
            if number not in connections:
                connections[number] = apsw.Connection(str(folder / FILE), vfs=drive.name)
            connections[number].execute(statement).fetchall()
        for connection in connections.values():
            connection.close()
        look()
    finally:
        for connection in connections.values():
            connection.close(True)
        drive.unregister()
    return operations, left


def cut_everywhere(folder: Path, steps: list[Step], count: int) -> Iterator[Survey]:
    """Cut the power at random writes of the replay; survey what each cut left."""
    rng = random.Random("drive")
    operations, _ = replay(steps, folder / "rehearsal", {})
    moments = [*sorted(rng.sample(range(operations - 1), count - 1)), operations - 1]
    for first in range(0, count, CUTS_PER_REPLAY):
        cuts = {
            # Every second time some of what was not synced had reached the disk after all.
            moment: random.Random(moment) if moment % 2 else None
            for moment in moments[first : first + CUTS_PER_REPLAY]
        }
        place = folder / f"replay{first}"
        again, left = replay(steps, place, cuts)
        assert again == operations
        assert len(left) == len(cuts)
        for path, said in left:
            found = asyncio.run(survey(f"sqlite:///{path}", said))
            check_integrity(path)
            yield found
        shutil.rmtree(place)


@pytest.fixture
def forgetful() -> None:
    """Skip the test by name where apsw is not installed."""
    try:
        import apsw  # noqa: F401
    except ImportError as error:
        unavailable("power cut in a file system of apsw", error)


sizes = pytest.mark.parametrize(
    ("events_max", "cuts"), [(300, 25), pytest.param(2_000, 200, marks=pytest.mark.soak)]
)


@pytest.mark.usefixtures("forgetful")
@sizes
def test_full_durability_loses_nothing_on_a_drive_that_forgets(
    tmp_path: Path,
    events_max: int,
    cuts: int,
    monkeypatch: pytest.MonkeyPatch,
    report: Callable[[str], None],
) -> None:
    steps = record(tmp_path, "full", events_max, monkeypatch)
    acknowledged = 0
    for found in cut_everywhere(tmp_path, steps, cuts):
        found.check_nothing_lost()
        acknowledged += found.acknowledged
    assert acknowledged
    report(f"power cut (apsw), full: {cuts} cuts, {acknowledged} events acknowledged, 0 lost")


@pytest.mark.usefixtures("forgetful")
@sizes
def test_normal_durability_loses_only_the_newest_commits_on_a_drive_that_forgets(
    tmp_path: Path,
    events_max: int,
    cuts: int,
    monkeypatch: pytest.MonkeyPatch,
    report: Callable[[str], None],
) -> None:
    steps = record(tmp_path, "normal", events_max, monkeypatch)
    surveys = list(cut_everywhere(tmp_path, steps, cuts))
    # The last cut came after the database was closed, which syncs it.
    surveys[-1].check_nothing_lost()
    lost = sum(len(found.lost) for found in surveys)
    report(
        f"power cut (apsw), normal: {cuts} cuts, "
        f"{sum(found.acknowledged for found in surveys)} events acknowledged, {lost} lost"
    )
