"""kill -9 of a whole PostgreSQL server, again and again, under clients that go on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

import servers
from threadline import DatabaseSessionService, StorageUnavailableError

from .children import wait_for_state
from .evidence import survey
from .load import write_through
from .postgres_server import PostgresServer, check_indexes, postgres_server
from .proxy import Proxy


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Give a server that writes its log when a commit makes it, and does nothing by itself."""
    with postgres_server() as server:
        server.run(
            "ALTER SYSTEM SET wal_writer_delay = '10s'",
            "ALTER SYSTEM SET autovacuum = off",
            "SELECT pg_reload_conf()",
        )
        yield server


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.soak)])
def test_clients_outlive_a_killed_server_and_lose_nothing(
    server: PostgresServer, kills: int, report: Callable[[str], None]
) -> None:
    with servers.new_database(server.url) as url:
        load = write_through(url, kills, lambda: kill_server(server))
        found = asyncio.run(survey(url, load.said))
        found.check_nothing_lost()
        check_indexes(url)
    report(
        f"kill -9 of PostgreSQL: {kills} kills, {found.acknowledged} events acknowledged, 0 lost, "
        f"{load.silence_s:.1f} s at most without an acknowledgement"
    )


def kill_server(server: PostgresServer) -> None:
    """Let nothing be left of it, and start it again."""
    server.kill()
    server.start()


# -- a patch that a crash undid -----------------------------------------------------------

_numbers = itertools.count()

USER = {"app_name": "app", "user_id": "ann"}


@asynccontextmanager
async def undone_patch(
    server: PostgresServer, crash: Callable[[PostgresServer], None]
) -> AsyncIterator[tuple[DatabaseSessionService, asyncio.Task[Any]]]:
    """Let a server crash before the commit of an increment to 2; the client hears of it last.

    The first transaction after the crash has the number of the one it undid.
    """
    async with Proxy("127.0.0.1", server.port) as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
        async with DatabaseSessionService(url, schema=f"undone {next(_numbers)}") as service:
            await service.patch_state(**USER, increment={"n": 1})
            proxy.freeze_at(lambda request: b"COMMIT;" in request)
            patching = asyncio.create_task(service.patch_state(**USER, increment={"n": 1}))
            await proxy.silence.wait()
            await asyncio.to_thread(crash, server)
            proxy.cut()
            proxy.thaw()
            yield service, patching


def kill_process(server: PostgresServer) -> None:
    """Kill the patch's process alone, as a lack of memory does: the server starts anew itself."""
    ((pid, _),) = server.run(UNDER_WAY)
    os.kill(pid, signal.SIGKILL)
    wait_for_state(pid, "Z")
    with contextlib.suppress(OSError, asyncpg.PostgresError):
        while server.run(UNDER_WAY):
            pass
    server.wait_until_it_answers()


class LogWasWrittenError(Exception):
    """The server's log writer, which looks every 10 s, came between: the number is used up."""


def taken_again(crash: Callable[[PostgresServer], None]) -> Callable[[PostgresServer], None]:
    """Let another transaction have the number after the crash."""

    def run(server: PostgresServer) -> None:
        ((_, number),) = server.run(UNDER_WAY)
        crash(server)
        if server.run("SELECT txid_current()") != [(number,)]:
            raise LogWasWrittenError

    return run


UNDER_WAY = """SELECT pid, backend_xid::text::bigint FROM pg_stat_activity
                WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()"""

crashes = pytest.mark.parametrize("crash", [kill_server, kill_process])


@crashes
def test_a_patch_that_a_crash_undid_is_done_again(
    server: PostgresServer, crash: Callable[[PostgresServer], None]
) -> None:
    async def run() -> None:
        async with undone_patch(server, crash) as (service, patching):
            assert (await patching)["n"] == 2
            assert await service.get_user_state(**USER) == {"n": 2}

    asyncio.run(run())


@crashes
def test_a_patch_that_a_crash_undid_is_not_taken_for_a_later_transaction(
    server: PostgresServer, crash: Callable[[PostgresServer], None]
) -> None:
    """After a crash PostgreSQL gives the numbers of lost transactions to others."""

    async def run() -> None:
        async with undone_patch(server, taken_again(crash)) as (service, patching):
            with pytest.raises(StorageUnavailableError, match="is not known"):
                await patching
            assert await service.get_user_state(**USER) == {"n": 1}

    for _ in range(3):  # the writer's rounds are too long for it to come again
        try:
            return asyncio.run(run())
        except LogWasWrittenError:
            continue
    pytest.fail("the crash never took the number back")
