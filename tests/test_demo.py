"""The demo shows what it says, and says so when it does not."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from threadline import DatabaseSessionService, Event, Session, demo
from threadline.errors import InvalidInputError
from threadline.sync import DatabaseSessionService as BlockingService


class Played(msgspec.Struct):
    """One run of the demo and what it left in its database."""

    report: demo.DemoReport
    story: str
    session: Session


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    url = f"sqlite:///{tmp_path_factory.mktemp('demo')}/demo.db"
    written = io.StringIO()
    report = demo.run(Console(file=written, width=120), url)
    with BlockingService(url) as service:
        session = service.get_session(
            app_name=demo.APP, user_id=demo.USER, session_id=report.session_id
        )
    assert session is not None
    return Played(report, written.getvalue(), session)


def test_nothing_is_missing_after_the_kill(played: Played) -> None:
    assert [check.name for check in played.report.checks if not check.ok] == []
    assert played.report.ok


def test_the_kill_is_in_the_middle_of_the_conversation(played: Played) -> None:
    assert 0 < played.report.events_at_kill < played.report.events == len(played.session.events)


def test_partial_events_were_seen_and_not_stored(played: Played) -> None:
    assert played.report.partial_events > 0
    assert not any(event.partial for event in played.session.events)


def test_the_story_has_every_word(played: Played) -> None:
    for event in played.session.events:
        assert event.content is not None
        for line in event.content.text.splitlines():
            assert line in played.story


def replay_checks(played: Played, session: Session | None = None, **changes: object) -> set[str]:
    """Run the demo's checks on what it left, changed; return the names of those that fail."""
    n = played.report.events_at_kill
    events = list(played.session.events)
    story = demo._Story(Console(file=io.StringIO()))
    story.events = [event for event in events if event.author != "user"]
    story.resumed = [events[n - 1].invocation_id]
    evidence = {
        "codes": (-signal.SIGKILL, 0),
        "told": [event for event in events[:n] if event.author != "user"],
        "at_kill": msgspec.structs.replace(played.session, events=events[:n]),
        "at_end": session or played.session,
        **changes,
    }
    checks = demo._checks(story=story, **evidence)  # type: ignore[arg-type]
    return {check.name for check in checks if not check.ok}


def without(session: Session, index: int) -> Session:
    events = list(session.events)
    del events[index]
    return msgspec.structs.replace(session, events=events)


def test_the_checks_pass_on_what_is_there(played: Played) -> None:
    assert replay_checks(played) == set()


def test_a_lost_event_is_found(played: Played) -> None:
    for index in range(len(played.session.events)):
        assert replay_checks(played, without(played.session, index)) != set()


def test_a_changed_event_is_found(played: Played) -> None:
    events = list(played.session.events)
    events[1] = msgspec.structs.replace(events[1], author="somebody")
    failed = replay_checks(played, msgspec.structs.replace(played.session, events=events))
    assert "the second found all of it and changed none" in failed


def test_a_lost_state_key_is_found(played: Played) -> None:
    state = {key: value for key, value in played.session.state.items() if key != "day"}
    failed = replay_checks(played, msgspec.structs.replace(played.session, state=state))
    assert failed == {"the state equals the replay of the events"}


def test_an_empty_database_is_found(played: Played) -> None:
    assert replay_checks(played, at_kill=None) == {"the conversation is in the database"}


def test_a_process_that_was_not_killed_is_found(played: Played) -> None:
    assert replay_checks(played, codes=(1, 1)) == {
        "the first process died of SIGKILL",
        "the second process ended well",
    }


def test_the_conversation_goes_on_from_wherever_it_stopped(
    played: Played, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(session: Session) -> list[object]:
        return [(event.author, event.content) for event in session.events]

    async def cut_off_after(service: DatabaseSessionService, url: str, n: int) -> Session | None:
        ids = {"app_name": demo.APP, "user_id": demo.USER, "session_id": str(n)}
        session = await service.create_session(**ids)
        await service.append_events(session, list(played.session.events[:n]))
        await demo.talk(url, str(n), 0.0)
        return await service.get_session(**ids)

    async def cut_off_anywhere() -> None:
        url = f"sqlite:///{tmp_path}/cut.db"
        async with DatabaseSessionService(url) as service:
            for n in range(len(played.session.events)):
                session = await cut_off_after(service, url, n)
                assert session is not None
                assert told(session) == told(played.session)
                assert session.state == played.session.state

    asyncio.run(cut_off_anywhere())


def test_a_database_that_ends_with_its_process_is_refused() -> None:
    for url in ("sqlite:///:memory:", "memory://"):
        with pytest.raises(InvalidInputError, match="a second process"):
            demo.run(Console(file=io.StringIO()), url)


def test_the_command_needs_no_argument_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "threadline.cli", "demo", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert all(check["ok"] for check in report["checks"])
    assert "killed by SIGKILL" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_failed_has_exit_code_1(tmp_path: Path) -> None:
    # The first process pays at once and is never killed, so it tells the whole conversation.
    program = (
        "from threadline import cli, demo\n"
        "demo._SLOW_S = 0.0\n"
        "demo.KILLED_IN = 'refund'\n"
        "cli.app(['demo'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    assert "NO  the first process died of SIGKILL" in done.stdout
    assert "the demo found something missing" in done.stderr
    assert "Traceback" not in done.stderr


def test_events_travel_between_the_processes_unchanged(played: Played) -> None:
    for event in played.session.events:
        assert Event.from_dict(json.loads(json.dumps(event.to_dict()))) == event
