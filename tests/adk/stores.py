"""Session services of google-adk's interface: ours over every engine, and google-adk's own.

A service lives as long as the test run, on an event loop of its own, because connections are
slow to make; a test has an app name of its own there.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import uuid
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.adk.events import Event, EventActions
from google.adk.sessions import BaseSessionService, Session
from google.adk.sessions import InMemorySessionService as AdkInMemorySessionService
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.sessions.sqlite_session_service import SqliteSessionService
from google.genai import types

import servers
import servers_http
import servers_mysql
from threadline import EngineSessionService
from threadline.engines.memory import MemoryEngine
from threadline.integrations.adk import (
    DatabaseSessionService,
    VertexAiSessionService,
    adk_service,
)

OURS = ("memory", "sqlite", "postgres", "mysql", "vertex")
SLOW = ("adk-sqlite", "adk-database")
ADKS = ("adk-memory", *SLOW)

NO_REVISIONS = "the API compares no revisions"
UNIQUE = "an id is one engine's, not one user's"
HIDDEN_STATE = "the API shows a user's state only in a session"
STRUCT = "the API has no state that is None, and no value that a Struct would change"
VERTEX_DIFFERENCES = {
    "test_the_check_is_not_fooled_by_an_event_of_the_same_time": NO_REVISIONS,
    "test_the_check_is_not_fooled_by_a_back_dated_event": NO_REVISIONS,
    "test_a_stale_append_leaves_no_temp_state_behind": NO_REVISIONS,
    "test_a_session_that_missed_an_event_is_refused": NO_REVISIONS,
    "test_a_session_that_went_through_json_and_missed_an_event_is_refused": NO_REVISIONS,
    "test_a_stale_append_carries_the_events_it_missed": NO_REVISIONS,
    "test_rebase_appends_to_the_end_and_hands_over_what_was_missed": NO_REVISIONS,
    "test_rebase_takes_a_session_that_went_through_json": NO_REVISIONS,
    "test_a_session_of_a_deleted_one_cannot_write_into_its_successor": (
        "the API does not tell a session from its predecessor of the same id"
    ),
    "test_the_same_id_of_another_user_is_another_session": UNIQUE,
    "test_two_turns_of_two_users_at_once_do_not_meet": UNIQUE,
    "test_user_state_has_keys_without_their_prefix": HIDDEN_STATE,
    "test_user_state_outlives_the_last_session": HIDDEN_STATE,
    "test_nan_and_infinity_in_state_come_back_and_later_deltas_are_stored": STRUCT,
    r"test_a_hostile_value_comes_back_equal_in_state_and_event[vertex-\ud800]": STRUCT,
    f"test_a_hostile_value_comes_back_equal_in_state_and_event[vertex-{2**70}]": STRUCT,
    "test_a_delta_replaces_whole_values_and_none_is_a_value": STRUCT,
    "test_rewind_is_stored_as_google_adk_stores_it": STRUCT,  # it sets keys to None
    "test_a_verb_takes_the_arguments_of_google_adk": "create_session also takes ttl and the like",
}
"""Tests that must fail over Vertex AI, each with its reason."""


@dataclass
class Store:
    """A service, and the ids of one test's sessions there."""

    name: str
    service: Any
    open: Callable[..., BaseSessionService]
    """Make another service over the same sessions, as another process would have."""
    loop: asyncio.Runner
    app: str = field(default_factory=lambda: f"app-{uuid.uuid4().hex[:12]}")
    user: str = "ada"

    @property
    def key(self) -> dict[str, str]:
        return {"app_name": self.app, "user_id": self.user, "session_id": "talk"}

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run(coroutine)

    async def create(self, state: dict[str, Any] | None = None, **ids: Any) -> Session:
        session: Session = await self.service.create_session(**{**self.key, **ids}, state=state)
        return session

    async def get(self, **ids: Any) -> Session:
        session = await self.service.get_session(**{**self.key, **ids})
        assert session is not None
        return session

    async def newest(self, count: int | None = None, since: float | None = None) -> list[str]:
        """Return the texts of the events that a config loads."""
        config = GetSessionConfig(num_recent_events=count, after_timestamp=since)
        return texts(await self.get(config=config))

    async def say(self, session: Session, *words: str, **fields: Any) -> list[Event]:
        return [await self.service.append_event(session, event(text, **fields)) for text in words]

    async def change(self, session: Session, **delta: Any) -> None:
        """Append an event that changes state; `user__x` stands for `user:x`."""
        named = {key.replace("__", ":"): value for key, value in delta.items()}
        await self.service.append_event(session, event("", state=named))


def event(text: str, **fields: Any) -> Event:
    """Return an event of the user's."""
    fields.setdefault("author", "user")
    fields.setdefault("invocation_id", "e-1")
    if "state" in fields:
        fields["actions"] = EventActions(state_delta=fields.pop("state"))
    return Event(content=types.Content(role="user", parts=[types.Part(text=text)]), **fields)


def texts(session: Session) -> list[str]:
    """Return what was said, in order."""
    return [one.content.parts[0].text for one in session.events]


@contextlib.contextmanager
def opened(name: str, folder: Path) -> Iterator[Store]:
    """Yield the store of a name, or skip the test naming what is missing."""
    with contextlib.ExitStack() as stack, asyncio.Runner() as loop:
        make = MAKERS[name](stack, folder)
        service = make()
        yield Store(name, service, make, loop)
        close = getattr(service, "close", None)
        if close is not None:
            loop.run(close())


def _ours(url: str) -> Callable[..., BaseSessionService]:
    return lambda **options: DatabaseSessionService(url, **options)


def _postgres(stack: contextlib.ExitStack, _: Path) -> Callable[..., BaseSessionService]:
    return _ours(stack.enter_context(servers.new_database(servers.postgres("found"))))


def _mysql(stack: contextlib.ExitStack, _: Path) -> Callable[..., BaseSessionService]:
    server = servers_mysql.server()
    return _ours(server.url(stack.enter_context(servers_mysql.database())))


def _vertex(stack: contextlib.ExitStack, folder: Path) -> Callable[..., BaseSessionService]:
    server = stack.enter_context(servers_http.command(f"sqlite:///{folder}/vertex.db"))
    return lambda: VertexAiSessionService("my-project", "us-central1", base_url=server.url)


def _adk_database(_: contextlib.ExitStack, folder: Path) -> Callable[..., BaseSessionService]:
    if importlib.util.find_spec("sqlalchemy") is None:
        servers.missing("adk-database", "sqlalchemy is not installed")
    from google.adk.sessions import DatabaseSessionService as AdkDatabaseSessionService

    return lambda: AdkDatabaseSessionService(f"sqlite+aiosqlite:///{folder}/adk-database.db")


def _memory(*_: Any) -> Callable[..., BaseSessionService]:
    engine = MemoryEngine()
    return lambda **options: adk_service(EngineSessionService(engine, **options))


def _adk_memory(*_: Any) -> Callable[..., BaseSessionService]:
    service = AdkInMemorySessionService()
    return lambda: service


MAKERS: dict[str, Callable[[contextlib.ExitStack, Path], Callable[..., BaseSessionService]]] = {
    "memory": _memory,
    "sqlite": lambda _, folder: _ours(f"sqlite:///{folder}/threadline.db"),
    "postgres": _postgres,
    "mysql": _mysql,
    "vertex": _vertex,
    "adk-memory": _adk_memory,
    "adk-sqlite": lambda _, folder: lambda: SqliteSessionService(f"{folder}/adk-sqlite.db"),
    "adk-database": _adk_database,
}
