"""Whether an append costs the same in a long session and beside much state."""

from __future__ import annotations

import statistics
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.peers import Threadline, missing
from benchmarks.results import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.engines import Engine
    from benchmarks.results import Results
    from benchmarks.scale import Scale

NAME = "growth"
TITLE = "Append time as a session grows"
PLOT = "append-time.png"

_WINDOWS = 100
_DECILE = 10


async def run(
    results: Results,
    scale: Scale,
    engine: Engine,
    output: Path,
    say: Callable[[str], None],
) -> None:
    """Append one by one to a session, time every append, and plot the medians."""
    if missing(Threadline) is not None:
        return
    say(f"{NAME}: {scale.grown_events:,} events in one session")
    events_s = await _grow(await engine.new(), scale.grown_events, one_key_each=False)
    say(f"{NAME}: {scale.grown_keys:,} state keys in one session")
    keys_s = await _grow(await engine.new(), scale.grown_keys, one_key_each=True)
    await engine.clear()
    for what, seconds in (("events", events_s), ("state keys", keys_s)):
        first, last = _deciles(seconds)
        results.figures.append(
            Figure(
                NAME,
                f"to {len(seconds):,} {what}",
                last / first,
                "x the first tenth",
                f"median append {first * 1e6:,.0f} us in the first tenth, "
                f"{last * 1e6:,.0f} us in the last",
            )
        )
    _plot(output / PLOT, engine.title, events_s, keys_s, say)


def describe(scale: Scale, title: str) -> str:
    """Return what is done, in one sentence."""
    return (
        f"One session of threadline on {title}, appended to one by one: "
        f"{scale.grown_events:,} events with the usual deltas; then {scale.grown_keys:,} events "
        "that each add a state key. Run once."
    )


async def _grow(url: str, count: int, *, one_key_each: bool) -> list[float]:
    store = Threadline(url)
    await store.open()
    handle = await store.create("talk")
    seconds = []
    for index in range(count):
        delta: dict[str, Any] | None = {f"key_{index:05d}": index} if one_key_each else None
        event = store.event(index, delta)
        start = perf_counter()
        await store.append(handle, event)
        seconds.append(perf_counter() - start)
    await store.close()
    return seconds


def _deciles(seconds: Sequence[float]) -> tuple[float, float]:
    """Return the median of the first and of the last tenth."""
    tenth = max(1, len(seconds) // _DECILE)
    return statistics.median(seconds[:tenth]), statistics.median(seconds[-tenth:])


def _plot(
    path: Path,
    title: str,
    events_s: list[float],
    keys_s: list[float],
    say: Callable[[str], None],
) -> None:
    try:
        import matplotlib as mpl  # an option of the `bench` extra
    except ImportError:
        say("matplotlib is not installed: no plot (pip install -e '.[bench]')")
        return
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for panel, seconds, label in (
        (panels[0], events_s, "events in the session"),
        (panels[1], keys_s, "state keys of the session"),
    ):
        width = max(1, len(seconds) // _WINDOWS)
        windows = [seconds[at : at + width] for at in range(0, len(seconds), width)]
        places = [at + width / 2 for at in range(0, len(seconds), width)]
        panel.plot(places, [statistics.median(window) * 1e6 for window in windows], label="median")
        panel.fill_between(
            places,
            [_quantile(window, 0.1) * 1e6 for window in windows],
            [_quantile(window, 0.9) * 1e6 for window in windows],
            alpha=0.25,
            label="10th to 90th percentile",
        )
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
        panel.legend()
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("one append, microseconds")
    figure.suptitle(f"threadline on {title}, full durability: append time as a session grows")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
