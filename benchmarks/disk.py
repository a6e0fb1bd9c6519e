"""How many bytes a conversation takes on the disk, beside the JSON of its events."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from benchmarks.peers import (
    AdkDatabase,
    AdkSqlite,
    LangGraph,
    OpenAiAgents,
    Threadline,
    missing,
)
from benchmarks.results import Failure, Figure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.peers import Store
    from benchmarks.results import Results
    from benchmarks.scale import Scale

NAME = "disk"
TITLE = "Bytes on disk"


async def run(results: Results, scale: Scale, directory: Path, say: Callable[[str], None]) -> None:
    """Write one conversation to each store, close it and look at its files."""
    if missing(Threadline) is not None:
        return
    home = directory / NAME
    home.mkdir()
    plan: list[tuple[type[Store], int]] = [
        *((store, turns) for turns in scale.turns for store in (Threadline, OpenAiAgents)),
        *((store, scale.turns_of_slow_stores) for store in (AdkDatabase, AdkSqlite)),
        (LangGraph, scale.turns_of_growing_lists),
    ]
    for number, (kind, turns) in enumerate(plan):
        module = missing(kind)
        if module is not None:
            results.missing[kind.name] = module
            continue
        say(f"{NAME}: {turns:,} turns, {kind.name}")
        try:
            written = await _write(kind(home / f"{number}.db"), turns)
            json_bytes = await _json_bytes(turns, home / f"{number}.json.db")
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
    shutil.rmtree(home)


def describe(scale: Scale) -> str:
    """Return what is done, in one sentence."""
    return (
        "A turn is an event of the user and one of the agent, appended one by one to one "
        "session. Counted after close: the database file and the log beside it. The events' "
        "JSON is that of threadline's Event.to_json() for every store. "
        f"The ADK stores write {scale.turns_of_slow_stores:,} turns (more would take minutes), "
        f"langgraph {scale.turns_of_growing_lists:,} (its file grows with the square)."
    )


async def _write(store: Store, turns: int) -> int:
    await store.open()
    handle = await store.create("talk")
    for index in range(2 * turns):
        await store.append(handle, store.event(index))
    await store.close()
    files = (store.path, store.path.with_name(store.path.name + "-wal"))
    return sum(file.stat().st_size for file in files if file.exists())


async def _json_bytes(turns: int, path: Path) -> int:
    store = Threadline(path)
    await store.open()
    total = sum(len(store.event(index).to_json().encode()) for index in range(2 * turns))
    await store.close()
    return total
