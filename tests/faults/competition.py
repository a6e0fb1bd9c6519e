"""Several processes append to the same sessions, and what the store must hold afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import msgspec

from threadline import DatabaseSessionService, Event

from .appender import APP, KEYS_PER_SCOPE, SESSIONS, event_of, session_of
from .children import running
from .evidence import read_all, replay


@dataclass(frozen=True)
class Competition:
    """Who appends how much; a process has several writers, which share its service."""

    url: str
    on_stale: str
    processes: int
    events_max: int
    """How many events each writer appends."""
    writers_each: int = 1
    shared_every: int = 1
    """Which of a writer's turns go to sessions that all share; the others to one of its own."""
    idle_s: float = 0.0
    """How long the processes stay when they are done, before they count a second time."""

    @property
    def writers(self) -> int:
        """How many writers there are in all."""
        return self.processes * self.writers_each


@dataclass(frozen=True)
class Outcome:
    """What the processes said."""

    said: list[dict[str, Any]]
    """One line for each append that returned."""
    files: list[list[int]]
    """How many files each process had open: before, after, and after it was idle."""
    seconds: float


def hold(competition: Competition, while_idle: Callable[[], None] = lambda: None) -> Outcome:
    """Let all writers append at once; no error may reach any of them."""
    asyncio.run(_prepare(competition.url))
    with ExitStack() as stack:
        processes = [
            stack.enter_context(running("appender.py", {**vars(competition), "process": number}))
            for number in range(competition.processes)
        ]
        for process in processes:
            process.wait_for(1)
        start = time.perf_counter()
        for process in processes:
            process.tell("go")
        for process in processes:
            process.wait_for_end_of_work()
        seconds = time.perf_counter() - start
        while_idle()
        for process in processes:
            process.tell("end")
            status = process.wait()
            assert status == 0, process.errors()
            assert process.errors() == ""
        lines = [process.lines for process in processes]
    return Outcome(
        said=[line for one in lines for line in one if "seq" in line],
        files=[[line["files"] for line in one if "files" in line] for one in lines],
        seconds=seconds,
    )


async def _prepare(url: str) -> None:
    async with DatabaseSessionService(url) as service:
        for session_id, user_id in SESSIONS.items():
            await service.create_session(app_name=APP, user_id=user_id, session_id=session_id)


async def check_store(competition: Competition, said: list[dict[str, Any]]) -> None:
    """Check that every event is there once, where its writer was told, and no key is lost."""
    writers, events_max = range(competition.writers), competition.events_max
    places = {
        (writer, turn): session_of(writer, turn, competition.shared_every)
        for writer in writers
        for turn in range(events_max)
    }
    sessions = dict(places.values())
    users: dict[str, dict[str, Any]] = {user: {} for user in sessions.values()}
    app: dict[str, Any] = {}
    told = {(line["session"], line["seq"]): line["id"] for line in said}
    assert len(told) == len(said) == len(writers) * events_max
    ids = []
    async with DatabaseSessionService(competition.url) as service:
        for session_id, user_id in sessions.items():
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
                assert places[writer, turn] == (session_id, user_id)
                assert event == event_of_store(event, writer, turn)
            ids += [event.id for event in events]
        assert sorted(ids) == sorted(f"w{writer}-{turn}" for writer, turn in places)
        for user_id in users:
            users[user_id] = await service.get_user_state(app_name=APP, user_id=user_id)
        app = await service.get_app_state(app_name=APP)
    for writer in writers:
        turns: dict[str, dict[str, int]] = {user: {} for user in users}
        for turn in range(events_max):
            _, user_id = places[writer, turn]
            turns[user_id][f"w{writer}_{turn % KEYS_PER_SCOPE}"] = turn
        newest: dict[str, int] = {}
        for user_id, expected in turns.items():
            assert expected.items() <= users[user_id].items()
            for key, turn in expected.items():
                newest[key] = max(turn, newest.get(key, -1))
        assert newest.items() <= app.items()


def event_of_store(event: Event, writer: int, turn: int) -> Event:
    """Return the event its writer made, at the time of the stored one."""
    return msgspec.structs.replace(event_of(writer, turn), timestamp=event.timestamp)
