"""The native API: one table of operations, from which the routes and the document are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec
from starlette.exceptions import HTTPException
from starlette.routing import Route

from threadline import wire
from threadline.errors import (
    AlreadyExistsError,
    EventConflictError,
    InvalidInputError,
    PermissionDeniedError,
    SessionNotFoundError,
    StaleSessionError,
    StateConflictError,
    ThreadlineError,
    UnauthenticatedError,
)
from threadline.server import handlers
from threadline.server import paths as paths  # it knows `{app:id}`
from threadline.server.access import authorize, authorize_part
from threadline.server.handlers import Ask
from threadline.server.heads import Heads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

    from threadline.server.handlers import Query
    from threadline.server.tails import Tails
    from threadline.service import BaseSessionService


class Operation(NamedTuple):
    """One line of the table."""

    method: str
    path: str
    handler: Callable[[Ask], Awaitable[Response]]
    write: bool = False
    query: type[Query] = handlers.Nothing
    body: type[wire.Body] | None = None
    answer: type[wire.Answer] | None = None
    status: int = 200
    refusals: tuple[type[ThreadlineError], ...] = ()
    headers: tuple[str, ...] = ()
    in_part: bool = False
    """Whether a key that does not reach all is answered with what it reaches, and not refused."""

    @property
    def summary(self) -> str:
        """What it does, in a sentence."""
        return (self.handler.__doc__ or "").partition("\n")[0]


# -- the table --------------------------------------------------------------------------

_APPS = "/v1/apps"
_APP = _APPS + "/{app:id}"
_USER = _APP + "/users/{user:id}"
_SESSION = _USER + "/sessions/{session:id}"

OPERATIONS = (
    Operation("GET", _APPS, handlers.list_apps, answer=wire.AppsAnswer, in_part=True),
    Operation("DELETE", _USER, handlers.erase_user, write=True, answer=wire.ErasedAnswer),
    *(
        Operation(
            "GET", f"{of}/sessions", handlers.list_sessions, query=handlers.SessionsWanted,
            answer=wire.SessionsAnswer,
        )
        for of in (_APP, _USER)
    ),
    Operation(
        "GET", f"{_APP}/sessions/{{session:id}}", handlers.find_sessions,
        answer=wire.SessionsAnswer, in_part=True,
    ),
    Operation(
        "POST", f"{_USER}/sessions", handlers.create_session, write=True, body=wire.NewSessionBody,
        answer=wire.SessionAnswer, status=201, refusals=(AlreadyExistsError,),
    ),
    Operation(
        "GET", _SESSION, handlers.get_session, query=handlers.EventsWanted,
        answer=wire.SessionAnswer, refusals=(SessionNotFoundError,), headers=("If-None-Match",),
    ),
    Operation(
        "PUT", _SESSION, handlers.get_or_create_session, write=True, body=wire.SameSessionBody,
        answer=wire.SessionAnswer,
    ),
    Operation(
        "PATCH", _SESSION, handlers.update_session, write=True, body=wire.ChangedSessionBody,
        answer=wire.SessionAnswer, refusals=(SessionNotFoundError,),
    ),
    Operation("DELETE", _SESSION, handlers.delete_session, write=True, status=204),
    Operation(
        "GET", f"{_SESSION}/events", handlers.list_events, query=handlers.PageWanted,
        answer=wire.EventsAnswer, refusals=(SessionNotFoundError,),
    ),
    Operation(
        "POST", f"{_SESSION}/events", handlers.append_events, write=True, body=wire.AppendBody,
        answer=wire.AppendAnswer,
        refusals=(SessionNotFoundError, StaleSessionError, EventConflictError),
        headers=("If-Match", "Idempotency-Key"),
    ),
    Operation(
        "GET", f"{_SESSION}/events:tail", handlers.tail_events, query=handlers.TailWanted,
        refusals=(SessionNotFoundError,), headers=("Last-Event-ID",),
    ),
    *(
        Operation(
            "GET", f"{of}/state", handlers.get_state, answer=wire.StateAnswer,
            refusals=(SessionNotFoundError,) if of == _SESSION else (),
        )
        for of in (_APP, _USER, _SESSION)
    ),
    *(
        Operation(
            "PATCH", f"{of}/state", handlers.patch_state, write=True, body=wire.PatchBody,
            answer=wire.StateAnswer,
            refusals=(
                StateConflictError, *((SessionNotFoundError,) if of == _SESSION else ()),
            ),
        )
        for of in (_APP, _USER, _SESSION)
    ),
)  # fmt: skip
"""Everything that the native API does."""

REFUSALS = (InvalidInputError, UnauthenticatedError, PermissionDeniedError)
"""What every operation may answer."""


def routes(service: BaseSessionService, tails: Tails) -> list[BaseRoute]:
    """Return the routes of the native API."""
    heads = Heads()
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    return [
        Route(path, _endpoint(service, tails, heads, operations), methods=list(operations))
        for path, operations in by_path.items()
    ]


def _endpoint(
    service: BaseSessionService, tails: Tails, heads: Heads, operations: dict[str, Operation]
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        operation, ids = operations[method], request.path_params
        app, user = ids.get("app"), ids.get("user")
        if operation.in_part:
            grant = authorize_part(request, app=app, write=operation.write)
        else:
            grant = authorize(request, app=app, user=user, write=operation.write)
        ask = Ask(
            service=service,
            tails=tails,
            heads=heads,
            request=request,
            grant=grant,
            app=app or "",
            user=user or "",
            session=ids.get("session", ""),
            query=_query(request, operation.query),
            body=None if operation.body is None else await _body(request, operation.body),
        )
        return await operation.handler(ask)

    return endpoint


def _query(request: Request, kind: type[Query]) -> Query:
    given = {name: value for name, value in request.query_params.items() if name != "key"}
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInputError(f"The query is not what is expected here: {error}") from error


async def _body(request: Request, kind: type[wire.Body]) -> wire.Body:
    data = await request.body()
    if data:
        sort = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if sort != wire.JSON:
            raise HTTPException(415, f"The body must be {wire.JSON}, not {sort or 'unnamed'!r}.")
    return wire.read(kind, data or b"{}")
