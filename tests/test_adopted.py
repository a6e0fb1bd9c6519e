"""A service over connections that the application has already: asyncpg.Pool and AsyncEngine."""

import asyncio
from types import SimpleNamespace

import asyncpg
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

import servers
import servers_mysql
from threadline import (
    DatabaseSessionService,
    InvalidInputError,
    StorageBusyError,
    UnsupportedUrlError,
)
from threadline.testing.service_suite import IDS, say


@pytest.fixture(scope="module")
def postgres():
    with servers.new_database(servers.postgres("found")) as url:
        yield url


@pytest.fixture(scope="module")
def mysql():
    with servers_mysql.database() as name:
        yield servers_mysql.server().url(name)


async def converse(service):
    """Do a little of everything; return the session's texts and state."""
    async with service:
        session = await service.create_session(**IDS, state={"user:n": 1})
        other = await service.get_session(**IDS, session_id=session.id)
        await service.append_event(session, say("one", state={"k": 1}))
        await service.append_event(other, say("two"), on_stale="rebase")
        await service.patch_state(**IDS, session_id=session.id, increment={"k": 1})
        await asyncio.gather(
            *(service.append_event(other, say(str(n)), on_stale="rebase") for n in range(20))
        )
        found = await service.get_session(**IDS, session_id=session.id)
        listed = await service.list_sessions(app_name="app")
        assert [one.id for one in listed.sessions] == [session.id]
        await service.delete_session(**IDS, session_id=session.id)
        return len(found.events), dict(found.state)


EXPECTED = (22, {"k": 2, "user:n": 1})


# -- asyncpg.Pool -----------------------------------------------------------------------


def test_a_pool_is_borrowed_from_and_left_open(postgres):
    async def run():
        async with asyncpg.create_pool(postgres, min_size=1, max_size=3) as pool:
            assert await converse(DatabaseSessionService(pool, schema="borrowed")) == EXPECTED
            assert pool.get_idle_size() == pool.get_size() <= 3
            assert await pool.fetchval("SELECT count(*) FROM borrowed.threadline_session") == 0

    asyncio.run(run())


def test_a_pool_that_was_not_awaited_is_made_ready(postgres):
    async def run():
        pool = asyncpg.create_pool(postgres, min_size=1, max_size=1)
        try:
            return await converse(DatabaseSessionService(pool, schema="not awaited"))
        finally:
            await pool.close()

    assert asyncio.run(run()) == EXPECTED


def test_a_pool_that_others_use_up_is_waited_for(postgres):
    async def run():
        async with asyncpg.create_pool(postgres, min_size=1, max_size=1) as pool:
            service = DatabaseSessionService(pool, schema="used up", busy_timeout_s=0.3)
            await service.create_session(**IDS)
            async with pool.acquire():
                with pytest.raises(StorageBusyError, match="max_size"):
                    await service.create_session(**IDS)
            await service.create_session(**IDS)
            await service.close()

    asyncio.run(run())


def test_connections_that_a_pool_lost_are_not_noticed_by_callers(postgres):
    async def run():
        async with asyncpg.create_pool(postgres, min_size=2, max_size=2) as pool:
            service = DatabaseSessionService(pool, schema="lost")
            session = await service.create_session(**IDS)
            other = await asyncpg.connect(postgres)
            await other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await other.close()
            await service.append_event(session, say())
            found = await service.get_session(**IDS, session_id=session.id)
            await service.close()
            return len(found.events)

    assert asyncio.run(run()) == 1


def test_a_pool_serves_its_own_event_loop_only(postgres):
    async def make():
        pool = asyncpg.create_pool(postgres, min_size=0)
        return DatabaseSessionService(pool)

    service = asyncio.run(make())
    with pytest.raises(InvalidInputError, match="event loop"):
        asyncio.run(service.create_session(**IDS))


@pytest.mark.parametrize("options", [{"pool_max": 3}, {"connect_with": print}])
def test_what_a_pool_decides_itself_is_refused(postgres, options):
    async def run():
        pool = asyncpg.create_pool(postgres, min_size=0)
        with pytest.raises(InvalidInputError, match=next(iter(options))):
            DatabaseSessionService(pool, **options)
        with pytest.raises(InvalidInputError, match="synchronous_commit"):
            DatabaseSessionService(pool, durability="normal")

    asyncio.run(run())


# -- AsyncEngine ------------------------------------------------------------------------


def sqlalchemy_url(url, driver):
    scheme, rest = url.split("://", 1)
    return f"{scheme}+{driver}://{rest}"


@pytest.mark.parametrize(("database", "driver"), [("postgres", "asyncpg"), ("mysql", "asyncmy")])
def test_an_async_engine_makes_the_connections(database, driver, request):
    url = sqlalchemy_url(request.getfixturevalue(database), driver)

    async def run():
        engine = create_async_engine(url)
        asked = []

        @event.listens_for(engine.sync_engine, "do_connect")
        def ask(_dialect, _record, _args, parameters):
            asked.append(parameters["user"])

        outcome = await converse(DatabaseSessionService(engine, pool_max=4))
        assert 1 <= len(asked) <= 4
        assert engine.pool.checkedout() == 0
        await engine.dispose()
        return outcome

    assert asyncio.run(run()) == EXPECTED


def test_an_async_engine_of_a_file_gives_its_path(tmp_path):
    async def run():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/a b.db")
        outcome = await converse(DatabaseSessionService(engine))
        await engine.dispose()
        return outcome

    assert asyncio.run(run()) == EXPECTED
    assert (tmp_path / "a b.db").exists()


def test_an_async_engine_of_another_driver_is_refused():
    driver = SimpleNamespace(paramstyle="qmark", version="4", Cursor=object)  # not connected to
    engine = create_async_engine("mssql+aioodbc://h/db?driver=any", module=driver)
    with pytest.raises(UnsupportedUrlError, match=r"mssql\+aioodbc.*postgresql\+asyncpg"):
        DatabaseSessionService(engine)
