"""What the native API does: a handler for each operation."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from starlette.responses import Response, StreamingResponse

from threadline import wire
from threadline.errors import (
    EventConflictError,
    InvalidInputError,
    SessionNotFoundError,
)
from threadline.models import Event, GetSessionConfig, Session
from threadline.patch import MISSING
from threadline.state import split

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from starlette.requests import Request

    from threadline.server.access import Grant
    from threadline.server.heads import Heads, Ids
    from threadline.server.tails import Tails
    from threadline.service import BaseSessionService, OnStale, Order


# -- what can be asked ------------------------------------------------------------------


class Query(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What stands behind the question mark, and nothing else."""


class EventsWanted(Query):
    """Which events of a session to send; the state is whole in any case."""

    num_recent_events: int | None = None
    after_timestamp: float | None = None
    after_seq: int | None = None


class SessionsWanted(Query):
    """Which page of sessions to send."""

    limit: int = wire.PAGE_DEFAULT
    cursor: str | None = None
    order: str = "updated"
    descending: bool = False
    state: bool = True


class PageWanted(Query):
    """Which page of events to send: `after_seq < seq < before_seq`."""

    after_seq: int | None = None
    before_seq: int | None = None
    limit: int = wire.PAGE_DEFAULT
    reverse: bool = False


class TailWanted(Query):
    """Where a tail begins: after which event."""

    after_seq: int | None = None


class Nothing(Query):
    """No options."""


class Ask(NamedTuple):
    """One request, taken apart."""

    service: BaseSessionService
    tails: Tails
    heads: Heads
    request: Request
    grant: Grant
    app: str
    user: str
    session: str
    query: Any
    body: Any

    @property
    def ids(self) -> Ids:
        """The session's ids."""
        return self.app, self.user, self.session

    @property
    def of_session(self) -> dict[str, Any]:
        """The session's ids, as the service's arguments."""
        return {"app_name": self.app, "user_id": self.user, "session_id": self.session}


# -- apps and users ---------------------------------------------------------------------


async def list_apps(ask: Ask) -> Response:
    """List the apps that have sessions and that the key is for."""
    apps = [app for app in await ask.service.list_apps() if ask.grant.is_for_app(app)]
    return _answer(wire.AppsAnswer(apps=apps))


async def erase_user(ask: Ask) -> Response:
    """Remove all of a user: sessions, expired ones too, and the user's state.

    To repeat it is harmless. The answer counts what this request has removed.
    """
    erased = await ask.service.erase_user(app_name=ask.app, user_id=ask.user)
    return _answer(wire.ErasedAnswer(**msgspec.structs.asdict(erased)))


# -- sessions ---------------------------------------------------------------------------


async def list_sessions(ask: Ask) -> Response:
    """List sessions a page at a time, without their events."""
    order: Order = ask.query.order
    page = await ask.service.list_sessions(
        app_name=ask.app,
        user_id=ask.user or None,
        limit=_page(ask.query.limit),
        cursor=ask.query.cursor,
        order=order,
        descending=ask.query.descending,
        include_state=ask.query.state,
    )
    return _sessions(page.sessions, page.next_cursor)


async def find_sessions(ask: Ask) -> Response:
    """List the app's sessions with this id, one for each user that has one.

    They come by user, without state and events, and only those of users that the key is for.
    """
    found = await ask.service.find_sessions(app_name=ask.app, session_id=ask.session)
    return _sessions([session for session in found if ask.grant.is_for_user(session.user_id)])


async def create_session(ask: Ask) -> Response:
    """Create a session, with a new id if none is given."""
    session = await ask.service.create_session(
        app_name=ask.app, user_id=ask.user, session_id=ask.body.session_id, **_facts(ask.body)
    )
    answer = _session(ask, session, status=201)
    place = wire.session_path(session.app_name, session.user_id, session.id)
    answer.headers["location"] = ask.request.scope.get("root_path", "") + place
    return answer


async def get_or_create_session(ask: Ask) -> Response:
    """Return the session, created with what is given if there is none."""
    session = await ask.service.get_or_create_session(**ask.of_session, **_facts(ask.body))
    return _session(ask, session)


async def get_session(ask: Ask) -> Response:
    """Return a session with its merged state and its events, all of them if no filter is given."""
    session = await ask.service.get_session(
        **ask.of_session, config=GetSessionConfig(**msgspec.structs.asdict(ask.query))
    )
    if session is None:
        raise SessionNotFoundError(f"The session {ask.session!r} does not exist.")
    return _session(ask, session)


async def update_session(ask: Ask) -> Response:
    """Change a session's title, labels or expiry; return it without its events.

    What is left out stays, and null takes it away. No revision changes.
    """
    given = msgspec.structs.asdict(ask.body).items()
    changes = {name: value for name, value in given if value is not msgspec.UNSET}
    return _session(ask, await ask.service.update_session(**ask.of_session, **changes))


async def delete_session(ask: Ask) -> Response:
    """Remove a session, its events and its state; a missing one is no error."""
    await ask.service.delete_session(**ask.of_session)
    ask.tails.tell(ask.ids)
    return Response(status_code=204)


def _facts(body: wire.NewSessionBody | wire.SameSessionBody) -> dict[str, Any]:
    names = wire.SameSessionBody.__struct_fields__
    return {name: getattr(body, name) for name in names}


def _sessions(sessions: Iterable[Session], next_cursor: str | None = None) -> Response:
    bodies = [msgspec.Raw(wire.session_body(session)) for session in sessions]
    return _answer(wire.SessionsAnswer(sessions=bodies, next_cursor=next_cursor))


def _session(ask: Ask, session: Session, status: int = 200) -> Response:
    """Answer with a session, in one piece or in several, unless the caller has it."""
    head = wire.session_body(session)
    digest = hashlib.blake2b(head, digest_size=8).hexdigest()
    tag = wire.etag(session.revision or 0, session.incarnation, digest)
    headers = {"etag": tag}
    if status == 200 and tag in ask.request.headers.get("if-none-match", "").split(", "):
        return Response(status_code=304, headers=headers)
    pieces = wire.chunks(head, session.events)
    first, second = next(pieces), next(pieces, None)
    if second is None:
        return Response(first, status, headers, wire.JSON)
    return StreamingResponse(_joined(first, second, pieces), status, headers, wire.JSON)


async def _joined(first: bytes, second: bytes, others: Iterable[bytes]) -> Any:
    yield first
    yield second
    for piece in others:
        yield piece


# -- events -----------------------------------------------------------------------------


async def list_events(ask: Ask) -> Response:
    """List events a page at a time, from either end."""
    page = await ask.service.list_events(
        **ask.of_session,
        after_seq=ask.query.after_seq,
        before_seq=ask.query.before_seq,
        limit=_page(ask.query.limit),
        reverse=ask.query.reverse,
    )
    return _answer(wire.EventsAnswer(events=list(wire.bodies(page.events)), has_more=page.has_more))


async def append_events(ask: Ask) -> Response:
    """Store events at the end, all of them or none.

    With `If-Match`, only if the session is at that revision, or with `onStale: rebase` wherever
    it is. An event's id, or `Idempotency-Key` where it has none, makes a retry harmless.
    """
    headers = ask.request.headers
    events, untimed = _events(ask.body.events, headers.get("idempotency-key"))
    tag = headers.get("if-match")
    policy: OnStale | None = ask.body.on_stale
    if tag is None and policy == "raise":
        raise InvalidInputError('onStale "raise" needs If-Match, to know which revision was seen.')
    policy = policy or ("rebase" if tag is None else "raise")
    session = await _newest(ask) if tag is None else _handle(ask, *wire.revision(tag))
    while True:
        try:
            stored = await ask.service.append_events(session, events, on_stale=policy)
            break
        except SessionNotFoundError:
            # The id may have a new session since this process appended to the old one.
            if tag is not None or not ask.heads.forget(ask.ids):
                raise
            session = await _newest(ask)
        except EventConflictError as conflict:
            # A retry whose event came without a time: the one that is stored has it.
            first = conflict.stored
            if first is None or first.id not in untimed:
                raise
            untimed.remove(first.id)
            events = [
                msgspec.structs.replace(event, timestamp=first.timestamp)
                if event.id == first.id
                else event
                for event in events
            ]
    ask.tails.tell(ask.ids)
    revision, incarnation = session.revision or 0, session.incarnation or 0
    ask.heads.put(ask.ids, revision, incarnation)
    mine = {event.seq for event in stored}
    missed = [] if tag is None else [one for one in session.events if one.seq not in mine]
    return _answer(
        wire.AppendAnswer(
            stored=[wire.Stored(id=event.id, seq=event.seq or 0) for event in stored],
            missed=[*wire.bodies(missed)],
            revision=revision,
            incarnation=incarnation,
            last_update_time=session.last_update_time,
        ),
        headers={"etag": wire.etag(revision, incarnation)},
    )


async def _newest(ask: Ask) -> Session:
    """Return a handle at the revision that this process saw last, or else at the newest.

    An append through it goes to the end wherever that is; what came between is read then.
    """
    head = ask.heads.get(ask.ids)
    if head is not None:
        return _handle(ask, *head)
    found = await ask.service.get_session(
        **ask.of_session, config=GetSessionConfig(num_recent_events=0)
    )
    if found is None:
        raise SessionNotFoundError(f"The session {ask.session!r} does not exist.")
    return found


def _handle(ask: Ask, revision: int, incarnation: int | None) -> Session:
    """Return a handle at a revision."""
    return Session(
        id=ask.session,
        app_name=ask.app,
        user_id=ask.user,
        revision=revision,
        incarnation=incarnation,
    )


class _Given(msgspec.Struct, rename="camel"):
    """What an event that is to be idempotent by a key may lack."""

    id: str | None = None
    timestamp: float | None = None


def _events(bodies: Sequence[msgspec.Raw], key: str | None) -> tuple[list[Event], set[str]]:
    """Return the events, and the ids of those whose time is of our making."""
    if not bodies:
        raise InvalidInputError("There are no events in the body.")
    events, untimed = [], set()
    for number, body in enumerate(map(bytes, bodies)):
        event = Event.from_json(body)
        if event.partial:
            raise InvalidInputError(
                f"events[{number}] is partial; an event is stored when it is complete."
            )
        if key is not None:
            given = wire.read(_Given, body, f"events[{number}]")
            if not given.id:
                event = msgspec.structs.replace(event, id=f"{key}-{number}")
            if given.timestamp is None:
                untimed.add(event.id)
        events.append(event)
    return events, untimed


async def tail_events(ask: Ask) -> Response:
    """Send events as they are stored, as server-sent events; `Last-Event-ID` goes on from one."""
    last = ask.request.headers.get("last-event-id")
    return await ask.tails.open(ask.ids, ask.query.after_seq, last)


# -- state ------------------------------------------------------------------------------


async def get_state(ask: Ask) -> Response:
    """Return the state of the app, the user or the session, keys without a prefix."""
    if ask.session:
        session = await ask.service.get_session(
            **ask.of_session, config=GetSessionConfig(num_recent_events=0)
        )
        if session is None:
            raise SessionNotFoundError(f"The session {ask.session!r} does not exist.")
        found = split(session.state).session
    elif ask.user:
        found = await ask.service.get_user_state(app_name=ask.app, user_id=ask.user)
    else:
        found = await ask.service.get_app_state(app_name=ask.app)
    return _answer(wire.StateAnswer(state=wire.raw(found)))


async def patch_state(ask: Ask) -> Response:
    """Change state without an event, all of it or nothing; return the new values."""
    body: wire.PatchBody = ask.body
    changed = await ask.service.patch_state(
        app_name=ask.app,
        user_id=ask.user or None,
        session_id=ask.session or None,
        set=body.set,
        delete=body.delete,
        increment=body.increment,
        expect={**body.expect, **dict.fromkeys(body.expect_missing, MISSING)},
    )
    return _answer(wire.StateAnswer(state=wire.raw(changed)))


def _page(limit: int) -> int:
    if limit > wire.PAGE_MAX:
        raise InvalidInputError(f"limit must be at most {wire.PAGE_MAX}, got {limit}.")
    return limit


def _answer(
    value: wire.Answer, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(msgspec.json.encode(value), status, headers, wire.JSON)
