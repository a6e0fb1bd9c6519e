"""Chat messages become events and come back equal; importing twice adds nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threadline import (
    Content,
    DatabaseSessionService,
    Event,
    FunctionResponse,
    InMemorySessionService,
    Part,
    Session,
)
from threadline.importers.openai_chat import (
    Conversation,
    ImportReport,
    LineError,
    Progress,
    conversations,
    import_file,
    read_line,
)
from threadline.importers.openai_messages import to_events, to_messages

TAU_BENCH = (
    Path(__file__).parents[2] / "shared" / "data" / "conversations" / "tau-bench-airline.jsonl"
)

CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "search", "arguments": '{"to":"Porto"}'},
}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "You sell tickets."},
    {"role": "user", "content": "To Porto, please."},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "name": "search", "content": '[{"train": 721}]'},
    {"role": "assistant", "content": "The 721 leaves at 09:09."},
]


def strict(value: Any) -> str:
    """Return a text that differs for any two different JSON values: 1, 1.0 and true too."""
    return json.dumps(value, sort_keys=True)


def and_back(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Send messages through the events' stored form."""
    events = [Event.from_json(event.to_json()) for event in to_events("s", messages)]
    return to_messages(Session(id="s", app_name="a", user_id="u", events=events))


def the_event(message: dict[str, Any]) -> Event:
    (event,) = to_events("s", [message])
    return event


def write_lines(path: Path, *values: Any) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def run_import(service: Any, path: Path, **options: Any) -> ImportReport:
    return asyncio.run(import_file(service, path, **options))


def stored(service: Any, session_id: str) -> Session:
    session: Session | None = asyncio.run(
        service.get_session(app_name="openai-chat", user_id="imported", session_id=session_id)
    )
    assert session is not None
    return session


@pytest.fixture
def service() -> InMemorySessionService:
    return InMemorySessionService()


# -- what a message becomes -------------------------------------------------------------


def test_roles_are_authors_and_the_assistant_is_the_model() -> None:
    assert [
        (event.author, event.content.role)
        for event in to_events("s", TALK)
        if event.content is not None
    ] == [
        ("system", "user"),
        ("user", "user"),
        ("assistant", "model"),
        ("tool", "user"),
        ("assistant", "model"),
    ]


def test_a_tool_call_is_a_function_call_with_parsed_arguments() -> None:
    (call,) = the_event(TALK[2]).get_function_calls()
    assert (call.id, call.name, call.args) == ("call_1", "search", {"to": "Porto"})


def test_a_tools_answer_is_a_function_response() -> None:
    (answer,) = the_event(TALK[3]).get_function_responses()
    assert (answer.id, answer.name) == ("call_1", "search")
    assert answer.response == {"result": '[{"train": 721}]'}


def test_an_answer_without_a_name_gets_that_of_its_call() -> None:
    nameless = {"role": "tool", "tool_call_id": "call_1", "content": "none"}
    event = to_events("s", [*TALK[:3], nameless])[-1]
    assert event.get_function_responses()[0].name == "search"


def test_every_user_message_begins_a_turn() -> None:
    events = to_events("s", [*TALK, *TALK[1:]])
    assert [event.invocation_id for event in events] == [
        "turn-0", *["turn-1"] * 4, *["turn-2"] * 4
    ]  # fmt: skip


def test_an_ordinary_message_needs_no_metadata() -> None:
    assert [event.custom_metadata for event in to_events("s", TALK)] == [None] * 5


def test_an_image_is_inline_data_and_a_link_is_file_data() -> None:
    content = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0="}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}},
    ]
    event = the_event({"role": "user", "content": content})
    assert event.content is not None
    assert event.content.parts is not None
    inline, link = event.content.parts
    assert inline.inline_data is not None
    assert (inline.inline_data.data, inline.inline_data.mime_type) == (b"\x89PNG\r", "image/png")
    assert link.file_data is not None
    assert link.file_data.file_uri == "https://example.org/a.png"


def test_bytes_are_stored_once() -> None:
    data = "QUJD" * 1000
    message = {
        "role": "user",
        "content": [
            {"type": "text", "text": "look"},
            {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
            {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{data}"}},
        ],
    }
    assert the_event(message).to_json().count(data) == 2


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (1715785200, 1715785200.0),
        (1715785200.25, 1715785200.25),
        (1715785200250, 1715785200.25),
        ("2024-05-15T15:00:00Z", 1715785200.0),
        ("2024-05-15T15:00:00", 1715785200.0),
        ("yesterday", 0.0),
        (-5, 0.0),
        (float("nan"), 0.0),
        (10**30, 0.0),
        (None, 0.0),
    ],
)
def test_a_messages_time_is_the_events(value: Any, seconds: float) -> None:
    assert the_event({"role": "user", "content": "", "timestamp": value}).timestamp == seconds


def test_a_message_without_a_time_comes_a_second_after_the_one_before() -> None:
    timed = [{**TALK[0], "created": 100.5}, *TALK[1:]]
    assert [event.timestamp for event in to_events("s", timed)] == [
        100.5, 101.5, 102.5, 103.5, 104.5
    ]  # fmt: skip


# -- and back ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        *TALK,
        {"role": "developer", "content": "Be brief.", "name": "ops"},
        {"role": "user", "content": ""},
        {"role": "user", "content": None},
        {"role": "user"},
        {"role": "user", "content": []},
        {"role": "user", "content": [{"type": "text", "text": "one part"}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "a", "cache": {"ttl": 1}}]},
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "v"}}, {}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": "not an object"}]},
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "f-1"}}]},
        {"role": "user", "content": [{"type": "file", "file": {
            "file_data": "data:text/plain;base64,QQ==", "filename": "a.txt"}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {
            "url": "data:image/png;base64,not base64"}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "QQ=="}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
        {"role": "assistant", "content": None, "refusal": "I cannot help with that."},
        {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "audio": None},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": "Looking.", "tool_calls": [CALL, {**CALL, "id": "c2"}]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": None, "tool_calls": None, "function_call": None},
        {"role": "assistant", "content": None, "tool_calls": [{"id": 7, "function": None}, {}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "custom", "custom": {"name": "sh", "input": "ls"}}]},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "assistant", "function_call": {"name": "f"}, "tool_calls": [CALL]},
        {"role": "function", "name": "f", "content": "42"},
        {"role": "function", "content": None},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "42"}]},
        {"role": "tool", "tool_call_id": None, "name": 4},
        {"role": "user", "content": "x", "score": float("inf"), "big": 2**70, "is": [1, 1.0, True]},
        {"role": "user", "content": "NUL \x00, lone \ud83d, and \U0001f600"},
    ],
    ids=lambda message: json.dumps(message)[:60],
)  # fmt: skip
def test_a_message_comes_back_equal(message: dict[str, Any]) -> None:
    assert strict(and_back([message])) == strict([message])


@pytest.mark.parametrize(
    "arguments",
    [
        '{"a":1}',
        '{"a": 1}',
        '{\n  "a": 1\n}',
        '{"a":1,"a":2}',
        '{"a":1e3,"b":1.10}',
        '{"a":"\\u00e9"}',
        '{"a":"é"}',
        '{"a":NaN}',
        " {} ",
        "{}",
        "",
        "[1,2]",
        "null",
        '"text"',
        '{"a":',
        "to=Porto",
        '{"a":"\\ud83d"}',
        "[" * 100_000,
        "9" * 5000,
    ],
    ids=lambda arguments: arguments[:30],
)
def test_the_text_of_arguments_comes_back_to_the_byte(arguments: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert and_back([message]) == [message]


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
objects = st.dictionaries(st.text(max_size=5), values, max_size=3)
sometimes_json = st.text(max_size=12) | objects.map(json.dumps) | objects.map(
    lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False)
)  # fmt: skip
urls = st.sampled_from(["https://example.org", "data:image/png;base64,QUJD", "data:;base64,=", ""])
pieces = st.one_of(
    objects,
    st.fixed_dictionaries({"type": values, "text": st.text(max_size=8) | values}),
    st.fixed_dictionaries(
        {"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": urls}) | values}
    ),
    st.fixed_dictionaries(
        {"input_audio": st.fixed_dictionaries({"data": urls | st.just("QQ==")}) | values}
    ),
    st.fixed_dictionaries({"file": st.fixed_dictionaries({"file_data": urls}) | values}),
)
functions = st.fixed_dictionaries(
    {}, optional={"name": st.text(max_size=5) | values, "arguments": sometimes_json | values}
)
calls = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["c1", "c2"]) | values,
        "type": st.just("function") | values,
        "function": functions | values,
        "custom": functions | values,
    },
)
messages = st.builds(
    lambda unknown, known: {**unknown, **known},
    objects,
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])},
        optional={
            "content": st.none() | st.text() | st.lists(pieces, max_size=4),
            "tool_calls": st.none() | st.lists(calls, max_size=3),
            "function_call": functions | values,
            "tool_call_id": st.sampled_from(["c1", "c2"]) | values,
            "name": st.text(max_size=5) | values,
            "refusal": st.text(max_size=5) | values,
        },
    ),
)


@settings(deadline=None)
@given(st.lists(messages, max_size=5))
def test_any_messages_come_back_equal(talk: list[dict[str, Any]]) -> None:
    assert strict(and_back(talk)) == strict(talk)


@settings(deadline=None)
@given(st.lists(messages, max_size=5))
def test_a_growing_conversation_keeps_the_events_it_had(talk: list[dict[str, Any]]) -> None:
    whole = to_events("s", talk)
    assert [e.to_json() for e in to_events("s", talk[:-1])] == [e.to_json() for e in whole[:-1]]


@pytest.mark.parametrize("agent", ["concierge", "assistant", "tool"])
def test_a_session_that_was_not_imported_gives_the_nearest_messages(agent: str) -> None:
    answers = [
        Part(function_response=FunctionResponse(id="c1", name="f", response={"temperature": 20})),
        Part(function_response=FunctionResponse(id="c2", name="g", response={"result": "done"})),
    ]
    events = [
        Event(author="user", content="Hi"),
        Event(
            author="concierge",
            content=Content(
                role="model",
                parts=[
                    Part(text="One moment."),
                    Part.from_function_call(name="f", args={"x": 1}, id="c1"),
                ],
            ),
        ),
        Event(author=agent, content=Content(role="user", parts=answers)),
        Event(author="concierge", actions={"state_delta": {"done": True}}),
    ]
    session = Session(id="s", app_name="a", user_id="u", events=events)
    assert to_messages(session) == [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "One moment.",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "f", "arguments": '{"x":1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "f", "content": '{"temperature":20}'},
        {"role": "tool", "tool_call_id": "c2", "name": "g", "content": "done"},
    ]


# -- lines ------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [TALK, {"messages": TALK}, {"traj": TALK}])
def test_the_list_may_be_bare_or_wrapped(line: Any) -> None:
    assert len(read_line(line).events) == len(TALK)


def test_the_lines_other_fields_are_the_sessions_state() -> None:
    line = {"task_id": 3, "messages": TALK, "info": {"cost": 0.5}, "traj": "unused"}
    assert read_line(line).state == {"task_id": 3, "info": {"cost": 0.5}, "traj": "unused"}


@pytest.mark.parametrize("name", ["id", "session_id", "conversation_id"])
@pytest.mark.parametrize(("value", "session_id"), [("c-7", "c-7"), (17, "17")])
def test_a_lines_id_is_the_sessions(name: str, value: Any, session_id: str) -> None:
    assert read_line({name: value, "messages": TALK}).session_id == session_id


def test_a_line_without_an_id_is_known_by_how_it_opens() -> None:
    grown = [*TALK, {"role": "user", "content": "Window seat."}]
    assert read_line(TALK).session_id == read_line({"messages": grown, "n": 1}).session_id


def test_lines_that_open_alike_are_counted() -> None:
    lines = [json.dumps(TALK).encode()] * 2
    first, second = (found for found in conversations(lines) if isinstance(found, Conversation))
    assert second.session_id == f"{first.session_id}-2"
    assert {event.id for event in first.events}.isdisjoint(event.id for event in second.events)


def test_the_title_is_the_first_words_of_the_user() -> None:
    assert read_line(TALK).display_name == "To Porto, please."
    assert read_line({"title": "  Two\n words ", "messages": TALK}).display_name == "Two words"
    assert len(read_line([{"role": "user", "content": "x" * 99}]).display_name or "") == 60


def test_blank_lines_and_a_byte_order_mark_are_no_matter() -> None:
    text = json.dumps(TALK).encode()
    (only,) = conversations([b"\xef\xbb\xbf" + text + b"\r\n", b"\n", b"  \n"])
    assert isinstance(only, Conversation)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"messages": [', "not JSON"),
        (b"{", "JSON Lines"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b"[" + b"9" * 5000 + b"]", "cannot be read"),
        (b"17", "got a number"),
        (b"null", "got null"),
        (b'{"turns": [], "n": 1}', "the fields are: 'turns', 'n'"),
        (b'{"messages": {}}', "under 'messages' or 'traj'"),
        (b'["hello"]', "message 1 is a text"),
        (b'[{"content": "x"}]', "message 1 has the role None"),
        (b'[{"role": "user"}, {"role": "gpt"}]', "message 2 has the role 'gpt'"),
        (b'[{"role": "user", "content": 5}]', "message 1 has a number as content"),
        (b'[{"role": "user", "content": ["x"]}]', "message 1 has a text in content"),
        (b'[{"role": "assistant", "tool_calls": {}}]', "an object as tool_calls"),
        (b'[{"role": "assistant", "tool_calls": [null]}]', "null in tool_calls"),
        (b'[{"role": "user", "role": "user"}]', "'role' stands twice"),
        (b'{"messages": [], "app:theme": 1}', "'app:theme' cannot be kept"),
        (b'{"messages": [], "\\ud800": 1}', "not valid Unicode"),
        (b'{"messages": [], "id": "\\ud800"}', "not valid Unicode"),
    ],
)
def test_a_bad_line_says_what_is_wrong(line: bytes, reason: str) -> None:
    (error,) = conversations([line])
    assert isinstance(error, LineError)
    assert str(error).startswith("Line 1: ")
    assert reason in error.reason


# -- files ------------------------------------------------------------------------------


def test_importing_twice_adds_nothing(service: InMemorySessionService, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "talks.jsonl", TALK, {"id": "b", "messages": TALK, "n": 1})
    first, second = run_import(service, path), run_import(service, path)
    assert (first.conversations, first.sessions_created, first.events_added) == (2, 2, 10)
    assert (second.sessions_created, second.events_added, second.states_updated) == (0, 0, 0)
    assert (second.conversations, second.events_read, second.events_present) == (2, 10, 10)


def test_values_that_do_not_equal_themselves_are_imported_once(
    service: InMemorySessionService, tmp_path: Path
) -> None:
    talk = [{"role": "user", "content": "x", "logprob": float("nan")}]
    path = write_lines(tmp_path / "t.jsonl", {"messages": talk, "score": float("nan")})
    run_import(service, path)
    second = run_import(service, path)
    assert (second.events_added, second.states_updated) == (0, 0)


def test_a_grown_conversation_gets_its_new_messages(
    service: InMemorySessionService, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "t.jsonl", {"id": "a", "messages": TALK[:3], "reward": 0})
    run_import(service, path)
    write_lines(path, {"id": "a", "messages": TALK, "reward": 1})
    report = run_import(service, path)
    assert (report.events_added, report.events_present, report.states_updated) == (2, 3, 1)
    session = stored(service, "a")
    assert to_messages(session) == TALK
    assert session.state == {"id": "a", "reward": 1}


def test_a_conversation_may_grow_within_one_file(
    service: InMemorySessionService, tmp_path: Path
) -> None:
    lines = [{"id": "a", "messages": TALK[:n]} for n in range(1, 6)]
    report = run_import(service, write_lines(tmp_path / "t.jsonl", *lines))
    assert (report.conversations, report.sessions_created, report.events_added) == (5, 1, 5)
    assert to_messages(stored(service, "a")) == TALK


def test_a_shorter_conversation_takes_nothing_away(
    service: InMemorySessionService, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "t.jsonl", {"id": "a", "messages": TALK})
    run_import(service, path)
    report = run_import(service, write_lines(path, {"id": "a", "messages": TALK[:2]}))
    assert (report.events_added, report.events_present) == (0, 2)
    assert to_messages(stored(service, "a")) == TALK


def test_a_session_that_a_killed_import_left_empty_is_filled(
    service: InMemorySessionService, tmp_path: Path
) -> None:
    asyncio.run(service.create_session(app_name="openai-chat", user_id="imported", session_id="a"))
    path = write_lines(tmp_path / "t.jsonl", {"id": "a", "messages": TALK})
    report = run_import(service, path)
    assert (report.sessions_created, report.events_added) == (0, 5)
    assert to_messages(stored(service, "a")) == TALK
    assert stored(service, "a").state == {"id": "a"}


def test_a_changed_message_is_refused(service: InMemorySessionService, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", {"id": "a", "messages": TALK})
    run_import(service, path)
    other = [*TALK[:4], {"role": "assistant", "content": "No trains."}, TALK[0]]
    with pytest.raises(LineError, match="Line 1: message 5 is not the one"):
        run_import(service, write_lines(path, {"id": "a", "messages": other}))
    assert to_messages(stored(service, "a")) == TALK


def test_new_messages_never_follow_what_the_file_does_not_know(
    service: InMemorySessionService, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "t.jsonl", {"id": "a", "messages": TALK[:4]})
    run_import(service, path)
    asyncio.run(service.append_event(stored(service, "a"), Event(author="user", content="Hello?")))
    assert run_import(service, path).events_added == 0
    with pytest.raises(LineError, match="continued in the store"):
        run_import(service, write_lines(path, {"id": "a", "messages": TALK}))


def test_a_bad_line_ends_the_import_after_those_before_it(
    service: InMemorySessionService, tmp_path: Path
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f'{{"id": "a", "messages": {json.dumps(TALK)}}}\noops\n{json.dumps(TALK)}\n')
    with pytest.raises(LineError, match="Line 2: this is not JSON") as caught:
        run_import(service, path)
    assert caught.value.report is not None
    assert caught.value.report.conversations == 1
    assert "1 conversations are in" in caught.value.__notes__[0]
    found = asyncio.run(service.list_sessions(app_name="openai-chat"))
    assert [session.id for session in found.sessions] == ["a"]


def test_bad_lines_can_be_left_out(service: InMemorySessionService, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f"oops\n{json.dumps(TALK)}\n[5]\n")
    report = run_import(service, path, skip_bad=True)
    assert report.conversations == 1
    assert [(bad.line, bad.reason.split(":")[0]) for bad in report.bad_lines] == [
        (1, "this is not JSON"),
        (3, "message 1 is a number, not an object."),
    ]


def test_nothing_of_a_line_is_written_if_one_value_cannot_be_stored(
    service: InMemorySessionService, tmp_path: Path
) -> None:
    deep: Any = 0
    for _ in range(200):
        deep = [deep]
    path = write_lines(tmp_path / "t.jsonl", [*TALK, {"role": "user", "content": "x", "y": deep}])
    with pytest.raises(LineError, match="Line 1: event"):
        run_import(service, path)
    assert asyncio.run(service.list_sessions(app_name="openai-chat")).sessions == []


def test_an_id_that_no_store_takes_is_a_bad_line(
    service: InMemorySessionService, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "t.jsonl", {"id": "x" * 513, "messages": TALK})
    with pytest.raises(LineError, match="Line 1: session_id must have 1 to 512 bytes"):
        run_import(service, path)


def test_two_imports_at_once_store_everything_once(tmp_path: Path) -> None:
    talks = [{"id": str(n), "messages": TALK} for n in range(20)]
    path = write_lines(tmp_path / "t.jsonl", *talks)

    async def both() -> tuple[ImportReport, ImportReport]:
        url = f"sqlite:///{tmp_path}/t.db"
        async with DatabaseSessionService(url) as one, DatabaseSessionService(url) as other:
            reports = await asyncio.gather(import_file(one, path), import_file(other, path))
            for n in range(20):
                session = await one.get_session(
                    app_name="openai-chat", user_id="imported", session_id=str(n)
                )
                assert session is not None
                assert to_messages(session) == TALK
        return reports

    one, other = asyncio.run(both())
    assert one.events_read == other.events_read == 100


def test_progress_ends_at_the_files_size(service: InMemorySessionService, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", *[TALK] * 100)
    seen: list[Progress] = []
    run_import(service, path, on_progress=seen.append)
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1] == Progress(path.stat().st_size, path.stat().st_size, 100, 500)


@pytest.mark.skipif(
    not TAU_BENCH.exists(),
    reason=f"the 120 tau-bench conversations are not here: {TAU_BENCH.name}",
)
def test_all_tau_bench_conversations_come_back_equal(tmp_path: Path) -> None:
    raw = TAU_BENCH.read_bytes().splitlines()
    lines = [json.loads(line) for line in raw]
    ids = [found.session_id for found in conversations(raw) if isinstance(found, Conversation)]

    async def both() -> tuple[ImportReport, ImportReport]:
        async with DatabaseSessionService(f"sqlite:///{tmp_path}/tau.db") as service:
            reports = await import_file(service, TAU_BENCH), await import_file(service, TAU_BENCH)
            listed = await service.list_sessions(app_name="openai-chat")
            assert {session.id for session in listed.sessions} == set(ids)
            calls = 0
            for session_id, line in zip(ids, lines, strict=True):
                session = await service.get_session(
                    app_name="openai-chat", user_id="imported", session_id=session_id
                )
                assert session is not None
                assert strict(to_messages(session)) == strict(line.pop("traj"))
                assert strict(session.state) == strict(line)
                assert [event.seq for event in session.events] == list(
                    range(1, len(session.events) + 1)
                )
                calls += sum(len(event.get_function_calls()) for event in session.events)
            assert calls == 695
        return reports

    first, second = asyncio.run(both())
    assert (first.conversations, first.sessions_created, first.events_added) == (120, 120, 3202)
    assert (second.conversations, second.sessions_created, second.events_added) == (120, 0, 0)
    assert second.events_present == 3202
    assert first.bad_lines == second.bad_lines == ()
