"""The stores that are measured, each through its own public API and its own defaults.

An adapter is thin on purpose: what it adds to a call is a few attribute look-ups, and events
are built before the clock starts. Every adapter keeps `conversation`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import operator
import sqlite3
from contextlib import AsyncExitStack, aclosing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from benchmarks import conversation
from benchmarks.conversation import APP, USER

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

INSTALL = "pip install -e '.[bench]'"

DRIVERS = {"postgresql": "asyncpg", "mysql": "asyncmy"}
"""The driver that SQLAlchemy uses for the peers, the one that threadline uses, too."""

SERVER_COMMIT = "the server has committed, as it is set up"


class Store:
    """One store with its data in one database (or in memory)."""

    name: ClassVar[str]
    """How tables call it."""
    package: ClassVar[str]
    """The distribution it comes from."""
    modules: ClassVar[tuple[str, ...]]
    """What must be importable for it to run."""
    durability: ClassVar[str]
    """What its defaults promise when an append returns."""
    ours: ClassVar[bool] = False

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def path(self) -> str:
        """The file of an SQLite database."""
        return self.url.removeprefix("sqlite:///")

    def url_for(self, driver: str) -> str:
        """Return the URL as SQLAlchemy wants it."""
        scheme, rest = self.url.split("://", 1)
        return f"{scheme}+{driver}://{rest}"

    async def open(self) -> None:
        """Open the store; an empty one is created."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close the store as its users would."""

    async def create(self, session_id: str, state: dict[str, Any] | None = None) -> Any:
        """Create a session and return the handle to append through."""
        raise NotImplementedError

    def event(self, index: int, delta: dict[str, Any] | None = None) -> Any:
        """Build event `index` of the conversation, as the store wants it."""
        raise NotImplementedError

    async def append(self, handle: Any, event: Any) -> None:
        """Append one event; done when the store says so."""
        raise NotImplementedError

    async def append_all(self, handle: Any, events: Iterable[Any]) -> None:
        """Append prepared data, in the fastest way the API has; never measured."""
        for event in events:
            await self.append(handle, event)

    async def load(self, session_id: str) -> Sequence[Any]:
        """Return all events of a session, oldest first."""
        raise NotImplementedError

    async def newest(self, session_id: str, count: int) -> Sequence[Any]:
        """Return the newest events of a session, oldest first."""
        raise NotImplementedError

    async def page(self, count: int) -> int:
        """Return how many sessions the first page of a user's sessions has."""
        raise NotImplementedError

    def text(self, event: Any) -> str:
        """Return the message of an event that was read."""
        raise NotImplementedError


class AdkVerbs(Store):
    """google-adk's session services and threadline's: the same verbs and models."""

    service: Any
    models: SimpleNamespace

    async def close(self) -> None:
        close = getattr(self.service, "close", None)
        if close is not None:
            await close()

    async def create(self, session_id: str, state: dict[str, Any] | None = None) -> Any:
        return await self.service.create_session(
            app_name=APP, user_id=USER, session_id=session_id, state=state
        )

    def event(self, index: int, delta: dict[str, Any] | None = None) -> Any:
        models = self.models
        return models.Event(
            author=conversation.author(index),
            invocation_id=conversation.invocation_id(index),
            content=models.Content(
                role=conversation.role(index),
                parts=[models.Part(text=conversation.text(index))],
            ),
            actions=models.EventActions(
                state_delta=conversation.delta(index) if delta is None else delta
            ),
        )

    async def append(self, handle: Any, event: Any) -> None:
        await self.service.append_event(handle, event)

    async def load_session(self, session_id: str) -> Any:
        """Return a session with all its events, to append through."""
        return await self.service.get_session(app_name=APP, user_id=USER, session_id=session_id)

    async def load(self, session_id: str) -> Sequence[Any]:
        events: Sequence[Any] = (await self.load_session(session_id)).events
        return events

    async def newest(self, session_id: str, count: int) -> Sequence[Any]:
        session = await self.service.get_session(
            app_name=APP,
            user_id=USER,
            session_id=session_id,
            config=self.models.GetSessionConfig(num_recent_events=count),
        )
        events: Sequence[Any] = session.events
        return events

    async def page(self, count: int) -> int:
        listed = await self.service.list_sessions(app_name=APP, user_id=USER)
        return len(listed.sessions[:count])

    def text(self, event: Any) -> str:
        text: str = event.content.parts[0].text
        return text


class Threadline(AdkVerbs):
    """threadline's DatabaseSessionService on SQLite, as it comes: every commit is synced."""

    name = "threadline"
    package = "threadline"
    modules = ("threadline",)
    durability = "WAL, synced at every commit"
    ours = True

    async def open(self) -> None:
        threadline = importlib.import_module("threadline")
        self.models = threadline_models(threadline)
        self.service = threadline.DatabaseSessionService(self.url, **self.options())

    def options(self) -> dict[str, Any]:
        """Return what differs from the defaults: nothing."""
        return {}

    async def append_all(self, handle: Any, events: Iterable[Any]) -> None:
        await append_in_batches(self.service, handle, events)

    async def page(self, count: int) -> int:
        listed = await self.service.list_sessions(app_name=APP, user_id=USER, limit=count)
        return len(listed.sessions)


class ThreadlineOnServer(Threadline):
    """The same on PostgreSQL or MySQL, as it comes."""

    durability = SERVER_COMMIT


class ThreadlineNormal(Threadline):
    """threadline with `durability="normal"`: safe from kill -9, not from a power cut."""

    name = "threadline, durability normal"
    durability = "WAL, synced at checkpoints"

    def options(self) -> dict[str, Any]:
        return {"durability": "normal"}


class ThreadlineMemory(AdkVerbs):
    """threadline's InMemorySessionService."""

    name = "threadline, in memory"
    package = "threadline"
    modules = ("threadline",)
    durability = "none"
    ours = True

    async def open(self) -> None:
        threadline = importlib.import_module("threadline")
        self.models = threadline_models(threadline)
        self.service = threadline.InMemorySessionService()

    async def append_all(self, handle: Any, events: Iterable[Any]) -> None:
        await append_in_batches(self.service, handle, events)


class AdkDatabase(AdkVerbs):
    """google-adk's DatabaseSessionService over SQLAlchemy and aiosqlite."""

    name = "google-adk DatabaseSessionService"
    package = "google-adk"
    modules = ("google.adk", "sqlalchemy", "aiosqlite")
    durability = "rollback journal, synced at every commit"

    async def open(self) -> None:
        sessions = importlib.import_module("google.adk.sessions")
        self.models = adk_models()
        self.service = sessions.DatabaseSessionService(self.url_for("aiosqlite"))


class AdkOnServer(AdkDatabase):
    """google-adk's DatabaseSessionService on PostgreSQL or MySQL."""

    modules = ("google.adk", "sqlalchemy.ext.asyncio")
    durability = SERVER_COMMIT

    async def open(self) -> None:
        sessions = importlib.import_module("google.adk.sessions")
        self.models = adk_models()
        self.service = sessions.DatabaseSessionService(self.url_for(DRIVERS[_scheme(self.url)]))


class AdkSqlite(AdkVerbs):
    """google-adk's SqliteSessionService."""

    name = "google-adk SqliteSessionService"
    package = "google-adk"
    modules = ("google.adk", "aiosqlite")
    durability = "rollback journal, synced at every commit"

    async def open(self) -> None:
        module = importlib.import_module("google.adk.sessions.sqlite_session_service")
        self.models = adk_models()
        self.service = module.SqliteSessionService(self.path)


class AdkMemory(AdkVerbs):
    """google-adk's InMemorySessionService."""

    name = "google-adk InMemorySessionService"
    package = "google-adk"
    modules = ("google.adk",)
    durability = "none"

    async def open(self) -> None:
        sessions = importlib.import_module("google.adk.sessions")
        self.models = adk_models()
        self.service = sessions.InMemorySessionService()


class OpenAiAgents(Store):
    """openai-agents' SQLiteSession: one object a session, bare dictionaries, no state."""

    name = "openai-agents SQLiteSession"
    package = "openai-agents"
    modules = ("agents.memory",)
    durability = "WAL, synced at every commit (SQLite's default)"

    async def open(self) -> None:
        self._session = importlib.import_module("agents.memory").SQLiteSession
        self._sessions: dict[str, Any] = {}

    async def close(self) -> None:
        for session in self._sessions.values():
            session.close()

    async def create(self, session_id: str, state: dict[str, Any] | None = None) -> Any:
        del state  # SQLiteSession keeps none
        session = self._sessions[session_id] = self._session(session_id, self.path)
        return session

    def event(self, index: int, delta: dict[str, Any] | None = None) -> Any:
        del delta
        return {
            "role": "assistant" if index % 2 else "user",
            "content": conversation.text(index),
        }

    async def append(self, handle: Any, event: Any) -> None:
        await handle.add_items([event])

    async def append_all(self, handle: Any, events: Iterable[Any]) -> None:
        await handle.add_items(list(events))

    async def load(self, session_id: str) -> Sequence[Any]:
        items: Sequence[Any] = await self._sessions[session_id].get_items()
        return items

    async def newest(self, session_id: str, count: int) -> Sequence[Any]:
        items: Sequence[Any] = await self._sessions[session_id].get_items(limit=count)
        return items

    def text(self, event: Any) -> str:
        text: str = event["content"]
        return text


class OpenAiOnServer(OpenAiAgents):
    """openai-agents' SQLAlchemySession on PostgreSQL or MySQL; all share one engine."""

    name = "openai-agents SQLAlchemySession"
    modules = ("agents.memory", "sqlalchemy.ext.asyncio")
    durability = SERVER_COMMIT

    async def open(self) -> None:
        asyncio_extension = importlib.import_module("sqlalchemy.ext.asyncio")
        self._session = importlib.import_module("agents.extensions.memory").SQLAlchemySession
        self._sessions = {}
        scheme = _scheme(self.url)
        self._engine = asyncio_extension.create_async_engine(self.url_for(DRIVERS[scheme]))
        self._makes_tables = scheme != "mysql"
        if not self._makes_tables:  # its own, since its VARCHARs have no length
            text = importlib.import_module("sqlalchemy").text
            async with self._engine.begin() as db:
                for statement in _OPENAI_ON_MYSQL:
                    await db.execute(text(statement))

    async def close(self) -> None:
        await self._engine.dispose()

    async def create(self, session_id: str, state: dict[str, Any] | None = None) -> Any:
        del state  # it keeps none
        session = self._sessions[session_id] = self._session(
            session_id, engine=self._engine, create_tables=self._makes_tables
        )
        return session


_OPENAI_ON_MYSQL = (
    """
    CREATE TABLE agent_sessions (
        session_id VARCHAR(255) NOT NULL PRIMARY KEY,
        created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
        updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
    )
    """,
    """
    CREATE TABLE agent_messages (
        id INTEGER NOT NULL AUTO_INCREMENT PRIMARY KEY,
        session_id VARCHAR(255) NOT NULL,
        message_data TEXT NOT NULL,
        created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
        INDEX idx_agent_messages_session_time (session_id, created_at),
        FOREIGN KEY (session_id) REFERENCES agent_sessions (session_id) ON DELETE CASCADE
    )
    """,
)


class LangGraph(Store):
    """langgraph's AsyncSqliteSaver: a graph whose state is a growing list of messages.

    `aupdate_state` is the cheapest public way to add one message: it writes one checkpoint,
    where a run of the graph writes several.
    """

    name = "langgraph AsyncSqliteSaver"
    package = "langgraph-checkpoint-sqlite"
    modules = ("langgraph.graph", "langgraph.checkpoint.sqlite.aio", "langchain_core.messages")
    durability = "WAL, synced at every commit (SQLite's default)"

    async def open(self) -> None:
        graph = importlib.import_module("langgraph.graph")
        saver = importlib.import_module("langgraph.checkpoint.sqlite.aio").AsyncSqliteSaver
        self._messages = importlib.import_module("langchain_core.messages")

        class Talk(graph.MessagesState):  # type: ignore[misc, name-defined]
            facts: Annotated[dict[str, Any], operator.or_]

        # The annotations are strings in this module; langgraph has to see the real ones.
        Talk.__annotations__["facts"] = Annotated[dict[str, Any], operator.or_]
        builder = graph.StateGraph(Talk)
        builder.add_node("talk", lambda _state: {})
        builder.add_edge(graph.START, "talk")
        builder.add_edge("talk", graph.END)
        self._open = AsyncExitStack()
        self._saver = await self._open.enter_async_context(saver.from_conn_string(self.path))
        self._graph = builder.compile(checkpointer=self._saver)

    async def close(self) -> None:
        await self._open.aclose()

    async def create(self, session_id: str, state: dict[str, Any] | None = None) -> Any:
        config = _thread(session_id)
        if state is not None:
            await self._graph.aupdate_state(config, {"facts": state}, as_node="talk")
        return config

    def event(self, index: int, delta: dict[str, Any] | None = None) -> Any:
        kind = self._messages.AIMessage if index % 2 else self._messages.HumanMessage
        update = {"messages": [kind(conversation.text(index))]}
        facts = conversation.delta(index) if delta is None else delta
        return update | {"facts": facts} if facts else update

    async def append(self, handle: Any, event: Any) -> None:
        await self._graph.aupdate_state(handle, event, as_node="talk")

    async def append_all(self, handle: Any, events: Iterable[Any]) -> None:
        messages: list[Any] = []
        facts: dict[str, Any] = {}
        for event in events:
            messages += event["messages"]
            facts |= event.get("facts", {})
        await self.append(handle, {"messages": messages, "facts": facts})

    async def load(self, session_id: str) -> Sequence[Any]:
        snapshot = await self._graph.aget_state(_thread(session_id))
        messages: Sequence[Any] = snapshot.values["messages"]
        return messages

    async def newest(self, session_id: str, count: int) -> Sequence[Any]:
        return (await self.load(session_id))[-count:]

    async def page(self, count: int) -> int:
        threads: set[str] = set()
        async with aclosing(self._saver.alist(None)) as checkpoints:
            async for checkpoint in checkpoints:
                threads.add(checkpoint.config["configurable"]["thread_id"])
                if len(threads) == count:
                    break
        return len(threads)

    def text(self, event: Any) -> str:
        text: str = event.content
        return text


def missing(store: type[Store]) -> str | None:
    """Return the first module that the store needs and that is not installed."""
    return absent(store.modules)


def absent(modules: Iterable[str]) -> str | None:
    """Return the first of the modules that is not installed."""
    for module in modules:
        try:
            found = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            return module
    return None


def version(package: str) -> str:
    """Return the version of an installed distribution."""
    if package == "sqlite3":
        return sqlite3.sqlite_version
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if package == "threadline":  # not installed, but on the path
            return f"{importlib.import_module(package).__version__}, from the source tree"
        return "not installed"


def _scheme(url: str) -> str:
    return url.partition("://")[0]


def threadline_models(threadline: Any) -> SimpleNamespace:
    """Return what builds threadline's events."""
    return SimpleNamespace(
        Event=threadline.Event,
        EventActions=threadline.EventActions,
        Content=threadline.Content,
        Part=threadline.Part,
        GetSessionConfig=threadline.GetSessionConfig,
    )


def adk_models() -> SimpleNamespace:
    """Return google-adk's classes of events."""
    types = importlib.import_module("google.genai.types")
    return SimpleNamespace(
        Event=importlib.import_module("google.adk.events.event").Event,
        EventActions=importlib.import_module("google.adk.events.event_actions").EventActions,
        Content=types.Content,
        Part=types.Part,
        GetSessionConfig=importlib.import_module(
            "google.adk.sessions.base_session_service"
        ).GetSessionConfig,
    )


async def append_in_batches(service: Any, handle: Any, events: Iterable[Any]) -> None:
    """Append many events through threadline's own service."""
    batch: list[Any] = []
    for event in events:
        batch.append(event)
        if len(batch) == 500:
            await service.append_events(handle, batch)
            batch = []
    if batch:
        await service.append_events(handle, batch)


def _thread(session_id: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": session_id}}
