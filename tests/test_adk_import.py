"""What google-adk wrote comes back from threadline, event by event; what cannot is named."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.adk.events.event import Event as AdkEvent
from google.adk.events.event_actions import EventActions as AdkActions
from typer.testing import CliRunner

import servers_mysql
from adk_databases import (
    APP,
    KINDS,
    RELEASES,
    SHARED,
    START,
    USERS,
    adk_service,
    assert_same,
    make,
    need_sqlalchemy,
    new_database,
    read,
    write,
)
from threadline import DamagedDataError, EngineSessionService, Event, InvalidInputError, Session
from threadline.cli import app
from threadline.connect import connect
from threadline.engines.memory import MemoryEngine
from threadline.importers.adk import AdkReport, Progress, import_adk


def run(source: Any, engine: Any, **options: Any) -> AdkReport:
    async def work() -> AdkReport:
        try:
            return await import_adk(source, engine, **options)
        finally:
            await engine.close()

    return asyncio.run(work())


def load(engine: Any, user_id: str, session_id: str, app_name: str = APP) -> Session:
    async def work() -> Session | None:
        async with EngineSessionService(engine) as service:
            ids = {"app_name": app_name, "user_id": user_id, "session_id": session_id}
            return await service.get_session(**ids)

    session = asyncio.run(work())
    assert session is not None
    return session


def append(engine: Any, user_id: str, session_id: str, event: Event) -> None:
    session = load(engine, user_id, session_id)

    async def work() -> None:
        async with EngineSessionService(engine) as service:
            await service.append_event(session, event)

    asyncio.run(work())


def change(url: str, *statements: str) -> None:
    """Change a SQLite file by hand."""
    with sqlite3.connect(url.partition(":///")[2]) as db:
        for statement in statements:
            assert db.execute(statement).rowcount, statement
    db.close()


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine()


@pytest.fixture
def v1(tmp_path: Path) -> str:
    return make(tmp_path, "v1")


# -- databases of real releases ---------------------------------------------------------


def expected(name: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (app, user, session) of what a release reads back from its own file."""
    if not SHARED.exists():
        pytest.skip(f"NOT TESTED on {name}: {SHARED} is not there")
    users = json.loads((SHARED / f"{name}.expected.json").read_text())["users"]
    return [(u["app_name"], u["user_id"], s) for u in users for s in u["sessions"]]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.soak if name in RELEASES[1:3] else ())
        for name in RELEASES
    ],
)
def test_a_releases_database_comes_back_as_the_release_reads_it(name: str, tmp_path: Path) -> None:
    assert_imports_whole(name, connect(f"sqlite:///{tmp_path}/target.db"))


@pytest.mark.soak
@pytest.mark.parametrize("name", RELEASES)
def test_a_releases_database_comes_back_from_memory(name: str) -> None:
    assert_imports_whole(name, MemoryEngine())


@pytest.mark.soak
@pytest.mark.parametrize("server", ["postgres", "mysql"])
def test_a_releases_database_comes_back_from_a_server(server: str) -> None:
    expected("adk-1.14.1")
    with new_database(server) as url:
        assert_imports_whole("adk-1.14.1", connect(url))


def assert_imports_whole(name: str, engine: Any) -> None:
    wanted = expected(name)

    async def work() -> None:
        report = await import_adk(SHARED / f"{name}.db", engine)
        assert report.is_whole
        assert report.sessions_created == len(wanted)
        assert report.events_added == sum(len(session["events"]) for _, _, session in wanted)
        again = await import_adk(SHARED / f"{name}.db", engine)
        assert (again.sessions_created, again.events_added, again.state_keys_set) == (0, 0, 0)
        assert again.events_present == report.events_added
        service = EngineSessionService(engine)
        for app_name, user_id, session in wanted:
            ids = {"app_name": app_name, "user_id": user_id, "session_id": session["id"]}
            found = await service.get_session(**ids)
            assert found is not None
            assert_same(found, session["state"], session["events"])
        await engine.close()

    asyncio.run(work())


def test_the_orphans_of_a_release_are_counted_and_kept_aside(
    tmp_path: Path, engine: MemoryEngine
) -> None:
    expected("adk-1.0.0")
    report = run(SHARED / "adk-1.0.0.db", engine, quarantine=tmp_path / "kept")
    assert report.orphans == 3
    lines = list(map(json.loads, (tmp_path / "kept").read_text().splitlines()))
    assert {line["row"]["session_id"] for line in lines} == {"deleted-session"}


# -- databases that google-adk 2.13 writes here -----------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_google_adk_reads_is_what_threadline_reads(
    kind: str, tmp_path: Path, engine: MemoryEngine
) -> None:
    url = make(tmp_path, kind)
    report = run(url, engine)
    assert report.is_whole
    for theirs in asyncio.run(read(url, kind)):
        mine = load(engine, theirs.user_id, theirs.id)
        assert_same(mine, theirs.state, theirs.events)


@pytest.mark.parametrize("kind", KINDS)
def test_importing_twice_adds_nothing(kind: str, tmp_path: Path, engine: MemoryEngine) -> None:
    url = make(tmp_path, kind)
    first, second = run(url, engine), run(url, engine)
    assert (first.sessions_created, first.events_added) == (5, 32)
    assert (second.sessions_created, second.events_added, second.events_present) == (0, 0, 32)


@pytest.mark.parametrize("kind", ["v0", "v1"])
@pytest.mark.parametrize("server", ["postgres", "mysql"])
def test_a_servers_database_comes_back_as_google_adk_reads_it(
    server: str, kind: str, engine: MemoryEngine
) -> None:
    need_sqlalchemy()
    with new_database(server) as url:
        their_url = url.replace("://", "+asyncpg://" if server == "postgres" else "+asyncmy://")
        asyncio.run(write(their_url, kind))
        assert run(their_url, engine).is_whole
        for theirs in asyncio.run(read(their_url, kind)):
            mine = load(engine, theirs.user_id, theirs.id)
            assert_same(mine, theirs.state, theirs.events)


def test_a_mysql_server_decides_which_session_an_event_is_of(engine: MemoryEngine) -> None:
    """Its collation holds two spellings to be one id, as google-adk's queries do."""
    need_sqlalchemy()
    with new_database("mysql") as url:
        their_url = url.replace("://", "+asyncmy://")
        asyncio.run(write(their_url))
        servers_mysql.server().run(
            "UPDATE events SET session_id = upper(session_id) WHERE user_id = 'ada'",
            database=url.rpartition("/")[2],
        )
        report = run(their_url, engine)
        assert (report.orphans, report.events) == (0, 32)
    assert len(load(engine, "ada", "s 0").events) == 8


def test_the_users_and_the_apps_state_come_too(v1: str, engine: MemoryEngine) -> None:
    run(v1, engine)

    async def work() -> tuple[dict[str, Any], dict[str, Any]]:
        service = EngineSessionService(engine)
        user = await service.get_user_state(app_name=APP, user_id=USERS[1])
        return user, await service.get_app_state(app_name=APP)

    assert asyncio.run(work()) == ({"lang": "pt", "seen": 1}, {"open": True, "total": 1})


def test_times_are_kept_to_the_microsecond(v1: str, engine: MemoryEngine) -> None:
    run(v1, engine)
    session = load(engine, "ada", "s 0")
    assert [event.timestamp for event in session.events][:2] == [START, START + 0.000001]
    assert session.last_update_time == session.events[-1].timestamp
    with sqlite3.connect(v1.partition(":///")[2]) as db:
        sql = "SELECT 1e6 * unixepoch(substr(create_time, 1, 19)) + substr(create_time, 21) "
        (created,) = db.execute(sql + "FROM sessions WHERE user_id = 'ada'").fetchone()
    db.close()
    assert round(session.create_time * 1e6) == created


def test_events_at_one_time_keep_the_order_they_were_written_in(
    tmp_path: Path, engine: MemoryEngine
) -> None:
    need_sqlalchemy()
    url = f"sqlite+aiosqlite:///{tmp_path}/ties.db"

    async def ties() -> None:
        async with adk_service(url) as service:
            session = await service.create_session(app_name=APP, user_id="ada", session_id="s")
            for id in ("z", "m", "b"):
                await service.append_event(session, AdkEvent(id=id, timestamp=START, author="a"))

    asyncio.run(ties())
    run(url, engine)
    assert [event.id for event in load(engine, "ada", "s").events] == ["z", "m", "b"]


def test_unknown_fields_are_kept(v1: str, engine: MemoryEngine) -> None:
    change(
        v1,
        "UPDATE events SET event_data = json_set(event_data, '$.from_tomorrow', 1, "
        "'$.actions.new_thing', json('[2]')) WHERE id = 'event-0-0' AND session_id = 's 0'",
    )
    run(v1, engine)
    event = load(engine, "ada", "s 0").events[0].to_dict()
    assert event["from_tomorrow"] == 1
    assert event["actions"]["new_thing"] == [2]


def test_a_column_that_somebody_added_to_the_first_schema_is_kept(
    tmp_path: Path, engine: MemoryEngine
) -> None:
    url = make(tmp_path, "v0")
    with sqlite3.connect(url.partition(":///")[2]) as db:
        db.execute("ALTER TABLE events ADD COLUMN tenant TEXT DEFAULT 'north'")
    db.close()
    run(url, engine)
    assert load(engine, "ada", "s 0").events[0].to_dict()["tenant"] == "north"


def test_the_first_schemas_times_are_read_in_the_zone_that_is_given(
    tmp_path: Path, engine: MemoryEngine
) -> None:
    report = run(make(tmp_path, "v0"), engine, time_zone="America/New_York")
    assert report.time_zone == "America/New_York"
    (first, *_) = load(engine, "ada", "s 0").events
    assert first.timestamp == pytest.approx(START + 5 * 3600, abs=1e-6)  # November


def test_the_zone_does_not_matter_where_the_exact_time_is_stored(
    v1: str, engine: MemoryEngine
) -> None:
    report = run(v1, engine, time_zone="America/New_York")
    assert report.time_zone is None
    assert load(engine, "ada", "s 0").events[0].timestamp == START


def test_an_unknown_zone_is_refused(v1: str, engine: MemoryEngine) -> None:
    with pytest.raises(InvalidInputError, match="'Mars/Base' is unknown"):
        run(v1, engine, time_zone="Mars/Base")


def test_times_that_javascript_wrote_are_milliseconds(v1: str, engine: MemoryEngine) -> None:
    change(
        v1,
        "UPDATE events SET event_data = json_set(event_data, '$.timestamp', 1763000000123) "
        "WHERE id = 'event-0-0'",
    )
    run(v1, engine)
    assert load(engine, "ada", "s 0").events[0].timestamp == 1763000000.123


def test_temp_values_in_events_are_counted_and_left_out(
    tmp_path: Path, engine: MemoryEngine
) -> None:
    import pickle

    url = make(tmp_path, "v0")
    data = pickle.dumps(AdkActions(state_delta={"temp:x": 1, "y": 2}))
    change(url, f"UPDATE events SET actions = x'{data.hex()}' WHERE id = 'event-0-0'")
    assert run(url, engine).temp_keys == 4
    assert load(engine, "ada", "s 0").events[0].actions.state_delta == {"y": 2}


# -- the target has something already ---------------------------------------------------


async def _grow(url: str) -> None:
    async with adk_service(url) as service:
        session = await service.get_session(app_name=APP, user_id="ada", session_id="s 0")
        delta = {"plan": "bus", "app:total": 99}
        actions = AdkActions(state_delta=delta)
        event = AdkEvent(id="new", author="user", timestamp=START + 99, actions=actions)
        await service.append_event(session, event)


def test_a_session_that_grew_gets_its_new_events_and_state(v1: str, engine: MemoryEngine) -> None:
    run(v1, engine)
    asyncio.run(_grow(v1))
    assert run(v1, engine).events_added == 1
    session = load(engine, "ada", "s 0")
    assert session.events[-1].id == "new"
    assert session.state["plan"] == "bus"


def test_an_apps_key_with_another_value_is_kept_and_named(v1: str, engine: MemoryEngine) -> None:
    run(v1, engine)
    asyncio.run(_grow(v1))
    report = run(v1, engine)
    assert [(one.table, one.key) for one in report.conflicts] == [("app_states", [APP])]
    assert "'total'" in report.conflicts[0].reason
    assert load(engine, "ada", "s 0").state["app:total"] == 1


def test_an_apps_key_is_overwritten_if_asked_for(v1: str, engine: MemoryEngine) -> None:
    run(v1, engine)
    asyncio.run(_grow(v1))
    assert run(v1, engine, overwrite_state=True).is_whole
    assert load(engine, "ada", "s 0").state["app:total"] == 99


def test_a_session_that_went_on_in_the_target_is_left_alone(v1: str, engine: MemoryEngine) -> None:
    run(v1, engine)
    append(engine, "ada", "s 0", Event(id="mine", state={"plan": "boat"}))
    assert run(v1, engine).is_whole
    session = load(engine, "ada", "s 0")
    assert (session.events[-1].id, session.state["plan"]) == ("mine", "boat")


def test_sessions_that_have_parted_are_named_and_left_alone(v1: str, engine: MemoryEngine) -> None:
    run(v1, engine)
    append(engine, "ada", "s 0", Event(id="mine"))
    asyncio.run(_grow(v1))
    report = run(v1, engine)
    (conflict,) = (one for one in report.conflicts if one.table == "sessions")
    assert conflict.key == [APP, "ada", "s 0"]
    assert "the two have parted" in conflict.reason
    assert load(engine, "ada", "s 0").events[-1].id == "mine"


def test_an_import_takes_no_key_of_another_app_or_user(v1: str, engine: MemoryEngine) -> None:
    async def before() -> None:
        service = EngineSessionService(engine)
        await service.patch_state(app_name="other", set={"total": 7})
        await service.patch_state(app_name=APP, user_id="eve", set={"lang": "en"})

    async def after() -> tuple[Any, Any]:
        service = EngineSessionService(engine)
        user = await service.get_user_state(app_name=APP, user_id="eve")
        return await service.get_app_state(app_name="other"), user

    asyncio.run(before())
    run(v1, engine)
    assert asyncio.run(after()) == ({"total": 7}, {"lang": "en"})


def test_a_store_that_loses_an_event_is_noticed(v1: str) -> None:
    class Forgetful(MemoryEngine):
        async def append(self, handle: Any, events: Any, **options: Any) -> Any:
            return await super().append(handle, events[:-1], **options)

    with pytest.raises(DamagedDataError, match="did not come back from the target"):
        run(v1, Forgetful())


# -- damaged rows -----------------------------------------------------------------------

DAMAGE = {
    "no JSON": ("event_data = '{'", "event_data is not JSON"),
    "a list": ("event_data = '[1]'", "event_data is a list"),
    "a wrong type": ("event_data = json_set(event_data, '$.author', 5)", r"Event\.author"),
    "no UTF-8": ("event_data = CAST(x'7b22ff227d' AS TEXT)", "event_data cannot be read"),
    "an infinite time": (
        'event_data = replace(event_data, \'"timestamp": \', \'"timestamp": -Infinity, "x": \')',
        "timestamp must be a finite number",
    ),
    "no time": (
        "timestamp = 'noon', event_data = json_remove(event_data, '$.timestamp')",
        "the time 'noon' cannot be read",
    ),
    "deep nesting": (
        "event_data = json_set(event_data, '$.output', json('" + "[" * 200 + "]" * 200 + "'))",
        "nested more than 128 deep",
    ),
    "a long key": (
        f"event_data = json_set(event_data, '$.actions.state_delta.{'k' * 2000}', 1)",
        "at most 1024 are stored",
    ),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_event_is_named_and_kept_aside_and_the_rest_imported(
    damage: str, reason: str, v1: str, engine: MemoryEngine, tmp_path: Path
) -> None:
    change(v1, f"UPDATE events SET {damage} WHERE id = 'event-0-1' AND session_id = 's 0'")
    report = run(v1, engine, quarantine=tmp_path / "kept")
    assert sorted(one.key for one in report.damaged) == sorted(
        [APP, user, "s 0", "event-0-1"] for user in USERS
    )
    (line, _) = map(json.loads, (tmp_path / "kept").read_text().splitlines())
    assert (line["table"], line["row"]["id"]) == ("events", "event-0-1")
    assert line["reason"] == report.damaged[0].reason
    assert re.search(reason, line["reason"])
    assert [event.id for event in load(engine, "ada", "s 0").events][:3] == [
        "event-0-0",
        "event-0-2",
        "event-0-3",
    ]


def test_a_hostile_pickle_in_a_row_runs_nothing_and_is_kept_aside(
    tmp_path: Path, engine: MemoryEngine
) -> None:
    url = make(tmp_path, "v0")
    data = b"cos\nmkdir\n(S'" + str(tmp_path / "ran").encode() + b"'\ntR."
    change(url, f"UPDATE events SET actions = x'{data.hex()}' WHERE id = 'event-0-0'")
    report = run(url, engine, quarantine=tmp_path / "kept")
    assert {one.reason for one in report.damaged} == {
        "the pickle names os.mkdir, which no EventActions needs."
    }
    assert (report.events_added, len(report.damaged)) == (28, 4)
    assert json.loads((tmp_path / "kept").read_text().splitlines()[0])["row"]["actions"]["base64"]
    assert not (tmp_path / "ran").exists()


def test_a_session_whose_state_is_damaged_keeps_its_events(v1: str, engine: MemoryEngine) -> None:
    change(v1, "UPDATE sessions SET state = '[' WHERE user_id = 'ada' AND id = 's 0'")
    report = run(v1, engine)
    assert [(one.table, one.key) for one in report.damaged] == [("sessions", [APP, "ada", "s 0"])]
    session = load(engine, "ada", "s 0")
    assert len(session.events) == 8
    assert "plan" not in session.state


def test_a_key_that_cannot_be_stored_leaves_the_others(v1: str, engine: MemoryEngine) -> None:
    change(
        v1,
        "UPDATE sessions SET state = json_set(state, '$.\"app:own\"', 1, '$.fine', 2) "
        "WHERE user_id = 'ada' AND id = 's 0'",
    )
    (left,) = run(v1, engine).damaged
    assert "'app:own' belongs to another scope" in left.reason
    assert load(engine, "ada", "s 0").state["fine"] == 2


def test_a_session_whose_id_cannot_be_stored_is_kept_aside_with_its_events(
    v1: str, engine: MemoryEngine, tmp_path: Path
) -> None:
    change(
        v1,
        "UPDATE sessions SET id = '' WHERE user_id = 'ada' AND id = 's 0'",
        "UPDATE events SET session_id = '' WHERE user_id = 'ada' AND session_id = 's 0'",
    )
    report = run(v1, engine, quarantine=tmp_path / "kept")
    assert len(report.damaged) == 1 + 8 == len((tmp_path / "kept").read_text().splitlines())
    assert report.sessions_created == 4


@pytest.mark.parametrize("table", ["app_states", "user_states"])
def test_an_apps_or_users_state_that_is_damaged_is_named(
    table: str, v1: str, engine: MemoryEngine
) -> None:
    change(v1, f"UPDATE {table} SET state = '1'")
    report = run(v1, engine)
    assert {one.table for one in report.damaged} == {table}
    assert report.sessions_created == 5


def test_a_quarantine_is_for_its_owner_only(v1: str, engine: MemoryEngine, tmp_path: Path) -> None:
    change(v1, "UPDATE app_states SET state = '1'")
    run(v1, engine, quarantine=tmp_path / "kept")
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0


# -- what is not a database of google-adk's ---------------------------------------------


def refused(source: Any) -> str:
    with pytest.raises(InvalidInputError) as caught:
        run(source, MemoryEngine())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_database_with_other_tables_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE events (id)")
    db.close()
    assert "is no session database of google-adk's" in refused(tmp_path / "other.db")


def test_a_database_of_threadlines_is_refused(v1: str, tmp_path: Path) -> None:
    run(v1, connect(f"sqlite:///{tmp_path}/ours.db"))
    assert "is no session database of google-adk's" in refused(tmp_path / "ours.db")


def test_a_newer_schema_is_refused(v1: str) -> None:
    change(v1, "UPDATE adk_internal_metadata SET value = '2'")
    assert "has schema version 2 of google-adk's; this threadline reads 0 and 1" in refused(v1)


def test_a_file_that_is_not_there_is_refused_and_not_made(tmp_path: Path) -> None:
    assert "There is no database file" in refused(tmp_path / "none.db")
    assert list(tmp_path.iterdir()) == []


def test_a_database_in_memory_is_refused() -> None:
    assert "is gone when it is closed" in refused("sqlite:///:memory:")


# -- stopped in the middle --------------------------------------------------------------

KILLED = """
import asyncio, os, signal, sys
from threadline.connect import connect
from threadline.engines.sqlite import SqliteEngine
from threadline.importers.adk import import_adk

left = int(sys.argv[3])
name = sys.argv[4]
method = getattr(SqliteEngine, name)

async def counted(self, *arguments, **options):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return await method(self, *arguments, **options)

setattr(SqliteEngine, name, counted)
asyncio.run(import_adk(sys.argv[1], connect(sys.argv[2])))
"""


@pytest.mark.parametrize(
    ("calls", "method"), [(0, "create"), (2, "create"), (0, "append"), (3, "append"), (1, "patch")]
)
def test_an_import_that_was_killed_goes_on_and_adds_nothing_twice(
    calls: int, method: str, tmp_path: Path
) -> None:
    # More events than one transaction takes, so that a session can be cut in the middle.
    source = make(tmp_path, "service")
    change(
        source,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 292) "
        "INSERT INTO events SELECT printf('%s %d', id, i), app_name, user_id, session_id, "
        "invocation_id, timestamp + 50 + i, event_data FROM events, n "
        "WHERE session_id = 's 0' AND id = 'event-0-0'",
    )
    target = f"sqlite:///{tmp_path}/target.db"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, source, target, str(calls), method],
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    report = run(source, connect(target))
    assert report.is_whole
    assert report.events == 616 == report.events_added + report.events_present
    for user in USERS:
        session = load(connect(target), user, "s 0")
        assert len({event.id for event in session.events}) == 300 == session.revision


# -- the command ------------------------------------------------------------------------


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["import", "adk", *arguments])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dry_run_reads_everything_and_writes_nothing(v1: str, here: Path) -> None:
    change(v1, "UPDATE events SET event_data = '{' WHERE id = 'event-0-0'")
    before = {path: path.read_bytes() for path in here.iterdir()}
    done = command(v1, "--db", f"sqlite:///{here}/target.db", "--dry-run")
    assert done.exit_code == 1
    assert "5 sessions, 28 events, 0 events of deleted sessions, 4 damaged rows" in done.stdout
    assert "Nothing was written." in done.stdout
    assert {path: path.read_bytes() for path in here.iterdir()} == before


def test_the_command_imports_and_says_so(v1: str, here: Path) -> None:
    done = command(v1, "--db", f"sqlite:///{here}/target.db")
    assert done.exit_code == 0, done.output
    assert "5 sessions created, 32 events added, 0 already there" in done.stdout


def test_the_exit_status_and_the_report_name_damaged_rows(v1: str, here: Path) -> None:
    change(v1, "UPDATE events SET event_data = '{' WHERE id = 'event-0-0' AND user_id = 'ada'")
    done = command(v1, "--db", f"sqlite:///{here}/target.db")
    assert done.exit_code == 1
    assert "Left out events desk ada s 0 event-0-0: event_data is not JSON" in done.stderr
    assert "30 events added" in done.stdout
    assert "Rows that were left out are in v1.db.quarantine.jsonl" in done.stdout
    assert len((here / "v1.db.quarantine.jsonl").read_text().splitlines()) == 2


def test_the_report_is_json_if_asked_for(v1: str, here: Path) -> None:
    done = command(v1, "--db", "memory://", "--json")
    report = json.loads(done.stdout)
    assert (report["sourceSchema"], report["eventsAdded"]) == ("v1", 32)


def test_importing_a_database_into_itself_changes_nothing(v1: str, here: Path) -> None:
    before = (here / "v1.db").read_bytes()
    done = command(v1, "--db", v1)
    assert done.exit_code == 1
    assert "Give threadline a file of its own" in done.stderr
    assert (here / "v1.db").read_bytes() == before


def test_progress_is_told_up_to_the_end(v1: str, engine: MemoryEngine) -> None:
    told: list[Progress] = []
    run(v1, engine, on_progress=told.append)
    assert told[-1] == (32, 32)


def test_a_wal_file_of_a_running_google_adk_can_be_read(v1: str, engine: MemoryEngine) -> None:
    """What is committed counts, also while it is not yet in the file itself."""
    path = v1.partition(":///")[2]
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("UPDATE sessions SET state = '{\"a\": 1}' WHERE id = 'empty'")
    assert os.path.getsize(path + "-wal")
    run(v1, engine)
    db.close()
    assert load(engine, "ada", "empty").state["a"] == 1
