"""From a database URL to an engine, importing no driver that is not asked for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from threadline.engines.memory import MemoryEngine
from threadline.errors import InvalidInputError, UnsupportedUrlError

if TYPE_CHECKING:
    from threadline.engines.base import Engine

DURABILITIES = ("full", "normal")

_URL = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*)://(?P<rest>.*)", re.DOTALL)
_SQLITE = {"sqlite", "sqlite+aiosqlite", "sqlite+pysqlite"}
_COMING = {
    "postgresql": "PostgreSQL",
    "postgres": "PostgreSQL",
    "mysql": "MySQL",
    "mariadb": "MariaDB",
}


def connect(url: str, *, durability: str = "full", busy_timeout_s: float = 30.0) -> Engine:
    """Return the engine of a URL, not yet opened.

    `sqlite:///relative.db`, `sqlite:////absolute.db` and `sqlite:///:memory:` work, and so do
    the spellings with a driver that SQLAlchemy users have; `memory://` keeps nothing.
    """
    found = _URL.fullmatch(url) if isinstance(url, str) else None
    if found is None:
        raise UnsupportedUrlError(
            f"{_shown(url)} is not a database URL; for a local file write sqlite:///./sessions.db"
        )
    scheme, rest = found["scheme"].lower(), found["rest"]
    if scheme == "memory":
        return MemoryEngine()
    if scheme in _SQLITE:
        if durability not in DURABILITIES:
            raise InvalidInputError(
                f"durability must be one of {', '.join(DURABILITIES)}, got {durability!r}."
            )
        return _sqlite(rest, durability, busy_timeout_s)
    name = _COMING.get(scheme.partition("+")[0])
    if name:
        raise UnsupportedUrlError(
            f"{name} is not supported by this version of threadline. "
            "Use sqlite:///./sessions.db until it is."
        )
    raise UnsupportedUrlError(
        f"The scheme {scheme!r} is unknown; write sqlite:///./sessions.db for a local file "
        "or memory:// for none."
    )


def _sqlite(rest: str, durability: str, busy_timeout_s: float) -> Engine:
    from threadline.engines.sqlite import SqliteEngine

    path, _, query = rest.partition("?")
    if query:
        raise UnsupportedUrlError(
            f"sqlite URLs take no options here, got ?{query}; use the arguments durability= "
            "and busy_timeout_s= of DatabaseSessionService."
        )
    if path in ("", "/", "/:memory:"):
        return SqliteEngine(":memory:", durability=durability, busy_timeout_s=busy_timeout_s)
    if not path.startswith("/"):
        raise UnsupportedUrlError(
            f"A SQLite URL has three slashes before a relative path and four before an absolute "
            f"one: write sqlite:///{_shown(path)[1:-1]}"
        )
    # Two slashes end the scheme; the next one only separates: a relative path follows it.
    return SqliteEngine(unquote(path[1:]), durability=durability, busy_timeout_s=busy_timeout_s)


def _shown(url: object) -> str:
    """Return a URL without its password."""
    return re.sub(r":[^@]*@", ":***@", repr(url))
