"""kill -9 of a writing process at random moments, again and again, on the same file."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .children import running
from .evidence import check_integrity, survey

# One group shares one file; it is not all of them, because every kill reads the whole file.
KILLS_PER_FILE = 10
SOAK_FILES = 10  # beside the one of the normal suite: 100 kills under `-m soak` alone
LIFE_S_MAX = 0.15
FIRST_ACK = 2  # the line before says that the file is about to be opened


def kill_and_check(
    path: Path,
    said: list[dict[str, Any]],
    generation: int,
    rng: random.Random,
    durability: str = "full",
) -> None:
    """Let a writer live for a moment, kill it, and check the file against all that was said."""
    job = {
        "url": f"sqlite:///{path}",
        "durability": durability,
        "seed": rng.random(),
        "generation": generation,
    }
    with running("writer.py", job) as writer:
        writer.wait_for(FIRST_ACK)
        time.sleep(rng.uniform(0, LIFE_S_MAX))
        assert writer.kill() == -9, writer.errors()
        assert writer.errors() == ""
        said += writer.lines
    asyncio.run(survey(f"sqlite:///{path}", said)).check_nothing_lost()
    check_integrity(path)


@pytest.mark.parametrize(
    "group", [0, *(pytest.param(n, marks=pytest.mark.soak) for n in range(1, SOAK_FILES + 1))]
)
@pytest.mark.parametrize("durability", ["full", "normal"])
def test_what_was_acknowledged_survives_kill_9(
    tmp_path: Path, group: int, durability: str, report: Callable[[str], None]
) -> None:
    rng = random.Random(f"kill {group}")
    said: list[dict[str, Any]] = []
    for generation in range(KILLS_PER_FILE):
        kill_and_check(tmp_path / "killed.db", said, generation, rng, durability)
    events = sum(line["op"] == "event" for line in said)
    assert events
    report(f"kill -9, {durability}: {KILLS_PER_FILE} kills, {events} events acknowledged, 0 lost")


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.soak)])
def test_a_kill_leaves_other_writers_of_the_file_alone(tmp_path: Path, kills: int) -> None:
    path, rng = tmp_path / "killed.db", random.Random("neighbour")
    # No patches: each process would count its own.
    job = {"url": f"sqlite:///{path}", "seed": 1, "patches": False}
    with running("writer.py", {**job, "generation": 0}) as neighbour:
        neighbour.wait_for(FIRST_ACK)
        said: list[dict[str, Any]] = []
        for generation in range(1, kills + 1):
            with running("writer.py", {**job, "generation": generation}) as writer:
                writer.wait_for(FIRST_ACK)
                before = len(neighbour.lines)
                time.sleep(rng.uniform(0, LIFE_S_MAX))
                assert writer.kill() == -9, writer.errors()
                said += writer.lines
            neighbour.wait_for(before + 1)
        assert neighbour.kill() == -9, neighbour.errors()
        assert neighbour.errors() == ""
        said += neighbour.lines
    asyncio.run(survey(f"sqlite:///{path}", said)).check_nothing_lost()
    check_integrity(path)


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.soak)])
def test_a_kill_during_creation_leaves_a_usable_file(tmp_path: Path, kills: int) -> None:
    rng = random.Random("creation")
    for number in range(kills):
        path = tmp_path / f"new{number}.db"
        job = {"url": f"sqlite:///{path}", "seed": number, "generation": 0}
        with running("writer.py", job) as writer:
            assert writer.wait_for(1) == {"op": "opening"}
            time.sleep(rng.uniform(0, 0.03))
            assert writer.kill() == -9, writer.errors()
            assert writer.errors() == ""
            said = writer.lines
        asyncio.run(survey(f"sqlite:///{path}", said)).check_nothing_lost()
        check_integrity(path)
        # The file is not only readable: the next process goes on with it.
        kill_and_check(path, said, 1, rng)
