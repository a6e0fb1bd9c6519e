"""One turn after the other: what is stored, what the caller sees, and what an early end leaves."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.adk.events import Event as AdkEvent
from google.adk.events import EventActions as AdkActions
from google.genai import types as genai

from threadline import (
    BaseSessionService,
    Content,
    DatabaseSessionService,
    EngineSessionService,
    Event,
    EventActions,
    FunctionCall,
    FunctionResponse,
    GetSessionConfig,
    InMemorySessionService,
    InvalidInputError,
    Part,
    ReadOnlyStateError,
    RunContext,
    Runner,
    Session,
    SessionNotFoundError,
    StaleSessionError,
    StateSchemaError,
    StorageFullError,
    clock,
    sync,
)
from threadline.engines.memory import MemoryEngine
from threadline.runner import CANCELLED

IDS = {"user_id": "u", "session_id": "s"}
KEY = {"app_name": "app", **IDS}


class Thread:
    """A session service with one session, and turns over it."""

    def __init__(self, service: BaseSessionService | None = None) -> None:
        self.service = service or InMemorySessionService()
        self.made = False

    def runner(self, agent: Any, **options: Any) -> Runner:
        return Runner(app_name="app", agent=agent, session_service=self.service, **options)

    async def begin(self) -> None:
        if not self.made:
            await self.service.create_session(**KEY)
            self.made = True

    async def turn(self, agent: Any, new_message: Any = "hi", **options: Any) -> list[Event]:
        """Run one turn to its end and return what the caller saw."""
        await self.begin()
        run = self.runner(agent).run_async(**IDS, new_message=new_message, **options)
        return [event async for event in run]

    async def load(self) -> Session:
        session = await self.service.get_session(**KEY)
        assert session is not None
        return session


def story(events: Any) -> list[tuple[str, str | None]]:
    """Return who said what, an error's code standing for its text."""
    return [(e.author, e.error_code or (e.content.text if e.content else None)) for e in events]


def turn(agent: Any, new_message: Any = "hi", **options: Any) -> tuple[list[Event], Session]:
    """Run one turn; return what the caller saw and what is stored."""

    async def both() -> tuple[list[Event], Session]:
        thread = Thread()
        return await thread.turn(agent, new_message, **options), await thread.load()

    return asyncio.run(both())


def failing_turn(
    agent: Any, thread: Thread | None = None, **options: Any
) -> tuple[Exception, Session]:
    """Run one turn that must raise; return the error and what is stored."""

    async def both() -> tuple[Exception, Session]:
        it = thread or Thread()
        with pytest.raises(Exception) as caught:
            await it.turn(agent, **options)
        return caught.value, await it.load()

    return asyncio.run(both())


async def echo(ctx: RunContext) -> AsyncIterator[str]:
    yield f"you said {ctx.new_message.text if ctx.new_message else 'nothing'}"


# -- what an agent may be -----------------------------------------------------------------


def test_an_async_generator_is_an_agent() -> None:
    _, stored = turn(echo)
    assert story(stored.events) == [("user", "hi"), ("echo", "you said hi")]


def test_an_async_function_that_returns_text_is_an_agent() -> None:
    async def agent(ctx: RunContext) -> str:
        return "done"

    assert story(turn(agent)[1].events) == [("user", "hi"), ("agent", "done")]


def test_an_async_function_may_return_content() -> None:
    async def agent(ctx: RunContext) -> Content:
        return Content(parts=[Part(text="done")])

    assert story(turn(agent)[0]) == [("agent", "done")]


def test_an_async_function_may_return_an_event() -> None:
    async def agent(ctx: RunContext) -> Event:
        return Event(author="other", content="done")

    assert story(turn(agent)[0]) == [("other", "done")]


def test_an_async_function_may_return_nothing() -> None:
    async def agent(ctx: RunContext) -> None:
        return None

    seen, stored = turn(agent)
    assert (seen, story(stored.events)) == ([], [("user", "hi")])


def test_a_generator_may_yield_nothing() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        return
        yield

    seen, stored = turn(agent)
    assert (seen, story(stored.events)) == ([], [("user", "hi")])


def test_a_yielded_none_is_no_event() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str | None]:
        yield None
        yield "done"

    seen, stored = turn(agent)
    assert story(seen) == [("agent", "done")]
    assert story(stored.events) == [("user", "hi"), ("agent", "done")]


class Named:
    """An agent as an object."""

    name = "helper"

    async def run(self, ctx: RunContext) -> AsyncIterator[str]:
        yield "one"
        yield "two"


def test_an_object_with_run_and_a_name_is_an_agent() -> None:
    assert story(turn(Named())[0]) == [("helper", "one"), ("helper", "two")]


def test_an_object_whose_run_is_an_async_function_is_an_agent() -> None:
    class Agent:
        name = "helper"

        async def run(self, ctx: RunContext) -> str:
            return "done"

    assert story(turn(Agent())[0]) == [("helper", "done")]


def test_an_object_whose_run_returns_a_generator_is_an_agent() -> None:
    class Agent:
        name = "helper"

        def run(self, ctx: RunContext) -> AsyncIterator[str]:
            return echo(ctx)

    assert story(turn(Agent())[0]) == [("helper", "you said hi")]


def test_a_partial_function_is_an_agent() -> None:
    async def agent(word: str, ctx: RunContext) -> str:
        return word

    assert story(turn(functools.partial(agent, "done"))[0]) == [("agent", "done")]


@pytest.mark.parametrize("agent", [None, 5, "agent", object()])
def test_what_is_no_agent_is_refused_at_once(agent: Any) -> None:
    with pytest.raises(InvalidInputError, match="agent"):
        Thread().runner(agent)


def test_a_plain_function_is_refused_with_what_it_should_be() -> None:
    def agent(ctx: RunContext) -> str:
        return "done"

    error, _ = failing_turn(agent)
    assert isinstance(error, InvalidInputError)
    assert "async" in str(error)


# -- what it may yield --------------------------------------------------------------------


def yielding(*items: Any) -> Callable[[RunContext], AsyncIterator[Any]]:
    """Return an agent that yields these."""

    async def agent(ctx: RunContext) -> AsyncIterator[Any]:
        for item in items:
            yield item

    return agent


def test_yielded_text_is_a_text_part_of_the_model() -> None:
    (event,) = turn(yielding("done"))[0]
    assert event.content == Content(role="model", parts=[Part(text="done")])


@pytest.mark.parametrize(
    "item",
    [
        Content(parts=[Part(text="done")]),
        {"parts": [{"text": "done"}]},
        genai.Content(parts=[genai.Part(text="done")]),
        Event(content="done"),
        AdkEvent(author="", content=genai.Content(parts=[genai.Part(text="done")])),
    ],
)
def test_other_ways_to_say_it_say_the_same(item: Any) -> None:
    (event,) = turn(yielding(item))[0]
    assert (event.author, event.content) == (
        "agent",
        Content(role="model", parts=[Part(text="done")]),
    )


def test_a_role_that_is_there_is_kept() -> None:
    (event,) = turn(yielding(Content(role="tool", parts=[Part(text="x")])))[0]
    assert event.content is not None
    assert event.content.role == "tool"


def test_a_yielded_event_keeps_its_id_time_and_author() -> None:
    given = Event(id="mine", timestamp=5.5, author="someone", content="x")
    (event,) = turn(yielding(given))[0]
    assert (event.id, event.timestamp, event.author) == ("mine", 5.5, "someone")


def test_a_yielded_event_keeps_fields_this_version_does_not_know() -> None:
    _, stored = turn(yielding(Event.from_json('{"content": {"role": "model"}, "future": [1]}')))
    assert stored.events[-1].to_dict()["future"] == [1]


def test_an_adk_event_keeps_its_actions() -> None:
    theirs = AdkEvent(author="a", actions=AdkActions(state_delta={"k": 1}, escalate=True))
    _, stored = turn(yielding(theirs))
    assert stored.events[-1].actions == EventActions(state_delta={"k": 1}, escalate=True)


def test_the_caller_sees_what_is_stored() -> None:
    seen, stored = turn(yielding("a", Content(parts=[Part(text="b")]), Event(content="c")))
    assert seen == stored.events[1:]


def test_the_caller_sees_the_seq() -> None:
    seen, _ = turn(yielding("a", "b"))
    assert [event.seq for event in seen] == [2, 3]


def test_an_event_is_stored_before_the_caller_sees_it() -> None:
    async def main() -> list[list[tuple[str, str | None]]]:
        thread = Thread()
        await thread.begin()
        run = thread.runner(yielding("a", "b")).run_async(**IDS, new_message="hi")
        return [story((await thread.load()).events) async for _ in run]

    user = ("user", "hi")
    assert asyncio.run(main()) == [
        [user, ("agent", "a")],
        [user, ("agent", "a"), ("agent", "b")],
    ]


def test_the_agent_goes_on_only_when_the_caller_asks() -> None:
    done: list[str] = []

    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        for word in ("a", "b"):
            done.append(word)
            yield word

    async def main() -> list[str]:
        thread = Thread()
        await thread.begin()
        run = thread.runner(agent).run_async(**IDS, new_message="hi")
        await anext(run)
        so_far = list(done)
        await run.aclose()
        return so_far

    assert asyncio.run(main()) == ["a"]


def test_a_thing_of_another_type_ends_the_turn_with_an_error() -> None:
    error, stored = failing_turn(yielding("a", 5))
    assert isinstance(error, InvalidInputError)
    assert story(stored.events) == [("user", "hi"), ("agent", "a"), ("agent", "InvalidInputError")]


def test_function_calls_and_responses_are_stored_in_order() -> None:
    call = FunctionCall(id="1", name="f", args={"x": 1})
    answer = FunctionResponse(id="1", name="f", response={"y": 2})
    agent = yielding(
        Content(parts=[Part(function_call=call)]),
        Content(parts=[Part(function_response=answer)]),
        "done",
    )
    _, stored = turn(agent)
    _, called, answered, said = stored.events
    assert called.get_function_calls() == [call]
    assert answered.get_function_responses() == [answer]
    assert said.is_final_response()


# -- partial events -----------------------------------------------------------------------

STREAM = (
    Event(partial=True, content="he"),
    Event(partial=True, content="hello"),
    Event(content="hello"),
)


def test_partial_events_are_passed_on() -> None:
    seen, _ = turn(yielding(*STREAM))
    assert story(seen) == [("agent", "he"), ("agent", "hello"), ("agent", "hello")]


def test_partial_events_are_never_stored() -> None:
    _, stored = turn(yielding(*STREAM))
    assert story(stored.events) == [("user", "hi"), ("agent", "hello")]


def test_partial_events_have_no_seq() -> None:
    seen, _ = turn(yielding(*STREAM))
    assert [event.seq for event in seen] == [None, None, 2]


def test_partial_events_carry_the_invocation_id() -> None:
    seen, _ = turn(yielding(*STREAM), invocation_id="inv")
    assert {event.invocation_id for event in seen} == {"inv"}


def test_a_partial_event_carries_no_state() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[Event]:
        ctx.state["k"] = 1
        yield Event(partial=True, content="he")
        yield Event(content="hello")

    seen, _ = turn(agent)
    assert [event.actions.state_delta for event in seen] == [{}, {"k": 1}]


# -- state --------------------------------------------------------------------------------


def deltas(events: Any) -> list[dict[str, Any]]:
    return [event.actions.state_delta for event in events]


def test_what_is_written_travels_with_the_next_event() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        ctx.state["a"] = 1
        yield "one"
        ctx.state["b"] = 2
        yield "two"

    seen, stored = turn(agent)
    assert deltas(seen) == [{"a": 1}, {"b": 2}]
    assert stored.state == {"a": 1, "b": 2}


def test_every_scope_is_stored_where_it_belongs() -> None:
    async def agent(ctx: RunContext) -> str:
        ctx.state.update({"a": 1, "user:b": 2, "app:c": 3})
        return "done"

    async def main() -> Any:
        thread = Thread()
        await thread.turn(agent)
        return (
            (await thread.load()).state,
            await thread.service.get_user_state(app_name="app", user_id="u"),
            await thread.service.get_app_state(app_name="app"),
        )

    assert asyncio.run(main()) == ({"a": 1, "user:b": 2, "app:c": 3}, {"b": 2}, {"c": 3})


def test_an_events_own_delta_wins_over_the_contexts() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[Event]:
        ctx.state.update({"a": 1, "b": 1})
        yield Event(actions=EventActions(state_delta={"a": 2}, escalate=True))

    seen, stored = turn(agent)
    assert seen[0].actions == EventActions(state_delta={"b": 1, "a": 2}, escalate=True)
    assert stored.state == {"a": 2, "b": 1}


def test_an_events_own_delta_is_read_by_the_agent_afterwards() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[Any]:
        yield Event(state={"a": 2})
        yield str(ctx.state["a"])

    assert story(turn(agent)[0])[-1] == ("agent", "2")


def test_a_change_in_place_travels_with_the_next_event() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        ctx.state["cart"]["fruit"].append("apple")
        yield "added"

    _, stored = turn(agent, state_delta={"cart": {"fruit": []}})
    assert stored.state == {"cart": {"fruit": ["apple"]}}


def test_a_change_in_place_after_a_partial_event_travels_with_the_next_whole_one() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[Any]:
        yield Event(partial=True, content="…")
        ctx.state["cart"].append("apple")
        yield Event(partial=True, content="…")
        yield "added"

    seen, stored = turn(agent, state_delta={"cart": []})
    assert deltas(seen) == [{}, {}, {"cart": ["apple"]}]
    assert stored.state == {"cart": ["apple"]}


def test_an_object_kept_across_yields_still_works() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        cart = ctx.state["cart"]
        for fruit in ("apple", "pear", "plum"):
            cart.append(fruit)
            yield fruit

    seen, stored = turn(agent, state_delta={"cart": []})
    assert deltas(seen) == [
        {"cart": ["apple"]},
        {"cart": ["apple", "pear"]},
        {"cart": ["apple", "pear", "plum"]},
    ]
    assert stored.state == {"cart": ["apple", "pear", "plum"]}


def test_an_object_assigned_and_kept_across_yields_still_works() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        cart: list[str] = []
        ctx.state["cart"] = cart
        for fruit in ("apple", "pear"):
            cart.append(fruit)
            yield fruit

    assert turn(agent)[1].state == {"cart": ["apple", "pear"]}


def test_an_object_got_by_setdefault_and_kept_across_yields_still_works() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        cart = ctx.state.setdefault("cart", [])
        for fruit in ("apple", "pear"):
            cart.append(fruit)
            yield fruit

    assert turn(agent)[1].state == {"cart": ["apple", "pear"]}


def test_an_unchanged_object_is_not_written_again() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        ctx.state["cart"].append(1)
        yield "a"
        len(ctx.state["cart"])
        yield "b"

    assert deltas(turn(agent, state_delta={"cart": []})[0]) == [{"cart": [1]}, {}]


def test_what_the_agent_changes_after_a_yield_does_not_reach_a_stored_event() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        ctx.state["cart"] = cart = ["apple"]
        yield "a"
        cart.append("pear")
        yield "b"

    seen, stored = turn(agent)
    assert (
        deltas(seen)
        == deltas(stored.events[1:])
        == [
            {"cart": ["apple"]},
            {"cart": ["apple", "pear"]},
        ]
    )


def test_a_write_after_the_last_event_gets_an_event_of_its_own() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        yield "done"
        ctx.state["a"] = 1

    seen, stored = turn(agent)
    assert story(seen) == [("agent", "done"), ("agent", None)]
    assert deltas(seen) == [{}, {"a": 1}]
    assert stored.state == {"a": 1}


def test_a_write_without_any_event_gets_an_event_of_its_own() -> None:
    async def agent(ctx: RunContext) -> None:
        ctx.state["a"] = 1

    seen, stored = turn(agent)
    assert (deltas(seen), stored.state) == ([{"a": 1}], {"a": 1})


def test_a_change_in_place_after_a_partial_event_at_the_end_is_stored() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[Event]:
        yield Event(partial=True, content="…")
        ctx.state["cart"].append(1)

    assert turn(agent, state_delta={"cart": []})[1].state == {"cart": [1]}


def test_a_turn_that_writes_nothing_ends_without_an_event() -> None:
    async def agent(ctx: RunContext) -> None:
        ctx.state.get("a")

    assert turn(agent)[0] == []


def test_what_was_written_is_read_at_once_and_after_a_yield() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        ctx.state["a"] = 1
        yield str(ctx.state["a"])
        yield str(ctx.state["a"])

    assert story(turn(agent)[0]) == [("agent", "1"), ("agent", "1")]


def test_temp_keys_are_seen_in_the_same_turn() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        ctx.state["temp:a"] = 1
        yield str(ctx.state["temp:a"])
        yield str(ctx.state["temp:a"])

    assert story(turn(agent)[0]) == [("agent", "1"), ("agent", "1")]


def test_temp_keys_are_not_stored() -> None:
    async def agent(ctx: RunContext) -> str:
        ctx.state.update({"temp:a": 1, "b": 2})
        return "done"

    seen, stored = turn(agent)
    assert (deltas(seen), stored.state) == ([{"b": 2}], {"b": 2})


def test_temp_keys_of_the_message_are_seen_and_not_stored() -> None:
    async def agent(ctx: RunContext) -> str:
        return str(ctx.state["temp:a"])

    seen, stored = turn(agent, state_delta={"temp:a": 1})
    assert (story(seen), stored.state) == ([("agent", "1")], {})


def test_temp_keys_are_gone_in_the_next_turn() -> None:
    async def first(ctx: RunContext) -> str:
        ctx.state["temp:a"] = 1
        return "done"

    async def second(ctx: RunContext) -> str:
        return str("temp:a" in ctx.state)

    async def main() -> list[Event]:
        thread = Thread()
        await thread.turn(first)
        return await thread.turn(second)

    assert story(asyncio.run(main())) == [("second", "False")]


def test_temp_keys_alone_make_no_event_at_the_end() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        yield "done"
        ctx.state["temp:a"] = 1

    seen, stored = turn(agent)
    assert story(seen) == [("agent", "done")]
    assert len(stored.events) == 2


def test_temp_keys_written_before_a_partial_event_are_still_there() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[Any]:
        ctx.state["temp:a"] = 1
        yield Event(partial=True)
        yield str(ctx.state["temp:a"])

    assert story(turn(agent)[0])[-1] == ("agent", "1")


def test_the_context_sees_what_the_session_had() -> None:
    async def agent(ctx: RunContext) -> str:
        return f"{ctx.state['a']} {ctx.session.state['a']} {len(ctx.session.events)}"

    assert story(turn(agent, state_delta={"a": 1})[0]) == [("agent", "1 1 1")]


def test_a_direct_write_to_the_sessions_state_ends_the_turn_with_the_lesson() -> None:
    async def agent(ctx: RunContext) -> None:
        ctx.session.state["a"] = 1

    error, stored = failing_turn(agent)
    assert isinstance(error, ReadOnlyStateError)
    assert story(stored.events)[-1] == ("agent", "ReadOnlyStateError")


def test_the_state_is_read_and_written_after_the_agent_refreshed_its_session() -> None:
    thread = Thread()

    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        await thread.service.patch_state(**KEY, set={"theirs": 1})
        await thread.service.refresh(ctx.session)
        ctx.state["mine"] = 2
        yield str(ctx.state.get("theirs"))
        yield str(ctx.state.get("mine"))

    async def main() -> list[Event]:
        return await thread.turn(agent)

    assert story(asyncio.run(main())) == [("agent", "1"), ("agent", "2")]


def test_the_services_schema_holds_for_the_context() -> None:
    class Schema(msgspec.Struct):
        count: int = 0

    async def agent(ctx: RunContext) -> None:
        ctx.state["count"] = "many"

    error, stored = failing_turn(agent, Thread(InMemorySessionService(state_schema=Schema)))
    assert isinstance(error, StateSchemaError)
    assert story(stored.events)[-1] == ("agent", "StateSchemaError")


def test_a_change_in_place_that_breaks_the_schema_ends_the_turn_with_an_error() -> None:
    class Schema(msgspec.Struct):
        tags: list[str] = []

    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        ctx.state["tags"].append(5)
        yield "done"

    error, stored = failing_turn(
        agent, Thread(InMemorySessionService(state_schema=Schema)), state_delta={"tags": []}
    )
    assert isinstance(error, StateSchemaError)
    assert story(stored.events) == [("user", "hi"), ("agent", "StateSchemaError")]


def test_a_value_that_cannot_be_stored_ends_the_turn_with_an_error() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        ctx.state["a"] = {1, 2}
        yield "done"

    error, stored = failing_turn(agent)
    assert "set" in str(error)
    assert story(stored.events) == [("user", "hi"), ("agent", "UnsupportedValueError")]


def test_a_value_that_cannot_be_stored_does_not_keep_a_failed_turn_open() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        yield "a"
        ctx.state["good"] = 1
        ctx.state["bad"] = object()
        raise ValueError("boom")

    error, stored = failing_turn(agent)
    assert isinstance(error, ValueError)
    assert story(stored.events)[-1] == ("agent", "ValueError")


# -- the beginning of a turn --------------------------------------------------------------


def test_the_message_is_stored_before_the_agent_runs() -> None:
    thread = Thread()
    found: list[Any] = []

    async def agent(ctx: RunContext) -> None:
        found.extend((await thread.load()).events)

    asyncio.run(thread.turn(agent, "hello"))
    assert story(found) == [("user", "hello")]


def test_the_state_delta_is_stored_with_the_message() -> None:
    _, stored = turn(echo, state_delta={"a": 1, "user:b": 2})
    assert deltas(stored.events) == [{"a": 1, "user:b": 2}, {}]


def test_the_message_is_not_yielded() -> None:
    assert [event.author for event in turn(echo)[0]] == ["echo"]


def test_a_state_delta_without_a_message_is_stored() -> None:
    _, stored = turn(echo, None, state_delta={"a": 1})
    assert story(stored.events) == [("user", None), ("echo", "you said nothing")]
    assert stored.state == {"a": 1}


def test_neither_message_nor_delta_stores_no_event_of_the_user() -> None:
    _, stored = turn(echo, None)
    assert story(stored.events) == [("echo", "you said nothing")]


def test_the_state_delta_given_stays_the_callers() -> None:
    async def agent(ctx: RunContext) -> None:
        ctx.state["cart"].append(1)

    mine: dict[str, Any] = {"cart": []}
    turn(agent, state_delta=mine)
    assert mine == {"cart": []}


@pytest.mark.parametrize(
    "message",
    [
        "hi",
        {"parts": [{"text": "hi"}]},
        Content(parts=[Part(text="hi")]),
        genai.Content(role="user", parts=[genai.Part(text="hi")]),
        genai.UserContent("hi"),
    ],
)
def test_a_message_may_be_given_in_many_ways(message: Any) -> None:
    _, stored = turn(echo, message)
    assert stored.events[0].content == Content(role="user", parts=[Part(text="hi")])
    assert story(stored.events)[1] == ("echo", "you said hi")


def test_bytes_in_a_google_message_survive() -> None:
    part = genai.Part.from_bytes(data=b"\xff\x00", mime_type="image/png")
    _, stored = turn(echo, genai.Content(role="user", parts=[part]))
    content = stored.events[0].content
    assert content == Content(
        role="user", parts=[Part.from_bytes(data=b"\xff\x00", mime_type="image/png")]
    )


def test_a_function_call_in_a_message_is_refused() -> None:
    call = Part.from_function_call(name="f", args={})
    error, stored = failing_turn(echo, new_message=Content(parts=[call]))
    assert isinstance(error, InvalidInputError)
    assert stored.events == []


def test_a_function_response_in_a_message_is_taken() -> None:
    answer = Part.from_function_response(name="f", response={"x": 1}, id="1")
    _, stored = turn(echo, Content(parts=[answer]))
    assert stored.events[0].get_function_responses() == [
        FunctionResponse(id="1", name="f", response={"x": 1})
    ]


@pytest.mark.parametrize("message", [5, [1], object()])
def test_a_message_of_another_type_is_refused_and_nothing_is_stored(message: Any) -> None:
    error, stored = failing_turn(echo, new_message=message)
    assert isinstance(error, InvalidInputError)
    assert stored.events == []


def test_an_invocation_id_is_on_every_event() -> None:
    _, stored = turn(yielding("a", "b"), invocation_id="inv")
    assert [event.invocation_id for event in stored.events] == ["inv"] * 3


def test_a_new_invocation_id_is_adks_kind() -> None:
    with clock.replaced(new_id=iter(map(str, range(99))).__next__):
        _, stored = turn(yielding("a"))
    (invocation,) = {event.invocation_id for event in stored.events}
    assert invocation.startswith("e-")


def test_every_turn_has_an_invocation_id_of_its_own() -> None:
    async def main() -> list[str]:
        thread = Thread()
        await thread.turn(echo)
        await thread.turn(echo)
        return [event.invocation_id for event in (await thread.load()).events]

    first, second, third, fourth = asyncio.run(main())
    assert first == second != third == fourth


def test_the_context_has_the_invocation_id() -> None:
    async def agent(ctx: RunContext) -> str:
        return ctx.invocation_id

    assert story(turn(agent, invocation_id="inv")[0]) == [("agent", "inv")]


def test_a_yielded_event_keeps_its_invocation_id() -> None:
    (event,) = turn(yielding(Event(invocation_id="other", content="x")), invocation_id="inv")[0]
    assert event.invocation_id == "other"


def test_a_missing_session_is_an_error() -> None:
    async def main() -> None:
        thread = Thread()
        async for _ in thread.runner(echo).run_async(**IDS, new_message="hi"):
            pass

    with pytest.raises(SessionNotFoundError, match="auto_create_session"):
        asyncio.run(main())


def test_a_missing_session_is_created_if_asked_for() -> None:
    async def main() -> Session:
        thread = Thread()
        runner = thread.runner(echo, auto_create_session=True)
        async for _ in runner.run_async(**IDS, new_message="hi"):
            pass
        return await thread.load()

    assert story(asyncio.run(main()).events) == [("user", "hi"), ("echo", "you said hi")]


def test_a_session_that_is_there_is_not_created_again() -> None:
    async def main() -> Session:
        thread = Thread()
        for _ in range(2):
            runner = thread.runner(echo, auto_create_session=True)
            async for _event in runner.run_async(**IDS, new_message="hi"):
                pass
        return await thread.load()

    assert len(asyncio.run(main()).events) == 4


def test_a_config_limits_what_the_agent_is_given() -> None:
    async def agent(ctx: RunContext) -> str:
        return " ".join(str(event.seq) for event in ctx.session.events)

    async def main() -> tuple[list[Event], Session]:
        thread = Thread()
        await thread.turn(yielding("a", "b"))
        config = GetSessionConfig(num_recent_events=1)
        return await thread.turn(agent, get_session_config=config), await thread.load()

    seen, stored = asyncio.run(main())
    assert story(seen) == [("agent", "3 4")]
    assert [event.seq for event in stored.events] == [1, 2, 3, 4, 5]


# -- several turns ------------------------------------------------------------------------


def test_the_next_turn_sees_the_one_before() -> None:
    async def agent(ctx: RunContext) -> str:
        count = ctx.state.get("count", 0) + 1
        ctx.state["count"] = count
        return f"turn {count}, {len(ctx.session.events)} events"

    async def main() -> list[tuple[str, str | None]]:
        thread = Thread()
        return [story(await thread.turn(agent))[0] for _ in range(3)]

    assert asyncio.run(main()) == [
        ("agent", "turn 1, 1 events"),
        ("agent", "turn 2, 3 events"),
        ("agent", "turn 3, 5 events"),
    ]


def test_a_session_in_a_file_goes_on_in_another_service(tmp_path: Path) -> None:
    async def one(expected: int) -> None:
        async with DatabaseSessionService(f"sqlite:///{tmp_path}/turns.db") as service:
            runner = Runner(
                app_name="app", agent=echo, session_service=service, auto_create_session=True
            )
            async for _ in runner.run_async(**IDS, new_message="hi"):
                pass
            session = await service.get_session(**KEY)
            assert session is not None
            assert [event.seq for event in session.events] == list(range(1, expected + 1))

    asyncio.run(one(2))
    asyncio.run(one(4))


def test_turns_of_several_sessions_run_at_once() -> None:
    async def main() -> list[int]:
        service = InMemorySessionService()
        runner = Runner(
            app_name="app", agent=yielding("a", "b"), session_service=service,
            auto_create_session=True,
        )  # fmt: skip

        async def one(n: int) -> int:
            ids = {"user_id": "u", "session_id": str(n)}
            return len([event async for event in runner.run_async(**ids, new_message="hi")])

        return await asyncio.gather(*map(one, range(20)))

    assert asyncio.run(main()) == [2] * 20


def test_the_runner_is_a_context_manager_and_leaves_the_service_open() -> None:
    async def main() -> Session:
        thread = Thread()
        await thread.begin()
        async with thread.runner(echo) as runner:
            async for _ in runner.run_async(**IDS, new_message="hi"):
                pass
        return await thread.load()

    assert len(asyncio.run(main()).events) == 2


# -- an agent that fails ------------------------------------------------------------------


class BoomError(Exception):
    """An agent's own trouble."""


async def breaking(ctx: RunContext) -> AsyncIterator[str]:
    """Say something, write something, and fail."""
    yield "so far"
    ctx.state["a"] = 1
    raise BoomError("out of luck")


def test_the_exception_reaches_the_caller() -> None:
    error, _ = failing_turn(breaking)
    assert (type(error), str(error)) == (BoomError, "out of luck")


def test_what_happened_before_is_stored_and_an_error_closes_the_turn() -> None:
    _, stored = failing_turn(breaking)
    assert story(stored.events) == [
        ("user", "hi"),
        ("breaking", "so far"),
        ("breaking", "BoomError"),
    ]


def test_the_closing_event_tells_what_happened() -> None:
    _, stored = failing_turn(breaking, invocation_id="inv")
    last = stored.events[-1]
    assert (last.error_code, last.error_message) == ("BoomError", "out of luck")
    assert (last.invocation_id, last.turn_complete) == ("inv", True)
    assert last.is_final_response()


def test_the_closing_event_carries_the_state_written_since() -> None:
    assert failing_turn(breaking)[1].state == {"a": 1}


def test_the_next_turn_works() -> None:
    async def main() -> list[Event]:
        thread = Thread()
        with pytest.raises(BoomError):
            await thread.turn(breaking)
        return await thread.turn(echo)

    assert story(asyncio.run(main())) == [("echo", "you said hi")]


def test_an_async_function_that_raises_closes_the_turn() -> None:
    async def agent(ctx: RunContext) -> str:
        raise BoomError

    _, stored = failing_turn(agent)
    assert story(stored.events) == [("user", "hi"), ("agent", "BoomError")]


def test_an_agent_that_raises_before_it_returns_its_generator_closes_the_turn() -> None:
    def agent(ctx: RunContext) -> AsyncIterator[str]:
        raise BoomError

    error, stored = failing_turn(agent)
    assert isinstance(error, BoomError)
    assert story(stored.events) == [("user", "hi"), ("agent", "BoomError")]


def test_an_agent_of_the_wrong_arity_closes_the_turn() -> None:
    async def agent() -> str:
        return "done"

    error, stored = failing_turn(agent)
    assert isinstance(error, TypeError)
    assert story(stored.events) == [("user", "hi"), ("agent", "TypeError")]


def test_an_exception_of_lone_surrogates_closes_the_turn() -> None:
    async def agent(ctx: RunContext) -> str:
        raise BoomError("\ud800")

    assert story(failing_turn(agent)[1].events)[-1] == ("agent", "BoomError")


def test_the_agents_generator_is_closed_when_the_store_fails() -> None:
    closed: list[bool] = []

    class Full(MemoryEngine):
        appends = 0

        async def append(self, *args: Any, **options: Any) -> Any:
            self.appends += 1
            if self.appends > 1:
                raise StorageFullError("no room")
            return await super().append(*args, **options)

    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        try:
            yield "a"
        finally:
            closed.append(True)

    error, stored = failing_turn(agent, Thread(EngineSessionService(Full())))
    assert isinstance(error, StorageFullError)
    assert (closed, story(stored.events)) == ([True], [("user", "hi")])


# -- a caller that goes away --------------------------------------------------------------


async def counting(ctx: RunContext) -> AsyncIterator[str]:
    """Count to five, noting each number in the state."""
    for n in range(5):
        ctx.state["n"] = n
        yield str(n)


CUT_SHORT = [("user", "hi"), ("counting", "0"), ("counting", "1"), ("counting", CANCELLED)]


def test_aclose_closes_the_turn_as_cancelled() -> None:
    async def main() -> Session:
        thread = Thread()
        await thread.begin()
        run = thread.runner(counting).run_async(**IDS, new_message="hi")
        await anext(run)
        await anext(run)
        await run.aclose()
        return await thread.load()

    assert story(asyncio.run(main()).events) == CUT_SHORT


def test_a_break_closes_the_turn_as_cancelled() -> None:
    thread = Thread()

    async def main() -> None:
        await thread.begin()
        async for event in thread.runner(counting).run_async(**IDS, new_message="hi"):
            if event.seq == 3:
                break

    asyncio.run(main())
    assert story(asyncio.run(thread.load()).events) == CUT_SHORT


def test_an_exception_of_the_caller_closes_the_turn_as_cancelled() -> None:
    thread = Thread()

    async def main() -> None:
        await thread.begin()
        async for event in thread.runner(counting).run_async(**IDS, new_message="hi"):
            if event.seq == 3:
                raise BoomError

    with pytest.raises(BoomError):
        asyncio.run(main())
    assert story(asyncio.run(thread.load()).events) == CUT_SHORT


def test_the_closing_event_of_a_cancelled_turn_has_its_invocation_id() -> None:
    async def main() -> Session:
        thread = Thread()
        await thread.begin()
        run = thread.runner(counting).run_async(**IDS, new_message="hi", invocation_id="inv")
        await anext(run)
        await run.aclose()
        return await thread.load()

    last = asyncio.run(main()).events[-1]
    assert (last.invocation_id, last.turn_complete, bool(last.error_message)) == ("inv", True, True)


def test_aclose_before_the_first_step_stores_nothing() -> None:
    async def main() -> Session:
        thread = Thread()
        await thread.begin()
        run = thread.runner(counting).run_async(**IDS, new_message="hi")
        await run.aclose()
        return await thread.load()

    assert asyncio.run(main()).events == []


def test_aclose_after_the_end_adds_nothing() -> None:
    async def main() -> Session:
        thread = Thread()
        await thread.begin()
        run = thread.runner(echo).run_async(**IDS, new_message="hi")
        async for _ in run:
            pass
        await run.aclose()
        return await thread.load()

    assert len(asyncio.run(main()).events) == 2


def test_the_agent_may_clean_up_with_awaits() -> None:
    cleaned: list[str] = []

    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        try:
            yield "a"
            yield "b"
        finally:
            await asyncio.sleep(0)
            ctx.state["cleaned"] = True
            cleaned.append("yes")

    async def main() -> Session:
        thread = Thread()
        await thread.begin()
        run = thread.runner(agent).run_async(**IDS, new_message="hi")
        await anext(run)
        await run.aclose()
        return await thread.load()

    stored = asyncio.run(main())
    assert (cleaned, stored.state) == (["yes"], {"cleaned": True})
    assert story(stored.events) == [("user", "hi"), ("agent", "a"), ("agent", CANCELLED)]


def test_the_turn_is_closed_even_if_the_agents_clean_up_fails() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        try:
            yield "a"
            yield "b"
        finally:
            raise BoomError("while cleaning up")

    async def main() -> Session:
        thread = Thread()
        await thread.begin()
        run = thread.runner(agent).run_async(**IDS, new_message="hi")
        await anext(run)
        with pytest.raises(BoomError):
            await run.aclose()
        return await thread.load()

    assert story(asyncio.run(main()).events) == [
        ("user", "hi"),
        ("agent", "a"),
        ("agent", CANCELLED),
    ]


def test_the_turn_is_closed_even_if_the_agent_will_not_stop() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        try:
            yield "a"
        except GeneratorExit:
            yield "I go on"

    async def main() -> Session:
        thread = Thread()
        await thread.begin()
        run = thread.runner(agent).run_async(**IDS, new_message="hi")
        await anext(run)
        with pytest.raises(RuntimeError):
            await run.aclose()
        return await thread.load()

    assert story(asyncio.run(main()).events) == [
        ("user", "hi"),
        ("agent", "a"),
        ("agent", CANCELLED),
    ]


class Gated(MemoryEngine):
    """A memory engine that holds one append at a gate, before or after storing."""

    def __init__(self, nth: int, *, after: bool) -> None:
        super().__init__()
        self.nth, self.after, self.appends = nth, after, 0
        self.reached, self.gate = asyncio.Event(), asyncio.Event()

    async def append(self, *args: Any, **options: Any) -> Any:
        self.appends += 1
        held = self.appends == self.nth
        if held and not self.after:
            await self._hold()
        stored = await super().append(*args, **options)
        if held and self.after:
            await self._hold()
        return stored

    async def _hold(self) -> None:
        self.reached.set()
        await self.gate.wait()


async def cancelled_at_the_gate(
    nth: int, *, after: bool, times: int = 1
) -> tuple[list[Event], Session]:
    """Cancel the caller while the n-th append is held; return what it saw and what is stored."""
    engine = Gated(nth, after=after)
    thread = Thread(EngineSessionService(engine))
    await thread.begin()
    seen: list[Event] = []

    async def consume() -> None:
        async for event in thread.runner(counting).run_async(**IDS, new_message="hi"):
            seen.append(event)

    task = asyncio.create_task(consume())
    await engine.reached.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    engine.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(20):  # an append that outlived its caller is finished by the loop
        await asyncio.sleep(0)
    return seen, await thread.load()


GATES = pytest.mark.parametrize("after", [False, True], ids=["before storing", "after storing"])


@GATES
def test_cancelled_during_an_append_the_event_is_stored_once_and_the_turn_is_closed(
    after: bool,
) -> None:
    seen, stored = asyncio.run(cancelled_at_the_gate(3, after=after))
    assert story(seen) == [("counting", "0")]
    assert story(stored.events) == CUT_SHORT


@GATES
def test_cancelled_during_an_append_its_state_is_stored(after: bool) -> None:
    _, stored = asyncio.run(cancelled_at_the_gate(3, after=after))
    assert stored.state == {"n": 1}


@GATES
def test_cancelled_during_the_append_of_the_message_it_is_stored_and_the_turn_is_closed(
    after: bool,
) -> None:
    _, stored = asyncio.run(cancelled_at_the_gate(1, after=after))
    assert story(stored.events) == [("user", "hi"), ("counting", CANCELLED)]


@GATES
@pytest.mark.parametrize("times", [2, 3])
def test_cancelled_again_and_again_every_event_is_stored_once(after: bool, times: int) -> None:
    seen, stored = asyncio.run(cancelled_at_the_gate(3, after=after, times=times))
    assert story(seen) == [("counting", "0")]
    assert story(stored.events)[:3] == CUT_SHORT[:3]
    assert story(stored.events)[3:] in ([], CUT_SHORT[3:])


def test_cancelled_while_the_agent_waits_the_turn_is_closed() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        ctx.state["a"] = 1
        yield "so far"
        ctx.state["b"] = 2
        await asyncio.Event().wait()

    async def main() -> Session:
        thread = Thread()
        await thread.begin()
        first = asyncio.Event()

        async def consume() -> None:
            async for _ in thread.runner(agent).run_async(**IDS, new_message="hi"):
                first.set()

        task = asyncio.create_task(consume())
        await first.wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await thread.load()

    stored = asyncio.run(main())
    assert story(stored.events) == [("user", "hi"), ("agent", "so far"), ("agent", CANCELLED)]
    assert stored.state == {"a": 1, "b": 2}


def test_a_timeout_closes_the_turn_as_cancelled() -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        yield "so far"
        await asyncio.Event().wait()

    async def main() -> Session:
        thread = Thread()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await thread.turn(agent)
        return await thread.load()

    assert story(asyncio.run(main()).events)[-1] == ("agent", CANCELLED)


def test_the_turn_after_a_cancelled_one_works() -> None:
    async def main() -> list[Event]:
        thread = Thread()
        await thread.begin()
        run = thread.runner(counting).run_async(**IDS, new_message="hi")
        await anext(run)
        await run.aclose()
        return await thread.turn(echo)

    assert story(asyncio.run(main())) == [("echo", "you said hi")]


def test_a_partial_event_was_never_stored_when_the_caller_stops_at_it() -> None:
    async def main() -> Session:
        thread = Thread()
        await thread.begin()
        run = thread.runner(yielding(*STREAM)).run_async(**IDS, new_message="hi")
        await anext(run)
        await run.aclose()
        return await thread.load()

    assert story(asyncio.run(main()).events) == [("user", "hi"), ("agent", CANCELLED)]


# -- somebody else writes meanwhile -------------------------------------------------------


def meddled(thread: Thread) -> Callable[[RunContext], AsyncIterator[str]]:
    """Return an agent whose session gets an event from elsewhere before it speaks."""

    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        other = await thread.load()
        await thread.service.append_event(other, Event(author="other", content="x", state={"o": 1}))
        ctx.state["mine"] = 2
        yield "mine"
        yield f"{ctx.state.get('o')} {ctx.state.get('mine')} {len(ctx.session.events)}"

    return agent


def test_a_stale_session_ends_the_turn_and_reaches_the_caller() -> None:
    thread = Thread()
    error, stored = failing_turn(meddled(thread), thread)
    assert isinstance(error, StaleSessionError)
    assert story(error.missed) == [("other", "x")]
    assert story(stored.events) == [
        ("user", "hi"),
        ("other", "x"),
        ("agent", "StaleSessionError"),
    ]


def test_with_rebase_both_are_stored_in_the_order_of_the_store() -> None:
    thread = Thread(InMemorySessionService(on_stale="rebase"))
    asyncio.run(thread.turn(meddled(thread)))
    stored = asyncio.run(thread.load())
    assert story(stored.events)[:3] == [("user", "hi"), ("other", "x"), ("agent", "mine")]
    assert stored.state == {"o": 1, "mine": 2}


def test_with_rebase_the_agent_sees_what_the_other_wrote() -> None:
    thread = Thread(InMemorySessionService(on_stale="rebase"))
    assert story(asyncio.run(thread.turn(meddled(thread))))[-1] == ("agent", "1 2 3")


def test_a_cancelled_turn_is_closed_even_if_it_is_stale() -> None:
    async def main() -> Session:
        thread = Thread()
        await thread.begin()
        run = thread.runner(counting).run_async(**IDS, new_message="hi")
        await anext(run)
        await thread.service.append_event(await thread.load(), Event(author="other", content="x"))
        await run.aclose()
        return await thread.load()

    assert story(asyncio.run(main()).events) == [
        ("user", "hi"),
        ("counting", "0"),
        ("other", "x"),
        ("counting", CANCELLED),
    ]


def test_a_session_deleted_meanwhile_is_an_error_and_does_not_come_back() -> None:
    thread = Thread()

    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        await thread.service.delete_session(**KEY)
        yield "too late"

    async def main() -> Any:
        with pytest.raises(SessionNotFoundError):
            await thread.turn(agent)
        return await thread.service.get_session(**KEY)

    assert asyncio.run(main()) is None


# -- blocking -----------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite", "async memory", "async sqlite"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Give a service with the session in it; the runner takes blocking and async ones."""
    kind = request.param
    store: Any
    if kind.endswith("sqlite"):
        store = sync.DatabaseSessionService(f"sqlite:///{tmp_path}/run.db")
    else:
        store = sync.InMemorySessionService()
    with store:
        store.create_session(**KEY)
        yield store.asynchronous if kind.startswith("async") else store


def stored_story(service: Any) -> list[tuple[str, str | None]]:
    blocking = sync.BaseSessionService()
    blocking.asynchronous = getattr(service, "asynchronous", service)
    session = blocking.get_session(**KEY)
    assert session is not None
    return story(session.events)


def run(service: Any, agent: Any, **options: Any) -> Iterator[Event]:
    runner = Runner(app_name="app", agent=agent, session_service=service)
    return runner.run(**IDS, new_message="hi", **options)


def test_run_yields_what_is_stored(service: Any) -> None:
    seen = list(run(service, yielding("a", Event(partial=True, content="b"), "b")))
    assert story(seen) == [("agent", "a"), ("agent", "b"), ("agent", "b")]
    assert stored_story(service) == [("user", "hi"), ("agent", "a"), ("agent", "b")]


def test_run_stores_an_event_before_the_caller_sees_it(service: Any) -> None:
    seen = [stored_story(service)[-1] for _ in run(service, yielding("a", "b"))]
    assert seen == [("agent", "a"), ("agent", "b")]


def test_run_after_run_goes_on(service: Any) -> None:
    for _ in range(3):
        list(run(service, echo))
    assert stored_story(service) == [("user", "hi"), ("echo", "you said hi")] * 3


def test_a_break_out_of_run_closes_the_turn_as_cancelled(service: Any) -> None:
    for event in run(service, counting):
        if event.seq == 3:
            break
    assert stored_story(service) == CUT_SHORT


def test_closing_run_closes_the_turn_as_cancelled(service: Any) -> None:
    events: Any = run(service, counting)
    next(events)
    next(events)
    events.close()
    assert stored_story(service) == CUT_SHORT


def test_an_exception_of_the_caller_of_run_closes_the_turn_as_cancelled(service: Any) -> None:
    with pytest.raises(BoomError):
        for event in run(service, counting):
            if event.seq == 3:
                raise BoomError
    assert stored_story(service) == CUT_SHORT


def test_an_exception_of_the_agent_reaches_the_caller_of_run(service: Any) -> None:
    with pytest.raises(BoomError, match="out of luck"):
        list(run(service, breaking))
    assert stored_story(service) == [
        ("user", "hi"),
        ("breaking", "so far"),
        ("breaking", "BoomError"),
    ]


def test_run_passes_its_arguments_on(service: Any) -> None:
    async def agent(ctx: RunContext) -> str:
        return f"{ctx.invocation_id} {ctx.state['a']}"

    assert story(run(service, agent, invocation_id="inv", state_delta={"a": 1})) == [
        ("agent", "inv 1")
    ]


def test_run_with_a_missing_session_is_an_error(service: Any) -> None:
    runner = Runner(app_name="app", agent=echo, session_service=service)
    with pytest.raises(SessionNotFoundError):
        list(runner.run(user_id="u", session_id="no", new_message="hi"))


def test_run_works_inside_of_a_running_loop(service: Any) -> None:
    async def main() -> list[Event]:
        return list(run(service, echo))

    assert story(asyncio.run(main())) == [("echo", "you said hi")]


def test_run_keeps_the_agent_in_one_task(service: Any) -> None:
    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        for _ in range(3):
            async with asyncio.timeout(60):  # which must be left in the task that entered it
                yield str(id(asyncio.current_task()))

    assert len({text for _, text in story(run(service, agent))}) == 1


def test_a_blocking_call_inside_of_an_agent_is_an_error_and_no_deadlock() -> None:
    with sync.InMemorySessionService() as service:
        service.create_session(**KEY)

        async def agent(ctx: RunContext) -> str:
            return str(service.get_session(**KEY))

        with pytest.raises(InvalidInputError, match="async"):
            list(run(service, agent))
        assert stored_story(service) == [("user", "hi"), ("agent", "InvalidInputError")]


def test_several_threads_run_turns_at_once() -> None:
    with sync.InMemorySessionService() as service:
        runner = Runner(
            app_name="app", agent=counting, session_service=service, auto_create_session=True
        )
        counts: list[int] = []

        def one(n: int) -> None:
            events = runner.run(user_id="u", session_id=str(n), new_message="hi")
            counts.append(len(list(events)))

        threads = [threading.Thread(target=one, args=(n,), daemon=True) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert counts == [5] * 4


UNFINISHED = """
from threadline import Runner
from threadline.sync import InMemorySessionService

async def agent(ctx):
    for word in "ab":
        yield word

runner = Runner(
    app_name="a", agent=agent, session_service=InMemorySessionService(), auto_create_session=True
)
turns = [runner.run(user_id="u", session_id=str(n), new_message="x") for n in range({turns})]
print(*[next(turn).content.text for turn in turns])
"""


def run_script(code: str) -> str:
    """Run a script in an interpreter of its own, so that a deadlock ends with it."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=10, check=True,
    )  # fmt: skip
    return done.stdout


def test_a_script_that_leaves_a_turn_unfinished_ends() -> None:
    assert run_script(UNFINISHED.replace("{turns}", "1")) == "a\n"


def test_many_unfinished_turns_do_not_hold_each_other_up() -> None:
    assert run_script(UNFINISHED.replace("{turns}", "40")) == " ".join("a" * 40) + "\n"


INTERRUPTED = """
import asyncio, signal
from threadline import Runner
from threadline.sync import InMemorySessionService

async def agent(ctx):
    yield "a"
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    await asyncio.Event().wait()

signal.signal(signal.SIGALRM, signal.default_int_handler)
service = InMemorySessionService()
runner = Runner(app_name="a", agent=agent, session_service=service, auto_create_session=True)
try:
    for _ in runner.run(user_id="u", session_id="s", new_message="x"):
        pass
except KeyboardInterrupt:
    print("interrupted")
session = service.get_session(app_name="a", user_id="u", session_id="s")
print(*[event.error_code for event in session.events])
"""


def test_an_interrupt_while_the_agent_thinks_closes_the_turn_as_cancelled() -> None:
    assert run_script(INTERRUPTED) == f"interrupted\nNone None {CANCELLED}\n"
