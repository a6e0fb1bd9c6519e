"""asyncmy as the MySQL engine uses it: packets of several statements, and what errors mean."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import asyncmy

from threadline.engines.mysql_text import bind
from threadline.errors import (
    InvalidInputError,
    ReadOnlyDatabaseError,
    StorageBusyError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    ThreadlineError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from threadline.engines.mysql_text import Sql

Row = tuple[Any, ...]

LOCK_WAIT_MAX_S = 5.0

# What the server says, by what is to be done about it.
BAD_NULL, DUPLICATE_KEY, NO_SUCH_TABLE, PACKET_TOO_LARGE = 1048, 1062, 1146, 1153
ROLLED_BACK = {
    1020,  # a record has changed since it was read (MariaDB's snapshot isolation)
    1205,  # lock wait timeout
    1213,  # deadlock; also a certification failure in a Galera cluster, at COMMIT
    1317,  # the query was killed
    1614,  # deadlock in a distributed transaction
    3100,  # refused by a hook of Group Replication
    3101,  # rolled back by Group Replication
    6235,  # OceanBase: a record has changed since the snapshot
    8002,  # TiDB: a write conflict under FOR UPDATE
    9007,  # TiDB: a write conflict
}
LOST = {
    0,  # the driver: not connected
    1040,  # too many connections
    1047,  # a Galera node without its cluster
    1053,  # server shutdown
    1079,  # server shut down
    1158,  # errors in reading and writing packets
    1159,
    1160,
    1161,
    1203,  # too many connections of this user
    1290,  # read only: a primary that became a replica
    1836,  # the same
    1927,  # MariaDB: the connection was killed
    2003,  # nobody answers
    2006,  # the server has gone away
    2013,  # the connection was lost during a query
    2055,
    3032,  # the server is going offline
    4031,  # MySQL: disconnected because of inactivity
}
_NOT_HERE = {1047, 1290, 1836}  # of those, what another host may be able to do


class Connection:
    """A connection of the driver, and packets of several statements."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.host = 0
        self.is_galera = False
        self.packet_max = 1 << 20
        self.is_final = False
        self.is_spoilt = False
        self.done = 0

    async def execute(self, *statements: str) -> list[int]:
        """Run statements that return no rows; return how many rows each affected.

        Nothing after a statement that fails is run.
        """
        counts: list[int] = []
        self.done = 0
        query, next_result = self.driver.query, self.driver.next_result
        for packet, number in self._packets(statements):
            counts.append(await query(packet))
            # Where one of them failed, `done` says how many did not.
            for self.done in range(len(counts), len(counts) + number - 1):
                counts.append(await next_result())
            self.done = len(counts)
        return counts

    async def fetch(self, *statements: str) -> list[Sequence[Row]]:
        """Run statements; return the rows of those that return any."""
        results: list[Sequence[Row]] = []
        for packet, _ in self._packets(statements):
            cursor = self.driver.cursor()
            await cursor.execute(packet)
            while True:
                if cursor.description:
                    results.append(await cursor.fetchall())
                if not await cursor.nextset():
                    break
        return results

    def _packets(self, statements: Sequence[str]) -> Iterator[tuple[bytes, int]]:
        """Join statements to as few packets as the server takes."""
        if (longest := max(map(len, statements))) + 1 >= self.packet_max:
            raise InvalidInputError(
                f"A statement of {longest:,} bytes is more than the server takes: its "
                f"max_allowed_packet is {self.packet_max:,}. Nothing was written. Raise it on "
                "the server, or store large content elsewhere (an artifact) and its name here."
            )
        if self.is_galera:
            # A transaction that gives way to another node's between two statements of one packet
            # is rolled back without an error, and the server commits the rest without it.
            for statement in statements:
                yield _encoded([statement]), 1
            return
        if sum(map(len, statements)) + len(statements) < self.packet_max:
            yield _encoded(statements), len(statements)
            return
        packet: list[str] = []
        size = 0
        for statement in statements:
            if packet and size + len(statement) + 1 >= self.packet_max:
                yield _encoded(packet), len(packet)
                packet, size = [], 0
            packet.append(statement)
            size += len(statement) + 1
        yield _encoded(packet), len(packet)


def _encoded(statements: Sequence[str]) -> bytes:
    return ";".join(statements).encode("ascii", "surrogateescape")


class MysqlDriver:
    """Makes connections, ready for the statements of the engine."""

    def __init__(
        self,
        hosts: Sequence[Callable[[], Awaitable[Any]]],
        *,
        where: str,
        sql: Sql,
        busy_timeout_s: float,
    ) -> None:
        self.where = where
        self.busy_timeout_s = busy_timeout_s
        self.hosts = hosts
        self._host = 0
        self._sql = sql
        # One that waits longer tries again, and does not hold up the others meanwhile.
        lock_timeout_s = max(1, round(min(busy_timeout_s, LOCK_WAIT_MAX_S)))
        self._preparation = bind(sql["prepare_connection"], lock_timeout_s=lock_timeout_s)

    async def connect(self) -> Connection:
        """Connect to the host that answered last, or to the next one that takes writes."""
        first = place = self._host
        while True:
            try:
                db = await self._connect(self.hosts[place])
            except (asyncmy.errors.Error, OSError) as error:
                place = (place + 1) % len(self.hosts)
                if place == first or code_of(error) not in LOST | ROLLED_BACK:
                    raise
            else:
                self._host = db.host = place
                return db

    async def _connect(self, connect: Callable[[], Awaitable[Any]]) -> Connection:
        driver = await connect()
        try:
            db = Connection(driver)
            (rows,) = await db.fetch(self._preparation)
            server: dict[str, str] = dict(rows)
            db.packet_max = int(server["max_allowed_packet"])
            db.is_galera = server.get("wsrep_on") == "ON"
            if len(self.hosts) > 1:
                await self._check_host(db, server)
        except BaseException:
            driver.close()
            raise
        return db

    async def _check_host(self, db: Connection, server: dict[str, str]) -> None:
        """Refuse one of several hosts that takes no writes, or is behind the others for long."""
        if server.get("read_only", "OFF") != "OFF":
            raise asyncmy.errors.OperationalError(1290, "none of the hosts takes writes")
        if db.is_galera:
            await db.fetch(self._sql["catch_up"])

    @contextlib.asynccontextmanager
    async def lend(self) -> AsyncIterator[Any]:
        """Make a connection of asyncmy's that no pool has, and close it afterwards."""
        try:
            db = await self.hosts[self._host]()
        except Exception as error:
            raise self.translate(error) from error
        try:
            yield db
        except asyncmy.errors.Error as error:
            raise self.translate(error) from error
        finally:
            db.close()

    def pass_over(self, db: Connection, error: BaseException) -> None:
        """Try another host next, if that may be able to do what this one was not."""
        if code_of(error) in _NOT_HERE and db.host == self._host:
            self._host = (self._host + 1) % len(self.hosts)

    def is_lost(self, db: Connection) -> bool:
        """Tell whether a connection was interrupted, or the server has hung up."""
        # Not public, so it may go; then a dead connection is found out by using it.
        return db.is_spoilt or getattr(db.driver, "_stream_broken", False)

    def drop(self, db: Connection) -> None:
        """Close a connection at once."""
        db.is_spoilt = True
        db.driver.close()

    async def leave(self, db: Connection) -> None:
        """Take leave of the server, which would log an aborted connection otherwise."""
        await db.driver.ensure_closed()

    def translate(self, error: Exception) -> Exception:
        """Turn the driver's errors into ours, with what to do; the cause is kept."""
        if isinstance(error, OutcomeUnknownError):
            ours: Exception = StorageUnavailableError(
                f"{self.where}: the connection was lost while a change was committed, and whether "
                "it was is not known. Read the state before you try again."
            )
        elif isinstance(error, asyncmy.errors.Error | OSError):
            code = code_of(error)
            kind, advice = _ADVICE.get(code or 0, (StorageError, "{name}: {said}"))
            said = str(error.args[-1]) if error.args else type(error).__name__
            ours = kind(advice.format(name=self.where, said=said.rstrip(".")))
        elif isinstance(error, RuntimeError) and "cryptography" in str(error):
            ours = StorageError(f"{self.where}: {error}: pip install 'threadline[mysql]'")
        else:
            return error
        ours.__cause__ = error
        return ours


class OutcomeUnknownError(asyncmy.errors.OperationalError):
    """The connection was lost while a change that cannot be repeated was committed."""


def code_of(error: BaseException) -> int | None:
    """Return the server's number for an error, or the driver's."""
    if isinstance(error, OSError):  # raised while a connection is made
        return 2003
    if isinstance(error, asyncmy.errors.InternalError) and not isinstance(error.args[0], int):
        return 2013  # packets out of order: an answer of the server's shutdown
    if error.args[:1] == (1180,) and "149" in str(error.args[-1]):
        return 1213  # Group Replication with several primaries: a deadlock, found at COMMIT
    return error.args[0] if error.args and isinstance(error.args[0], int) else None


_BUSY = (StorageBusyError, "{name} could not let the write through in time ({said}). Try again.")
_AWAY = (
    StorageUnavailableError,
    "{name} does not answer ({said}). Check host and port, and that the server is running.",
)
_DENIED = (StorageError, "{name} refused the login ({said}). Check user and password.")
_FULL = (StorageFullError, "{name} has no room ({said}); nothing was written.")
_READ_ONLY = (ReadOnlyDatabaseError, "{name} takes no writes ({said}).")
_NO_RIGHT = (
    "{name}: {said}. Threadline's tables need SELECT, INSERT, UPDATE and DELETE; to create them, "
    "a DBA can run what `threadline db ddl` prints."
)
_ADVICE: dict[int, tuple[type[ThreadlineError], str]] = {
    **dict.fromkeys(ROLLED_BACK, _BUSY),
    **dict.fromkeys(LOST, _AWAY),
    1040: (StorageBusyError, "{name} has no connection left ({said}). Lower pool_max."),
    1203: (StorageBusyError, "{name} has no connection left ({said}). Lower pool_max."),
    1044: (StorageError, _NO_RIGHT),
    1142: (StorageError, _NO_RIGHT),
    1045: _DENIED,
    1698: _DENIED,
    1049: (StorageError, "{name}: {said}. Create it first: CREATE DATABASE ..."),
    1021: _FULL,
    1114: _FULL,
    1290: _READ_ONLY,
    1792: _READ_ONLY,
    1836: _READ_ONLY,
    NO_SUCH_TABLE: (StorageError, "{name}: {said}. Run `threadline db upgrade`."),
    PACKET_TOO_LARGE: (InvalidInputError, "{name}: {said}; nothing was written."),
}
