"""What a caller of a session service may rely on, whichever service it is.

The classes of tests follow `docs/guarantees.md`; the numbers there name the tests here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from threadline import clock
from threadline.canonical import is_same
from threadline.content import Blob, Content, FunctionCall, FunctionResponse, Part
from threadline.engines.base import ErasedUser
from threadline.errors import (
    AlreadyExistsError,
    EventConflictError,
    InvalidIdError,
    InvalidInputError,
    ReadOnlyStateError,
    SessionNotFoundError,
    StaleSessionError,
    StateConflictError,
    UnsupportedValueError,
)
from threadline.models import Event, EventActions, GetSessionConfig, Session
from threadline.patch import MISSING
from threadline.service import BaseSessionService
from threadline.testing.loops import asynchronous

if TYPE_CHECKING:
    from collections.abc import Sequence

# Any, as it is given as keywords of several types.
IDS: Any = {"app_name": "app", "user_id": "user"}

HOSTILE_IDS = [
    "a:b", "a/b", "%", "_", "*", "'", '"', ";--", "\\", " ", "  a ", "a\nb", "nul\x00id",
    "É", "E\u0301", "é", "ß", "ss", "A", "a", "日本", "🙂", "\u202e", "app:", "user:", "x" * 512,
]  # fmt: skip

REFUSED_IDS = ["", "x" * 513, "é" * 257, "\ud800"]

HOSTILE_VALUES: list[Any] = [
    None, True, False, 0, -0.0, 1.0, 2**53 + 1, 2**63, -(2**63) - 1, 2**70, 0.1, 1e308, 5e-324,
    1.7976931348623157e308, 0.30000000000000004, float("inf"), float("-inf"), float("nan"),
    "", "nul\x00inside", "\ud800", "a\udfffb", "\u2028", "🙂", "\\ud83d", '"', "x" * 100_000,
    [], {}, [[]], {"": {"": []}}, {"a": None}, [1, [2, {"three": float("nan")}]],
    {"\x7fextra": {"x": 1}}, {"camelCase": 1, "snake_case": 2}, {"\x00": "\x00"},
]  # fmt: skip

REFUSED_VALUES = [(1, 2), {1, 2}, b"bytes", object(), {1: "int key"}, 1 + 2j]


def say(text: str = "hello", *, state: dict[str, Any] | None = None, **fields: Any) -> Event:
    """Make an event that says something and sets some state."""
    return Event(
        author=fields.pop("author", "user"),
        content=Content(parts=[Part(text=text)], role="user"),
        actions=EventActions(state_delta=state or {}),
        **fields,
    )


def texts(events: Sequence[Event]) -> list[str]:
    """Return what the events say."""
    return [event.content.text if event.content else "" for event in events]


async def reload(service: BaseSessionService, session: Session, **config: Any) -> Session:
    """Load a session again, by its ids."""
    found = await service.get_session(
        app_name=session.app_name,
        user_id=session.user_id,
        session_id=session.id,
        config=GetSessionConfig(**config) if config else None,
    )
    assert found is not None
    return found


async def filled(service: BaseSessionService, count: int) -> Session:
    """Create a session with some events, at the times 1.0, 2.0, ..."""
    session = await service.create_session(**IDS)
    await service.append_events(
        session, [say(f"{n}", timestamp=float(n)) for n in range(1, count + 1)]
    )
    return session


@asynchronous
class ServiceSuite:
    """Inherit it and override the `service` fixture."""

    @pytest.fixture
    def service(self) -> BaseSessionService:
        """Return a new service over an empty store, unopened."""
        raise NotImplementedError("Override the `service` fixture.")

    # -- create and get ---------------------------------------------------------------------

    async def test_a_created_session_equals_the_loaded_one(
        self, service: BaseSessionService
    ) -> None:
        created = await service.create_session(
            **IDS, state={"a": 1, "app:b": 2, "user:c": 3}, display_name="Trip", labels={"k": "v"}
        )
        assert await reload(service, created) == created
        assert created.events == []
        assert created.last_update_time == created.create_time

    async def test_a_missing_session_is_none(self, service: BaseSessionService) -> None:
        assert await service.get_session(**IDS, session_id="missing") is None

    async def test_an_id_is_made_if_none_is_given(self, service: BaseSessionService) -> None:
        first, second = await service.create_session(**IDS), await service.create_session(**IDS)
        assert first.id
        assert first.id != second.id

    async def test_an_id_is_taken_once_per_user_and_app(self, service: BaseSessionService) -> None:
        await service.create_session(**IDS, session_id="s")
        await service.create_session(app_name="app", user_id="other", session_id="s")
        await service.create_session(app_name="other", user_id="user", session_id="s")
        with pytest.raises(AlreadyExistsError):
            await service.create_session(**IDS, session_id="s")

    async def test_of_many_concurrent_creates_one_wins(self, service: BaseSessionService) -> None:
        outcomes = await asyncio.gather(
            *(service.create_session(**IDS, session_id="s", state={"n": n}) for n in range(50)),
            return_exceptions=True,
        )
        winners = [outcome for outcome in outcomes if isinstance(outcome, Session)]
        assert len(winners) == 1
        assert sum(isinstance(outcome, AlreadyExistsError) for outcome in outcomes) == 49
        assert (await reload(service, winners[0])).state == winners[0].state

    async def test_get_or_create_gives_everybody_the_same_session(
        self, service: BaseSessionService
    ) -> None:
        sessions = await asyncio.gather(
            *(service.get_or_create_session(**IDS, session_id="s") for _ in range(20))
        )
        assert len({session.incarnation for session in sessions}) == 1

    async def test_a_handle_is_a_copy(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS, state={"list": [1]})
        event = say(state={"dict": {"a": [1]}})
        stored = await service.append_event(session, event)
        event.actions.state_delta["dict"]["a"].append(2)
        stored.actions.state_delta["dict"]["a"].append(3)
        again = await reload(service, session)
        assert again.state["dict"] == {"a": [1]}
        assert again.events[0].actions.state_delta == {"dict": {"a": [1]}}

    # -- filters ----------------------------------------------------------------------------

    async def test_num_recent_events_takes_the_newest_in_order(
        self, service: BaseSessionService
    ) -> None:
        session = await filled(service, 5)
        assert texts((await reload(service, session, num_recent_events=2)).events) == ["4", "5"]
        assert texts((await reload(service, session, num_recent_events=9)).events) == list("12345")

    async def test_num_recent_events_of_zero_loads_none(self, service: BaseSessionService) -> None:
        session = await filled(service, 3)
        found = await reload(service, session, num_recent_events=0)
        assert found.events == []
        assert found.revision == 3

    async def test_after_timestamp_is_inclusive(self, service: BaseSessionService) -> None:
        session = await filled(service, 5)
        found = await reload(service, session, after_timestamp=4.0)
        assert texts(found.events) == ["4", "5"]
        assert not found.is_complete

    async def test_after_timestamp_of_zero_keeps_all_since_the_epoch(
        self, service: BaseSessionService
    ) -> None:
        session = await filled(service, 3)
        assert len((await reload(service, session, after_timestamp=0.0)).events) == 3

    async def test_after_timestamp_compares_exactly(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS)
        low, high = 1700000000.0000001, 1700000000.0000005
        await service.append_events(session, [say("low", timestamp=low), say(timestamp=high)])
        assert len((await reload(service, session, after_timestamp=high)).events) == 1
        assert len((await reload(service, session, after_timestamp=low)).events) == 2

    async def test_both_filters_take_the_newest_of_those_that_pass(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        times = [5.0, 1.0, 6.0, 2.0]
        await service.append_events(session, [say(str(t), timestamp=t) for t in times])
        found = await reload(service, session, num_recent_events=1, after_timestamp=5.0)
        assert texts(found.events) == ["6.0"]

    async def test_after_seq_is_exclusive(self, service: BaseSessionService) -> None:
        session = await filled(service, 5)
        assert texts((await reload(service, session, after_seq=3)).events) == ["4", "5"]

    async def test_a_filtered_handle_has_the_whole_state(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS, state={"a": 1})
        await service.append_event(session, say(state={"b": 2, "user:c": 3}))
        found = await reload(service, session, num_recent_events=0)
        assert found.state == {"a": 1, "b": 2, "user:c": 3}

    async def test_a_filtered_handle_can_be_appended_to(self, service: BaseSessionService) -> None:
        session = await filled(service, 3)
        handle = await reload(service, session, num_recent_events=1)
        stored = await service.append_event(handle, say("4"))
        assert stored.seq == 4
        assert texts((await reload(service, session)).events) == ["1", "2", "3", "4"]

    async def test_a_negative_filter_is_refused(self, service: BaseSessionService) -> None:
        session = await filled(service, 1)
        with pytest.raises(ValueError, match="num_recent_events"):
            await reload(service, session, num_recent_events=-1)

    # -- order (guarantee 1) ----------------------------------------------------------------

    async def test_seq_is_gap_free_from_one(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS)
        for _ in range(3):
            await service.append_event(session, say())
        await service.append_events(session, [say(), say()])
        assert [event.seq for event in (await reload(service, session)).events] == [1, 2, 3, 4, 5]
        assert session.revision == 5

    async def test_equal_timestamps_keep_append_order(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS)
        for name in "zmbxa":
            await service.append_event(session, say(name, id=name, timestamp=1.0))
        assert texts((await reload(service, session)).events) == list("zmbxa")

    async def test_timestamps_going_backwards_keep_append_order(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        for n in (9, 3, 7, 1):
            await service.append_event(session, say(str(n), timestamp=float(n)))
        assert texts((await reload(service, session)).events) == ["9", "3", "7", "1"]

    async def test_last_update_time_is_the_last_events_timestamp(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        await service.append_event(session, say(timestamp=12345.678901))
        assert session.last_update_time == 12345.678901
        assert (await reload(service, session)).last_update_time == 12345.678901

    # -- append -----------------------------------------------------------------------------

    async def test_an_appended_event_comes_back_equal(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS)
        event = Event(
            author="agent",
            invocation_id="e-1",
            content=Content(
                role="model",
                parts=[
                    Part(text="text", thought=True, thought_signature=bytes(range(256))),
                    Part(function_call=FunctionCall(id="c", name="f", args={"a": [1, None]})),
                    Part(function_response=FunctionResponse(id="c", name="f", response={"r": 1})),
                    Part(inline_data=Blob(data=bytes(range(256)), mime_type="image/png")),
                ],
            ),
            actions=EventActions(state_delta={"k": {"n": None}}, artifact_delta={"f": 1}),
            long_running_tool_ids={"b", "a"},
            custom_metadata={"x": [1.5]},
        )
        stored = await service.append_event(session, event)
        assert stored == event
        assert (await reload(service, session)).events == [event]

    async def test_the_handle_receives_event_state_and_time(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        stored = await service.append_event(session, say(state={"a": 1, "user:b": 2, "app:c": 3}))
        assert session.events == [stored]
        assert session.state == {"a": 1, "user:b": 2, "app:c": 3}
        assert session == await reload(service, session)

    async def test_a_partial_event_is_not_stored(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS)
        event = say(state={"a": 1, "temp:b": 1}, partial=True)
        assert await service.append_event(session, event) is event
        assert session.state == {}
        assert (await reload(service, session)).events == []

    async def test_append_to_a_missing_session_is_refused(
        self, service: BaseSessionService
    ) -> None:
        with pytest.raises(SessionNotFoundError):
            await service.append_event(Session(id="missing", **IDS), say())
        with pytest.raises(ValueError, match="missing"):
            await service.append_event(Session(id="missing", **IDS), say())

    async def test_a_refused_append_leaves_the_handle_as_it_was(
        self, service: BaseSessionService
    ) -> None:
        session = Session(id="missing", **IDS)
        with pytest.raises(SessionNotFoundError):
            await service.append_event(session, say(state={"a": 1, "temp:b": 2}))
        assert session.state == {}
        assert session.events == []

    async def test_a_dict_or_a_foreign_object_is_taken_as_an_event(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        given: Any = {"author": "user", "content": {"parts": [{"text": "hi"}]}}
        assert texts([await service.append_event(session, given)]) == ["hi"]

    async def test_unknown_fields_survive_load_and_append_elsewhere(
        self, service: BaseSessionService
    ) -> None:
        source = '{"id":"x","timestamp":1.0,"author":"a","newField":{"deep":[1]},"content":{"parts":[{"text":"t","newPart":true}],"tone":"warm"},"actions":{"stateDelta":{"k":1},"newAction":[1]}}'  # noqa: E501 - one JSON document
        first, second = await service.create_session(**IDS), await service.create_session(**IDS)
        await service.append_event(first, Event.from_json(source))
        loaded = (await reload(service, first)).events[0]
        await service.append_event(second, loaded)
        again = (await reload(service, second)).events[0]
        kept = msgspec.json.decode(msgspec.structs.replace(again, seq=None).to_json())
        assert kept == msgspec.json.decode(source)

    # -- atomic (guarantee 2) ---------------------------------------------------------------

    async def test_a_batch_with_one_bad_event_stores_nothing(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        with pytest.raises(UnsupportedValueError):
            await service.append_events(session, [say(state={"a": 1}), say(state={"b": object()})])
        again = await reload(service, session)
        assert again.events == []
        assert again.state == {}

    async def test_a_batch_with_one_conflict_stores_nothing(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        await service.append_event(session, say("first", id="taken"))
        with pytest.raises(EventConflictError):
            await service.append_events(
                session, [say("new", state={"user:a": 1}), say("other", id="taken")]
            )
        again = await reload(service, session)
        assert texts(again.events) == ["first"]
        assert again.state == {}

    async def test_a_batch_is_stored_in_its_order(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS)
        stored = await service.append_events(
            session, [say("a", state={"k": 1}), say("p", partial=True), say("b", state={"k": 2})]
        )
        assert texts(stored) == ["a", "p", "b"]
        assert [event.seq for event in stored] == [1, None, 2]
        assert (await reload(service, session)).state == {"k": 2}

    # -- idempotent (guarantee 4) -----------------------------------------------------------

    async def test_appending_the_same_event_again_changes_nothing(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        event = say(state={"n": 1})
        first = await service.append_event(session, event)
        await service.append_event(session, say(state={"n": 2}))
        again = await service.append_event(session, event)
        assert again == first
        assert again.seq == first.seq
        assert session.state == {"n": 2}
        assert session == await reload(service, session)

    async def test_a_retry_through_an_old_handle_returns_the_stored_event(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        lost = await reload(service, session)  # as after an answer that never arrived
        event = say(state={"n": 1})
        stored = await service.append_event(session, event)
        retried = await service.append_event(lost, event)
        assert retried.seq == stored.seq
        assert lost == session

    async def test_a_retry_with_reordered_keys_is_a_retry(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        await service.append_event(session, say(id="x", timestamp=1.0, state={"a": 1, "b": 2}))
        again = await service.append_event(
            session, say(id="x", timestamp=1.0, state={"b": 2, "a": 1})
        )
        assert again.seq == 1

    async def test_one_id_with_other_content_is_a_conflict(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        await service.append_event(session, say("one", id="x", timestamp=1.0))
        with pytest.raises(EventConflictError, match="'x'"):
            await service.append_event(session, say("two", id="x", timestamp=1.0))
        assert texts((await reload(service, session)).events) == ["one"]

    async def test_one_id_twice_in_a_batch_is_a_conflict(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS)
        with pytest.raises(EventConflictError):
            await service.append_events(session, [say(id="x"), say(id="x")])

    async def test_a_grown_batch_adds_only_what_is_new(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS)
        events = [say(str(n), state={"n": n}) for n in range(4)]
        await service.append_events(session, events[:2])
        stored = await service.append_events(session, events)
        assert [event.seq for event in stored] == [1, 2, 3, 4]
        assert session.state == {"n": 3}
        assert session == await reload(service, session)

    async def test_the_same_event_id_in_two_sessions_is_two_events(
        self, service: BaseSessionService
    ) -> None:
        first, second = await service.create_session(**IDS), await service.create_session(**IDS)
        event = say("both")
        await service.append_event(first, event)
        await service.append_event(second, event)
        assert len((await reload(service, first)).events) == 1
        assert len((await reload(service, second)).events) == 1

    # -- no lost update (guarantee 5) -------------------------------------------------------

    async def test_a_stale_handle_is_refused_and_told_what_it_missed(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        old = await reload(service, session)
        await service.append_events(session, [say("one"), say("two")])
        with pytest.raises(StaleSessionError) as refused:
            await service.append_event(old, say("late", state={"a": 1}))
        assert texts(refused.value.missed) == ["one", "two"]
        assert (refused.value.expected, refused.value.revision) == (0, 2)
        assert old.revision == 0
        assert old.state == {}

    async def test_a_stale_handle_is_refused_even_at_equal_timestamps(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        old = await reload(service, session)
        await service.append_event(session, say(timestamp=session.last_update_time))
        with pytest.raises(StaleSessionError):
            await service.append_event(old, say(timestamp=session.last_update_time))

    async def test_a_refreshed_handle_can_append(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS)
        old = await reload(service, session)
        await service.append_event(session, say("one", state={"a": 1}))
        assert await service.refresh(old) is old
        assert old == session
        assert (await service.append_event(old, say("two"))).seq == 2

    async def test_rebase_appends_at_the_end_and_tells_the_handle(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        old = await reload(service, session)
        await service.append_events(session, [say("one", state={"a": 1}), say("two")])
        stored = await service.append_event(old, say("late", state={"b": 2}), on_stale="rebase")
        assert stored.seq == 3
        assert texts(old.events) == ["one", "two", "late"]
        assert old == await reload(service, session)

    async def test_writers_with_rebase_lose_nothing(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS)

        async def write(name: str) -> Session:
            handle = await reload(service, session)
            for n in range(10):
                await service.append_event(
                    handle, say(f"{name}{n}", state={name: n}), on_stale="rebase"
                )
            return handle

        handles = await asyncio.gather(*(write(name) for name in "abcdefgh"))
        final = await reload(service, session)
        assert [event.seq for event in final.events] == list(range(1, 81))
        assert final.state == dict.fromkeys("abcdefgh", 9)
        for handle in handles:
            assert await service.refresh(handle) == final

    async def test_of_two_writers_at_one_revision_exactly_one_wins(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        handles = [await reload(service, session) for _ in range(10)]
        outcomes = await asyncio.gather(
            *(service.append_event(handle, say()) for handle in handles), return_exceptions=True
        )
        assert sum(isinstance(outcome, Event) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, StaleSessionError) for outcome in outcomes) == 9

    async def test_appends_through_one_handle_take_turns(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS)
        await asyncio.gather(*(service.append_event(session, say(str(n))) for n in range(10)))
        assert session == await reload(service, session)
        assert sorted(texts(session.events)) == sorted(map(str, range(10)))

    async def test_an_unknown_policy_is_refused(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS)
        policy: Any = "merge"
        with pytest.raises(InvalidInputError, match="on_stale"):
            await service.append_event(session, say(), on_stale=policy)

    async def test_a_json_copy_of_a_handle_can_append(self, service: BaseSessionService) -> None:
        session = await filled(service, 2)
        copy = Session(
            id=session.id,
            app_name=session.app_name,
            user_id=session.user_id,
            events=list(session.events),
        )
        assert (await service.append_event(copy, say("3"))).seq == 3

    # -- scopes (guarantee 6) ---------------------------------------------------------------

    async def test_state_is_shared_by_its_scope(self, service: BaseSessionService) -> None:
        mine = await service.create_session(**IDS, state={"a": 1, "user:b": 2, "app:c": 3})
        same_user = await service.create_session(**IDS)
        other_user = await service.create_session(app_name="app", user_id="other")
        other_app = await service.create_session(app_name="other", user_id="user")
        assert mine.state == {"a": 1, "user:b": 2, "app:c": 3}
        assert same_user.state == {"user:b": 2, "app:c": 3}
        assert other_user.state == {"app:c": 3}
        assert other_app.state == {}

    async def test_temp_state_is_seen_by_the_handle_and_never_stored(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS, state={"temp:initial": 1})
        assert session.state == {}
        stored = await service.append_event(session, say(state={"temp:a": 1, "b": 2}))
        assert session.state == {"temp:a": 1, "b": 2}
        assert stored.actions.state_delta == {"b": 2}
        again = await reload(service, session)
        assert again.state == {"b": 2}
        assert again.events[0].actions.state_delta == {"b": 2}

    async def test_a_delta_replaces_whole_values_and_keeps_none(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS, state={"d": {"a": 1}, "n": 1, "k": 1})
        await service.append_event(session, say(state={"d": {"b": 2}, "n": None}))
        assert (await reload(service, session)).state == {"d": {"b": 2}, "n": None, "k": 1}

    async def test_a_key_with_a_foreign_prefix_belongs_to_the_session(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS, state={"foo:bar": 1, "APP:x": 2})
        assert (await reload(service, session)).state == {"foo:bar": 1, "APP:x": 2}
        assert await service.get_app_state(app_name="app") == {}

    async def test_only_the_first_prefix_counts(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS, state={"user:app:x": 1, "app:user:y": 2})
        assert await service.get_user_state(**IDS) == {"app:x": 1}
        assert await service.get_app_state(app_name="app") == {"user:y": 2}
        assert (await reload(service, session)).state == {"user:app:x": 1, "app:user:y": 2}

    async def test_user_state_lives_without_sessions(self, service: BaseSessionService) -> None:
        assert await service.get_user_state(**IDS) == {}
        session = await service.create_session(**IDS, state={"user:a": [1]})
        await service.delete_session(**IDS, session_id=session.id)
        assert await service.get_user_state(**IDS) == {"a": [1]}

    async def test_writers_of_different_keys_lose_nothing(
        self, service: BaseSessionService
    ) -> None:
        async def write(n: int) -> None:
            session = await service.create_session(**IDS)
            await service.append_event(session, say(state={f"user:{n}": n, f"app:{n}": n}))
            await service.patch_state(**IDS, increment={"count": 1})

        await asyncio.gather(*(write(n) for n in range(50)))
        users = await service.get_user_state(**IDS)
        assert users.pop("count") == 50
        assert users == {str(n): n for n in range(50)}
        assert len(await service.get_app_state(app_name="app")) == 50

    async def test_session_state_refuses_to_be_written(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS, state={"a": {"b": []}})
        for write in (
            lambda: session.state.__setitem__("x", 1),
            lambda: session.state.update(x=1),
            lambda: session.state["a"].pop("b"),
            lambda: session.state["a"]["b"].append(1),
        ):
            with pytest.raises(ReadOnlyStateError, match="state_delta"):
                write()
        assert session.state == {"a": {"b": []}}

    # -- patch ------------------------------------------------------------------------------

    async def test_patch_changes_each_scope(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS, state={"a": 1, "gone": 1})
        await service.patch_state(**IDS, session_id=session.id, set={"a": 2}, delete=["gone"])
        await service.patch_state(**IDS, set={"b": {"x": []}})
        await service.patch_state(app_name="app", increment={"c": 2})
        assert (await reload(service, session)).state == {"a": 2, "user:b": {"x": []}, "app:c": 2}

    async def test_patch_adds_no_event_and_makes_no_handle_stale(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        await service.patch_state(**IDS, session_id=session.id, set={"a": 1})
        assert (await service.append_event(session, say(state={"b": 2}))).seq == 1
        assert "a" not in session.state
        await service.refresh(session)
        assert session.state == {"a": 1, "b": 2}

    async def test_patch_returns_the_new_values(self, service: BaseSessionService) -> None:
        await service.patch_state(**IDS, set={"n": 1, "x": 1})
        patched = await service.patch_state(
            **IDS, increment={"n": 0.5}, set={"m": []}, delete=["x"]
        )
        assert patched == {"n": 1.5, "m": []}
        assert await service.get_user_state(**IDS) == {"n": 1.5, "m": []}

    async def test_compare_and_set(self, service: BaseSessionService) -> None:
        await service.patch_state(**IDS, set={"owner": "a"}, expect={"owner": MISSING})
        with pytest.raises(StateConflictError, match="owner"):
            await service.patch_state(**IDS, set={"owner": "b", "x": 1}, expect={"owner": MISSING})
        await service.patch_state(**IDS, set={"owner": "b"}, expect={"owner": "a"})
        assert await service.get_user_state(**IDS) == {"owner": "b"}

    async def test_compare_and_set_lets_one_of_many_win(self, service: BaseSessionService) -> None:
        outcomes = await asyncio.gather(
            *(
                service.patch_state(**IDS, set={"winner": n}, expect={"winner": MISSING})
                for n in range(20)
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, dict) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, StateConflictError) for outcome in outcomes) == 19

    async def test_increments_add_up(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS)
        ids: Any = {**IDS, "session_id": session.id}
        await asyncio.gather(*(service.patch_state(**ids, increment={"n": 1}) for _ in range(50)))
        assert (await reload(service, session)).state == {"n": 50}

    async def test_a_patch_that_makes_no_sense_is_refused(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS, state={"text": "x", "user:n": 1})
        ids: Any = {**IDS, "session_id": session.id}
        wrong: Any = "1"
        for arguments in (
            {"set": {"user:a": 1}},
            {"set": {"a": 1}, "delete": ["a"]},
            {"increment": {"a": wrong}},
            {"increment": {"text": 1}},
            {"set": {"a": object()}},
        ):
            with pytest.raises(InvalidInputError):
                await service.patch_state(**ids, **arguments)
        with pytest.raises(InvalidInputError, match="user_id"):
            await service.patch_state(app_name="app", session_id=session.id, set={"a": 1})
        assert (await reload(service, session)).state == {"text": "x", "user:n": 1}

    async def test_patch_of_a_missing_session_is_refused(self, service: BaseSessionService) -> None:
        with pytest.raises(SessionNotFoundError):
            await service.patch_state(**IDS, session_id="missing", set={"a": 1})

    # -- isolation (guarantee 7) ------------------------------------------------------------

    async def test_hostile_ids_are_kept_verbatim_and_apart(
        self, service: BaseSessionService
    ) -> None:
        for name in HOSTILE_IDS:
            session = await service.create_session(
                app_name=name,
                user_id=name,
                session_id=name,
                state={"id": name, "user:id": name, "app:id": name},
            )
            await service.append_event(session, say(name, id=name))
        for name in HOSTILE_IDS:
            ids: Any = {"app_name": name, "user_id": name}
            found = await service.get_session(**ids, session_id=name)
            assert found is not None
            assert (found.app_name, found.user_id, found.id) == (name, name, name)
            assert found.state == {"id": name, "user:id": name, "app:id": name}
            assert [event.id for event in found.events] == [name]
            assert [s.id for s in (await service.list_sessions(**ids)).sessions] == [name]
            assert len((await service.list_sessions(app_name=name)).sessions) == 1

    async def test_ids_that_join_to_the_same_text_do_not_collide(
        self, service: BaseSessionService
    ) -> None:
        triples = (("a:b", "c", "d"), ("a", "b:c", "d"), ("a", "b", "c:d"))
        for app, user, name in triples:
            await service.create_session(
                app_name=app, user_id=user, session_id=name, state={"user:k": app, "app:k": app}
            )
        for app, user, name in triples:
            assert (await service.get_user_state(app_name=app, user_id=user)) == {"k": app}
            listed = (await service.list_sessions(app_name=app, user_id=user)).sessions
            assert [session.id for session in listed] == [name]

    async def test_an_id_that_cannot_be_kept_is_refused(self, service: BaseSessionService) -> None:
        for bad in REFUSED_IDS:
            for name in ("app_name", "user_id", "session_id"):
                ids: Any = {**IDS, "session_id": "s", name: bad}
                with pytest.raises(InvalidIdError, match=name):
                    await service.create_session(**ids)
                with pytest.raises(InvalidIdError, match=name):
                    await service.get_session(**ids)
        assert (await service.list_sessions(app_name="app")).sessions == []

    async def test_another_user_cannot_reach_a_session(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS, session_id="s")
        other: Any = {"app_name": "app", "user_id": "other", "session_id": "s"}
        assert await service.get_session(**other) is None
        await service.delete_session(**other)
        with pytest.raises(SessionNotFoundError):
            await service.list_events(**other)
        assert await reload(service, session) == session

    # -- lossless (guarantee 8) -------------------------------------------------------------

    async def test_hostile_values_come_back_equal(self, service: BaseSessionService) -> None:
        for value in HOSTILE_VALUES:
            session = await service.create_session(**IDS, state={"initial": value})
            call = Part(function_call=FunctionCall(name="f", args={"v": value}))
            event = Event(
                author="a",
                content=Content(parts=[call]),
                actions=EventActions(state_delta={"k": value, "user:k": value}),
            )
            await service.append_event(session, event)
            again = await reload(service, session)
            (loaded,) = again.events
            assert is_same(again.state["initial"], value)
            assert is_same(again.state["k"], value)
            assert is_same(again.state["user:k"], value)
            assert is_same(loaded.actions.state_delta, {"k": value, "user:k": value})
            assert is_same(loaded.get_function_calls()[0].args, {"v": value})

    async def test_a_value_that_would_change_is_refused_by_its_path(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        for value in REFUSED_VALUES:
            with pytest.raises(UnsupportedValueError, match="deep"):
                await service.append_event(session, say(state={"k": [{"deep": value}]}))
            with pytest.raises(UnsupportedValueError, match="deep"):
                await service.create_session(**IDS, state={"deep": value})
        assert (await reload(service, session)).events == []

    async def test_a_hostile_state_key_is_kept_or_refused(
        self, service: BaseSessionService
    ) -> None:
        keys = ["", " ", "a b", "nul\x00key", "É", "é", "e\u0301", "🙂", "%", "x" * 1024]
        session = await service.create_session(**IDS, state={key: key for key in keys})
        assert (await reload(service, session)).state == {key: key for key in keys}
        for key in ("x" * 1025, "\ud800"):
            with pytest.raises(InvalidInputError):
                await service.append_event(session, say(state={key: 1}))

    async def test_an_event_that_cannot_be_ordered_in_time_is_refused(
        self, service: BaseSessionService
    ) -> None:
        session = await service.create_session(**IDS)
        for timestamp in (float("nan"), float("inf")):
            with pytest.raises(InvalidInputError, match="timestamp"):
                await service.append_event(session, say(timestamp=timestamp))

    async def test_a_ten_megabyte_event_comes_back(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS)
        data = bytes(range(256)) * 40_000
        part = Part(inline_data=Blob(data=data, mime_type="application/octet-stream"))
        await service.append_event(session, Event(author="a", content=Content(parts=[part])))
        (loaded,) = (await reload(service, session)).events
        assert loaded.content is not None
        assert loaded.content.parts == [part]

    # -- complete reads (guarantee 9) -------------------------------------------------------

    async def test_a_full_read_has_every_event(self, service: BaseSessionService) -> None:
        session = await filled(service, 2500)
        again = await reload(service, session)
        assert [event.seq for event in again.events] == list(range(1, 2501))
        assert again.is_complete

    async def test_event_pages_forwards(self, service: BaseSessionService) -> None:
        session = await filled(service, 5)
        ids: Any = {**IDS, "session_id": session.id}
        first = await service.list_events(**ids, limit=2)
        assert (texts(first.events), first.has_more) == (["1", "2"], True)
        second = await service.list_events(**ids, limit=2, after_seq=2)
        assert (texts(second.events), second.has_more) == (["3", "4"], True)
        last = await service.list_events(**ids, limit=2, after_seq=4)
        assert (texts(last.events), last.has_more) == (["5"], False)
        beyond = await service.list_events(**ids, limit=2, after_seq=5)
        assert (texts(beyond.events), beyond.has_more) == ([], False)

    async def test_event_pages_backwards(self, service: BaseSessionService) -> None:
        session = await filled(service, 5)
        ids: Any = {**IDS, "session_id": session.id}
        newest = await service.list_events(**ids, limit=2, reverse=True)
        assert (texts(newest.events), newest.has_more) == (["4", "5"], True)
        before = await service.list_events(**ids, limit=3, reverse=True, before_seq=4)
        assert (texts(before.events), before.has_more) == (["1", "2", "3"], False)
        between = await service.list_events(**ids, limit=9, after_seq=1, before_seq=4)
        assert (texts(between.events), between.has_more) == (["2", "3"], False)

    async def test_event_pages_refuse_nonsense(self, service: BaseSessionService) -> None:
        session = await filled(service, 1)
        ids: Any = {**IDS, "session_id": session.id}
        for wrong in ({"limit": 0}, {"limit": -1}, {"after_seq": -1}, {"before_seq": "x"}):
            with pytest.raises(InvalidInputError):
                await service.list_events(**ids, **wrong)
        with pytest.raises(SessionNotFoundError):
            await service.list_events(**IDS, session_id="missing")

    # -- listing ----------------------------------------------------------------------------

    async def test_the_plain_list_is_adks(self, service: BaseSessionService) -> None:
        for user, time in (("b", 3.0), ("a", 3.0), ("c", 1.0)):
            session = await service.create_session(
                app_name="app", user_id=user, session_id="s", state={"k": user, "user:u": user}
            )
            await service.append_event(session, say(timestamp=time, state={"app:x": 1}))
        listed = await service.list_sessions(app_name="app")
        assert [session.user_id for session in listed.sessions] == ["c", "a", "b"]
        assert listed.sessions[0].state == {"k": "c", "user:u": "c", "app:x": 1}
        assert all(session.events == [] for session in listed.sessions)
        assert not listed.has_more
        mine = await service.list_sessions(app_name="app", user_id="a")
        assert [session.user_id for session in mine.sessions] == ["a"]
        assert (await service.list_sessions(app_name="none")).sessions == []

    async def test_pages_walk_the_whole_list_in_every_order(
        self, service: BaseSessionService
    ) -> None:
        for n in range(11):
            with clock.replaced(now=lambda n=n: float(n // 2)):  # type: ignore[misc]
                session = await service.create_session(
                    app_name="app", user_id=f"u{n % 2}", session_id=f"s{n}"
                )
            await service.append_event(session, say(timestamp=float(100 - n // 3)))
        for user in (None, "u1"):
            everything = (await service.list_sessions(app_name="app", user_id=user)).sessions
            for order, time in (("updated", "last_update_time"), ("created", "create_time")):
                for descending in (False, True):
                    arguments: Any = {
                        "app_name": "app", "user_id": user, "order": order,
                        "descending": descending, "include_state": False,
                    }  # fmt: skip
                    expected = sorted(
                        everything,
                        key=lambda s: (getattr(s, time), s.user_id, s.id),
                        reverse=descending,
                    )
                    walked, cursor = [], None
                    while True:
                        page = await service.list_sessions(**arguments, limit=3, cursor=cursor)
                        walked += page.sessions
                        cursor = page.next_cursor
                        if cursor is None:
                            break
                        assert len(page.sessions) == 3
                    assert [s.id for s in walked] == [s.id for s in expected]

    async def test_a_summary_reads_no_state(self, service: BaseSessionService) -> None:
        await service.create_session(**IDS, state={"a": 1}, display_name="Trip", labels={"k": "v"})
        (listed,) = (await service.list_sessions(app_name="app", include_state=False)).sessions
        assert listed.state == {}
        assert (listed.display_name, listed.labels) == ("Trip", {"k": "v"})

    async def test_a_cursor_of_another_list_is_refused(self, service: BaseSessionService) -> None:
        for _ in range(3):
            await service.create_session(**IDS)
        page = await service.list_sessions(app_name="app", limit=1)
        for arguments in ({"order": "created"}, {"descending": True}, {"user_id": "user"}):
            given: Any = {"app_name": "app", "cursor": page.next_cursor, **arguments}
            with pytest.raises(InvalidInputError, match="cursor"):
                await service.list_sessions(**given)
        with pytest.raises(InvalidInputError, match="cursor"):
            await service.list_sessions(app_name="app", cursor="nonsense")
        order: Any = "title"
        for wrong in ({"limit": 0}, {"order": order}):
            with pytest.raises(InvalidInputError):
                await service.list_sessions(app_name="app", **wrong)

    # -- delete (guarantee 11) --------------------------------------------------------------

    async def test_a_deleted_session_is_gone(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS, session_id="s", state={"a": 1, "user:b": 2})
        await service.append_event(session, say(state={"c": 3}))
        await service.delete_session(**IDS, session_id="s")
        assert await service.get_session(**IDS, session_id="s") is None
        assert (await service.list_sessions(app_name="app")).sessions == []
        with pytest.raises(SessionNotFoundError):
            await service.append_event(session, say())
        with pytest.raises(SessionNotFoundError):
            await service.refresh(session)

    async def test_deleting_a_missing_session_is_silent(self, service: BaseSessionService) -> None:
        await service.delete_session(**IDS, session_id="missing")

    async def test_a_reused_id_starts_empty(self, service: BaseSessionService) -> None:
        old = await service.create_session(**IDS, session_id="s", state={"a": 1})
        await service.append_event(old, say(id="x"))
        await service.delete_session(**IDS, session_id="s")
        new = await service.create_session(**IDS, session_id="s")
        assert (new.state, new.events, new.revision) == ({}, [], 0)
        assert await reload(service, new) == new
        assert (await service.append_event(new, say("other", id="x"))).seq == 1

    async def test_a_handle_of_a_deleted_session_cannot_write_into_its_successor(
        self, service: BaseSessionService
    ) -> None:
        old = await service.create_session(**IDS, session_id="s")
        await service.delete_session(**IDS, session_id="s")
        new = await service.create_session(**IDS, session_id="s")
        policies: list[Any] = ["raise", "rebase"]
        for policy in policies:
            with pytest.raises(SessionNotFoundError):
                await service.append_event(old, say(), on_stale=policy)
        with pytest.raises(SessionNotFoundError):
            await service.refresh(old)
        assert (await reload(service, new)).events == []

    async def test_an_erased_user_is_gone(self, service: BaseSessionService) -> None:
        state = {"a": 1, "user:b": 2, "app:c": 3}
        kept = []
        for app, user in (("app", "other"), ("other", "user"), ("app", "user"), ("app", "user")):
            session = await service.create_session(app_name=app, user_id=user, state=state)
            await service.append_events(session, [say(), say(state={"d": 4})])
            kept.append(session)
        erased = await service.erase_user(**IDS)
        assert erased == ErasedUser(sessions=2, events=4, state_keys=5)
        assert (await service.list_sessions(**IDS)).sessions == []
        assert [await service.get_session(**IDS, session_id=one.id) for one in kept[2:]] == [
            None
        ] * 2
        assert await service.get_user_state(**IDS) == {}
        assert await service.get_app_state(app_name="app") == {"c": 3}
        for session in kept[:2]:
            assert await reload(service, session) == session

    async def test_expired_sessions_are_erased_too(self, service: BaseSessionService) -> None:
        with clock.replaced(now=lambda: 1000.0):
            session = await service.create_session(**IDS, ttl=60)
            await service.append_event(session, say())
        with clock.replaced(now=lambda: 1060.0):
            assert await service.erase_user(**IDS) == ErasedUser(sessions=1, events=1)

    async def test_erasing_a_user_who_has_nothing_is_no_error(
        self, service: BaseSessionService
    ) -> None:
        await service.patch_state(**IDS, set={"a": 1})
        assert await service.erase_user(**IDS) == ErasedUser(state_keys=1)
        assert await service.erase_user(**IDS) == ErasedUser()
        with pytest.raises(InvalidIdError):
            await service.erase_user(app_name="app", user_id="")

    async def test_a_handle_of_an_erased_user_cannot_write(
        self, service: BaseSessionService
    ) -> None:
        old = await service.create_session(**IDS, session_id="s", state={"a": 1, "user:b": 2})
        await service.append_event(old, say(id="x"))
        await service.erase_user(**IDS)
        policies: list[Any] = ["raise", "rebase"]
        for _ in range(2):  # before its id is taken again, and after
            for policy in policies:
                with pytest.raises(SessionNotFoundError):
                    await service.append_event(old, say(), on_stale=policy)
            with pytest.raises(SessionNotFoundError):
                await service.refresh(old)
            new = await service.get_or_create_session(**IDS, session_id="s")
            assert (new.state, new.events, new.revision) == ({}, [], 0)
            assert new.incarnation != old.incarnation
        assert (await service.append_event(new, say("other", id="x"))).seq == 1

    # -- expiry -----------------------------------------------------------------------------

    async def test_an_expired_session_is_invisible_at_once(
        self, service: BaseSessionService
    ) -> None:
        with clock.replaced(now=lambda: 1000.0):
            session = await service.create_session(**IDS, session_id="s", ttl=60, state={"a": 1})
            assert session.expire_time == 1060.0
        with clock.replaced(now=lambda: 1059.999):
            assert await reload(service, session) == session
        with clock.replaced(now=lambda: 1060.0):
            assert await service.get_session(**IDS, session_id="s") is None
            assert (await service.list_sessions(app_name="app")).sessions == []
            with pytest.raises(SessionNotFoundError):
                await service.append_event(session, say())
            with pytest.raises(SessionNotFoundError):
                await service.patch_state(**IDS, session_id="s", set={"b": 1})
            again = await service.create_session(**IDS, session_id="s")
            assert (again.state, again.revision) == ({}, 0)
            with pytest.raises(SessionNotFoundError):
                await service.append_event(session, say())

    async def test_ttl_and_expire_time_are_checked(self, service: BaseSessionService) -> None:
        for wrong in (
            {"ttl": 1, "expire_time": 1}, {"ttl": 0}, {"ttl": -1}, {"ttl": float("nan")},
            {"ttl": "60s"}, {"expire_time": float("inf")},
        ):  # fmt: skip
            with pytest.raises(InvalidInputError):
                await service.create_session(**IDS, **wrong)

    # -- titles, labels and expiry that change ------------------------------------------------

    async def test_update_session_changes_what_is_given(self, service: BaseSessionService) -> None:
        ids = {**IDS, "session_id": "s"}
        with clock.replaced(now=lambda: 1000.0):
            made = await service.create_session(
                **ids, display_name="d", labels={"a": "b"}, ttl=60, state={"k": 1}
            )
            for given in (
                {"display_name": "e"},
                {"labels": {"c": "d"}},
                {"ttl": 90},
                {"expire_time": 2000.0},
                {"display_name": None, "labels": None, "expire_time": None},
            ):
                changed: Any = {"expire_time": 1090.0} if "ttl" in given else {**given}
                if changed.get("labels", True) is None:
                    changed["labels"] = {}
                made = msgspec.structs.replace(made, **changed)
                assert await service.update_session(**ids, **given) == made
                assert await service.get_session(**ids) == made

    async def test_update_session_makes_no_handle_stale(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS)
        await service.update_session(**IDS, session_id=session.id, display_name="d")
        assert (await service.append_event(session, say())).seq == 1

    async def test_update_session_refuses_what_is_missing_or_wrong(
        self, service: BaseSessionService
    ) -> None:
        with pytest.raises(SessionNotFoundError):
            await service.update_session(**IDS, session_id="s", display_name="d")
        session = await service.create_session(**IDS, session_id="s")
        for wrong in ({"ttl": 0}, {"ttl": 1, "expire_time": None}, {"labels": {"a": 1}}):
            with pytest.raises(InvalidInputError):
                await service.update_session(**IDS, session_id="s", **wrong)
        assert await reload(service, session) == session

    # -- looking around ---------------------------------------------------------------------

    async def test_find_sessions_finds_each_user_that_has_the_id(
        self, service: BaseSessionService
    ) -> None:
        for user, id in (("b", "s"), ("a", "s"), ("a", "other")):
            await service.create_session(app_name="app", user_id=user, session_id=id)
        found = await service.find_sessions(app_name="app", session_id="s")
        assert [(session.user_id, session.id) for session in found] == [("a", "s"), ("b", "s")]
        assert await service.find_sessions(app_name="other", session_id="s") == []

    async def test_a_session_that_was_found_can_be_appended_to(
        self, service: BaseSessionService
    ) -> None:
        made = await service.create_session(**IDS, session_id="s")
        await service.append_event(made, say("one"))
        (found,) = await service.find_sessions(app_name=IDS["app_name"], session_id="s")
        assert (await service.append_event(found, say("two"))).seq == 2

    async def test_apps_are_listed(self, service: BaseSessionService) -> None:
        for app in ("b", "a", "b"):
            await service.create_session(app_name=app, user_id="u")
        assert await service.list_apps() == ["a", "b"]
