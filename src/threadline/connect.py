"""From a database URL to an engine, importing no driver that is not asked for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from threadline.engines.memory import MemoryEngine
from threadline.errors import InvalidInputError, MissingExtraError, UnsupportedUrlError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    import asyncpg
    from sqlalchemy.ext.asyncio import AsyncEngine

    from threadline.engines.base import Engine

DURABILITIES = ("full", "normal")
REPLICA_WAIT_MAX_S = 2.0
"""How long a replica may keep a read waiting before the primary is asked."""

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
_MYSQL = {
    f"{database}{driver}"
    for database in ("mysql", "mariadb")
    for driver in ("", "+asyncmy", "+aiomysql")
}
_ADOPTED = [("postgresql", "asyncpg"), ("mysql", "asyncmy"), ("mariadb", "asyncmy")]
_MYSQL_OPTIONS: dict[str, Callable[[str], Any]] = {
    "unix_socket": str,
    "connect_timeout": float,
    "pool_min": int,
    "pool_max": int,
    "group_commit": lambda text: _switch("group_commit", text),
    "table_prefix": str,
    "charset": str,
    "ssl_mode": str,
    "ssl_ca": str,
    "ssl_cert": str,
    "ssl_key": str,
}
SCHEMES = ("memory", *sorted(_SQLITE | _POSTGRES | _MYSQL))
SSL_MODES = ("disabled", "required", "verify_ca", "verify_identity")


def connect(
    url: str | asyncpg.Pool | AsyncEngine,
    *,
    durability: str = "full",
    busy_timeout_s: float = 30.0,
    schema: str | None = None,
    table_prefix: str | None = None,
    pool_min: int | None = None,
    pool_max: int | None = None,
    connect_with: Callable[..., Awaitable[Any]] | None = None,
    group_commit: bool | None = None,
    replica_url: str | None = None,
) -> Engine:
    """Return the engine of a URL, not yet opened.

    `sqlite:///relative.db`, `sqlite:////absolute.db`, `sqlite:///:memory:`,
    `postgresql://user:password@host/database` and `mysql://user:password@host/database` work,
    and so do the spellings with a driver that SQLAlchemy users have; `memory://` keeps nothing.
    A MySQL URL may name several hosts, `mysql://user@host1,host2:3307/database`.
    What follows `busy_timeout_s` is for databases with a server, and may stand in the URL too
    (`?pool_max=20`): `schema` for PostgreSQL, `table_prefix` for MySQL. `connect_with` makes a
    connection in the driver's stead: of (url, **options) for PostgreSQL, of nothing for MySQL.
    With `group_commit=False` no two appends share a transaction.
    Reads go to the server of `replica_url` if it has what was written here.

    Of an `asyncpg.Pool` the connections are borrowed for each call. Of an SQLAlchemy `AsyncEngine`
    new connections are taken, so its URL, `connect_args`, `async_creator` and `do_connect` and
    `connect` events hold; its pool, isolation level, echo and other events do not.
    """
    options = {
        "schema": schema,
        "table_prefix": table_prefix,
        "pool_min": pool_min,
        "pool_max": pool_max,
        "connect_with": connect_with,
        "group_commit": group_commit,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if durability not in DURABILITIES:
        raise InvalidInputError(
            f"durability must be one of {', '.join(DURABILITIES)}, got {durability!r}."
        )
    if isinstance(url, str):
        engine = _engine(url, durability, busy_timeout_s, given)
    elif _is_a(url, "asyncpg", "Pool"):
        engine = _borrowing(url, durability, busy_timeout_s, given)
    elif _is_a(url, "sqlalchemy", "AsyncEngine"):
        engine = _detaching(url, durability, busy_timeout_s, given)
    else:
        engine = _engine(url, durability, busy_timeout_s, given)
    if replica_url is None:
        return engine
    replica = _engine(replica_url, "full", min(busy_timeout_s, REPLICA_WAIT_MAX_S), given)
    return _replicated(engine, replica)


def is_private(db_url: str) -> bool:
    """Tell whether a URL stands for the memory of this process, which no other one sees."""
    engine = connect(db_url)
    return isinstance(engine, MemoryEngine) or getattr(engine, "path", None) == ":memory:"


def _engine(url: Any, durability: str, busy_timeout_s: float, given: dict[str, Any]) -> Engine:
    found = _URL.fullmatch(url) if isinstance(url, str) else None
    if found is None:
        raise UnsupportedUrlError(
            f"{_shown(url)} is not a database URL; for a local file write sqlite:///./sessions.db"
        )
    scheme, rest = found["scheme"].lower(), found["rest"]
    if given and (scheme == "memory" or scheme in _SQLITE):
        raise InvalidInputError(f"{scheme}:// has no {', '.join(given)}.")
    if scheme == "memory":
        return MemoryEngine()
    if scheme in _POSTGRES:
        return _postgres(rest, durability, busy_timeout_s, given)
    if scheme in _SQLITE:
        return _sqlite(rest, durability, busy_timeout_s)
    if scheme in _MYSQL:
        return _mysql(url, rest, busy_timeout_s, given)
    if scheme.partition("+")[0] in _MYSQL:
        raise UnsupportedUrlError(
            f"threadline does not use the driver {scheme.partition('+')[2]!r}; write mysql:// "
            "(pip install 'threadline[mysql]')."
        )
    raise UnsupportedUrlError(
        f"The scheme {scheme!r} is unknown; write sqlite:///./sessions.db for a local file, "
        "postgresql:// or mysql://user:password@host/database, or memory:// for none."
    )


def _is_a(value: object, package: str, name: str) -> bool:
    """Tell what a value is without importing its package."""
    return any(
        kind.__name__ == name and kind.__module__.partition(".")[0] == package
        for kind in type(value).__mro__
    )


def _borrowing(
    pool: asyncpg.Pool, durability: str, busy_timeout_s: float, given: dict[str, Any]
) -> Engine:
    from threadline.engines.postgres import PostgresEngine

    if durability != "full":
        raise InvalidInputError(
            "An asyncpg.Pool decides about durability itself: make it with "
            "server_settings={'synchronous_commit': 'off'}."
        )
    own = given.keys() - {"schema", "group_commit"}
    if own:
        raise InvalidInputError(
            f"An asyncpg.Pool comes as it is, so there is no {', '.join(sorted(own))}."
        )
    _check_pool(given)
    return PostgresEngine(pool=pool, busy_timeout_s=busy_timeout_s, **given)


def _detaching(
    engine: AsyncEngine, durability: str, busy_timeout_s: float, given: dict[str, Any]
) -> Engine:
    database, driver = engine.dialect.name, engine.dialect.driver
    if database == "sqlite":
        path = engine.url.database
        return _engine(f"sqlite:///{quote(path or '')}", durability, busy_timeout_s, given)
    if (database, driver) not in _ADOPTED:
        spellings = " and ".join(f"{database}+{driver}://" for database, driver in _ADOPTED)
        raise UnsupportedUrlError(
            f"Connections of {database}+{driver} cannot be used; of AsyncEngines there are "
            f"{spellings}."
        )
    if "connect_with" in given:
        raise InvalidInputError("An AsyncEngine makes its connections, so no connect_with.")
    if durability != "full":
        raise InvalidInputError(
            "An AsyncEngine decides about durability itself: make it with connect_args="
            "{'server_settings': {'synchronous_commit': 'off'}}."
        )

    async def connect_with(*_: object, **__: object) -> Any:
        connection = await engine.raw_connection()
        adopted = connection.driver_connection
        connection.detach()
        return adopted

    # The rest of the URL was said to the AsyncEngine.
    url = engine.url.set(drivername="mysql" if database == "mariadb" else database, query={})
    shown = url.render_as_string(hide_password=False)
    return _engine(shown, durability, busy_timeout_s, {**given, "connect_with": connect_with})


def _replicated(engine: Engine, replica: Engine) -> Engine:
    from threadline.engines.replica import ReplicaEngine

    kinds = [type(engine), type(replica)]
    if kinds[0] is not kinds[1] or not hasattr(engine, "dialect"):
        raise InvalidInputError(
            "replica_url must name a server that follows the one of the database's URL."
        )
    if getattr(engine, "dialect", "") == "sqlite":
        raise InvalidInputError("A SQLite file has no replica.")
    return ReplicaEngine(engine, replica)


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
        elif name == "group_commit":
            options[name] = _switch(name, value)
        else:
            # SQLAlchemy's asyncpg spelling of what libpq, and asyncpg itself, call sslmode.
            kept.append(("sslmode" if name == "ssl" else name, value))
    if "table_prefix" in given:
        raise InvalidInputError("PostgreSQL has no table_prefix here; use schema.")
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


def _switch(name: str, value: str) -> bool:
    if value not in ("on", "off"):
        raise UnsupportedUrlError(f"{name} must be on or off, got {value!r}.")
    return value == "on"


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


def _mysql(url: str, rest: str, busy_timeout_s: float, given: dict[str, Any]) -> Engine:
    try:
        from threadline.engines.mysql import MysqlEngine
    except ModuleNotFoundError as error:
        if error.name != "asyncmy":
            raise
        raise MissingExtraError(
            "MySQL and MariaDB need a driver: pip install 'threadline[mysql]'"
        ) from error
    try:
        parts = urlsplit(f"mysql://{rest}")
        hosts = [urlsplit(f"//{host}") for host in parts.netloc.rpartition("@")[2].split(",")]
        places = [(host.hostname or "", host.port or 3306) for host in hosts]
    except ValueError:  # it would quote the password, where that holds an unquoted slash
        raise UnsupportedUrlError(
            f"{_shown(url)} has no valid host and port; characters such as / # ? @ in a password "
            "are written percent-encoded (urllib.parse.quote)."
        ) from None
    database = unquote(parts.path[1:])
    if not database or "/" in database or parts.fragment:
        raise UnsupportedUrlError(
            f"{_shown(url)} names no database; write mysql://user:password@host/database, with "
            "characters such as / # ? @ in a password percent-encoded."
        )
    options = _options(parts.query, _MYSQL_OPTIONS) | given
    (host, port), *others = places
    if others and (not all(host for host, _ in places) or "unix_socket" in options):
        raise UnsupportedUrlError(
            f"{_shown(url)} must name a host on both sides of each comma, and no unix_socket; "
            "write mysql://user:password@host1:3306,host2:3306/database."
        )
    if options.pop("charset", "utf8mb4") != "utf8mb4":
        raise UnsupportedUrlError("threadline speaks utf8mb4; leave charset= out of the URL.")
    if "connect_timeout" in options:
        options["connect_timeout_s"] = options.pop("connect_timeout")
    if "schema" in given:
        raise InvalidInputError("MySQL has no schema inside a database; use table_prefix.")
    tls = {name: options.pop(name) for name in list(options) if name.startswith("ssl_")}
    return MysqlEngine(
        host=host or "127.0.0.1",
        port=port,
        other_hosts=others,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password or ""),
        database=database,
        tls=_tls(**tls),
        busy_timeout_s=busy_timeout_s,
        **options,
    )


def _options(query: str, known: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        key = name.replace("-", "_")
        if key not in known:
            raise UnsupportedUrlError(
                f"The URL option {name!r} is unknown; there are {', '.join(sorted(known))}."
            )
        try:
            options[key] = known[key](text)
        except ValueError:
            raise UnsupportedUrlError(
                f"The URL option {name!r} must be a number, got {text!r}."
            ) from None
    return options


def _tls(
    ssl_mode: str | None = None,
    ssl_ca: str | None = None,
    ssl_cert: str | None = None,
    ssl_key: str | None = None,
) -> ssl.SSLContext | None:
    """Return what to check of a server's certificate; None speaks in the clear."""
    import ssl

    mode = (ssl_mode or ("verify_identity" if ssl_ca or ssl_cert else "disabled")).lower()
    if mode not in SSL_MODES:
        raise UnsupportedUrlError(
            f"ssl_mode must be one of {', '.join(SSL_MODES)}, got {ssl_mode!r}."
        )
    if mode == "disabled":
        return None
    try:
        context = ssl.create_default_context(cafile=ssl_ca)
        context.check_hostname = mode == "verify_identity"
        context.verify_mode = ssl.CERT_NONE if mode == "required" else ssl.CERT_REQUIRED
        if ssl_cert:
            context.load_cert_chain(ssl_cert, ssl_key)
    except OSError as error:
        raise UnsupportedUrlError(
            f"ssl_ca, ssl_cert and ssl_key must be readable PEM files: {error}."
        ) from error
    return context


def _shown(url: object) -> str:
    """Return a URL without its password."""
    return re.sub(r":[^@]*@", ":***@", repr(url))
