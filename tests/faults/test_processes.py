"""Several processes write to one file, and none of them loses or breaks anything."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from threadline import DatabaseSessionService, Event

from .appender import APP, KEYS_PER_SCOPE, SESSIONS, event_of
from .children import running
from .evidence import check_integrity, read_all, replay, survey

PROCESSES = 8
EVENTS = 100
SOAK_EVENTS = int(os.environ.get("THREADLINE_SOAK_EVENTS", "2000"))

sizes = pytest.mark.parametrize(
    "events_max", [EVENTS, pytest.param(SOAK_EVENTS, marks=pytest.mark.soak)]
)


def compete(path: Path, on_stale: str, events_max: int) -> tuple[list[dict[str, Any]], float]:
    """Let all writers append at once; return what they said and the seconds they took."""

    async def prepare() -> None:
        async with DatabaseSessionService(f"sqlite:///{path}") as service:
            for session_id, user_id in SESSIONS.items():
                await service.create_session(app_name=APP, user_id=user_id, session_id=session_id)

    asyncio.run(prepare())
    job = {"url": f"sqlite:///{path}", "on_stale": on_stale, "events_max": events_max}
    with ExitStack() as stack:
        writers = [
            stack.enter_context(running("appender.py", {**job, "writer": number}))
            for number in range(PROCESSES)
        ]
        for writer in writers:
            writer.wait_for(1)
        start = time.perf_counter()
        for writer in writers:
            writer.tell("go")
        for writer in writers:
            status = writer.wait()
            assert status == 0, writer.errors()
            assert writer.errors() == ""
        seconds = time.perf_counter() - start
        return [line for writer in writers for line in writer.lines[1:]], seconds


async def check_store(path: Path, events_max: int, said: list[dict[str, Any]]) -> None:
    """Check that every event is there once, where its writer was told, and no key is lost."""
    users: dict[str, dict[str, Any]] = {user: {} for user in SESSIONS.values()}
    app: dict[str, Any] = {}
    told = {(line["session"], line["seq"]): line["id"] for line in said}
    assert len(told) == len(said) == PROCESSES * events_max
    ids = []
    async with DatabaseSessionService(f"sqlite:///{path}") as service:
        for session_id, user_id in SESSIONS.items():
            key = {"app_name": APP, "user_id": user_id, "session_id": session_id}
            session = await service.get_session(**key)
            assert session is not None
            events = await read_all(service, **key)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            assert session.revision == len(events)
            assert [told[session_id, event.seq] for event in events] == [e.id for e in events]
            own = replay(events, {}, {})
            assert own == {k: v for k, v in session.state.items() if ":" not in k}
            assert own["newest"] == events[-1].id
            for event in events:
                writer, turn = (int(part) for part in event.id.removeprefix("w").split("-"))
                assert event == event_of_store(event, writer, turn)
            ids += [event.id for event in events]
        assert sorted(ids) == sorted(
            f"w{writer}-{turn}" for writer in range(PROCESSES) for turn in range(events_max)
        )
        for user_id in users:
            users[user_id] = await service.get_user_state(app_name=APP, user_id=user_id)
        app = await service.get_app_state(app_name=APP)
    for writer in range(PROCESSES):
        turns: dict[str, dict[str, int]] = {user: {} for user in users}
        for turn in range(events_max):
            user_id = list(SESSIONS.values())[(writer + turn) % len(SESSIONS)]
            turns[user_id][f"w{writer}_{turn % KEYS_PER_SCOPE}"] = turn
        newest: dict[str, int] = {}
        for user_id, expected in turns.items():
            assert expected.items() <= users[user_id].items()
            for key, turn in expected.items():
                newest[key] = max(turn, newest.get(key, -1))
        assert newest.items() <= app.items()
    check_integrity(path)


def event_of_store(event: Event, writer: int, turn: int) -> Event:
    """Return the event its writer made, at the time of the stored one."""
    return msgspec.structs.replace(event_of(writer, turn), timestamp=event.timestamp)


@sizes
def test_eight_processes_with_rebase_lose_no_event_and_no_key(
    tmp_path: Path, events_max: int, report: Callable[[str], None]
) -> None:
    path = tmp_path / "shared.db"
    said, seconds = compete(path, "rebase", events_max)
    assert not any(line["refused"] for line in said)
    asyncio.run(check_store(path, events_max, said))
    report(
        f"{PROCESSES} processes, rebase: {len(said)} events in {seconds:.2f} s, "
        f"{len(said) / seconds:,.0f} events/s"
    )


@sizes
def test_eight_processes_with_the_default_policy_accept_no_stale_append(
    tmp_path: Path, events_max: int, report: Callable[[str], None]
) -> None:
    path = tmp_path / "shared.db"
    said, seconds = compete(path, "raise", events_max)
    for line in said:
        assert line["seq"] == line["expected"] + 1
    asyncio.run(check_store(path, events_max, said))
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
