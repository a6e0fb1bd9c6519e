"""google-adk's own classes over threadline, beside google-adk's own services.

Both sides get and return google-adk's pydantic models, so what is compared is what an
application built on google-adk gets by changing one import.
"""

from __future__ import annotations

import importlib
import os
import uuid
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit, urlunsplit

from benchmarks import workloads as others
from benchmarks.conversation import APP, USER
from benchmarks.peers import AdkDatabase, AdkSqlite, AdkVerbs, Store, adk_models, append_in_batches
from benchmarks.workloads import (
    Get,
    OneSession,
    Sample,
    Stores,
    Workload,
    WrongAnswerError,
    goes_on,
    read,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

POSTGRES_URL = "THREADLINE_BENCH_POSTGRES_URL"
"""The environment variable that names a server; its user may create databases."""


class ThroughAdk(AdkVerbs):
    """threadline's service for google-adk, on SQLite, as it comes."""

    name = "threadline through google-adk's classes"
    package = "threadline"
    modules = ("threadline", "google.adk")
    durability = "WAL, synced at every commit"
    ours = True
    options: ClassVar[dict[str, Any]] = {}

    async def open(self) -> None:
        adk = importlib.import_module("threadline.integrations.adk")
        self.models = adk_models()
        self.service = adk.DatabaseSessionService(await self.url(), **self.options)

    async def url(self) -> str:
        """Return where the sessions are."""
        return f"sqlite:///{self.path}"

    async def append_all(self, handle: Any, events: Iterable[Any]) -> None:
        core = self.service.service
        session = await core.get_session(app_name=APP, user_id=USER, session_id=handle.id)
        convert = importlib.import_module("threadline.integrations.adk.events").to_threadline
        await append_in_batches(core, session, map(convert, events))


class ThroughAdkSharing(ThroughAdk):
    """The same with `share_events=True`: those who load a session see the same event objects."""

    name = "the same, share_events"
    options: ClassVar[dict[str, Any]] = {"share_events": True}


class OnPostgres(Store):
    """A database of its own on the server that the environment names."""

    async def make_database(self) -> str:
        """Create it and return its URL."""
        asyncpg = importlib.import_module("asyncpg")
        self._server = os.environ[POSTGRES_URL]
        self._database = f"threadline_bench_{uuid.uuid4().hex[:12]}"
        db = await asyncpg.connect(self._server)
        await db.execute(f"CREATE DATABASE {self._database}")
        await db.close()
        return urlunsplit(urlsplit(self._server)._replace(path=f"/{self._database}"))

    async def drop_database(self) -> None:
        """Remove it."""
        asyncpg = importlib.import_module("asyncpg")
        db = await asyncpg.connect(self._server)
        await db.execute(f"DROP DATABASE {self._database} WITH (FORCE)")
        await db.close()


class ThroughAdkPostgres(ThroughAdk, OnPostgres):
    """threadline's service for google-adk, on PostgreSQL."""

    name = "threadline through google-adk's classes, PostgreSQL"
    modules = ("threadline", "google.adk", "asyncpg")
    durability = "the server's: synced at every commit"

    async def url(self) -> str:
        return await self.make_database()

    async def close(self) -> None:
        await super().close()
        await self.drop_database()


class AdkDatabasePostgres(AdkVerbs, OnPostgres):
    """google-adk's DatabaseSessionService over SQLAlchemy and asyncpg."""

    name = "google-adk DatabaseSessionService, PostgreSQL"
    package = "google-adk"
    modules = ("google.adk", "sqlalchemy", "asyncpg")
    durability = "the server's: synced at every commit"

    async def open(self) -> None:
        sessions = importlib.import_module("google.adk.sessions")
        self.models = adk_models()
        url = await self.make_database()
        self.service = sessions.DatabaseSessionService(
            url.replace("postgresql://", "postgresql+asyncpg://", 1)
        )

    async def close(self) -> None:
        await super().close()
        await self.drop_database()


def on_servers(*stores: type[Store]) -> Stores:
    """Return the stores whose server is there."""
    return stores if POSTGRES_URL in os.environ else ()


class AdkAppend(OneSession):
    """One session, one append after the other."""

    name = "adk-append"
    title = "Through google-adk's classes: appends in sequence"
    stores = (ThroughAdk, AdkDatabase, AdkSqlite)
    reference = ThroughAdk.name


class AdkAppendPostgres(OneSession):
    """The same, on PostgreSQL."""

    name = "adk-append-postgres"
    title = "Through google-adk's classes: appends in sequence, PostgreSQL"
    stores = on_servers(ThroughAdkPostgres, AdkDatabasePostgres)
    reference = ThroughAdkPostgres.name


class AdkGet(Get):
    """A whole session, which this process has not loaded before."""

    name = "adk-get"
    title = "Through google-adk's classes: get_session, cold"
    stores = (ThroughAdk, AdkDatabase, AdkSqlite)
    reference = ThroughAdk.name

    def describe(self) -> str:
        return f"get_session of {self.scale.events:,} events, as a process does it first."

    async def measure(self, store: Any, round_number: int) -> dict[str, Sample]:
        async def before() -> None:
            await self.before(store)

        return await read(store, lambda: store.load("talk"), 0, self.scale, round_number, before)

    async def before(self, store: Any) -> None:
        """Do what comes before a read."""
        if isinstance(store, ThroughAdk):
            store.service._cache.forget((APP, USER, "talk"))


class AdkGetAgain(AdkGet):
    """The same session again, with two new events."""

    name = "adk-get-again"
    title = "Through google-adk's classes: get_session, warm"
    stores = (ThroughAdk, ThroughAdkSharing, AdkDatabase, AdkSqlite)

    def describe(self) -> str:
        return (
            f"get_session of {self.scale.events:,} events and more, by a process that has loaded "
            "it before; two events were appended since."
        )

    async def before(self, store: Any) -> None:
        session = await store.load_session("talk")
        first = len(session.events)
        for index in (first, first + 1):
            await store.append(session, store.event(index))


class AdkTurn(Workload):
    """What a turn of google-adk's Runner asks of the store, in sessions of three lengths."""

    name = "adk-turn"
    title = "Through google-adk's classes: a whole turn"
    unit = "turn"
    stores = (ThroughAdk, ThroughAdkSharing, AdkDatabase, AdkSqlite)
    reference = ThroughAdk.name

    @property
    def lengths(self) -> tuple[int, ...]:
        """How long the sessions are before the first turn."""
        return (10, self.scale.events, self.scale.history)

    def describe(self) -> str:
        return (
            "A turn as google-adk's Runner has it: get_session, one event of the user's, three "
            "of the agent's, each appended. The session has "
            f"{', '.join(f'{length:,}' for length in self.lengths)} events before the first."
        )

    async def prepare(self, store: Store) -> None:
        for length in self.lengths:
            handle = await store.create(f"talk of {length}")
            await store.append_all(handle, (store.event(index) for index in range(length)))

    async def measure(self, store: Any, round_number: int) -> dict[str, Sample]:
        samples = {}
        for length in self.lengths:
            seconds, turns = 0.0, 0
            while goes_on(self.scale, round_number, turns, seconds):
                events = [store.event(index) for index in range(4)]
                start = perf_counter()
                session = await store.load_session(f"talk of {length}")
                for event in events:
                    await store.append(session, event)
                seconds += perf_counter() - start
                turns += 1
                if len(session.events) < length + 4:
                    raise WrongAnswerError("events are missing")
                del session
            samples[f"{length:,} events"] = Sample(seconds, turns)
        return samples


WORKLOADS: tuple[type[Workload], ...] = (
    *others.WORKLOADS,
    AdkAppend,
    *((AdkAppendPostgres,) if AdkAppendPostgres.stores else ()),
    AdkGet,
    AdkGetAgain,
    AdkTurn,
)
