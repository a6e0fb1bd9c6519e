"""What every session service does: ADK's verbs, and those its users miss."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Literal, Self

from msgspec import UNSET, UnsetType

from threadline.errors import AlreadyExistsError, UnsupportedOperationError

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable, Mapping, Sequence

    from threadline.engines.base import ErasedUser
    from threadline.models import (
        Event,
        GetSessionConfig,
        ListEventsResponse,
        ListSessionsResponse,
        Session,
    )

OnStale = Literal["raise", "rebase"]
Order = Literal["updated", "created"]


class BaseSessionService(abc.ABC):
    """What every session service does; the meaning is the same wherever sessions are stored."""

    @abc.abstractmethod
    async def create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        state: dict[str, Any] | None = None,
        session_id: str | None = None,
        ttl: float | dt.timedelta | None = None,
        expire_time: float | dt.datetime | None = None,
        display_name: str | None = None,
        labels: dict[str, str] | None = None,
    ) -> Session:
        """Create a session, with a new id if none is given.

        `state` is split by prefix into the app's, the user's and the session's; `temp:` keys are
        dropped. `ttl` (seconds) or `expire_time` (seconds since the epoch), not both: from then
        on the session does not exist. Raises AlreadyExistsError.
        """

    async def get_or_create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        state: dict[str, Any] | None = None,
        ttl: float | dt.timedelta | None = None,
        expire_time: float | dt.datetime | None = None,
        display_name: str | None = None,
        labels: dict[str, str] | None = None,
    ) -> Session:
        """Return the session, created with these arguments if there is none."""
        while True:
            found = await self.get_session(
                app_name=app_name, user_id=user_id, session_id=session_id
            )
            if found is not None:
                return found
            try:
                return await self.create_session(
                    app_name=app_name,
                    user_id=user_id,
                    session_id=session_id,
                    state=state,
                    ttl=ttl,
                    expire_time=expire_time,
                    display_name=display_name,
                    labels=labels,
                )
            except AlreadyExistsError:
                continue  # somebody else was first; theirs is as good

    @abc.abstractmethod
    async def get_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        config: GetSessionConfig | None = None,
    ) -> Session | None:
        """Return a handle of the session with its merged state and events, or None.

        `config` loads a part of the events; the state is whole in any case, and such a handle can
        be appended to like any other.
        """

    @abc.abstractmethod
    async def list_sessions(
        self,
        *,
        app_name: str,
        user_id: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        order: Order = "updated",
        descending: bool = False,
        include_state: bool = True,
    ) -> ListSessionsResponse:
        """List sessions without their events, of all users if `user_id` is None.

        Without `limit` all of them come, oldest update first (ADK's order: time, user, id). With
        it, a page and the `next_cursor` for the next call with otherwise equal arguments; its
        cost does not grow with the number of sessions. `include_state=False` reads no state.
        """

    @abc.abstractmethod
    async def list_events(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        after_seq: int | None = None,
        before_seq: int | None = None,
        limit: int = 100,
        reverse: bool = False,
    ) -> ListEventsResponse:
        """Return a page of events with `after_seq < seq < before_seq`.

        It is the first page of them, or the last with `reverse=True`; events come in seq order
        in both cases, and `has_more` says whether there are more beyond the page in the
        direction of the read. Raises SessionNotFoundError.
        """

    async def append_event(
        self, session: Session, event: Event, *, on_stale: OnStale | None = None
    ) -> Event:
        """Store an event with its state delta and return it with its seq.

        The handle receives the event, and its state the delta; `temp:` keys reach only the
        handle's state. A partial event is returned as it is, and nothing else happens. Appending
        an event again returns the stored one and changes nothing.

        Raises StaleSessionError if the session has events that the handle has not seen; with
        `on_stale="rebase"` the handle receives those first. SessionNotFoundError if the session
        was deleted or has expired; EventConflictError if another event has this id;
        UnsupportedValueError for a value that would not come back equal.
        """
        return (await self.append_events(session, (event,), on_stale=on_stale))[0]

    @abc.abstractmethod
    async def append_events(
        self, session: Session, events: Sequence[Event], *, on_stale: OnStale | None = None
    ) -> list[Event]:
        """Store several events in one transaction: all of them, or none."""

    @abc.abstractmethod
    async def refresh(self, session: Session) -> Session:
        """Bring a handle up to date, reading only the events it has not seen; return it.

        Raises SessionNotFoundError if the session was deleted or has expired.
        """

    async def find_sessions(self, *, app_name: str, session_id: str) -> list[Session]:
        """Return handles of the app's sessions with this id, one for each user that has one.

        For callers that know an id and not whose it is. They come by user, without state and
        events, and can be appended to like any other.
        """
        listed = await self.list_sessions(app_name=app_name, include_state=False)
        found = [session for session in listed.sessions if session.id == session_id]
        return sorted(found, key=lambda session: session.user_id)

    async def list_apps(self) -> list[str]:
        """Return the names of the apps that have sessions, in order."""
        raise UnsupportedOperationError(f"{type(self).__name__} cannot list apps.")

    async def update_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        display_name: str | UnsetType | None = UNSET,
        labels: dict[str, str] | UnsetType | None = UNSET,
        ttl: float | dt.timedelta | None = None,
        expire_time: float | dt.datetime | UnsetType | None = UNSET,
    ) -> Session:
        """Change a session's title, labels or expiry; return a handle of it without events.

        What is not given stays, and None takes it away: `expire_time=None` is for ever. `ttl`
        counts from now. Nothing else changes, so no handle becomes stale. Raises
        SessionNotFoundError.
        """
        raise UnsupportedOperationError(f"{type(self).__name__} cannot change a session's labels.")

    @abc.abstractmethod
    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Remove a session, its events and its state; a missing one is no error.

        The user's and the app's state stay.
        """

    async def erase_user(self, *, app_name: str, user_id: str) -> ErasedUser:
        """Remove all of a user in an app: sessions, expired ones too, and the user's state.

        It is one transaction, and a session that is created meanwhile is removed whole or stays
        whole. The app's state stays. A user who has nothing is no error. To erase again is
        harmless, so where an answer was lost the store is asked again: the counts are then those
        of a last try, and may be less than what was removed.
        """
        raise UnsupportedOperationError(f"{type(self).__name__} cannot erase a user.")

    @abc.abstractmethod
    async def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        """Return a copy of the user's state, keys without their prefix."""

    @abc.abstractmethod
    async def get_app_state(self, *, app_name: str) -> dict[str, Any]:
        """Return a copy of the app's state, keys without their prefix."""

    @abc.abstractmethod
    async def patch_state(
        self,
        *,
        app_name: str,
        user_id: str | None = None,
        session_id: str | None = None,
        set: Mapping[str, Any] | None = None,
        delete: Iterable[str] = (),
        increment: Mapping[str, float] | None = None,
        expect: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Change state without an event, atomically; return the new values of the keys set.

        The ids given decide the scope: the app's, the user's, or the session's state; keys have
        no prefix. `increment` adds to numbers, a missing one being 0. `expect` names values that
        must be there, `MISSING` standing for none, else StateConflictError and nothing changes.
        No handle becomes stale; `refresh` shows it the new values.
        """

    async def flush(self) -> None:  # noqa: B027 - nothing to do is the rule
        """Do nothing: an append that returned is stored (ADK's Runner calls this)."""

    async def close(self) -> None:  # noqa: B027 - some services hold nothing
        """Let go of connections and threads."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
