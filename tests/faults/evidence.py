"""What a database must hold after a fault, given what was acknowledged before it."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from threadline import DatabaseSessionService, Event, Session

from .writer import APP, SESSIONS, text_of

PAGE = 500


@dataclass
class Survey:
    """What was found: how many events were acknowledged, and what is gone of all that was."""

    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    lost_sessions: list[str] = field(default_factory=list)
    lost_patches: int = 0

    def check_nothing_lost(self) -> None:
        """Hold the store to what it acknowledged."""
        assert self.lost_sessions == []
        assert self.lost == []
        assert self.lost_patches == 0


async def read_all(
    service: DatabaseSessionService, *, app_name: str, user_id: str, session_id: str
) -> list[Event]:
    """Read a whole session page by page."""
    events: list[Event] = []
    while True:
        page = await service.list_events(
            app_name=app_name,
            user_id=user_id,
            session_id=session_id,
            after_seq=len(events),
            limit=PAGE,
        )
        events.extend(page.events)
        if not page.has_more:
            return events


async def survey(url: str, said: list[dict[str, Any]]) -> Survey:
    """Compare a database with what its writers said; raise for anything but a lost tail.

    Each session must be a gap-free prefix of what was acknowledged (and of what was on its way),
    each append whole or absent, each state the replay of the stored events.
    """
    found = Survey()
    users: dict[str, dict[str, Any]] = {user: {} for user in SESSIONS.values()}
    app: dict[str, Any] = {}
    async with DatabaseSessionService(url) as service:
        for session_id, user_id in SESSIONS.items():
            key = {"app_name": APP, "user_id": user_id, "session_id": session_id}
            acks = [line for line in said if line.get("session") == session_id]
            session = await service.get_session(**key)
            if session is None:
                _count_all_lost(session_id, acks, found)
                continue
            events = await read_all(service, **key)
            _check_order(session, events)
            _check_batches(events)
            own = replay(events, users[user_id], app)
            _check_patches(session, acks, found)
            _check_state(session, own)
            _check_acks(events, acks, found)
        for user_id, expected in users.items():
            assert await service.get_user_state(app_name=APP, user_id=user_id) == expected
        assert await service.get_app_state(app_name=APP) == app
    return found


def _count_all_lost(session_id: str, acks: list[dict[str, Any]], found: Survey) -> None:
    """Count a session that is not there at all, which is no loss if nobody was told of it."""
    if acks:
        found.lost_sessions.append(session_id)
    ids = [ack["id"] for ack in acks if ack["op"] == "event"]
    found.acknowledged += len(ids)
    found.lost += ids
    found.lost_patches += sum(ack["op"] == "patch" for ack in acks)


def _check_order(session: Session, events: list[Event]) -> None:
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert session.revision == len(events)
    assert [event.id for event in session.events] == [event.id for event in events]
    assert len({event.id for event in events}) == len(events), "an event is there twice"


def _check_batches(events: list[Event]) -> None:
    """An append of several events is there as a whole and in one piece, acknowledged or not."""
    place = 0
    while place < len(events):
        size = int(events[place].id.rsplit("of", 1)[1])
        stem = events[place].id.rsplit(".", 1)[0]
        ids = [event.id for event in events[place : place + size]]
        assert ids == [f"{stem}.{n}of{size}" for n in range(1, size + 1)]
        place += size


def replay(events: list[Event], user: dict[str, Any], app: dict[str, Any]) -> dict[str, Any]:
    """Apply the deltas in order; return the session's own keys, add the others to their scopes."""
    own: dict[str, Any] = {}
    for event in events:
        for key, value in event.actions.state_delta.items():
            if key.startswith("user:"):
                user[key.removeprefix("user:")] = value
            elif key.startswith("app:"):
                app[key.removeprefix("app:")] = value
            else:
                own[key] = value
    return own


def _check_state(session: Session, own: dict[str, Any]) -> None:
    state = {
        key: value
        for key, value in session.state.items()
        if not re.match("p_|user:|app:", key)  # patches are no part of the log
    }
    assert state == own


def _check_patches(session: Session, acks: list[dict[str, Any]], found: Survey) -> None:
    """Each patch set its task's count and added one to the sum: both or neither."""
    counts = {
        int(key.removeprefix("p_")): value
        for key, value in session.state.items()
        if re.fullmatch(r"p_\d+", key)
    }
    assert session.state.get("p_count", 0) == sum(counts.values())
    newest: dict[int, int] = {}
    for ack in acks:
        if ack["op"] == "patch":
            newest[ack["task"]] = ack["n"]
    found.lost_patches += sum(max(0, n - counts.get(task, 0)) for task, n in newest.items())


def _check_acks(events: list[Event], acks: list[dict[str, Any]], found: Survey) -> None:
    """Every acknowledged event is there, once, at its number, as it was, or past the end."""
    for ack in acks:
        if ack["op"] != "event":
            continue
        found.acknowledged += 1
        if ack["seq"] > len(events):
            found.lost.append(ack["id"])
            continue
        event = events[ack["seq"] - 1]
        assert event.id == ack["id"]
        assert event.actions.state_delta == ack["delta"]
        assert event.content is not None
        assert event.content.parts is not None
        assert event.content.parts[0].text == text_of(event.id)


def check_integrity(path: Path) -> None:
    """Let SQLite itself check the file, in every page and index."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
