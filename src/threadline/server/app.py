"""The application: a session service behind HTTP, to be served or mounted into another one."""

from __future__ import annotations

import contextlib
import functools
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import threadline
from threadline import wire
from threadline.errors import ThreadlineError, UnauthenticatedError
from threadline.server import adk_routes, adk_ui, metrics, openapi, page, vertex_routes
from threadline.server.access import authorize, open_to_all
from threadline.server.auth import Authentication, loopback_only
from threadline.server.layers import BodyLimit, Compression, Observation
from threadline.server.paths import EncodedPath
from threadline.server.routes import routes
from threadline.server.tails import Tails

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.requests import Request

    from threadline.server.auth import Authenticate
    from threadline.service import BaseSessionService

log = logging.getLogger("threadline.server")

BODY_BYTES_MAX = 64_000_000


def create_app(
    service: BaseSessionService,
    *,
    keys: Authenticate | None = None,
    body_bytes_max: int = BODY_BYTES_MAX,
    cors_origins: Sequence[str] = (),
    with_adk_ui: bool = False,
    tails: Tails | None = None,
) -> Starlette:
    """Return the application over a service, which it opens and closes if it is served itself.

    `keys` tells whose a request is: a `KeyFile`, or any function of the connection; without it
    only requests from this machine are answered. Mounted, it opens the service at the first
    request, and closing it is the host's business. `cors_origins` are the web origins whose pages
    may call it; none by default. `with_adk_ui` serves ADK's web UI too, from an installed
    google-adk.
    """
    tails = Tails(service) if tails is None else tails
    numbers = metrics.Metrics(tails.__len__)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with service:
            yield

    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(cors_origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["ETag", "Location"],
    )
    app = Starlette(
        routes=[
            *routes(service, tails),
            *vertex_routes.routes(service, tails),
            *adk_routes.routes(service, tails),
            *(adk_ui.routes() if with_adk_ui else []),
            *_own_routes(service, tails, numbers),
        ],
        lifespan=lifespan,
        middleware=[
            Middleware(EncodedPath),
            Middleware(Observation, metrics=numbers),
            *([cors] if cors_origins else []),
            Middleware(Compression),
            Middleware(
                Authentication,
                authenticate=keys or functools.partial(loopback_only, origins=cors_origins),
            ),
            Middleware(BodyLimit, bytes_max=body_bytes_max),
        ],
        exception_handlers={
            ThreadlineError: _refusal,
            HTTPException: _http_refusal,
            Exception: _failure,
        },
    )
    app.router.redirect_slashes = False  # an id in a path is never empty
    app.state.tails = tails
    return app


def _own_routes(service: BaseSessionService, tails: Tails, numbers: metrics.Metrics) -> list[Route]:
    """Return the routes about the server itself."""
    told = openapi.document(threadline.__version__)
    shown = page.page(told)

    async def healthz(request: Request) -> Response:
        open_to_all(request)
        return PlainTextResponse("ok")

    async def readyz(request: Request) -> Response:
        open_to_all(request)
        if tails.is_closing:
            return PlainTextResponse("shutting down", 503)
        await service.get_app_state(app_name="threadline")
        return PlainTextResponse("ok")

    async def show_metrics(request: Request) -> Response:
        authorize(request, app=None, user=None, write=False)
        return Response(numbers.text(), media_type=metrics.TYPE)

    async def show_document(request: Request) -> Response:
        open_to_all(request)
        return JSONResponse(told)

    async def show_page(request: Request) -> Response:
        open_to_all(request)
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        return Response(shown, headers={"content-security-policy": policy}, media_type="text/html")

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", show_metrics),
        Route("/openapi.json", show_document),
        Route("/docs", show_page),
    ]


# -- refusals ---------------------------------------------------------------------------


async def _refusal(_: Request, error: Any) -> Response:
    status = wire.status_of(error)
    headers = {}
    if isinstance(error, UnauthenticatedError):
        headers["www-authenticate"] = "Bearer"
    if status == 503:
        headers["retry-after"] = "1"
    if status >= 500:
        log.error("%s: %s", type(error).__name__, error)
    return Response(wire.error_body(error), status, headers, wire.JSON)


async def _http_refusal(_: Request, error: Any) -> Response:
    """Answer for what no route took, in the same shape."""
    return _fault(error.status_code, error.detail, error.headers)


async def _failure(_: Request, __: Exception) -> Response:
    return _fault(500, "The server failed; its log says why.")


def _fault(status: int, message: str, headers: Any = None) -> Response:
    kind = HTTPStatus(status).phrase.replace(" ", "").replace("-", "")
    body = msgspec.json.encode({"error": wire.Fault(type=kind, message=message)})
    return Response(body, status, headers, wire.JSON)
