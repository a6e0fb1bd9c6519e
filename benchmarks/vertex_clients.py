"""Clients of the Vertex AI Sessions API, each measured in a process of its own.

    python -m benchmarks.vertex_clients threadline http://127.0.0.1:8080 SESSION COUNTS

prints what a call takes, in seconds: of CPU, of this process alone, and on the clock.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import sys
import time
import uuid
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from benchmarks.peers import AdkVerbs, adk_models, threadline_models

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PROJECT, LOCATION, ENGINE = "my-project", "us-central1", "1234567890"
NEWEST = 10


class Counts(msgspec.Struct):
    """How often each call is made in a round."""

    creates: int = 50
    appends: int = 200
    gets: int = 10


class Client(AdkVerbs):
    """A session service over the API at a URL, which sends a token of google-auth's."""

    statement: ClassVar[str]
    """What its users import."""
    durability = "the server has committed"

    @staticmethod
    def credentials() -> Any:
        """Return credentials with a token that is not refreshed."""
        return importlib.import_module("google.oauth2.credentials").Credentials(token="token")


class ThreadlineClient(Client):
    """threadline's VertexAiSessionService."""

    name = "threadline"
    package = "threadline"
    modules = ("threadline", "aiohttp")
    statement = "from threadline import VertexAiSessionService"
    ours = True

    async def open(self) -> None:
        threadline = importlib.import_module("threadline")
        self.service = threadline.VertexAiSessionService(
            PROJECT, LOCATION, ENGINE, base_url=self.url, credentials=self.credentials()
        )
        self.models = threadline_models(threadline)


class ThreadlineForAdk(Client):
    """The same through google-adk's own classes, models and all."""

    name = "threadline, for google-adk"
    package = "threadline"
    modules = ("threadline", "google.adk", "aiohttp")
    statement = "from threadline.integrations.adk import VertexAiSessionService"
    ours = True

    async def open(self) -> None:
        adk = importlib.import_module("threadline.integrations.adk")
        self.service = adk.VertexAiSessionService(
            PROJECT, LOCATION, ENGINE, base_url=self.url, credentials=self.credentials()
        )
        self.models = adk_models()


class AdkClient(Client):
    """google-adk's VertexAiSessionService, at another address by the method meant for it."""

    name = "google-adk VertexAiSessionService"
    package = "google-adk"
    modules = ("google.adk", "agentplatform")
    statement = "from google.adk.sessions import VertexAiSessionService"

    async def open(self) -> None:
        sessions = importlib.import_module("google.adk.sessions")
        options = {"credentials": self.credentials(), "http_options": {"base_url": self.url}}

        class Service(sessions.VertexAiSessionService):  # type: ignore[name-defined,misc]
            def _build_api_client(self) -> Any:
                platform = importlib.import_module("agentplatform")
                return platform.Client(project=PROJECT, location=LOCATION, **options).aio

        self.service = Service(PROJECT, LOCATION, ENGINE)
        self.models = adk_models()


CLIENTS: tuple[type[Client], ...] = (ThreadlineClient, ThreadlineForAdk, AdkClient)

FIRST = "from the import to the first answer"
CREATE = "create_session"
APPEND = "append_event"
GET = "get_session of 1,000 events"
GET_AND_READ = "the same, and read every text"
GET_NEWEST = f"get_session of the newest {NEWEST} of them"


class Spent(msgspec.Struct):
    """What one call took, on average over a round."""

    cpu_s: float
    wall_s: float
    operations: int


async def measure(client: Client, filled: str, counts: Counts) -> dict[str, Spent]:
    """Make every call as often as it is to be made; `filled` is the session to be read."""

    async def read() -> None:
        for event in await client.load(filled):
            client.text(event)

    def create() -> Awaitable[Any]:
        return client.create(uuid.uuid4().hex)

    async def first() -> Any:
        await client.open()
        return await create()

    spent = {}

    async def time_of(name: str, calls: int, call: Callable[[], Awaitable[Any]]) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(calls):
            await call()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        spent[name] = Spent(cpu / calls, wall / calls, calls)

    await time_of(FIRST, 1, first)
    handle = await create()
    events = iter([client.event(index) for index in range(counts.appends + 1)])
    await client.append(handle, next(events))
    await read()
    await time_of(CREATE, counts.creates, create)
    await time_of(APPEND, counts.appends, lambda: client.append(handle, next(events)))
    await time_of(GET, counts.gets, lambda: client.load(filled))
    await time_of(GET_AND_READ, counts.gets, read)
    await time_of(GET_NEWEST, counts.gets, lambda: client.newest(filled, NEWEST))
    await client.close()
    return spent


async def fill(url: str, session_id: str, events: int) -> None:
    """Make a session with events, for every client to read."""
    client = ThreadlineClient(url)
    await client.open()
    handle = await client.create(session_id)
    for index in range(events):
        await client.append(handle, client.event(index))
    await client.close()


def main(name: str, url: str, filled: str, counts: str) -> None:
    """Measure the client of a name and print what it took."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    client = next(kind for kind in CLIENTS if kind.name == name)(url)
    spent = asyncio.run(measure(client, filled, msgspec.json.decode(counts, type=Counts)))
    print(json.dumps(msgspec.to_builtins(spent)))


if __name__ == "__main__":
    main(*sys.argv[1:])
