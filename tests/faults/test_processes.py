"""Several processes write to one file, and none of them loses or breaks anything."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from .children import running
from .competition import Competition, check_store, hold
from .evidence import check_integrity, survey

PROCESSES = 8
EVENTS = 100
SOAK_EVENTS = int(os.environ.get("THREADLINE_SOAK_EVENTS", "2000"))

sizes = pytest.mark.parametrize(
    "events_max", [EVENTS, pytest.param(SOAK_EVENTS, marks=pytest.mark.soak)]
)


@sizes
def test_eight_processes_with_rebase_lose_no_event_and_no_key(
    tmp_path: Path, events_max: int, report: Callable[[str], None]
) -> None:
    path = tmp_path / "shared.db"
    competition = Competition(f"sqlite:///{path}", "rebase", PROCESSES, events_max)
    outcome = hold(competition)
    said, seconds = outcome.said, outcome.seconds
    assert not any(line["refused"] for line in said)
    asyncio.run(check_store(competition, said))
    check_integrity(path)
    report(
        f"{PROCESSES} processes, rebase: {len(said)} events in {seconds:.2f} s, "
        f"{len(said) / seconds:,.0f} events/s"
    )


@sizes
def test_eight_processes_with_the_default_policy_accept_no_stale_append(
    tmp_path: Path, events_max: int, report: Callable[[str], None]
) -> None:
    path = tmp_path / "shared.db"
    competition = Competition(f"sqlite:///{path}", "raise", PROCESSES, events_max)
    outcome = hold(competition)
    said, seconds = outcome.said, outcome.seconds
    for line in said:
        assert line["seq"] == line["expected"] + 1
    asyncio.run(check_store(competition, said))
    check_integrity(path)
    refused = sum(line["refused"] for line in said)
    report(
        f"{PROCESSES} processes, default policy: {len(said)} events in {seconds:.2f} s, "
        f"{len(said) / seconds:,.0f} events/s, {refused} refused as stale and tried again"
    )


def test_processes_that_create_one_file_at_the_same_time_all_find_their_tables(
    tmp_path: Path,
) -> None:
    for number in range(3):
        path = tmp_path / f"new{number}.db"
        job = {"url": f"sqlite:///{path}", "seed": number, "patches": False, "events_max": 5}
        said = []
        with ExitStack() as stack:
            writers = [
                stack.enter_context(running("writer.py", {**job, "generation": n}))
                for n in range(4)
            ]
            for writer in writers:
                writer.wait_for_end_of_work()
                writer.kill()
                assert writer.errors() == ""
                said += writer.lines
        asyncio.run(survey(f"sqlite:///{path}", said)).check_nothing_lost()
        check_integrity(path)
