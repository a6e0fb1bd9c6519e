"""Where the stores of a run keep their data: files of SQLite, or databases on a server.

The servers are found as the tests find theirs; `tests/servers.py` says where it looks.
"""

from __future__ import annotations

import asyncio
import importlib
import sqlite3
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks import machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

TESTS = Path(__file__).parent.parent / "tests"


class NoServerError(Exception):
    """There is no server to measure on, and none could be started."""


class Engine:
    """What a run asks of the place where its stores keep their data."""

    name: ClassVar[str]
    title: str

    def facts(self) -> dict[str, str]:
        """Return what a reader has to know of it, in the order to be printed."""
        raise NotImplementedError

    async def new(self) -> str:
        """Make an empty database and return its URL, as SQLAlchemy writes it without a driver."""
        raise NotImplementedError

    async def settle(self, url: str) -> None:
        """Do what the server would do by itself a minute after much was written."""

    async def size_bytes(self, url: str) -> int:
        """Return what the database takes on the disk, its indexes included."""
        raise NotImplementedError

    async def clear(self) -> None:
        """Remove the databases that were made since the last time."""
        raise NotImplementedError


class SqliteFiles(Engine):
    """Each store has a file of its own in one directory."""

    name = "sqlite"
    title = "SQLite"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: list[Path] = []

    def facts(self) -> dict[str, str]:
        return {"SQLite": sqlite3.sqlite_version} | machine.disk(self._directory)

    async def new(self) -> str:
        self._files.append(self._directory / f"{len(self._files)}.db")
        return f"sqlite:///{self._files[-1]}"

    async def size_bytes(self, url: str) -> int:
        path = Path(url.removeprefix("sqlite:///"))
        files = (path, path.with_name(path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    async def clear(self) -> None:
        for path in self._files:
            for file in self._directory.glob(f"{path.name}*"):
                file.unlink()
        self._files.clear()


class Server(Engine):
    """Each store has a database of its own on one server."""

    settings: ClassVar[tuple[str, ...]]
    """Which of the server's settings decide what a commit costs."""

    def __init__(self) -> None:
        self._made = ExitStack()

    async def new(self) -> str:
        return await asyncio.to_thread(self._made.enter_context, self._database())

    async def clear(self) -> None:
        await asyncio.to_thread(self._made.close)

    def _database(self) -> AbstractContextManager[str]:
        raise NotImplementedError


class Postgres(Server):
    """Databases on the PostgreSQL server that the tests use."""

    name = "postgres"
    title = "PostgreSQL"
    settings = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers")

    def __init__(self) -> None:
        super().__init__()
        self._servers = _tests_module("servers")
        self._url: str = self._servers.find_postgres()
        if "://" not in self._url:
            raise NoServerError(f"PostgreSQL cannot be measured: {self._url}")

    def facts(self) -> dict[str, str]:
        names = ("server_version", *self.settings)
        values = [self._servers.on_server(self._url, f"SHOW {name}")[0][0] for name in names]
        return dict(zip(("PostgreSQL", *self.settings), values, strict=True))

    def _database(self) -> AbstractContextManager[str]:
        database: AbstractContextManager[str] = self._servers.new_database(self._url)
        return database

    async def settle(self, url: str) -> None:
        await asyncio.to_thread(self._servers.on_server, url, "VACUUM ANALYZE")

    async def size_bytes(self, url: str) -> int:
        query = """
            SELECT sum(pg_total_relation_size(oid)) FROM pg_class
             WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
        """
        rows = await asyncio.to_thread(self._servers.on_server, url, query)
        return int(rows[0][0])


class Mysql(Server):
    """Databases on the MySQL or MariaDB server that the tests use."""

    name = "mysql"
    title = "MySQL"
    settings = (
        "innodb_flush_log_at_trx_commit",
        "log_bin",
        "sync_binlog",
        "innodb_buffer_pool_size",
    )

    def __init__(self) -> None:
        super().__init__()
        self._servers = _tests_module("servers_mysql")
        import pytest  # the tests' module has it, too

        try:
            self._server = self._servers.server()
        except (pytest.skip.Exception, pytest.fail.Exception) as error:
            raise NoServerError(f"MySQL cannot be measured: {error}") from None
        ((version,),) = self._server.run("SELECT version()")
        if "MariaDB" in version:
            self.title = "MariaDB"

    def facts(self) -> dict[str, str]:
        names = ("version", *self.settings)
        values = [str(self._server.run(f"SELECT @@{name}")[0][0]) for name in names]
        return dict(zip((self.title, *self.settings), values, strict=True))

    @contextmanager
    def _database(self) -> Iterator[str]:
        with self._servers.database() as name:
            yield self._server.url(name)

    async def settle(self, url: str) -> None:
        database = url.rpartition("/")[2]
        tables = await self._run(_TABLES.format(columns="table_name", database=database))
        if names := ", ".join(f"`{table}`" for (table,) in tables):
            await self._run(f"ANALYZE TABLE {names}", database)

    async def size_bytes(self, url: str) -> int:
        await self.settle(url)  # sizes are estimates of the last time
        database = url.rpartition("/")[2]
        ((size,),) = await self._run(
            _TABLES.format(columns="SUM(data_length + index_length)", database=database)
        )
        return int(size)

    async def _run(self, statement: str, database: str | None = None) -> list[Any]:
        rows: list[Any] = await asyncio.to_thread(self._server.run, statement, database=database)
        return rows


_TABLES = """
SELECT {columns} FROM information_schema.tables
 WHERE table_schema = '{database}' AND table_type = 'BASE TABLE'
"""

ENGINES = {kind.name: kind for kind in (SqliteFiles, Postgres, Mysql)}


def opened(name: str, directory: Path) -> Engine:
    """Return the engine of this name, or raise NoServerError."""
    if name == SqliteFiles.name:
        return SqliteFiles(directory)
    return Postgres() if name == Postgres.name else Mysql()


def _tests_module(name: str) -> Any:
    # The tests are no package; they import these modules by their bare names, too.
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    return importlib.import_module(name)
