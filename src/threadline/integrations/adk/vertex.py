"""google-adk's session service over Vertex AI, in the place of its `VertexAiSessionService`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from google.adk.platform import uuid as adk_uuid

from threadline.errors import EventConflictError, IncompleteReadError, InvalidInputError
from threadline.integrations.adk.errors import SessionNotFoundError, as_adk_errors
from threadline.integrations.adk.events import events_of, to_json_types, to_threadline
from threadline.integrations.adk.service import (
    ThreadlineSessionService,
    bring_up_to_date,
    marked_handle,
    to_adk_session,
)
from threadline.vertex import service, wire

if TYPE_CHECKING:
    import datetime as dt

    from google.adk.events.event import Event as AdkEvent
    from google.adk.sessions import Session as AdkSession
    from google.adk.sessions.base_session_service import GetSessionConfig as AdkGetSessionConfig
    from google.auth.credentials import Credentials

    from threadline.models import Session

_NAME = re.compile(r"(?:(?:.*/)?reasoningEngines/(?P<engine>[^/]+)/)?sessions/(?P<id>[^/]+)")


class VertexAiSessionService(ThreadlineSessionService):
    """Sessions of Vertex AI Agent Engine, or of a threadline server, which speaks its API.

    The first four arguments are those of google-adk's class, the others those of
    `threadline.VertexAiSessionService`. Wherever google-adk takes a session's id it may be the
    session's full name too, as there.
    """

    service: service.VertexAiSessionService

    def __init__(
        self,
        project: str | None = None,
        location: str | None = None,
        agent_engine_id: str | None = None,
        *,
        express_mode_api_key: str | None = None,
        base_url: str | None = None,
        credentials: Credentials | None = None,
        timeout_s: float = 30.0,
        retry_for_s: float = 10.0,
    ) -> None:
        super().__init__(
            service.VertexAiSessionService(
                project,
                location,
                agent_engine_id,
                express_mode_api_key=express_mode_api_key,
                base_url=base_url,
                credentials=credentials,
                timeout_s=timeout_s,
                retry_for_s=retry_for_s,
            ),
            cache_bytes=0,  # a list is read from its beginning in any case
        )
        self._engine = agent_engine_id

    # -- sessions -----------------------------------------------------------------------

    async def create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        state: dict[str, Any] | None = None,
        session_id: str | None = None,
        ttl: str | float | dt.timedelta | None = None,
        expire_time: str | float | dt.datetime | None = None,
        display_name: str | None = None,
        labels: dict[str, str] | None = None,
    ) -> AdkSession:
        """Create a session, with a new id if none is given; raises AlreadyExistsError.

        `ttl` and `expire_time` may be texts such as `7200s` and `2030-01-01T00:00:00Z`.
        """
        with as_adk_errors():
            created = await self.service.create_session(
                app_name=app_name,
                user_id=user_id,
                state=to_json_types(state or {}),
                session_id=self._id(session_id, app_name) or adk_uuid.new_uuid(),
                ttl=wire.parse_duration(ttl, "ttl") if isinstance(ttl, str) else ttl,
                expire_time=wire.parse_timestamp(expire_time, "expire_time")
                if isinstance(expire_time, str)
                else expire_time,
                display_name=display_name,
                labels=labels,
            )
        return to_adk_session(created, [])

    async def get_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        config: AdkGetSessionConfig | None = None,
    ) -> AdkSession | None:
        """Return the session with its merged state and events, or None; another user's is None."""
        return await super().get_session(
            app_name=app_name,
            user_id=user_id,
            session_id=self._id(session_id, app_name),
            config=config,
        )

    async def delete_session(self, app_name: str, user_id: str, session_id: str) -> None:
        """Remove a session, its events and its state; one that is not the user's is left alone."""
        await super().delete_session(app_name, user_id, self._id(session_id, app_name))

    def _id(self, session_id: str | None, app_name: str) -> str:
        """Return a session's id, which may be given as the last part of its full name."""
        found = _NAME.fullmatch(session_id or "")
        if found is None:
            return session_id or ""
        engine = self._engine or app_name.rpartition("/")[2]
        if found["engine"] not in (None, engine):
            raise InvalidInputError(
                f"The session {session_id!r} is of the engine {found['engine']!r}, and the service "
                f"of {engine!r}."
            )
        return found["id"]

    # -- events -------------------------------------------------------------------------

    async def append_event(self, session: AdkSession, event: AdkEvent) -> AdkEvent:
        """Store an event with its state delta at the end, and bring the session up to date.

        A partial event is returned as it is. To append an event again that the session holds
        changes nothing. Raises SessionNotFoundError, and threadline's EventConflictError for
        another event of the same id; a refused append leaves the session and the event as they
        were.
        """
        held = next((one for one in reversed(session.events) if one.id == event.id), None)
        if held is None or event.partial:
            return await super().append_event(session, event)
        if to_threadline(held) != to_threadline(event):
            raise EventConflictError(
                f"The session {session.id!r} already holds an event with the id {event.id!r} and "
                "other content."
            )
        return event

    async def refresh(self, session: AdkSession) -> AdkSession:
        """Bring a session up to date; return it. All events are read."""
        async with self._turn(session):
            handle = await self._handle(session)
            found = await self._load((session.app_name, session.user_id, session.id), None)
            if found is None or handle.incarnation not in (None, found.incarnation):
                raise SessionNotFoundError(f"The session {session.id!r} does not exist any more.")
            held = {one.id: one for one in session.events}
            events = events_of(found.events)
            places = {one.id: at for at, one in enumerate(events)}
            if not held.keys() <= places.keys():
                raise IncompleteReadError(
                    f"The session {session.id!r} was read without events that it had before. Try "
                    "again; if it stays so, the store is damaged."
                )
            begin = min((places[id] for id in held), default=0)
            session.events[:] = [held.get(one.id, one) for one in events[begin:]]
            bring_up_to_date(session, found)
        return session

    async def _handle(self, session: AdkSession) -> Session:
        """Return threadline's handle; nothing is read, as the API compares no revisions."""
        return marked_handle(session)
