"""What the service for google-adk over Vertex AI adds, and what it shares with google-adk's own."""

from __future__ import annotations

import datetime as dt
import inspect
from typing import Any

import pytest
from google.adk.sessions import VertexAiSessionService as AdkVertexAiSessionService
from google.adk.sessions.base_session_service import GetSessionConfig

from adk.stores import Store, texts
from threadline import errors
from threadline.integrations.adk import SessionNotFoundError, VertexAiSessionService

pytestmark = pytest.mark.only("vertex")


def test_the_constructor_begins_like_google_adks() -> None:
    ours, theirs = (
        list(inspect.signature(kind).parameters.values())
        for kind in (VertexAiSessionService, AdkVertexAiSessionService)
    )
    described = [(one.name, one.kind, one.default) for one in ours]
    assert described[: len(theirs)] == [(one.name, one.kind, one.default) for one in theirs]


@pytest.mark.parametrize(
    "expiry",
    [
        {"ttl": "7200s"},
        {"ttl": 7200},
        {"ttl": dt.timedelta(hours=2)},
        {"expire_time": "2100-01-01T00:00:00Z"},
        {"expire_time": dt.datetime(2100, 1, 1, tzinfo=dt.UTC)},
    ],
)
async def test_a_session_is_created_with_what_vertex_keeps_of_it(
    store: Store, expiry: dict[str, Any]
) -> None:
    given = {"display_name": "A talk", "labels": {"team": "a"}}
    await store.service.create_session(**store.key, **expiry, **given)
    kept = await store.service.service.get_session(**store.key)
    assert {name: getattr(kept, name) for name in given} == given
    if "ttl" in expiry:
        assert kept.expire_time == pytest.approx(kept.create_time + 7200, abs=5)
    else:
        assert kept.expire_time == dt.datetime(2100, 1, 1, tzinfo=dt.UTC).timestamp()


@pytest.mark.parametrize(
    "wrong",
    [
        {"ttl": "2 hours"},
        {"expire_time": "tomorrow"},
        {"ttl": "1s", "expire_time": "2100-01-01T00:00:00Z"},
    ],
)
async def test_an_expiry_that_makes_no_sense_is_a_value_error(
    store: Store, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="ttl|expire_time"):
        await store.service.create_session(**store.key, **wrong)


async def test_a_session_may_be_named_in_full(store: Store) -> None:
    name = f"projects/p/locations/l/reasoningEngines/{store.app}/sessions/talk"
    session = await store.create(session_id=name)
    assert session.id == "talk"
    await store.say(session, "a")
    assert texts(await store.get(session_id=name)) == ["a"]
    assert texts(await store.get(session_id="sessions/talk")) == ["a"]
    with pytest.raises(ValueError, match="another"):
        await store.get(session_id="reasoningEngines/another/sessions/talk")
    await store.service.delete_session(**{**store.key, "session_id": name})
    assert await store.service.get_session(**store.key) is None


async def test_a_session_of_another_user_is_none_and_stays(store: Store) -> None:
    await store.create()
    others = {**store.key, "user_id": "bob"}
    assert await store.service.get_session(**others) is None
    await store.service.delete_session(**others)
    assert (await store.get()).id == "talk"


async def test_a_users_state_without_a_session_is_a_not_implemented_error(store: Store) -> None:
    with pytest.raises(NotImplementedError):
        await store.service.get_user_state(app_name=store.app, user_id="ada")


async def test_an_append_goes_to_the_end_whatever_was_stored_since(store: Store) -> None:
    session = await store.create()
    await store.say(await store.get(), "a")
    await store.say(session, "b")
    assert texts(session) == ["b"]
    assert texts(await store.get()) == ["a", "b"]


async def test_an_event_that_the_session_holds_is_not_sent_again(store: Store) -> None:
    session = await store.create()
    (sent,) = await store.say(session, "a")
    await store.service.delete_session(**store.key)
    assert await store.service.append_event(session, sent) is sent
    with pytest.raises(errors.EventConflictError):
        await store.say(session, "b", id=sent.id)
    with pytest.raises(SessionNotFoundError):
        await store.say(session, "b")
    assert texts(session) == ["a"]


async def test_refresh_puts_what_others_stored_where_it_belongs(store: Store) -> None:
    await store.say(await store.create(), "old", "older")
    mine = await store.get(config=GetSessionConfig(num_recent_events=1))
    await store.say(await store.get(), "a")
    await store.say(mine, "b")
    await store.say(await store.get(), "c")
    held = mine.events[-1]
    await store.service.refresh(mine)
    assert texts(mine) == ["older", "a", "b", "c"]
    assert mine.events[2] is held


@pytest.mark.parametrize("config", [{"num_recent_events": 0}, {"after_timestamp": 5.0}])
async def test_a_session_loaded_in_part_is_refreshed(store: Store, config: dict[str, Any]) -> None:
    await store.say(await store.create(), "a", timestamp=1.0)
    session = await store.get(config=GetSessionConfig(**config))
    assert texts(session) == []
    await store.say(session, "b", timestamp=9.0)
    assert texts(await store.service.refresh(session)) == ["b"]
