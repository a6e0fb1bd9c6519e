"""What the services for google-adk add: options, errors of both kinds, what they remember."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import google.adk.errors as adk_errors
import msgspec
import pytest
from google.adk.errors.already_exists_error import AlreadyExistsError as AdkAlreadyExistsError
from google.adk.errors.session_not_found_error import (
    SessionNotFoundError as AdkSessionNotFoundError,
)
from google.adk.events import Event, EventActions
from google.adk.sessions import Session
from google.adk.sessions import StateSchemaError as AdkStateSchemaError
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st

import threadline
from adk.stores import ADKS, Store, event, texts
from adk.test_semantics import ACTIONS, FIELDS
from threadline import errors
from threadline.canonical import encode
from threadline.codec import event_to_row
from threadline.integrations.adk import (
    AlreadyExistsError,
    DatabaseSessionService,
    InMemorySessionService,
    SessionNotFoundError,
    StaleSessionError,
    StateSchemaError,
    adk_service,
    events,
    register_schemes,
)
from threadline.integrations.adk.events import to_adk, to_threadline

ours = pytest.mark.unlike(*ADKS)


# -- errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (AlreadyExistsError, (errors.AlreadyExistsError, AdkAlreadyExistsError)),
        (SessionNotFoundError, (errors.SessionNotFoundError, AdkSessionNotFoundError, ValueError)),
        (StaleSessionError, (errors.StaleSessionError, adk_errors.StaleSessionError, ValueError)),
        (StateSchemaError, (errors.StateSchemaError, AdkStateSchemaError, TypeError)),
    ],
)
def test_an_error_is_of_both_kinds(kind: type[Exception], bases: tuple[type, ...]) -> None:
    assert issubclass(kind, bases[0])
    assert issubclass(kind, bases[1])
    assert issubclass(kind, bases[-1])


@ours
async def test_a_stale_append_carries_the_events_it_missed(store: Store) -> None:
    session = await store.create()
    await store.say(await store.get(), "a", "b")
    with pytest.raises(StaleSessionError) as caught:
        await store.say(session, "c")
    assert [type(one) for one in caught.value.missed] == [Event, Event]
    assert [one.content.parts[0].text for one in caught.value.missed] == ["a", "b"]
    assert (caught.value.expected, caught.value.revision) == (0, 2)


@ours
async def test_an_id_that_cannot_be_kept_is_named(store: Store) -> None:
    for ids in ({"user_id": ""}, {"session_id": "x" * 513}, {"app_name": "\ud800"}):
        with pytest.raises(errors.InvalidIdError, match=next(iter(ids))):
            await store.create(**ids)


@ours
async def test_what_has_no_json_outside_of_state_is_named(store: Store) -> None:
    session = await store.create()
    with pytest.raises(errors.UnsupportedValueError, match="custom"):
        await store.say(session, "a", custom_metadata={"custom": object()})
    assert texts(await store.get()) == []


@ours
async def test_bytes_that_are_no_text_are_refused_in_state(store: Store) -> None:
    session = await store.create()
    with pytest.raises(errors.UnsupportedValueError, match="state.'k'.*utf-8"):
        await store.change(session, k=b"\xff")
    with pytest.raises(errors.UnsupportedValueError, match="utf-8"):
        await store.create({"k": b"\xff"}, session_id="other")
    assert (await store.get()).events == []


def test_a_state_schema_refuses_what_breaks_it() -> None:
    class Cart(msgspec.Struct):
        items: int

    async def run() -> None:
        service = InMemorySessionService(state_schema=Cart)
        with pytest.raises(StateSchemaError, match="items"):
            await service.create_session(app_name="app", user_id="ada", state={"items": "5"})

    asyncio.run(run())


# -- policies ---------------------------------------------------------------------------


@ours
async def test_rebase_appends_to_the_end_and_hands_over_what_was_missed(store: Store) -> None:
    session = await store.create()
    await store.service.append_event(await store.get(), event("a", state={"k": 1, "app:n": 1}))
    mine = event("b", state={"k": 2})
    async with store.open(on_stale="rebase") as rebasing:
        assert await rebasing.append_event(session, mine) is mine
    assert texts(session) == texts(await store.get()) == ["a", "b"]
    assert session.events[-1] is mine
    assert session.state == (await store.get()).state == {"k": 2, "app:n": 1}
    await store.say(session, "c")


@ours
async def test_rebase_takes_a_session_that_went_through_json(store: Store) -> None:
    session = await store.create()
    await store.say(session, "a")
    again = Session.model_validate_json(session.model_dump_json())
    await store.say(session, "b")
    async with store.open(on_stale="rebase") as rebasing:
        await rebasing.append_event(again, event("c"))
    assert texts(again) == ["a", "b", "c"]


@ours
async def test_refresh_brings_a_session_up_to_date_in_place(store: Store) -> None:
    session = await store.create({"k": 1})
    await store.service.append_event(session, event("a", state={"temp:t": 1}))
    other = await store.get()
    await store.service.append_event(other, event("b", state={"k": 2, "user:u": 3}))
    held_events, held_state, first = session.events, session.state, session.events[0]
    assert await store.service.refresh(session) is session
    assert session.events is held_events
    assert session.state is held_state
    assert session.events[0] is first
    assert texts(session) == ["a", "b"]
    assert session.state == {"k": 2, "user:u": 3, "temp:t": 1}
    await store.say(session, "c")


@ours
async def test_refresh_of_a_deleted_session_is_refused(store: Store) -> None:
    session = await store.create()
    await store.service.delete_session(**store.key)
    with pytest.raises(SessionNotFoundError):
        await store.service.refresh(session)


# -- what a service remembers -----------------------------------------------------------


@ours
async def test_what_another_service_appends_is_seen(store: Store) -> None:
    await store.say(await store.create(), "a")
    await store.get()
    async with store.open() as other:
        await other.append_event(await other.get_session(**store.key), event("b"))
    assert texts(await store.get()) == ["a", "b"]


@ours
async def test_a_session_that_another_service_made_anew_is_not_mixed_with_the_old(
    store: Store,
) -> None:
    await store.say(await store.create(), "old", "older")
    await store.get()
    async with store.open() as other:
        await other.delete_session(**store.key)
        fresh = await other.create_session(**store.key)
        for word in ("new", "newer", "newest"):
            await other.append_event(fresh, event(word))
    assert texts(await store.get()) == ["new", "newer", "newest"]


class _Counting:
    """Note how many events a service hands out."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.read: list[int] = []

    async def get_session(self, **arguments: Any) -> Any:
        found = await self.service.get_session(**arguments)
        self.read.append(len(found.events))
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.service, name)


async def _talk(**options: Any) -> tuple[Any, _Counting, dict[str, str]]:
    counting = _Counting(threadline.InMemorySessionService())
    service = adk_service(counting, **options)  # type: ignore[arg-type]
    key = {"app_name": "app", "user_id": "ada", "session_id": "talk"}
    session = await service.create_session(**key)
    for word in "abc":
        await service.append_event(session, event(word))
    await service.get_session(**key)
    await service.append_event(session, event("d"))
    return service, counting, key


def test_a_session_that_is_loaded_again_is_read_from_where_it_was() -> None:
    async def run() -> None:
        service, counting, key = await _talk()
        session = await service.get_session(**key)
        assert texts(session) == [*"abcd"]
        assert counting.read == [3, 1]

    asyncio.run(run())


def test_no_more_bytes_are_remembered_than_were_asked_for() -> None:
    async def run() -> None:
        service, counting, key = await _talk(cache_bytes=0)
        assert texts(await service.get_session(**key)) == [*"abcd"]
        assert counting.read == [3, 4]

    asyncio.run(run())


def test_the_sessions_used_last_are_remembered() -> None:
    async def run() -> None:
        counting = _Counting(threadline.InMemorySessionService())
        service = adk_service(counting, cache_bytes=2_500)  # type: ignore[arg-type]
        key = {"app_name": "app", "user_id": "ada"}
        for id in "abc":
            session = await service.create_session(**key, session_id=id)
            await service.append_event(session, event("x" * 1_000))
            await service.get_session(**key, session_id=id)
        counting.read.clear()
        for id in "cba":
            await service.get_session(**key, session_id=id)
        assert counting.read == [0, 0, 1]

    asyncio.run(run())


def test_events_are_shared_only_when_that_was_asked_for() -> None:
    async def run(share: bool) -> bool:
        service, _, key = await _talk(share_events=share)
        first, second = [await service.get_session(**key) for _ in range(2)]
        assert first == second
        assert first.events is not second.events
        assert first.state is not second.state
        return all(a is b for a, b in zip(first.events, second.events, strict=True))

    assert not asyncio.run(run(False))
    assert asyncio.run(run(True))


def test_a_service_works_on_several_threads_at_once(tmp_path: Path) -> None:
    service = DatabaseSessionService(f"sqlite:///{tmp_path}/s.db")
    key = {"app_name": "app", "user_id": "ada", "session_id": "talk"}

    async def turn(word: str) -> None:
        for n in range(5):
            while True:
                session = await service.get_session(**key)
                try:
                    await service.append_event(session, event(f"{word}{n}"))
                    break
                except StaleSessionError:
                    continue

    async def run() -> list[str]:
        await service.create_session(**key)
        await asyncio.gather(
            *(asyncio.to_thread(lambda word=word: asyncio.run(turn(word))) for word in "abc")
        )
        found = texts(await service.get_session(**key))
        await service.close()
        return found

    assert sorted(asyncio.run(run())) == [f"{word}{n}" for word in "abc" for n in range(5)]


# -- events, there and back -------------------------------------------------------------


def _stored(given: Event) -> bytes:
    return event_to_row(to_threadline(given))[0].body


@pytest.mark.parametrize(
    "given",
    [Event(author="a", **{name: value}) for name, value in FIELDS.items() if name != "author"]
    + [Event(actions=EventActions(**{name: value})) for name, value in ACTIONS.items()],
    ids=[*(name for name in FIELDS if name != "author"), *ACTIONS],
)
def test_the_short_way_back_is_that_of_pydantic_and_of_threadline(given: Event) -> None:
    body = _stored(given)
    quick = to_adk((1, body))
    assert quick == given
    assert quick == Event.model_validate_json(body)
    assert quick == Event.model_validate(threadline.Event.from_json(body).to_dict())
    assert quick.model_dump_json() == Event.model_validate_json(body).model_dump_json()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_PARTS = st.lists(
    st.builds(
        lambda text, thought: types.Part(text=text, thought=thought), st.text(), st.booleans()
    )
    | st.builds(lambda data: types.Part(thought_signature=data), st.binary())
    | st.builds(
        lambda args: types.Part(function_call=types.FunctionCall(name="f", args=args)),
        st.dictionaries(st.text(), _JSON, max_size=3),
    ),
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1).map(lambda key: f"k{key}"), _JSON, max_size=3),
    _PARTS,
    _JSON,
)
def test_any_event_comes_back_equal(delta: dict[str, Any], parts: Any, output: Any) -> None:
    given = Event(
        author="a",
        content=types.Content(role="model", parts=parts),
        actions=EventActions(state_delta=delta),
        output=output,
    )
    assert to_adk((1, _stored(given))) == given


def test_an_action_that_this_google_adk_does_not_know_hides_no_session() -> None:
    async def run() -> None:
        service = InMemorySessionService()
        key = {"app_name": "app", "user_id": "ada", "session_id": "talk"}
        await service.create_session(**key)
        core = service.service
        newer = threadline.Event.from_dict(
            {
                "author": "a",
                "content": {"parts": [{"text": "hi", "newPart": 1}]},
                "actions": {"stateDelta": {"k": 1}, "newAction": {"x": 1}},
                "newField": 2,
            }
        )
        await core.append_event(await core.get_session(**key), newer)
        session = await service.get_session(**key)
        assert texts(session) == ["hi"]
        assert session.events[0].actions.state_delta == {"k": 1}
        kept = (await core.get_session(**key)).events[0]
        assert kept.actions.extra == {"newAction": {"x": 1}}

    asyncio.run(run())


def test_a_damaged_event_is_named() -> None:
    with pytest.raises(errors.DamagedDataError, match="seq 7"):
        to_adk((7, b'{"timestamp": "noon"}'))


def test_an_event_of_a_subclass_is_stored_with_its_own_fields() -> None:
    class Special(Event):
        mood: str = ""

    body = _stored(Special(author="a", mood="good"))
    assert threadline.Event.from_json(body).extra == {"mood": "good"}
    assert type(to_adk((1, body))) is Event


def test_where_pydantic_is_another_the_long_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise TypeError("no such argument")

    monkeypatch.setattr(events, "SchemaValidator", refuse)
    monkeypatch.setattr(events, "_decoder", events._make_decoder())
    given = Event(author="a", content=types.Content(parts=[types.Part(text="hi")]))
    assert to_adk((1, _stored(given))) == given


def test_bytes_are_read_in_both_alphabets() -> None:
    data = b"\xfb\xff\xfe"
    row = encode(threadline.Event(content={"parts": [{"thoughtSignature": "-__-"}]}), "event")
    assert to_adk((1, row)).content.parts[0].thought_signature == data


# -- how it is found --------------------------------------------------------------------


def test_without_google_adk_the_extra_is_named() -> None:
    code = textwrap.dedent(
        """
        import sys
        sys.modules["google.adk"] = None
        import threadline
        try:
            import threadline.integrations.adk
        except threadline.MissingExtraError as error:
            print(error)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "threadline[adk]" in done.stdout, done.stderr


def test_the_schemes_lead_to_threadline(tmp_path: Path) -> None:
    from google.adk.cli.service_registry import get_service_registry

    register_schemes()
    registry = get_service_registry()
    found = registry.create_session_service(
        f"threadline+sqlite:///{tmp_path}/s.db", agents_dir=str(tmp_path)
    )
    assert isinstance(found, DatabaseSessionService)
    with pytest.raises(errors.InvalidInputError, match="pool_size"):
        registry.create_session_service("threadline+sqlite:///s.db", pool_size=3)


def test_a_scheme_can_make_a_service_of_ones_own() -> None:
    from google.adk.cli.service_registry import get_service_registry

    made: list[str] = []

    def make(url: str) -> InMemorySessionService:
        made.append(url)
        return InMemorySessionService(on_stale="rebase")

    register_schemes(make)
    try:
        get_service_registry().create_session_service("threadline+postgresql://host/db")
    finally:
        register_schemes()
    assert made == ["postgresql://host/db"]
