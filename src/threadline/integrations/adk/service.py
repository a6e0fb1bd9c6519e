"""google-adk's session service over threadline's."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any, Literal, Self

from google.adk.platform import uuid as adk_uuid
from google.adk.sessions import BaseSessionService
from google.adk.sessions import Session as AdkSession
from google.adk.sessions.base_session_service import GetSessionConfig as AdkGetSessionConfig
from google.adk.sessions.base_session_service import ListSessionsResponse

from threadline import state as scopes
from threadline import store
from threadline.errors import IncompleteReadError
from threadline.errors import SessionNotFoundError as _SessionNotFoundError
from threadline.integrations.adk.cache import Cache
from threadline.integrations.adk.errors import as_adk_errors
from threadline.integrations.adk.events import (
    events_of,
    rows_of,
    to_adk,
    to_json_types,
    to_threadline,
)
from threadline.models import GetSessionConfig, Session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import asyncpg
    from google.adk.events.event import Event as AdkEvent
    from sqlalchemy.ext.asyncio import AsyncEngine

    from threadline import service
    from threadline.engines.base import EventRow
    from threadline.service import OnStale

CACHE_BYTES = 64 * 1024 * 1024


class ThreadlineSessionService(BaseSessionService):
    """A threadline service with google-adk's interface, models and errors.

    `service` is the one underneath, for what google-adk has no verb for: pages of sessions,
    `patch_state`, expiry. `cache_bytes` bounds the stored events that are remembered, of all
    sessions together, so that a session that is loaded again costs a read of what is new; 0
    remembers none. With `share_events` they are remembered as objects (of several times that
    size), and those who load one session are handed the same ones, the list and the state
    still being their own: the quickest way, and right where nobody changes a loaded event.
    """

    def __init__(
        self,
        service: service.BaseSessionService,
        *,
        cache_bytes: int = CACHE_BYTES,
        share_events: bool = False,
    ) -> None:
        self.service = service
        self._share_events = share_events
        self._cache: Cache[EventRow | AdkEvent] = Cache(cache_bytes)
        self._turns: dict[int, _Turn] = {}

    # -- sessions -----------------------------------------------------------------------

    async def create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        state: dict[str, Any] | None = None,
        session_id: str | None = None,
    ) -> AdkSession:
        """Create a session, with a new id if none is given; raises AlreadyExistsError."""
        with as_adk_errors():
            created = await self.service.create_session(
                app_name=app_name,
                user_id=user_id,
                state=to_json_types(state or {}),
                session_id=session_id or adk_uuid.new_uuid(),
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
        """Return the session with its merged state and events, or None.

        Events that this service remembers are not read from the store again.
        """
        if not session_id:
            return None
        key = (app_name, user_id, session_id)
        if config and (config.num_recent_events is not None or config.after_timestamp is not None):
            found = await self._load(
                key,
                GetSessionConfig(
                    num_recent_events=config.num_recent_events,
                    after_timestamp=config.after_timestamp,
                ),
            )
            return None if found is None else to_adk_session(found, events_of(found.events))
        while True:
            known = self._cache.find(key)
            after = len(known.items) if known else 0
            found = await self._load(key, GetSessionConfig(after_seq=after) if after else None)
            if found is None:
                self._cache.forget(key)
                return None
            if known and after and found.incarnation != known.incarnation:
                self._cache.forget(key)  # another session has taken the id
                continue
            if after + len(found.events) != found.revision:
                raise IncompleteReadError(
                    f"The session {session_id!r} has {found.revision} events, but only "
                    f"{len(found.events)} of those after {after} were read. Try again."
                )
            rows = list(rows_of(found.events))
            news = [to_adk(row) for row in rows]
            size_bytes = sum(len(body) for _, body in rows)
            kept = news if self._share_events else rows
            seen = [
                to_adk(item) if isinstance(item, tuple) else item
                for item in (known.items[:after] if known else ())
            ]
            self._cache.keep(key, found.incarnation, after, kept, size_bytes)
            return to_adk_session(found, seen + news)

    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None
    ) -> ListSessionsResponse:
        """List sessions without events, oldest update first; of all users if `user_id` is None."""
        listed = await self.service.list_sessions(app_name=app_name, user_id=user_id)
        return ListSessionsResponse(sessions=[to_adk_session(one, []) for one in listed.sessions])

    async def delete_session(self, app_name: str, user_id: str, session_id: str) -> None:
        """Remove a session, its events and its state; a missing one is no error."""
        self._cache.forget((app_name, user_id, session_id))
        if session_id:
            await self.service.delete_session(
                app_name=app_name, user_id=user_id, session_id=session_id
            )

    async def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        """Return a copy of the user's state, keys without their prefix."""
        return await self.service.get_user_state(app_name=app_name, user_id=user_id)

    # -- events -------------------------------------------------------------------------

    async def append_event(self, session: AdkSession, event: AdkEvent) -> AdkEvent:
        """Store an event with its state delta, and bring the session up to date with it.

        The event loses its `temp:` keys to the session's state. A partial event is returned as
        it is. To append an event again changes nothing. Raises StaleSessionError,
        SessionNotFoundError, and threadline's EventConflictError for another event of the same
        id; a refused append leaves the session and the event as they were.
        """
        if event.partial:
            return event
        new = to_threadline(event)
        async with self._turn(session):
            handle = await self._handle(session)
            known = {one.id for one in session.events} if not handle.revision else set()
            with as_adk_errors():
                stored = await self.service.append_event(handle, new)
            for row in rows_of(handle.events):
                one = event if row[0] == stored.seq else to_adk(row)
                if one.id not in known:
                    self._apply_temp_state(session, one)
                    self._commit_event_to_session(session, self._trim_temp_delta_state(one))
            _mark(session, handle)
        return event

    async def refresh(self, session: AdkSession) -> AdkSession:
        """Bring a session up to date, reading only the events it has not seen; return it.

        Raises SessionNotFoundError if the session was deleted or has expired.
        """
        async with self._turn(session):
            handle = await self._handle(session)
            known = {one.id for one in session.events} if not handle.revision else set()
            with as_adk_errors():
                await self.service.refresh(handle)
            session.events += [one for one in events_of(handle.events) if one.id not in known]
            bring_up_to_date(session, handle)
        return session

    async def _handle(self, session: AdkSession) -> Session:
        """Return threadline's handle of a session, which knows what the session's holder knows."""
        handle = marked_handle(session)
        if _marker(session):
            return handle
        # Made by hand, or by way of JSON: what it knows is told by its newest event.
        key = (session.app_name, session.user_id, session.id)
        found = await self._load(key, GetSessionConfig(num_recent_events=1))
        if found is None:
            with as_adk_errors():
                raise _SessionNotFoundError(f"The session {session.id!r} does not exist.")
        newest = found.events[-1].id if found.events else None
        is_current = (
            any(event.id == newest for event in reversed(session.events))
            if session.events
            else session.last_update_time >= found.last_update_time
        )
        if newest is None or is_current:
            handle.revision = found.revision
            handle.incarnation = found.incarnation
        return handle

    async def _load(
        self, key: tuple[str, str, str], config: GetSessionConfig | None
    ) -> Session | None:
        app_name, user_id, session_id = key
        return await self.service.get_session(
            app_name=app_name, user_id=user_id, session_id=session_id, config=config
        )

    @contextlib.asynccontextmanager
    async def _turn(self, session: AdkSession) -> AsyncIterator[None]:
        """Wait for the appends through the same object: each needs what the last one left."""
        turn = self._turns.setdefault(id(session), _Turn())
        turn.takers += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.takers -= 1
            if not turn.takers:
                del self._turns[id(session)]

    # -- life ---------------------------------------------------------------------------

    async def close(self) -> None:
        """Let go of connections and threads; the next call opens them again."""
        await self.service.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class InMemorySessionService(ThreadlineSessionService):
    """Sessions in the memory of this process, for tests and throw-away runs."""

    def __init__(
        self,
        *,
        on_stale: OnStale = "raise",
        state_schema: type | None = None,
        cache_bytes: int = CACHE_BYTES,
        share_events: bool = False,
    ) -> None:
        super().__init__(
            store.InMemorySessionService(on_stale=on_stale, state_schema=state_schema),
            cache_bytes=cache_bytes,
            share_events=share_events,
        )


class DatabaseSessionService(ThreadlineSessionService):
    """Sessions in the database that a URL names, google-adk's spellings of it included.

    The options up to `replica_url` are those of `threadline.DatabaseSessionService`, the last
    two those of `ThreadlineSessionService`.
    """

    service: store.DatabaseSessionService

    def __init__(
        self,
        db_url: str | asyncpg.Pool | AsyncEngine,
        *,
        on_stale: OnStale = "raise",
        durability: Literal["full", "normal"] = "full",
        busy_timeout_s: float = 30.0,
        auto_migrate: bool = True,
        state_schema: type | None = None,
        schema: str | None = None,
        table_prefix: str | None = None,
        pool_min: int | None = None,
        pool_max: int | None = None,
        connect_with: Callable[..., Awaitable[Any]] | None = None,
        group_commit: bool | None = None,
        replica_url: str | None = None,
        cache_bytes: int = CACHE_BYTES,
        share_events: bool = False,
    ) -> None:
        super().__init__(
            store.DatabaseSessionService(
                db_url,
                on_stale=on_stale,
                durability=durability,
                busy_timeout_s=busy_timeout_s,
                auto_migrate=auto_migrate,
                state_schema=state_schema,
                schema=schema,
                table_prefix=table_prefix,
                pool_min=pool_min,
                pool_max=pool_max,
                connect_with=connect_with,
                group_commit=group_commit,
                replica_url=replica_url,
            ),
            cache_bytes=cache_bytes,
            share_events=share_events,
        )

    async def prepare_tables(self) -> None:
        """Connect, and create or upgrade the tables, ahead of the first request."""
        await self.service.prepare_tables()


def adk_service(
    service: service.BaseSessionService,
    *,
    cache_bytes: int = CACHE_BYTES,
    share_events: bool = False,
) -> ThreadlineSessionService:
    """Give any of threadline's services the interface of google-adk's."""
    return ThreadlineSessionService(service, cache_bytes=cache_bytes, share_events=share_events)


class _Turn:
    """Who may append through a session object, and how many want to."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.takers = 0


# What a session object knows of the store: google-adk keeps such a mark in the same place. It
# goes along with a copy of the object, and is lost on the way through JSON.
_MARKER = re.compile(r"threadline:(?P<incarnation>\d*):(?P<revision>\d+)")


def _marker(session: AdkSession) -> re.Match[str] | None:
    return _MARKER.fullmatch(session._storage_update_marker or "")  # noqa: SLF001 - ADK's place for it


def marked_handle(session: AdkSession) -> Session:
    """Return threadline's handle of a session as its mark has it, or of an empty one."""
    handle = Session(id=session.id, app_name=session.app_name, user_id=session.user_id, revision=0)
    marker = _marker(session)
    if marker:
        handle.revision = int(marker["revision"])
        handle.incarnation = int(marker["incarnation"]) if marker["incarnation"] else None
    return handle


def bring_up_to_date(session: AdkSession, known: Session) -> None:
    """Give a session the state that is known now, but for its own `temp:` keys, and its mark."""
    temp = scopes.temp_keys(session.state)
    session.state.clear()
    session.state.update(scopes.plain(known.state), **temp)
    _mark(session, known)


def _mark(session: AdkSession, known: Session) -> None:
    session.last_update_time = known.last_update_time
    incarnation = "" if known.incarnation is None else known.incarnation
    session._storage_update_marker = f"threadline:{incarnation}:{known.revision or 0}"  # noqa: SLF001 - ADK's place for it


def to_adk_session(known: Session, events: list[AdkEvent]) -> AdkSession:
    """Return google-adk's session of a handle, marked."""
    session = AdkSession(
        id=known.id,
        app_name=known.app_name,
        user_id=known.user_id,
        state=scopes.plain(known.state),
        events=events,
    )
    _mark(session, known)
    return session
