"""The Vertex AI Sessions API over any session service.

The app's name is the engine's id, as ADK's clients put it into the path; project and location
are echoed in names and mean nothing. A session is named without its user, so each call looks up
whose it is. Routes are for `v1beta1` and `v1`, with `projects/P/locations/L/` or without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import UNSET
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from threadline import clock, state
from threadline.canonical import decode
from threadline.errors import (
    AlreadyExistsError,
    InvalidInputError,
    SessionNotFoundError,
    ThreadlineError,
)
from threadline.history import History
from threadline.models import Event, GetSessionConfig, Session
from threadline.server import paths as paths  # registers the convertor `id`
from threadline.server.access import authorize, authorize_part
from threadline.vertex import wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

    from starlette.requests import Request

    from threadline.server.tails import Tails
    from threadline.service import BaseSessionService, Order

    Handler = Callable[[Request], Awaitable[Response]]

T = TypeVar("T")

PAGE_MAX = 1000
"""The largest page, and how many sessions come where no size is asked for."""
_CHUNK = 500
"""How many events are read at once, at most."""

_PIECE_BYTES = 1 << 16
_PROJECT = "/projects/{project:id}/locations/{location:id}"
_SESSION_ORDERS: dict[str, Order] = {"create_time": "created", "update_time": "updated"}


def routes(service: BaseSessionService, tails: Tails) -> list[BaseRoute]:
    """Return the routes of both versions, and answers in the API's shape for what is not there."""
    api = _Api(service, tails)
    found: list[BaseRoute] = []
    for version in ("v1beta1", "v1"):
        for prefix in (f"/{version}{_PROJECT}", f"/{version}"):
            engine = f"{prefix}/reasoningEngines/{{engine:id}}"
            session = f"{engine}/sessions/{{session:id}}"
            found.append(_route(f"{engine}/sessions", GET=api.list_sessions, POST=api.create))
            found.append(_route(f"{session}:appendEvent", POST=api.append_event))
            found.append(_route(f"{session}/events", GET=api.list_events))
            for holder in (prefix, engine, session):
                operation = f"{holder}/operations/{{operation:id}}"
                found.append(_route(f"{operation}:wait", POST=api.get_operation))
                found.append(_route(operation, GET=api.get_operation))
            found.append(_route(session, GET=api.get, PATCH=api.patch, DELETE=api.delete))
        found += [
            _route(f"/{version}/{collection}/{{rest:path}}")
            for collection in ("projects", "reasoningEngines", "operations")
        ]
    return found


_METHODS = ["GET", "POST", "PATCH", "PUT", "DELETE"]


def _route(path: str, **handlers: Handler) -> Route:
    async def endpoint(request: Request) -> Response:
        handler = handlers.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            where = f"{request.method} {request.url.path} is not served here."
            if handlers:
                return _error(501, "UNIMPLEMENTED", where)
            return _error(404, "NOT_FOUND", where)
        try:
            return await handler(request)
        except ThreadlineError as error:
            return _error(*wire.status_of(error), str(error))

    return Route(path, endpoint, methods=_METHODS)


def _json(message: Any) -> Response:
    """Answer with 200 and JSON, which is all that the clients take for success."""
    return Response(wire.dumps(message), media_type="application/json")


def _error(code: int, status: str, message: str) -> Response:
    body = wire.dumps(wire.error_to_json(code, status, message))
    return Response(body, code, media_type="application/json")


def _query(request: Request, name: str) -> str | None:
    """Return a parameter by its camelCase name, in either spelling."""
    query = request.query_params
    return query.get(name) or query.get(wire.snake(name))


class _Api:
    """The handlers, over one service."""

    def __init__(self, service: BaseSessionService, tails: Tails) -> None:
        self._service = service
        self._tails = tails

    # -- sessions -----------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        """Create a session; answer with an operation that is done."""
        engine = request.path_params["engine"]
        authorize_part(request, app=engine, write=True)
        given = wire.session_from_json(wire.loads(await request.body()))
        user_id, id = wire.require_user(given), _query(request, "sessionId")
        authorize(request, app=engine, user=user_id, write=True)
        if id is not None and await self._service.find_sessions(app_name=engine, session_id=id):
            raise _taken(request, engine, id)
        try:
            session = await self._service.create_session(
                app_name=engine,
                user_id=user_id,
                session_id=id,
                state=given.session_state or {},
                ttl=None if given.ttl is UNSET else given.ttl,
                expire_time=None if given.expire_time is UNSET else given.expire_time,
                display_name=given.display_name or None,
                labels=given.labels or None,
            )
        except AlreadyExistsError:
            raise _taken(request, engine, id or "") from None
        if id is not None:
            found = await self._service.find_sessions(app_name=engine, session_id=id)
            if len(found) > 1:  # another user's, made at the same time: neither is to be mistaken
                await self._delete(session)
                raise _taken(request, engine, id)
        return _json(_created(request, session))

    async def get(self, request: Request) -> Response:
        """Answer with a session and its merged state."""
        session = await self._find_named(request, write=False)
        return _json(_message(request, await self._load(session)))

    async def list_sessions(self, request: Request) -> Response:
        """Answer with a page of sessions, newest update first."""
        engine = request.path_params["engine"]
        size = wire.parse_page_size(_query(request, "pageSize"), PAGE_MAX) or PAGE_MAX
        asked, cursor = _asked(request, str)
        wanted = wire.SessionFilter.parse(asked[0])
        order, descending = wire.parse_order(asked[1], _SESSION_ORDERS, ("updated", True))
        authorize(request, app=engine, user=wanted.user_id, write=False)
        found: list[Session] = []
        while not found:
            page = await self._service.list_sessions(
                app_name=engine,
                user_id=wanted.user_id,
                limit=size,
                cursor=cursor,
                order=order,
                descending=descending,
            )
            found = [session for session in page.sessions if wanted.passes(session)]
            cursor = page.next_cursor
            if cursor is None:
                break
        message: wire.Json = {
            "sessions": [
                wire.session_to_json(session, _parent(request, engine)) for session in found
            ]
        }
        if cursor is not None:
            message["nextPageToken"] = wire.encode_token([*asked, cursor])
        return _json(message)

    async def patch(self, request: Request) -> Response:
        """Change title, labels, expiry and state; answer with the session."""
        session = await self._find_named(request, write=True)
        given = wire.session_from_json(wire.loads(await request.body()))
        fields = wire.parse_mask(_query(request, "updateMask"), given)
        if "user_id" in fields and given.user_id != session.user_id:
            raise InvalidInputError("Invalid value at 'session.user_id': it cannot be changed.")
        ids = _ids(session)
        if "session_state" in fields:
            await self._replace_state(ids, given.session_state or {})
        changes: dict[str, Any] = {}
        for name in ("display_name", "labels"):
            if name in fields:
                changes[name] = getattr(given, name) or None
        if fields & {"ttl", "expire_time"}:
            if given.ttl is not UNSET:
                changes["ttl"] = given.ttl
            else:
                changes["expire_time"] = None if given.expire_time is UNSET else given.expire_time
        if changes:
            await self._service.update_session(**ids, **changes)
        return _json(_message(request, await self._load(session)))

    async def delete(self, request: Request) -> Response:
        """Delete a session; answer with an operation that is done."""
        session = await self._find_named(request, write=True)
        await self._delete(session)
        return _json(_deleted(request, session.app_name, clock.now()))

    # -- events -------------------------------------------------------------------------

    async def append_event(self, request: Request) -> Response:
        """Store an event at the end of the log; once, if it comes twice."""
        authorize_part(request, app=request.path_params["engine"], write=True)
        event = wire.event_from_json(wire.loads(await request.body()))
        session = await self._find_named(request, write=True)
        await self._service.append_event(session, event, on_stale="rebase")
        self._tails.tell((session.app_name, session.user_id, session.id))
        return _json({})

    async def list_events(self, request: Request) -> Response:
        """Answer with events in the order of the log: all of them where no page size is given."""
        session = await self._find_named(request, write=False)
        size = wire.parse_page_size(_query(request, "pageSize"), PAGE_MAX)
        asked, place = _asked(request, int)
        wanted = wire.EventFilter.parse(asked[0])
        _, descending = wire.parse_order(asked[1], {"timestamp": None}, (None, False))
        # One more than a page tells whether there is another one.
        chunk = _CHUNK if size is None else min(size + 1, _CHUNK)
        events = self._events(session, wanted, place, chunk=chunk, descending=descending)
        first = await anext(events, None)  # what goes wrong now has a status of its own
        name = wire.name_of(_parent(request, session.app_name), "sessions", session.id)

        async def body() -> AsyncIterator[bytes]:
            piece, event, count = bytearray(b'{"sessionEvents":['), first, 0
            while event is not None and (size is None or count < size):
                if len(piece) > _PIECE_BYTES:
                    yield bytes(piece)
                    piece.clear()
                piece += b"," if count else b""
                last, stored = event
                piece += wire.dumps(wire.event_to_json(stored, name))
                count += 1
                event = await anext(events, None)
            piece += b"]"
            if event is not None:
                piece += b',"nextPageToken":' + wire.dumps(wire.encode_token([*asked, last]))
            yield bytes(piece) + b"}"

        return StreamingResponse(body(), media_type="application/json")

    async def _events(
        self,
        session: Session,
        wanted: wire.EventFilter,
        place: int | None,
        *,
        chunk: int,
        descending: bool,
    ) -> AsyncIterator[tuple[int, wire.Json]]:
        """Yield seq and JSON of events behind a place, up to those that the session has now."""
        ids = _ids(session)
        end = (session.revision or 0) + 1
        # Where a page ended, the next one begins without looking for a time again.
        if wanted.since is not None and (place is None or descending):
            config = GetSessionConfig(after_timestamp=wanted.since)
            found = await self._service.get_session(**ids, config=config)
            for seq, stored in _stored([] if found is None else found.events, descending):
                if (place is None or seq < place) and wanted.passes(stored["timestamp"]):
                    yield seq, stored
            return
        while True:
            page = await self._service.list_events(
                **ids,
                after_seq=None if descending else place,
                before_seq=end if place is None or not descending else place,
                limit=chunk,
                reverse=descending,
            )
            for place, stored in _stored(page.events, descending):
                if wanted.passes(stored["timestamp"]):
                    yield place, stored
            if not page.has_more:
                return

    # -- operations ---------------------------------------------------------------------

    async def get_operation(self, request: Request) -> Response:
        """Answer with what create or delete answered with; an operation's id says what it was."""
        token = request.path_params["operation"]
        match wire.decode_token(token):
            case ["create", str(engine), str(id)]:
                session = await self._find(request, engine, id, write=False)
                return _json(_created(request, await self._load(session)))
            case ["delete", str(engine), int() | float() as time]:
                authorize_part(request, app=engine, write=False)
                return _json(_deleted(request, engine, time))
        raise SessionNotFoundError(f"Operation {token} not found.")

    # -- sessions by id alone -----------------------------------------------------------

    async def _find_named(self, request: Request, *, write: bool) -> Session:
        """Return the session that the path names."""
        params = request.path_params
        return await self._find(request, params["engine"], params["session"], write=write)

    async def _find(self, request: Request, engine: str, id: str, *, write: bool) -> Session:
        """Return the one session of an engine with this id, if the key is for its user."""
        grant = authorize_part(request, app=engine, write=write)
        found = [
            session
            for session in await self._service.find_sessions(app_name=engine, session_id=id)
            if grant.is_for_user(session.user_id)
        ]
        name = wire.name_of(_parent(request, engine), "sessions", id)
        if not found:
            raise SessionNotFoundError(f"Session {name} not found.")
        if len(found) > 1:
            raise InvalidInputError(
                f"Session {name} is not the only one: {len(found)} users of the app have a session "
                "with this id, and this API names none of them. Use a key for one user, or another "
                "API."
            )
        authorize(request, app=engine, user=found[0].user_id, write=write)
        return found[0]

    async def _load(self, session: Session) -> Session:
        """Return the session with its state and without its events."""
        config = GetSessionConfig(num_recent_events=0)
        found = await self._service.get_session(**_ids(session), config=config)
        if found is None:
            raise SessionNotFoundError(f"Session {session.id} not found.")
        return found

    async def _delete(self, session: Session) -> None:
        await self._service.delete_session(**_ids(session))
        self._tails.tell((session.app_name, session.user_id, session.id))

    async def _replace_state(self, ids: dict[str, Any], given: wire.Json) -> None:
        """Replace the session's own keys; of the user's and the app's, set those that are given."""
        new = state.split(given)
        config = GetSessionConfig(num_recent_events=0)
        before = await self._service.get_session(**ids, config=config)
        keys = () if before is None else before.state
        gone = [key for key in keys if not state.is_scoped(key) and key not in new.session]
        await self._service.patch_state(**ids, set=new.session, delete=gone)
        app, user = ids["app_name"], ids["user_id"]
        if new.user:
            await self._service.patch_state(app_name=app, user_id=user, set=new.user)
        if new.app:
            await self._service.patch_state(app_name=app, set=new.app)


# -- what a request names and asks ------------------------------------------------------


def _ids(session: Session) -> dict[str, Any]:
    return {
        "app_name": session.app_name,
        "user_id": session.user_id,
        "session_id": session.id,
    }


def _stored(events: Iterable[Event], descending: bool) -> Iterator[tuple[int, wire.Json]]:
    """Yield the seq and the JSON of events, from either end."""
    rows = list(History.of(events).rows())
    for seq, body in reversed(rows) if descending else rows:
        yield seq, decode(None, body)


def _parent(request: Request, engine: str) -> str:
    """Return the engine's name as the request has it: with project and location, or without."""
    params = request.path_params
    return wire.parent_of(engine, params.get("project"), params.get("location"))


def _message(request: Request, session: Session) -> wire.Json:
    return wire.session_to_json(session, _parent(request, session.app_name))


def _created(request: Request, session: Session) -> wire.Json:
    """Return the operation that made a session; the Java client reads its id from the name."""
    message = _message(request, session)
    id = wire.encode_token(["create", session.app_name, session.id])
    name = wire.name_of(message["name"], "operations", id)
    return wire.operation(name, "CreateSession", _version(request), session.create_time, message)


def _deleted(request: Request, engine: str, time: float) -> wire.Json:
    params = request.path_params
    parent = (
        wire.location_of(params["project"], params["location"])
        if "project" in params
        else _parent(request, engine)
    )
    name = wire.name_of(parent, "operations", wire.encode_token(["delete", engine, time]))
    return wire.operation(name, "Delete", _version(request), time, {})


def _version(request: Request) -> str:
    return "v1beta1" if "/v1beta1/" in request.url.path else "v1"


def _taken(request: Request, engine: str, id: str) -> AlreadyExistsError:
    name = wire.name_of(_parent(request, engine), "sessions", id)
    return AlreadyExistsError(f"Session with user-provided ID '{name}' already exists.")


def _asked(request: Request, kind: type[T]) -> tuple[list[str | None], T | None]:
    """Return the filter and the order, and the place in the list that a page token stands for.

    A token remembers both, for clients that send them with the first page only.
    """
    asked = [_query(request, "filter"), _query(request, "orderBy")]
    token = _query(request, "pageToken")
    if token is None:
        return asked, None
    match wire.decode_token(token):
        case [None | str() as filter, None | str() as order, place] if isinstance(place, kind):
            if asked[0] in (None, filter) and asked[1] in (None, order):
                return [filter, order], place
    raise InvalidInputError(
        "Invalid value at 'page_token': it is not one that this list returned for this filter and "
        "order."
    )
