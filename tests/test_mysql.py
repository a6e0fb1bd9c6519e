"""The MySQL engine: the kit on a server, and what is peculiar to it."""

import asyncio
import contextlib
import gc
import itertools
import os
import re
import socket
import threading
import warnings
from pathlib import Path

import asyncmy
import msgspec
import pytest
from asyncmy.cursors import DictCursor

from faults.proxy import Proxy
from servers import free_port
from servers_mysql import Private, database, private, server
from threadline import (
    DatabaseSessionService,
    EngineClosedError,
    InvalidInputError,
    NewerSchemaError,
    OutdatedSchemaError,
    ReadOnlyDatabaseError,
    StaleSessionError,
    StorageError,
    UnsupportedUrlError,
    clock,
    migrations,
)
from threadline.connect import connect
from threadline.engines import mysql, mysql_driver, mysql_text
from threadline.engines.base import (
    Handle,
    NewEvent,
    NewSession,
    Position,
    Scope,
    SessionQuery,
    StateRows,
    Window,
    session_key,
)
from threadline.testing import EngineSuite, ServiceSuite, run_machine
from threadline.testing.service_suite import IDS, say

NO_STATE = StateRows({}, {}, {})


@pytest.fixture(scope="module")
def shared():
    """Return a database for this module; each test takes tables of its own there."""
    with database() as name:
        yield name


def own_tables(shared):
    return server().url(shared, f"?table_prefix=t{clock.new_id()[:8]}_")


@pytest.fixture
def url(shared):
    return own_tables(shared)


@pytest.fixture
def fresh():
    """Return a database for one test."""
    with database() as name:
        yield name


class TestMysqlService(ServiceSuite):
    @pytest.fixture
    def service(self, url):
        return DatabaseSessionService(url)


class TestMysqlEngine(EngineSuite):
    @pytest.fixture
    def engine(self, url):
        return connect(url)


class TestMysqlEngineRepeatableRead(EngineSuite):
    """The server's default level, for servers whose binary log wants it."""

    @pytest.fixture
    def engine(self, shared):
        return engine_of(
            shared, table_prefix=f"t{clock.new_id()[:8]}_", isolation="REPEATABLE READ"
        )


def machine(shared, examples):
    steps = run_machine(
        lambda: DatabaseSessionService(own_tables(shared)), examples=examples, reopens=True
    )
    print(f"\n{steps} calls on a server agreed with the reference")
    return steps


def test_hostile_calls_agree_with_the_reference(shared):
    assert machine(shared, examples=10) > 200


@pytest.mark.soak
def test_thousands_of_hostile_calls_agree_with_the_reference(shared):
    examples = int(os.environ.get("THREADLINE_SOAK_EXAMPLES", "400")) // 4
    assert machine(shared, examples=examples) >= 25 * examples


# -- what is peculiar to MySQL ----------------------------------------------------------


def engine_of(database, **options):
    at = server()
    return mysql.MysqlEngine(
        **{
            "host": at.host,
            "port": at.port,
            "user": at.user,
            "password": at.password,
            "database": database,
            **options,
        }
    )


def on_service(url, use, **options):
    async def run():
        async with DatabaseSessionService(url, **options) as service:
            return await use(service)

    return asyncio.run(run())


def on_engine(engine, use):
    async def run():
        await engine.open()
        try:
            await migrations.upgrade(engine)
            return await use(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def event(id, body=b"{}", **state):
    return NewEvent(id=id, timestamp=1.0, body=body, state=StateRows({}, {}, state))


async def created(engine, id="s", user="user"):
    key = session_key("app", user, id)
    snapshot = await engine.create(NewSession(key=key, created=1.0), NO_STATE, now=1.0)
    return Handle(key=key, revision=0, incarnation=snapshot.session.incarnation)


def test_no_sql_is_written_in_python():
    modules = Path(mysql.__file__).parent.glob("mysql*.py")
    source = "".join(module.read_text() for module in modules)
    assert not re.search(r"\b(SELECT .* FROM|INSERT INTO|UPDATE \w+ SET|DELETE FROM)\b", source)
    used = {name for name in mysql_text.load(mysql_text.PREFIX, "") if f'sql["{name}"]' in source}
    built = {"select_sessions_of_app", "select_sessions_of_user"}
    assert used | built == set(mysql_text.load(mysql_text.PREFIX, ""))


# -- cost -------------------------------------------------------------------------------


@contextlib.contextmanager
def recorded():
    """Yield the list of the statements that engines run."""
    statements = []
    packets = mysql_driver.Connection._packets

    def record(self, texts):
        statements.extend(texts)
        return packets(self, texts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mysql_driver.Connection, "_packets", record)
        yield statements


async def use_every_verb(engine, handle):
    later = msgspec.structs.replace(handle, revision=1000)
    await engine.append(later, [event("n1", k=b"1")], rebase=False, now=1.0)
    await engine.append(later, [event("n2")], rebase=True, now=1.0)
    for newest in (False, True):
        await engine.load(handle.key, Window(after_seq=10, limit=5, newest=newest), now=1.0)
    for count in (1, 2, 500):  # more than one statement looks for
        await engine.heads([session_key("app", "user", f"s{n}") for n in range(count)], now=1.0)
    for owner, order, descending in itertools.product(
        (None, handle.key.owner), ("updated", "created"), (False, True)
    ):
        query = SessionQuery(
            app_key=handle.key.app_key,
            owner=owner,
            order=order,
            descending=descending,
            after=Position(1.0, "user", "s1"),
            limit=5,
        )
        await engine.sessions(query, now=1.0)
    for scope in handle.key.scopes:
        await engine.patch(scope, ["k", "x"], lambda _: {"k": b"1", "x": None}, now=1.0)
        await engine.state(scope)
    await created(engine, "brief")
    await engine.delete(session_key("app", "user", "brief"))
    await created(engine, "brief", "guest")
    guest = session_key("app", "guest", "brief").scopes[1]
    await engine.patch(guest, [], lambda _: {"k": b"1"}, now=1.0)
    await engine.erase(guest)


def test_every_statement_on_the_way_of_a_turn_uses_an_index(fresh):
    async def use(engine):
        for user, number in itertools.product(("user", "other"), range(300)):
            await created(engine, f"s{number}", user)
        handle = await created(engine, "long")
        await engine.append(handle, [event(f"e{n}") for n in range(1000)], rebase=False, now=1.0)
        with recorded() as statements:
            await use_every_verb(engine, handle)
        return statements

    statements = on_engine(engine_of(fresh), use)
    looks = {text for text in statements if text.startswith(("SELECT", "UPDATE", "DELETE"))}
    assert len(looks) > 20
    for text in looks:
        for step in explained(text, fresh):
            if step["table"] is not None and not step["table"].startswith("<"):
                assert step["key"] is not None, (text, step)
                assert step["type"] in ("const", "eq_ref", "ref", "range"), (text, step)
                assert "filesort" not in str(step["Extra"]), (text, step)


def explained(text, database):
    """Return the steps of a statement's plan."""

    async def run():
        db = await server().connect(database)
        try:
            async with db.cursor(DictCursor) as cursor:
                await cursor.execute(f"EXPLAIN FORMAT=TRADITIONAL {text}")
                return await cursor.fetchall()
        finally:
            await db.ensure_closed()

    return asyncio.run(run())


def test_an_append_is_one_packet_and_one_transaction(fresh):
    """Counted by the server: packets as commands of the session, transactions as commits."""

    async def use(engine):
        handle = await created(engine)
        ((db, _),) = engine._desks.here().pool._idle

        async def status():
            names = "'Com_commit', 'Com_insert', 'Com_update', 'Com_begin'"
            (rows,) = await db.fetch(f"SHOW SESSION STATUS WHERE Variable_name IN ({names})")
            return {name: int(value) for name, value in rows}

        sent = []
        query = db.driver.query

        async def counted(packet, *rest):
            sent.append(packet)
            return await query(packet, *rest)

        before = await status()
        db.driver.query = counted
        await engine.append(handle, [event("e", k=b"1", l=b"2")], rebase=False, now=1.0)
        assert len(sent) == 1
        del db.driver.query
        after = await status()
        return {name: after[name] - before[name] for name in after}

    counts = on_engine(engine_of(fresh, pool_max=1), use)
    assert counts == {"Com_begin": 1, "Com_update": 1, "Com_insert": 2, "Com_commit": 1}


@pytest.mark.parametrize("group_commit", [True, False])
def test_concurrent_appends_share_transactions(fresh, group_commit):
    async def use(engine):
        handles = [await created(engine, f"s{n}") for n in range(64)]
        with recorded() as statements:
            await asyncio.gather(
                *(
                    engine.append(handle, [event("e", k=b"1")], rebase=False, now=1.0)
                    for handle in handles
                )
            )
        return statements.count("COMMIT")

    commits = on_engine(engine_of(fresh, group_commit=group_commit), use)
    assert (commits < 64) is group_commit


def test_a_stale_append_does_not_spoil_those_that_go_with_it(fresh):
    async def use(engine):
        handles = [await created(engine, f"s{n}") for n in range(40)]
        for handle in handles[::10]:
            await engine.append(handle, [event("before")], rebase=False, now=1.0)
        outcomes = await asyncio.gather(
            *(
                engine.append(handle, [event("e1"), event("e2", k=b"1")], rebase=False, now=1.0)
                for handle in handles
            ),
            return_exceptions=True,
        )
        stale = [n for n, one in enumerate(outcomes) if isinstance(one, StaleSessionError)]
        assert stale == list(range(0, 40, 10))
        for n, handle in enumerate(handles):
            loaded = await engine.load(handle.key, Window(), now=1.0)
            assert loaded.session.revision == len(loaded.events) == (1 if n in stale else 2)
            assert loaded.state.session == ({} if n in stale else {"k": b"1"})
        # No transaction is left open, so nothing is locked.
        blocker = await server().connect(fresh)
        async with blocker.cursor() as cursor:
            await cursor.execute("SELECT COUNT(*) FROM threadline_session FOR UPDATE NOWAIT")
        await blocker.ensure_closed()

    on_engine(engine_of(fresh), use)


def test_an_append_takes_no_lock_on_state_it_does_not_write(fresh):
    async def use(engine):
        handle = await created(engine)
        scopes = handle.key.scopes
        for scope in scopes:
            await engine.patch(scope, [], lambda _: {"k": b"1"}, now=1.0)
        blocker = await server().connect(fresh)
        try:
            await blocker.begin()
            async with blocker.cursor() as cursor:
                await cursor.execute("SELECT * FROM threadline_state FOR UPDATE")
            # It would wait for as long as the lock is held.
            await engine.append(handle, [event("e")], rebase=False, now=1.0)
        finally:
            blocker.close()

    on_engine(engine_of(fresh), use)


# -- what goes wrong --------------------------------------------------------------------


async def kill_all(database, *, rounds, pause_s=0.05):
    """Kill every connection to a database but this one, again and again; return how many."""
    killer = await server().connect()
    killed = 0
    try:
        async with killer.cursor() as cursor:
            for _ in range(rounds):
                await cursor.execute(
                    "SELECT id FROM information_schema.processlist WHERE db = %s", (database,)
                )
                for (number,) in await cursor.fetchall():
                    with contextlib.suppress(asyncmy.errors.Error):
                        await cursor.execute(f"KILL {number}")
                        killed += 1
                await asyncio.sleep(pause_s)
    finally:
        await killer.ensure_closed()
    return killed


def test_every_connection_is_killed_under_load_and_no_caller_notices(fresh):
    async def use(service):
        sessions = [await service.create_session(**IDS) for _ in range(8)]
        done = asyncio.Event()

        async def write(session):
            number = 0
            while not done.is_set() or number < 20:
                await service.append_event(session, say(str(number), state={"n": number}))
                number += 1
            return number

        writers = [asyncio.create_task(write(session)) for session in sessions]
        killed = await kill_all(fresh, rounds=10)
        done.set()
        counts = await asyncio.gather(*writers)
        for session, count in zip(sessions, counts, strict=True):
            found = await service.get_session(**IDS, session_id=session.id)
            texts = [event.content.parts[0].text for event in found.events]
            assert texts == [str(number) for number in range(count)]
            assert found.state["n"] == count - 1
        return killed

    killed = on_service(server().url(fresh), use)
    print(f"\n{killed} connections killed")
    assert killed > 0


def test_the_next_host_is_used_where_one_does_not_answer(fresh):
    at = server()
    engine = engine_of(fresh, host="127.0.0.1", port=free_port(), other_hosts=[(at.host, at.port)])
    assert on_engine(engine, created).revision == 0


@pytest.fixture
def two_hosts():
    """Return two servers, each with an empty database and a user whom read_only stops."""
    two = Private()
    try:
        two.start()
        hosts = [private().server, two.server]
        for host in hosts:
            host.run(
                "CREATE OR REPLACE DATABASE hosts",
                "CREATE OR REPLACE USER agent",
                "GRANT ALL ON hosts.* TO agent",
            )
        yield hosts
        for host in hosts:
            host.run("SET GLOBAL read_only = 0")
    finally:
        two.remove()


def test_a_host_that_becomes_read_only_is_left_for_the_next(two_hosts):
    one, two = two_hosts
    url = f"mysql://agent@127.0.0.1:{one.port},127.0.0.1:{two.port}/hosts?pool_max=1"

    async def use(service):
        await service.create_session(**IDS, session_id="first")
        await asyncio.to_thread(on_service, two.url("hosts"), create_second)
        await asyncio.to_thread(one.run, "SET GLOBAL read_only = 1")
        await service.create_session(**IDS, session_id="third")
        return await service.list_sessions(app_name=IDS["app_name"])

    def create_second(service):
        return service.create_session(**IDS, session_id="second")

    listed = on_service(url, use)
    assert {session.id for session in listed.sessions} == {"second", "third"}
    two.run("SET GLOBAL read_only = 1")
    with pytest.raises(ReadOnlyDatabaseError, match="none of the hosts takes writes"):
        on_service(url, create_second, busy_timeout_s=0.1)


def commits(request):
    """Tell whether a packet changes something and commits it."""
    return request.endswith(b"COMMIT") and (b"UPDATE" in request or b"INSERT" in request)


def test_a_lost_acknowledgement_of_an_append_returns_the_stored_event(fresh):
    async def use():
        at = server()
        async with Proxy(at.host, at.port) as proxy:
            engine = engine_of(fresh, host="127.0.0.1", port=proxy.port)
            await engine.open()
            await migrations.upgrade(engine)
            handle = await created(engine)
            proxy.lose_answer_to(commits)
            appended = await engine.append(handle, [event("e", k=b"1")], rebase=False, now=1.0)
            assert (list(appended.seqs), appended.revision, proxy.lost) == ([1], 1, 1)
            proxy.lose_answer_to(commits)
            other = await created(engine, "other")
            assert (other.revision, proxy.lost) == (0, 2)
            proxy.lose_answer_to(commits)
            with pytest.raises(StorageError, match="not known"):
                await engine.patch(handle.key.scopes[2], [], lambda _: {"k": b"2"}, now=1.0)
            assert await engine.state(handle.key.scopes[2]) == {"k": b"2"}
            loaded = await engine.load(handle.key, Window(), now=1.0)
            assert len(loaded.events) == 1
            await engine.close()

    asyncio.run(use())


def test_a_server_that_does_not_answer_is_given_up(fresh):
    async def use(engine):
        handle = await created(engine)
        blocker = await server().connect(fresh)
        try:
            await blocker.begin()
            async with blocker.cursor() as cursor:
                await cursor.execute("SELECT * FROM threadline_session FOR UPDATE")
            with pytest.raises(StorageError, match="did not answer within"):
                await engine.append(handle, [event("e")], rebase=False, now=1.0)
        finally:
            blocker.close()

    on_engine(engine_of(fresh, busy_timeout_s=0.2), use)


def test_deadlocks_are_tried_again(fresh):
    async def use(engine):
        handles = [await created(engine, f"s{n}") for n in range(8)]

        async def write(handle, names):
            for n in range(10):
                state = StateRows({}, dict.fromkeys(names, b"%d" % n), {})
                new = NewEvent(id=f"e{n}", timestamp=1.0, body=b"{}", state=state)
                await engine.append(handle, [new], rebase=True, now=1.0)
                scope = handle.key.scopes[1]
                await engine.patch(scope, names[::-1], lambda _: dict.fromkeys(names, b"p"), now=1)

        names = ["a", "b", "c"]
        await asyncio.gather(
            *(write(handle, names if n % 2 else names[::-1]) for n, handle in enumerate(handles))
        )

    on_engine(engine_of(fresh), use)


def test_a_conflict_that_group_replication_finds_at_commit_is_tried_again():
    said = "Got error 149 - 'Lock deadlock; Retry transaction' during COMMIT"
    assert (
        mysql_driver.code_of(asyncmy.errors.OperationalError(1180, said))
        in mysql_driver.ROLLED_BACK
    )
    full = "Got error 28 - 'No space left on device' during COMMIT"
    assert (
        mysql_driver.code_of(asyncmy.errors.OperationalError(1180, full))
        not in mysql_driver.ROLLED_BACK
    )


def test_increments_of_a_key_that_is_not_there_add_up(url):
    async def use(service):
        async def increment():
            await service.patch_state(app_name="app", user_id="user", increment={"n": 1})

        await asyncio.gather(*(increment() for _ in range(30)))
        assert await service.get_user_state(app_name="app", user_id="user") == {"n": 30}

    on_service(url, use)


def test_a_key_that_a_patch_only_looks_at_is_not_made(url):
    async def use(engine):
        scope = Scope(b"o" * 16)
        await engine.patch(scope, ["seen"], lambda _: {}, now=1.0)
        assert await engine.state(scope) == {}

    on_engine(connect(url), use)


def test_a_body_that_the_server_would_not_take_is_refused_early(fresh):
    async def use(engine):
        handle = await created(engine)
        ((db, _),) = engine._desks.here().pool._idle
        assert db.packet_max >= 1 << 20
        large = b"x" * db.packet_max
        with pytest.raises(InvalidInputError, match="max_allowed_packet"):
            await engine.append(handle, [event("e", large)], rebase=False, now=1.0)
        small = [event(f"e{n}", large[: db.packet_max // 3]) for n in range(4)]
        await engine.append(handle, small, rebase=False, now=1.0)
        loaded = await engine.load(handle.key, Window(), now=1.0)
        assert [body for _, body in loaded.events] == [one.body for one in small]

    on_engine(engine_of(fresh, pool_max=1), use)


def test_numbers_come_back_exactly(url):
    times = [5e-324, 0.1, 1732233333.1234567, 2**53 + 2.0, 1.7976931348623157e308, -1e-300]

    async def use(engine):
        for n, time in enumerate(times):
            key = session_key("app", "user", f"s{n}")
            await engine.create(NewSession(key=key, created=time), NO_STATE, now=0.0)
            found = await engine.load(key, Window(), now=0.0)
            assert found.session.created == time
        for descending in (False, True):
            query = SessionQuery(app_key=key.app_key, order="created", descending=descending)
            page = await engine.sessions(query, now=0.0)
            assert [row.created for row, _ in page] == sorted(times, reverse=descending)

    on_engine(connect(url), use)


# -- life -------------------------------------------------------------------------------


@pytest.fixture
def left_to_the_collector():
    """Let a loop end without a close, which asyncio warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def test_one_engine_works_from_several_threads_and_loops(url, left_to_the_collector):
    service = DatabaseSessionService(url)
    session = asyncio.run(service.create_session(**IDS, session_id="s"))
    errors = []

    def work(name):
        async def run():
            mine = await service.get_session(**IDS, session_id=session.id)
            for n in range(10):
                await service.append_event(mine, say(f"{name}-{n}"), on_stale="rebase")

        try:
            asyncio.run(run())
        except BaseException as error:  # pragma: no cover - it is shown below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []

    async def end():
        found = await service.get_session(**IDS, session_id=session.id)
        await service.close()
        return found.revision

    assert asyncio.run(end()) == 40


def test_the_pool_keeps_to_its_size(fresh):
    async def use(service):
        sessions = [await service.create_session(**IDS) for _ in range(20)]
        await asyncio.gather(*(service.append_event(session, say()) for session in sessions))
        ((count,),) = await asyncio.to_thread(
            server().run,
            f"SELECT COUNT(*) FROM information_schema.processlist WHERE db = '{fresh}'",
        )
        return count

    assert 1 <= on_service(server().url(fresh, "?pool_max=3"), use) <= 3
    assert server().run(
        f"SELECT COUNT(*) FROM information_schema.processlist WHERE db = '{fresh}'"
    ) == [(0,)]


def test_a_cancelled_call_leaves_the_pool_whole(url):
    async def use(service):
        session = await service.create_session(**IDS)
        for _ in range(20):
            task = asyncio.create_task(service.append_event(session, say()))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        session = await service.get_session(**IDS, session_id=session.id)
        await service.append_event(session, say())

    on_service(url + "&pool_max=2", use)


def test_a_closed_service_opens_again_by_itself(url):
    async def use(service):
        session = await service.create_session(**IDS)
        await service.close()
        await service.append_event(session, say())
        return (await service.get_session(**IDS, session_id=session.id)).revision

    assert on_service(url, use) == 1


def test_an_engine_that_is_not_open_says_so(url):
    with pytest.raises(EngineClosedError, match="not open"):
        asyncio.run(connect(url).state(Scope(b"o" * 16)))


def test_connections_come_from_a_factory_if_there_is_one(fresh):
    made = []

    async def new_connection():
        made.append(1)
        return await server().connect(fresh)

    url = "mysql://nobody:stale@127.0.0.1:1/ignored"
    on_service(url, lambda service: service.create_session(**IDS), connect_with=new_connection)
    assert made


# -- schema -----------------------------------------------------------------------------


def schema(database):
    at = server()
    tables = at.run("SHOW FULL TABLES", database=database)
    return {
        name: re.sub(
            r"AUTO_INCREMENT=\d+ ",
            "",
            at.run(f"SHOW CREATE TABLE `{name}`", database=database)[0][1],
        )
        for name, _ in tables
    }


def test_the_printed_ddl_makes_the_same_tables(fresh):
    on_service(server().url(fresh), lambda service: service.create_session(**IDS))
    with database() as by_hand:
        server().run(*mysql_text.split(migrations.ddl("mysql")), database=by_hand)
        assert {
            name: text.replace(by_hand, fresh) for name, text in schema(by_hand).items()
        } == schema(fresh)


def test_a_migration_interrupted_at_any_statement_ends_the_same(fresh):
    on_service(server().url(fresh), lambda service: service.create_session(**IDS))
    (step,) = migrations.load("mysql")
    statements = list(mysql_text.split(step.sql))
    assert len(statements) > 5
    for count in range(1, len(statements)):
        with database() as cut:
            server().run(*statements[:count], database=cut)
            on_service(server().url(cut), lambda service: service.create_session(**IDS))
            assert {name: text.replace(cut, fresh) for name, text in schema(cut).items()} == schema(
                fresh
            )


def test_many_services_starting_at_once_make_the_tables_once(fresh):
    async def start():
        services = [DatabaseSessionService(server().url(fresh)) for _ in range(6)]
        await asyncio.gather(*(service.create_session(**IDS) for service in services))
        listed = await services[0].list_sessions(app_name=IDS["app_name"])
        for service in services:
            await service.close()
        return len(listed.sessions)

    assert asyncio.run(start()) == 6
    assert server().run("SELECT COUNT(*) FROM threadline_migration", database=fresh) == [(1,)]


def test_without_auto_migrate_missing_tables_are_named(fresh):
    with pytest.raises(OutdatedSchemaError, match="0001_sessions.*threadline db upgrade"):
        on_service(server().url(fresh), lambda service: None, auto_migrate=False)
    assert schema(fresh) == {}


def test_a_newer_schema_is_refused(fresh):
    on_service(server().url(fresh), lambda service: service.create_session(**IDS))
    insert = "INSERT INTO threadline_migration (version, name) VALUES (9999, 'later')"
    server().run(insert, database=fresh)
    with pytest.raises(NewerSchemaError, match="9999.*Upgrade threadline"):
        on_service(server().url(fresh), lambda service: service.create_session(**IDS))


@contextlib.contextmanager
def user_with(rights, database):
    name = f"u{clock.new_id()[:8]}"
    server().run(
        f"CREATE USER {name} IDENTIFIED BY 'se/cret'", f"GRANT {rights} ON {database}.* TO {name}"
    )
    try:
        at = server()
        yield f"mysql://{name}:se%2Fcret@{at.host}:{at.port}/{database}"
    finally:
        server().run(f"DROP USER {name}")


def test_a_user_without_ddl_rights_can_use_current_tables(fresh):
    with user_with("SELECT, INSERT, UPDATE, DELETE", fresh) as url:
        with pytest.raises(StorageError, match="threadline db ddl") as refused:
            on_service(url, lambda service: service.create_session(**IDS))
        assert "cret" not in str(refused.value)
        on_service(server().url(fresh), lambda service: service.create_session(**IDS))

        async def use(service):
            session = await service.create_session(**IDS, state={"k": 1, "user:k": 2})
            await service.append_event(session, say())
            await service.patch_state(**IDS, session_id=session.id, increment={"k": 1})
            await service.list_sessions(app_name=IDS["app_name"])
            await service.delete_session(**IDS, session_id=session.id)

        on_service(url, use)


def test_foreign_tables_are_left_alone(fresh):
    server().run(
        "CREATE TABLE sessions (id INT)", "INSERT INTO sessions VALUES (7)", database=fresh
    )
    on_service(server().url(fresh), lambda service: service.create_session(**IDS))
    assert server().run("SELECT id FROM sessions", database=fresh) == [(7,)]


def test_two_prefixes_in_one_database_do_not_meet(fresh):
    one, two = (server().url(fresh, f"?table_prefix={name}_") for name in ("one", "two"))
    on_service(one, lambda service: service.create_session(**IDS, session_id="s"))
    listed = on_service(two, lambda service: service.list_sessions(app_name=IDS["app_name"]))
    assert listed.sessions == []
    assert {name.partition("_")[0] for name in schema(fresh)} == {"one", "two"}


def test_a_collation_has_no_say_in_ids_and_keys():
    with database("DEFAULT CHARACTER SET latin1 COLLATE latin1_general_ci") as name:

        async def use(service):
            for id in ("a", "A", "é", "É", "e", "a ", "🙂"):
                await service.create_session(**IDS, session_id=id, state={id: id, f"user:{id}": 1})
            for id in ("a", "A", "é", "É", "e", "a ", "🙂"):
                found = await service.get_session(**IDS, session_id=id)
                assert found.state[id] == id
            return await service.get_user_state(**IDS)

        assert len(on_service(server().url(name), use)) == 7


def test_views_have_readable_names(fresh):
    async def use(service):
        session = await service.create_session(**IDS, session_id="s", state={"k": "é"})
        await service.append_event(session, say("hello é"))

    on_service(server().url(fresh), use)
    at = server()
    query = "SELECT app_name, user_id, session_id, seq, event FROM threadline_events"
    ((*ids, body),) = at.run(query, database=fresh)
    assert ids == ["app", "user", "s", 1]
    assert "hello é" in body
    query = "SELECT session_id, `key`, value FROM threadline_session_state"
    assert at.run(query, database=fresh) == [("s", "k", '"é"')]
    assert at.run("SELECT revision FROM threadline_sessions", database=fresh) == [(1,)]


# -- addresses --------------------------------------------------------------------------


def refusal(url):
    with pytest.raises((StorageError, UnsupportedUrlError)) as refused:
        on_service(url, lambda service: service.create_session(**IDS))
    text = str(refused.value)
    assert "\n" not in text
    assert "s3cret" not in text
    return text


def test_a_wrong_address_is_one_line_that_says_what_to_do(fresh):
    at = server()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert "does not answer" in refusal(f"mysql://u:s3cret@127.0.0.1:{port}/db")
    assert "does not answer" in refusal("mysql://u:s3cret@no-such-host.invalid/db")
    place = f"{at.host}:{at.port}"
    assert "Check user and password" in refusal(f"mysql://nobody:s3cret@{place}/{fresh}")
    missing = server().url("no_such_database")
    assert "CREATE DATABASE" in refusal(missing)
    assert "names no database" in refusal(f"mysql://u:s3cret@{place}/")
    assert "percent-encoded" in refusal("mysql://u:s3/cret:s3cret@h/db")
    assert "mysql://" in refusal(f"mysql+pymysql://u:s3cret@{place}/db")


@pytest.mark.parametrize(
    "scheme", ["mysql", "mariadb", "mysql+asyncmy", "mysql+aiomysql", "mariadb+asyncmy"]
)
def test_every_spelling_of_the_scheme_works(fresh, scheme):
    url = server().url(fresh).replace("mysql", scheme, 1)
    on_service(url, lambda service: service.create_session(**IDS))


def test_an_engine_keeps_no_socket_of_a_loop_that_ended(fresh, left_to_the_collector):
    engine = engine_of(fresh)
    asyncio.run(engine.open())
    on_engine(engine, lambda engine: created(engine))
    gc.collect()
    assert server().run(
        f"SELECT COUNT(*) FROM information_schema.processlist WHERE db = '{fresh}'"
    ) == [(0,)]
