"""What a type checker sees of the models; checked by mypy, never run."""

from typing import Any, assert_type

from google.genai import types as genai

from threadline import (
    Content,
    Event,
    EventActions,
    FunctionCall,
    FunctionResponse,
    History,
    NodeInfo,
    Part,
    Session,
    State,
)


def events(event: Event) -> None:
    assert_type(event.id, str)
    assert_type(event.timestamp, float)
    assert_type(event.seq, int | None)
    assert_type(event.content, Content | None)
    assert_type(event.message, Content | None)
    assert_type(event.actions, EventActions)
    assert_type(event.actions.state_delta, dict[str, Any])
    assert_type(event.node_info, NodeInfo)
    assert_type(event.long_running_tool_ids, frozenset[str] | None)
    assert_type(event.get_function_calls(), list[FunctionCall])
    assert_type(event.get_function_responses(), list[FunctionResponse])
    assert_type(event.is_final_response(), bool)
    assert_type(event.has_trailing_code_execution_result(), bool)
    assert_type(Event.new_id(), str)


def json(event: Event, content: Content) -> None:
    assert_type(event.to_json(), str)
    assert_type(event.to_dict(), dict[str, Any])
    assert_type(Event.from_json(b"{}"), Event)
    assert_type(Event.from_json("{}"), Event)
    assert_type(Event.from_dict({}), Event)
    assert_type(Content.from_dict(content), Content)
    assert_type(Part.from_text(text="x"), Part)


def constructors() -> None:
    assert_type(Event(), Event)
    assert_type(Event(author="a", content="text"), Event)
    assert_type(Event(content={"parts": [{"text": "x"}]}), Event)
    assert_type(Event(content=Content(parts=[Part(text="x")], role="user")), Event)
    assert_type(Event(content=genai.Content(role="user")), Event)
    assert_type(Event(message="x", state={"k": 1}, route="next", node_path="a/b"), Event)
    assert_type(Event(actions=EventActions(state_delta={"k": 1}, escalate=True)), Event)
    assert_type(Event(long_running_tool_ids={"call"}), Event)
    assert_type(
        Event(finish_reason="STOP", isolation_scope="s", output=1, node_info=NodeInfo(path="a")),
        Event,
    )
    Event("positional")  # type: ignore[call-arg]
    Part(txet="x")  # type: ignore[call-arg]
    EventActions(state_delta=5)  # type: ignore[arg-type]


def sessions(session: Session, history: History) -> None:
    assert_type(session.id, str)
    assert_type(session.state, dict[str, Any])
    assert_type(session.events[0], Event)
    assert_type(len(session.events), int)
    assert_type(session.revision, int | None)
    assert_type(history[0], Event)
    assert_type(history[:1], list[Event])
    assert_type([event.author for event in session.events], list[str])
    assert_type(history.__add__([Event()]), list[Event])


def state(view: State) -> None:
    assert_type(view.get("k"), Any)
    assert_type(view.has_delta(), bool)
    assert_type(view.to_dict(), dict[str, Any])
    assert_type(list(view), list[str])
    assert_type(State.APP_PREFIX, str)
