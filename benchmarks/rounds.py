"""Run a workload in rounds: every round asks every store, so that noise hits all alike."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from benchmarks.peers import missing
from benchmarks.results import Failure, Timing

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.engines import Engine
    from benchmarks.peers import Store
    from benchmarks.results import Results
    from benchmarks.workloads import Workload


async def run(
    workload: Workload,
    results: Results,
    engine: Engine,
    say: Callable[[str], None],
) -> None:
    """Measure one workload with all its stores and add what was found to the results."""
    stores = await _open(workload, results, engine, say)
    for number in range(results.rounds + 1):  # round 0 is a warm-up
        # Another store begins every round: none is always measured first, or after the same.
        shift = number % len(stores) if stores else 0
        for store in stores[shift:] + stores[:shift]:
            say(f"{workload.name}: round {number} of {results.rounds}, {store.name}")
            try:
                await _round(workload, store, number, results)
            except Exception as error:  # one store must not end the run
                _fail(workload, store.name, error, results)
                stores = [other for other in stores if other is not store]
    for store in stores:
        await store.close()
    await engine.clear()


async def _open(
    workload: Workload, results: Results, engine: Engine, say: Callable[[str], None]
) -> list[Store]:
    stores = []
    for kind in workload.here:
        module = missing(kind)
        if module is not None:
            results.missing[kind.name] = module
            continue
        say(f"{workload.name}: preparing {kind.name}")
        store = kind(await engine.new())
        try:
            await store.open()
            await workload.prepare(store)
            await engine.settle(store.url)
        except Exception as error:  # one store must not end the run
            _fail(workload, kind.name, error, results)
            continue
        stores.append(store)
    # The libraries of one store are not to be walked by the collector while another runs.
    gc.collect()
    gc.freeze()
    return stores


async def _round(workload: Workload, store: Store, number: int, results: Results) -> None:
    gc.collect()
    samples = await workload.measure(store, number)
    if number == 0:
        return
    for measure, sample in samples.items():
        timing = results.timing(workload.name, measure, store.name)
        if timing is None:
            timing = Timing(workload.name, measure, store.name, sample.operations)
            results.timings.append(timing)
        timing.operations = min(timing.operations, sample.operations)
        timing.seconds.append(sample.seconds / sample.operations)
        timing.note = sample.note or timing.note


def _fail(workload: Workload, store: str, error: Exception, results: Results) -> None:
    results.failures.append(
        Failure(workload.name, store, f"{type(error).__name__}: {error}".splitlines()[0])
    )
