"""google-adk's own classes over threadline, beside google-adk's own services.

Both sides get and return google-adk's pydantic models, so what is compared is what an
application built on google-adk gets by changing one import.
"""

from __future__ import annotations

import importlib
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks import workloads as others
from benchmarks.conversation import APP, USER
from benchmarks.peers import (
    SERVER_COMMIT,
    AdkDatabase,
    AdkOnServer,
    AdkSqlite,
    AdkVerbs,
    Store,
    adk_models,
    append_in_batches,
)
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


class ThroughAdk(AdkVerbs):
    """threadline's service for google-adk, as it comes."""

    name = "threadline through google-adk's classes"
    package = "threadline"
    modules = ("threadline", "google.adk")
    durability = "WAL, synced at every commit"
    ours = True
    options: ClassVar[dict[str, Any]] = {}

    async def open(self) -> None:
        adk = importlib.import_module("threadline.integrations.adk")
        self.models = adk_models()
        self.service = adk.DatabaseSessionService(self.url, **self.options)

    async def append_all(self, handle: Any, events: Iterable[Any]) -> None:
        core = self.service.service
        session = await core.get_session(app_name=APP, user_id=USER, session_id=handle.id)
        convert = importlib.import_module("threadline.integrations.adk.events").to_threadline
        await append_in_batches(core, session, map(convert, events))


class ThroughAdkSharing(ThroughAdk):
    """The same with `share_events=True`: those who load a session see the same event objects."""

    name = "the same, share_events"
    options: ClassVar[dict[str, Any]] = {"share_events": True}


class ThroughAdkOnServer(ThroughAdk):
    """threadline's service for google-adk, on PostgreSQL or MySQL."""

    durability = SERVER_COMMIT


class ThroughAdkOnServerSharing(ThroughAdkSharing):
    """The same with `share_events=True`."""

    durability = SERVER_COMMIT


WRITERS: dict[str, Stores] = {
    "sqlite": (ThroughAdk, AdkDatabase, AdkSqlite),
    "postgres": (ThroughAdkOnServer, AdkOnServer),
    "mysql": (ThroughAdkOnServer, AdkOnServer),
}
READERS: dict[str, Stores] = {
    "sqlite": (ThroughAdk, ThroughAdkSharing, AdkDatabase, AdkSqlite),
    "postgres": (ThroughAdkOnServer, ThroughAdkOnServerSharing, AdkOnServer),
    "mysql": (ThroughAdkOnServer, ThroughAdkOnServerSharing, AdkOnServer),
}


class AdkAppend(OneSession):
    """One session, one append after the other."""

    name = "adk-append"
    title = "Through google-adk's classes: appends in sequence"
    stores = WRITERS
    reference = ThroughAdk.name


class AdkGet(Get):
    """A whole session, which this process has not loaded before."""

    name = "adk-get"
    title = "Through google-adk's classes: get_session, cold"
    stores = WRITERS
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
    stores = READERS

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
    stores = READERS
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
    AdkGet,
    AdkGetAgain,
    AdkTurn,
)
