"""Services that are forked, shared by threads, cancelled, or closed while they are in use."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
from pathlib import Path

import pytest

from threadline import (
    DatabaseSessionService,
    EngineClosedError,
    Event,
    Session,
)

from .children import said
from .evidence import check_integrity, read_all
from .visitor import APP, ID, USER

KEY = {"app_name": APP, "user_id": USER, "session_id": ID}


def test_a_service_goes_on_in_both_processes_after_a_fork(tmp_path: Path) -> None:
    path = tmp_path / "forked.db"
    lines = said("visitor.py", {"visit": "across_a_fork", "url": f"sqlite:///{path}"})
    assert [(line["who"], line["error"], line["events"]) for line in lines] == [
        ("parent", None, 1),
        ("child", None, 2),  # it wrote
        ("child", None, 2),  # it read
        ("parent", None, 3),
    ]
    check_integrity(path)


def test_a_database_in_memory_stays_with_its_process() -> None:
    first, *in_child, last = said(
        "visitor.py", {"visit": "across_a_fork", "url": "sqlite:///:memory:"}
    )
    assert first == {"who": "parent", "error": None, "events": 1}
    for line in in_child:
        assert (line["who"], line["error"]) == ("child", "EngineClosedError")
        assert "forked" in line["message"]
    assert last == {"who": "parent", "error": None, "events": 2}


def test_what_a_service_made_after_a_fork_has_acknowledged_is_stored(tmp_path: Path) -> None:
    # SQLite keeps its locks by process, in memory that a fork copies: a connection made in the
    # child may believe in locks that only the parent has, and write into a log that the parent
    # deletes when it closes.
    path = tmp_path / "forked.db"
    lines = said("visitor.py", {"visit": "beside_a_parent_that_closes", "url": f"sqlite:///{path}"})
    assert [line["error"] for line in lines] == [None] * 3

    async def count() -> int:
        async with DatabaseSessionService(f"sqlite:///{path}") as service:
            return len(await read_all(service, **KEY))

    assert asyncio.run(count()) == 3
    check_integrity(path)


def test_two_event_loops_share_one_service(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    service = DatabaseSessionService(f"sqlite:///{path}", on_stale="rebase")
    start = threading.Barrier(2)
    failures: list[BaseException] = []

    async def append(worker: int) -> None:
        session = await service.get_or_create_session(**KEY)
        for turn in range(25):
            event = Event(author=f"w{worker}", content="Hello", state={f"w{worker}": turn})
            await service.append_event(session, event)

    def work(first: int) -> None:
        async def run() -> None:
            await asyncio.gather(*(append(worker) for worker in range(first, first + 4)))

        try:
            start.wait()
            asyncio.run(run())
        except BaseException as error:  # shown by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []

    async def check() -> None:
        async with service:
            events = await read_all(service, **KEY)
            assert [event.seq for event in events] == list(range(1, 201))
            session = await service.get_session(**KEY)
            assert session is not None
            assert session.state == {f"w{worker}": 24 for worker in range(8)}

    asyncio.run(check())
    check_integrity(path)


@pytest.mark.parametrize("same_handle", [True, False])
def test_a_cancelled_append_is_stored_at_most_once_and_can_be_retried(
    tmp_path: Path, same_handle: bool
) -> None:
    path = tmp_path / "cancelled.db"
    rng = random.Random(7)
    counts = {"stored": 0, "not stored": 0}

    async def run() -> None:
        async with DatabaseSessionService(f"sqlite:///{path}") as service:
            session = await service.create_session(**KEY)
            for turn in range(200):
                event = Event(author="ann", content=f"Turn {turn}", state={"turn": turn})
                task = asyncio.create_task(service.append_event(session, event))
                if turn % 2:
                    await asyncio.sleep(rng.random() * 0.0005)
                else:
                    for _ in range(rng.randrange(6)):
                        await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                # Whether it is stored is settled once the same event is appended again.
                before = len(await read_all(service, **KEY))
                counts["stored" if before == turn + 1 else "not stored"] += 1
                if not same_handle:
                    found = await service.get_session(**KEY)
                    assert found is not None
                    session = found
                stored = await service.append_event(session, event, on_stale="rebase")
                assert stored.seq == turn + 1
                assert stored == event
                assert session.revision == turn + 1
                assert [e.seq for e in session.events] == list(range(1, turn + 2))
                assert session.state == {"turn": turn}
            events = await read_all(service, **KEY)
            assert [e.actions.state_delta["turn"] for e in events] == list(range(200))

    asyncio.run(run())
    assert all(counts.values()), counts


def test_a_cancelled_append_can_be_retried_under_the_default_policy(tmp_path: Path) -> None:
    path = tmp_path / "cancelled.db"

    async def run() -> None:
        async with DatabaseSessionService(f"sqlite:///{path}") as service:
            session = await service.create_session(**KEY)
            for turn in range(100):
                event = Event(author="ann", content=f"Turn {turn}")
                task = asyncio.create_task(service.append_event(session, event))
                for _ in range(turn % 6):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                # The handle may not know yet; the store knows the event by its id all the same.
                assert (await service.append_event(session, event)).seq == turn + 1
                assert session.revision == len(session.events) == turn + 1

    asyncio.run(run())


def test_a_service_that_is_closed_in_mid_work_leaves_nobody_waiting(tmp_path: Path) -> None:
    path = tmp_path / "closed.db"
    rng = random.Random(3)
    told: list[str] = []

    async def append(
        service: DatabaseSessionService, name: str, session: Session | None = None
    ) -> None:
        try:
            session = session or await service.get_or_create_session(**KEY)
            for turn in range(20):
                event = Event(id=f"{name}-{turn}", author="ann", content="Hello")
                await service.append_event(session, event, on_stale="rebase")
                told.append(event.id)
        except EngineClosedError:
            return

    async def run() -> None:
        async with DatabaseSessionService(f"sqlite:///{path}") as service:
            await service.create_session(**KEY)
        for number in range(20):
            service = DatabaseSessionService(f"sqlite:///{path}")
            shared = await service.get_session(**KEY)
            # Some wait for the store, some for their turn with a handle that they share.
            work = [
                asyncio.create_task(append(service, f"{number}-{n}", shared if n < 5 else None))
                for n in range(10)
            ]
            await asyncio.sleep(rng.random() * 0.02)
            await service.close()
            done, waiting = await asyncio.wait(work, timeout=10)
            assert not waiting, "an append waits for a service that was closed"
            failures = [task.exception() for task in done if task.exception() is not None]
            assert failures == []
            # Closing is not the end: the next call opens the file again.
            assert await service.get_session(**KEY) is not None
            await service.close()
        async with DatabaseSessionService(f"sqlite:///{path}") as service:
            ids = [event.id for event in await read_all(service, **KEY)]
        assert len(set(ids)) == len(ids)
        assert set(told) <= set(ids)

    asyncio.run(run())
    check_integrity(path)


def test_a_relative_path_means_the_same_file_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    async def run() -> None:
        async with DatabaseSessionService("sqlite:///./some.db") as service:
            session = await service.create_session(**KEY)
            os.chdir(tmp_path / "elsewhere")
            await service.append_event(session, Event(author="ann", content="Hello"))
            found = await service.get_session(**KEY)
            assert found is not None
            assert len(found.events) == 1

    asyncio.run(run())
    assert (tmp_path / "some.db").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_forgotten_service_leaves_no_thread_and_no_open_file(tmp_path: Path) -> None:
    path = tmp_path / "forgotten.db"

    async def use() -> None:
        service = DatabaseSessionService(f"sqlite:///{path}")
        session = await service.create_session(**KEY)
        await service.append_event(session, Event(author="ann", content="Hello"))
        assert await service.get_session(**KEY) is not None

    before = threading.active_count()
    asyncio.run(use())
    gc.collect()
    assert threading.active_count() <= before
    # The last connection that closes takes the log with it.
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
