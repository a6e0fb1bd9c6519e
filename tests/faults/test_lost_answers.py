"""The network loses PostgreSQL's answers; callers notice nothing, and nothing is done twice."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

import servers
from threadline import DatabaseSessionService, ErasedUser, Session, StorageUnavailableError
from threadline.testing.service_suite import say

from .evidence import read_all
from .proxy import Proxy

USER = {"app_name": "app", "user_id": "ann"}
KEY = {**USER, "session_id": "s0"}
BOUND_S = 0.5
PATIENCE_S = 10.0

Use = Callable[[DatabaseSessionService, Session, Proxy], Awaitable[None]]

_numbers = itertools.count()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Return the URL of a new database."""
    with servers.new_database(servers.postgres("found")) as new:
        yield new


def through_a_proxy(url: str, use: Use, **options: Any) -> None:
    """Use a service, its only connection and a session; the usual statements are prepared."""

    async def run() -> None:
        at = urlsplit(url)
        async with Proxy(at.hostname or "", at.port or 5432) as proxy:
            by_proxy = urlunsplit(at._replace(netloc=f"{at.username}@127.0.0.1:{proxy.port}"))
            schema = f"lost {next(_numbers)}"
            async with DatabaseSessionService(
                by_proxy, schema=schema, pool_max=1, **options
            ) as service:
                session = await service.create_session(**KEY)
                other = await service.create_session(**USER, session_id="other")
                await service.append_event(other, say(state={"n": 0}))
                await use(service, session, proxy)

    asyncio.run(run())


def anything(request: bytes) -> bool:
    """Take the next request: an append is one, and a creation."""
    return True


def a_commit(request: bytes) -> bool:
    """Take the commit of a transaction of several statements."""
    return b"COMMIT;" in request  # and not READ COMMITTED


@pytest.mark.parametrize("let_through", [0, 9])
def test_an_append_whose_answer_was_lost_is_stored_once(url: str, let_through: int) -> None:
    async def use(service: DatabaseSessionService, session: Session, proxy: Proxy) -> None:
        event = say(state={"n": 1, "user:n": 2})
        proxy.lose_answer_to(anything, let_through=let_through)
        stored = await service.append_event(session, event)
        assert (proxy.lost, stored.seq, session.revision) == (1, 1, 1)
        after = await service.append_event(session, say())
        assert [e.id for e in await read_all(service, **KEY)] == [event.id, after.id]
        assert session.state == {"n": 1, "user:n": 2}

    through_a_proxy(url, use)


def test_a_stale_append_whose_answer_was_lost_is_stored_once(url: str) -> None:
    async def use(service: DatabaseSessionService, session: Session, proxy: Proxy) -> None:
        newer = await service.get_session(**KEY)
        assert newer is not None
        missed, event = say(), say("late")
        await service.append_event(newer, missed)
        sent = itertools.count(1)  # at the revision that the handle knows, then at any
        proxy.lose_answer_to(lambda request: b"late" in request and next(sent) == 2)
        stored = await service.append_event(session, event, on_stale="rebase")
        assert (proxy.lost, stored.seq) == (1, 2)
        assert [e.id for e in session.events] == [missed.id, event.id]
        assert [e.id for e in await read_all(service, **KEY)] == [missed.id, event.id]

    through_a_proxy(url, use)


def test_a_partly_repeated_append_whose_answer_was_lost_is_stored_once(url: str) -> None:
    async def use(service: DatabaseSessionService, session: Session, proxy: Proxy) -> None:
        newer = await service.get_session(**KEY)
        assert newer is not None
        missed, event = say(), say()
        await service.append_event(newer, missed)
        proxy.lose_answer_to(a_commit)
        stored = await service.append_events(session, [missed, event])
        assert (proxy.lost, [one.seq for one in stored]) == (1, [1, 2])
        assert [e.id for e in await read_all(service, **KEY)] == [missed.id, event.id]

    through_a_proxy(url, use)


def test_appends_whose_shared_answer_was_lost_are_each_stored_once(url: str) -> None:
    async def use(service: DatabaseSessionService, session: Session, proxy: Proxy) -> None:
        keys = [{**USER, "session_id": f"many{n}"} for n in range(20)]
        sessions = [await service.create_session(**key) for key in keys]
        proxy.lose_answer_to(lambda request: request.count(b"in chorus") > 1)
        stored = await asyncio.gather(
            *(service.append_event(session, say("in chorus")) for session in sessions)
        )
        assert (proxy.lost, [event.seq for event in stored]) == (1, [1] * 20)
        for key, event in zip(keys, stored, strict=True):
            assert [e.id for e in await read_all(service, **key)] == [event.id]

    through_a_proxy(url, use)


def test_a_creation_whose_answer_was_lost_is_no_conflict(url: str) -> None:
    async def use(service: DatabaseSessionService, session: Session, proxy: Proxy) -> None:
        key = {**USER, "session_id": "made"}
        proxy.lose_answer_to(anything)
        made = await service.create_session(**key, state={"n": 1})
        assert (proxy.lost, made.state) == (1, {"n": 1})
        assert (await service.append_event(made, say())).seq == 1
        found = await service.get_session(**key)
        assert found is not None
        assert (len(found.events), found.state) == (1, {"n": 1})

    through_a_proxy(url, use)


def test_a_patch_whose_answer_was_lost_is_counted_once(url: str) -> None:
    async def use(service: DatabaseSessionService, session: Session, proxy: Proxy) -> None:
        for scope in (KEY, USER):
            proxy.lose_answer_to(a_commit)
            assert (await service.patch_state(**scope, increment={"n": 1}))["n"] == 1
        assert proxy.lost == 2
        found = await service.get_session(**KEY)
        assert found is not None
        assert found.state == {"n": 1, "user:n": 1}

    through_a_proxy(url, use)


def test_a_deletion_whose_answer_was_lost_is_done(url: str) -> None:
    async def use(service: DatabaseSessionService, session: Session, proxy: Proxy) -> None:
        await service.append_event(session, say())
        proxy.lose_answer_to(a_commit)
        await service.delete_session(**KEY)
        assert proxy.lost == 1
        assert await service.get_session(**KEY) is None

    through_a_proxy(url, use)


def test_an_erasure_whose_answer_was_lost_is_done_and_counted(url: str) -> None:
    async def use(service: DatabaseSessionService, session: Session, proxy: Proxy) -> None:
        await service.append_event(session, say(state={"user:n": 1}))
        proxy.lose_answer_to(a_commit)
        assert await service.erase_user(**USER) == ErasedUser(sessions=2, events=2, state_keys=2)
        assert proxy.lost == 1
        assert (await service.list_sessions(**USER)).sessions == []

    through_a_proxy(url, use)


def test_a_server_that_falls_silent_holds_nobody_up_beyond_the_bound(url: str) -> None:
    async def use(service: DatabaseSessionService, session: Session, proxy: Proxy) -> None:
        proxy.freeze()
        for _ in range(2):
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(StorageUnavailableError):
                    await service.append_event(session, say())
        proxy.thaw()
        assert await service.get_session(**KEY) is not None

    through_a_proxy(url, use, busy_timeout_s=BOUND_S)


def test_an_append_whose_answer_came_too_late_can_be_retried(url: str) -> None:
    async def use(service: DatabaseSessionService, session: Session, proxy: Proxy) -> None:
        event = say()
        proxy.delay_s = 3 * BOUND_S
        with pytest.raises(StorageUnavailableError, match="append the same event again"):
            await service.append_event(session, event)
        proxy.delay_s = 0.0
        assert (await service.append_event(session, event)).seq == 1
        assert [e.id for e in await read_all(service, **KEY)] == [event.id]

    through_a_proxy(url, use, busy_timeout_s=BOUND_S)
