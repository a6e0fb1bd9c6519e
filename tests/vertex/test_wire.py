"""The JSON of the Vertex AI Sessions API, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from threadline import Event, InvalidInputError, Session
from threadline.vertex import wire

# What the Python client sends, as it was recorded: camelCase outside, snake_case inside.
PYTHON: dict[str, Any] = {
    "author": "agent",
    "invocationId": "inv-1",
    "timestamp": "2025-10-09T08:53:20.123456+00:00",
    "content": {
        "parts": [
            {"text": "hello"},
            {"function_call": {"id": "fc1", "args": {"x_y": 1}, "name": "f"}},
            {"inline_data": {"data": "AAH__g==", "mime_type": "image/png"}},
        ],
        "role": "model",
    },
    "actions": {
        "artifact_delta": {"f.txt": 3},
        "requested_auth_configs": {},
        "skip_summarization": True,
        "state_delta": {"k_k": 2, "user:z": None},
        "transfer_agent": "other",
    },
    "errorCode": "E1",
    "eventMetadata": {
        "grounding_metadata": {"web_search_queries": ["q"]},
        "branch": "root.agent",
        "custom_metadata": {
            "my_key": {"d": 1},
            "_usage_metadata": {"prompt_token_count": 3},
            "_compaction": {
                "start_timestamp": 1.5,
                "end_timestamp": 2.5,
                "compacted_content": {"parts": [{"text": "s"}]},
            },
        },
        "long_running_tool_ids": ["fc1"],
        "turn_complete": True,
    },
}
NAME = "reasoningEngines/1/sessions/s"


def append(**fields: Any) -> Event:
    return wire.event_from_json({"author": "a", "invocationId": "i", **fields})


# -- events in --------------------------------------------------------------------------


def test_typed_fields_are_read_in_snake_case() -> None:
    event = wire.event_from_json(PYTHON)
    assert event.content is not None
    assert event.content.parts is not None
    assert event.content.parts[2].inline_data is not None
    assert event.content.parts[2].inline_data.data == b"\x00\x01\xff\xfe"
    assert event.get_function_calls()[0].args == {"x_y": 1}
    assert event.actions.state_delta == {"k_k": 2, "user:z": None}
    assert event.actions.transfer_to_agent == "other"
    assert event.long_running_tool_ids == {"fc1"}
    assert (event.error_code, event.branch, event.turn_complete) == ("E1", "root.agent", True)
    assert event.timestamp == 1760000000.123456


def test_what_travels_beside_custom_metadata_is_taken_out_of_it() -> None:
    event = wire.event_from_json(PYTHON)
    assert event.custom_metadata == {"my_key": {"d": 1}}
    assert event.usage_metadata is not None
    assert event.usage_metadata.prompt_token_count == 3
    assert event.actions.compaction is not None
    assert event.actions.compaction.end_timestamp == 2.5


def test_the_javascript_clients_side_channels_are_read() -> None:
    event = append(
        eventMetadata={
            "customMetadata": {
                "_workflow": {"output": {"a": 1}, "isolationScope": "x", "route": "r"},
                "_compaction": {"startTime": 1500, "endTime": 2500, "compactedContent": {}},
            }
        }
    )
    assert (event.output, event.isolation_scope, event.actions.route) == ({"a": 1}, "x", "r")
    assert event.actions.compaction is not None
    assert event.actions.compaction.start_timestamp == 1.5
    assert event.custom_metadata is None


def test_the_older_spelling_of_the_transfer_is_read() -> None:
    assert append(actions={"transferToAgent": "b"}).actions.transfer_to_agent == "b"


def test_a_raw_event_wins_and_the_envelope_says_who_and_when() -> None:
    raw = {"id": "e1", "author": "x", "invocationId": "y", "timestamp": 1760000000123}
    event = append(
        timestamp="1970-01-01T00:00:01Z",
        content={"parts": [{"text": "typed"}]},
        rawEvent={**raw, "content": {"parts": [{"text": "raw"}]}, "modelVersion": "m"},
    )
    assert event.content is not None
    assert (event.content.text, event.model_version) == ("raw", "m")
    assert (event.id, event.author, event.invocation_id) == ("e1", "a", "i")
    assert event.timestamp == 1.0


def test_an_empty_raw_event_is_none() -> None:
    event = append(rawEvent={}, content={"parts": [{"text": "typed"}]})
    assert event.content is not None
    assert event.content.text == "typed"


def test_fields_of_a_raw_event_that_nobody_knows_are_kept() -> None:
    raw = {"id": "e", "future": {"snake_key": None}, "actions": {"new": [1]}}
    message = wire.event_to_json(append(rawEvent=raw).to_dict(), NAME)
    assert message["rawEvent"]["future"] == {"snake_key": None}
    assert message["rawEvent"]["actions"]["new"] == [1]


def test_a_raw_event_that_is_no_adk_event_comes_back_as_it_was() -> None:
    raw = {"id": "e", "content": "just text", "timestamp": "then", "partial": 7}
    event = append(rawEvent=raw, content={"parts": [{"text": "typed"}]})
    message = wire.event_to_json(event.to_dict(), NAME)
    assert message["rawEvent"] == raw
    assert message["content"] == {"parts": [{"text": "typed"}]}
    assert event.id == "e"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"author": None}, "1.Field: event.author"),
        ({"invocationId": ""}, "1.Field: event.invocation_id"),
        ({"author": None, "invocationId": None}, "2.Field: event.invocation_id"),
        ({"author": 1}, "'author'"),
        ({"timestamp": "yesterday"}, "event.timestamp"),
        ({"actions": []}, "'actions'"),
        ({"eventMetadata": "x"}, "event_metadata"),
        ({"content": {"parts": [{"text": 1}]}}, "text"),
    ],
)
def test_what_is_wrong_with_an_event_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        append(**fields)


# -- events out -------------------------------------------------------------------------


def test_typed_fields_go_out_in_camel_case_and_users_keys_as_they_are() -> None:
    message = wire.event_to_json(wire.event_from_json(PYTHON).to_dict(), NAME)
    assert message["timestamp"] == "2025-10-09T08:53:20.123456Z"
    assert message["content"]["parts"][1] == {
        "functionCall": {"id": "fc1", "args": {"x_y": 1}, "name": "f"}
    }
    assert message["content"]["parts"][2]["inlineData"]["data"] == "AAH//g=="
    assert message["actions"] == {
        "skipSummarization": True,
        "stateDelta": {"k_k": 2, "user:z": None},
        "artifactDelta": {"f.txt": 3},
        "transferAgent": "other",
    }
    assert message["errorCode"] == "E1"
    meta = message["eventMetadata"]
    assert meta["groundingMetadata"] == {"webSearchQueries": ["q"]}
    assert meta["longRunningToolIds"] == ["fc1"]
    assert meta["customMetadata"] == {
        "my_key": {"d": 1},
        "_usage_metadata": {"promptTokenCount": 3},
        "_compaction": {
            "startTimestamp": 1.5,
            "endTimestamp": 2.5,
            "compactedContent": {"parts": [{"text": "s"}]},
        },
    }


def test_a_raw_event_goes_out_whoever_wrote_the_event() -> None:
    raw = wire.event_to_json(wire.event_from_json(PYTHON).to_dict(), NAME)["rawEvent"]
    assert raw["actions"]["transferToAgent"] == "other"
    assert raw["actions"]["requestedToolConfirmations"] == {}
    assert raw["usageMetadata"] == {"promptTokenCount": 3}


def test_what_must_be_there_is_there_and_nothing_is_null() -> None:
    message = wire.event_to_json(Event(id="a/b:c", timestamp=0.0).to_dict(), NAME)
    assert message["name"] == f"{NAME}/events/a%2Fb%3Ac"
    assert (message["author"], message["invocationId"]) == ("", "")
    assert message["timestamp"] == "1970-01-01T00:00:00Z"
    assert (message["content"], message["actions"], message["eventMetadata"]) == ({}, {}, {})
    assert None not in message.values()


def test_an_event_survives_both_ways() -> None:
    event = wire.event_from_json(PYTHON)
    assert wire.event_from_json(wire.event_to_json(event.to_dict(), NAME)) == event


def test_numbers_that_json_has_no_form_for_are_text() -> None:
    assert wire.dumps({"a": [float("nan"), float("inf"), -float("inf"), 1.5]}) == (
        b'{"a":["NaN","Infinity","-Infinity",1.5]}'
    )


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"a":NaN}', b"\xff", b"[" * 100_000, b'"x"'])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInputError, match="Invalid JSON payload"):
        wire.loads(body)


# -- times ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2025-10-09T08:53:20Z", 1760000000.0),
        ("2025-10-09T08:53:20.5Z", 1760000000.5),
        ("2025-10-09T08:53:20.123456789Z", 1760000000.123456789),
        ("2025-10-09T10:53:20+02:00", 1760000000.0),
        ("2025-10-09T10:53:20 02:00", 1760000000.0),  # a plus that nobody encoded
        ("2025-10-09T06:23:20-02:30", 1760000000.0),
        ("0001-01-01T00:00:00Z", -62135596800.0),
        ({"seconds": 1760000000, "nanos": 123000000}, 1760000000.123),
        ({"seconds": "1760000000"}, 1760000000.0),
    ],
)
def test_timestamps_are_read(text: Any, seconds: float) -> None:
    assert wire.parse_timestamp(text, "t") == seconds


@pytest.mark.parametrize(
    "text",
    ["2025-10-09", "2025-13-09T08:53:20Z", "", 5, None, {"seconds": "x"}, "2025-10-09T08:53"],
)
def test_what_is_no_timestamp_is_refused(text: Any) -> None:
    with pytest.raises(InvalidInputError, match="'where'"):
        wire.parse_timestamp(text, "where")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1760000000.0, "2025-10-09T08:53:20Z"),
        (1760000000.5, "2025-10-09T08:53:20.500Z"),
        (1760000000.123456, "2025-10-09T08:53:20.123456Z"),
        (1e300, "9999-12-31T23:59:59Z"),
        (-1e300, "0001-01-01T00:00:00Z"),
    ],
)
def test_timestamps_are_written(seconds: float, text: str) -> None:
    assert wire.format_timestamp(seconds) == text


def test_durations_are_read() -> None:
    assert wire.parse_duration("86400s", "ttl") == 86400.0
    assert wire.parse_duration("1.5s", "ttl") == 1.5
    for wrong in ("86400", "1 day", 5, "s", "1e3s"):
        with pytest.raises(InvalidInputError, match="'ttl'"):
            wire.parse_duration(wrong, "ttl")


# -- sessions ---------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["userId", "user_id"])
def test_a_session_is_read_in_either_spelling(user: str) -> None:
    state = {"snake_key": 1, "camelKey": None}
    given = wire.session_from_json({user: "u", "sessionState": state, "unknown": 1})
    assert (given.user_id, given.session_state) == ("u", state)


def test_null_state_is_left_out() -> None:
    session = Session(id="s", app_name="1", user_id="u", state={"a": None, "b": {"c": None}})
    message = wire.session_to_json(session, wire.parent_of("1", "p", "l"))
    assert message["sessionState"] == {"b": {"c": None}}
    assert message["name"] == "projects/p/locations/l/reasoningEngines/1/sessions/s"
    assert "expireTime" not in message


@pytest.mark.parametrize(
    "body",
    [
        {"userId": 5}, {"labels": []}, {"sessionState": "x"}, {"ttl": "x"},
        {"ttl": "1s", "expireTime": "2025-10-09T08:53:20Z"}, {"expire_time": "x"},
    ],
)  # fmt: skip
def test_a_session_that_is_wrong_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="Invalid value"):
        wire.session_from_json(body)


def test_a_mask_has_either_spelling_and_no_mask_is_what_was_sent() -> None:
    given = wire.session_from_json({"displayName": "d"})
    assert wire.parse_mask("displayName,session_state", given) == {"display_name", "session_state"}
    assert wire.parse_mask(None, given) == {"display_name"}
    with pytest.raises(InvalidInputError, match="'create_time'"):
        wire.parse_mask("create_time", given)


# -- filters, order, tokens -------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('user_id="u"', [("user_id", None, "=", "u")]),
        ('userId="u"', [("user_id", None, "=", "u")]),
        (r'user_id="u \"1\\"', [("user_id", None, "=", 'u "1\\')]),
        ('user_id = "AND OR ( ="', [("user_id", None, "=", "AND OR ( =")]),
        ("user_id=u", [("user_id", None, "=", "u")]),
        ('labels.my-env="dev"', [("labels", "my-env", "=", "dev")]),
        ('labels."a b"="c"', [("labels", "a b", "=", "c")]),
        (
            'user_id="u" AND display_name!="d"',
            [("user_id", None, "=", "u"), ("display_name", None, "!=", "d")],
        ),
        ('a="1" b="2"', [("a", None, "=", "1"), ("b", None, "=", "2")]),
        ("", []),
        (None, []),
    ],
)
def test_filters_are_read(text: str | None, expected: list[Any]) -> None:
    assert wire.parse_filter(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        'user_id="u', "user_id", '="u"', 'user_id="u" OR user_id="v"', 'user_id="u" AND',
        '(user_id="u")', 'user_id="u"x', 'NOT user_id="u"', "AND", 'user_id="u"AND a="b"',
    ],
)  # fmt: skip
def test_filters_that_are_not_understood_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="'filter'"):
        wire.SessionFilter.parse(text)


def test_sessions_are_filtered() -> None:
    session = Session(
        id="s", app_name="1", user_id="u", display_name="d", labels={"env": "dev", "": "x"}
    )
    for text, passes in (
        ('user_id="u"', True), ('user_id="v"', False), ('user_id!="v"', True),
        ('display_name="d"', True), ('displayName!="d"', False), ('labels.env="dev"', True),
        ('labels.env="prod"', False), ('labels.none="x"', False), ('labels.none!="x"', True),
        ('user_id="u" AND labels.env!="dev"', False),
    ):  # fmt: skip
        assert wire.SessionFilter.parse(text).passes(session) is passes, text
    for text in ('state="x"', 'user_id>"u"', 'labels="x"', 'user_id.x="u"'):
        with pytest.raises(InvalidInputError, match="'filter'"):
            wire.SessionFilter.parse(text)


def test_events_are_filtered_by_time() -> None:
    event = Event(timestamp=10.0)
    for operator, passes in ((">=", 1), (">", 0), ("<=", 1), ("<", 0), ("=", 1), ("!=", 0)):
        wanted = wire.EventFilter.parse(f'timestamp{operator}"1970-01-01T00:00:10+00:00"')
        assert wanted.passes(event.timestamp) is bool(passes)
    between = 'timestamp>="1970-01-01T00:00:09Z" AND timestamp<"1970-01-01T00:00:11Z"'
    assert wire.EventFilter.parse(between).passes(event.timestamp)
    assert wire.EventFilter.parse(between).since == 9.0
    for wrong in ('timestamp>="then"', 'author="a"'):
        with pytest.raises(InvalidInputError, match="filter"):
            wire.EventFilter.parse(wrong)


def test_order_is_read() -> None:
    fields = {"create_time": "c", "update_time": "u"}
    assert wire.parse_order(None, fields, ("x", True)) == ("x", True)
    assert wire.parse_order("createTime", fields, ("x", True)) == ("c", False)
    assert wire.parse_order("update_time  desc", fields, ("x", True)) == ("u", True)
    for wrong in ("name", "create_time up", "create_time,update_time"):
        with pytest.raises(InvalidInputError, match="order_by"):
            wire.parse_order(wrong, fields, ("x", True))


def test_tokens_hold_json_and_anything_else_is_none() -> None:
    assert wire.decode_token(wire.encode_token(["é", None, 5])) == ["é", None, 5]
    for wrong in ("", "x", "!!", "é", "AAAA", "W" * 1000):
        assert wire.decode_token(wrong) is None


@pytest.mark.parametrize(
    ("id", "segment"),
    [("a.b-c_1~@", "a.b-c_1~@"), ("é/:?#% ", "%C3%A9%2F%3A%3F%23%25%20"), ("..", "%2E%2E")],
)
def test_ids_are_encoded_in_names_only_where_they_must_be(id: str, segment: str) -> None:
    assert wire.name_of("p", "sessions", id) == f"p/sessions/{segment}"
