"""Reads from a PostgreSQL standby that follows, lags behind, or is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import pytest

import servers
from threadline import DatabaseSessionService, InvalidInputError, clock
from threadline.connect import connect
from threadline.engines.replica import ReplicaEngine
from threadline.testing import EngineSuite, ServiceSuite, run_machine
from threadline.testing.service_suite import IDS, say

from .postgres_server import PostgresServer, postgres_server


class Pair(NamedTuple):
    """A primary, and a standby that reads are sent to."""

    primary: PostgresServer
    standby: PostgresServer

    @contextlib.contextmanager
    def lag(self) -> Iterator[None]:
        """Let the standby stay where it is."""
        self.catch_up()
        self.standby.run("SELECT pg_wal_replay_pause()")
        self.standby.wait_for("SELECT 1 WHERE pg_get_wal_replay_pause_state() = 'paused'")
        try:
            yield
        finally:
            self.standby.run("SELECT pg_wal_replay_resume()")

    @contextlib.asynccontextmanager
    async def lagging(self) -> AsyncIterator[None]:
        """Do the same beside a running event loop."""
        lag = self.lag()
        await asyncio.to_thread(lag.__enter__)
        try:
            yield
        finally:
            await asyncio.to_thread(lag.__exit__, None, None, None)

    def catch_up(self) -> None:
        """Wait until the standby has what the primary has."""
        ((place,),) = self.primary.run("SELECT pg_current_wal_lsn()::text")
        self.standby.wait_for(f"SELECT 1 WHERE pg_last_wal_replay_lsn() >= '{place}'")

    def service(self, schema: str) -> DatabaseSessionService:
        """Return a service that writes to one and reads from the other."""
        return DatabaseSessionService(
            self.primary.url, replica_url=self.standby.url, schema=schema, pool_max=4
        )


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Start the two."""
    with postgres_server() as primary, postgres_server(primary=primary) as standby:
        yield Pair(primary, standby)


@pytest.fixture(scope="module", params=["follows", "lags"])
def behind(pair: Pair, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Give a standby that is nearly up to date, or one that stays where it is."""
    with pair.lag() if request.param == "lags" else contextlib.nullcontext():
        yield pair


@pytest.mark.soak
class TestServiceWithReplica(ServiceSuite):
    @pytest.fixture
    def service(self, behind: Pair) -> DatabaseSessionService:
        return behind.service(clock.new_id())


@pytest.mark.soak
class TestEngineWithReplica(EngineSuite):
    @pytest.fixture
    def engine(self, behind: Pair) -> Any:
        return connect(
            behind.primary.url, replica_url=behind.standby.url, schema=clock.new_id(), pool_max=4
        )


def test_hostile_calls_agree_with_the_reference(pair: Pair) -> None:
    # One that is opened again knows no longer what it wrote.
    steps = run_machine(lambda: pair.service(clock.new_id()), examples=8, reopens=False)
    assert steps > 50


def beside_a_reader(pair: Pair, use: Callable[..., Awaitable[None]]) -> None:
    """Run with a service that writes and one of another process, which only reads."""
    schema = clock.new_id()

    async def run() -> None:
        async with DatabaseSessionService(pair.primary.url, schema=schema):
            await asyncio.to_thread(pair.catch_up)
        async with pair.service(schema) as writer, pair.service(schema) as reader:
            await use(writer, reader)

    asyncio.run(run())


def test_reads_come_from_the_replica(pair: Pair) -> None:
    async def use(writer: DatabaseSessionService, reader: DatabaseSessionService) -> None:
        session = await writer.create_session(**IDS)
        await writer.append_event(session, say("old"))
        async with pair.lagging():
            await writer.append_event(session, say("new"))
            seen = await reader.get_session(**IDS, session_id=session.id)
            listed = await reader.list_sessions(app_name="app")
            assert [event.content.parts[0].text for event in seen.events] == ["old"]
            assert listed.sessions[0].last_update_time == seen.last_update_time

    beside_a_reader(pair, use)


def test_a_handle_never_goes_back(pair: Pair) -> None:
    async def use(writer: DatabaseSessionService, reader: DatabaseSessionService) -> None:
        session = await writer.create_session(**IDS)
        async with pair.lagging():
            await writer.append_event(session, say("one"))
            await reader.refresh(session)
            assert len(session.events) == 1

    beside_a_reader(pair, use)


def test_own_state_is_read_whoever_overwrote_it(pair: Pair) -> None:
    async def use(writer: DatabaseSessionService, other: DatabaseSessionService) -> None:
        session = await writer.create_session(**IDS)
        async with pair.lagging():
            await writer.patch_state(**IDS, set={"k": "mine"})
            await other.patch_state(**IDS, set={"k": "other's"})
            for _ in range(2):
                found = await writer.get_session(**IDS, session_id=session.id)
                assert found.state["user:k"] == "other's"
        await asyncio.to_thread(pair.catch_up)
        assert await writer.get_user_state(**IDS) == {"k": "other's"}

    beside_a_reader(pair, use)


def test_a_replica_that_is_away_is_done_without(pair: Pair) -> None:
    async def run() -> None:
        nobody = f"postgresql://nobody@127.0.0.1:{servers.free_port()}/none"
        service = DatabaseSessionService(
            pair.primary.url, replica_url=nobody, schema=clock.new_id(), busy_timeout_s=1.0
        )
        async with service:
            session = await service.create_session(**IDS)
            assert await service.get_session(**IDS, session_id=session.id)

    asyncio.run(run())


@pytest.mark.parametrize("url", ["mysql://h/db", "sqlite:///a.db", "memory://"])
def test_a_replica_is_of_the_same_kind(url: str) -> None:
    with pytest.raises(InvalidInputError, match="replica"):
        connect("postgresql://h/db", replica_url=url)
    with pytest.raises(InvalidInputError, match="replica"):
        connect("sqlite:///a.db", replica_url="sqlite:///b.db")


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threadline.engines.replica.WRITTEN_MAX", 10)
    engine = ReplicaEngine(connect("postgresql://h/db"), connect("postgresql://h/db"))
    from threadline.engines.base import NO_STATE, session_key

    for number in range(20):
        engine._note_session(session_key("app", "user", str(number)), 1, 0, [NO_STATE])
    assert len(engine._written) == 10
