"""ADK's web UI, served out of an installed google-adk, on the server's own origin."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from threadline.errors import MissingExtraError
from threadline.server.access import open_to_all

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Scope

PATH = "/dev-ui"


def routes() -> list[BaseRoute]:
    """Return the routes of the UI's files, or raise MissingExtraError."""
    return [
        Route(PATH, _to_the_files),
        Route(f"{PATH}/assets/config/runtime-config.json", _config),
        Mount(PATH, _Files(directory=folder(), html=True)),
    ]


def folder() -> Path:
    """Return where google-adk has the files, or raise MissingExtraError."""
    try:
        found = importlib.util.find_spec("google.adk")  # which imports nothing of it
    except ModuleNotFoundError:
        found = None
    for place in (found and found.submodule_search_locations) or ():
        files = Path(place, "cli", "browser")
        if files.joinpath("index.html").is_file():
            return files
    raise MissingExtraError("ADK's web UI comes with google-adk: pip install 'threadline[adk]'")


async def _to_the_files(request: Request) -> Response:
    """Lead to where the UI's own paths are right."""
    open_to_all(request)
    return RedirectResponse(f"{request.scope['root_path']}{PATH}/")


async def _config(request: Request) -> Response:
    """Tell the UI to call the server that it came from, and to report to nobody."""
    open_to_all(request)
    return JSONResponse({"backendUrl": request.scope["root_path"], "telemetry": False})


class _Files(StaticFiles):
    """The files, for whoever reaches the server: they are google-adk's, and nobody's sessions."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file."""
        open_to_all(HTTPConnection(scope))
        return await super().get_response(path, scope)
