"""A child that writes for as long as it lives, and says what was acknowledged.

Several tasks share each session and all of them share one service, so that a commit of the
store holds the work of several tasks. A line is printed only after the call returned.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from threadline import (
    DatabaseSessionService,
    Event,
    EventActions,
    GetSessionConfig,
    Session,
    StorageUnavailableError,
)

if __name__ == "__main__":
    from children import job, say
else:
    from .children import job, say

APP = "faults"
SESSIONS = {"s0": "ann", "s1": "ann", "s2": "bob"}
TASKS_PER_SESSION = 2


def text_of(event_id: str) -> str:
    """Return what the event of this id says: mostly short, sometimes many pages long."""
    rng = random.Random(event_id)
    size = 30_000 if rng.random() < 0.02 else rng.randrange(20, 600)
    return f"{event_id} " + "x" * size


def delta_of(event_id: str, session_id: str, task: int, turn: int) -> dict[str, Any]:
    """Return the event's state delta: contested and own keys of each scope, or nothing."""
    if turn % 5 == 4:
        return {}
    return {
        "last": event_id,
        f"k{task}_{turn % 7}": [event_id, turn],
        f"user:{session_id}_{task}": event_id,
        f"app:{session_id}_{task}": turn,
    }


async def patch(service: DatabaseSessionService, session: Session, task: int, number: int) -> None:
    """Set the task's count of patches and add one to the sum of all; exactly once."""
    key = {"app_name": APP, "user_id": session.user_id, "session_id": session.id}
    is_done = False
    while not is_done:
        try:
            await service.patch_state(**key, set={f"p_{task}": number}, increment={"p_count": 1})
            is_done = True
        except StorageUnavailableError:  # where a server went away, only a look can tell
            found = await service.get_session(**key, config=GetSessionConfig(num_recent_events=0))
            assert found is not None
            is_done = found.state.get(f"p_{task}") == number


async def write(
    service: DatabaseSessionService,
    session: Session,
    task: int,
    work: dict[str, Any],
    tell: Callable[..., None],
) -> None:
    """Append and patch until killed, or until the task's quota of events is reached."""
    generation, events_max = work["generation"], work.get("events_max")
    rng = random.Random(f"{work['seed']} {generation} {session.id} {task}")
    turn, patches = 0, int(session.state.get(f"p_{task}", 0))
    while events_max is None or turn < events_max:
        dice = rng.random()
        if dice < 0.15 and work.get("patches", True):
            patches += 1
            await patch(service, session, task, patches)
            tell({"op": "patch", "session": session.id, "task": task, "n": patches})
            continue
        size = rng.randrange(2, 6) if dice < 0.35 else 1
        batch = []
        for place in range(size):
            # The name tells which append the event belongs to: all of it is stored, or nothing.
            event_id = f"g{generation}.{session.id}.t{task}.{turn}.{place + 1}of{size}"
            batch.append(
                Event(
                    id=event_id,
                    author="agent",
                    invocation_id=f"g{generation}",
                    content=text_of(event_id),
                    actions=EventActions(
                        state_delta=delta_of(event_id, session.id, task, turn + place)
                    ),
                )
            )
        if size == 1:
            stored = [await service.append_event(session, batch[0])]
        else:
            stored = await service.append_events(session, batch)
        tell(
            *(
                {"op": "event", "session": session.id, "id": event.id, "seq": event.seq,
                 "delta": dict(event.actions.state_delta)}
                for event in stored
            )
        )  # fmt: skip
        turn += size


async def work_on(
    service: DatabaseSessionService, work: dict[str, Any], tell: Callable[..., None]
) -> None:
    """Resume or create the sessions, and let all tasks write."""
    tasks = []
    for session_id, user_id in SESSIONS.items():
        for task in range(TASKS_PER_SESSION):
            session = await service.get_or_create_session(
                app_name=APP, user_id=user_id, session_id=session_id
            )
            if task == 0:
                tell({"op": "session", "session": session_id})
            tasks.append(write(service, session, task, work, tell))
    await asyncio.gather(*tasks)


def opened(work: dict[str, Any]) -> DatabaseSessionService:
    """Return the service of a job."""
    return DatabaseSessionService(
        work["url"], durability=work.get("durability", "full"), on_stale="rebase"
    )


async def main() -> None:
    """Open the database and write; what ends it comes from outside."""
    work = job()
    say({"op": "opening"})
    async with opened(work) as service:
        await work_on(service, work, say)
        say({"op": "done"})
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
