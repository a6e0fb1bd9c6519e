"""From a database URL to an engine, importing no driver that is not asked for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode

from threadline.engines.memory import MemoryEngine
from threadline.errors import InvalidInputError, MissingExtraError, UnsupportedUrlError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from threadline.engines.base import Engine

DURABILITIES = ("full", "normal")

_URL = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*)://(?P<rest>.*)", re.DOTALL)
_SQLITE = {"sqlite", "sqlite+aiosqlite", "sqlite+pysqlite"}
_POSTGRES = {
    "postgresql",
    "postgres",
    "postgresql+asyncpg",
    "postgresql+psycopg",
    "postgresql+psycopg2",
    "postgresql+psycopg_async",
}
_COMING = {
    "mysql": "MySQL",
    "mariadb": "MariaDB",
}


def connect(
    url: str,
    *,
    durability: str = "full",
    busy_timeout_s: float = 30.0,
    schema: str | None = None,
    pool_min: int | None = None,
    pool_max: int | None = None,
    connect_with: Callable[..., Awaitable[Any]] | None = None,
) -> Engine:
    """Return the engine of a URL, not yet opened.

    `sqlite:///relative.db`, `sqlite:////absolute.db`, `sqlite:///:memory:` and
    `postgresql://user:password@host/database` work, and so do the spellings with a driver that
    SQLAlchemy users have; `memory://` keeps nothing. What follows `busy_timeout_s` is for
    databases with a server, and may stand in the URL too (`?schema=agents&pool_max=20`);
    `connect_with(url, **options)` makes a connection in the driver's stead.
    """
    found = _URL.fullmatch(url) if isinstance(url, str) else None
    if found is None:
        raise UnsupportedUrlError(
            f"{_shown(url)} is not a database URL; for a local file write sqlite:///./sessions.db"
        )
    scheme, rest = found["scheme"].lower(), found["rest"]
    options: dict[str, Any] = {
        "schema": schema,
        "pool_min": pool_min,
        "pool_max": pool_max,
        "connect_with": connect_with,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if scheme == "memory":
        return MemoryEngine()
    if durability not in DURABILITIES:
        raise InvalidInputError(
            f"durability must be one of {', '.join(DURABILITIES)}, got {durability!r}."
        )
    if scheme in _POSTGRES:
        return _postgres(rest, durability, busy_timeout_s, given)
    if scheme in _SQLITE:
        if given:
            raise InvalidInputError(f"SQLite has no {', '.join(given)}.")
        return _sqlite(rest, durability, busy_timeout_s)
    name = _COMING.get(scheme.partition("+")[0])
    if name:
        raise UnsupportedUrlError(
            f"{name} is not supported by this version of threadline. "
            "Use sqlite:///./sessions.db until it is."
        )
    raise UnsupportedUrlError(
        f"The scheme {scheme!r} is unknown; write sqlite:///./sessions.db for a local file "
        "postgresql://user:password@host/database for PostgreSQL, or memory:// for none."
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


def _postgres(rest: str, durability: str, busy_timeout_s: float, given: dict[str, Any]) -> Engine:
    try:
        from threadline.engines.postgres import PostgresEngine
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise MissingExtraError(
            "PostgreSQL needs a driver: pip install 'threadline[postgres]'"
        ) from error
    address, _, query = rest.partition("?")
    kept: list[tuple[str, str]] = []
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in ("pool_min", "pool_max", "statement_cache_size"):
            options[name] = _whole(name, value)
        elif name == "schema":
            options[name] = value
        else:
            # SQLAlchemy's asyncpg spelling of what libpq, and asyncpg itself, call sslmode.
            kept.append(("sslmode" if name == "ssl" else name, value))
    options |= given
    _check_pool(options)
    if not any(name == "application_name" for name, _ in kept):
        kept.append(("application_name", "threadline"))
    return PostgresEngine(
        f"postgresql://{address}?{urlencode(kept)}",
        durability=durability,
        busy_timeout_s=busy_timeout_s,
        **options,
    )


def _whole(name: str, value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise UnsupportedUrlError(f"{name} must be a whole number, got {value!r}.")
    return int(value)


def _check_pool(options: dict[str, Any]) -> None:
    smallest, largest = options.get("pool_min", 1), options.get("pool_max", 10)
    if not 0 <= smallest <= largest or largest < 1:
        raise InvalidInputError(
            f"A pool has 0 <= pool_min <= pool_max connections and at least one, "
            f"got {smallest} and {largest}."
        )
    if not options.get("schema", "public") or "\0" in options.get("schema", ""):
        raise InvalidInputError("schema must be a name.")


def _shown(url: object) -> str:
    """Return a URL without its password."""
    return re.sub(r":[^@]*@", ":***@", repr(url))
