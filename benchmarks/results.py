"""What a run found out: times by store, single figures, and who was not there."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

ROUNDS_MIN = 5
"""Fewer rounds prove that the suite runs, and no more."""


@dataclass
class Timing:
    """Seconds for one operation, one number a round."""

    workload: str
    measure: str
    """What was timed, where a workload times more than one thing."""
    store: str
    operations: int = 0
    """How many operations a round has (the fewest, where rounds differ)."""
    seconds: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def median(self) -> float:
        """The median over the rounds, in seconds."""
        return statistics.median(self.seconds)

    def ratio(self, ours: Timing) -> float:
        """Return how many times longer this takes than ours, by the medians."""
        return self.median / ours.median

    def ratios(self, ours: Timing) -> tuple[float, float]:
        """Return the lowest and the highest ratio of two times from one round."""
        pairs = [theirs / own for theirs, own in zip(self.seconds, ours.seconds, strict=False)]
        return min(pairs), max(pairs)


@dataclass
class Figure:
    """A number that is not a time to compare: a size, a share, a count."""

    workload: str
    name: str
    value: float
    unit: str
    note: str = ""


@dataclass
class Failure:
    """A store that could not do a workload."""

    workload: str
    store: str
    error: str


@dataclass
class Results:
    """Everything one run found out."""

    environment: dict[str, str]
    engine: str
    """Its short name, as in `--engine`."""
    title: str
    """How people call it."""
    rounds: int
    full: bool
    """Whether the counts were those of the aims."""
    timings: list[Timing] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Stores that did not run, and the module each needs."""

    @property
    def is_measurement(self) -> bool:
        """Whether the numbers may be held against the aims."""
        return self.full and self.rounds >= ROUNDS_MIN

    def timing(self, workload: str, measure: str, store: str) -> Timing | None:
        """Return the times of one store, if they were taken."""
        for timing in self.timings:
            if (timing.workload, timing.measure, timing.store) == (workload, measure, store):
                return timing if timing.seconds else None
        return None

    def figure(self, workload: str, name: str) -> Figure | None:
        """Return one figure, if it was taken."""
        for figure in self.figures:
            if (figure.workload, figure.name) == (workload, name):
                return figure
        return None
