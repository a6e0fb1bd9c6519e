"""Tables are made once, recorded, and never touched when they are current."""

import asyncio
import re
import sqlite3

import pytest

from threadline import (
    DatabaseSessionService,
    NewerSchemaError,
    OutdatedSchemaError,
    UnsupportedUrlError,
    migrations,
)
from threadline.engines.sqlite import SqliteEngine
from threadline.testing.service_suite import IDS


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "sessions.db")


def schema(path):
    db = sqlite3.connect(path)
    rows = db.execute(
        "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
    ).fetchall()
    db.close()
    return rows


async def create_one(path, **options):
    async with DatabaseSessionService(f"sqlite:///{path}", **options) as service:
        return await service.create_session(**IDS)


async def with_engine(path, use):
    engine = SqliteEngine(path)
    await engine.open()
    try:
        return await use(engine)
    finally:
        await engine.close()


def test_files_are_numbered_without_a_gap_and_named():
    steps = migrations.load("sqlite")
    assert [step.version for step in steps] == list(range(1, len(steps) + 1))
    assert all(re.fullmatch(r"\d{4}_[a-z_]+", step.name) for step in steps)


def test_first_use_makes_the_tables_and_records_it(path):
    asyncio.run(create_one(path))
    status = asyncio.run(with_engine(path, migrations.status))
    assert (status.version, status.pending) == (status.latest, [])


def test_a_new_file_has_everything_pending(path):
    status = asyncio.run(with_engine(path, migrations.status))
    assert status.version is None
    assert status.pending == [step.name for step in migrations.load("sqlite")]


def test_upgrade_runs_what_is_due_and_nothing_twice(path):
    names = [step.name for step in migrations.load("sqlite")]
    assert asyncio.run(with_engine(path, migrations.upgrade)) == names
    assert asyncio.run(with_engine(path, migrations.upgrade)) == []


def test_the_printed_ddl_makes_the_same_tables(path, tmp_path):
    asyncio.run(create_one(path))
    by_hand = str(tmp_path / "by_hand.db")
    db = sqlite3.connect(by_hand)
    db.executescript(migrations.ddl("sqlite"))
    db.close()
    assert schema(by_hand) == schema(path)
    status = asyncio.run(with_engine(by_hand, migrations.status))
    assert status.pending == []


def test_many_services_starting_at_once_make_the_tables_once(path):
    async def start():
        services = [DatabaseSessionService(f"sqlite:///{path}") for _ in range(10)]
        await asyncio.gather(*(service.create_session(**IDS) for service in services))
        listed = await services[0].list_sessions(app_name=IDS["app_name"])
        for service in services:
            await service.close()
        return len(listed.sessions)

    assert asyncio.run(start()) == 10


def test_no_ddl_runs_when_the_tables_are_current(path):
    asyncio.run(create_one(path))
    before = sqlite3.connect(path).execute("PRAGMA schema_version").fetchone()
    asyncio.run(create_one(path, auto_migrate=False))
    assert sqlite3.connect(path).execute("PRAGMA schema_version").fetchone() == before


def test_without_auto_migrate_missing_tables_are_named(path):
    with pytest.raises(OutdatedSchemaError, match="0001_sessions.*threadline db upgrade"):
        asyncio.run(create_one(path, auto_migrate=False))
    assert schema(path) == []


def test_a_newer_schema_is_refused(path):
    asyncio.run(create_one(path))
    db = sqlite3.connect(path)
    with db:
        db.execute("INSERT INTO threadline_migration (version, name) VALUES (9999, 'later')")
    db.close()
    with pytest.raises(NewerSchemaError, match="9999.*Upgrade threadline"):
        asyncio.run(create_one(path))


def test_foreign_tables_are_left_alone(path):
    db = sqlite3.connect(path)
    with db:
        db.execute("CREATE TABLE orders (id INTEGER)")
        db.execute("INSERT INTO orders VALUES (7)")
    db.close()
    asyncio.run(create_one(path))
    assert sqlite3.connect(path).execute("SELECT id FROM orders").fetchall() == [(7,)]


def test_a_failed_migration_leaves_nothing_behind(path):
    good, *_ = migrations.load("sqlite")
    bad = type(good)(version=2, name="0002_bad", sql="CREATE TABLE half (x);\nCREATE TABEL y;\n")

    async def run(engine):
        await engine.migrate([good])
        with pytest.raises(Exception, match="syntax error"):
            await engine.migrate([good, bad])
        return await engine.version()

    assert asyncio.run(with_engine(path, run)) == 1
    assert "half" not in {name for _, name, _ in schema(path)}


def test_an_unknown_dialect_has_no_tables():
    with pytest.raises(UnsupportedUrlError, match="oracle"):
        migrations.ddl("oracle")
