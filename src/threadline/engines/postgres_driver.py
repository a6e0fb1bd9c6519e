"""asyncpg as the PostgreSQL engine uses it: making connections, and what their errors mean."""

from __future__ import annotations

import contextlib
import uuid
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg

from threadline.errors import (
    InvalidInputError,
    ReadOnlyDatabaseError,
    StorageBusyError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    ThreadlineError,
    UnsupportedUrlError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

CONNECT_TIMEOUT_S = 10.0
FIRST_OWN_OID = 16384
"""What has a smaller one was there when the server was installed."""


class Connection(asyncpg.Connection):  # type: ignore[misc]
    """One that is ready sooner, and whose prepared statements have names of their own.

    Both methods are the driver's own, so they may go: then it asks more often, and a pooler that
    keeps prepared statements apart is needed.
    """

    def _get_unique_id(self, prefix: str) -> str:
        return f"threadline_{prefix}_{uuid.uuid4().hex}"

    async def _introspect_types(
        self, typeoids: Iterable[int], limit_s: float | None
    ) -> tuple[Any, Any]:
        """Ask once, and not in every connection, what an array of a built-in type holds."""
        wanted = frozenset(typeoids)
        if wanted in _BUILT_IN:
            return _BUILT_IN[wanted], _ASKED_BEFORE
        found, statement = await super()._introspect_types(typeoids, limit_s)
        if max(wanted) < FIRST_OWN_OID:  # the same on every server
            _BUILT_IN[wanted] = found
        return found, statement


_BUILT_IN: dict[frozenset[int], Any] = {}
_ASKED_BEFORE = SimpleNamespace(name="none that would have to be prepared again")


class Link:
    """A connection, whether it keeps statements prepared, and what the server warned of in it."""

    __slots__ = ("db", "has_statements", "warning")

    def __init__(self, db: asyncpg.Connection, *, has_statements: bool) -> None:
        self.db = db
        self.has_statements = has_statements
        self.warning: str | None = None
        db.add_log_listener(self._heed)

    def _heed(self, _: object, message: Any) -> None:
        # The one warning that matters: the wait for a synchronous standby was called off, and
        # the transaction committed all the same. The function's name is not translated.
        if message.server_source_function == "SyncRepWaitForLSN":
            self.warning = " ".join(str(message.message).split())

    def is_closed(self) -> bool:
        """Tell whether the connection is gone."""
        try:
            return bool(self.db.is_closed())
        except asyncpg.InterfaceError:  # an asyncpg.Pool took it back when it broke
            return True

    def forget(self) -> None:
        """Listen no more: the connection goes to somebody else."""
        with contextlib.suppress(asyncpg.InterfaceError):  # as in is_closed
            self.db.remove_log_listener(self._heed)


class PostgresDriver:
    """Makes connections, and knows where they lead without telling the password."""

    def __init__(
        self,
        dsn: str,
        *,
        connect_with: Callable[..., Awaitable[Any]] | None,
        statement_cache_size: int,
        busy_timeout_s: float,
        durability: str,
    ) -> None:
        parts = urlsplit(dsn)
        hosts = parts.netloc.rpartition("@")[2]
        self.where = f"{hosts}{parts.path}" or "the given asyncpg.Pool"
        self.user = parts.username
        self.secret = parts.password
        self.busy_timeout_s = busy_timeout_s
        self._dsns = [dsn.replace(hosts, host, 1) for host in hosts.split(",")]
        # The driver has one timeout for all hosts: one that is silent would leave the others none.
        self._connect_timeout_s = min(CONNECT_TIMEOUT_S, busy_timeout_s) / len(self._dsns)
        self._connect = connect_with or asyncpg.connect
        self._statement_cache_size = statement_cache_size
        self._settings = {"synchronous_commit": "off"} if durability == "normal" else {}

    async def connect(self) -> Link:
        """Connect to the first host that will do, beginning with the one that did last."""
        failure: Exception | None = None
        for dsn in self._dsns:
            size = self._statement_cache_size
            try:
                db = await self._connect(
                    dsn,
                    connection_class=Connection,
                    timeout=self._connect_timeout_s,
                    statement_cache_size=size,
                    max_cached_statement_lifetime=0,
                    server_settings=self._settings,
                )
            except _NEXT_HOST as error:
                failure = error
            else:
                self._dsns = sorted(self._dsns, key=dsn.__ne__)
                return Link(db, has_statements=size > 0)
        raise failure or AssertionError(self._dsns)

    @contextlib.asynccontextmanager
    async def lend(self) -> AsyncIterator[asyncpg.Connection]:
        """Make a connection that no pool has, and close it afterwards."""
        try:
            link = await self.connect()
        except Exception as error:
            raise self.translate(error) from error
        try:
            yield link.db
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise self.translate(error) from error
        finally:
            await self.leave(link)

    def is_lost(self, link: Link) -> bool:
        """Tell whether the server has hung up, or forgets what was prepared."""
        is_forgetful = link.has_statements and not self._statement_cache_size
        return is_forgetful or link.is_closed()

    def drop(self, link: Link) -> None:
        """Close a connection at once."""
        with contextlib.suppress(asyncpg.InterfaceError):  # as in is_closed
            link.db.terminate()

    async def leave(self, link: Link) -> None:
        """Close a connection as the server likes it."""
        await link.db.close()

    def is_passing(self, error: Exception, link: Link | None) -> bool:
        """Tell whether the same work may succeed if it is done again."""
        if isinstance(error, TimeoutError):
            return link is None  # to wait longer than the bound for a statement is not
        if isinstance(error, asyncpg.PostgresError):
            code = str(error.sqlstate)
            if code in _POOLED and link is not None and link.has_statements:
                # A pooler sent us to a server connection that has not heard of the statement.
                self._statement_cache_size = 0
                return True
            return code.startswith("08") or code in _PASSING
        if isinstance(error, ValueError):  # asyncpg.DataError among them
            return False
        return isinstance(error, _NEXT_HOST) or (link is not None and self.is_lost(link))

    def translate(self, error: Exception, link: Link | None = None) -> ThreadlineError:
        """Turn asyncpg's errors into ours: what to do, in one line without the password."""
        if isinstance(error, ThreadlineError):
            return error
        text = " ".join(str(error).split()) or type(error).__name__
        kind, advice = _advice(error)
        if link is not None and link.warning:
            kind, advice, text = StorageUnavailableError, _UNCONFIRMED, link.warning
        if self.secret:
            text = text.replace(self.secret, "***")
        return kind(
            advice.format(error=text, place=self.where, user=self.user, limit=self.busy_timeout_s)
        )


_NEXT_HOST = (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched)

_POOLED = {
    "26000",  # invalid_sql_statement_name
    "42P05",  # duplicate_prepared_statement
}
_PASSING = {
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "53300",  # too_many_connections
    "57P01",  # admin_shutdown
    "57P02",  # crash_shutdown
    "57P03",  # cannot_connect_now
    "57P05",  # idle_session_timeout
    "25P03",  # idle_in_transaction_session_timeout
}


def _advice(error: Exception) -> tuple[type[ThreadlineError], str]:
    if isinstance(error, asyncpg.PostgresError):
        code = str(error.sqlstate)
        found = _ADVICE.get(code) or _ADVICE.get(code[:2])
        return found or (StorageError, "PostgreSQL at {place} refused: {error}")
    if isinstance(error, TimeoutError):
        return (
            StorageUnavailableError,
            (
                "PostgreSQL at {place} did not answer within {limit} s; whether the call was "
                "written is not known. To append the same event again is safe."
            ),
        )
    if isinstance(error, OSError):
        return (
            StorageUnavailableError,
            (
                "No PostgreSQL answers at {place} ({error}). Check host and port, and that the "
                "server runs."
            ),
        )
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return StorageUnavailableError, "No PostgreSQL at {place} will do: {error}"
    if isinstance(error, asyncpg.DataError):
        return InvalidInputError, "PostgreSQL cannot store a value: {error}"
    if isinstance(error, ValueError):
        return UnsupportedUrlError, "{place} cannot be connected to: {error}"
    return StorageError, "The connection to PostgreSQL at {place} failed: {error}"


_UNCONFIRMED = (
    "The call was written at {place}, but no synchronous standby confirmed it within {limit} s "
    "({error}): it is lost if that server is. To append the same event again is safe."
)

_ADVICE: dict[str, tuple[type[ThreadlineError], str]] = {
    "08": (
        StorageUnavailableError,
        (
            "The connection to PostgreSQL at {place} was lost ({error}); whether the call was "
            "written is not known. To append the same event again is safe."
        ),
    ),
    "28": (
        StorageError,
        "PostgreSQL at {place} refused the user {user} ({error}). Check user and password.",
    ),
    "3D": (
        StorageError,
        "PostgreSQL at {place}: {error}. Create it, or name another in the URL.",
    ),
    "25006": (
        ReadOnlyDatabaseError,
        "PostgreSQL at {place} only reads ({error}). Name the primary in the URL.",
    ),
    "42501": (
        StorageError,
        (
            "The user {user} may not do this at {place} ({error}). Have a DBA run what "
            "`threadline db ddl` prints, and grant SELECT, INSERT, UPDATE and DELETE."
        ),
    ),
    "26000": (
        StorageError,
        (
            "A pooler before {place} lost a prepared statement ({error}). Make the connections "
            "with statement_cache_size=0, and have it pool by transaction, not by statement."
        ),
    ),
    "53100": (
        StorageFullError,
        "The disk of PostgreSQL at {place} is full; nothing was written. Make room and try again.",
    ),
    "53300": (
        StorageBusyError,
        (
            "PostgreSQL at {place} had no connection free for {limit} s ({error}). Lower pool_max, "
            "or put a pooler before it."
        ),
    ),
    "40": (
        StorageBusyError,
        (
            "Others kept writing the same rows at {place} for {limit} s ({error}); nothing was "
            "written. Try again."
        ),
    ),
    "57": (
        StorageUnavailableError,
        (
            "PostgreSQL at {place} is going down or starting ({error}); whether the call was "
            "written is not known. To append the same event again is safe."
        ),
    ),
}
_ADVICE["42P05"] = _ADVICE["26000"]
