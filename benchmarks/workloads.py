"""What every store is asked to do, and how it is timed.

A workload prepares each store once, then is measured in rounds. Events are built before the
clock starts. What was read is checked: a store that returns something else has failed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks import conversation
from benchmarks.limit import (
    RawMysql,
    RawMysql64,
    RawMysqlAutocommit,
    RawPostgres,
    RawPostgres64,
    RawSqlite,
)
from benchmarks.peers import (
    AdkDatabase,
    AdkMemory,
    AdkOnServer,
    AdkSqlite,
    LangGraph,
    OpenAiAgents,
    OpenAiOnServer,
    Store,
    Threadline,
    ThreadlineMemory,
    ThreadlineNormal,
    ThreadlineOnServer,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from benchmarks.scale import Scale

Stores = tuple[type[Store], ...]

SERVICES: Stores = (ThreadlineOnServer, AdkOnServer, OpenAiOnServer)
WRITERS: dict[str, Stores] = {
    "sqlite": (
        Threadline,
        ThreadlineNormal,
        AdkDatabase,
        AdkSqlite,
        OpenAiAgents,
        LangGraph,
        RawSqlite,
    ),
    "postgres": (*SERVICES, RawPostgres),
    "mysql": (*SERVICES, RawMysql, RawMysqlAutocommit),
}
READERS: dict[str, Stores] = {
    "sqlite": (Threadline, AdkDatabase, AdkSqlite, OpenAiAgents, LangGraph),
    "postgres": SERVICES,
    "mysql": SERVICES,
}
KEEPERS: dict[str, Stores] = {
    "sqlite": (Threadline, AdkDatabase, AdkSqlite, LangGraph),
    "postgres": (ThreadlineOnServer, AdkOnServer),
    "mysql": (ThreadlineOnServer, AdkOnServer),
}
"""Those that keep state and list sessions."""
MEMORY: dict[str, Stores] = {"sqlite": (ThreadlineMemory, AdkMemory)}

CALL = "the call"
CALL_AND_READ = "the call and every text"


@dataclass
class Sample:
    """What one round of one store took, all operations together."""

    seconds: float
    operations: int
    note: str = ""


class Workload:
    """One thing to do, in the same way with every store."""

    name: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str]
    """What one operation is."""
    stores: ClassVar[dict[str, Stores]]
    """Who does it, by engine."""
    reference: ClassVar[str] = Threadline.name
    """Which store the others are compared with."""

    def __init__(self, scale: Scale, engine: str) -> None:
        self.scale = scale
        self.here: Stores = self.stores.get(engine, ())

    def describe(self) -> str:
        """Return what is done, with its counts, in one sentence."""
        raise NotImplementedError

    async def prepare(self, store: Store) -> None:
        """Fill a fresh store; not measured."""

    async def measure(self, store: Store, round_number: int) -> dict[str, Sample]:
        """Do one round; round 0 is a warm-up whose result is thrown away."""
        raise NotImplementedError


class OneSession(Workload):
    """One session, one append after the other."""

    name = "sequence"
    title = "One session, appends in sequence"
    unit = "append"
    stores = WRITERS

    @property
    def appends(self) -> int:
        """How many appends a round has."""
        return self.scale.appends

    def describe(self) -> str:
        return f"{self.appends:,} appends to a new session, each awaited before the next."

    async def measure(self, store: Store, round_number: int) -> dict[str, Sample]:
        handle = await store.create(f"session {round_number}")
        events = [store.event(index) for index in range(_warm(self.appends, round_number))]
        start = perf_counter()
        for event in events:
            await store.append(handle, event)
        return {CALL: Sample(perf_counter() - start, len(events))}


class MemoryOneSession(OneSession):
    """The same, in memory."""

    name = "memory-sequence"
    title = "In memory: one session, appends in sequence"
    stores = MEMORY
    reference = ThreadlineMemory.name

    @property
    def appends(self) -> int:
        """How many appends a round has: a session as long as the ones that are read."""
        return self.scale.memory_appends

    def describe(self) -> str:
        return (
            super().describe() + " google-adk compares each event with all before it, so its "
            "time grows with the session; ours does not."
        )


class Concurrent(Workload):
    """Many sessions at once, each with a task of its own."""

    name = "concurrent"
    title = "Many sessions at once"
    unit = "append"
    stores = WRITERS | {
        "postgres": (*WRITERS["postgres"], RawPostgres64),
        "mysql": (*WRITERS["mysql"], RawMysql64),
    }

    def describe(self) -> str:
        return (
            f"{self.scale.sessions} tasks under one asyncio.gather, each with a session of its "
            f"own and {self.scale.appends_each} appends; the time is the whole divided by all "
            "appends."
            + " The limit does the same appends one after the other."
            * (RawSqlite in self.here)
        )

    async def measure(self, store: Store, round_number: int) -> dict[str, Sample]:
        each = _warm(self.scale.appends_each, round_number)
        talks = []
        for number in range(self.scale.sessions):
            handle = await store.create(f"session {round_number}/{number}")
            talks.append((handle, [store.event(index) for index in range(each)]))

        failures: list[Exception] = []

        async def talk(handle: Any, events: list[Any]) -> None:
            for event in events:
                try:
                    await store.append(handle, event)
                except Exception as error:  # a peer that refuses under load is a finding
                    failures.append(error)

        start = perf_counter()
        await asyncio.gather(*(talk(handle, events) for handle, events in talks))
        took = perf_counter() - start
        appends = self.scale.sessions * each
        note = ""
        if failures:
            if store.ours or len(failures) == appends:
                raise failures[0]
            kinds = ", ".join(sorted({type(error).__name__ for error in failures}))
            note = f"{len(failures)} of {appends} appends failed: {kinds}"
        return {CALL: Sample(took, appends, note)}


class WideState(Workload):
    """Appends to a session that holds much state."""

    name = "wide-state"
    title = "Appends to a session with much state"
    unit = "append"
    stores = KEEPERS

    def describe(self) -> str:
        return (
            f"{self.scale.wide_appends} appends in sequence to a session with "
            f"{self.scale.state_keys:,} state keys; every third writes one key."
        )

    async def measure(self, store: Store, round_number: int) -> dict[str, Sample]:
        state = conversation.state(self.scale.state_keys)
        handle = await store.create(f"session {round_number}", state)
        events = [
            store.event(index) for index in range(_warm(self.scale.wide_appends, round_number))
        ]
        start = perf_counter()
        for event in events:
            await store.append(handle, event)
        return {CALL: Sample(perf_counter() - start, len(events))}


class Get(Workload):
    """A whole session, by its id."""

    name = "get"
    title = "get_session with all events"
    unit = "get"
    stores = READERS

    def describe(self) -> str:
        return (
            f"get_session of {self.scale.events:,} events. threadline decodes an event when it "
            "is looked at, so both are timed: the call alone, and the call with the text of "
            "every event read."
        )

    async def prepare(self, store: Store) -> None:
        handle = await store.create("talk")
        await store.append_all(handle, (store.event(index) for index in range(self.scale.events)))

    async def measure(self, store: Store, round_number: int) -> dict[str, Sample]:
        return await read(store, lambda: store.load("talk"), 0, self.scale, round_number)


class MemoryGet(Get):
    """The same, in memory."""

    name = "memory-get"
    title = "In memory: get_session with all events"
    stores = MEMORY
    reference = ThreadlineMemory.name


class Newest(Workload):
    """The end of a long session."""

    name = "newest"
    title = "The newest events of a long session"
    unit = "get"
    stores = READERS

    def describe(self) -> str:
        return (
            f"The newest {self.scale.newest} of {self.scale.history:,} events, through each "
            "store's own option for it."
            + " langgraph has none and loads the list."
            * (LangGraph in self.here)
        )

    async def prepare(self, store: Store) -> None:
        handle = await store.create("talk")
        await store.append_all(handle, (store.event(index) for index in range(self.scale.history)))

    async def measure(self, store: Store, round_number: int) -> dict[str, Sample]:
        first = self.scale.history - self.scale.newest
        return await read(
            store,
            lambda: store.newest("talk", self.scale.newest),
            first,
            self.scale,
            round_number,
        )


class Page(Workload):
    """A screenful of a user's sessions."""

    name = "page"
    title = "A page of sessions"
    unit = "page"
    stores = KEEPERS

    def describe(self) -> str:
        return (
            f"A page of {self.scale.page} out of one user's {self.scale.listed:,} sessions with "
            "one state key each. A store without paging lists them all, as its users must. "
            + "langgraph reads its newest checkpoints until it has seen enough threads. "
            * (LangGraph in self.here)
            + "openai-agents has no call that lists sessions."
        )

    async def prepare(self, store: Store) -> None:
        for number in range(self.scale.listed):
            await store.create(f"session {number}", {"topic": f"trip {number}"})

    async def measure(self, store: Store, round_number: int) -> dict[str, Sample]:
        async def page() -> None:
            found = await store.page(self.scale.page)
            if found != self.scale.page:
                raise WrongAnswerError(f"{found} sessions on a page of {self.scale.page}")

        seconds, calls = 0.0, 0
        while goes_on(self.scale, round_number, calls, seconds):
            start = perf_counter()
            await page()
            seconds += perf_counter() - start
            calls += 1
        return {CALL: Sample(seconds, calls)}


class WrongAnswerError(Exception):
    """A store did not return what was put in."""


async def read(
    store: Store,
    load: Callable[[], Awaitable[Sequence[Any]]],
    first: int,
    scale: Scale,
    round_number: int,
    before: Callable[[], Awaitable[None]] | None = None,
) -> dict[str, Sample]:
    """Time a read, and the read with every text; check the texts, which begin at `first`.

    What comes `before` each read is not timed.
    """
    call_s = read_s = 0.0
    calls = 0
    while goes_on(scale, round_number, calls, read_s):
        if before is not None:
            await before()
        start = perf_counter()
        events = await load()
        loaded = perf_counter()
        texts = [store.text(event) for event in events]
        done = perf_counter()
        call_s += loaded - start
        read_s += done - start
        calls += 1
        # What was read is let go of outside of the clock, for every store.
        del events
        if texts != [conversation.text(first + index) for index in range(len(texts))]:
            raise WrongAnswerError("the texts are not the ones that were appended")
    return {CALL: Sample(call_s, calls), CALL_AND_READ: Sample(read_s, calls)}


def goes_on(scale: Scale, round_number: int, calls: int, seconds: float) -> bool:
    """Whether to read again: up to `reads` times, fewer where that takes too long."""
    if calls == 0:
        return True
    return round_number > 0 and calls < scale.reads and seconds < scale.read_budget_s


def _warm(count: int, round_number: int) -> int:
    """Return how often to append; the warm-up only has to touch every path."""
    return count if round_number else min(count, 6)


WORKLOADS: tuple[type[Workload], ...] = (
    OneSession,
    Concurrent,
    WideState,
    Get,
    Newest,
    Page,
    MemoryOneSession,
    MemoryGet,
)
