"""A PostgreSQL whose commits wait for a standby that has fallen silent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import asyncpg
import pytest

from threadline import DatabaseSessionService, Session, StorageUnavailableError
from threadline.clock import new_id
from threadline.testing.service_suite import say

from .evidence import read_all
from .postgres_server import PostgresServer, postgres_server

BOUND_S = 1.0
PATIENCE_S = 15.0

USER = {"app_name": "app", "user_id": "ann"}


class Pair(NamedTuple):
    """A primary, and the standby that every commit waits for."""

    primary: PostgresServer
    standby: PostgresServer


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Start the two."""
    with postgres_server() as primary, postgres_server(primary=primary) as standby:
        primary.wait_for_standby()
        yield Pair(primary, standby)


class Call(NamedTuple):
    """What a call is made with: a service that waits BOUND_S at most, a session, its key."""

    service: DatabaseSessionService
    session: Session
    key: dict[str, str]
    patient: DatabaseSessionService
    admin: asyncpg.Connection


def beside_a_silent_standby(pair: Pair, use: Callable[[Call], Awaitable[None]]) -> None:
    """Make a session, let the standby fall silent, and make calls."""

    async def run() -> None:
        url = pair.primary.url
        async with (
            DatabaseSessionService(url) as patient,
            DatabaseSessionService(url, busy_timeout_s=BOUND_S) as service,
        ):
            key = {**USER, "session_id": new_id()}
            session = await patient.create_session(**key)
            await service.get_session(**key)
            admin = await asyncpg.connect(url)
            pair.standby.freeze()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await use(Call(service, session, key, patient, admin))
            finally:
                pair.standby.thaw()
                await admin.close()

    asyncio.run(run())


async def waiting(call: Call, task: asyncio.Future[Any]) -> asyncpg.Record:
    """Wait until a call waits for the standby; return its process and its statement's time."""
    query = "SELECT pid, query_start FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    while not (found := await call.admin.fetchrow(query)):
        assert not task.done(), "the call did not wait for the standby"
        await asyncio.sleep(0.01)
    return found


async def warned(
    call: Call, work: Awaitable[Any], end: str = "pg_cancel_backend"
) -> asyncio.Future[Any]:
    """Begin some work and end its wait: PostgreSQL warns, and the commit is done here only."""
    task = asyncio.ensure_future(work)
    pid, _ = await waiting(call, task)
    assert await call.admin.fetchval(f"SELECT {end}($1)", pid)
    return task


def test_a_silent_standby_holds_nobody_up_beyond_the_bound(pair: Pair) -> None:
    async def use(call: Call) -> None:
        event = say()
        for _ in range(2):  # the second time it is stored here, and as little safe as before
            with pytest.raises(StorageUnavailableError, match="append the same event again"):
                await call.service.append_event(call.session, event)
        pair.standby.thaw()
        assert (await call.patient.append_event(call.session, event)).seq == 1
        assert [e.id for e in await read_all(call.patient, **call.key)] == [event.id]

    beside_a_silent_standby(pair, use)


CALLS: dict[str, Callable[[Call], Awaitable[Any]]] = {
    "append": lambda call: call.service.append_event(call.session, say()),
    "create": lambda call: call.service.create_session(**USER, session_id=new_id()),
    "patch": lambda call: call.service.patch_state(**call.key, increment={"n": 1}),
    "delete": lambda call: call.service.delete_session(**call.key),
}


calls = pytest.mark.parametrize(
    "name",
    [name if name == "append" else pytest.param(name, marks=pytest.mark.soak) for name in CALLS],
)


@calls
def test_a_commit_that_was_only_warned_about_is_not_acknowledged(pair: Pair, name: str) -> None:
    async def use(call: Call) -> None:
        with pytest.raises(StorageUnavailableError):
            await (await warned(call, CALLS[name](call)))

    beside_a_silent_standby(pair, use)


def test_a_warned_append_waits_for_the_standby_again_and_is_stored_once(pair: Pair) -> None:
    async def use(call: Call) -> None:
        event = say()
        appending = await warned(call, call.patient.append_event(call.session, event))
        await asyncio.sleep(0.3)
        assert not appending.done()
        await waiting(call, appending)
        pair.standby.thaw()
        assert (await appending).seq == 1
        assert [e.id for e in await read_all(call.patient, **call.key)] == [event.id]

    beside_a_silent_standby(pair, use)


@calls
def test_a_commit_whose_connection_was_ended_is_not_acknowledged(pair: Pair, name: str) -> None:
    async def use(call: Call) -> None:
        with pytest.raises(StorageUnavailableError):
            await (await warned(call, CALLS[name](call), "pg_terminate_backend"))

    beside_a_silent_standby(pair, use)


@pytest.mark.soak
def test_a_warned_patch_is_counted_once(pair: Pair) -> None:
    async def use(call: Call) -> None:
        patching = await warned(call, call.patient.patch_state(**call.key, increment={"n": 1}))
        await asyncio.sleep(0.3)
        assert not patching.done()
        pair.standby.thaw()
        assert (await patching)["n"] == 1
        found = await call.patient.get_session(**call.key)
        assert found is not None
        assert found.state == {"n": 1}

    beside_a_silent_standby(pair, use)


@pytest.mark.soak
def test_warned_appends_that_share_a_commit_are_not_acknowledged(pair: Pair) -> None:
    async def use(call: Call) -> None:
        pair.standby.thaw()
        keys = [{**USER, "session_id": new_id()} for _ in range(20)]
        sessions = [await call.patient.create_session(**key) for key in keys]
        pair.standby.freeze()
        appends = [
            asyncio.ensure_future(call.service.append_event(session, say())) for session in sessions
        ]
        while not all(append.done() for append in appends):
            await call.admin.fetch(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            )
            await asyncio.sleep(0.02)
        assert {type(append.exception()) for append in appends} == {StorageUnavailableError}

    beside_a_silent_standby(pair, use)
