"""What a type checker sees of the blocking services; checked by mypy, never run."""

from typing import Any, assert_type

import threadline
from threadline import ListEventsResponse, ListSessionsResponse
from threadline.sync import (
    BaseSessionService,
    DatabaseSessionService,
    Event,
    GetSessionConfig,
    InMemorySessionService,
    Runner,
    Session,
)


def sessions(service: BaseSessionService) -> None:
    session = service.create_session(app_name="a", user_id="u", state={"k": 1})
    assert_type(session, threadline.Session)
    found = service.get_session(
        app_name="a", user_id="u", session_id="s", config=GetSessionConfig(after_seq=3)
    )
    assert_type(found, threadline.Session | None)
    assert_type(service.list_sessions(app_name="a"), ListSessionsResponse)
    assert_type(service.list_events(app_name="a", user_id="u", session_id="s"), ListEventsResponse)
    assert_type(service.append_event(session, Event()), threadline.Event)
    assert_type(service.append_events(session, [Event()]), list[threadline.Event])
    assert_type(service.refresh(session), threadline.Session)
    assert_type(service.get_user_state(app_name="a", user_id="u"), dict[str, Any])
    service.append_event(session, "text")  # type: ignore[arg-type]


def constructors() -> None:
    with DatabaseSessionService("sqlite:///x.db", on_stale="rebase") as service:
        assert_type(service, DatabaseSessionService)
    with InMemorySessionService() as memory:
        assert_type(memory, InMemorySessionService)


def models_are_the_same(event: Event, session: Session, runner: Runner) -> None:
    assert_type(event, threadline.Event)
    assert_type(session, threadline.Session)
    assert_type(runner, threadline.Runner)
    assert_type(Event(content="x"), threadline.Event)
