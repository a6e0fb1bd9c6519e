"""What is wrong in google-adk 2.13's stores and is right here, over every engine."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from google.adk.sessions import Session
from google.adk.sessions.sqlite_session_service import SqliteSessionService

from adk.stores import ADKS, Store, event, texts
from threadline import EventConflictError, ForeignDatabaseError
from threadline.integrations.adk import (
    DatabaseSessionService,
    SessionNotFoundError,
    StaleSessionError,
)

pytestmark = pytest.mark.unlike(*ADKS)


async def _write(store: Store, service: Any, writer: int, appends: int) -> None:
    """Append through a service of one's own, loading again whenever another was first."""
    for n in range(appends):
        while True:
            session = await service.get_session(**store.key)
            delta = {f"k{writer}-{n}": n, f"app:k{writer}-{n}": n}
            try:
                await service.append_event(session, event(f"{writer}-{n}", state=delta))
                break
            except StaleSessionError:
                continue


async def test_two_services_lose_no_event_and_no_key(store: Store) -> None:
    await store.create()
    services = [store.open(), store.open()]
    await asyncio.gather(*(_write(store, one, i, 10) for i, one in enumerate(services)))
    session = await store.get()
    expected = {f"{writer}-{n}" for writer in range(2) for n in range(10)}
    assert set(texts(session)) == expected
    assert len(session.events) == 20
    assert {key[1:] for key in session.state if key.startswith("k")} == expected
    assert {key[5:] for key in session.state if key.startswith("app:")} == expected
    for one in services:
        await one.close()


async def test_the_check_is_not_fooled_by_an_event_of_the_same_time(store: Store) -> None:
    session = await store.create()
    await store.say(session, "a", timestamp=7.0)
    first, second = await store.get(), await store.get()
    await store.say(first, "b", timestamp=7.0)
    with pytest.raises(StaleSessionError):
        await store.say(second, "c", timestamp=7.0)
    assert texts(await store.get()) == ["a", "b"]


async def test_the_check_is_not_fooled_by_a_back_dated_event(store: Store) -> None:
    first, second = await store.create(), await store.get()
    await store.say(first, "a", timestamp=1.0)
    with pytest.raises(StaleSessionError):
        await store.say(second, "b")


async def test_nan_and_infinity_in_state_come_back_and_later_deltas_are_stored(
    store: Store,
) -> None:
    session = await store.create({"nan": math.nan})
    await store.change(session, infinity=math.inf)
    await store.change(session, after=1)
    state = (await store.get()).state
    assert math.isnan(state["nan"])
    assert (state["infinity"], state["after"]) == (math.inf, 1)


@pytest.mark.parametrize(
    "value", ["a\0b", "\0", "\ud800", 2**70, -0.1234567890123456789, "\U0001f600"]
)
async def test_a_hostile_value_comes_back_equal_in_state_and_event(
    store: Store, value: Any
) -> None:
    session = await store.create({"first": value})
    await store.change(session, second=value, third={"in": [value]})
    loaded = await store.get()
    assert loaded.state == {"first": value, "second": value, "third": {"in": [value]}}
    assert loaded.events[0].actions.state_delta == {"second": value, "third": {"in": [value]}}


async def test_an_event_that_says_something_else_under_a_known_id_is_named(store: Store) -> None:
    session = await store.create()
    await store.say(session, "a", id="same")
    with pytest.raises(EventConflictError, match="same"):
        await store.say(session, "b", id="same")
    assert texts(await store.get()) == ["a"]


async def test_a_retry_after_a_lost_answer_stores_nothing_twice(store: Store) -> None:
    session = await store.create()
    before = session.model_copy(deep=True)
    given = event("a", state={"n": 1})
    again = given.model_copy(deep=True)
    await store.service.append_event(session, given)
    await store.service.append_event(before, again)  # by one who did not hear the answer
    assert texts(before) == ["a"]
    assert before.state == {"n": 1}
    await store.say(before, "b")
    assert texts(await store.get()) == ["a", "b"]


async def test_a_retry_through_a_session_that_went_through_json_stores_nothing_twice(
    store: Store,
) -> None:
    session = await store.create()
    given = (await store.say(session, "a"))[0]
    again = Session.model_validate_json(session.model_dump_json())
    await store.say(session, "b")
    await store.service.append_event(again, given.model_copy(deep=True))
    assert texts(again) == ["a"]
    assert texts(await store.get()) == ["a", "b"]


async def test_ids_that_join_to_the_same_text_do_not_collide(store: Store) -> None:
    await store.say(await store.create(user_id="a:b", session_id="c"), "one")
    await store.say(await store.create(user_id="a", session_id="b:c"), "two")
    assert texts(await store.get(user_id="a:b", session_id="c")) == ["one"]
    assert texts(await store.get(user_id="a", session_id="b:c")) == ["two"]


async def test_a_stale_append_leaves_no_temp_state_behind(store: Store) -> None:
    session = await store.create()
    await store.say(await store.get(), "first")
    with pytest.raises(StaleSessionError):
        await store.service.append_event(session, event("x", state={"temp:t": 1}))
    assert session.state == {}


async def test_a_session_of_a_deleted_one_cannot_write_into_its_successor(store: Store) -> None:
    session = await store.create()
    await store.say(session, "old")
    await store.service.delete_session(**store.key)
    await store.say(await store.create(), "new")
    with pytest.raises(SessionNotFoundError):
        await store.say(session, "late")
    assert texts(await store.get()) == ["new"]


def test_a_file_of_google_adk_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "adk.db"

    async def run() -> None:
        theirs = SqliteSessionService(str(path))
        await theirs.create_session(app_name="app", user_id="ada", session_id="talk")
        await theirs.close()
        ours = DatabaseSessionService(f"sqlite:///{path}")
        with pytest.raises(ForeignDatabaseError):
            await ours.get_session(app_name="app", user_id="ada", session_id="talk")
        await ours.close()

    asyncio.run(run())
    with sqlite3.connect(path) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    db.close()
    assert not any(name.startswith("threadline") for name in tables)
