"""The PostgreSQL engine: the kit on real servers, and what is peculiar to it."""

import asyncio
import contextlib
import itertools
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

import servers
from threadline import (
    DatabaseSessionService,
    OutdatedSchemaError,
    StorageError,
    StorageUnavailableError,
    ThreadlineError,
    migrations,
)
from threadline.connect import connect
from threadline.engines import postgres
from threadline.engines.base import session_key
from threadline.testing import EngineSuite, ServiceSuite, run_machine
from threadline.testing.service_suite import IDS, say

_numbers = itertools.count(1)


@pytest.fixture(
    scope="module",
    # One release with every run; the newer one, which a wheel brings, with the long ones.
    params=["found", pytest.param("wheel", marks=pytest.mark.soak)],
)
def database(request):
    """Return the URL of a new database on each of the servers."""
    with servers.new_database(servers.postgres(request.param)) as url:
        yield url


@pytest.fixture
def schema():
    """Return a schema's name that no other test has."""
    return f"test {next(_numbers)}"


class TestPostgresService(ServiceSuite):
    @pytest.fixture
    def service(self, database, schema):
        return DatabaseSessionService(database, schema=schema)


@pytest.mark.soak
class TestPostgresWithoutStatementCache(ServiceSuite):
    @pytest.fixture
    def service(self, database, schema):
        return DatabaseSessionService(f"{database}?statement_cache_size=0", schema=schema)


class TestPostgresEngine(EngineSuite):
    @pytest.fixture
    def engine(self, database, schema):
        return connect(database, schema=schema)


def machine(database, examples):
    steps = run_machine(
        lambda: DatabaseSessionService(database, schema=f"machine {next(_numbers)}"),
        examples=examples,
    )
    print(f"\n{steps} calls on PostgreSQL agreed with the reference")
    return steps


def test_hostile_calls_agree_with_the_reference(database):
    assert machine(database, examples=10) > 200


@pytest.mark.soak
def test_ten_thousand_hostile_calls_agree_with_the_reference(database):
    examples = int(os.environ.get("THREADLINE_SOAK_EXAMPLES", "400"))
    assert machine(database, examples) >= 25 * examples


# -- what is peculiar to PostgreSQL -----------------------------------------------------


def using(database, schema, use, **options):
    async def run():
        async with DatabaseSessionService(database, schema=schema, **options) as service:
            return await use(service)

    return asyncio.run(run())


def ask(database, query, *values):
    async def run():
        db = await asyncpg.connect(database)
        try:
            return await db.fetch(query, *values)
        finally:
            await db.close()

    return asyncio.run(run())


async def stored(service, sessions):
    """Return how many events each session holds, having checked that each is there once."""
    counts = []
    for session in sessions:
        found = await service.get_session(**IDS, session_id=session.id)
        assert len({event.id for event in found.events}) == len(found.events)
        counts.append(len(found.events))
    return counts


def test_no_sql_is_written_in_python():
    modules = Path(postgres.__file__).parent.glob("postgres*.py")
    source = "".join(module.read_text() for module in modules)
    assert not re.search(r"\b(SELECT .* FROM|INSERT INTO|UPDATE \w+ SET|DELETE FROM)\b", source)
    named = set(re.findall(r'"(\w+)"', source))
    assert named >= set(postgres.SQL)


def test_every_statement_names_the_schema():
    for name, text in postgres.SQL.items():
        tables = re.findall(r"(\S*)\bthreadline_\w+", text)
        assert set(tables) <= {"{schema}."}, name


def test_every_statement_uses_an_index(database, schema):
    """Also where a table is so small that reading it whole would be cheaper."""

    async def use(service):
        session = await service.create_session(**IDS, state={"k": 1})
        await service.append_event(session, say())
        engine = service._engine
        statements = {
            name: text
            for name, text in engine._sql.items()
            if name not in {"load", "select_sessions", "create_schema"}
        }
        statements |= {f"load {newest}": text for newest, text in engine._load.items()}
        statements |= {f"sessions {how}": text for how, text in engine._sessions.items()}
        db = await asyncpg.connect(database)
        await db.execute("SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan")
        for name, text in statements.items():
            count = len((await db.prepare(text)).get_parameters())
            await db.execute(f"PREPARE one AS {text}")
            values = f"({', '.join(['NULL'] * count)})" if count else ""
            plan = "\n".join(row[0] for row in await db.fetch(f"EXPLAIN EXECUTE one{values}"))
            await db.execute("DEALLOCATE one")
            scans = re.findall(r"Seq Scan on (threadline_\w+)", plan)
            # The ledger has a row or two.
            assert set(scans) <= {"threadline_migration"}, (name, plan)
        await db.close()

    using(database, schema, use)


def test_an_append_is_one_round_trip(database, schema):
    async def use(service):
        session = await service.create_session(**IDS)
        event = say(state={"k": 1, "user:k": 2, "app:k": 3})
        await service.append_event(session, say())  # prepares the statements
        await service.append_event(session, event)
        sent = []
        ((link, _),) = service._engine._desks.here().pool._idle
        link.db.add_query_logger(lambda record: sent.append(record.query))
        await service.append_event(session, say())
        await service.append_event(session, say(state={"k": 1, "user:k": 2, "app:k": 3}))
        await service.append_events(session, [say() for _ in range(10)])
        await service.get_session(**IDS, session_id=session.id)
        await service.list_sessions(app_name="app")
        return sent

    assert len(using(database, schema, use, pool_max=1)) == 5


def test_a_rebase_holds_the_session_for_one_round_trip(database, schema):
    """One finds out that the handle is stale, one appends, one reads what the handle missed."""

    async def use(service):
        session = await service.create_session(**IDS)
        stale = await service.get_session(**IDS, session_id=session.id)
        missed = await service.append_events(session, [say(), say()])
        sent = []
        ((link, _),) = service._engine._desks.here().pool._idle
        link.db.add_query_logger(lambda record: sent.append(record.query))
        stored = await service.append_event(stale, say(state={"k": 1}), on_stale="rebase")
        assert list(stale.events) == [*missed, stored]
        assert stored.seq == stale.revision == 3
        await asyncio.sleep(0)  # the driver tells of a query a moment later
        names = {text: name for name, text in service._engine._sql.items()}
        return [names[text] for text in sent if text in names]

    sent = using(database, schema, use, pool_max=1)
    assert sent == ["append_next_with_state", "append_rebased", "select_events"]


def test_a_new_connection_does_not_ask_again_what_built_in_types_are(database, schema):
    async def use(service):
        session = await service.create_session(**IDS)
        await service.append_event(session, say(state={"k": 1}))

    using(database, schema, use)
    sent = []

    async def connect_with(url, **options):
        db = await asyncpg.connect(url, **options)
        db.add_query_logger(lambda record: sent.append(record.query))
        return db

    using(database, schema, use, connect_with=connect_with)
    assert sent
    assert not [query for query in sent if "pg_type" in query or "jit" in query]


def test_without_group_commit_every_append_has_its_own_transaction(database, schema):
    sent = []

    async def connect_with(url, **options):
        db = await asyncpg.connect(url, **options)
        db.add_query_logger(lambda record: sent.append(record.query))
        return db

    async def use(service):
        sessions = [await service.create_session(**IDS) for _ in range(20)]
        await asyncio.gather(*(service.append_event(session, say()) for session in sessions))
        return await stored(service, sessions)

    found = using(
        f"{database}?group_commit=off", schema, use, connect_with=connect_with, pool_max=4
    )
    assert found == [1] * 20
    assert not any("SKIP LOCKED" in text for text in sent)


def test_concurrent_appends_share_transactions(database, schema):
    async def use(service):
        sessions = [await service.create_session(**IDS) for _ in range(64)]
        db = await asyncpg.connect(database)
        before = await db.fetchval("SELECT txid_current()")
        await asyncio.gather(
            *(service.append_event(session, say(state={"k": 1})) for session in sessions)
        )
        after = await db.fetchval("SELECT txid_current()")
        await db.close()
        assert await stored(service, sessions) == [1] * 64
        return after - before

    assert using(database, schema, use) < 64


def test_appends_of_one_batch_that_set_the_same_keys_are_all_stored(database, schema):
    async def use(service):
        sessions = [await service.create_session(**IDS) for _ in range(30)]
        await asyncio.gather(
            *(
                service.append_event(session, say(state={"app:k": n, "user:k": n, "k": n}))
                for n, session in enumerate(sessions)
            )
        )
        for n, session in enumerate(sessions):
            found = await service.get_session(**IDS, session_id=session.id)
            assert found.state["k"] == n
        assert found.state["app:k"] in range(30)

    using(database, schema, use)


def test_a_repeated_event_in_a_batch_does_not_spoil_the_others(database, schema):
    async def use(service):
        sessions = [await service.create_session(**IDS) for _ in range(20)]
        events = [say() for _ in sessions]
        for session, event in zip(sessions[:5], events, strict=False):
            await service.append_event(session, event)
        results = await asyncio.gather(
            *(service.append_event(s, e) for s, e in zip(sessions, events, strict=True))
        )
        assert [event.seq for event in results] == [1] * 20
        assert await stored(service, sessions) == [1] * 20

    using(database, schema, use)


def test_a_locked_session_does_not_hold_up_the_others(database, schema):
    async def use(service):
        sessions = [await service.create_session(**IDS) for _ in range(20)]
        other = await asyncpg.connect(database)
        transaction = other.transaction()
        await transaction.start()
        lock = service._engine._sql["lock_session"]
        key = session_key(*IDS.values(), sessions[-1].id)
        await other.fetch(lock, key.owner, key.session)
        blocked = asyncio.create_task(service.append_event(sessions[-1], say()))
        await asyncio.gather(*(service.append_event(session, say()) for session in sessions[:-1]))
        await asyncio.gather(*(service.append_event(session, say()) for session in sessions[:-1]))
        assert not blocked.done()
        await transaction.rollback()
        await other.close()
        assert (await blocked).seq == 1

    using(database, schema, use)


def test_an_append_takes_no_lock_on_state_that_it_does_not_write(database, schema):
    async def use(service):
        session = await service.create_session(**IDS, state={"app:k": 1, "user:k": 1})
        other = await asyncpg.connect(database)
        transaction = other.transaction()
        await transaction.start()
        await other.execute(f'UPDATE "{schema}".threadline_state SET value = value')
        stored = await service.append_event(session, say())
        await service.append_event(session, say(state={"mine": 1}))
        await transaction.rollback()
        await other.close()
        return stored.seq

    assert using(database, schema, use, busy_timeout_s=5.0) == 1


def test_increments_of_a_key_that_was_not_there_are_not_lost(database, schema):
    async def use(service):
        user = {"app_name": "app", "user_id": "user"}
        await asyncio.gather(*(service.patch_state(**user, increment={"n": 1}) for _ in range(40)))
        return await service.get_user_state(**user)

    assert using(database, schema, use) == {"n": 40}


def test_patches_and_appends_of_many_keys_do_not_deadlock(database, schema):
    async def use(service):
        sessions = [await service.create_session(**IDS) for _ in range(8)]
        keys = [f"k{n}" for n in range(8)]

        async def work(n):
            names = keys[n:] + keys[:n]
            for _ in range(10):
                await service.patch_state(
                    app_name="app", user_id="user", increment=dict.fromkeys(names, 1)
                )
                delta = {f"user:other{name}": n for name in names}
                await service.append_event(sessions[n], say(state=delta))

        await asyncio.gather(*(work(n) for n in range(8)))
        state = await service.get_user_state(app_name="app", user_id="user")
        return {state[key] for key in keys}

    assert using(database, schema, use) == {80}


def test_two_products_share_a_database_by_their_schemas(database, schema):
    using(database, f"{schema} one", lambda service: service.create_session(**IDS, session_id="s"))
    using(database, f'{schema} "two"', lambda service: service.create_session(**IDS))
    for name in (f"{schema} one", f'{schema} "two"'):
        listed = using(database, name, lambda service: service.list_sessions(app_name="app"))
        assert len(listed.sessions) == 1


def test_foreign_tables_are_left_alone(database):
    with servers.new_database(database) as url:
        servers.on_server(
            url,
            "CREATE TABLE orders (id integer)",
            "CREATE TABLE sessions (id integer)",
            "INSERT INTO orders VALUES (7)",
        )
        before = servers.on_server(url, TABLES)
        using(url, "public", lambda service: service.create_session(**IDS))
        kept = [row for row in servers.on_server(url, TABLES) if "threadline" not in row[0]]
        assert kept == before
        assert servers.on_server(url, "SELECT id FROM orders")[0][0] == 7


TABLES = (
    "SELECT relname, oid, relfilenode FROM pg_class WHERE relnamespace = 'public'::regnamespace"
)


def test_current_tables_need_no_right_to_make_any(database):
    with servers.new_database(database) as url:
        using(url, None, lambda service: service.create_session(**IDS))
        role = f"reader_{next(_numbers)}_{os.getpid()}"
        servers.on_server(
            url,
            f"CREATE ROLE {role} LOGIN PASSWORD 'x'",
            "REVOKE CREATE ON SCHEMA public FROM public",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
        )
        limited = re.sub("//[^@]*@", f"//{role}:x@", url)

        async def use(service):
            session = await service.create_session(**IDS, state={"k": 1})
            await service.append_event(session, say(state={"k": 2}))
            await service.patch_state(app_name="app", increment={"n": 1})
            await service.delete_session(**IDS, session_id=session.id)

        try:
            using(limited, None, use)
            with pytest.raises(StorageError, match="threadline db ddl") as refused:
                using(limited, "another", use)
            assert ":x@" not in str(refused.value)
        finally:
            servers.on_server(url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_the_printed_ddl_makes_the_same_tables(database):
    columns = """SELECT table_name, column_name, data_type, is_nullable
                   FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2"""
    indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
    with servers.new_database(database) as one, servers.new_database(database) as two:
        using(one, None, lambda service: service.create_session(**IDS))

        async def by_hand():
            db = await asyncpg.connect(two)
            await db.execute(migrations.ddl("postgres", "public"))
            await db.close()

        asyncio.run(by_hand())
        assert servers.on_server(one, columns) == servers.on_server(two, columns)
        assert servers.on_server(one, indexes) == servers.on_server(two, indexes)
        using(two, None, lambda service: service.create_session(**IDS), auto_migrate=False)


def test_many_services_starting_at_once_make_the_tables_once(database, schema):
    async def start():
        services = [DatabaseSessionService(database, schema=schema, pool_max=2) for _ in range(10)]
        await asyncio.gather(*(service.create_session(**IDS) for service in services))
        listed = await services[0].list_sessions(app_name="app")
        for service in services:
            await service.close()
        return len(listed.sessions)

    assert asyncio.run(start()) == 10


def test_without_auto_migrate_missing_tables_are_named(database, schema):
    with pytest.raises(OutdatedSchemaError, match="0001_sessions.*threadline db upgrade"):
        using(database, schema, lambda service: service.close(), auto_migrate=False)


def test_views_show_ids_and_keys_that_no_text_can_hold(database):
    with servers.new_database(database) as url:

        async def use(service):
            session = await service.create_session(
                app_name="app", user_id="é", session_id="a\0b", state={"k\0": 1}, ttl=1e300
            )
            await service.append_event(session, say("hello", timestamp=1e300))

        using(url, None, use)
        rows = servers.on_server(
            url,
            "SELECT user_id, session_id, seq, event::json ->> 'author' FROM threadline_events",
        )
        assert [tuple(row) for row in rows] == [("é", "a\\000b", 1, "user")]
        rows = servers.on_server(url, "SELECT key, value FROM threadline_session_state")
        assert [tuple(row) for row in rows] == [("k\\000", "1")]
        rows = servers.on_server(url, "SELECT revision, updated_at FROM threadline_sessions")
        assert [tuple(row) for row in rows] == [(1, None)]


# -- connections that are lost ----------------------------------------------------------

KILL = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid()"""
COUNT = """SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()"""


def test_appends_survive_every_connection_being_killed(database):
    with servers.new_database(database) as url:

        async def use(service):
            sessions = [await service.create_session(**IDS) for _ in range(16)]
            killer = await asyncpg.connect(url)
            is_done = False
            killed = 0

            async def kill():
                nonlocal killed
                while not is_done:
                    killed += len(await killer.fetch(KILL))
                    await asyncio.sleep(0.2)

            async def work(n, session):
                for m in range(60):
                    await service.append_event(session, say(state={"k": m, f"user:k{n}": m}))
                    await service.patch_state(app_name="app", user_id=f"u{n}", increment={"n": 1})

            killing = asyncio.create_task(kill())
            await asyncio.gather(*(work(n, session) for n, session in enumerate(sessions)))
            is_done = True
            await killing
            assert await stored(service, sessions) == [60] * 16
            for n in range(16):
                # A patch is not idempotent: each must have been done exactly once all the same.
                user = await service.get_user_state(app_name="app", user_id=f"u{n}")
                assert user == {"n": 60}
            assert await killer.fetchval(COUNT) <= 10
            await killer.close()
            return killed

        assert using(url, None, use) > 10


def test_a_restarted_server_is_found_again(tmp_path):
    server = servers.own_postgres("wheel")
    if isinstance(server, str):
        servers.missing("postgres", server)
    with servers.new_database(server.url) as url:

        async def use(service):
            session = await service.create_session(**IDS)
            await service.append_event(session, say())
            await asyncio.to_thread(server.stop, "immediate")
            waiting = asyncio.create_task(service.append_event(session, say()))
            await asyncio.to_thread(server.start)
            assert (await waiting).seq == 2
            return await stored(service, [session])

        assert using(url, None, use) == [2]


def test_a_server_that_stays_away_is_one_clear_error(database, schema):
    async def use(service):
        session = await service.create_session(**IDS)
        engine = service._engine
        ((link, _),) = engine._desks.here().pool._idle

        async def refuse(*_, **__):
            raise ConnectionRefusedError("nobody there")

        link.db.terminate()
        engine._driver._connect = refuse
        with pytest.raises(StorageUnavailableError, match="nobody there") as caught:
            await service.append_event(session, say())
        assert "\n" not in str(caught.value)

    using(database, schema, use, busy_timeout_s=0.3)


def test_a_cancelled_append_leaves_the_pool_as_it_was(database, schema):
    async def use(service):
        session = await service.create_session(**IDS)
        other = await asyncpg.connect(database)
        transaction = other.transaction()
        await transaction.start()
        await other.execute(f'LOCK TABLE "{schema}".threadline_event')
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(service.append_event(session, say()), 0.05)
        await transaction.rollback()
        await other.close()
        await service.refresh(session)
        await service.append_event(session, say())
        return service._engine._desks.here().pool._size

    assert using(database, schema, use, pool_max=2) <= 2


def test_one_engine_serves_several_loops_at_once(database, schema):
    async def use(service):
        session = await service.create_session(**IDS)

        def elsewhere():
            async def work():
                mine = await service.get_session(**IDS, session_id=session.id)
                for _ in range(5):
                    await service.append_event(mine, say(), on_stale="rebase")
                loops.append(asyncio.get_running_loop())
                await service._engine._desks.here().close()

            asyncio.run(work())

        loops = []
        await asyncio.gather(*(asyncio.to_thread(elsewhere) for _ in range(3)))
        return await stored(service, [session])

    assert using(database, schema, use) == [15]


def test_close_lets_go_of_every_connection(database):
    with servers.new_database(database) as url:

        async def use(service):
            sessions = [await service.create_session(**IDS) for _ in range(20)]
            await asyncio.gather(
                *(service.get_session(**IDS, session_id=session.id) for session in sessions)
            )

        using(url, None, use)
        for _ in range(100):  # a backend takes a moment to end
            if servers.on_server(url, COUNT)[0][0] == 0:
                return
            time.sleep(0.05)
        raise AssertionError("connections are left")


# -- behind a pooler --------------------------------------------------------------------


@pytest.fixture(scope="module")
def pooler(tmp_path_factory, database):
    """Start PgBouncer in transaction mode before the database, with few connections to it."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        servers.missing("pgbouncer", "pgbouncer is not installed")
    parts = urlsplit(database)
    folder = tmp_path_factory.mktemp("pgbouncer")
    folder.chmod(0o777)
    for parent in list(folder.parents)[:2]:
        parent.chmod(0o755)
    port = servers.free_port()
    (folder / "users").write_text(f'"{parts.username}" ""\n')
    (folder / "ini").write_text(
        f"""[databases]
* = host={parts.hostname} port={parts.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = 4
"""
    )
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    process = subprocess.Popen([program, "-q", *user, str(folder / "ini")])
    url = urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}"))
    for _ in range(100):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            break
        time.sleep(0.05)
    yield url
    process.terminate()
    process.wait()


class TestBehindPgBouncer(ServiceSuite):
    @pytest.fixture
    def service(self, pooler, schema):
        return DatabaseSessionService(pooler, schema=schema)


@pytest.mark.parametrize("option", ["", "?statement_cache_size=0"])
def test_many_connections_share_few_behind_a_pooler(pooler, schema, option):
    async def use(service):
        services = [DatabaseSessionService(pooler + option, schema=schema) for _ in range(5)]
        sessions = [await service.create_session(**IDS) for _ in range(40)]
        await asyncio.gather(
            *(
                services[n % 5].append_event(session, say(state={"user:k": n}))
                for n, session in enumerate(sessions * 3)
            )
        )
        for one in services:
            await one.close()
        return await stored(service, sessions)

    assert using(pooler + option, schema, use) == [3] * 40


def test_nobody_listens_through_a_pooler_but_word_goes_out(database, pooler, schema):
    async def use(service):
        channel, heard = service.tailable.channel, asyncio.Queue()
        await channel.listen(heard.put_nowait)
        db = await asyncpg.connect(database)
        await db.add_listener(channel._name, lambda *word: heard.put_nowait(word))
        await channel.tell([session_key("app", "ann", "s").scopes[2]])
        word = await asyncio.wait_for(heard.get(), 30)
        listening = await db.fetch(
            "SELECT FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND pid <> pg_backend_pid()"
            " AND datname = current_database()"
        )
        await db.close()
        return word[2] == channel._name, len(listening)

    assert using(pooler, schema, use) == (True, 0)


# -- what cannot work says why ----------------------------------------------------------


def test_wrong_urls_are_told_in_one_line_without_the_password(database):
    parts = urlsplit(database)
    place = f"{parts.hostname}:{parts.port}"
    for url, advice in (
        (f"postgresql://{parts.username}:sesame@{place}/no_such_database", "no_such_database"),
        (f"postgresql://no_such_user:sesame@{place}/postgres", "no_such_user"),
        (f"postgresql://u:sesame@127.0.0.1:{servers.free_port()}/postgres", "host and port"),
        ("postgresql://u:sesame@no-such-host.invalid/postgres", "no-such-host.invalid"),
        (f"postgresql://u:sesame@{place}/postgres?sslmode=nonsense", "sslmode"),
    ):
        with pytest.raises(ThreadlineError, match=advice) as caught:
            using(url, None, lambda service: service.close())
        assert "\n" not in str(caught.value)
        assert "sesame" not in str(caught.value)


def test_connections_can_be_made_by_a_hook(database, schema):
    made = []

    async def connect_with(url, **options):
        made.append(url)
        return await asyncpg.connect(url, **options)

    using(
        database,
        schema,
        lambda service: service.create_session(**IDS),
        connect_with=connect_with,
    )
    assert made


def test_durability_normal_does_not_wait_for_the_disk(database, schema):
    async def setting(service):
        return await service._engine._desks.here().run(
            lambda db: db.fetchval("SHOW synchronous_commit")
        )

    assert using(database, schema, setting, durability="normal") == "off"
