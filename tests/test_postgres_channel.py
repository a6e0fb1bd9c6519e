"""Word of appends from process to process, on PostgreSQL."""

import asyncio
import contextlib
import functools
import itertools

import asyncpg
import pytest

import servers
from threadline import DatabaseSessionService
from threadline.engines.base import session_key

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def database():
    """Return the URL of a new database."""
    with servers.new_database(servers.postgres("found")) as url:
        yield url


@pytest.fixture
def schema():
    """Return a schema's name that no other test has."""
    return f"test {next(_numbers)}"


class Ear:
    """What hears of sessions, while the block lasts."""

    def __init__(self, channel):
        self.scopes = []
        self.begun = asyncio.Event()
        self.channel = channel

    def hear(self, scope):
        if scope is None:
            self.begun.set()
        else:
            self.scopes.append(scope)

    async def heard(self, count):
        while len(self.scopes) < count:
            await asyncio.sleep(0.01)
        return self.scopes

    async def __aenter__(self):
        self.task = asyncio.create_task(self.channel.listen(self.hear))
        await self.begun.wait()
        return self

    async def __aexit__(self, *_):
        self.task.cancel()


def on_channels(use, *services):
    """Use the channels of some services."""

    async def run():
        async with contextlib.AsyncExitStack() as stack:
            for service in services:
                await stack.enter_async_context(service)
            async with asyncio.timeout(30):
                return await use(*(service.tailable.channel for service in services))

    return asyncio.run(run())


def scope_of(n):
    return session_key("app", "ann", f"s{n}").scopes[2]


def test_word_of_many_sessions_reaches_whoever_listens_elsewhere(database, schema):
    scopes = [scope_of(n) for n in range(1000)]

    async def use(here, there):
        async with Ear(there) as ear:
            await here.tell(scopes)
            return await ear.heard(1000)

    services = [DatabaseSessionService(database, schema=schema) for _ in range(2)]
    assert on_channels(use, *services) == scopes


def test_word_of_its_own_and_of_other_schemas_is_not_heard(database, schema):
    async def use(here, there, elsewhere):
        async with Ear(here) as ear:
            await here.tell([scope_of(1)])
            await elsewhere.tell([scope_of(2)])
            await there.tell([scope_of(3)])
            return await ear.heard(1)

    services = [DatabaseSessionService(database, schema=schema) for _ in range(2)]
    other = DatabaseSessionService(database, schema=f"{schema} and another")
    assert on_channels(use, *services, other) == [scope_of(3)]


def test_what_others_send_on_the_channel_is_no_word(database, schema):
    async def use(here, there):
        async with Ear(here) as ear:
            db = await asyncpg.connect(database)
            for message in ("", "x", "x y", f"x {'A' * 41}", "x ====", "x é"):
                await db.execute("SELECT pg_notify($1, $2)", here._name, message)
            await db.close()
            await there.tell([scope_of(1)])
            return await ear.heard(1)

    services = [DatabaseSessionService(database, schema=schema) for _ in range(2)]
    assert on_channels(use, *services) == [scope_of(1)]


def test_word_waits_for_no_disk_and_appends_go_on_doing_so(database, schema):
    async def use(service):
        db = await asyncpg.connect(database)
        settings = []
        async with db.transaction():
            await db.execute(service._engine._sql["tell"], "nobody", ["word"])
            settings.append(await db.fetchval("SHOW synchronous_commit"))
        settings.append(await db.fetchval("SHOW synchronous_commit"))
        await db.close()
        return settings

    service = DatabaseSessionService(database, schema=schema)
    assert asyncio.run(use(service)) == ["off", "on"]


def test_a_given_pool_lends_nobody_to_listen(database, schema):
    async def run():
        async with (
            asyncpg.create_pool(database, min_size=1, max_size=1) as pool,
            DatabaseSessionService(pool, schema=schema) as given,
            DatabaseSessionService(database, schema=schema) as own,
        ):
            await given.tailable.channel.listen(lambda _: None)
            async with Ear(own.tailable.channel) as ear:
                await given.tailable.channel.tell([scope_of(1)])
                return await ear.heard(1)

    assert asyncio.run(run()) == [scope_of(1)]


def test_a_restarted_server_is_listened_to_again():
    async def use(server, here, there):
        async with Ear(there) as ear:
            ear.begun.clear()
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            await ear.begun.wait()
            await here.tell([scope_of(1)])
            return await ear.heard(1)

    binaries = servers.installed() or servers.in_wheel()
    if binaries is None:
        servers.missing("postgres", "no binaries were found")
    server = servers.PostgresServer(binaries)
    try:
        services = [DatabaseSessionService(server.url) for _ in range(2)]
        assert on_channels(functools.partial(use, server), *services) == [scope_of(1)]
    finally:
        server.remove()
