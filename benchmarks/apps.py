"""Whether the sessions of one app are in each other's way: the same load in one app and in many."""

from __future__ import annotations

import asyncio
import statistics
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.conversation import USER
from benchmarks.peers import Threadline, missing
from benchmarks.results import Figure

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.engines import Engine
    from benchmarks.results import Results
    from benchmarks.scale import Scale

NAME = "apps"
TITLE = "One app or many"
RATIO = "one app over many"


async def run(results: Results, scale: Scale, engine: Engine, say: Callable[[str], None]) -> None:
    """Append to many sessions at once, in turn of one app and each of an app of its own."""
    if missing(Threadline) is not None:
        return
    store = Threadline(await engine.new())
    await store.open()
    one: list[float] = []
    many: list[float] = []
    for number in range(results.rounds + 1):  # round 0 is a warm-up
        say(f"{NAME}: round {number} of {results.rounds}")
        for times, apps in ((one, 1), (many, scale.apps))[:: 1 if number % 2 else -1]:
            took = await _append(store, f"{number} {apps}", apps, scale)
            if number:
                times.append(took)
    await store.close()
    await engine.clear()
    ratio = statistics.median(one) / statistics.median(many)
    pairs = sorted(first / second for first, second in zip(one, many, strict=True))
    results.figures.append(
        Figure(
            NAME,
            RATIO,
            ratio,
            "x the time over many",
            f"median append {statistics.median(one) * 1e6:,.0f} us and "
            f"{statistics.median(many) * 1e6:,.0f} us; pairs of rounds {pairs[0]:.2f}x to "
            f"{pairs[-1]:.2f}x",
        )
    )


def describe(scale: Scale) -> str:
    """Return what is done, in one sentence."""
    return (
        f"{scale.apps} tasks under one asyncio.gather, each with a session of its own and "
        f"{scale.appends_of_app} appends: all sessions of one app and one user, and each of an "
        "app of its own, in turn."
    )


async def _append(store: Threadline, name: str, apps: int, scale: Scale) -> float:
    """Return the seconds that an append took on average."""
    talks: list[tuple[Any, list[Any]]] = []
    for number in range(scale.apps):
        session = await store.service.create_session(
            app_name=f"app {name} {number % apps}", user_id=USER, session_id=f"session {number}"
        )
        talks.append((session, [store.event(index) for index in range(scale.appends_of_app)]))

    async def talk(session: Any, events: list[Any]) -> None:
        for event in events:
            await store.append(session, event)

    start = perf_counter()
    await asyncio.gather(*(talk(session, events) for session, events in talks))
    return (perf_counter() - start) / (scale.apps * scale.appends_of_app)
