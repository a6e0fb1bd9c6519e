"""How much memory a page of a long session takes."""

from __future__ import annotations

import statistics
import tracemalloc
from typing import TYPE_CHECKING, Any

from benchmarks.conversation import APP, USER
from benchmarks.peers import Threadline, missing
from benchmarks.results import Figure

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.engines import Engine
    from benchmarks.results import Results
    from benchmarks.scale import Scale

NAME = "page-memory"
TITLE = "Memory of a page of events"


async def run(results: Results, scale: Scale, engine: Engine, say: Callable[[str], None]) -> None:
    """Trace what list_events allocates in a small and in a large session."""
    if missing(Threadline) is not None:
        return
    store = Threadline(await engine.new())
    await store.open()
    peaks = {}
    for size in (scale.small_session, scale.large_session):
        say(f"{NAME}: a page of {scale.page} from {size:,} events")
        handle = await store.create(f"{size} events")
        await store.append_all(handle, (store.event(index) for index in range(size)))
        del handle
        peaks[size] = await _peak(store, f"{size} events", size, scale.page, results.rounds)
        results.figures.append(
            Figure(
                NAME,
                f"peak of a page of {scale.page} from {size:,} events",
                peaks[size] / 1024,
                "KiB",
            )
        )
    await store.close()
    await engine.clear()
    results.figures.append(
        Figure(
            NAME,
            "large session over small session",
            peaks[scale.large_session] / peaks[scale.small_session],
            "x the small one's peak",
        )
    )


def describe(scale: Scale) -> str:
    """Return what is done, in one sentence."""
    return (
        f"The peak that tracemalloc sees during list_events(limit={scale.page}) from the middle "
        f"of a session, with every text read, in sessions of {scale.small_session:,} and "
        f"{scale.large_session:,} events; the median over the rounds. What SQLite allocates in C "
        "is not in it; its page cache is bounded."
    )


async def _peak(store: Threadline, session_id: str, size: int, page: int, rounds: int) -> float:
    async def read() -> None:
        listed: Any = await store.service.list_events(
            app_name=APP, user_id=USER, session_id=session_id, after_seq=size // 2, limit=page
        )
        if len([store.text(event) for event in listed.events]) != page or not listed.has_more:
            raise AssertionError("not the page that was asked for")

    await read()  # opens the reader and prepares its statements
    peaks = []
    for _ in range(rounds):
        tracemalloc.start()
        await read()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return statistics.median(peaks)
