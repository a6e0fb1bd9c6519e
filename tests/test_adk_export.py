"""What threadline exports is a database of google-adk's, and google-adk reads what was there."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from google.adk.events.event import Event as AdkEvent
from typer.testing import CliRunner

from adk_databases import (
    APP,
    RELEASES,
    SHARED,
    START,
    adk_service,
    make,
    need_sqlalchemy,
    new_database,
    read,
    said,
)
from threadline import (
    DatabaseSessionService,
    EngineSessionService,
    Event,
    InMemorySessionService,
    InvalidInputError,
)
from threadline.cli import app
from threadline.connect import connect
from threadline.engines.memory import MemoryEngine
from threadline.importers.adk import import_adk
from threadline.importers.adk_export import ExportReport, export_adk

SERVERS = ("postgres", "mysql")
DRIVERS = {"postgres": "+asyncpg://", "mysql": "+asyncmy://"}


@pytest.fixture(autouse=True)
def _adk_is_whole() -> None:
    need_sqlalchemy()


@pytest.fixture
def service() -> InMemorySessionService:
    return InMemorySessionService()


def export(service: Any, target: Any, *app_names: str) -> ExportReport:
    return asyncio.run(export_adk(service, target, app_names=app_names or (APP,)))


def fill(service: Any, *events: Event, session_id: str = "s", **session: Any) -> None:
    async def work() -> None:
        created = await service.create_session(
            app_name=APP, user_id="ada", session_id=session_id, **session
        )
        for event in events:
            await service.append_event(created, event)

    asyncio.run(work())


def read_back(target: Path) -> Any:
    (session,) = asyncio.run(read(f"sqlite+aiosqlite:///{target}"))
    return session


# -- there and back ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [RELEASES[0], *(pytest.param(name, marks=pytest.mark.soak) for name in RELEASES[1:])],
)
def test_google_adk_opens_what_came_from_a_release_and_reads_the_same(
    name: str, tmp_path: Path
) -> None:
    if not SHARED.exists():
        pytest.skip(f"NOT TESTED on {name}: {SHARED} is not there")
    users = json.loads((SHARED / f"{name}.expected.json").read_text())["users"]

    async def work() -> None:
        engine = MemoryEngine()
        await import_adk(SHARED / f"{name}.db", engine)
        apps = {user["app_name"] for user in users}
        await export_adk(EngineSessionService(engine), tmp_path / "adk.db", app_names=sorted(apps))
        async with adk_service(f"sqlite+aiosqlite:///{tmp_path}/adk.db") as adk:
            for user in users:
                ids = {"app_name": user["app_name"], "user_id": user["user_id"]}
                for session in user["sessions"]:
                    found = await adk.get_session(**ids, session_id=session["id"])
                    assert found is not None
                    assert found.state == session["state"]
                    assert list(map(said, found.events)) == list(map(said, session["events"]))

    asyncio.run(work())


def test_google_adk_reads_from_the_export_what_it_reads_from_its_own_file(tmp_path: Path) -> None:
    url, engine = make(tmp_path, "v1"), MemoryEngine()
    asyncio.run(import_adk(url, engine))
    export(EngineSessionService(engine), tmp_path / "back.db")
    theirs = asyncio.run(read(url))
    mine = asyncio.run(read(f"sqlite+aiosqlite:///{tmp_path}/back.db"))
    assert [session.model_dump() for session in mine] == [
        session.model_dump() for session in theirs
    ]


@pytest.mark.parametrize("server", SERVERS)
def test_google_adk_opens_the_export_on_a_server(server: str, tmp_path: Path) -> None:
    url, engine = make(tmp_path, "v1"), MemoryEngine()
    asyncio.run(import_adk(url, engine))
    with new_database(server) as target:
        their_url = target.replace("://", DRIVERS[server])
        export(EngineSessionService(engine), their_url)
        mine = asyncio.run(read(their_url))
    theirs = asyncio.run(read(url))
    assert [session.model_dump() for session in mine] == [
        session.model_dump() for session in theirs
    ]


def test_google_adk_goes_on_with_an_exported_session(
    service: InMemorySessionService, tmp_path: Path
) -> None:
    fill(service, Event(id="first", timestamp=START, state={"user:x": 1}))
    export(service, tmp_path / "adk.db")

    async def go_on() -> Any:
        async with adk_service(f"sqlite+aiosqlite:///{tmp_path}/adk.db") as adk:
            ids = {"app_name": APP, "user_id": "ada", "session_id": "s"}
            session = await adk.get_session(**ids)
            await adk.append_event(session, AdkEvent(id="next", author="a", state={"app:y": 2}))
            return await adk.get_session(**ids)

    session = asyncio.run(go_on())
    assert [event.id for event in session.events] == ["first", "next"]
    assert session.state == {"user:x": 1, "app:y": 2}


def test_an_export_can_be_imported_again(service: InMemorySessionService, tmp_path: Path) -> None:
    events = [Event(id=id, timestamp=START, message="é\u2028") for id in ("z", "m", "b")]
    fill(service, *events, state={"a": 2**70, "app:b": None})
    export(service, tmp_path / "adk.db")
    engine = MemoryEngine()
    asyncio.run(import_adk(tmp_path / "adk.db", engine))

    async def load(service: Any) -> Any:
        return await service.get_session(app_name=APP, user_id="ada", session_id="s")

    before, after = asyncio.run(load(service)), asyncio.run(load(EngineSessionService(engine)))
    assert list(after.events) == list(before.events)
    assert after.state == before.state
    assert after.create_time == pytest.approx(before.create_time, abs=1e-6)


# -- the order --------------------------------------------------------------------------


def test_google_adk_reads_the_stores_order_whatever_the_clock_said(
    service: InMemorySessionService, tmp_path: Path
) -> None:
    times = {"z": START, "m": START, "b": START - 60, "a": START + 1}
    fill(service, *(Event(id=id, timestamp=time) for id, time in times.items()))
    report = export(service, tmp_path / "adk.db")
    session = read_back(tmp_path / "adk.db")
    assert {event.id: event.timestamp for event in session.events} == times
    assert [event.id for event in session.events] == list(times)
    assert report.events_moved == 2


# -- the tables are google-adk's --------------------------------------------------------


def test_the_tables_of_a_file_are_those_that_google_adk_makes(
    service: InMemorySessionService, tmp_path: Path
) -> None:
    fill(service)
    export(service, tmp_path / "ours.db")
    theirs = make(tmp_path, "v1").partition(":///")[2]
    assert _tables_of_file(tmp_path / "ours.db") == _tables_of_file(theirs)


def _tables_of_file(path: Any) -> dict[str, str]:
    with sqlite3.connect(path) as db:
        found = db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    db.close()
    return {name: "".join(sql.split()) for name, sql in found}


CATALOGUE = {
    "postgres": (
        (
            "SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, "
            "datetime_precision, column_default FROM information_schema.columns "
            "WHERE table_schema = 'public' ORDER BY 1, ordinal_position"
        ),
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
        (
            "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2"
        ),
    ),
    "mysql": (
        (
            "SELECT table_name, column_name, column_type, is_nullable, character_set_name, "
            "column_default, extra FROM information_schema.columns WHERE table_schema = DATABASE() "
            "ORDER BY 1, ordinal_position"
        ),
        (
            "SELECT table_name, index_name, seq_in_index, column_name, collation, non_unique "
            "FROM information_schema.statistics WHERE table_schema = DATABASE() ORDER BY 1, 2, 3"
        ),
        (
            "SELECT table_name, constraint_name, update_rule, delete_rule, referenced_table_name "
            "FROM information_schema.referential_constraints "
            "WHERE constraint_schema = DATABASE() ORDER BY 1"
        ),
    ),
}


@pytest.mark.parametrize("server", SERVERS)
def test_the_tables_on_a_server_are_those_that_google_adk_makes(
    server: str, service: InMemorySessionService
) -> None:
    fill(service)
    with new_database(server) as ours, new_database(server) as theirs:
        export(service, ours)

        async def their_tables() -> None:
            async with adk_service(theirs.replace("://", DRIVERS[server])) as adk:
                await adk.prepare_tables()

        asyncio.run(their_tables())
        catalogues = [_catalogue(server, url) for url in (ours, theirs)]
    assert catalogues[0] == catalogues[1]


def _catalogue(server: str, url: str) -> list[list[tuple[Any, ...]]]:
    async def work() -> list[list[tuple[Any, ...]]]:
        async with connect(url).connection() as db:
            if server == "postgres":
                return [[tuple(row) for row in await db.fetch(sql)] for sql in CATALOGUE[server]]
            found = []
            async with db.cursor() as cursor:
                for sql in CATALOGUE[server]:
                    await cursor.execute(sql)
                    found.append(list(await cursor.fetchall()))
            return found

    return asyncio.run(work())


# -- what google-adk has no place for ---------------------------------------------------


def test_what_google_adk_has_no_place_for_is_counted(
    service: InMemorySessionService, tmp_path: Path
) -> None:
    fill(service, display_name="Trip", labels={"a": "b"}, ttl=3600)
    report = export(service, tmp_path / "adk.db")
    assert (report.display_names, report.labels, report.expire_times) == (1, 1, 1)


def test_fields_that_are_unknown_are_written_and_counted(
    service: InMemorySessionService, tmp_path: Path
) -> None:
    fill(service, Event.from_dict({"id": "a", "timestamp": START, "fromTomorrow": 1}))
    assert export(service, tmp_path / "adk.db").events_with_unknown_fields == 1
    with sqlite3.connect(tmp_path / "adk.db") as db:
        ((data,),) = db.execute("SELECT event_data FROM events").fetchall()
    db.close()
    assert json.loads(data)["fromTomorrow"] == 1
    assert [event.id for event in read_back(tmp_path / "adk.db").events] == ["a"]


def test_not_a_number_reaches_google_adk(service: InMemorySessionService, tmp_path: Path) -> None:
    fill(service, Event(id="a", timestamp=START, state={"inf": float("inf")}))
    export(service, tmp_path / "adk.db")
    assert read_back(tmp_path / "adk.db").state == {"inf": float("inf")}


@pytest.mark.parametrize("server", SERVERS)
def test_a_session_that_does_not_fit_is_named_and_the_others_written(
    server: str, service: InMemorySessionService
) -> None:
    long = "x" * 200
    fill(service, Event(id="a", timestamp=START), session_id=long)
    fill(service, Event(id="b", timestamp=START, message="fine"))
    with new_database(server) as target:
        report = export(service, target)
        sessions = asyncio.run(read(target.replace("://", DRIVERS[server])))
    assert [one.session_id for one in report.refused] == [long]
    assert [session.id for session in sessions] == ["s"]


def test_what_postgresql_cannot_store_is_named(service: InMemorySessionService) -> None:
    fill(service, state={"nul": "a\0b"}, session_id="bad")
    fill(service, Event(id="b", timestamp=START))
    with new_database("postgres") as target:
        report = export(service, target)
    assert [one.session_id for one in report.refused] == ["bad"]
    assert report.sessions == 1


# -- where it goes ----------------------------------------------------------------------


def test_a_file_that_exists_is_not_touched(service: InMemorySessionService, tmp_path: Path) -> None:
    fill(service)
    (tmp_path / "adk.db").write_text("mine")
    with pytest.raises(InvalidInputError, match=r"adk\.db exists; export into a new file"):
        export(service, tmp_path / "adk.db")
    assert (tmp_path / "adk.db").read_text() == "mine"


@pytest.mark.parametrize("server", SERVERS)
def test_tables_that_exist_are_not_touched(server: str, service: InMemorySessionService) -> None:
    fill(service)
    with new_database(server) as target:
        export(service, target)
        with pytest.raises(InvalidInputError, match="has tables with the names of google-adk's"):
            export(service, target)


def test_an_export_that_fails_leaves_nothing(
    service: InMemorySessionService, tmp_path: Path
) -> None:
    fill(service)
    with pytest.raises(InvalidInputError, match="App 'typo' has no sessions"):
        export(service, tmp_path / "adk.db", APP, "typo")
    assert list(tmp_path.iterdir()) == []


# -- the command ------------------------------------------------------------------------


def test_the_command_exports_and_says_what_is_left_out(tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path}/ours.db"

    async def work() -> None:
        async with DatabaseSessionService(db) as service:
            session = await service.create_session(
                app_name=APP, user_id="ada", session_id="s", display_name="Trip"
            )
            await service.append_event(session, Event(id="a", timestamp=START))

    asyncio.run(work())
    target = tmp_path / "adk.db"
    done = CliRunner().invoke(app, ["export", "adk", str(target), "--db", db, "--app", APP])
    assert done.exit_code == 0, done.output
    assert "1 sessions of 1 users, 1 events written" in done.stdout
    assert "1 display names were left out: google-adk has no place for them" in done.stdout
    assert [event.id for event in read_back(target).events] == ["a"]
