"""Live tails: who wakes them, what that costs, and word from one server process to another."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import httpx
import pytest

from patient_server import NEVER_S, Patient
from servers import new_database, on_server, postgres
from servers_http import command, plain, served, wait_until
from threadline import (
    EngineSessionService,
    Event,
    InMemorySessionService,
    ListEventsResponse,
)
from threadline.engines.base import Head, SessionKey, Snapshot
from threadline.engines.memory import MemoryEngine
from threadline.errors import StorageUnavailableError
from threadline.server.tails import Tails

IDS: Any = {"app_name": "app", "user_id": "ann"}
SESSIONS = "/v1/apps/app/users/ann/sessions"
LISTENERS = """
    SELECT pid FROM pg_stat_activity
     WHERE datname = current_database() AND query LIKE 'LISTEN%' AND state = 'idle'
"""


def create(url: str, id: str = "s") -> None:
    assert plain.post(url + SESSIONS, json={"sessionId": id}).status_code == 201


def append(url: str, *ids: str, session: str = "s") -> None:
    events = [{"id": id, "author": "a"} for id in ids]
    answer = plain.post(f"{url}{SESSIONS}/{session}/events", json={"events": events})
    assert answer.status_code == 200, answer.text


class Follower:
    """A reader of a tail, line by line."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines = lines
        assert next(lines) == ": open"

    def line(self, start: str) -> str:
        """Return the rest of the next line that begins so."""
        return next(line for line in self.lines if line.startswith(start))[len(start) :]

    def data(self) -> dict[str, Any]:
        """Return the next event, or the error at the end."""
        found: dict[str, Any] = json.loads(self.line("data: "))
        return found


@contextlib.contextmanager
def tail(url: str, session: str = "s", timeout_s: float = 30.0) -> Iterator[Follower]:
    with (
        httpx.Client(verify=False, timeout=timeout_s) as http,
        http.stream("GET", f"{url}{SESSIONS}/{session}/events:tail") as answer,
    ):
        yield Follower(answer.iter_lines())


# -- one process --------------------------------------------------------------------------


class CountingEngine(MemoryEngine):
    """A memory engine that counts how it is asked for news, and may refuse to tell them."""

    def __init__(self) -> None:
        super().__init__()
        self.heads_read = self.loads = 0
        self.is_failing = False

    async def heads(self, keys: Sequence[SessionKey], *, now: float) -> list[Head | None]:
        self.heads_read += 1
        if self.is_failing:
            raise StorageUnavailableError("heads cannot be read.")
        return await super().heads(keys, now=now)

    async def load(self, *args: Any, **options: Any) -> Snapshot | None:
        self.loads += 1
        return await super().load(*args, **options)


@contextlib.asynccontextmanager
async def many_tails(url: str, count: int) -> AsyncIterator[list[AsyncIterator[str]]]:
    """Open a tail of each of many sessions; yield their lines, from the second on."""
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(verify=False, timeout=30, limits=limits) as http,
        contextlib.AsyncExitStack() as stack,
    ):
        followed = []
        for n in range(count):
            where = f"{url}{SESSIONS}/s{n}/events:tail"
            answer = await stack.enter_async_context(http.stream("GET", where))
            lines = answer.aiter_lines()
            assert await anext(lines) == ": open"
            followed.append(lines)
        yield followed


def test_many_tails_cost_one_query_each_time_they_are_looked_for() -> None:
    engine = CountingEngine()
    service = EngineSessionService(engine)
    tails = Tails(service, poll_s=0.02, heartbeat_s=0.05)
    count = 200

    async def follow(url: str) -> tuple[int, int]:
        for n in range(count):
            await service.create_session(**IDS, session_id=f"s{n}")
        async with many_tails(url, count) as followed:
            await asyncio.gather(*map(heartbeat, followed))
            before = engine.heads_read, engine.loads
            while engine.heads_read < before[0] + 20:
                await asyncio.sleep(0.01)
            idle = engine.loads - before[1]
            # Somebody else's append, of which nobody gives word, is read by the one it is for.
            session = await service.get_session(**IDS, session_id="s7")
            assert session is not None
            await service.append_event(session, Event(author="a"))
            async for line in followed[7]:
                if line.startswith("data: "):
                    break
            return idle, engine.loads - before[1] - 1

    async def heartbeat(lines: AsyncIterator[str]) -> None:
        async for line in lines:
            if line == ": still here":
                return

    with served(service, tails=tails) as url:
        idle, with_append = asyncio.run(follow(url))
    assert (idle, with_append) == (0, 1)


def test_tails_look_by_themselves_where_heads_cannot_be_read() -> None:
    engine = CountingEngine()
    engine.is_failing = True
    service = EngineSessionService(engine)
    with served(service, tails=Tails(service, poll_s=0.05)) as url:
        create(url)
        with tail(url) as reader:
            asyncio.run(append_elsewhere(service, "1"))
            assert reader.data()["id"] == "1"


async def append_elsewhere(service: Any, *ids: str) -> None:
    session = await service.get_session(**IDS, session_id="s")
    await service.append_events(session, [Event(id=id, author="a") for id in ids])


class LoneService(InMemorySessionService):
    """A service that tells of one session at a time, and not of which of its id it is."""

    tailable = None

    async def list_events(self, **wanted: Any) -> ListEventsResponse:
        page = await super().list_events(**wanted)
        return ListEventsResponse(events=page.events, has_more=page.has_more)


def test_a_service_that_cannot_tell_is_looked_at_by_each_tail() -> None:
    service = LoneService()
    with served(service, tails=Tails(service, poll_s=0.05, heartbeat_s=0.2)) as url:
        create(url)
        with tail(url) as reader:
            asyncio.run(append_elsewhere(service, "1"))
            assert reader.data()["id"] == "1"
            assert reader.line(": ") == "still here"
            asyncio.run(service.delete_session(**IDS, session_id="s"))
            assert reader.data()["error"]["type"] == "SessionNotFoundError"


def test_a_tail_does_not_run_on_into_a_session_that_took_the_id() -> None:
    service = InMemorySessionService()

    async def replace() -> None:
        await service.delete_session(**IDS, session_id="s")
        session = await service.create_session(**IDS, session_id="s")
        await service.append_events(session, [Event(id=str(n), author="b") for n in range(9)])

    with served(service, tails=Tails(service, poll_s=0.05)) as url:
        create(url)
        append(url, "1")
        with tail(url) as reader:
            assert reader.data()["id"] == "1"
            asyncio.run(replace())
            assert reader.data()["error"]["type"] == "SessionNotFoundError"


def test_every_api_wakes_the_tails_of_its_process() -> None:
    service = InMemorySessionService()
    patient = Tails(service, poll_s=NEVER_S, heartbeat_s=NEVER_S)
    with served(service, tails=patient) as url:
        create(url)
        with tail(url) as reader:
            append(url, "native")
            assert reader.data()["id"] == "native"
            vertex = f"{url}/v1beta1/reasoningEngines/app/sessions/s"
            sent = {"author": "b", "invocationId": "i", "timestamp": "2026-01-01T00:00:00Z"}
            assert plain.post(f"{vertex}:appendEvent", json=sent).status_code == 200
            assert reader.data()["author"] == "b"
            adk = f"{url}/apps/app/users/ann/sessions/s"
            assert plain.patch(adk, json={"stateDelta": {"k": 1}}).status_code == 200
            assert reader.data()["author"] == "user"
            assert plain.delete(adk).status_code == 200
            assert reader.data()["error"]["type"] == "SessionNotFoundError"


# -- two processes ------------------------------------------------------------------------


@pytest.fixture
def database() -> Iterator[str]:
    with new_database(postgres("found")) as where:
        yield where


@pytest.fixture
def pair(database: str) -> Iterator[tuple[str, str]]:
    """Run two servers on one database, whose tails wait for word."""
    with contextlib.ExitStack() as stack:
        both = [Patient(database), Patient(database)]
        for one in both:
            stack.callback(one.kill)
        for one in both:
            one.wait()
        yield both[0].url, both[1].url


def listeners(database: str) -> list[int]:
    return [pid for (pid,) in on_server(database, LISTENERS)]


def test_an_append_through_one_process_reaches_a_tail_of_the_other(
    database: str, pair: tuple[str, str]
) -> None:
    one, other = pair
    create(one)
    with tail(other) as reader:
        wait_until(lambda: listeners(database))
        for id in ("1", "2", "3"):
            append(one, id)
            assert reader.data()["id"] == id
        plain.delete(f"{one}{SESSIONS}/s")
        assert reader.data()["error"]["type"] == "SessionNotFoundError"
    wait_until(lambda: not listeners(database))


def test_an_append_that_came_before_a_tail_listened_is_seen(
    database: str, pair: tuple[str, str]
) -> None:
    one, other = pair
    create(one)
    for n in range(20):
        with tail(other) as reader:
            append(one, str(n))
            assert [reader.data()["seq"] for _ in range(n + 1)] == list(range(1, n + 2))


def test_a_listener_whose_connection_is_killed_listens_again(
    database: str, pair: tuple[str, str]
) -> None:
    one, other = pair
    create(one)
    with tail(other) as reader:
        wait_until(lambda: listeners(database))
        (killed,) = listeners(database)
        on_server(database, f"SELECT pg_terminate_backend({killed})")
        append(one, "while it is away")
        assert reader.data()["id"] == "while it is away"
        wait_until(lambda: listeners(database) not in ([], [killed]))
        for id in ("1", "2"):  # the second cannot be owed to the look after the new connection
            append(one, id)
            assert reader.data()["id"] == id


def test_a_server_that_ends_with_tails_open_stops_listening_without_a_word(database: str) -> None:
    with command(database) as server:
        create(server.url)
        with tail(server.url) as reader:
            wait_until(lambda: listeners(database))
            append(server.url, "1")
            assert reader.data()["id"] == "1"
            code, written = server.end()
            assert list(reader.lines) == [""]
    assert (code, listeners(database)) == (0, [])
    assert "WARNING" not in written
    assert "Traceback" not in written
