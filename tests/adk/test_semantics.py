"""What google-adk's session services mean, held by ours over every engine.

Each test also runs on google-adk's own services, which shows that it says what google-adk does.
Where one of those does otherwise the test's `unlike` mark names it, and either the services
differ among themselves or it is a defect; `docs/reference/deviations-from-adk.md` has the
reasons.
"""

from __future__ import annotations

import asyncio
import copy
import datetime as dt
import inspect
import logging
import time
from typing import Any

import pydantic
import pytest
from google.adk.errors import StaleSessionError
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events import Event, EventActions
from google.adk.events.event_actions import EventCompaction
from google.adk.events.ui_widget import UiWidget
from google.adk.models.cache_metadata import CacheMetadata
from google.adk.sessions import BaseSessionService, Session, State
from google.adk.tools.tool_confirmation import ToolConfirmation
from google.genai import types

from adk.stores import Store, event, texts

unlike = pytest.mark.unlike
ADK = ("adk-memory", "adk-sqlite", "adk-database")


class Hotel(pydantic.BaseModel):
    name: str
    stars: int


# -- the surface ------------------------------------------------------------------------


async def test_a_service_is_one_of_google_adk(store: Store) -> None:
    assert isinstance(store.service, BaseSessionService)


async def test_a_verb_takes_the_arguments_of_google_adk(store: Store) -> None:
    for verb in (*BaseSessionService.__abstractmethods__, "get_user_state", "append_event"):
        theirs, ours = (
            {one.name: one.default for one in inspect.signature(verbs).parameters.values()}
            for verbs in (getattr(BaseSessionService, verb), getattr(type(store.service), verb))
        )
        assert ours == theirs, verb


async def test_flush_does_nothing(store: Store) -> None:
    assert await store.service.flush() is None


# -- create_session ---------------------------------------------------------------------


async def test_a_session_without_an_id_gets_one(store: Store) -> None:
    first, second = await store.create(session_id=None), await store.create(session_id=None)
    assert first.id != second.id
    assert (await store.get(session_id=first.id)).id == first.id


@unlike("adk-database")
async def test_an_empty_id_is_none(store: Store) -> None:
    session = await store.create(session_id="")
    assert session.id
    assert await store.service.get_session(**{**store.key, "session_id": ""}) is None


@unlike("adk-memory", "adk-sqlite")
@pytest.mark.parametrize("id", ["  talk ", "a/b:c%d", "ärger\N{PILE OF POO}", "x" * 128])
async def test_an_id_is_kept_verbatim(store: Store, id: str) -> None:
    session = await store.create(session_id=id)
    assert session.id == id
    assert (await store.get(session_id=id)).id == id


async def test_the_same_id_of_another_user_is_another_session(store: Store) -> None:
    await store.say(await store.create(user_id="ada"), "hers")
    await store.say(await store.create(user_id="bob"), "his")
    assert texts(await store.get(user_id="ada")) == ["hers"]
    assert texts(await store.get(user_id="bob")) == ["his"]


async def test_the_same_id_in_another_app_is_another_session(store: Store) -> None:
    await store.say(await store.create(), "here")
    await store.say(await store.create(app_name=f"{store.app}-2"), "there")
    assert texts(await store.get()) == ["here"]


async def test_a_second_session_of_the_same_id_is_refused(store: Store) -> None:
    await store.say(await store.create({"k": 1}), "first")
    with pytest.raises(AlreadyExistsError):
        await store.create({"k": 2})
    assert (await store.get()).state == {"k": 1}


@unlike("adk-sqlite")
async def test_of_several_creators_at_once_one_wins(store: Store) -> None:
    done = await asyncio.gather(*(store.create() for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(one, Session) for one in done) == 1
    assert sum(isinstance(one, AlreadyExistsError) for one in done) == 4


async def test_state_at_creation_goes_to_its_scopes_at_once(store: Store) -> None:
    await store.create(session_id="before")
    await store.create({"app:a": 1, "user:u": 2, "s": 3, "foo:bar": 4})
    assert (await store.get(session_id="before")).state == {"app:a": 1, "user:u": 2}
    assert (await store.get()).state == {"app:a": 1, "user:u": 2, "s": 3, "foo:bar": 4}


async def test_temp_state_at_creation_is_dropped(store: Store) -> None:
    session = await store.create({"temp:x": 1, "k": 1})
    assert session.state == {"k": 1}
    assert (await store.get()).state == {"k": 1}


async def test_a_new_session_has_no_events_and_the_time_of_now(store: Store) -> None:
    before = time.time()
    session = await store.create()
    assert session.events == []
    assert before - 1 <= session.last_update_time <= time.time() + 1


async def test_a_new_session_equals_the_one_that_is_loaded(store: Store) -> None:
    assert await store.create({"k": [1, {"a": None}], "user:u": 2.5}) == await store.get()


@unlike("adk-memory")
async def test_state_comes_back_in_json_types(store: Store) -> None:
    state: dict[str, Any] = {
        "tuple": (1, 2),
        "set": {3},
        "model": Hotel(name="Ritz", stars=5),
        "day": dt.date(2026, 1, 2),
        "bytes": b"abc",
        "keys": {1: "one"},
    }
    plain = {
        "tuple": [1, 2],
        "set": [3],
        "model": {"name": "Ritz", "stars": 5},
        "day": "2026-01-02",
        "bytes": "abc",
        "keys": {"1": "one"},
    }
    assert (await store.create(state)).state == plain
    session = await store.get()
    await store.service.append_event(session, event("", state=state))
    assert (await store.get()).state == plain


@unlike("adk-memory")
async def test_a_value_without_json_is_stored_as_its_repr_with_a_warning(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    thing = object()
    with caplog.at_level(logging.WARNING):
        session = await store.create({"thing": thing})
    assert session.state == {"thing": repr(thing)}
    assert any("state" in record.getMessage() for record in caplog.records)


# -- get_session ------------------------------------------------------------------------


async def test_a_missing_session_is_none(store: Store) -> None:
    assert await store.service.get_session(**store.key) is None


async def test_all_events_come_in_order(store: Store) -> None:
    session = await store.create()
    await store.say(session, *"abcde")
    assert texts(await store.get()) == [*"abcde"]
    assert await store.newest() == [*"abcde"]


@pytest.mark.parametrize(("count", "expected"), [(0, ""), (1, "e"), (2, "de"), (9, "abcde")])
async def test_the_newest_events_come_in_order(store: Store, count: int, expected: str) -> None:
    session = await store.create()
    await store.say(session, *"abcde")
    assert await store.newest(count) == [*expected]


async def test_after_timestamp_includes_its_own_time(store: Store) -> None:
    session = await store.create()
    for second in (10.0, 20.0, 30.0):
        await store.say(session, str(second), timestamp=second)
    assert await store.newest(since=20.0) == ["20.0", "30.0"]
    assert await store.newest(since=30.5) == []
    assert await store.newest(since=0.0) == ["10.0", "20.0", "30.0"]


async def test_both_filters_give_the_newest_of_those_that_are_late_enough(store: Store) -> None:
    session = await store.create()
    for second in (10.0, 20.0, 30.0):
        await store.say(session, str(second), timestamp=second)
    assert await store.newest(1, since=20.0) == ["30.0"]
    assert await store.newest(3, since=20.0) == ["20.0", "30.0"]


async def test_a_session_loaded_in_part_has_all_of_the_state(store: Store) -> None:
    session = await store.create({"k": 1})
    await store.change(session, user__u=2, n=3)
    config = {"num_recent_events": 0}
    part = await store.get(config=_config(**config))
    assert part.state == {"k": 1, "user:u": 2, "n": 3}


async def test_a_session_loaded_in_part_can_be_appended_to(store: Store) -> None:
    session = await store.create()
    await store.say(session, "a", "b")
    part = await store.get(config=_config(num_recent_events=0))
    await store.say(part, "c")
    assert texts(part) == ["c"]
    assert texts(await store.get()) == ["a", "b", "c"]


async def test_what_a_holder_does_to_a_session_stays_with_the_holder(store: Store) -> None:
    session = await store.create({"k": {"n": [1]}})
    await store.say(session, "a")
    for _ in range(3):  # loaded from the store, and from what the service remembers
        mine = await store.get()
        mine.state["k"]["n"].append(2)
        mine.state["new"] = 1
        mine.events[0].content.parts[0].text = "changed"
        mine.events[0].actions.state_delta["x"] = 1
        mine.events[0].node_info.path = "changed"
        mine.events.clear()
    loaded = await store.get()
    assert loaded.state == {"k": {"n": [1]}}
    assert texts(loaded) == ["a"]
    assert loaded.events[0].actions.state_delta == {}
    assert loaded.events[0].node_info.path == ""


async def test_the_events_of_a_session_are_a_list_of_google_adk_events(store: Store) -> None:
    await store.say(await store.create(), "a")
    for _ in range(2):
        session = await store.get()
        assert type(session) is Session
        assert type(session.events) is list
        assert type(session.events[0]) is Event


# -- list_sessions ----------------------------------------------------------------------


async def _listed(store: Store, user_id: str | None) -> list[tuple[str, str]]:
    found = await store.service.list_sessions(app_name=store.app, user_id=user_id)
    return [(session.user_id, session.id) for session in found.sessions]


async def test_a_list_is_of_one_user_or_of_all(store: Store) -> None:
    await store.create(session_id="1", user_id="ada")
    await store.create(session_id="2", user_id="bob")
    await store.create(session_id="3", app_name=f"{store.app}-2")
    assert await _listed(store, "ada") == [("ada", "1")]
    assert sorted(await _listed(store, None)) == [("ada", "1"), ("bob", "2")]
    assert await _listed(store, "eve") == []


async def test_a_list_begins_with_the_oldest_update_then_goes_by_user_and_id(store: Store) -> None:
    for user_id, id, second in (
        ("bob", "late", 30.0),
        ("bob", "b", 20.0),
        ("bob", "a", 20.0),
        ("ada", "z", 20.0),
        ("bob", "early", 10.0),
    ):
        session = await store.create(user_id=user_id, session_id=id)
        await store.say(session, "x", timestamp=second)
    assert [id for _, id in await _listed(store, None)] == ["early", "z", "a", "b", "late"]


async def test_a_listed_session_has_its_state_and_no_events(store: Store) -> None:
    session = await store.create({"k": 1, "app:a": 2, "user:u": 3})
    await store.say(session, "a")
    (listed,) = (await store.service.list_sessions(app_name=store.app)).sessions
    assert listed.events == []
    assert listed.state == {"k": 1, "app:a": 2, "user:u": 3}
    assert listed.last_update_time == session.last_update_time


async def test_a_listed_session_can_be_appended_to(store: Store) -> None:
    await store.say(await store.create(), "a")
    (listed,) = (await store.service.list_sessions(app_name=store.app)).sessions
    await store.say(listed, "b")
    assert texts(await store.get()) == ["a", "b"]


# -- delete_session ---------------------------------------------------------------------


async def test_to_delete_a_missing_session_is_no_error(store: Store) -> None:
    await store.service.delete_session(**store.key)


async def test_a_deleted_session_is_gone_and_its_id_starts_empty(store: Store) -> None:
    await store.say(await store.create({"k": 1}), "a")
    await store.get()
    await store.service.delete_session(**store.key)
    assert await store.service.get_session(**store.key) is None
    assert (await store.create()).state == {}
    assert texts(await store.get()) == []


async def test_a_deleted_session_leaves_the_state_of_user_and_app(store: Store) -> None:
    await store.create({"app:a": 1, "user:u": 2})
    await store.service.delete_session(**store.key)
    assert (await store.create()).state == {"app:a": 1, "user:u": 2}


@unlike("adk-memory", "adk-sqlite")
async def test_delete_session_takes_positions_as_the_database_service_does(store: Store) -> None:
    await store.create()
    await store.service.delete_session(store.app, store.user, "talk")
    assert await store.service.get_session(**store.key) is None


# -- get_user_state ---------------------------------------------------------------------


async def _user_state(store: Store) -> Any:
    return await store.service.get_user_state(app_name=store.app, user_id=store.user)


async def test_user_state_has_keys_without_their_prefix(store: Store) -> None:
    assert await _user_state(store) == {}
    session = await store.create({"user:u": 1, "app:a": 2, "s": 3})
    await store.service.append_event(session, event("", state={"user:app:x": 4}))
    assert await _user_state(store) == {"u": 1, "app:x": 4}


async def test_user_state_is_a_copy(store: Store) -> None:
    await store.create({"user:u": {"n": 1}})
    (await _user_state(store))["u"]["n"] = 2
    assert await _user_state(store) == {"u": {"n": 1}}


async def test_user_state_outlives_the_last_session(store: Store) -> None:
    await store.create({"user:u": 1})
    await store.service.delete_session(**store.key)
    assert await _user_state(store) == {"u": 1}


# -- append_event -----------------------------------------------------------------------


async def test_of_a_partial_event_nothing_happens(store: Store) -> None:
    session = await store.create()
    partial = event("a", partial=True, state={"k": 1, "temp:t": 1})
    assert await store.service.append_event(session, partial) is partial
    assert partial.actions.state_delta == {"k": 1, "temp:t": 1}
    assert (session.events, session.state) == ([], {})
    assert await store.get() == session


async def test_append_returns_the_event_it_was_given_and_puts_it_into_the_session(
    store: Store,
) -> None:
    session = await store.create()
    given = event("a")
    assert await store.service.append_event(session, given) is given
    assert session.events[-1] is given


async def test_append_takes_names_and_positions(store: Store) -> None:
    session = await store.create()
    await store.service.append_event(session=session, event=event("a"))
    assert texts(await store.get()) == ["a"]


async def test_temp_state_reaches_the_holder_and_nothing_else(store: Store) -> None:
    session = await store.create()
    given = event("a", state={"temp:t": object(), "k": 1})
    await store.service.append_event(session, given)
    assert session.state.keys() == {"temp:t", "k"}
    assert given.actions.state_delta == {"k": 1}
    loaded = await store.get()
    assert loaded.state == {"k": 1}
    assert loaded.events[0].actions.state_delta == {"k": 1}


async def test_an_append_to_a_missing_session_is_refused(store: Store) -> None:
    session = await store.create()
    await store.service.delete_session(**store.key)
    with pytest.raises(SessionNotFoundError) as caught:
        await store.say(session, "a")
    assert isinstance(caught.value, ValueError)


@unlike("adk-sqlite", "adk-database")
async def test_a_refused_append_changes_neither_session_nor_event(store: Store) -> None:
    session = await store.create()
    await store.service.delete_session(**store.key)
    before, given = copy.deepcopy(session), event("a", state={"temp:t": 1, "k": 1})
    with pytest.raises(SessionNotFoundError):
        await store.service.append_event(session, given)
    assert session == before
    assert given.actions.state_delta == {"temp:t": 1, "k": 1}


@pytest.mark.parametrize("second", [1.5, 4102444800.123456])
async def test_the_update_time_is_that_of_the_event(store: Store, second: float) -> None:
    session = await store.create()
    await store.say(session, "a", timestamp=second)
    assert session.last_update_time == second
    assert (await store.get()).last_update_time == second
    await store.say(session, "b", timestamp=1.0)
    assert (await store.get()).last_update_time == 1.0


async def test_an_event_keeps_its_id_and_its_time(store: Store) -> None:
    session = await store.create()
    await store.say(session, "a", id="my-id", timestamp=1700000000.123456)
    (stored,) = (await store.get()).events
    assert (stored.id, stored.timestamp) == ("my-id", 1700000000.123456)


async def test_a_delta_replaces_whole_values_and_none_is_a_value(store: Store) -> None:
    session = await store.create({"k": {"a": 1}, "gone": 1})
    await store.change(session, k={"b": 2}, gone=None, user__u=1, app__a=2)
    expected = {"k": {"b": 2}, "gone": None, "user:u": 1, "app:a": 2}
    assert session.state == expected
    assert (await store.get()).state == expected


async def test_a_delta_reaches_the_other_sessions_of_its_scope(store: Store) -> None:
    session = await store.create()
    await store.create(session_id="other")
    await store.create(session_id="stranger", user_id="bob")
    await store.change(session, user__u=1, app__a=2, s=3)
    assert (await store.get(session_id="other")).state == {"user:u": 1, "app:a": 2}
    assert (await store.get(session_id="stranger", user_id="bob")).state == {"app:a": 2}


@unlike("adk-memory")
async def test_the_holder_keeps_objects_and_the_store_has_their_json(store: Store) -> None:
    session = await store.create()
    hotel = Hotel(name="Ritz", stars=5)
    await store.change(session, hotel=hotel)
    assert session.state["hotel"] is hotel
    loaded = await store.get()
    assert loaded.state == {"hotel": {"name": "Ritz", "stars": 5}}


@unlike("adk-memory")
async def test_a_session_that_missed_an_event_is_refused(store: Store) -> None:
    session = await store.create()
    other = await store.get()
    await store.say(other, "first", timestamp=time.time() + 1)
    with pytest.raises(StaleSessionError) as caught:
        await store.say(session, "second", timestamp=time.time() + 2)
    assert isinstance(caught.value, ValueError)
    assert texts(await store.get()) == ["first"]


async def test_a_session_loaded_after_a_refusal_can_be_appended_to(store: Store) -> None:
    session = await store.create()
    await store.say(await store.get(), "first")
    await store.say(await store.get(), "second")
    assert texts(await store.get()) == ["first", "second"]
    del session


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda session: session.model_copy()])
async def test_a_copy_of_a_session_can_be_appended_to(store: Store, copied: Any) -> None:
    session = await store.create()
    await store.say(session, "a")
    await store.say(copied(session), "b")
    assert texts(await store.get()) == ["a", "b"]


async def test_a_session_that_went_through_json_can_be_appended_to(store: Store) -> None:
    session = await store.create()
    await store.say(session, "a", "b")
    again = Session.model_validate_json(session.model_dump_json(by_alias=True))
    await store.say(again, "c")
    assert texts(await store.get()) == ["a", "b", "c"]


@unlike("adk-memory")
async def test_a_session_that_went_through_json_and_missed_an_event_is_refused(
    store: Store,
) -> None:
    session = await store.create()
    await store.say(session, "a")
    again = Session.model_validate_json(session.model_dump_json())
    await store.say(session, "b")
    with pytest.raises(StaleSessionError):
        await store.say(again, "c")


async def test_a_session_made_by_hand_can_be_appended_to_while_nothing_is_stored(
    store: Store,
) -> None:
    await store.create()
    by_hand = Session(id="talk", app_name=store.app, user_id=store.user, last_update_time=9e9)
    await store.say(by_hand, "a")
    assert texts(await store.get()) == ["a"]


@unlike("adk-sqlite", "adk-database")
async def test_an_event_that_is_appended_again_changes_nothing(store: Store) -> None:
    session = await store.create()
    given = event("a", state={"n": 1})
    await store.service.append_event(session, given)
    assert await store.service.append_event(session, given) is given
    await store.service.append_event(session, given.model_copy(deep=True))
    assert texts(session) == ["a"]
    assert texts(await store.get()) == ["a"]


@unlike("adk-sqlite")
async def test_appends_through_one_session_at_once_are_all_stored(store: Store) -> None:
    session = await store.create()
    await asyncio.gather(*(store.say(session, f"{n}") for n in range(10)))
    assert sorted(texts(await store.get())) == [*"0123456789"]
    assert sorted(texts(session)) == [*"0123456789"]


# -- the order of events ----------------------------------------------------------------


@unlike("adk-database")
async def test_events_of_one_time_keep_the_order_of_the_appends(store: Store) -> None:
    session = await store.create()
    for name in "zmb":
        await store.say(session, name, id=name, timestamp=5.0)
    assert texts(await store.get()) == [*"zmb"]


@unlike("adk-sqlite", "adk-database")
async def test_an_event_of_an_earlier_time_stays_behind_those_before_it(store: Store) -> None:
    session = await store.create()
    await store.say(session, "call", timestamp=5.0)
    await store.say(session, "response", timestamp=4.5)
    assert texts(await store.get()) == ["call", "response"]


# -- the fields of an event -------------------------------------------------------------

_TEXT = types.Content(role="model", parts=[types.Part(text="summary")])
ACTIONS = {
    "skip_summarization": True,
    "state_delta": {"k": None, "n": {"a": [1, None, "\0"]}},
    "artifact_delta": {"file.txt": 3},
    "transfer_to_agent": "other",
    "transfer_reason": "knows more",
    "escalate": True,
    "requested_auth_configs": {},
    "requested_tool_confirmations": {
        "call": ToolConfirmation(hint="sure?", confirmed=True, payload={"a": 1})
    },
    "compaction": EventCompaction(start_timestamp=1.5, end_timestamp=2.5, compacted_content=_TEXT),
    "end_of_agent": True,
    "agent_state": {"step": 2},
    "rewind_before_invocation_id": "e-0",
    "route": ["a", 1, True],
    "render_ui_widgets": [UiWidget(id="w", provider="mcp", payload={"x": 1})],
    "set_model_response": {"answer": 42},
}
FIELDS: dict[str, Any] = {
    "model_version": "gemini-x",
    "content": types.Content(
        role="model",
        parts=[
            types.Part(text="thinking", thought=True, thought_signature=b"\xff\xfe\0"),
            types.Part(inline_data=types.Blob(data=b"\x89PNG\xff", mime_type="image/png")),
            types.Part(function_call=types.FunctionCall(id="c", name="f", args={"x": None})),
            types.Part(
                function_response=types.FunctionResponse(id="c", name="f", response={"y": [1.5]})
            ),
            types.Part(executable_code=types.ExecutableCode(code="1", language="PYTHON")),
            types.Part(
                code_execution_result=types.CodeExecutionResult(outcome="OUTCOME_OK", output="1")
            ),
            types.Part(file_data=types.FileData(file_uri="gs://b/f", mime_type="text/plain")),
        ],
    ),
    "grounding_metadata": types.GroundingMetadata(web_search_queries=["q"]),
    "turn_complete": True,
    "turn_complete_reason": types.TurnCompleteReason.RESPONSE_REJECTED,
    "interaction_status": types.InteractionStatus.REQUIRES_ACTION,
    "voice_activity": types.VoiceActivity(audio_offset="1.5s"),
    "cache_metadata": CacheMetadata(fingerprint="f", contents_count=2),
    "finish_reason": types.FinishReason.MAX_TOKENS,
    "error_code": "E",
    "error_message": "m",
    "interrupted": True,
    "custom_metadata": {"a": None, "b": [1]},
    "usage_metadata": types.GenerateContentResponseUsageMetadata(
        prompt_token_count=3,
        prompt_tokens_details=[
            types.ModalityTokenCount(modality=types.MediaModality.TEXT, token_count=3)
        ],
    ),
    "live_session_resumption_update": types.LiveServerSessionResumptionUpdate(
        new_handle="h", resumable=True
    ),
    "live_session_id": "live",
    "go_away": types.LiveServerGoAway(time_left="5s"),
    "input_transcription": types.Transcription(text="in", finished=True),
    "output_transcription": types.Transcription(text="out", finished=False),
    "avg_logprobs": -0.25,
    "logprobs_result": types.LogprobsResult(
        chosen_candidates=[types.LogprobsResultCandidate(token="a", log_probability=-1.5)]
    ),
    "citation_metadata": types.CitationMetadata(citations=[types.Citation(uri="u", end_index=2)]),
    "interaction_id": "i",
    "environment_id": "env",
    "invocation_id": "e-1",
    "author": "agent",
    "output": {"any": ["thing", None]},
    "node_info": {"path": "wf@1/node@2", "output_for": ["wf@1"], "message_as_output": True},
    "long_running_tool_ids": {"b", "a", "c"},
    "branch": "root.child",
    "isolation_scope": "scope",
}


async def test_every_field_of_an_event_comes_back_equal(store: Store) -> None:
    session = await store.create()
    given = [Event(**{"author": "agent", name: value}) for name, value in FIELDS.items()]
    given += [Event(actions=EventActions(**{name: value})) for name, value in ACTIONS.items()]
    for one in given:
        await store.service.append_event(session, one)
    assert (await store.get()).events == given  # read from the store
    assert (await store.get()).events == given  # and from what the service remembers


def test_no_field_of_an_event_is_left_out_here() -> None:
    left_out = {"id", "timestamp", "actions", "partial"}  # each has a test of its own
    assert set(Event.model_fields) - left_out == set(FIELDS)
    assert set(EventActions.model_fields) == set(ACTIONS)


# -- state ------------------------------------------------------------------------------


async def test_a_loaded_state_records_what_is_written_into_it(store: Store) -> None:
    session = await store.create({"list": [1], "user:u": {"a": 1}})
    session = await store.get()
    delta: dict[str, Any] = {}
    state = State(value=session.state, delta=delta)
    state["new"] = 1
    state["list"].append(2)
    state["user:u"]["b"] = 2
    assert state.has_delta()
    await store.service.append_event(session, event("", state=dict(delta)))
    assert (await store.get()).state == {"list": [1, 2], "user:u": {"a": 1, "b": 2}, "new": 1}


def _config(**options: Any) -> Any:
    from google.adk.sessions.base_session_service import GetSessionConfig

    return GetSessionConfig(**options)
