"""URI schemes for google-adk's command line: `threadline+` before a database URL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from threadline.connect import SCHEMES
from threadline.errors import InvalidInputError
from threadline.integrations.adk.service import DatabaseSessionService

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.adk.sessions import BaseSessionService

PREFIX = "threadline+"


def register_schemes(
    make: Callable[[str], BaseSessionService] = DatabaseSessionService,
) -> None:
    """Let `adk web`, `adk api_server` and `adk run` take `threadline+sqlite:///...` and the like.

    `make` is given the URL without its prefix. Call this in the `services.py` of the agents'
    folder, which google-adk imports before it looks at `--session_service_uri`.
    """
    from google.adk.cli.service_registry import get_service_registry

    def from_uri(uri: str, *, agents_dir: str = "", **options: Any) -> BaseSessionService:
        del agents_dir  # a relative path is relative to the current directory, as in any URL here
        if options:
            raise InvalidInputError(
                f"threadline knows no {', '.join(sorted(options))} in session_db_kwargs; put "
                "options into the URL, or give register_schemes a function of your own."
            )
        return make(uri.removeprefix(PREFIX))

    registry = get_service_registry()
    for scheme in SCHEMES:
        registry.register_session_service(PREFIX + scheme, from_uri)
