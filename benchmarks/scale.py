"""How much every workload does: the sizes of the aims, and small ones that only prove it runs."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Scale:
    """The counts of one run; `read_budget_s` ends the reads of a slow store in a round."""

    appends: int = 300
    memory_appends: int = 1_000
    sessions: int = 64
    appends_each: int = 8
    events: int = 1_000
    history: int = 10_000
    newest: int = 10
    apps: int = 200
    appends_of_app: int = 50
    listed: int = 10_000
    page: int = 50
    state_keys: int = 10_000
    wide_appends: int = 30
    reads: int = 20
    read_budget_s: float = 0.5
    imports: int = 3
    turns: tuple[int, ...] = (1_000, 10_000)
    turns_of_slow_stores: int = 1_000
    turns_of_growing_lists: int = 250
    grown_events: int = 100_000
    grown_keys: int = 10_000
    small_session: int = 1_000
    large_session: int = 100_000

    def on_server(self) -> Scale:
        """Return the counts where a commit takes longer and a screen holds more."""
        return replace(self, newest=2 * self.newest, grown_events=self.grown_events // 5)


FULL = Scale()

QUICK = Scale(
    appends=30,
    memory_appends=100,
    sessions=8,
    appends_each=2,
    events=60,
    history=200,
    apps=10,
    appends_of_app=4,
    listed=100,
    page=20,
    state_keys=200,
    wide_appends=5,
    reads=2,
    read_budget_s=0.1,
    imports=1,
    turns=(20, 50),
    turns_of_slow_stores=20,
    turns_of_growing_lists=20,
    grown_events=1_000,
    grown_keys=200,
    small_session=200,
    large_session=1_000,
)
