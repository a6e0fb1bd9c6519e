"""The session service over the Vertex AI Sessions API: Google's, or a threadline server's.

The API numbers no events and compares no revisions. An event's `seq` is its place in the list of
events as it was read; an append goes to the end of the log, whatever else was stored.
"""

from __future__ import annotations

import asyncio
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from urllib.parse import unquote

import msgspec
from msgspec import UNSET, UnsetType

from threadline import clock, codec, state
from threadline.canonical import decode
from threadline.engines.base import (
    NO_STATE,
    Appended,
    EventClashError,
    SessionRow,
    StateRows,
    app_scope,
    check_id,
    session_key,
    user_scope,
)
from threadline.errors import (
    AlreadyExistsError,
    DamagedDataError,
    EventConflictError,
    IncompleteReadError,
    InvalidInputError,
    SessionNotFoundError,
    StorageError,
    StorageUnavailableError,
    UnsupportedOperationError,
    UnsupportedValueError,
)
from threadline.history import History
from threadline.models import Event, ListEventsResponse, ListSessionsResponse
from threadline.store import (
    HandleSessionService,
    bring_up_to_date,
    check_positive,
    check_seq,
    encoded_labels,
    expiry,
    session_change,
    turn_of,
)
from threadline.vertex import wire
from threadline.vertex.client import Tries, VertexClient

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from google.auth.credentials import Credentials

    from threadline.engines.base import ErasedUser, EventRow, Handle, NewEvent, SessionKey
    from threadline.models import GetSessionConfig, Session
    from threadline.service import OnStale, Order

_ORDERS: dict[str, str] = {"updated": "update_time", "created": "create_time"}
_ENGINE = re.compile(r"(?:projects/[\w-]+/locations/[\w-]+/reasoningEngines/)?(\d+)")
_READ_BACK_S = 5.0
"""How long a session that an operation has made may stay unseen."""
_MICROSECONDS_S = 2e-6
"""What a server may cut off of a time: it keeps microseconds."""


class VertexAiSessionService(HandleSessionService):
    """Sessions of Vertex AI Agent Engine, or of a server that speaks its API.

    `project` and `location` default to GOOGLE_CLOUD_PROJECT and GOOGLE_CLOUD_LOCATION; calls carry
    a token of `credentials` (google-auth's), by default Application Default Credentials. In
    express mode there is an API key instead. `agent_engine_id` stands for any app; without it,
    the app's name is the engine's id or full name. With `base_url` the server is another one than
    Google's: it gets the credentials given, and none are looked for.

    A try waits for its answer, and an operation for its end, for `timeout_s`. A call that failed
    for the quota or on the way is tried again for `retry_for_s`. An append is sent again only
    when a read has shown that it is not there.
    """

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
        super().__init__(on_stale="raise", state_schema=None)
        self._engine = agent_engine_id
        self._client = VertexClient(
            project=project,
            location=location,
            api_key=express_mode_api_key,
            base_url=base_url,
            credentials=credentials,
            timeout_s=timeout_s,
            retry_for_s=retry_for_s,
        )

    # -- sessions -----------------------------------------------------------------------

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
        """Create a session, with a new id if none is given."""
        key = session_key(app_name, user_id, clock.new_id() if session_id is None else session_id)
        merged = codec.rows_to_state(codec.state_to_rows(state or {}))
        _check_struct(merged, "state")
        expires = expiry(clock.now(), ttl, expire_time)
        encoded_labels(labels)
        body: dict[str, Any] = {"userId": user_id, "displayName": display_name, "labels": labels}
        body["sessionState"] = merged
        if ttl is not None and expires is not None:
            body["ttl"] = _duration(ttl)
        elif expires is not None:
            body["expireTime"] = wire.format_timestamp(expires)
        data = wire.dumps({name: value for name, value in body.items() if value})
        tries = Tries(self._client.retry_for_s)
        while True:
            try:
                operation = await self._client.call(
                    _Operation,
                    "POST",
                    f"{self._parent(app_name)}/sessions",
                    query={"sessionId": key.id},
                    body=data,
                    is_repeatable=False,
                )
                break
            except SessionNotFoundError as error:
                raise _no_engine(app_name, error) from error
            except StorageUnavailableError as refusal:
                await tries.pause(refusal)
                if await self._described(key) is None:
                    continue
                if session_id is None:  # nobody else has made that one
                    return await self._read_back(key)
                raise
        name = await self._finished(operation)
        return await self._read_back(session_key(app_name, user_id, _last_segment(name)))

    async def _finished(self, operation: _Operation) -> str:
        """Wait for an operation; return the name of the session that it made."""
        tries = Tries(self._client.timeout_s)
        while not operation.done:
            await tries.pause(
                StorageUnavailableError(
                    f"The operation {operation.name} has not finished within "
                    f"{self._client.timeout_s:g} s. Whether the session is created is not known."
                )
            )
            operation = await self._client.call(_Operation, "GET", operation.name)
        if operation.error is not None:
            if operation.error.code == _ALREADY_EXISTS:
                raise AlreadyExistsError(operation.error.message)
            raise StorageError(f"The session was not created: {operation.error.message}")
        if operation.response is None or not operation.response.name:
            raise StorageError(f"The operation {operation.name} made no session.")
        return operation.response.name

    async def _read_back(self, key: SessionKey) -> Session:
        """Return a session that was made just now, with the state of every scope."""
        tries = Tries(_READ_BACK_S)
        while True:
            found = await self._described(key)
            if found is not None:
                return codec.row_to_session(*found, History())
            await tries.pause(
                StorageUnavailableError(f"The session {key.id!r} was created, and is not found.")
            )

    async def get_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        config: GetSessionConfig | None = None,
    ) -> Session | None:
        """Return a handle of the session with its merged state and events, or None.

        How many events a session has is known only where all are read. It is not after
        `num_recent_events=0` and `after_timestamp`, and such a handle has no `revision`.
        """
        key = session_key(app_name, user_id, session_id)
        since = config.after_timestamp if config else None
        recent = config.num_recent_events if config else None
        if recent == 0:
            found, listed = await self._described(key), list[_Listed]()
        else:
            found, listed = await self._read(key, since)
        if found is None:
            return None
        if config is not None and config.after_seq is not None and since is not None:
            raise UnsupportedOperationError(
                "Vertex AI numbers no events: give after_seq or after_timestamp, not both."
            )
        kept = listed[config.after_seq or 0 :] if config else listed
        kept = kept[-recent:] if recent else kept
        row, rows = found
        if recent == 0 or since is not None:
            # None of these has a place in a list that was read from its beginning.
            history = History([decode(Event, one.row[1]) for one in kept])
            session = codec.row_to_session(row, rows, history)
            session.revision = None
        else:
            row = msgspec.structs.replace(row, revision=len(listed))
            session = codec.row_to_session(row, rows, History(one.row for one in kept))
        _remember(session, kept)
        return session

    async def _read(
        self, key: SessionKey, since: float | None = None
    ) -> tuple[_Described | None, list[_Listed]]:
        """Read a session and its events at the same time."""
        described, listed = await asyncio.gather(
            self._described(key), self._all_events(key, since), return_exceptions=True
        )
        for outcome in (described, listed):
            if isinstance(outcome, SessionNotFoundError):
                return None, []
            if isinstance(outcome, BaseException):
                raise outcome
        assert not isinstance(described, BaseException)  # noqa: S101 - for the type checker
        assert not isinstance(listed, BaseException)  # noqa: S101
        return described, listed

    async def _described(self, key: SessionKey) -> _Described | None:
        """Return a session without its events; None if it is not there, or is another user's."""
        try:
            found = await self._client.call(_Session, "GET", self._path(key))
        except SessionNotFoundError:
            return None
        if found.user_id != key.user:
            return None
        return _to_rows(found, key.app)

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

        In pages, their order is the server's among sessions of one time.
        """
        app_scope(app_name) if user_id is None else user_scope(app_name, user_id)
        if order not in _ORDERS:
            raise InvalidInputError(f"order must be 'updated' or 'created', got {order!r}.")
        if limit is not None:
            check_positive("limit", limit)
        asked = [app_name, user_id, order, descending]
        token = None if cursor is None else _cursor_to_token(cursor, asked)
        way = f"{_ORDERS[order]}{' desc' if descending else ''}"
        query: dict[str, Any] = {
            "filter": None if user_id is None else f"user_id={_quoted(user_id)}",
            # Without pages the order is made here, as the official client does it.
            "orderBy": None if limit is None else way,
        }
        listed = ListSessionsResponse()
        seen: set[str | None] = set()
        while True:
            size = None if limit is None else limit - len(listed.sessions)
            try:
                page = await self._client.call(
                    _SessionPage,
                    "GET",
                    f"{self._parent(app_name)}/sessions",
                    query={**query, "pageSize": size, "pageToken": token},
                )
            except SessionNotFoundError as error:
                raise _no_engine(app_name, error) from error
            for one in page.sessions:
                session = codec.row_to_session(*_to_rows(one, app_name), History())
                session.revision = None
                if not include_state:
                    session.state = state.ReadOnlyDict()
                listed.sessions.append(session)
            token = _next(page.next_page_token, seen)
            if token is None:
                break
            if len(listed.sessions) == limit:
                listed.next_cursor = wire.encode_token([*asked, token])
                break
        if limit is None:
            time = "last_update_time" if order == "updated" else "create_time"
            listed.sessions.sort(
                key=lambda one: (getattr(one, time), one.user_id, one.id), reverse=descending
            )
        return listed

    async def find_sessions(self, *, app_name: str, session_id: str) -> list[Session]:
        """Return a handle of the engine's one session with this id, if it has one."""
        app_scope(app_name)
        check_id("session_id", session_id)
        path = wire.name_of(self._parent(app_name), "sessions", session_id)
        try:
            found = await self._client.call(_Session, "GET", path)
        except SessionNotFoundError:
            return []
        row, _ = _to_rows(found, app_name)
        session = codec.row_to_session(row, NO_STATE, History())
        session.revision = None
        return [session]

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
        """Change a session's title, labels or expiry; return a handle of it without events."""
        key = session_key(app_name, user_id, session_id)
        change = session_change(clock.now(), display_name, labels, ttl, expire_time)
        body: dict[str, Any] = {}
        if display_name is not UNSET:
            body["displayName"] = display_name
        if labels is not UNSET:
            body["labels"] = labels
        if ttl is not None:
            body["ttl"] = _duration(ttl)
        elif change.expires is not UNSET:
            expires = change.expires
            body["expireTime"] = None if expires is None else wire.format_timestamp(expires)
        found = await self._described(key)
        if found is None:
            raise SessionNotFoundError(f"The session {session_id!r} does not exist.")
        if body:
            given = {name: value for name, value in body.items() if value is not None}
            changed = await self._client.call(
                _Session,
                "PATCH",
                self._path(key),
                query={"updateMask": ",".join(body)},
                body=wire.dumps({**given, "userId": user_id}),
            )
            found = _to_rows(changed, app_name)
        session = codec.row_to_session(*found, History())
        session.revision = None
        return session

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Remove a session, its events and its state; a missing one is no error."""
        key = session_key(app_name, user_id, session_id)
        if await self._described(key) is None:
            return
        try:
            await self._client.call(_Operation, "DELETE", self._path(key))
        except SessionNotFoundError:
            return  # somebody else was first, or an earlier try of ours

    async def erase_user(
        self,
        *,
        app_name: str,  # noqa: ARG002 - refused whatever they are
        user_id: str,  # noqa: ARG002
    ) -> ErasedUser:
        """Refuse: UnsupportedOperationError."""
        raise UnsupportedOperationError(
            "The Sessions API of Vertex AI removes no user's state, so nothing was erased. List "
            "the user's sessions and delete each."
        )

    # -- events -------------------------------------------------------------------------

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

        The list is read from its beginning up to the page: the API finds no event by its place.
        """
        check_positive("limit", limit)
        first = (check_seq("after_seq", after_seq) or 0) + 1
        end = check_seq("before_seq", before_seq)
        key = session_key(app_name, user_id, session_id)
        if await self._described(key) is None:
            raise SessionNotFoundError(f"The session {session_id!r} does not exist.")
        found: list[EventRow] = []
        async for one in self._events(key):
            seq = one.row[0]
            if (end is not None and seq >= end) or (not reverse and len(found) > limit):
                break
            if seq >= first:
                found.append(one.row)
        page = found[-limit:] if reverse else found[:limit]
        return ListEventsResponse(events=History(page), has_more=len(found) > limit)

    async def append_events(
        self, session: Session, events: Sequence[Event], *, on_stale: OnStale | None = None
    ) -> list[Event]:
        """Store several events one after the other, each whole; they are all checked before.

        Each goes to the end of the log. With `on_stale="rebase"` the handle receives what others
        have stored; `"raise"` cannot be: UnsupportedOperationError.
        """
        if on_stale == "raise":
            raise UnsupportedOperationError(
                "Vertex AI compares no revisions, so a stale handle cannot be refused. Leave "
                'on_stale out to append at the end, or give "rebase" to receive what was missed.'
            )
        given = [one if isinstance(one, Event) else Event.from_dict(one) for one in events]
        if len(given) > 1:
            self._check(session, [event for event in given if not event.partial])
        is_counted = session.revision is not None or any(event.seq for event in session.events)
        stored: list[Event] = []
        for event in given:
            stored += await super().append_events(session, (event,), on_stale=on_stale)
            if not is_counted:  # a place after events that were not read is not known
                session.revision = None
                if not stored[-1].partial:
                    msgspec.structs.force_setattr(stored[-1], "seq", None)
        return stored

    def _check(self, session: Session, events: list[Event]) -> None:
        """Raise for the first event that would be refused after others were stored."""
        known = _places(session)
        ids: set[str] = set()
        for event in events:
            row, _ = codec.event_to_row(event)
            if row.id not in known:
                _message(row)
            elif session.events[known[row.id]] != event:
                raise EventConflictError(
                    f"The session {session.id!r} already holds an event with the id {row.id!r} "
                    "and other content."
                )
            if row.id in ids:
                raise EventConflictError("Two of the events to be appended have the same id.")
            ids.add(row.id)

    async def _store(
        self, session: Session, handle: Handle, rows: list[NewEvent], rebase: bool
    ) -> Appended:
        (row,) = rows  # as `append_events` gives them
        known = _places(session)
        seq, revision, updated = handle.revision + 1, handle.revision + 1, row.timestamp
        missed: list[EventRow] = []
        if row.id in known:
            stored = session.events[known[row.id]]
            seq, revision, updated = stored.seq or 0, handle.revision, session.last_update_time
            body = codec.event_to_row(stored)[0].body
            if body != row.body:
                raise EventClashError(0, (seq, body))
        else:
            await self._send(handle.key, row)
        if rebase and session.revision is not None:
            listed = await self._all_events(handle.key)
            seq = next((one.row[0] for one in listed if one.id == row.id), seq)
            missed = [one.row for one in listed if one.id not in known and one.id != row.id]
            revision = max(revision, len(listed))
        return Appended(
            seqs=[seq],
            missed=missed,
            incarnation=handle.incarnation,  # type: ignore[arg-type] # None if made by hand
            revision=revision,
            updated=updated,
        )

    async def _send(self, key: SessionKey, row: NewEvent) -> None:
        """Append an event once: where an answer was lost, look before it is sent again."""
        body = msgspec.json.encode(_message(row))
        tries = Tries(self._client.retry_for_s)
        while True:
            try:
                await self._client.call(
                    _Empty, "POST", f"{self._path(key)}:appendEvent", body=body, is_repeatable=False
                )
            except StorageUnavailableError as refusal:
                await tries.pause(refusal)
                if await self._is_stored(key, row):
                    return
            else:
                return

    async def _is_stored(self, key: SessionKey, row: NewEvent) -> bool:
        async for one in self._events(key, row.timestamp - _MICROSECONDS_S):
            if one.id == row.id:
                return True
        return False

    async def refresh(self, session: Session) -> Session:
        """Bring a handle up to date; return it.

        All events are read, as the API finds none by its place.
        """
        key = session_key(session.app_name, session.user_id, session.id)
        async with turn_of(session):
            found, listed = await self._read(key)
            if found is None or session.incarnation not in (None, found[0].incarnation):
                raise SessionNotFoundError(f"The session {session.id!r} does not exist any more.")
            held = _places(session)
            places = {one.id: at for at, one in enumerate(listed)}
            lost = [id for id in held if id not in places]
            if lost:
                raise IncompleteReadError(
                    f"The session {session.id!r} was read without the event {lost[0]!r}, which it "
                    "had before. Try again; if it stays so, the store is damaged."
                )
            begin = min((places[id] for id in held), default=0)
            row = msgspec.structs.replace(found[0], revision=len(listed))
            kept = listed[begin:]
            fresh = codec.row_to_session(row, found[1], History(one.row for one in kept))
            bring_up_to_date(session, fresh)
            _remember(session, kept)
        return session

    async def _all_events(self, key: SessionKey, since: float | None = None) -> list[_Listed]:
        return [one async for one in self._events(key, since)]

    async def _events(self, key: SessionKey, since: float | None = None) -> AsyncIterator[_Listed]:
        """Yield a session's events, page by page; those since a time, in seconds, if one is given.

        What a page counts is up to the server; the last one is that without a token.
        """
        wanted = None if since is None else f"timestamp>={_quoted(wire.format_timestamp(since))}"
        token: str | None = None
        seen: set[str | None] = set()
        seq = 0
        while True:
            page = await self._client.call(
                _EventPage,
                "GET",
                f"{self._path(key)}/events",
                query={"filter": wanted, "pageToken": token},
            )
            for message in page.session_events:
                seq += 1
                one = _listed(seq, message)
                if since is None or one.timestamp >= since:
                    yield one
            token = _next(page.next_page_token, seen)
            if token is None:
                return

    # -- state --------------------------------------------------------------------------

    async def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        """Return a copy of the user's state, as a session of the user's shows it."""
        shown = await self._shown_state(app_name, user_id)
        return {k[5:]: v for k, v in shown.items() if k.startswith(state.USER_PREFIX)}

    async def get_app_state(self, *, app_name: str) -> dict[str, Any]:
        """Return a copy of the app's state, as any session of the app shows it."""
        shown = await self._shown_state(app_name, None)
        return {k[4:]: v for k, v in shown.items() if k.startswith(state.APP_PREFIX)}

    async def _shown_state(self, app_name: str, user_id: str | None) -> dict[str, Any]:
        listed = await self.list_sessions(app_name=app_name, user_id=user_id, limit=1)
        if not listed.sessions:
            raise UnsupportedOperationError(
                "Vertex AI shows the state of an app and of a user only in a session, and there "
                "is none."
            )
        shown: dict[str, Any] = decode(None, msgspec.json.encode(listed.sessions[0].state))
        return shown

    async def patch_state(
        self,
        *,
        app_name: str,  # noqa: ARG002 - refused whatever they are
        user_id: str | None = None,  # noqa: ARG002
        session_id: str | None = None,  # noqa: ARG002
        set: Mapping[str, Any] | None = None,  # noqa: ARG002
        delete: Iterable[str] = (),  # noqa: ARG002
        increment: Mapping[str, float] | None = None,  # noqa: ARG002
        expect: Mapping[str, Any] | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Refuse: UnsupportedOperationError."""
        raise UnsupportedOperationError(
            "Vertex AI cannot change state atomically without an event; append one with a "
            "state_delta."
        )

    async def list_apps(self) -> list[str]:
        """Refuse: UnsupportedOperationError."""
        raise UnsupportedOperationError("The Sessions API of Vertex AI lists no engines.")

    async def close(self) -> None:
        """Let go of connections; the next call makes new ones."""
        await self._client.close()

    # -- names --------------------------------------------------------------------------

    def _parent(self, app_name: str) -> str:
        """Return the engine's name in paths; ADK's rule, where the server is Google's."""
        if self._engine is not None:
            return self._client.parent(self._engine)
        found = _ENGINE.fullmatch(app_name)
        if found is None and self._client.is_google:
            raise InvalidInputError(
                f"app_name {app_name!r} names no engine: give agent_engine_id, or an app_name "
                "that is the engine's id or projects/P/locations/L/reasoningEngines/ID."
            )
        return self._client.parent(found[1] if found else app_name)

    def _path(self, key: SessionKey) -> str:
        return wire.name_of(self._parent(key.app), "sessions", key.id)


_NONE = "-"
"""Stands for the author or invocation id of an event that has none: the API demands both."""

# -- what the server says ---------------------------------------------------------------

_ALREADY_EXISTS = 6
_Described = tuple[SessionRow, StateRows]


class _Empty(msgspec.Struct):
    """An answer that says nothing."""


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""


class _Named(msgspec.Struct):
    name: str = ""


class _Operation(msgspec.Struct):
    name: str = ""
    done: bool = False
    error: _Status | None = None
    response: _Named | None = None


class _Session(msgspec.Struct, rename="camel"):
    name: str
    user_id: str
    update_time: str
    create_time: str | None = None
    expire_time: str | None = None
    display_name: str | None = None
    labels: dict[str, str] | None = None
    session_state: dict[str, msgspec.Raw] | None = None


class _SessionPage(msgspec.Struct, rename="camel"):
    sessions: list[_Session] = []
    next_page_token: str | None = None


class _EventPage(msgspec.Struct, rename="camel"):
    session_events: list[msgspec.Raw] = []
    next_page_token: str | None = None


class _Envelope(msgspec.Struct, rename="camel"):
    """An event's message, as far as it says what rawEvent says too."""

    name: str = ""
    author: str | None = None
    invocation_id: str | None = None
    timestamp: Any = None
    raw_event: msgspec.Raw = msgspec.Raw()


class _Head(msgspec.Struct, rename="camel"):
    """What rawEvent says in the envelope's stead."""

    id: str | None = None
    author: str | None = None
    invocation_id: str | None = None
    timestamp: float | None = None


class _Listed(NamedTuple):
    """An event of a list."""

    id: str
    timestamp: float
    row: EventRow


def _to_rows(message: _Session, app: str) -> _Described:
    created = wire.parse_timestamp(message.create_time or message.update_time, "createTime")
    row = SessionRow(
        app=app,
        user=message.user_id,
        id=_last_segment(message.name),
        incarnation=round(created * 1e6),
        revision=0,
        created=created,
        updated=wire.parse_timestamp(message.update_time, "updateTime"),
        expires=None
        if message.expire_time is None
        else wire.parse_timestamp(message.expire_time, "expireTime"),
        display_name=message.display_name,
        labels=encoded_labels(message.labels),
    )
    app_state, user_state, own = state.split(message.session_state or {})
    return row, StateRows(
        *({key: bytes(value) for key, value in one.items()} for one in (app_state, user_state, own))
    )


def _listed(seq: int, message: msgspec.Raw) -> _Listed:
    """Return an event of a page; where rawEvent is whole and agrees, as the bytes that it is."""
    try:
        envelope = msgspec.json.decode(message, type=_Envelope)
        raw = envelope.raw_event
        if bytes(raw):
            head = msgspec.json.decode(raw, type=_Head)
            time = head.timestamp
            if (
                head.id
                and time is not None
                and (head.author, head.invocation_id) == (envelope.author, envelope.invocation_id)
                and _NONE not in (head.author, head.invocation_id)
                and abs(time - wire.parse_timestamp(envelope.timestamp, "timestamp"))
                <= _MICROSECONDS_S
            ):
                return _Listed(head.id, time, (seq, bytes(raw)))
    except (msgspec.MsgspecError, InvalidInputError):
        pass  # written by another client; what it means is for `wire` to say
    try:
        body = decode(None, bytes(message))
        event = wire.event_from_json(body)
        for name in ("author", "invocation_id"):
            if getattr(event, name) == _NONE:
                event = msgspec.structs.replace(event, **{name: ""})
        if not (body.get("rawEvent") or {}).get("id"):
            event = msgspec.structs.replace(event, id=_last_segment(str(body.get("name", ""))))
        row, _ = codec.event_to_row(event)
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedDataError(f"The event at place {seq} cannot be read: {error}") from error
    return _Listed(row.id, row.timestamp, (seq, row.body))


def _next(token: str | None, seen: set[str | None]) -> str | None:
    """Return the token of the next page, or None after the last."""
    if not token:
        return None
    if token in seen:
        raise IncompleteReadError(
            f"The server gave the page token {token!r} twice, so the list has no end. Try again."
        )
    seen.add(token)
    return token


def _last_segment(name: str) -> str:
    return unquote(name.rpartition("/")[2])


def _no_engine(app_name: str, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"There is no engine for app_name {app_name!r}; check project, location and "
        f"agent_engine_id. {error}"
    )


# -- what the server is told ------------------------------------------------------------

_TYPED_META = (
    *("partial", "turnComplete", "interrupted", "branch", "longRunningToolIds"),
    *("groundingMetadata", "customMetadata"),
)
_TYPED_ACTIONS = (
    *("skipSummarization", "stateDelta", "artifactDelta", "escalate", "requestedAuthConfigs"),
    "transferAgent",
)


def _message(row: NewEvent) -> wire.Json:
    """Return what appendEvent takes: no name, and typed fields that Google's schema has."""
    message = wire.event_to_json(decode(None, row.body), "")
    raw = message["rawEvent"]
    _check_struct(raw, "event", row.body)
    del message["name"]
    for name in ("author", "invocationId"):
        message[name] = message[name] or _NONE
    for name, fields in (("eventMetadata", _TYPED_META), ("actions", _TYPED_ACTIONS)):
        given = message[name]
        message[name] = {field: given[field] for field in fields if field in given}
    content = message["content"]
    if "parts" in content:
        # The API refuses this one by name; it stays in rawEvent.
        parts = [{k: v for k, v in p.items() if k != "partMetadata"} for p in content["parts"]]
        message["content"] = {**content, "parts": parts}
    elif not content:
        del message["content"]
    return message


# What may be no number of a Struct, or no text of a protocol buffer.
_SUSPICIOUS = re.compile(rb"\d{16}|NaN|Infinity|\\u[dD][89a-fA-F]")
_WHOLE_MAX = 2**53


def _check_struct(value: Any, path: str, encoded: bytes | None = None) -> None:
    """Refuse what a protocol buffer's Struct would change, naming its path."""
    if encoded is not None and not _SUSPICIOUS.search(encoded):
        return
    if isinstance(value, dict):
        for key, item in value.items():
            _check_struct(key, path)
            _check_struct(item, f"{path}[{key!r}]")
    elif isinstance(value, list):
        for n, item in enumerate(value):
            _check_struct(item, f"{path}[{n}]")
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            _refuse(path, "text with a lone surrogate")
    elif isinstance(value, float) and not math.isfinite(value):
        _refuse(path, str(value))
    elif isinstance(value, int) and abs(value) > _WHOLE_MAX:
        _refuse(path, "an integer beyond 2**53")


def _refuse(path: str, what: str) -> NoReturn:
    raise UnsupportedValueError(f"{path} is {what}, which Vertex AI would change.")


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _duration(ttl: float | dt.timedelta) -> str:
    seconds = ttl if isinstance(ttl, int | float) else ttl.total_seconds()
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def _cursor_to_token(cursor: str, asked: list[Any]) -> str:
    match wire.decode_token(cursor):
        case [*before, str() as token] if before == asked:
            return token
    raise InvalidInputError(
        "cursor is not one that list_sessions returned for this app_name, user_id, order and "
        "direction."
    )


# -- handles ----------------------------------------------------------------------------


def _remember(session: Session, listed: Iterable[_Listed]) -> None:
    """Note which events a handle holds, so that to know one nothing is decoded."""
    vars(session)["places"] = {one.id: at for at, one in enumerate(listed)}


def _places(session: Session) -> dict[str, int]:
    """Return where in `session.events` the event with an id is."""
    places: dict[str, int] = vars(session).setdefault("places", {})
    for at in range(len(places), len(session.events)):
        places[session.events[at].id] = at
    return places
