"""The server under load, under kills, and under requests that a machine made up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from servers import new_database, postgres
from servers_http import Command, served, wait_until
from servers_mysql import database, server
from threadline import (
    DatabaseSessionService,
    Event,
    InMemorySessionService,
    RemoteSessionService,
    wire,
)
from threadline.errors import StorageUnavailableError
from threadline.testing import ServiceSuite, run_machine

IDS: Any = {"app_name": "app", "user_id": "ann", "session_id": "s"}
TAIL = wire.session_path("app", "ann", "s") + "/events:tail"

# -- kills --------------------------------------------------------------------------------


class Reader(threading.Thread):
    """A tail that goes on, at another server if need be, from the last event it received."""

    def __init__(self, urls: list[str]) -> None:
        super().__init__(daemon=True)
        self.urls = urls
        self.seqs: list[int] = []
        self.last = ""
        self.is_done = False
        self.connections = 0

    def run(self) -> None:
        with httpx.Client(verify=False, timeout=2) as http:
            while not self.is_done:
                with contextlib.suppress(httpx.TransportError):
                    self.follow(http)

    def follow(self, http: httpx.Client) -> None:
        headers = {"last-event-id": self.last} if self.last else {}
        with http.stream("GET", random.choice(self.urls) + TAIL, headers=headers) as answer:
            self.connections += 1
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    self.last = line[4:]
                elif line.startswith("data: "):
                    self.seqs.append(json.loads(line[6:])["seq"])
                if self.is_done:
                    return


class Load(threading.Thread):
    """Writers that send an event until it is acknowledged, by whichever server."""

    def __init__(self, urls: list[str], writers: int = 4) -> None:
        super().__init__(daemon=True)
        self.urls = urls
        self.writers = writers
        self.acknowledged: dict[str, int] = {}
        self.is_done = False

    def run(self) -> None:
        async def write_all() -> None:
            await asyncio.gather(*map(self.write, range(self.writers)))

        asyncio.run(write_all())

    async def write(self, number: int) -> None:
        services = [RemoteSessionService(url, retry_for_s=0.5) for url in self.urls]
        handles = [await service.get_or_create_session(**IDS) for service in services]
        n = at = 0
        while not self.is_done:
            event = Event(id=f"{number}-{n}", author="a", timestamp=float(n))
            try:
                stored = await services[at].append_event(handles[at], event, on_stale="rebase")
            except StorageUnavailableError:
                at = 1 - at  # the same event, at the other server
                continue
            self.acknowledged[event.id] = stored.seq or 0
            n += 1
            at = random.randrange(2)
        for service in services:
            await service.close()


async def stored_seqs(where: str) -> dict[str, int | None]:
    """Return the seq of every stored event, by its id."""
    async with DatabaseSessionService(where) as service:
        session = await service.get_or_create_session(**IDS)
        seqs = {event.id: event.seq for event in session.events}
        assert len(seqs) == len(session.events)
        return seqs


def survive_kills(where: str, kills: int) -> None:
    """Kill one of two servers again and again while clients append; then count."""
    asyncio.run(stored_seqs(where))
    servers = [Command(where), Command(where)]
    for one in servers:
        one.wait()
    urls = [one.url for one in servers]
    load, readers = Load(urls), [Reader(urls), Reader(urls)]
    for thread in (load, *readers):
        thread.start()
    try:
        for kill in range(kills):
            enough = len(load.acknowledged) + 20
            wait_until(lambda enough=enough: len(load.acknowledged) > enough)
            victim = servers[kill % 2]
            victim.kill()
            servers[kill % 2] = Command(where, port=victim.port)
            servers[kill % 2].wait()
        load.is_done = True
        load.join(60)
        stored = asyncio.run(stored_seqs(where))
        wait_until(lambda: all(len(reader.seqs) >= len(stored) for reader in readers))
    finally:
        for thread in (load, *readers):
            thread.is_done = True
        for one in servers:
            one.kill()
        for thread in (load, *readers):
            thread.join(60)
    assert stored == load.acknowledged
    for reader in readers:
        assert reader.seqs == list(range(1, len(stored) + 1))
        assert reader.connections > 1
    print(
        f"\n  [measured] kill -9 of one of two servers: {kills} kills, {len(stored)} events "
        f"acknowledged, each stored once; {len(readers)} tails on "
        f"{sum(reader.connections for reader in readers)} connections, no gap and no repeat.",
        end="",
    )


def test_a_kill_of_one_of_two_servers_loses_and_repeats_nothing(tmp_path: Path) -> None:
    survive_kills(f"sqlite:///{tmp_path}/s.db", kills=2)


@pytest.mark.soak
def test_many_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    survive_kills(f"sqlite:///{tmp_path}/s.db", kills=10)


@pytest.mark.soak
def test_kills_in_front_of_postgres_lose_and_repeat_nothing() -> None:
    with new_database(postgres("found")) as where:
        survive_kills(where, kills=6)


# -- the other engines --------------------------------------------------------------------


@pytest.mark.soak
class TestRemoteOverPostgres(ServiceSuite):
    @pytest.fixture
    def service(self) -> Iterator[RemoteSessionService]:
        with (
            new_database(postgres("found")) as where,
            served(DatabaseSessionService(where)) as url,
        ):
            yield RemoteSessionService(url)


@pytest.mark.soak
class TestRemoteOverMysql(ServiceSuite):
    @pytest.fixture
    def service(self) -> Iterator[RemoteSessionService]:
        with database() as name, served(DatabaseSessionService(server().url(name))) as url:
            yield RemoteSessionService(url)


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["postgres", "mysql"])
def test_the_machine_finds_no_difference(engine: str) -> None:
    with contextlib.ExitStack() as stack:

        def make() -> RemoteSessionService:
            if engine == "postgres":
                where = stack.enter_context(new_database(postgres("found")))
            else:
                where = server().url(stack.enter_context(database()))
            return RemoteSessionService(stack.enter_context(served(DatabaseSessionService(where))))

        assert run_machine(make, examples=10, steps_each=40) > 50


# -- made-up requests ---------------------------------------------------------------------


@pytest.mark.soak
def test_no_made_up_request_finds_a_failure_or_an_answer_against_the_document(
    tmp_path: Path,
) -> None:
    with served(InMemorySessionService()) as url:
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "schemathesis"),
                *("run", f"{url}/openapi.json", "--url", url, "--no-color"),
                *("--checks", ",".join(CHECKS), "--phases", "coverage,fuzzing"),
                *("--max-examples", "30", "--seed", "1"),
                *("--exclude-path-regex", ":tail$"),  # it has no end
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            cwd=tmp_path,  # it leaves a cache
        )
    assert done.returncode == 0, done.stdout
    print(done.stdout)


CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
