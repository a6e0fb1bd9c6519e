"""Whole turns of google-adk's Runner: the same history, whoever stores it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.adk.agents import LiveRequestQueue
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.apps.app import App, EventsCompactionConfig
from google.adk.apps.llm_event_summarizer import LlmEventSummarizer
from google.adk.errors import InvocationNotFoundError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events import Event
from google.adk.runners import Runner
from google.adk.sessions import BaseSessionService, Session
from google.adk.sessions import InMemorySessionService as AdkInMemorySessionService
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai import types

from adk import scripted
from adk.stores import Store
from threadline.integrations.adk import DatabaseSessionService

pytestmark = pytest.mark.filterwarnings(
    "ignore:(Sequential|Parallel)Agent is deprecated:DeprecationWarning",
    "ignore:.EXPERIMENTAL.:UserWarning",
)


def words(text: str) -> types.Content:
    return types.Content(role="user", parts=[types.Part(text=text)])


async def run(runner: Runner, message: Any = "hi", **options: Any) -> list[Event]:
    """Run a turn to its end and return what the caller saw."""
    content = words(message) if isinstance(message, str) else message
    turn = runner.run_async(user_id="ada", session_id="talk", new_message=content, **options)
    return [event async for event in turn]


_RANDOM = re.compile(
    r"(adk-|e-|p-)?[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
)
_TIMES = re.compile(r'"(timestamp|start_timestamp|end_timestamp)": [0-9.]+')


def history(session: Session, by_branch: bool = False) -> list[Any]:
    """Return the events as JSON, random ids numbered by their first appearance and no times."""
    events = sorted(session.events, key=lambda e: e.branch or "") if by_branch else session.events
    text = json.dumps([e.model_dump(mode="json", exclude_none=True) for e in events])
    numbers: dict[str, int] = {}
    text = _RANDOM.sub(lambda m: f"id {numbers.setdefault(m[0], len(numbers))}", text)
    text = _TIMES.sub(lambda m: f'"{m[1]}": 0', text)
    return json.loads(text)


async def talk(
    service: BaseSessionService, app: str, agent: Any, turns: int = 2
) -> tuple[Session, list[Event]]:
    """Have some turns with an agent; return the session as it was stored, and what was yielded."""
    key = {"app_name": app, "user_id": "ada", "session_id": "talk"}
    await service.create_session(**key, state={"user:name": "Ada", "k": [1]})
    runner = Runner(app_name=app, agent=agent, session_service=service)
    seen = []
    for number in range(turns):
        seen += await run(runner, f"turn {number}", state_delta={"turn": number})
    await runner.close()
    return await service.get_session(**key), seen


AGENTS: list[Callable[[], Any]] = [
    scripted.tool_agent,
    scripted.sequence,
    scripted.parallel,
    scripted.workflow,
]


@pytest.mark.parametrize("make", AGENTS, ids=lambda make: make.__name__)
async def test_a_conversation_is_stored_as_google_adk_stores_it(
    store: Store, make: Callable[[], Any]
) -> None:
    by_branch = make is scripted.parallel  # the branches come in any order, on any store
    ours, seen = await talk(store.service, store.app, make())
    theirs, expected = await talk(AdkInMemorySessionService(), store.app, make())
    assert history(ours, by_branch) == history(theirs, by_branch)
    assert ours.state == theirs.state
    assert len(ours.events) > 4
    assert len(seen) == len(expected)


async def test_what_was_yielded_is_what_is_stored(store: Store) -> None:
    session, seen = await talk(store.service, store.app, scripted.tool_agent())
    assert [one for one in session.events if one.author != "user"] == seen


async def test_the_model_is_asked_the_same_as_with_google_adk(store: Store) -> None:
    agents = scripted.tool_agent(), scripted.tool_agent()
    await talk(store.service, store.app, agents[0], turns=3)
    await talk(AdkInMemorySessionService(), store.app, agents[1], turns=3)
    ours, theirs = [agent.model.requests for agent in agents]
    assert len(ours) == 6
    assert ours == theirs


async def test_a_runner_makes_the_session_that_is_missing_or_says_so(store: Store) -> None:
    options = {"app_name": store.app, "agent": scripted.sequence()}
    with pytest.raises(SessionNotFoundError):
        await run(Runner(**options, session_service=store.service))
    await run(Runner(**options, session_service=store.service, auto_create_session=True))
    assert len((await store.get()).events) == 3


async def test_a_runner_that_loads_the_end_of_a_session_keeps_the_rest(store: Store) -> None:
    await talk(store.service, store.app, scripted.tool_agent())
    before = (await store.get()).events
    runner = Runner(app_name=store.app, agent=scripted.sequence(), session_service=store.service)
    config = RunConfig(get_session_config=GetSessionConfig(num_recent_events=2))
    await run(runner, run_config=config)
    after = (await store.get()).events
    assert after[: len(before)] == before
    assert len(after) == len(before) + 3


async def test_two_turns_of_two_users_at_once_do_not_meet(store: Store) -> None:
    runner = Runner(
        app_name=store.app,
        agent=scripted.sequence(),
        session_service=store.service,
        auto_create_session=True,
    )

    async def turn(user: str) -> None:
        async for _ in runner.run_async(user_id=user, session_id="talk", new_message=words(user)):
            pass

    await asyncio.gather(*(turn(f"user {n}") for n in range(5)))
    for n in range(5):
        session = await store.get(user_id=f"user {n}")
        assert session.events[0].content.parts[0].text == f"user {n}"
        assert len(session.events) == 3


def test_the_blocking_runner_works_on_its_own_thread(tmp_path: Path) -> None:
    service = DatabaseSessionService(f"sqlite:///{tmp_path}/s.db")
    runner = Runner(
        app_name="app",
        agent=scripted.tool_agent(),
        session_service=service,
        auto_create_session=True,
    )
    for _ in range(2):
        *_, last = runner.run(user_id="ada", session_id="talk", new_message=words("hi"))
        assert last.content.parts[0].text == "Blue, 21.5 degrees."
    asyncio.run(service.close())


# -- rewind, compaction, resumption, live -----------------------------------------------


async def test_rewind_is_stored_as_google_adk_stores_it(store: Store) -> None:
    histories = []
    for service in (store.service, AdkInMemorySessionService()):
        session, _ = await talk(service, store.app, scripted.tool_agent(), turns=3)
        second = session.events[4].invocation_id
        agent = scripted.tool_agent()
        runner = Runner(app_name=store.app, agent=agent, session_service=service)
        await runner.rewind_async(
            user_id="ada", session_id="talk", rewind_before_invocation_id=second
        )
        with pytest.raises(InvocationNotFoundError):
            await runner.rewind_async(
                user_id="ada", session_id="talk", rewind_before_invocation_id="e-unknown"
            )
        await run(runner, "again")
        rewound = await service.get_session(**store.key)
        mark = rewound.events[12].actions
        assert mark.rewind_before_invocation_id == second
        asked = [part.text for content in agent.model.requests[0] for part in content.parts]
        assert "turn 1" not in asked
        histories.append((history(rewound), rewound.state, agent.model.requests))
    assert histories[0] == histories[1]


async def test_compaction_is_stored_as_google_adk_stores_it(store: Store) -> None:
    histories = []
    for service in (store.service, AdkInMemorySessionService()):
        agent = scripted.tool_agent()
        summarizer = LlmEventSummarizer(llm=scripted.Script(answers=[scripted.said("Short.")]))
        app = App(
            name=store.app.replace("-", "_"),
            root_agent=agent,
            events_compaction_config=EventsCompactionConfig(
                summarizer=summarizer, compaction_interval=2, overlap_size=0
            ),
        )
        await service.create_session(app_name=app.name, user_id="ada", session_id="talk")
        runner = Runner(app=app, session_service=service)
        for number in range(3):
            await run(runner, f"turn {number}")
        session = await service.get_session(app_name=app.name, user_id="ada", session_id="talk")
        compactions = [e.actions.compaction for e in session.events if e.actions.compaction]
        (compaction,) = compactions
        assert compaction.compacted_content.parts[0].text == "Short."
        assert compaction.start_timestamp == session.events[0].timestamp
        histories.append((history(session), agent.model.requests))
    assert histories[0] == histories[1]


async def test_an_invocation_is_resumed_from_what_is_stored(store: Store) -> None:
    histories = []
    for service in (store.service, AdkInMemorySessionService()):
        app = scripted.booking_app(store.app.replace("-", "_"))
        await service.create_session(app_name=app.name, user_id="ada", session_id="talk")
        seen = await run(Runner(app=app, session_service=service), "book it")
        (call,) = [call for event in seen for call in event.get_function_calls()]
        assert any(event.long_running_tool_ids == {call.id} for event in seen)
        answer = types.Content(
            role="user",
            parts=[
                types.Part(
                    function_response=types.FunctionResponse(
                        id=call.id, name="book", response={"approved": True}
                    )
                )
            ],
        )
        resumed = Runner(app=app, session_service=service)  # as another process would
        ending = await run(resumed, answer, invocation_id=seen[0].invocation_id)
        assert any(e.content and e.content.parts[0].text == "Booked." for e in ending)
        session = await service.get_session(app_name=app.name, user_id="ada", session_id="talk")
        assert len({event.invocation_id for event in session.events}) == 1
        assert any(event.actions.end_of_agent for event in session.events)
        histories.append(history(session))
    assert histories[0] == histories[1]


async def test_a_live_turn_is_stored(store: Store) -> None:
    transcribed = scripted.LlmResponse(
        output_transcription=types.Transcription(text="Blue.", finished=True), partial=False
    )
    audio = scripted.LlmResponse(
        content=types.Content(
            role="model",
            parts=[types.Part(inline_data=types.Blob(data=b"\0\xff", mime_type="audio/pcm"))],
        )
    )
    done = scripted.LlmResponse(turn_complete=True)
    histories = []
    for service in (store.service, AdkInMemorySessionService()):
        await service.create_session(**store.key)
        runner = Runner(
            app_name=store.app,
            agent=scripted.agent("speaker", audio, transcribed, done),
            session_service=service,
        )
        queue = LiveRequestQueue()
        queue.send_content(words("How is the sky?"))
        turn = runner.run_live(
            user_id="ada",
            session_id="talk",
            live_request_queue=queue,
            run_config=RunConfig(streaming_mode=StreamingMode.BIDI),
        )
        async for event in turn:
            if event.turn_complete:
                queue.close()
                break
        await turn.aclose()
        session = await service.get_session(**store.key)
        assert any(event.output_transcription for event in session.events)
        assert not any(
            part.inline_data for e in session.events if e.content for part in e.content.parts
        )
        histories.append(history(session))
    assert histories[0] == histories[1]
