"""State and its scopes, next to ADK's State where the two must agree."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from typing import Annotated, Any

import msgspec
import pydantic
import pytest
from google.adk.sessions.state import State as AdkState
from hypothesis import given, settings
from hypothesis import strategies as st

from threadline import (
    Event,
    EventActions,
    InMemorySessionService,
    InvalidInputError,
    ReadOnlyStateError,
    State,
    StateSchemaError,
)
from threadline.state import merge, plain, read_only, split, temp_keys, write_through

# -- scopes -------------------------------------------------------------------------------


def test_split_sorts_keys_by_scope_and_cuts_the_prefix() -> None:
    scopes = split({"app:a": 1, "user:b": 2, "c": 3, "temp:d": 4})
    assert scopes == ({"a": 1}, {"b": 2}, {"c": 3})


@pytest.mark.parametrize(
    "key", ["foo:bar", "App:x", "apps:x", ":x", "session:x", "", "app", "temp"]
)
def test_other_keys_belong_to_the_session(key: str) -> None:
    assert split({key: 1}).session == {key: 1}


def test_only_the_first_prefix_counts() -> None:
    assert split({"user:app:x": 1}).user == {"app:x": 1}


def test_none_is_a_value() -> None:
    assert split({"app:a": None, "user:b": None, "c": None}) == (
        {"a": None},
        {"b": None},
        {"c": None},
    )


def test_merge_puts_the_prefixes_back() -> None:
    delta = {"c": 3, "user:b": 2, "app:a": 1}
    assert merge(split(delta)) == delta


KEYS = st.builds(
    str.__add__,
    st.sampled_from(["", "app:", "user:", "temp:", "foo:"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
)


@settings(deadline=None)
@given(st.dictionaries(KEYS, st.integers()))
def test_a_delta_is_its_stored_scopes_and_its_temp_keys(delta: dict[str, int]) -> None:
    assert merge(split(delta)) | temp_keys(delta) == delta


@settings(deadline=None)
@given(st.dictionaries(KEYS, st.integers()))
def test_split_leaves_the_delta_alone(delta: dict[str, int]) -> None:
    before = dict(delta)
    split(delta)
    assert delta == before


# -- State next to ADK's ------------------------------------------------------------------

SMALL_KEYS = st.sampled_from(["a", "b", "user:c", "app:d", "temp:e", "x:y"])
VALUES = st.recursive(
    st.none() | st.integers(0, 3) | st.text("xy", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text("kl", max_size=1), inner, max_size=2)
    ),
    max_leaves=4,
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), SMALL_KEYS, VALUES),
        st.tuples(st.just("update"), st.dictionaries(SMALL_KEYS, VALUES, max_size=2), st.none()),
        st.tuples(st.just("setdefault"), SMALL_KEYS, VALUES),
        st.tuples(st.just("get"), SMALL_KEYS, VALUES),
        st.tuples(st.just("contains"), SMALL_KEYS, st.none()),
        st.tuples(st.just("nested"), SMALL_KEYS, st.integers(10, 12)),
        st.tuples(st.just("has_delta"), st.none(), st.none()),
        st.tuples(st.just("iterate"), st.none(), st.none()),
        st.tuples(st.just("to_dict"), st.none(), st.none()),
    ),
    max_size=12,
)


def take_step(state: Any, step: tuple[str, Any, Any]) -> Any:
    """Do one step and return what it answers."""
    verb, key, value = copy.deepcopy(step)
    if verb == "set":
        state[key] = value
    elif verb == "update":
        state.update(key)
    elif verb == "setdefault":
        return copy.deepcopy(state.setdefault(key, value))
    elif verb == "get":
        return copy.deepcopy(state.get(key, value))
    elif verb == "contains":
        return key in state
    elif verb == "nested":
        held = state.get(key)
        if isinstance(held, list):
            held.append(value)
        elif isinstance(held, dict):
            held["new"] = value
    elif verb == "has_delta":
        return state.has_delta()
    elif verb == "iterate":
        return list(state)
    elif verb == "to_dict":
        return copy.deepcopy(state.to_dict())
    return None


@settings(deadline=None, max_examples=400)
@given(st.dictionaries(SMALL_KEYS, VALUES), STEPS)
def test_state_answers_as_adks_does(value: dict[str, Any], steps: list[Any]) -> None:
    theirs, ours = AdkState(copy.deepcopy(value), {}), State(copy.deepcopy(value), {})
    answers = [(take_step(ours, step), take_step(theirs, step)) for step in steps]
    assert [mine for mine, _ in answers] == [their for _, their in answers]


@settings(deadline=None, max_examples=400)
@given(st.dictionaries(SMALL_KEYS, VALUES), STEPS)
def test_state_records_the_delta_that_adks_does(value: dict[str, Any], steps: list[Any]) -> None:
    their_delta: dict[str, Any] = {}
    our_delta: dict[str, Any] = {}
    theirs = AdkState(copy.deepcopy(value), their_delta)
    ours = State(copy.deepcopy(value), our_delta)
    for step in steps:
        take_step(ours, step)
        take_step(theirs, step)
    assert (ours.has_delta(), our_delta) == (theirs.has_delta(), their_delta)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(SMALL_KEYS, VALUES), STEPS)
def test_a_read_only_value_makes_no_difference_to_the_holder(
    value: dict[str, Any], steps: list[Any]
) -> None:
    plain, guarded = State(copy.deepcopy(value)), State(read_only(copy.deepcopy(value)))
    for step in steps:
        assert take_step(guarded, step) == take_step(plain, step)
    assert guarded.collect() == plain.collect()


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(SMALL_KEYS, VALUES), STEPS)
def test_a_read_only_value_is_never_changed(value: dict[str, Any], steps: list[Any]) -> None:
    stored = read_only(copy.deepcopy(value))
    state = State(stored)
    for step in steps:
        take_step(state, step)
    assert stored == value


def test_the_prefixes_are_adks() -> None:
    names = ("APP_PREFIX", "USER_PREFIX", "TEMP_PREFIX")
    assert [getattr(State, name) for name in names] == [getattr(AdkState, name) for name in names]


def test_a_missing_key_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="k"):
        State()["k"]


def test_the_delta_given_is_the_one_written_to() -> None:
    delta: dict[str, Any] = {}
    State({}, delta)["a"] = 1
    assert delta == {"a": 1}


def test_a_read_prefers_the_delta() -> None:
    assert State({"a": 1}, {"a": 2})["a"] == 2


def test_iteration_goes_by_first_appearance() -> None:
    state = State({"z": 1, "y": 2}, {"x": 3, "z": 4})
    assert list(state) == ["z", "y", "x"]


def test_setdefault_returns_an_object_whose_changes_are_recorded() -> None:
    state = State(read_only({}))
    state.setdefault("cart", []).append("apple")
    assert state.collect() == {"cart": ["apple"]}


def test_a_deep_change_is_recorded_under_its_key() -> None:
    state = State(read_only({"a": {"b": [{"c": 1}]}}))
    state["a"]["b"][0]["c"] = 2
    assert state.collect() == {"a": {"b": [{"c": 2}]}}


def test_a_read_alone_is_no_change() -> None:
    state = State(read_only({"a": {"b": []}}))
    state["a"]["b"]
    assert not state.has_delta()


def test_a_change_taken_back_is_no_change() -> None:
    state = State(read_only({"a": [1]}))
    state["a"].append(2)
    state["a"].pop()
    assert not state.has_delta()


# -- take ---------------------------------------------------------------------------------


def test_take_returns_what_was_written() -> None:
    state = State(read_only({"a": []}))
    state["a"].append(1)
    state["b"] = 2
    assert state.take() == {"a": [1], "b": 2}


def test_take_begins_a_new_delta() -> None:
    state = State(read_only({}))
    state["b"] = 2
    state.take()
    assert not state.has_delta()


def test_a_container_changed_after_take_goes_into_the_next_delta() -> None:
    stored = read_only({"cart": []})
    state = State(stored)
    cart = state["cart"]
    cart.append(1)
    write_through(stored, copy.deepcopy(state.take()))
    cart.append(2)
    assert state.take() == {"cart": [1, 2]}


def test_a_container_assigned_before_take_is_followed_after_it() -> None:
    stored = read_only({})
    state = State(stored)
    cart = state["cart"] = [1]
    write_through(stored, copy.deepcopy(state.take()))
    cart.append(2)
    assert state.take() == {"cart": [1, 2]}


def test_a_container_that_was_replaced_is_not_followed_any_more() -> None:
    state = State(read_only({"cart": []}))
    old = state["cart"]
    state["cart"] = ["new"]
    state.take()
    old.append("lost")
    assert state.take() == {}


def test_what_take_returned_does_not_change_later() -> None:
    state = State(read_only({}))
    state["cart"] = [1]
    taken = state.take()
    before = copy.deepcopy(taken)
    state["b"] = 2
    assert taken == before


# -- schema -------------------------------------------------------------------------------


class PydanticSchema(pydantic.BaseModel):
    count: int = 0
    tags: list[str] = []
    share: Annotated[float, pydantic.Field(ge=0, le=1)] = 0
    name: str | None = None


class StructSchema(msgspec.Struct):
    count: int = 0
    tags: list[str] = []
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0
    name: str | None = None


BOTH = pytest.mark.parametrize("schema", [PydanticSchema, StructSchema])


@BOTH
@pytest.mark.parametrize(
    "delta",
    [{"count": 1}, {"tags": ["a"]}, {"share": 0.5}, {"share": 1}, {"name": None}, {"name": "x"}],
)
def test_a_write_that_fits_the_schema_is_taken(schema: type, delta: dict[str, Any]) -> None:
    state = State(schema=schema)
    state.update(delta)
    assert state.collect() == delta


@BOTH
@pytest.mark.parametrize(
    "delta",
    [{"count": "5"}, {"count": 1.5}, {"count": None}, {"tags": [1]}, {"tags": "a"}, {"share": 2},
     {"name": 5}, {"other": 1}],
)  # fmt: skip
def test_a_write_that_breaks_the_schema_is_refused_by_key(
    schema: type, delta: dict[str, Any]
) -> None:
    (key,) = delta
    with pytest.raises(StateSchemaError, match=key):
        State(schema=schema).update(delta)


@BOTH
def test_a_bool_is_no_int_to_a_schema(schema: type) -> None:
    with pytest.raises(StateSchemaError, match="count"):
        State(schema=schema)["count"] = True


@BOTH
def test_an_update_that_breaks_the_schema_writes_nothing(schema: type) -> None:
    state = State(schema=schema)
    with pytest.raises(StateSchemaError):
        state.update({"count": 1, "tags": 5})
    assert not state.has_delta()


@BOTH
@pytest.mark.parametrize("key", ["user:other", "app:other", "temp:other", "node:other"])
def test_keys_with_a_colon_are_not_checked(schema: type, key: str) -> None:
    state = State(schema=schema)
    state[key] = object
    assert key in state


@BOTH
def test_setdefault_checks_the_schema(schema: type) -> None:
    with pytest.raises(StateSchemaError):
        State(schema=schema).setdefault("count", "none")


@BOTH
def test_a_change_in_place_is_checked_when_it_is_taken(schema: type) -> None:
    state = State(read_only({"tags": []}), schema=schema)
    state["tags"].append(5)
    with pytest.raises(StateSchemaError, match="tags"):
        state.take()


@BOTH
def test_the_error_names_the_schema_and_its_keys(schema: type) -> None:
    with pytest.raises(StateSchemaError, match=rf"{schema.__name__}.*count"):
        State(schema=schema)["other"] = 1


def test_a_schema_that_is_neither_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="schema"):
        State(schema=dict)["a"] = 1


@BOTH
def test_a_service_checks_an_events_delta(schema: type) -> None:
    async def append() -> None:
        service = InMemorySessionService(state_schema=schema)
        session = await service.create_session(app_name="a", user_id="u")
        await service.append_event(session, Event(state={"count": "5"}))

    with pytest.raises(StateSchemaError):
        asyncio.run(append())


@BOTH
def test_a_service_checks_the_initial_state(schema: type) -> None:
    service = InMemorySessionService(state_schema=schema)
    with pytest.raises(StateSchemaError):
        asyncio.run(service.create_session(app_name="a", user_id="u", state={"count": "5"}))


# -- keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [b"a", 1, None, ("a",), True, 1.5])
def test_a_key_that_is_no_string_is_refused(key: Any) -> None:
    with pytest.raises(InvalidInputError, match="string"):
        State()[key] = 1


@pytest.mark.parametrize("key", [b"a", 1, None, ("a",), True, 1.5])
def test_a_key_that_is_no_string_is_refused_in_a_delta(key: Any) -> None:
    with pytest.raises(InvalidInputError, match="string"):
        split({key: 1})


def test_an_unhashable_key_is_refused() -> None:
    with pytest.raises((TypeError, InvalidInputError)):
        State()[["a"]] = 1  # type: ignore[index]


@pytest.mark.parametrize("key", ["\ud800", "user:\udfff"])
def test_a_key_of_invalid_unicode_is_refused(key: str) -> None:
    with pytest.raises(InvalidInputError, match="Unicode"):
        State()[key] = 1


@pytest.mark.parametrize("key", ["k" * 1025, "é" * 513, "user:" + "k" * 1020])
def test_a_key_that_is_too_long_is_refused(key: str) -> None:
    with pytest.raises(InvalidInputError, match="1024"):
        State()[key] = 1


@pytest.mark.parametrize("key", ["k" * 1024, "é" * 512, "", "\x00", "user:", "app:temp:x", "a b"])
def test_a_strange_key_is_kept(key: str) -> None:
    async def carry() -> Any:
        service = InMemorySessionService()
        session = await service.create_session(app_name="a", user_id="u")
        await service.append_event(session, Event(state={key: 1}))
        again = await service.get_session(app_name="a", user_id="u", session_id=session.id)
        return again and again.state

    assert asyncio.run(carry()) == {key: 1}


def test_an_update_with_one_bad_key_writes_nothing() -> None:
    state = State()
    with pytest.raises(InvalidInputError):
        state.update({"a": 1, "\ud800": 2})
    assert not state.has_delta()


# -- what a holder of a session sees ------------------------------------------------------


def session_state() -> dict[str, Any]:
    """Return the state of a session as the service hands it out."""

    async def create() -> dict[str, Any]:
        service = InMemorySessionService()
        state = {"n": 1, "d": {"k": [1, {"x": 2}]}, "l": [1, [2], {"y": 3}]}
        return (await service.create_session(app_name="a", user_id="u", state=state)).state

    return asyncio.run(create())


PLAIN = {"n": 1, "d": {"k": [1, {"x": 2}]}, "l": [1, [2], {"y": 3}]}

WRITES: dict[str, Any] = {
    "setitem": lambda s: s.__setitem__("n", 2),
    "delitem": lambda s: s.__delitem__("n"),
    "ior": lambda s: s.__ior__({"n": 2}),
    "clear": lambda s: s.clear(),
    "pop": lambda s: s.pop("n"),
    "pop of a missing key": lambda s: s.pop("no", None),
    "popitem": lambda s: s.popitem(),
    "setdefault": lambda s: s.setdefault("n", 1),
    "update": lambda s: s.update(n=2),
    "update of nothing": lambda s: s.update(),
    "nested dict": lambda s: s["d"].__setitem__("k", 1),
    "nested dict update": lambda s: s["d"].update(k=1),
    "list setitem": lambda s: s["l"].__setitem__(0, 1),
    "list slice": lambda s: s["l"].__setitem__(slice(0, 1), []),
    "list delitem": lambda s: s["l"].__delitem__(0),
    "list iadd": lambda s: s["l"].__iadd__([1]),
    "list imul": lambda s: s["l"].__imul__(2),
    "list append": lambda s: s["l"].append(1),
    "list extend": lambda s: s["l"].extend([1]),
    "list insert": lambda s: s["l"].insert(0, 1),
    "list pop": lambda s: s["l"].pop(),
    "list remove": lambda s: s["l"].remove(1),
    "list clear": lambda s: s["l"].clear(),
    "list sort": lambda s: s["l"].sort(),
    "list reverse": lambda s: s["l"].reverse(),
    "list in list": lambda s: s["l"][1].append(1),
    "dict in list": lambda s: s["l"][2].update(y=1),
    "dict in list in dict": lambda s: s["d"]["k"][1].clear(),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_direct_write_is_refused(write: Any) -> None:
    with pytest.raises(ReadOnlyStateError):
        write(session_state())


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_direct_write_changes_nothing(write: Any) -> None:
    state = session_state()
    with pytest.raises(ReadOnlyStateError):
        write(state)
    assert state == PLAIN


@pytest.mark.parametrize("way", ["state_delta", "context", "patch_state", "copy"])
def test_the_refusal_teaches_every_way(way: str) -> None:
    with pytest.raises(ReadOnlyStateError, match=way):
        session_state()["n"] = 2


def test_the_refusal_of_a_nested_write_teaches_a_copy_that_can_be_written() -> None:
    """`dict(state)` is shallow: whoever follows that advice is refused again."""
    with pytest.raises(ReadOnlyStateError, match="deepcopy"):
        dict(session_state())["d"]["k"] = 1


COPIES: dict[str, Any] = {
    "dict": dict,
    "copy method": lambda s: s.copy(),
    "copy.copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda s: pickle.loads(pickle.dumps(s)),
    "json": lambda s: json.loads(json.dumps(s)),
    "msgspec": lambda s: msgspec.json.decode(msgspec.json.encode(s)),
    "union": lambda s: s | {},
    "unpacking": lambda s: {**s},
}
DEEP = {"deepcopy", "pickle", "json", "msgspec"}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_is_equal(copied: Any) -> None:
    assert copied(session_state()) == PLAIN


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_is_a_plain_dict(copied: Any) -> None:
    assert type(copied(session_state())) is dict


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_can_be_written(copied: Any) -> None:
    mine = copied(session_state())
    mine["new"] = 1
    assert mine["new"] == 1


@pytest.mark.parametrize("copied", [COPIES[name] for name in sorted(DEEP)], ids=sorted(DEEP))
def test_a_deep_copy_can_be_written_all_the_way_down(copied: Any) -> None:
    mine = copied(session_state())
    mine["d"]["k"][1]["x"] = 5
    mine["l"][1].append(6)
    assert mine == {"n": 1, "d": {"k": [1, {"x": 5}]}, "l": [1, [2, 6], {"y": 3}]}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_writing_to_a_copy_leaves_the_state_alone(copied: Any) -> None:
    state = session_state()
    copied(state).clear()
    assert state == PLAIN


@pytest.mark.parametrize(
    "copied", [list, copy.copy, copy.deepcopy, lambda v: v[:], lambda v: v * 1, lambda v: v.copy()]
)
def test_a_copy_of_a_list_is_plain(copied: Any) -> None:
    assert type(copied(session_state()["l"])) is list


def test_a_state_looks_like_a_dict() -> None:
    assert repr(session_state()) == repr(PLAIN)


def test_the_initial_state_given_stays_the_callers() -> None:
    mine = {"d": {"k": 1}}

    async def create() -> dict[str, Any]:
        service = InMemorySessionService()
        return (await service.create_session(app_name="a", user_id="u", state=mine)).state

    state = asyncio.run(create())
    mine["d"]["k"] = 2
    assert state == {"d": {"k": 1}}


def test_a_value_read_from_the_state_can_be_appended_again() -> None:
    async def carry() -> Any:
        service = InMemorySessionService()
        session = await service.create_session(app_name="a", user_id="u", state=PLAIN)
        await service.append_event(
            session, Event(actions=EventActions(state_delta={"copy": session.state["d"]}))
        )
        return session.state["copy"]

    assert asyncio.run(carry()) == PLAIN["d"]


def test_the_state_after_an_append_is_read_only_too() -> None:
    async def append() -> dict[str, Any]:
        service = InMemorySessionService()
        session = await service.create_session(app_name="a", user_id="u")
        await service.append_event(session, Event(state={"a": {"b": 1}, "temp:c": {"d": 1}}))
        return session.state

    state = asyncio.run(append())
    for key in ("a", "temp:c"):
        with pytest.raises(ReadOnlyStateError):
            state[key]["new"] = 1


def test_the_state_of_a_listed_session_is_read_only_too() -> None:
    async def listed() -> dict[str, Any]:
        service = InMemorySessionService()
        await service.create_session(app_name="a", user_id="u", state={"a": {"b": 1}})
        return (await service.list_sessions(app_name="a")).sessions[0].state

    with pytest.raises(ReadOnlyStateError):
        asyncio.run(listed())["a"]["b"] = 2


def test_user_state_is_a_copy_that_can_be_written() -> None:
    async def write() -> dict[str, Any]:
        service = InMemorySessionService()
        await service.create_session(app_name="a", user_id="u", state={"user:x": {"k": 1}})
        (await service.get_user_state(app_name="a", user_id="u"))["x"]["k"] = 2
        return await service.get_user_state(app_name="a", user_id="u")

    assert asyncio.run(write()) == {"x": {"k": 1}}


def test_a_plain_copy_is_free_to_be_changed_at_every_depth() -> None:
    stored = read_only({"a": {"b": [{"c": 1}]}})
    copied = plain(stored)
    copied["a"]["b"][0]["c"] = 2
    copied["a"]["b"].append(3)
    assert stored == {"a": {"b": [{"c": 1}]}}
    assert json.loads(json.dumps(copied)) == copied == {"a": {"b": [{"c": 2}, 3]}}
