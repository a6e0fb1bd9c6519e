"""The Vertex AI Sessions API over gRPC, for clients that speak nothing else, such as adk-go.

A call is turned into the REST request that the API's own definition maps it to, and goes through
the same application in the same process: keys, limits, audit lines, numbers and meaning are those
of `vertex_routes`, and here is only the way there and back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import operator
import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urlencode

from threadline.errors import InvalidInputError, MissingExtraError, ThreadlineError
from threadline.server import messages
from threadline.vertex import wire

try:
    import grpc
    import grpc.aio
except ModuleNotFoundError as error:
    raise MissingExtraError("gRPC needs grpcio: pip install 'threadline[grpc]'") from error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Scope

log = logging.getLogger("threadline.server")

PAGE = 100
"""How many come in a page where no size is asked for: a message is held in memory as a whole,
and unlike some that speak REST, clients that speak gRPC read page after page."""

_REASON_LENGTH_MAX = 1000
"""What is longer does not fit into the headers that a client takes."""

_HEADERS = ("authorization", "x-goog-api-key", "forwarded", "x-forwarded-for")
"""The metadata that means something to the application."""


class _Rule(NamedTuple):
    """What a method is in REST: a resource's name is the path, a part of the request the body."""

    verb: str
    name: str
    pattern: str
    suffix: str = ""
    body: str | None = None


_ENGINE = r"(projects/[^/]+/locations/[^/]+/)?reasoningEngines/[^/]+"
_SESSION = rf"{_ENGINE}/sessions/[^/]+"
_OPERATION = rf"((projects/[^/]+/locations/[^/]+|{_ENGINE}|{_SESSION})/)?operations/[^/]+"

_RULES = {
    "CreateSession": _Rule("POST", "parent", _ENGINE, "/sessions", body="session"),
    "GetSession": _Rule("GET", "name", _SESSION),
    "ListSessions": _Rule("GET", "parent", _ENGINE, "/sessions"),
    "UpdateSession": _Rule("PATCH", "session.name", _SESSION, body="session"),
    "DeleteSession": _Rule("DELETE", "name", _SESSION),
    "ListEvents": _Rule("GET", "parent", _SESSION, "/events"),
    "AppendEvent": _Rule("POST", "name", _SESSION, ":appendEvent", body="event"),
    "GetOperation": _Rule("GET", "name", _OPERATION),
    "WaitOperation": _Rule("POST", "name", _OPERATION, ":wait"),
}


class Listener:
    """A gRPC server in front of an application, on the event loop that starts it."""

    def __init__(self, app: ASGIApp, host: str, port: int, *, body_bytes_max: int) -> None:
        self._app = app
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._options = [("grpc.max_receive_message_length", body_bytes_max)]

    async def start(self) -> None:
        """Take calls; several processes may share the port."""
        self._server = grpc.aio.server(options=self._options)
        for service, methods in messages.services().items():
            handlers = {
                name: grpc.unary_unary_rpc_method_handler(
                    _Method(self._app, _RULES[name], *kinds).answer
                )
                for name, kinds in methods.items()
            }
            handler = grpc.method_handlers_generic_handler(service, handlers)
            self._server.add_generic_rpc_handlers([handler])
        self._server.add_insecure_port(self._address)
        await self._server.start()

    async def stop(self, grace_s: float | None) -> None:
        """Take no more calls, and give those under way this long to end."""
        await self._server.stop(grace_s)


class _Method(NamedTuple):
    """One method over an application; `asked` and `answered` are the classes of its messages."""

    app: ASGIApp
    rule: _Rule
    asked: Any
    answered: Any

    async def answer(self, data: bytes, context: Any) -> bytes:
        """Answer a call, or abort it with the status that REST would have named."""
        try:
            scope, part = self._request(data, context)
            status, answer = await _respond(self.app, scope, part)
            if status == 200:
                # On a thread, as a page of events takes a while.
                return await asyncio.to_thread(messages.from_json, self.answered, answer)
            fault = answer["error"]
            name, reason = fault.get("status", "INTERNAL"), fault["message"]
        except ThreadlineError as error:
            (_, name), reason = wire.status_of(error), str(error)
        return await context.abort(  # type: ignore[no-any-return]
            grpc.StatusCode[name], reason[:_REASON_LENGTH_MAX]
        )

    def _request(self, data: bytes, context: Any) -> tuple[Scope, Any]:
        """Return the REST request that a call means: an ASGI scope, and what is to be the body."""
        rule, message = self.rule, messages.decode(self.asked, data)
        metadata = dict(context.invocation_metadata())
        name, part = operator.attrgetter(rule.name)(message), None
        if rule.body is not None:
            part = getattr(message, rule.body)
            message.ClearField(rule.body)
        query = messages.to_json(message)
        query.pop(rule.name, None)
        if not re.fullmatch(rule.pattern, name):
            raise InvalidInputError(f"Invalid value at '{rule.name}': {name!r} is not such a name.")
        if "filter" in query and "gl-go/" in metadata.get("x-goog-api-client", ""):
            query["filter"] = _escaped(query["filter"])
        if "page_size" in self.asked.DESCRIPTOR.fields_by_name:
            query.setdefault("pageSize", PAGE)
        path = f"/v1beta1/{quote(name, safe='/%')}{rule.suffix}"
        kind, _, peer = context.peer().partition(":")
        client = unquote(peer).rpartition(":")[0].strip("[]") if kind.startswith("ip") else ""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "2",
            "method": rule.verb,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": urlencode(query).encode(),
            # The host that was called is not to be had, and is asked for only because of web
            # pages, which cannot call gRPC.
            "headers": [
                (b"host", b"localhost"),
                *((key.encode(), metadata[key].encode()) for key in _HEADERS if key in metadata),
            ],
            "client": (client, 0),
            "server": None,
        }
        return scope, part


async def _respond(app: ASGIApp, scope: Scope, part: Any) -> tuple[int, wire.Json]:
    """Return the status and the JSON of the application's answer to a request."""
    status, pieces = 500, []

    async def receive() -> Message:
        # Not before it is asked for, and so of nobody who may not write.
        body = b"" if part is None else await asyncio.to_thread(_body, part)
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            pieces.append(message.get("body", b""))

    try:
        await app(scope, receive, send)
    except Exception:  # which uvicorn would log; some of the answer may be there
        log.exception("A call of gRPC failed: %s %s", scope["method"], scope["path"])
        return 500, {"error": {"message": "The server failed; its log says why."}}
    answer: wire.Json = json.loads(b"".join(pieces))
    return status, answer


def _body(part: Any) -> bytes:
    return wire.dumps(messages.to_json(part))


def _escaped(filter: str) -> str:
    """Return a filter with the quotes and backslashes of a user escaped: adk-go does not."""
    found = re.fullmatch(r'userId="(.*)"', filter, re.DOTALL)
    if found is None:
        return filter
    return 'userId="' + found[1].replace("\\", r"\\").replace('"', r"\"") + '"'
