"""Databases that google-adk itself writes and reads, for tests of the importer and the exporter."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import json
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

from google.adk.events.event import Event as AdkEvent
from google.adk.events.event_actions import EventActions as AdkActions
from google.adk.sessions.base_session_service import BaseSessionService as AdkService
from google.adk.tools.tool_confirmation import ToolConfirmation

import servers_mysql
from servers import missing, postgres
from servers import new_database as new_postgres_database
from threadline import Session

SHARED = Path(__file__).parents[2] / "shared" / "data" / "adk-databases"
RELEASES = (
    "adk-1.0.0",
    "adk-1.14.1",
    "adk-1.22.1",
    "adk-2.13.0",
    "adk-2.13.0-sqlite-service",
)

APP, USERS = "desk", ("ada", "Zoë Łukasz")
KINDS = ("v0", "v1", "service")

START = 1_763_000_000.123457
STATE = {
    "plan": "rail",
    "user:lang": "pt",
    "app:open": True,
    "temp:x": 1,
    "big": 2**70,
    "float": 0.1 + 0.2,
    "none": None,
    "nested": {"a": [1, {"b": "ü\u2028"}], "empty": {}},
}


def need_sqlalchemy() -> None:
    """Skip by name where google-adk's DatabaseSessionService cannot run."""
    if importlib.util.find_spec("sqlalchemy") is None:
        missing("adk", "google-adk's DatabaseSessionService needs sqlalchemy[asyncio]")


@contextlib.contextmanager
def new_database(server: str) -> Iterator[str]:
    """Create a database on the server "postgres" or "mysql", and drop it afterwards."""
    if server == "postgres":
        with new_postgres_database(postgres("found")) as url:
            yield url
    else:
        with servers_mysql.database("CHARACTER SET utf8mb4") as name:
            yield servers_mysql.server().url(name)


@contextlib.asynccontextmanager
async def adk_service(url: str, kind: str = "v1") -> AsyncIterator[AdkService]:
    """Open a service of google-adk's; `v0` makes the tables of its first schema."""
    if kind == "service":
        from google.adk.sessions.sqlite_session_service import SqliteSessionService

        service: Any = SqliteSessionService(url.partition(":///")[2])
        yield service
        await service.close()
        return
    from google.adk.sessions import DatabaseSessionService
    from google.adk.sessions.schemas.v0 import Base

    async with DatabaseSessionService(url) as service:
        if kind == "v0":
            async with service.db_engine.begin() as db:
                await db.run_sync(Base.metadata.create_all)
        yield service


def events(n: int = 0) -> list[AdkEvent]:
    """Return one conversation with everything that schema v0 can hold too."""
    contents: list[dict[str, Any]] = [
        {"role": "user", "parts": [{"text": "To Porto, please. 🚆 \u202e\"quoted\" \\ 'x'"}]},
        {
            "role": "model",
            "parts": [{"function_call": {"id": "c1", "name": "f", "args": {"to": 1}}}],
        },
        {
            "role": "user",
            "parts": [{"function_response": {"id": "c1", "name": "f", "response": {}}}],
        },
        {
            "role": "model",
            "parts": [
                {"text": "thinking", "thought": True, "thought_signature": bytes(range(256))},
                {"inline_data": {"mime_type": "image/png", "data": bytes(range(256))}},
            ],
        },
    ]
    actions = [
        AdkActions(state_delta={"turn": n, "user:seen": n, "app:total": n, "temp:scratch": "x"}),
        AdkActions(
            artifact_delta={"a.txt": 2},
            transfer_to_agent="other",
            skip_summarization=True,
            requested_tool_confirmations={"c1": ToolConfirmation(hint="sure?", payload={"a": 1})},
        ),
        AdkActions(
            state_delta={"none": None, "prefs": {"x": [1.5, None, "é"]}},
            requested_auth_configs={
                "c1": {
                    "auth_scheme": {"type": "apiKey", "in": "header", "name": "X-Key"},
                    "raw_auth_credential": {"auth_type": "apiKey", "api_key": "no-key"},
                }
            },
        ),
        AdkActions(
            escalate=True,
            end_of_agent=True,
            agent_state={"step": 3},
            compaction={
                "start_timestamp": 1.5,
                "end_timestamp": 2.5,
                "compacted_content": {"role": "model", "parts": [{"text": "short"}]},
            },
        ),
    ]
    return [
        AdkEvent(
            id=f"event-{n}-{place}",
            invocation_id=f"inv-{n}",
            author="user" if place == 0 else "agent",
            timestamp=START + n * 10 + place * 0.000001,
            content=content,
            actions=action,
            branch="a.b" if place else None,
            long_running_tool_ids={"c1", "c2"} if place == 1 else None,
            custom_metadata={"k": [1, {"z": None}]} if place == 1 else None,
            turn_complete=place == 3 or None,
            error_code="E1" if place == 3 else None,
            error_message="broken" if place == 3 else None,
            usage_metadata={"prompt_token_count": 7} if place == 3 else None,
        )
        for place, (content, action) in enumerate(zip(contents, actions, strict=True))
    ]


async def write(url: str, kind: str = "v1") -> None:
    """Have google-adk write conversations for two users, and a session without events."""
    async with adk_service(url, kind) as service:
        for user in USERS:
            for n in range(2):
                session = await service.create_session(
                    app_name=APP, user_id=user, session_id=f"s {n}", state=dict(STATE)
                )
                for turn in range(2):
                    for event in events(turn):
                        await service.append_event(session, event)
        await service.create_session(app_name=APP, user_id=USERS[0], session_id="empty")


async def read(url: str, kind: str = "v1") -> list[Any]:
    """Have google-adk read all sessions of the app, with their events."""
    async with adk_service(url, kind) as service:
        listed = await service.list_sessions(app_name=APP)
        return [
            await service.get_session(app_name=APP, user_id=one.user_id, session_id=one.id)
            for one in sorted(listed.sessions, key=lambda one: (one.user_id, one.id))
        ]


def make(folder: Path, kind: str) -> str:
    """Return the URL, as google-adk's users have it, of a SQLite file that google-adk wrote."""
    if kind != "service":
        need_sqlalchemy()
    path = folder / f"{kind}.db"
    path.write_bytes(_written(kind))
    return f"sqlite+aiosqlite:///{path}"


@functools.cache
def _written(kind: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(write(f"sqlite+aiosqlite:///{folder}/new.db", kind))
        return Path(folder, "new.db").read_bytes()


# -- comparing --------------------------------------------------------------------------


def said(event: Any) -> dict[str, Any]:
    """Return what google-adk understands of an event, to the microsecond, `temp:` keys aside."""
    if not isinstance(event, AdkEvent):
        given = event if isinstance(event, dict) else json.loads(event.to_json())
        event = AdkEvent.model_validate(given)
    plain: dict[str, Any] = event.model_dump(mode="json", exclude_none=True)
    plain["timestamp"] = round(plain["timestamp"] * 1e6)
    plain["long_running_tool_ids"] = sorted(plain.get("long_running_tool_ids", ()))
    delta = plain["actions"]["state_delta"]
    plain["actions"]["state_delta"] = {k: v for k, v in delta.items() if not k.startswith("temp:")}
    for config in plain["actions"]["requested_auth_configs"].values():
        if config["auth_scheme"]["type_"] == "apiKey":
            # 1.22 and readers of v0 make an HTTP scheme of it, which the database does not hold.
            config["auth_scheme"].pop("scheme", None)
    return plain


def assert_same(session: Session, state: dict[str, Any], wanted: Iterable[Any]) -> None:
    """Compare a session with what google-adk says of it, event by event."""
    assert session.state == state
    assert [event.seq for event in session.events] == list(range(1, len(session.events) + 1))
    for mine, theirs in zip(session.events, map(said, wanted), strict=True):
        assert said(mine) == theirs
