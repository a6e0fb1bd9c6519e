"""What the project set out to reach, and whether a run reached it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import apps, disk, growth, imports, memory
from benchmarks.adk_runner import ThroughAdk, ThroughAdkSharing
from benchmarks.limit import RawMysql, RawPostgres, RawSqlite
from benchmarks.peers import (
    AdkDatabase,
    AdkMemory,
    AdkOnServer,
    AdkSqlite,
    OpenAiAgents,
    Threadline,
    ThreadlineMemory,
)
from benchmarks.workloads import CALL, CALL_AND_READ

if TYPE_CHECKING:
    from benchmarks.peers import Store
    from benchmarks.results import Results
    from benchmarks.scale import Scale

FLAT = 1.5
"""How much slower the last tenth may be, and the growth still be called flat."""


@dataclass(frozen=True)
class Verdict:
    """One aim beside what was measured."""

    aim: str
    bound: str
    measured: str
    reached: bool


def judge(results: Results, scale: Scale) -> list[Verdict]:
    """Return the aims that the run measured, in the order of the workloads."""
    aims = {"sqlite": _on_sqlite, "postgres": _on_postgres, "mysql": _on_mysql}
    return [*aims[results.engine](results), *_costs(results, scale)]


def _on_sqlite(results: Results) -> list[Verdict]:
    return [
        *_ratio(results, "sequence", AdkDatabase, 15),
        *_ratio(results, "sequence", AdkSqlite, 8),
        *_ratio(results, "sequence", OpenAiAgents, 1.5),
        *_ratio(results, "concurrent", AdkDatabase, 60),
        *_ratio(results, "concurrent", OpenAiAgents, 8),
        *_ratio(results, "concurrent", RawSqlite, 0.5),
        *_ratio(results, "get", AdkDatabase, 30, measures=(CALL, CALL_AND_READ)),
        *_ratio(results, "get", OpenAiAgents, 1, measures=(CALL, CALL_AND_READ)),
        *_ratio(results, "newest", AdkDatabase, 20, measures=(CALL, CALL_AND_READ)),
        *_ratio(results, "page", AdkDatabase, 50),
        *_ratio(results, "memory-sequence", AdkMemory, 5, ours=ThreadlineMemory),
        *_ratio(
            results,
            "memory-get",
            AdkMemory,
            50,
            ours=ThreadlineMemory,
            measures=(CALL, CALL_AND_READ),
        ),
        *_ratio(results, "adk-append", AdkDatabase, 8, ours=ThroughAdk),
        *_ratio(results, "adk-get", AdkDatabase, 2, ours=ThroughAdk),
        *_ratio(results, "adk-get-again", AdkDatabase, 20, ours=ThroughAdkSharing),
        *_at_most(results, imports.NAME, "import threadline", 50),
        *_at_most(results, imports.NAME, "drivers and frameworks loaded", 0),
        *_at_most(results, memory.NAME, "large session over small session", FLAT),
    ]


def _on_postgres(results: Results) -> list[Verdict]:
    return [
        *_ratio(results, "sequence", AdkOnServer, 8),
        *_ratio(results, "sequence", RawPostgres, 0.7),
        *_ratio(results, "concurrent", AdkOnServer, 20),
        *_ratio(results, "concurrent", RawPostgres, 1),
        *_ratio(results, "get", AdkOnServer, 25, measures=(CALL, CALL_AND_READ)),
        *_ratio(results, "page", AdkOnServer, 50),
        *_ratio(results, "adk-append", AdkOnServer, 5, ours=ThroughAdk),
        *_ratio(results, "adk-get", AdkOnServer, 2, ours=ThroughAdk),
        *_ratio(results, "adk-get-again", AdkOnServer, 20, ours=ThroughAdkSharing),
    ]


def _on_mysql(results: Results) -> list[Verdict]:
    return [
        *_ratio(results, "sequence", AdkOnServer, 6),
        *_ratio(results, "sequence", RawMysql, 0.7),
        *_ratio(results, "concurrent", AdkOnServer, 14),
        *_ratio(results, "get", AdkOnServer, 25, measures=(CALL, CALL_AND_READ)),
        *_ratio(results, "page", AdkOnServer, 50),
    ]


def _costs(results: Results, scale: Scale) -> list[Verdict]:
    """Return the aims that every engine has."""
    return [
        *_at_most(results, apps.NAME, apps.RATIO, 1.1),
        *(
            verdict
            for turns in scale.turns
            for verdict in _at_most(results, disk.NAME, f"{Threadline.name}, {turns:,} turns", 1.5)
        ),
        *_at_most(results, growth.NAME, f"to {scale.grown_events:,} events", FLAT),
        *_at_most(results, growth.NAME, f"to {scale.grown_keys:,} state keys", FLAT),
    ]


def _ratio(
    results: Results,
    workload: str,
    peer: type[Store],
    bound: float,
    *,
    ours: type[Store] = Threadline,
    measures: tuple[str, ...] = (CALL,),
) -> list[Verdict]:
    verdicts = []
    for measure in measures:
        own = results.timing(workload, measure, ours.name)
        theirs = results.timing(workload, measure, peer.name)
        if own is None or theirs is None:
            continue
        ratio = theirs.ratio(own)
        detail = f" ({measure})" if len(measures) > 1 else ""
        verdicts.append(
            Verdict(
                f"{workload}{detail} against {peer.name}",
                f"at least {bound:g}x",
                f"{ratio:.1f}x" if bound > 1 else f"{ratio:.2f}x",
                ratio >= bound,
            )
        )
    return verdicts


def _at_most(results: Results, workload: str, name: str, bound: float) -> list[Verdict]:
    figure = results.figure(workload, name)
    if figure is None:
        return []
    return [
        Verdict(
            f"{workload}: {name}",
            f"at most {bound:g} {figure.unit}",
            f"{figure.value:.2f} {figure.unit}",
            figure.value <= bound,
        )
    ]
