"""The session routes of ADK's `api_server`, so that its web UI can browse what is stored.

Paths, bodies and answers are those of google-adk 2.13. Agents are not run here: `/run` and
`/run_sse` say so, and what the UI asks of an agent, its evaluations and traces is answered as
google-adk answers where there are none.
"""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

import threadline
from threadline.canonical import decode
from threadline.errors import (
    AlreadyExistsError,
    InvalidInputError,
    RequestTooLargeError,
    SessionNotFoundError,
    ThreadlineError,
    UnsupportedOperationError,
)
from threadline.history import History
from threadline.models import Event, EventActions, Session
from threadline.server import paths as paths  # registers the convertor `id`
from threadline.server.access import authorize, authorize_part, open_to_all
from threadline.vertex import wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from threadline.server.tails import Tails
    from threadline.service import BaseSessionService

    Handler = Callable[[Request], Awaitable[Any]]

_LISTS = ("eval_sets", "eval_results", "debug/trace/session/{session:id}")
"""What the UI lists of an app beside its sessions: the work of agents, which do not run here."""
_NO_AGENTS = "threadline keeps sessions and runs no agents."
_METADATA = "__session_metadata__"
"""The key of a session's state in which the UI keeps its title."""
_EVAL_PREFIXES = ("adk-eval-session-", "___eval___session___")
_INTERNAL_PREFIX = "__adk_internal_"
_OPTIONS = frozenset({"ttl", "expire_time", "display_name", "labels"})
_PROTOCOL_FUNCTIONS = frozenset(
    {"adk_request_credential", "adk_request_confirmation", "adk_request_input"}
)


def routes(service: BaseSessionService, tails: Tails) -> list[BaseRoute]:
    """Return the routes that ADK's web UI needs to list, show, make, change and delete sessions."""
    api = _Api(service, tails)
    sessions = "/apps/{app:id}/users/{user:id}/sessions"
    return [
        _route("/list-apps", GET=api.list_apps),
        _route("/version", GET=api.version),
        _route(sessions, GET=api.list_sessions, POST=api.create),
        _route(
            f"{sessions}/{{session:id}}",
            GET=api.get,
            POST=api.create_with_id,
            PATCH=api.patch,
            DELETE=api.delete,
        ),
        *(_route(f"/dev/apps/{{app:id}}/{what}", GET=api.none) for what in _LISTS),
        _route("/dev/apps/{app:id}/builder", GET=api.no_file),
        _route("/config/telemetry", GET=api.telemetry),
        _route("/run", POST=api.run),
        _route("/run_sse", POST=api.run),
    ]


def _route(path: str, **handlers: Handler) -> Route:
    async def endpoint(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        try:
            answer = await handlers[method](request)
            return answer if isinstance(answer, Response) else _json(answer)
        except ThreadlineError as error:
            return _json({"detail": str(error)}, _status_of(error))

    return Route(path, endpoint, methods=list(handlers))


def _status_of(error: ThreadlineError) -> int:
    if isinstance(error, AlreadyExistsError):
        return 409
    if isinstance(error, _MalformedError):
        return 422
    return wire.status_of(error)[0]


def _json(message: Any, status: int = 200) -> Response:
    return Response(wire.dumps(message), status, media_type="application/json")


class _MalformedError(InvalidInputError):
    """A body that is not of the shape that the route takes."""


class _Api:
    """The handlers, over one service."""

    def __init__(self, service: BaseSessionService, tails: Tails) -> None:
        self._service = service
        self._tails = tails

    async def version(self, request: Request) -> Any:
        """Say what answers; the UI shows it."""
        open_to_all(request)
        return {"version": threadline.__version__, "language": "threadline"}

    async def telemetry(self, request: Request) -> Any:
        """Say that nobody has agreed to report anything."""
        open_to_all(request)
        return {"telemetry": False}

    async def none(self, request: Request) -> Any:
        """List nothing."""
        authorize_part(request, app=request.path_params["app"], write=False)
        return []

    async def no_file(self, request: Request) -> Any:
        """Return the text of an agent's file where there is none."""
        authorize_part(request, app=request.path_params["app"], write=False)
        return Response(media_type="text/plain")

    async def run(self, request: Request) -> Any:
        """Refuse, as JSON, or as the stream in which the UI looks for the reason."""
        open_to_all(request)
        if not request.url.path.endswith("_sse"):
            return _json({"detail": _NO_AGENTS}, 501)
        refusal = b'data: {"error": "%s"}\n\n' % _NO_AGENTS.encode()
        return Response(refusal, 501, media_type="text/event-stream")

    async def list_apps(self, request: Request) -> Any:
        """List the apps that have sessions and that the key is for."""
        grant = authorize_part(request, app=None, write=False)
        apps = [app for app in await self._service.list_apps() if grant.is_for_app(app)]
        if request.query_params.get("detailed", "").lower() not in ("true", "1"):
            return apps
        return {
            "apps": [
                {"name": app, "rootAgentName": app, "description": "", "language": "python"}
                for app in apps
            ]
        }

    async def list_sessions(self, request: Request) -> Any:
        """List a user's sessions, oldest update first, without those that evaluations left."""
        app, user = self._authorize(request, write=False)
        listed = await self._service.list_sessions(app_name=app, user_id=user)
        return [
            _session_to_json(session)
            for session in listed.sessions
            if not session.id.startswith(_EVAL_PREFIXES)
        ]

    async def create(self, request: Request) -> Any:
        """Create a session, with the id, state and events that the body may have."""
        app, user = self._authorize(request, write=True)
        body = await _body(request)
        events = _events(body.get("events"))
        options = body.get("options")
        if options is None:
            options = {}
        if not isinstance(options, dict):
            raise _MalformedError("options: an object is expected.")
        if unknown := options.keys() - _OPTIONS:
            raise InvalidInputError(
                "Session options are not supported by the configured session service: "
                f"{', '.join(sorted(unknown))}."
            )
        session = await self._create(
            app, user, _field(body, "sessionId"), body.get("state"), **options
        )
        try:
            await self._service.append_events(session, events)
        except ThreadlineError:  # nothing is left of a call that was refused
            await self._service.delete_session(app_name=app, user_id=user, session_id=session.id)
            raise
        return _whole(session)

    async def create_with_id(self, request: Request) -> Any:
        """Create a session whose id is in the path; the body is its state."""
        app, user = self._authorize(request, write=True)
        state = await _body(request)
        return _session_to_json(
            await self._create(app, user, request.path_params["session"], state)
        )

    async def _create(
        self, app: str, user: str, id: str | None, state: Any, **options: Any
    ) -> Session:
        if state is not None and not isinstance(state, dict):
            raise _MalformedError("state: an object is expected.")
        if title := _title(state or {}):
            options.setdefault("display_name", title)
        return await self._service.create_session(
            app_name=app, user_id=user, session_id=id, state=state, **options
        )

    async def get(self, request: Request) -> Any:
        """Return a session with all of its events."""
        return _whole(await self._load(request, write=False))

    async def patch(self, request: Request) -> Any:
        """Set state, and the title with it, through an event by the user; return the session."""
        session = await self._load(request, write=True)
        delta = _field(await _body(request), "stateDelta")
        if not isinstance(delta, dict):
            raise _MalformedError("stateDelta: an object is required.")
        event = Event(
            author="user",
            invocation_id=f"p-{uuid.uuid4()}",
            actions=EventActions(state_delta=delta),
        )
        await self._service.append_event(session, event, on_stale="rebase")
        self._tails.tell((session.app_name, session.user_id, session.id))
        if title := _title(delta):
            with contextlib.suppress(UnsupportedOperationError):
                await self._service.update_session(
                    app_name=session.app_name,
                    user_id=session.user_id,
                    session_id=session.id,
                    display_name=title,
                )
                session.display_name = title
        return _whole(session)

    async def delete(self, request: Request) -> Any:
        """Delete a session; a missing one is no error."""
        app, user = self._authorize(request, write=True)
        id = request.path_params["session"]
        await self._service.delete_session(app_name=app, user_id=user, session_id=id)
        self._tails.tell((app, user, id))
        return None

    def _authorize(self, request: Request, *, write: bool) -> tuple[str, str]:
        app, user = request.path_params["app"], request.path_params["user"]
        authorize(request, app=app, user=user, write=write)
        return app, user

    async def _load(self, request: Request, *, write: bool) -> Session:
        app, user = self._authorize(request, write=write)
        session = await self._service.get_session(
            app_name=app, user_id=user, session_id=request.path_params["session"]
        )
        if session is None:
            raise SessionNotFoundError("Session not found")
        return session


# -- bodies -----------------------------------------------------------------------------


async def _body(request: Request) -> dict[str, Any]:
    """Read an object, or nothing at all, which the UI sends as `null`."""
    data = await request.body()
    if not data.strip() or data.strip() == b"null":
        return {}
    try:
        return wire.loads(data)
    except RequestTooLargeError:
        raise
    except InvalidInputError as error:
        raise _MalformedError(str(error)) from error


def _field(body: dict[str, Any], name: str) -> Any:
    value = body.get(name)
    return body.get(wire.snake(name)) if value is None else value


def _events(given: Any) -> list[Event]:
    """Read the events that a session begins with; none may claim what only a runner may say."""
    if given is None:
        return []
    if not isinstance(given, list):
        raise _MalformedError("events: a list is expected.")
    events = []
    for number, one in enumerate(given):
        event = Event.from_dict(one)
        names = {call.name for call in event.get_function_calls()}
        names |= {answer.name for answer in event.get_function_responses()}
        for is_refused, what in (
            (event.long_running_tool_ids, "long-running tool IDs"),
            (event.actions != EventActions(), "event actions"),
            (names & _PROTOCOL_FUNCTIONS, "ADK protocol function calls"),
        ):
            if is_refused:
                raise InvalidInputError(
                    f"Session initialization event {number} cannot include {what}."
                )
        events.append(event)
    return events


def _title(state: dict[str, Any]) -> str | None:
    """Return the title that the UI gives a session."""
    metadata = state.get(_METADATA)
    title = metadata.get("displayName") if isinstance(metadata, dict) else None
    return title if isinstance(title, str) else None


def _titled(session: Session) -> dict[str, Any]:
    """Return a session's state with its title where the UI looks for it."""
    metadata = session.state.get(_METADATA, {})
    if not session.display_name or not isinstance(metadata, dict):
        return session.state
    return {**session.state, _METADATA: {**metadata, "displayName": session.display_name}}


def _session_to_json(session: Session) -> dict[str, Any]:
    """Return a session without its events."""
    message = {
        "id": session.id,
        "appName": session.app_name,
        "userId": session.user_id,
        "state": _titled(session),
        "lastUpdateTime": session.last_update_time,
        "events": [],
    }
    redacted: dict[str, Any] = _redacted(message)
    return redacted


def _whole(session: Session) -> Response:
    """Answer with a session and its events."""
    head = wire.dumps(_session_to_json(session)).removesuffix(b"]}")
    events = b",".join(_event_body(body) for _, body in History.of(session.events).rows())
    return Response(head + events + b"]}", media_type="application/json")


class _Peek(msgspec.Struct):
    actions: msgspec.Raw = msgspec.Raw()


_peek = msgspec.json.Decoder(_Peek)
_MARKS = (
    *(b"__adk_internal_", b"uthCredential", b"uth_credential", b"uthType", b"uth_type"),
    *(b"NaN", b"Infinity"),
)
"""What an event has somewhere in it if something in it must not go out as it is stored."""


def _event_body(stored: bytes) -> bytes:
    """Return an event as ADK has it: mostly as it is stored, undecoded."""
    if not any(mark in stored for mark in _MARKS):
        with contextlib.suppress(msgspec.MsgspecError):  # such as a lone surrogate
            has_actions = bytes(_peek.decode(stored).actions)
            return stored if has_actions else b'{"actions":{},' + stored[1:]
    return wire.dumps(_redacted(_event_to_json(decode(None, stored))))


def _event_to_json(message: dict[str, Any]) -> dict[str, Any]:
    message.setdefault("actions", {})
    if custom := message.get("customMetadata"):
        message["customMetadata"] = {
            key: value for key, value in custom.items() if not key.startswith(_INTERNAL_PREFIX)
        }
    return message


_SECRETS = frozenset(
    {
        *("rawAuthCredential", "raw_auth_credential"),
        *("exchangedAuthCredential", "exchanged_auth_credential"),
    }
)
_CREDENTIALS = ("apiKey", "http", "oauth2", "openIdConnect", "serviceAccount")


def _redacted(value: Any) -> Any:
    """Take out what credentials are made of, wherever an agent has put one."""
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    if not isinstance(value, dict):
        return value
    for spelling in ("authType", "auth_type"):
        if value.get(spelling) in _CREDENTIALS:  # of a credential, what it is stays
            return {
                key: item
                for key, item in value.items()
                if key in (spelling, "resourceRef", "resource_ref")
            }
    return {key: _redacted(item) for key, item in value.items() if key not in _SECRETS}
