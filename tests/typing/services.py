"""What a type checker sees of the async services and the runner; checked by mypy, never run."""

import datetime as dt
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, assert_type

from threadline import (
    MISSING,
    BaseSessionService,
    Content,
    DatabaseSessionService,
    Event,
    GetSessionConfig,
    InMemorySessionService,
    ListEventsResponse,
    ListSessionsResponse,
    RunContext,
    Runner,
    Session,
    StaleSessionError,
    State,
    sync,
)


async def sessions(service: BaseSessionService) -> None:
    session = await service.create_session(
        app_name="a", user_id="u", state={"k": 1}, ttl=dt.timedelta(days=1), labels={"x": "y"}
    )
    assert_type(session, Session)
    found = await service.get_session(
        app_name="a", user_id="u", session_id="s", config=GetSessionConfig(num_recent_events=3)
    )
    assert_type(found, Session | None)
    listed = await service.list_sessions(app_name="a", order="created", limit=5)
    assert_type(listed, ListSessionsResponse)
    assert_type(listed.sessions, list[Session])
    assert_type(listed.next_cursor, str | None)
    page = await service.list_events(app_name="a", user_id="u", session_id="s", reverse=True)
    assert_type(page, ListEventsResponse)
    assert_type(page.has_more, bool)
    assert_type(await service.refresh(session), Session)
    await service.delete_session(app_name="a", user_id="u", session_id="s")


async def events(service: BaseSessionService, session: Session) -> None:
    assert_type(await service.append_event(session, Event()), Event)
    assert_type(await service.append_event(session=session, event=Event()), Event)
    assert_type(await service.append_events(session, [Event()], on_stale="rebase"), list[Event])
    await service.append_event(session, Event(), on_stale="queue")  # type: ignore[arg-type]
    await service.append_event(session, "text")  # type: ignore[arg-type]


async def state(service: BaseSessionService) -> None:
    assert_type(await service.get_user_state(app_name="a", user_id="u"), dict[str, Any])
    assert_type(await service.get_app_state(app_name="a"), dict[str, Any])
    patched = await service.patch_state(
        app_name="a", set={"k": 1}, delete=["x"], increment={"n": 1}, expect={"k": MISSING}
    )
    assert_type(patched, dict[str, Any])


async def constructors() -> None:
    async with DatabaseSessionService("sqlite:///x.db", durability="normal") as service:
        assert_type(service, DatabaseSessionService)
    async with InMemorySessionService(on_stale="rebase") as memory:
        assert_type(memory, InMemorySessionService)
    DatabaseSessionService("sqlite:///x.db", durability="none")  # type: ignore[arg-type]


def stale(error: StaleSessionError) -> None:
    assert_type(error.revision, int)
    assert_type(error.expected, int)


async def generator(ctx: RunContext) -> AsyncIterator[str | Content | Event]:
    assert_type(ctx.session, Session)
    assert_type(ctx.new_message, Content | None)
    assert_type(ctx.invocation_id, str)
    assert_type(ctx.state, State)
    yield "text"
    yield Event(partial=True)


async def only_text(ctx: RunContext) -> AsyncGenerator[str, None]:
    yield "text"


async def function(ctx: RunContext) -> str:
    return "text"


async def silent(ctx: RunContext) -> None:
    return None


class Agent:
    """An agent as an object."""

    name = "agent"

    async def run(self, ctx: RunContext) -> AsyncIterator[str]:
        yield "text"


def plain(ctx: RunContext) -> int:
    return 5


async def runners(service: BaseSessionService, blocking: sync.BaseSessionService) -> None:
    for agent in (generator, only_text, function, silent):
        Runner(app_name="a", agent=agent, session_service=service)
    Runner(app_name="a", agent=Agent(), session_service=service)
    Runner(app_name="a", agent=generator, session_service=blocking)
    Runner(app_name="a", agent=plain, session_service=service)  # type: ignore[arg-type]
    runner = Runner(app_name="a", agent=function, session_service=service)
    turn = runner.run_async(user_id="u", session_id="s", new_message="hi")
    assert_type(turn, AsyncGenerator[Event, None])
    async for event in turn:
        assert_type(event, Event)
    await turn.aclose()
    assert_type(runner.run(user_id="u", session_id="s", new_message="hi"), Iterator[Event])
    async with runner as entered:
        assert_type(entered, Runner)
