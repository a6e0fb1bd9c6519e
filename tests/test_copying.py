"""Copies between services: whole, resumable, compared."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from servers_http import served
from threadline import (
    AlreadyExistsError,
    DatabaseSessionService,
    Event,
    EventConflictError,
    InMemorySessionService,
    InvalidInputError,
    UnsupportedOperationError,
    UnsupportedUrlError,
    VertexAiSessionService,
)
from threadline.cli import app
from threadline.copying import copy_sessions, service_of
from threadline.importers.openai_chat import import_file
from threadline.service import BaseSessionService

APP = "123"
CONVERSATIONS = sorted(Path(__file__).parents[2].glob("shared/data/**/*tau*.jsonl"))


def say(text: str, **fields: Any) -> Event:
    return Event(author="user", content=text, **fields)


async def fill(service: BaseSessionService, users: int = 2) -> None:
    for user in range(users):
        session = await service.create_session(
            app_name=APP,
            user_id=f"user {user}",
            state={"k": 0, "initial": [1], "user:name": user},
            display_name="Trip",
            labels={"a": "b"},
        )
        for n in range(3):
            await service.append_event(session, say(f"{n}", state={"k": n, "app:last": n}))


async def contents(service: BaseSessionService) -> list[Any]:
    listed = await service.list_sessions(app_name=APP)
    found = []
    for one in listed.sessions:
        whole = await service.get_session(app_name=APP, user_id=one.user_id, session_id=one.id)
        assert whole is not None
        found.append(
            (whole.user_id, whole.id, whole.display_name, whole.labels, whole.state, whole.events)
        )
    return sorted(found, key=lambda one: one[:2])


@pytest.fixture
def vertex() -> Iterator[VertexAiSessionService]:
    with served(InMemorySessionService()) as url:
        yield VertexAiSessionService("p", "l", base_url=url)


def test_a_copy_there_and_back_is_equal(vertex: VertexAiSessionService) -> None:
    async def copied() -> None:
        first, last = InMemorySessionService(), InMemorySessionService()
        await fill(first)
        there = await copy_sessions(first, vertex)
        back = await copy_sessions(vertex, last, app_names=[APP])
        await vertex.close()
        assert (there.sessions_created, there.events_added) == (2, 6)
        assert back == there
        assert await contents(last) == await contents(first)

    asyncio.run(copied())


def test_a_copy_that_broke_off_goes_on() -> None:
    async def copied() -> None:
        first, target = InMemorySessionService(), InMemorySessionService()
        await fill(first)
        append, left = target.append_events, [2]

        async def failing(*given: Any, **options: Any) -> list[Event]:
            left[0] -= 1
            if not left[0]:
                raise InvalidInputError("no more")
            return await append(*given, **options)

        target.append_events = failing  # type: ignore[method-assign]
        with pytest.raises(InvalidInputError):
            await copy_sessions(first, target)
        report = await copy_sessions(first, target)
        assert (report.sessions, report.sessions_created) == (2, 0)
        assert (report.events_present, report.events_added) == (3, 3)
        assert (await copy_sessions(first, target)).events_added == 0
        assert await contents(target) == await contents(first)

    asyncio.run(copied())


def test_state_that_no_event_set_is_copied_too() -> None:
    async def copied() -> None:
        first, target = InMemorySessionService(), InMemorySessionService()
        await fill(first, users=1)
        (session,) = (await first.list_sessions(app_name=APP)).sessions
        ids: Any = {"app_name": APP, "user_id": session.user_id}
        await first.patch_state(**ids, session_id=session.id, set={"k": "patched"})
        await first.patch_state(**ids, set={"name": "patched"})
        await first.patch_state(app_name=APP, set={"last": "patched"})
        await copy_sessions(first, target)
        assert await contents(target) == await contents(first)

    asyncio.run(copied())


def test_a_target_that_cannot_be_given_such_state_says_so(vertex: VertexAiSessionService) -> None:
    async def copied() -> None:
        first = InMemorySessionService()
        await fill(first, users=1)
        (session,) = (await first.list_sessions(app_name=APP)).sessions
        ids: Any = {"app_name": APP, "user_id": session.user_id}
        await first.patch_state(**ids, session_id=session.id, set={"k": "patched"})
        with pytest.raises(UnsupportedOperationError, match=session.id):
            await copy_sessions(first, vertex)
        await vertex.close()

    asyncio.run(copied())


def test_another_history_in_the_target_is_refused() -> None:
    async def copied() -> None:
        services = InMemorySessionService(), InMemorySessionService()
        for n, service in enumerate(services):
            session = await service.create_session(app_name=APP, user_id="u", session_id="s")
            await service.append_event(session, say(f"history {n}"))
        with pytest.raises(EventConflictError, match="another history"):
            await copy_sessions(*services)

    asyncio.run(copied())


def test_one_id_of_two_users_is_refused_where_ids_are_the_engines(
    vertex: VertexAiSessionService,
) -> None:
    async def copied() -> None:
        first = InMemorySessionService()
        for user in ("a", "b"):
            await first.create_session(app_name=APP, user_id=user, session_id="s")
        with pytest.raises(AlreadyExistsError, match="'s'"):
            await copy_sessions(first, vertex)
        await vertex.close()

    asyncio.run(copied())


@pytest.mark.parametrize("url", ["vertex://p", "vertex:p/l", "vertex://p/l?key=x", "nothing"])
def test_a_url_that_names_no_service_is_refused(url: str) -> None:
    with pytest.raises(UnsupportedUrlError):
        service_of(url)


def test_the_command_copies_between_databases(tmp_path: Path) -> None:
    source, target = f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/b.db"

    async def made() -> None:
        async with DatabaseSessionService(source) as service:
            await fill(service)

    asyncio.run(made())
    done = CliRunner().invoke(app, ["copy", source, target, "--to-app", "new", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["sessions_created"] == 2
    again = CliRunner().invoke(app, ["copy", source, target, "--to-app", "new"])
    assert "0 events added, 6 already there" in again.stdout


def test_the_command_refuses_a_source_that_is_not_there(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path}/none.db", f"sqlite:///{tmp_path}/new.db"]
    done = CliRunner().invoke(app, ["copy", *urls])
    assert done.exit_code == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.soak
def test_imported_conversations_come_back_equal_through_vertex_ai(tmp_path: Path) -> None:
    if not CONVERSATIONS:
        pytest.skip("NOT TESTED: the conversations are not there")
    first, last = (DatabaseSessionService(f"sqlite:///{tmp_path}/{n}.db") for n in "ab")

    async def copied(url: str) -> None:
        vertex = VertexAiSessionService("p", "l", base_url=url)
        async with first, last, vertex:
            for file in CONVERSATIONS:
                await import_file(first, file, app_name=APP, user_id="imported")
            there = await copy_sessions(first, vertex)
            assert there.sessions >= 120
            assert await copy_sessions(vertex, last, app_names=[APP]) == there
            assert await contents(last) == await contents(first)

    with served(DatabaseSessionService(f"sqlite:///{tmp_path}/server.db")) as url:
        asyncio.run(copied(url))
