"""The SQLite engine: the kit on a file and in memory, and what is peculiar to it."""

import asyncio
import gc
import os
import re
import sqlite3
import threading
from pathlib import Path

import pytest

from threadline import DatabaseSessionService, clock
from threadline.engines import sqlite
from threadline.engines.sqlite import SqliteEngine
from threadline.testing import EngineSuite, ServiceSuite, run_machine
from threadline.testing.service_suite import IDS, say


class TestSqliteService(ServiceSuite):
    @pytest.fixture
    def service(self, tmp_path):
        return DatabaseSessionService(f"sqlite:///{tmp_path}/sessions.db")


class TestSqliteMemoryService(ServiceSuite):
    @pytest.fixture
    def service(self):
        return DatabaseSessionService("sqlite:///:memory:")


class TestSqliteEngine(EngineSuite):
    @pytest.fixture
    def engine(self, tmp_path):
        return SqliteEngine(str(tmp_path / "sessions.db"))


def machine_on_files(tmp_path, examples):
    steps = run_machine(
        lambda: DatabaseSessionService(f"sqlite:///{tmp_path}/{clock.new_id()}.db"),
        examples=examples,
    )
    print(f"\n{steps} calls on a SQLite file agreed with the reference")
    return steps


def test_hostile_calls_agree_with_the_reference(tmp_path):
    assert machine_on_files(tmp_path, examples=25) > 500


@pytest.mark.soak
def test_ten_thousand_hostile_calls_agree_with_the_reference(tmp_path):
    examples = int(os.environ.get("THREADLINE_SOAK_EXAMPLES", "400"))
    steps = machine_on_files(tmp_path, examples=examples)
    assert steps >= 25 * examples


def test_hostile_calls_in_memory_agree_with_the_reference():
    run_machine(lambda: DatabaseSessionService("sqlite:///:memory:"), examples=10, reopens=False)


# -- what is peculiar to SQLite ---------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "sessions.db")


def on_file(path, use, **options):
    async def run():
        async with DatabaseSessionService(f"sqlite:///{path}", **options) as service:
            return await use(service)

    return asyncio.run(run())


def test_every_read_on_the_way_of_a_turn_uses_an_index(path):
    on_file(path, lambda service: service.create_session(**IDS))
    db = sqlite3.connect(path)
    statements = [
        sqlite.SQL[name]
        for name in sqlite.SQL
        if name.startswith(("select_", "bump_", "delete_"))
        and name not in {"select_sessions", "select_tables", "select_version"}
    ]
    statements += sqlite._SELECT_SESSIONS.values()
    for statement in statements:
        names = set(re.findall(r":(\w+)", statement))
        values = dict.fromkeys(names, 1) if names else (1,) * statement.count("?")
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
        assert all(" USING " in step or "PART OF ORDER BY" in step for step in plan), (
            statement,
            plan,
        )
    db.close()


def test_no_sql_is_written_in_python():
    source = Path(sqlite.__file__).read_text()
    assert not re.search(r"\b(SELECT .* FROM|INSERT INTO|UPDATE \w+ SET|DELETE FROM)\b", source)
    unused = [name for name in sqlite.SQL if f'SQL["{name}"]' not in source]
    assert unused == []


@pytest.mark.parametrize("is_whole_user", [False, True])
def test_what_is_deleted_is_overwritten_in_the_file(path, is_whole_user):
    marker = "marker-7f3a"

    async def use(service):
        session = await service.create_session(**IDS, state={"secret": marker})
        await service.append_events(session, [say(marker * 50) for _ in range(100)])
        if is_whole_user:
            await service.patch_state(**IDS, set={"secret": marker})
            await service.erase_user(**IDS)
        else:
            await service.delete_session(**IDS, session_id=session.id)

    on_file(path, use)  # closing writes the log back into the file and removes it
    assert sorted(os.listdir(os.path.dirname(path))) == ["sessions.db"]
    with open(path, "rb") as file:
        assert marker.encode() not in file.read()


def test_views_have_readable_names(path):
    async def use(service):
        session = await service.create_session(**IDS, session_id="s", state={"k": 1})
        await service.append_event(session, say("hello"))

    on_file(path, use)
    db = sqlite3.connect(path)
    query = "SELECT app_name, user_id, session_id, seq, event ->> 'author' FROM threadline_events"
    assert db.execute(query).fetchall() == [("app", "user", "s", 1, "user")]
    query = "SELECT session_id, key, value FROM threadline_session_state"
    assert db.execute(query).fetchall() == [("s", "k", "1")]
    assert db.execute("SELECT revision FROM threadline_sessions").fetchall() == [(1,)]
    db.close()


def test_concurrent_appends_share_commits(path):
    async def use(service):
        sessions = [await service.create_session(**IDS) for _ in range(64)]
        commits = []
        service._engine._writer._db.set_trace_callback(
            lambda sql: commits.append(sql) if sql == "COMMIT" else None
        )
        await asyncio.gather(*(service.append_event(session, say()) for session in sessions))
        return len(commits)

    assert on_file(path, use) < 64


def test_durability_sets_how_sqlite_syncs(path):
    async def synchronous(service):
        db = service._engine._writer._db
        return db.execute("PRAGMA synchronous").fetchone()[0]

    assert on_file(path, synchronous) == 2
    assert on_file(path, synchronous, durability="normal") == 1


def test_two_services_see_each_others_appends_at_once(path):
    async def use(service):
        async with DatabaseSessionService(f"sqlite:///{path}") as other:
            session = await service.create_session(**IDS)
            for n in range(20):
                await service.append_event(session, say(str(n)))
                found = await other.get_session(**IDS, session_id=session.id)
                assert found.revision == n + 1

    on_file(path, use)


def test_a_closed_service_opens_again_by_itself(path):
    async def use(service):
        session = await service.create_session(**IDS)
        await service.close()
        await service.append_event(session, say())
        return (await service.get_session(**IDS, session_id=session.id)).revision

    assert on_file(path, use) == 1


def test_a_forgotten_service_leaves_no_thread(path):
    async def use():
        service = DatabaseSessionService(f"sqlite:///{path}")
        await service.create_session(**IDS)

    before = threading.active_count()
    asyncio.run(use())
    gc.collect()
    assert threading.active_count() == before


def test_the_file_survives_without_close(path):
    async def use():
        service = DatabaseSessionService(f"sqlite:///{path}")
        session = await service.create_session(**IDS)
        await service.append_event(session, say())
        return session.id, service

    session_id, _kept_open = asyncio.run(use())
    found = on_file(path, lambda service: service.get_session(**IDS, session_id=session_id))
    assert found.revision == 1


def test_append_writes_do_not_grow_with_the_history_or_the_state(path):
    """Pages written by one append, counted in the log, at both ends of a session's life."""

    async def pages_of_one_append(service, session):
        db = service._engine._writer._db
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        await service.append_event(session, say("x" * 300, state={"k": 1}))
        return db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]

    async def use(service):
        session = await service.create_session(**IDS)
        first = await pages_of_one_append(service, session)
        await service.append_event(session, say(state={f"key{n}": n for n in range(2000)}))
        for _ in range(10):
            await service.append_events(session, [say("x" * 300) for _ in range(500)])
        return first, await pages_of_one_append(service, session)

    first, last = on_file(path, use)
    assert last <= first + 6  # deeper trees, not longer writes


def test_bytes_on_disk_stay_within_one_and_a_half_times_the_events(path):
    async def use(service):
        session = await service.create_session(**IDS)
        events = [
            say("x" * 300, invocation_id=f"e-{n}", state={f"k{n % 10}": n} if n % 3 == 0 else {})
            for n in range(2000)
        ]
        for event in events:
            await service.append_event(session, event)
        return sum(len(event.to_json()) for event in events)

    size = on_file(path, use)
    assert os.path.getsize(path) <= 1.5 * size


def test_a_page_of_a_long_session_reads_only_its_rows(path):
    """SQLite's own count of rows visited by the statement that reads a page."""

    async def use(service):
        session = await service.create_session(**IDS)
        for _ in range(4):
            await service.append_events(session, [say() for _ in range(500)])
        return session.incarnation

    no = on_file(path, use)
    db = sqlite3.connect(path)
    steps = 0

    def count():
        nonlocal steps
        steps += 1

    for after in (0, 1000, 1900):
        steps = 0
        db.set_progress_handler(count, 1)
        values = {
            "after": no << 32 | after,
            "before": (no + 1) << 32,
            "since": float("-inf"),
            "limit": 50,
        }
        assert len(db.execute(sqlite.SQL["select_events"], values).fetchall()) == 50
        assert steps < 50 * 20
        db.set_progress_handler(None, 0)
    db.close()
