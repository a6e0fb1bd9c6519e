"""What a type checker sees of the services for google-adk; checked by mypy, never run."""

from typing import assert_type

from google.adk.events.event import Event
from google.adk.runners import Runner
from google.adk.sessions import BaseSessionService, Session

import threadline
from threadline.integrations.adk import (
    DatabaseSessionService,
    InMemorySessionService,
    StaleSessionError,
    ThreadlineSessionService,
    VertexAiSessionService,
    adk_service,
    register_schemes,
)


async def sessions(service: DatabaseSessionService, session: Session, event: Event) -> None:
    found = await service.get_session(app_name="a", user_id="u", session_id="s")
    assert_type(found, Session | None)
    assert_type(await service.append_event(session, event), Event)
    assert_type(await service.refresh(session), Session)
    assert_type(service.service, threadline.DatabaseSessionService)
    Runner(app_name="a", session_service=service)
    async with InMemorySessionService(on_stale="rebase") as memory:
        theirs: BaseSessionService = memory
    del theirs


async def on_vertex(service: VertexAiSessionService, session: Session) -> None:
    theirs: BaseSessionService = service
    del theirs
    made = await service.create_session(app_name="1", user_id="u", ttl="60s", labels={"a": "b"})
    assert_type(made, Session)
    assert_type(service.service, threadline.VertexAiSessionService)
    Runner(app_name="1", session_service=service)


def others(service: threadline.BaseSessionService, error: StaleSessionError) -> None:
    assert_type(adk_service(service, share_events=True), ThreadlineSessionService)
    ours: threadline.StaleSessionError = error
    del ours
    register_schemes(lambda url: DatabaseSessionService(url, on_stale="rebase"))
    adk_service(service, cache_events=1)  # type: ignore[call-arg]
