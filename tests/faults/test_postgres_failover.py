"""A synchronous standby of PostgreSQL takes over from a primary that is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from threadline import DatabaseSessionService, StorageUnavailableError
from threadline.testing.service_suite import say

from .evidence import read_all, survey
from .load import write_through
from .postgres_server import PostgresServer, check_indexes, postgres_server

FAILOVERS = 2
KEY = {"app_name": "app", "user_id": "ann", "session_id": "s0"}

pytestmark = pytest.mark.soak


@pytest.fixture
def pair() -> Iterator[list[PostgresServer]]:
    """Start a primary, and the standby that every commit waits for."""
    with postgres_server() as primary, postgres_server(primary=primary) as standby:
        primary.wait_for_standby()
        yield [primary, standby]


def url_of(*servers: PostgresServer) -> str:
    """Return the URL of whichever of the servers is the primary."""
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"


def test_clients_follow_a_failover_and_lose_nothing(
    pair: list[PostgresServer], report: Callable[[str], None]
) -> None:
    url = url_of(*pair)

    def fail() -> None:
        primary, standby = pair
        primary.kill()
        standby.run("SELECT pg_promote()")
        primary.rejoin(standby)
        standby.wait_for_standby()
        pair.reverse()

    load = write_through(url, FAILOVERS, fail)
    found = asyncio.run(survey(url, load.said))
    found.check_nothing_lost()
    check_indexes(pair[0].url)
    report(
        f"failover of PostgreSQL: {FAILOVERS} failovers, {found.acknowledged} events "
        f"acknowledged, 0 lost, {load.silence_s:.1f} s at most without an acknowledgement"
    )


def test_a_standby_that_is_not_yet_promoted_is_waited_for(pair: list[PostgresServer]) -> None:
    async def run() -> None:
        async with DatabaseSessionService(url_of(*pair)) as service:
            session = await service.create_session(**KEY)
            await asyncio.to_thread(pair[0].kill)
            appending = asyncio.create_task(service.append_event(session, say()))
            await asyncio.sleep(0.5)
            assert not appending.done()
            await asyncio.to_thread(pair[1].run, "SELECT pg_promote()")
            assert (await appending).seq == 1

    asyncio.run(run())


def test_a_primary_that_fell_silent_is_passed_over(pair: list[PostgresServer]) -> None:
    """A machine that lost its power refuses nothing: it does not answer."""

    async def run() -> None:
        async with DatabaseSessionService(url_of(*pair), busy_timeout_s=4.0) as service:
            session = await service.create_session(**KEY)
            event = say()
            pair[0].freeze()
            await asyncio.to_thread(pair[1].run, "SELECT pg_promote()")
            with pytest.raises(StorageUnavailableError):
                await service.append_event(session, event)
            assert (await service.append_event(session, event)).seq == 1
            assert [e.id for e in await read_all(service, **KEY)] == [event.id]

    asyncio.run(run())
