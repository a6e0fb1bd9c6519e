"""How many bytes a conversation takes on the disk, beside the JSON of its events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peers import (
    AdkDatabase,
    AdkOnServer,
    AdkSqlite,
    LangGraph,
    OpenAiAgents,
    OpenAiOnServer,
    Threadline,
    ThreadlineOnServer,
    missing,
)
from benchmarks.results import Failure, Figure

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.engines import Engine
    from benchmarks.peers import Store
    from benchmarks.results import Results
    from benchmarks.scale import Scale

NAME = "disk"
TITLE = "Bytes on disk"


async def run(results: Results, scale: Scale, engine: Engine, say: Callable[[str], None]) -> None:
    """Write one conversation to each store, close it and look at what it takes."""
    if missing(Threadline) is not None:
        return
    for kind, turns in _plan(scale, engine.name):
        module = missing(kind)
        if module is not None:
            results.missing[kind.name] = module
            continue
        say(f"{NAME}: {turns:,} turns, {kind.name}")
        try:
            store = kind(await engine.new())
            await _write(store, turns)
            written = await engine.size_bytes(store.url)
            json_bytes = await _json_bytes(turns)
        except Exception as error:  # one store must not end the run
            results.failures.append(Failure(NAME, kind.name, f"{type(error).__name__}: {error}"))
            continue
        results.figures.append(
            Figure(
                NAME,
                f"{kind.name}, {turns:,} turns",
                written / json_bytes,
                "x the events' JSON",
                f"{written:,} bytes for {json_bytes:,} bytes of JSON",
            )
        )
    await engine.clear()


_COUNTED = {
    "sqlite": "the database file and the log beside it",
    "postgres": "the tables with their indexes, as pg_total_relation_size has them",
    "mysql": "the tables with their indexes, as information_schema has them after ANALYZE TABLE",
}


def describe(scale: Scale, engine: str) -> str:
    """Return what is done, in one sentence."""
    return (
        "A turn is an event of the user and one of the agent, appended one by one to one "
        f"session. Counted after close: {_COUNTED[engine]}. The events' "
        "JSON is that of threadline's Event.to_json() for every store. "
        f"The ADK stores write {scale.turns_of_slow_stores:,} turns (more would take minutes)"
        + f", langgraph {scale.turns_of_growing_lists:,} (its file grows with the square)"
        * (engine == "sqlite")
        + "."
    )


def _plan(scale: Scale, engine: str) -> list[tuple[type[Store], int]]:
    if engine == "sqlite":
        return [
            *((store, turns) for turns in scale.turns for store in (Threadline, OpenAiAgents)),
            *((store, scale.turns_of_slow_stores) for store in (AdkDatabase, AdkSqlite)),
            (LangGraph, scale.turns_of_growing_lists),
        ]
    return [
        *((ThreadlineOnServer, turns) for turns in scale.turns),
        *((store, scale.turns_of_slow_stores) for store in (OpenAiOnServer, AdkOnServer)),
    ]


async def _write(store: Store, turns: int) -> None:
    await store.open()
    handle = await store.create("talk")
    for index in range(2 * turns):
        await store.append(handle, store.event(index))
    await store.close()


async def _json_bytes(turns: int) -> int:
    store = Threadline("sqlite:///:memory:")
    await store.open()
    total = sum(len(store.event(index).to_json().encode()) for index in range(2 * turns))
    await store.close()
    return total
