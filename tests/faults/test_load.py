"""Many writers on a server whose connections are killed all the time, and bodies at the limit."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self

import pytest

import servers
import servers_mysql
from threadline import DatabaseSessionService, Event, InvalidInputError

from .competition import Competition, check_store, hold

POOL_MAX = 10
"""How many connections an engine has at most, by default."""

SOAK_EVENTS = int(os.environ.get("THREADLINE_SOAK_APPENDS", "20000"))


@dataclass
class Database:
    """A database of one test's own."""

    url: str
    count: Callable[..., int]
    """Counts its connections, and kills them if asked to."""


@pytest.fixture(params=["postgres", "mysql"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Give a new database on each of the servers."""
    if request.param == "postgres":
        with servers.new_database(servers.postgres("found")) as url:
            yield Database(url, servers.connections)
    else:
        with servers_mysql.database() as name:
            yield Database(servers_mysql.server().url(name), servers_mysql.connections)


@dataclass
class Killer:
    """Kills every connection to a database again and again, from a thread of its own."""

    database: Database
    pause_s: float
    killed: int = 0
    _is_over: threading.Event = field(default_factory=threading.Event)

    def _kill(self) -> None:
        while not self._is_over.wait(self.pause_s):
            self.killed += self.database.count(self.database.url, kill=True)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._kill)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Wait until the last connection that is to be killed is."""
        self._is_over.set()
        self._thread.join()


@pytest.mark.parametrize(
    ("processes", "writers_each", "appends", "pause_s"),
    [(2, 2, 600, 0.2), pytest.param(4, 4, SOAK_EVENTS, 1.0, marks=pytest.mark.soak)],
)
def test_killed_connections_cost_no_event_no_error_and_no_file(
    database: Database,
    processes: int,
    writers_each: int,
    appends: int,
    pause_s: float,
    report: Callable[[str], None],
) -> None:
    competition = Competition(
        database.url,
        "rebase",
        processes,
        events_max=appends // (processes * writers_each),
        writers_each=writers_each,
        shared_every=5,
        idle_s=2 * pause_s,
    )
    connections: list[int] = []
    with Killer(database, pause_s) as killer:

        def while_idle() -> None:
            killer.stop()
            connections.append(database.count(database.url))

        outcome = hold(competition, while_idle)
    asyncio.run(check_store(competition, outcome.said))
    report(
        f"{competition.writers} writers in {processes} processes: {len(outcome.said)} events in "
        f"{outcome.seconds:.1f} s, {killer.killed} connections killed, open files {outcome.files}"
    )
    assert killer.killed > processes
    assert connections[0] <= processes * POOL_MAX
    for before, after, idle in outcome.files:
        # A pool may have grown to its size; what was killed is closed.
        assert after < before + POOL_MAX
        assert idle <= after
    assert database.count(database.url) == 0


# -- large events -----------------------------------------------------------------------

LARGE = 64 << 20
KEY = {"app_name": "app", "user_id": "user", "session_id": "large"}


def packet_max() -> int:
    """Return how many bytes the MySQL server takes at once."""
    ((size,),) = servers_mysql.server().run("SELECT @@max_allowed_packet")
    return int(size)


@pytest.mark.soak
def test_an_event_near_the_servers_limit_comes_back_equal(
    database: Database, report: Callable[[str], None]
) -> None:
    is_mysql = database.url.startswith("mysql")
    text = "x" * ((min(LARGE, packet_max()) if is_mysql else LARGE) - 4096)

    async def use() -> None:
        async with DatabaseSessionService(database.url) as service:
            session = await service.create_session(**KEY)
            await service.append_event(session, Event(author="user", content=text))
            found = await service.get_session(**KEY)
            assert found is not None
            content = found.events[0].content
            assert content is not None
            assert content.parts is not None
            assert content.parts[0].text == text

    asyncio.run(use())
    report(f"an event of {len(text):,} bytes came back equal")


@pytest.mark.soak
def test_an_event_beyond_max_allowed_packet_is_refused_and_nothing_is_written() -> None:
    limit = packet_max()
    with servers_mysql.database() as name:

        async def use() -> None:
            async with DatabaseSessionService(servers_mysql.server().url(name)) as service:
                session = await service.create_session(**KEY)
                # The second one fits as it is, but not as it is written in SQL.
                for text in ("x" * max(LARGE, limit), '"' * (limit // 3)):
                    with pytest.raises(InvalidInputError, match="max_allowed_packet"):
                        await service.append_event(session, Event(author="user", content=text))
                assert session.revision == 0
                stored = await service.append_event(session, Event(author="user", content="small"))
                assert stored.seq == 1

        asyncio.run(use())
