"""Any JSON value of Python's comes back equal, or is refused by name; never a changed value."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import json
import math
import struct
import uuid
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from threadline import (
    Blob,
    Content,
    Event,
    EventActions,
    FunctionCall,
    Part,
    UnsupportedValueError,
)
from threadline.canonical import DEPTH_MAX, decode, encode, encode_checked


def told(value: Any) -> Any:
    """Return something that differs for any two different values: 1, 1.0 and True, -0.0, NaN."""
    if isinstance(value, float):
        return "float", "nan" if math.isnan(value) else struct.pack(">d", value)
    if isinstance(value, dict):
        return "dict", [(key, told(item)) for key, item in value.items()]
    if isinstance(value, list):
        return "list", [told(item) for item in value]
    return type(value).__name__, value


def and_back(value: Any) -> Any:
    return decode(None, encode(value))


def refused(value: Any) -> str:
    with pytest.raises(UnsupportedValueError) as caught:
        encode(value, "root")
    return str(caught.value)


# -- what comes back ----------------------------------------------------------------------

TEXT = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["\x00", "a\x00b", "\ud800", "\udfff", "\udc00\ud800", "\x7fextra", "\u2028", "😀", "",
     "\\ud800", "\\", '"', "{[" * 70]
)  # fmt: skip


def joins(text: str) -> bool:
    """Whether JSON would join two lone surrogates of the text into one character."""
    try:
        return json.loads(json.dumps(text)) != text
    except ValueError:
        return True


SAFE_TEXT = TEXT.filter(lambda text: not joins(text))
FLOATS = st.floats() | st.sampled_from(
    [
        0.1 + 0.2,
        1.7976931348623157e308,
        5e-324,
        -0.0,
        1e22,
        1e23,
        123456789012345.67,
        9007199254740993.0,
    ]
)
INTS = st.integers() | st.sampled_from(
    [
        2**70,
        -(2**70),
        2**63,
        2**63 - 1,
        -(2**63),
        -(2**63) - 1,
        2**64,
        2**64 - 1,
        2**53 + 1,
        10**4000,
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | INTS | FLOATS | SAFE_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SAFE_TEXT, inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None, max_examples=400)
@given(JSON)
@example([math.nan, math.inf, -math.inf, -0.0])
@example({"": {"": []}, "\x00": {}})
def test_any_json_value_comes_back_equal(value: Any) -> None:
    assert told(and_back(value)) == told(value)


@settings(deadline=None, max_examples=200)
@given(JSON)
def test_any_json_value_comes_back_equal_inside_of_an_event(value: Any) -> None:
    event = Event(
        output=value,
        custom_metadata={"k": value},
        content=Content(parts=[Part(function_call=FunctionCall(args={"k": value}))]),
        actions=EventActions(state_delta={"k": value}),
    )
    again = Event.from_json(event.to_json())
    assert told(again.output) == told(value)
    assert told(again.custom_metadata) == told({"k": value})
    assert told(again.get_function_calls()[0].args) == told({"k": value})
    assert told(again.actions.state_delta) == told({"k": value})


@settings(deadline=None, max_examples=200)
@given(st.floats(allow_nan=False))
def test_any_float_comes_back_to_the_bit(value: float) -> None:
    assert struct.pack(">d", and_back(value)) == struct.pack(">d", value)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinities_come_back(value: float) -> None:
    assert and_back({"k": [value]}) == {"k": [value]}


def test_nan_comes_back() -> None:
    assert math.isnan(and_back({"k": math.nan})["k"])


@pytest.mark.parametrize("bits", [63, 64, 70, 1000, 13_000])
def test_large_integers_come_back(bits: int) -> None:
    for value in (2**bits, -(2**bits) - 1):
        assert and_back([value]) == [value]


@pytest.mark.parametrize("value", [chr(0xD800), chr(0xDFFF), "a\udc00\ud800b"])
def test_lone_surrogates_come_back(value: str) -> None:
    assert and_back({value: value}) == {value: value}


@pytest.mark.parametrize("value", [{}, [], "", [[]], [{}], {"": {}}, {"a": []}, None])
def test_empty_containers_come_back(value: Any) -> None:
    assert and_back(value) == value


def test_the_order_of_keys_comes_back() -> None:
    assert list(and_back({"b": 1, "a": 2, "c": 3})) == ["b", "a", "c"]


@pytest.mark.parametrize("leaf", [1, math.nan])
def test_nesting_up_to_the_limit_comes_back(leaf: float) -> None:
    value: Any = leaf
    for n in range(DEPTH_MAX // 2):
        value = [value] if n % 2 else {"k": value}
    assert told(and_back(value)) == told(value)


def test_what_is_wide_is_not_taken_for_deep() -> None:
    value = [{"k": [n]} for n in range(5_000)]
    assert and_back(value) == value


def test_subclasses_of_json_types_come_back_equal() -> None:
    value = {"a": collections.OrderedDict(x=1), "b": collections.defaultdict(list, y=[2])}
    assert and_back(value) == value


def test_encoded_bytes_are_utf_8() -> None:
    assert encode({"k": "naïve 😀"}).decode() == '{"k":"naïve 😀"}'


def test_the_checked_value_shares_nothing_with_the_callers() -> None:
    mine = {"k": [1]}
    _, again, _ = encode_checked(mine)
    again["k"].append(2)
    assert mine == {"k": [1]}


def test_encoding_changes_nothing_of_the_callers() -> None:
    value = {"k": [math.nan, {"x": "\ud800"}]}
    before = told(value)
    encode(value)
    assert told(value) == before


# -- what is refused ----------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"


REFUSED: list[tuple[Any, str]] = [
    ((1, 2), "tuple"),
    ((), "tuple"),
    ({1, 2}, "set"),
    (set(), "set"),
    (frozenset(), "frozenset"),
    (b"bytes", "bytes"),
    (bytearray(b"x"), "bytearray"),
    (dt.datetime(2026, 1, 2, tzinfo=dt.UTC), "datetime"),
    (dt.date(2026, 1, 2), "date"),
    (dt.timedelta(1), "timedelta"),
    (decimal.Decimal("1.5"), "Decimal"),
    (decimal.Decimal(1), "Decimal"),
    (uuid.UUID(int=1), "UUID"),
    (object(), "object"),
    (1j, "complex"),
    (Colour.RED, "Colour"),
    (len, "builtin"),
    (Part(text="x"), "Part"),
    (Blob(data=b"x"), "Blob"),
]
NAMES = [f"{name}-{n}" for n, (_, name) in enumerate(REFUSED)]


@pytest.mark.parametrize(("value", "name"), REFUSED, ids=NAMES)
def test_other_types_are_refused_with_their_path(value: Any, name: str) -> None:
    message = refused({"a": [0, {"b": value}]})
    assert "root['a'][1]['b']" in message


@pytest.mark.parametrize(("value", "name"), REFUSED, ids=NAMES)
def test_other_types_are_refused_by_name(value: Any, name: str) -> None:
    assert name in refused({"k": value})


@pytest.mark.parametrize(("value", "name"), REFUSED, ids=NAMES)
def test_other_types_are_refused_in_every_open_field_of_an_event(value: Any, name: str) -> None:
    for event in (
        Event(output=value),
        Event(custom_metadata={"k": value}),
        Event(actions=EventActions(set_model_response=value)),
        Event(actions=EventActions(state_delta={"k": value})),
        Event(actions=EventActions(agent_state={"k": [value]})),
        Event(content=Content(parts=[Part(function_call=FunctionCall(args={"k": value}))])),
    ):
        with pytest.raises(UnsupportedValueError):
            event.to_json()


@pytest.mark.parametrize(
    ("value", "name"),
    [case for case in REFUSED if not isinstance(case[0], Part | Blob)],
    ids=[
        name for name, case in zip(NAMES, REFUSED, strict=True) if case[1] not in ("Part", "Blob")
    ],
)
def test_other_types_are_refused_at_the_top(value: Any, name: str) -> None:
    assert refused(value).startswith("root ")


@pytest.mark.parametrize("leaf", [0, math.nan])
@pytest.mark.parametrize("key", [1, None, True, 1.5, ("a",), b"a"])
def test_keys_that_are_no_strings_are_refused_with_their_path(key: Any, leaf: float) -> None:
    message = refused({"a": [{key: leaf}]})
    assert "root['a'][0]" in message
    assert repr(key) in message


def test_a_surrogate_pair_given_as_two_lone_ones_is_refused() -> None:
    assert "root['k']" in refused({"k": "\ud83d\ude00"})


def test_a_surrogate_pair_given_as_two_lone_ones_is_refused_as_a_key() -> None:
    refused({"k": {"\ud83d\ude00": 1}})


@pytest.mark.parametrize("leaf", [0, math.nan])
def test_what_is_too_deep_is_refused(leaf: float) -> None:
    value: Any = leaf
    for _ in range(DEPTH_MAX + 2):
        value = [value]
    assert "deep" in refused(value)


@pytest.mark.parametrize("depth", [5_000, 200_000])
def test_what_is_much_too_deep_is_refused(depth: int) -> None:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    assert "deep" in refused(value)


def test_a_list_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    assert "deep" in refused(value)


def test_what_is_too_deep_is_refused_inside_of_an_event() -> None:
    value: Any = 0
    for _ in range(DEPTH_MAX + 2):
        value = {"k": value}
    with pytest.raises(UnsupportedValueError, match="deep"):
        Event(output=value).to_json()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_huge_integer_is_refused_with_its_path(sign: int) -> None:
    assert "root['k']" in refused({"k": sign * 2**20_000})


def test_a_wrong_type_in_a_models_field_is_refused() -> None:
    with pytest.raises(ValueError, match="author"):
        Event(author=5).to_json()  # type: ignore[arg-type]


ANYTHING = st.recursive(
    st.none() | st.booleans() | INTS | FLOATS | TEXT | st.binary(max_size=3) | st.just(object())
    | st.tuples(st.integers()) | st.sets(st.integers(), max_size=2) | st.decimals()
    | st.datetimes() | st.sampled_from([Part(text="x"), Colour.RED]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(TEXT | st.integers() | st.booleans(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(ANYTHING)
def test_anything_comes_back_equal_or_is_refused(value: Any) -> None:
    try:
        body = encode([value])
    except UnsupportedValueError:
        return
    assert told(decode(None, body)) == told([value])


@settings(deadline=None, max_examples=200)
@given(ANYTHING)
def test_any_output_of_an_event_comes_back_equal_or_is_refused(value: Any) -> None:
    try:
        body = Event(output=value).to_json()
    except UnsupportedValueError:
        return
    assert told(Event.from_json(body).output) == told(value)


# -- names with a meaning of ours ---------------------------------------------------------

HOSTILE = ["\x7fextra", "extra", "__proto__", "id", "seq", "stateDelta", "state_delta"]


@pytest.mark.parametrize("key", HOSTILE)
@pytest.mark.parametrize("value", [1, None, {"author": "you"}, math.nan])
def test_hostile_keys_in_user_data_are_kept_as_they_came(key: str, value: Any) -> None:
    event = Event(output={key: value}, actions=EventActions(state_delta={"k": {key: value}}))
    again = Event.from_json(event.to_json())
    assert told(again.output) == told({key: value})
    assert told(again.actions.state_delta) == told({"k": {key: value}})


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_state_keys_are_kept_as_they_came(key: str) -> None:
    event = Event(author="me", actions=EventActions(state_delta={key: {"author": "you"}}))
    assert Event.from_json(event.to_json()) == event


def test_a_hostile_text_is_kept_as_it_came() -> None:
    event = Event(content='"\x7fextra":{"author":"you"}')
    assert Event.from_json(event.to_json()) == event


def test_a_hostile_key_in_a_model_inside_of_a_list_is_kept_as_it_came() -> None:
    written = '{"parts":[{"text":"a"},{"text":"b","\x7fextra":{"text":"c"}}]}'
    assert json.loads(Content.from_json(written).to_json()) == json.loads(written)


def test_an_unknown_field_with_a_hostile_value_is_kept_as_it_came() -> None:
    new = f'{{"big":{2**70},"nan":NaN,"lone":"\\ud800"}}'
    written = f'{{"id":"e","timestamp":1.0,"new":{new}}}'
    again = json.loads(Event.from_json(written).to_json())
    assert told(again["new"]) == told(json.loads(written)["new"])
