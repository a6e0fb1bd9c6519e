"""A child whose writers append a given number of events each, in competition with its siblings.

It waits for a word on stdin before the first append, so that all of them start together, and
for another one before it lets go of the database.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from threadline import DatabaseSessionService, Event, EventActions, Session, StaleSessionError

if __name__ == "__main__":
    from children import job, say
else:
    from .children import job, say

APP = "shared"
SESSIONS = {"s0": "ann", "s1": "ann", "s2": "bob", "s3": "bob"}
KEYS_PER_SCOPE = 5


def session_of(writer: int, turn: int, shared_every: int) -> tuple[str, str]:
    """Return the session and user of a writer's turn: its own one, or in turn one of SESSIONS."""
    if turn % shared_every:
        return f"own{writer}", f"user{writer}"
    # Neighbours begin at different sessions, and meet all the same.
    return list(SESSIONS.items())[(writer + turn // shared_every) % len(SESSIONS)]


def event_of(writer: int, turn: int) -> Event:
    """Return a writer's event of one turn: its own key in each scope, and one that all contest."""
    key, name = f"w{writer}_{turn % KEYS_PER_SCOPE}", f"w{writer}-{turn}"
    return Event(
        id=name,
        author=f"writer{writer}",
        invocation_id=f"turn{turn}",
        content=f"Event {turn} of writer {writer}: " + "x" * 250,
        actions=EventActions(
            state_delta={key: turn, f"user:{key}": turn, f"app:{key}": turn, "newest": name}
        ),
    )


async def append(service: DatabaseSessionService, session: Session, event: Event) -> dict[str, Any]:
    """Append one event; after a refusal refresh and try again."""
    refused = 0
    while True:
        expected = session.revision
        try:
            stored = await service.append_event(session, event)
        except StaleSessionError as error:
            refusal = error
        else:
            return {
                "session": session.id,
                "id": stored.id,
                "seq": stored.seq,
                "expected": expected,
                "refused": refused,
            }
        refused += 1
        assert refusal.expected == expected
        assert refusal.revision > refusal.expected
        assert len(refusal.missed) == refusal.revision - refusal.expected
        await service.refresh(session)
        assert session.revision is not None
        assert session.revision >= refusal.revision


async def write(
    service: DatabaseSessionService, sessions: dict[str, Session], writer: int, work: dict[str, Any]
) -> None:
    """Append a writer's events, each to the session of its turn."""
    for turn in range(work["events_max"]):
        session_id, _ = session_of(writer, turn, work["shared_every"])
        say(await append(service, sessions[session_id], event_of(writer, turn)))


async def opened(
    service: DatabaseSessionService, writer: int, work: dict[str, Any]
) -> dict[str, Session]:
    """Return a writer's handles."""
    sessions = {}
    for turn in range(work["events_max"]):
        session_id, user_id = session_of(writer, turn, work["shared_every"])
        if session_id not in sessions:
            sessions[session_id] = await service.get_or_create_session(
                app_name=APP, user_id=user_id, session_id=session_id
            )
    return sessions


def open_files() -> int:
    """Return how many files, connections among them, this process has open."""
    return len(os.listdir("/proc/self/fd"))


async def main() -> None:
    """Let all writers of this process append, and count its open files before and after."""
    work = job()
    first = work["process"] * work["writers_each"]
    async with DatabaseSessionService(work["url"], on_stale=work["on_stale"]) as service:
        writers = range(first, first + work["writers_each"])
        handles = {writer: await opened(service, writer, work) for writer in writers}
        say({"ready": first, "files": open_files()})
        sys.stdin.readline()
        await asyncio.gather(
            *(write(service, sessions, writer, work) for writer, sessions in handles.items())
        )
        say({"files": open_files()})
        await asyncio.sleep(work["idle_s"])
        say({"op": "done", "files": open_files()})
        sys.stdin.readline()


if __name__ == "__main__":
    asyncio.run(main())
