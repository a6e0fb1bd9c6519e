"""Writers that go on while their server fails and comes back."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

from .children import running

LIFE_S_MAX = 0.7
ACKS = 20


class Load(NamedTuple):
    """What was acknowledged, and the longest time in which nothing was."""

    said: list[dict[str, Any]]
    silence_s: float


def write_through(url: str, faults: int, fail: Callable[[], None]) -> Load:
    """Let two processes write, and a server fail under them at random moments.

    They have to recover from each fault by themselves, and to end without a word of complaint.
    """
    rng = random.Random("load")
    job = {"url": url, "seed": 1}
    # Each process would count its own patches.
    jobs = [{**job, "generation": 0}, {**job, "generation": 1, "patches": False}]
    with ExitStack() as stack:
        writers = [stack.enter_context(running("writer.py", job)) for job in jobs]
        for _ in range(faults):
            for writer in writers:
                writer.wait_for(len(writer.lines) + ACKS)
            time.sleep(rng.uniform(0, LIFE_S_MAX))
            fail()
        said = []
        for writer in writers:
            writer.wait_for(len(writer.lines) + ACKS)
            assert writer.kill() == -9, writer.errors()
            assert writer.errors() == ""
            said += writer.lines
    return Load(said, max(writer.longest_silence_s() for writer in writers))
