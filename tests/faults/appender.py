"""A child that appends a given number of events, in competition with its siblings.

It waits for a word on stdin before the first append, so that all of them start together.
"""

from __future__ import annotations

import asyncio
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


async def main() -> None:
    """Append `events_max` events, in turn to each of the sessions."""
    work = job()
    writer = work["writer"]
    async with DatabaseSessionService(work["url"], on_stale=work["on_stale"]) as service:
        sessions = []
        for session_id, user_id in SESSIONS.items():
            session = await service.get_session(
                app_name=APP, user_id=user_id, session_id=session_id
            )
            assert session is not None
            sessions.append(session)
        say({"ready": writer})
        sys.stdin.readline()
        for turn in range(work["events_max"]):
            # Neighbours begin at different sessions, and meet all the same.
            session = sessions[(writer + turn) % len(sessions)]
            say(await append(service, session, event_of(writer, turn)))


if __name__ == "__main__":
    asyncio.run(main())
