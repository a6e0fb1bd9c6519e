"""The models against the real google-adk and google-genai: same fields, same JSON, same rules."""

from __future__ import annotations

import asyncio
import base64
import copy
import enum
import json
import pickle
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pydantic
import pytest
from fastapi.openapi.models import HTTPBearer
from google.adk.auth.auth_tool import AuthConfig
from google.adk.events import Event as AdkEvent
from google.adk.events import EventActions as AdkActions
from google.adk.events.event_actions import EventCompaction as AdkCompaction
from google.genai import types as genai
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticUndefined

from threadline import (
    Blob,
    Content,
    Event,
    EventActions,
    EventCompaction,
    FunctionCall,
    FunctionResponse,
    InMemorySessionService,
    InvalidInputError,
    NodeInfo,
    Part,
    ToolConfirmation,
    UiWidget,
    clock,
)
from threadline.canonical import Model

# -- walking ADK's models and ours side by side -------------------------------------------


def leaves(kind: Any) -> Iterator[Any]:
    """Yield the classes an annotation is made of."""
    if get_args(kind) and get_origin(kind) is not Literal:
        for arg in get_args(kind):
            yield from leaves(arg)
    else:
        yield kind


def model_leaf(kind: Any, base: type) -> Any:
    """Return the model inside of an annotation, or None."""
    return next((k for k in leaves(kind) if isinstance(k, type) and issubclass(k, base)), None)


def our_field(kind: type, name: str) -> Any:
    return next((field for field in msgspec.structs.fields(kind) if field.name == name), None)


def pairs() -> dict[str, tuple[Any, Any]]:
    """Return every ADK model reachable from Event, with ours at the same place."""
    found: dict[str, tuple[Any, Any]] = {}

    def walk(theirs: Any, ours: Any) -> None:
        if theirs.__name__ in found:
            return
        found[theirs.__name__] = theirs, ours
        for name, info in theirs.model_fields.items():
            nested = model_leaf(info.annotation, pydantic.BaseModel)
            if nested is not None:
                field = ours and our_field(ours, name)
                walk(nested, field and model_leaf(field.type, Model))

    walk(AdkEvent, Event)
    return found


PAIRS = pairs()


def json_name(name: str, info: Any) -> str:
    return info.serialization_alias or info.alias or name


def shape(kind: Any) -> Any:
    """Reduce an annotation to what its JSON can be; enumerations are text."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        kinds = {shape(arg) for arg in args if arg is not type(None)}
        return next(iter(kinds)) if len(kinds) == 1 else frozenset(kinds)
    if origin is Literal:
        return "str"
    if origin in (set, frozenset):
        return "set", shape(args[0])
    if origin is not None:
        return origin.__name__, *map(shape, args)
    if isinstance(kind, type):
        if issubclass(kind, pydantic.BaseModel | Model):
            return "model"
        if issubclass(kind, enum.Enum):
            return "str"
        return kind.__name__
    return "Any"


@pytest.mark.parametrize("name", PAIRS)
def test_every_adk_model_has_its_counterpart(name: str) -> None:
    assert PAIRS[name][1] is not None


@pytest.mark.parametrize("name", PAIRS)
def test_every_field_of_adk_has_the_same_json_name(name: str) -> None:
    theirs, ours = PAIRS[name]
    known = {field.name: field.encode_name for field in msgspec.structs.fields(ours)}
    wanted = {field: json_name(field, info) for field, info in theirs.model_fields.items()}
    assert {field: known.get(field) for field in wanted} == wanted


@pytest.mark.parametrize("name", PAIRS)
def test_every_field_of_adk_has_the_same_type(name: str) -> None:
    theirs, ours = PAIRS[name]
    hints = get_type_hints(ours)
    wanted = {field: shape(info.annotation) for field, info in theirs.model_fields.items()}
    if theirs is AdkActions:
        wanted["requested_auth_configs"] = ("dict", "str", "Any")
    assert {field: shape(hints[field]) for field in wanted if field in hints} == {
        field: kind for field, kind in wanted.items() if field in hints
    }


@pytest.mark.parametrize("name", PAIRS)
def test_every_field_of_adk_has_the_same_default(name: str) -> None:
    theirs, ours = PAIRS[name]
    for field, info in theirs.model_fields.items():
        mine = our_field(ours, field)
        if mine is None or info.default_factory is not None or (theirs, field) == (AdkEvent, "id"):
            continue
        wanted = msgspec.NODEFAULT if info.default is PydanticUndefined else info.default
        assert mine.default == wanted, field


# -- events made of ADK's own models ------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False,
    allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip

SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=5),
    bytes: st.binary(max_size=5),
    bool: st.booleans(),
    int: st.integers(1, 10_000),
    float: st.floats(allow_nan=False, allow_infinity=False),
    Any: JSON,
}


def values(kind: Any, *, full: bool) -> st.SearchStrategy[Any]:
    """Generate values of an annotation; `full` leaves nothing out."""
    origin, args = get_origin(kind), get_args(kind)
    if kind in SCALARS:
        return SCALARS[kind]
    if origin in (Union, types.UnionType):
        return st.one_of([values(arg, full=full) for arg in args if arg is not type(None)])
    if origin is Literal:
        return st.sampled_from(args)
    least = 1 if full else 0
    if origin is list:
        return st.lists(values(args[0], full=full), min_size=least, max_size=least + 1)
    if origin is set:
        return st.sets(values(args[0], full=full), min_size=least, max_size=3)
    if origin is dict:
        return st.dictionaries(
            st.text(max_size=5), values(args[1], full=full), min_size=least, max_size=least + 1
        )
    if issubclass(kind, enum.Enum):
        return st.sampled_from(list(kind))
    return adk_models(kind, full=full)


def adk_models(kind: Any, *, full: bool) -> st.SearchStrategy[Any]:
    fields = {
        name: values(info.annotation, full=full)
        for name, info in kind.model_fields.items()
        if name != "requested_auth_configs"  # AuthConfig objects, which have a test of their own
    }
    if kind is AdkEvent:
        fields["id"] = st.text(min_size=1, max_size=5)
    full = full or kind.__name__ == "CacheMetadata"  # which wants all of its fields, or none
    needed = {n for n, info in kind.model_fields.items() if full or info.is_required()}
    needed |= {"id", "timestamp"} if kind is AdkEvent else set()
    return st.fixed_dictionaries(
        {name: strategy for name, strategy in fields.items() if name in needed},
        optional={name: strategy for name, strategy in fields.items() if name not in needed},
    ).map(lambda chosen: kind(**chosen))


def filled(kind: Any, name: str) -> Any:
    """Return a value of an annotation with every field set, none of them to its default."""
    origin, args = get_origin(kind), get_args(kind)
    plain = {str: f"a {name}", bytes: b"abc", bool: True, int: 7, float: 0.5, Any: {"a": [1, None]}}
    if kind in plain:
        return plain[kind]
    if origin in (Union, types.UnionType):
        return filled(next(arg for arg in args if arg is not type(None)), name)
    if origin is Literal:
        return args[0]
    if origin in (list, set):
        return origin([filled(args[0], name)])
    if origin is dict:
        return {"k": filled(args[1], name)}
    if issubclass(kind, enum.Enum):
        return list(kind)[-1]
    return kind(
        **{
            field: filled(info.annotation, field)
            for field, info in kind.model_fields.items()
            if field != "requested_auth_configs"
        }
    )


def full_event() -> AdkEvent:
    event: AdkEvent = filled(AdkEvent, "event")
    return event


def told(event: AdkEvent) -> Any:
    """Return what an ADK event says; without `exclude_none`, which empties users' dicts too."""
    return event.model_dump(mode="json", by_alias=True)


def unset(theirs: pydantic.BaseModel) -> list[str]:
    """Name the fields, at any depth, that are at their default."""
    missing = []
    for name, info in type(theirs).model_fields.items():
        value = getattr(theirs, name)
        if value is None or value == info.get_default(call_default_factory=True):
            missing.append(f"{type(theirs).__name__}.{name}")
        inner = list(value.values()) if isinstance(value, dict) else value
        for item in inner if isinstance(inner, list) else [inner]:
            if isinstance(item, pydantic.BaseModel):
                missing += unset(item)
    return missing


def test_the_filler_leaves_no_field_at_its_default() -> None:
    assert unset(full_event()) == ["EventActions.requested_auth_configs"]


def test_adk_reads_our_json_of_an_event_with_every_field() -> None:
    theirs = full_event()
    ours = Event.from_json(theirs.model_dump_json(by_alias=True))
    assert told(AdkEvent.model_validate_json(ours.to_json())) == told(theirs)


@settings(deadline=None, max_examples=20)
@given(adk_models(AdkEvent, full=True))
def test_adk_reads_our_json_of_any_event_with_every_field(theirs: AdkEvent) -> None:
    ours = Event.from_json(theirs.model_dump_json(by_alias=True))
    assert told(AdkEvent.model_validate_json(ours.to_json())) == told(theirs)


@settings(deadline=None, max_examples=50)
@given(adk_models(AdkEvent, full=False))
def test_adk_reads_our_json_of_any_event(theirs: AdkEvent) -> None:
    ours = Event.from_json(theirs.model_dump_json(by_alias=True))
    assert told(AdkEvent.model_validate_json(ours.to_json())) == told(theirs)


@settings(deadline=None, max_examples=50)
@given(adk_models(AdkEvent, full=False))
def test_an_adk_event_as_an_object_says_what_its_json_says(theirs: AdkEvent) -> None:
    ours = Event.from_dict(theirs)
    assert told(AdkEvent.model_validate_json(ours.to_json())) == told(theirs)


@pytest.mark.parametrize("by_alias", [True, False])
@pytest.mark.parametrize("exclude_none", [True, False])
def test_adks_json_is_read_in_both_spellings(by_alias: bool, exclude_none: bool) -> None:
    theirs = full_event()
    written = theirs.model_dump_json(by_alias=by_alias, exclude_none=exclude_none)
    ours = Event.from_json(written)
    assert ours == Event.from_json(theirs.model_dump_json(by_alias=True))
    assert told(AdkEvent.model_validate_json(ours.to_json())) == told(theirs)


@pytest.mark.parametrize("by_alias", [True, False])
@pytest.mark.parametrize("exclude_none", [True, False])
def test_a_sparse_event_of_adk_is_read_in_both_spellings(
    by_alias: bool, exclude_none: bool
) -> None:
    theirs = AdkEvent(id="e", author="a", timestamp=1.5, content=genai.Content(role="user"))
    written = theirs.model_dump_json(by_alias=by_alias, exclude_none=exclude_none)
    assert Event.from_json(written) == Event(
        id="e", author="a", timestamp=1.5, content=Content(role="user")
    )


@pytest.mark.parametrize("by_alias", [True, False])
def test_known_fields_leave_no_extra_behind(by_alias: bool) -> None:
    event = Event.from_json(full_event().model_dump_json(by_alias=by_alias))

    def extras(value: Any) -> Iterator[Any]:
        if isinstance(value, Model):
            yield value.extra
            for field in msgspec.structs.fields(type(value)):
                yield from extras(getattr(value, field.name))
        elif isinstance(value, list):
            for item in value:
                yield from extras(item)

    assert not any(extras(event))


def test_our_json_is_camel_case() -> None:
    event = Event(id="e", timestamp=1.0, invocation_id="i", error_code="x", state={"a_b": 1})
    assert json.loads(event.to_json()) == {
        "id": "e",
        "timestamp": 1.0,
        "invocationId": "i",
        "errorCode": "x",
        "actions": {"stateDelta": {"a_b": 1}},
    }


def test_our_json_is_read_back_equal() -> None:
    event = Event.from_json(full_event().model_dump_json())
    assert Event.from_json(event.to_json()) == event


@pytest.mark.parametrize(
    "event",
    [
        Event(),
        Event(content="hi"),
        Event(output=float("inf")),
        Event(actions=EventActions(escalate=True), node_path="a"),
        Event(extra={"future": 1}),
    ],
)
def test_to_dict_is_what_to_json_writes(event: Event) -> None:
    assert event.to_dict() == json.loads(event.to_json())


def test_long_running_tool_ids_are_written_sorted() -> None:
    ids = [f"call-{n:02}" for n in range(30)]
    written = json.loads(Event(long_running_tool_ids=set(ids)).to_json())
    assert written["longRunningToolIds"] == ids


def test_none_inside_a_state_delta_survives() -> None:
    theirs = AdkEvent(author="a", actions=AdkActions(state_delta={"k": None}))
    assert Event.from_dict(theirs).actions.state_delta == {"k": None}


# -- google's objects as arguments --------------------------------------------------------


def test_content_may_be_a_google_genai_object() -> None:
    given_content = genai.Content(role="user", parts=[genai.Part(text="hi")])
    assert Event(content=given_content).content == Content(role="user", parts=[Part(text="hi")])


def test_google_genai_function_calls_are_converted() -> None:
    call = genai.Part.from_function_call(name="f", args={"x": None})
    event = Event(content=genai.Content(role="model", parts=[call]))
    assert event.get_function_calls() == [FunctionCall(name="f", args={"x": None})]


def test_parts_may_be_google_genai_objects() -> None:
    assert Content(parts=[genai.Part(text="hi")]) == Content(parts=[Part(text="hi")])


def test_actions_may_be_an_adk_object() -> None:
    event = Event(actions=AdkActions(state_delta={"a": 1}, escalate=True))
    assert event.actions == EventActions(state_delta={"a": 1}, escalate=True)


def test_actions_of_adk_are_written_as_json() -> None:
    event = Event(actions=AdkActions(state_delta={"a": 1}, escalate=True))
    assert json.loads(event.to_json())["actions"] == {"stateDelta": {"a": 1}, "escalate": True}


def test_a_compaction_may_be_an_adk_object() -> None:
    theirs = AdkCompaction(
        start_timestamp=1.0, end_timestamp=2.0, compacted_content=genai.Content(role="user")
    )
    assert EventActions(compaction=theirs).compaction == EventCompaction(
        start_timestamp=1.0, end_timestamp=2.0, compacted_content=Content(role="user")
    )


def test_an_adk_auth_config_as_an_object_says_what_its_json_says() -> None:
    asked = AuthConfig(auth_scheme=HTTPBearer())
    theirs = AdkEvent(author="a", actions=AdkActions(requested_auth_configs={"call": asked}))
    again = AdkEvent.model_validate_json(Event.from_dict(theirs).to_json())
    written = [
        theirs.model_dump_json(by_alias=True, exclude_none=exclude_none)
        for exclude_none in (True, False)
    ]
    assert again in [AdkEvent.model_validate_json(text) for text in written]


def test_an_enumeration_becomes_plain_text() -> None:
    event = Event.from_dict(AdkEvent(author="a", finish_reason=genai.FinishReason.SAFETY))
    assert type(event.finish_reason) is str


def test_an_enumeration_keeps_its_value() -> None:
    event = Event.from_dict(AdkEvent(author="a", finish_reason=genai.FinishReason.SAFETY))
    assert event.finish_reason == "SAFETY"


def test_an_enumeration_value_that_adk_does_not_know_is_kept() -> None:
    written = Event.from_json('{"finishReason": "TOO_CLEVER"}').to_json()
    assert json.loads(written)["finishReason"] == "TOO_CLEVER"


@pytest.mark.parametrize("level", list(genai.MediaProcessing))
def test_media_processing_is_an_enumeration_as_in_google_genai(
    level: genai.MediaProcessing,
) -> None:
    theirs = genai.Part(text="x", media_processing=level)
    again = genai.Part.model_validate_json(Part.from_dict(theirs).to_json())
    assert again == theirs


def test_something_that_is_no_content_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="content"):
        Event(content=5)


def test_a_google_genai_part_is_not_swallowed_as_an_unknown_field() -> None:
    """Either it becomes the content's part, or it is refused; it must not vanish into `extra`."""
    try:
        event = Event(content=genai.Part(text="hi"))
    except InvalidInputError:
        return
    assert event.content == Content(parts=[Part(text="hi")])


# -- rules that ADK has for events --------------------------------------------------------

PARTS = [
    genai.Part(text="hi"),
    genai.Part(text="hm", thought=True),
    genai.Part(function_call=genai.FunctionCall(id="1", name="f", args={})),
    genai.Part(function_response=genai.FunctionResponse(id="1", name="f", response={})),
    genai.Part(code_execution_result=genai.CodeExecutionResult(output="1")),
    genai.Part(executable_code=genai.ExecutableCode(code="1")),
    genai.Part(),
]

PLAIN_EVENTS = st.fixed_dictionaries(
    {},
    optional={
        "content": st.none()
        | st.lists(st.sampled_from(PARTS), max_size=3).map(lambda p: genai.Content(parts=p))
        | st.just(genai.Content()),
        "partial": st.none() | st.booleans(),
        "error_code": st.none() | st.sampled_from(["", "E"]),
        "long_running_tool_ids": st.none() | st.sampled_from([set(), {"1"}]),
        "actions": st.builds(AdkActions, skip_summarization=st.none() | st.booleans()),
    },
).map(lambda fields: AdkEvent(author="a", **fields))


@settings(deadline=None, max_examples=300)
@given(PLAIN_EVENTS)
def test_is_final_response_agrees_with_adk(theirs: AdkEvent) -> None:
    ours = Event.from_json(theirs.model_dump_json())
    assert ours.is_final_response() == theirs.is_final_response()


@settings(deadline=None)
@given(PLAIN_EVENTS)
def test_get_function_calls_agrees_with_adk(theirs: AdkEvent) -> None:
    ours = Event.from_json(theirs.model_dump_json())
    wanted = [FunctionCall.from_dict(call) for call in theirs.get_function_calls()]
    assert ours.get_function_calls() == wanted


@settings(deadline=None)
@given(PLAIN_EVENTS)
def test_get_function_responses_agrees_with_adk(theirs: AdkEvent) -> None:
    ours = Event.from_json(theirs.model_dump_json())
    wanted = [FunctionResponse.from_dict(answer) for answer in theirs.get_function_responses()]
    assert ours.get_function_responses() == wanted


@settings(deadline=None)
@given(PLAIN_EVENTS)
def test_has_trailing_code_execution_result_agrees_with_adk(theirs: AdkEvent) -> None:
    ours = Event.from_json(theirs.model_dump_json())
    result = ours.has_trailing_code_execution_result()
    assert result is theirs.has_trailing_code_execution_result()


def test_an_error_with_a_function_response_is_final() -> None:
    answer = Part.from_function_response(name="f", response={})
    assert Event(error_code="E", content=Content(parts=[answer])).is_final_response()


def test_an_error_with_a_function_call_is_not_final() -> None:
    call = Part.from_function_call(name="f", args={})
    assert not Event(error_code="E", content=Content(parts=[call])).is_final_response()


# -- bytes --------------------------------------------------------------------------------

EVERY_SIX_BITS = bytes(range(256))


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_both_base64_alphabets_are_read(encode: Any) -> None:
    written = json.dumps({"data": encode(EVERY_SIX_BITS).decode()})
    assert Blob.from_json(written).data == EVERY_SIX_BITS


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("data", [b"\xff\xef", b"\xff"])
def test_base64_without_padding_is_read_as_adk_reads_it(encode: Any, data: bytes) -> None:
    written = json.dumps({"data": encode(data).decode().rstrip("=")})
    assert genai.Blob.model_validate_json(written).data == data
    assert Blob.from_json(written).data == data


@settings(deadline=None)
@given(st.binary(max_size=50))
def test_bytes_survive(data: bytes) -> None:
    assert Blob.from_json(Blob(data=data).to_json()).data == data


@settings(deadline=None)
@given(st.binary(max_size=50))
def test_adk_reads_our_bytes(data: bytes) -> None:
    assert genai.Blob.model_validate_json(Blob(data=data).to_json()).data == data


def test_what_is_not_base64_is_refused_with_its_path() -> None:
    with pytest.raises(InvalidInputError, match=r"parts\[0\]\.inline_data\.data"):
        Event.from_json('{"content": {"parts": [{"inlineData": {"data": "a b"}}]}}')


# -- fields this version does not know ----------------------------------------------------

FUTURE = {"futureField": {"snake_case": [1, None, {"deep": "\x00"}]}, "x_y": None}


def with_future_fields(value: Any, kind: Any) -> Any:
    """Add unknown fields to every object that is a model, at any depth."""
    if isinstance(value, list):
        return [with_future_fields(item, kind) for item in value]
    nested = {
        json_name(name, info): model_leaf(info.annotation, pydantic.BaseModel)
        for name, info in kind.model_fields.items()
    }
    known = {}
    for key, item in value.items():
        inner = nested.get(key)
        if inner is None:
            known[key] = item
        elif key == "requestedToolConfirmations":
            known[key] = {name: with_future_fields(one, inner) for name, one in item.items()}
        else:
            known[key] = with_future_fields(item, inner)
    return {**known, **FUTURE}


def future_event() -> dict[str, Any]:
    event: dict[str, Any] = with_future_fields(told(full_event()), AdkEvent)
    # ADK writes what is empty; we do not.
    del event["actions"]["requestedAuthConfigs"]
    return event


def test_unknown_fields_at_every_level_survive_from_json_to_json() -> None:
    event = future_event()
    assert json.loads(Event.from_json(json.dumps(event)).to_json()) == event


def test_unknown_fields_at_every_level_survive_from_dict_to_dict() -> None:
    event = future_event()
    assert Event.from_dict(event).to_dict() == event


def test_unknown_fields_survive_append_get_and_append_into_another_session() -> None:
    event = {**future_event(), "partial": False}

    async def carry() -> dict[str, Any]:
        async with InMemorySessionService() as service:
            ids = {"app_name": "app", "user_id": "u"}
            first = await service.create_session(**ids, session_id="1")
            await service.append_event(first, Event.from_json(json.dumps(event)))
            loaded = await service.get_session(**ids, session_id="1")
            assert loaded is not None
            second = await service.create_session(**ids, session_id="2")
            await service.append_event(second, loaded.events[0])
            again = await service.get_session(**ids, session_id="2")
            assert again is not None
            return again.events[0].to_dict()

    carried = asyncio.run(carry())
    assert carried.pop("seq") == 1
    assert carried == event


def test_an_event_with_unknown_fields_keeps_a_time_equal_to_now() -> None:
    with clock.replaced(now=lambda: 5.0):
        written = Event.from_json('{"id": "e", "timestamp": 5.0, "future": 1}').to_json()
    assert json.loads(written)["timestamp"] == 5.0


def test_an_event_with_unknown_fields_keeps_an_id_equal_to_the_next_new_one() -> None:
    with clock.replaced(new_id=lambda: "same"):
        written = Event.from_json('{"id": "same", "timestamp": 5.0, "future": 1}').to_json()
    assert json.loads(written)["id"] == "same"


def test_writing_an_event_with_unknown_fields_uses_up_no_new_id() -> None:
    ids = iter("ab")
    with clock.replaced(new_id=lambda: next(ids)):
        Event.from_json('{"id": "e", "timestamp": 5.0, "future": 1}').to_json()
        assert Event().id == "a"


@pytest.mark.parametrize("key", ["\x7fextra", "\\u007fextra"])
def test_a_hostile_unknown_field_at_model_level_is_kept_as_it_came(key: str) -> None:
    hostile = f'"author":"me","{key}":{{"author":"you"}}'
    written = f'{{"id":"e","timestamp":1.0,"actions":{{"escalate":true}},{hostile}}}'
    assert json.loads(Event.from_json(written).to_json()) == json.loads(written)


@pytest.mark.parametrize("key", ["\x7fextra", "\\u007fextra"])
def test_a_hostile_unknown_field_sets_no_known_one(key: str) -> None:
    written = f'{{"author":"me","{key}":{{"author":"you"}}}}'
    assert Event.from_json(Event.from_json(written).to_json()).author == "me"


def test_extra_given_by_hand_does_not_replace_a_known_field() -> None:
    try:
        event = Event(author="me", extra={"author": "you"})
        again = Event.from_json(event.to_json())
    except InvalidInputError:
        return
    assert again.author == "me"


# -- constructor --------------------------------------------------------------------------


def test_content_as_str_is_one_text_part() -> None:
    assert Event(content="hi").content == Content(parts=[Part(text="hi")])


def test_content_as_dict_may_be_snake_case() -> None:
    event = Event(content={"parts": [{"function_call": {"name": "f"}}]})
    assert event.content == Content(parts=[Part(function_call=FunctionCall(name="f"))])


def test_content_as_dict_may_be_camel_case() -> None:
    event = Event(content={"parts": [{"functionCall": {"name": "f"}}]})
    assert event.content == Content(parts=[Part(function_call=FunctionCall(name="f"))])


def test_parts_may_be_text() -> None:
    assert Content(parts=["hi"]) == Content(parts=[Part(text="hi")])


@pytest.mark.parametrize(
    "message",
    [
        "hi",
        genai.Content(role="user", parts=[genai.Part(text="hi")]),
        genai.Content(role="model", parts=[genai.Part(text="hi")]),
        genai.Part(text="hi"),
        [genai.Part(text="hi"), genai.Part(text="there")],
        ["hi", "there"],
    ],
)
def test_message_sets_the_content_as_in_adk(message: Any) -> None:
    wanted = AdkEvent(message=message).content
    assert wanted is not None
    assert Event(message=message).content == Content.from_dict(wanted)


def test_message_and_content_exclude_each_other() -> None:
    with pytest.raises(InvalidInputError, match=r"content.*message"):
        Event(content="a", message="b")


def test_message_reads_the_content() -> None:
    assert Event(content="hi").message == Content(parts=[Part(text="hi")])


def test_state_sets_the_state_delta() -> None:
    assert Event(state={"a": 1}).actions == EventActions(state_delta={"a": 1})


def test_state_leaves_other_actions_alone() -> None:
    event = Event(state={"a": 1}, actions=EventActions(escalate=True))
    assert event.actions == EventActions(state_delta={"a": 1}, escalate=True)


def test_actions_may_be_a_dict() -> None:
    assert Event(actions={"stateDelta": {"a": 1}}).actions == EventActions(state_delta={"a": 1})


@pytest.mark.parametrize("route", [True, 3, "next", ["a", 1, False]])
def test_route_sets_the_route(route: Any) -> None:
    assert Event(route=route).actions.route == route


@pytest.mark.parametrize("route", [True, 3, "next", ["a", 1, False]])
def test_a_route_comes_back_with_its_type(route: Any) -> None:
    again = Event.from_json(Event(route=route).to_json()).actions.route
    assert json.dumps(again) == json.dumps(route)


def test_node_path_sets_the_path() -> None:
    assert Event(node_path="a/b").node_info == NodeInfo(path="a/b")


def test_node_path_leaves_the_rest_of_node_info_alone() -> None:
    wanted = AdkEvent(node_path="a", node_info={"output_for": ["b"]}).node_info
    event = Event(node_path="a", node_info=NodeInfo(output_for=["b"]))
    assert event.node_info == NodeInfo.from_dict(wanted)


def test_an_empty_id_becomes_a_new_one() -> None:
    with clock.replaced(new_id=lambda: "new"):
        assert Event(id="").id == "new"


def test_an_event_without_id_gets_a_new_one() -> None:
    assert Event().id != Event().id


def test_an_empty_id_in_json_becomes_a_new_one_as_in_adk() -> None:
    assert AdkEvent.model_validate_json('{"id": "", "author": "a"}').id
    assert Event.from_json('{"id": "", "author": "a"}').id


def test_new_id_is_the_clocks() -> None:
    with clock.replaced(new_id=lambda: "new"):
        assert Event.new_id() == "new"


def test_an_event_without_time_gets_the_current_one() -> None:
    with clock.replaced(now=lambda: 12.5):
        assert Event().timestamp == 12.5


def test_tool_confirmations_may_be_dicts() -> None:
    actions = EventActions(requested_tool_confirmations={"c": {"hint": "sure?"}})
    assert actions.requested_tool_confirmations == {"c": ToolConfirmation(hint="sure?")}


def test_no_tool_confirmations_may_be_given() -> None:
    assert EventActions(requested_tool_confirmations={}) == EventActions()


def test_tool_confirmations_survive() -> None:
    asked = ToolConfirmation(hint="sure?", confirmed=True, payload={"a": 1})
    event = Event(actions=EventActions(requested_tool_confirmations={"c": asked}))
    assert Event.from_json(event.to_json()) == event


def test_a_missing_required_field_in_json_is_refused_with_its_path() -> None:
    with pytest.raises(InvalidInputError, match="provider"):
        Event.from_json('{"actions": {"renderUiWidgets": [{"id": "w"}]}}')


def test_a_missing_required_field_in_a_constructor_is_an_error_of_ours_or_a_type_error() -> None:
    with pytest.raises((InvalidInputError, TypeError), match="provider"):
        UiWidget(id="w")  # type: ignore[call-arg]


def test_null_as_a_part_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="parts"):
        Event.from_json('{"content": {"parts": [null]}}')


@pytest.mark.parametrize(
    "data", ["", "[]", "5", "null", '"x"', "{", '{"author": 5}', '{"content": 5}', b"\xff{}"]
)
def test_json_that_is_no_event_is_refused(data: str | bytes) -> None:
    with pytest.raises(InvalidInputError):
        Event.from_json(data)


def test_json_that_is_too_deep_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        Event.from_json('{"output":' + "[" * 100_000 + "]" * 100_000 + "}")


# -- immutable, equal by value ------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [Event(), EventActions(), Content(), Part(), FunctionCall(), Blob(), NodeInfo()]
)
def test_models_are_immutable(model: Model) -> None:
    name = msgspec.structs.fields(type(model))[1].name
    with pytest.raises(AttributeError):
        setattr(model, name, None)


def test_equality_ignores_seq() -> None:
    event = Event(id="e", timestamp=1.0)
    assert msgspec.structs.replace(event, seq=7) == event


def test_equality_does_not_ignore_anything_else() -> None:
    assert Event(id="e", timestamp=1.0) != Event(id="e", timestamp=1.0, author="a")


def test_an_event_equals_no_other_thing() -> None:
    assert Event() != "an event"


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]
)
def test_copies_are_equal(copied: Any) -> None:
    event = Event.from_json(json.dumps(future_event()))
    assert copied(event) == event


def test_the_text_of_a_content_leaves_thoughts_out() -> None:
    content = Content(parts=[Part(text="a"), Part(text="hm", thought=True), Part(text="b")])
    assert content.text == "ab"


# -- inside of pydantic models, as FastAPI has them ---------------------------------------


class Answer(pydantic.BaseModel):
    event: Event


def test_a_pydantic_model_may_have_an_event() -> None:
    assert Answer.model_validate_json('{"event": {"id": "e", "timestamp": 1}}').event == Event(
        id="e", timestamp=1.0
    )


def test_a_pydantic_model_writes_an_event_as_we_do() -> None:
    event = Event(content="hi", long_running_tool_ids={"a"})
    written = json.loads(Answer(event=event).model_dump_json())
    assert written == {"event": json.loads(event.to_json())}


def test_pydantic_reports_an_event_that_is_none_as_a_validation_error() -> None:
    with pytest.raises(pydantic.ValidationError):
        Answer.model_validate({"event": 5})


@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_a_pydantic_model_with_an_event_has_a_json_schema(mode: Any) -> None:
    assert Answer.model_json_schema(mode=mode)["properties"].keys() == {"event"}
