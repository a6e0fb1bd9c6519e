"""The blocking services: the async ones' names, arguments and types, from plain code."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import threadline
from threadline import blocking, sync
from threadline.engines.memory import MemoryEngine
from threadline.errors import (
    AlreadyExistsError,
    InvalidInputError,
    SessionNotFoundError,
    StaleSessionError,
)
from threadline.sync import DatabaseSessionService, Event, InMemorySessionService, Runner

IDS = {"app_name": "app", "user_id": "u"}

# -- the same face ------------------------------------------------------------------------

CLASSES = [
    "BaseSessionService",
    "EngineSessionService",
    "InMemorySessionService",
    "DatabaseSessionService",
    "RemoteSessionService",
    "VertexAiSessionService",
]
# `async with` becomes `with`; nothing else has another name.
ENTER = {"__aenter__": "__enter__", "__aexit__": "__exit__"}


def methods(kind: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in inspect.getmembers(kind, callable)
        if not name.startswith("_") or name in {*ENTER, *ENTER.values()}
    }


CASES = [
    pytest.param(name, verb, id=f"{name}.{verb}")
    for name in CLASSES
    for verb in methods(getattr(threadline, name))
]


def faces(name: str, verb: str) -> tuple[Any, Any]:
    """Return the async method and the blocking one."""
    theirs = getattr(getattr(threadline, name), verb)
    return theirs, getattr(getattr(sync, name), ENTER.get(verb, verb))


@pytest.mark.parametrize("name", CLASSES)
def test_the_verbs_are_the_same(name: str) -> None:
    wanted = {ENTER.get(verb, verb) for verb in methods(getattr(threadline, name))}
    assert set(methods(getattr(sync, name))) == wanted


@pytest.mark.parametrize("name", CLASSES)
def test_the_bases_are_the_same(name: str) -> None:
    def names(kind: type) -> list[str]:
        return [base.__name__ for base in kind.__mro__ if base.__name__ in CLASSES]

    assert names(getattr(sync, name)) == names(getattr(threadline, name))


@pytest.mark.parametrize(("name", "verb"), CASES)
def test_the_arguments_are_the_same(name: str, verb: str) -> None:
    """Names, kinds, defaults and annotations, in the same order."""
    theirs, ours = map(inspect.signature, faces(name, verb))
    assert list(ours.parameters.values()) == list(theirs.parameters.values())


@pytest.mark.parametrize(("name", "verb"), CASES)
def test_the_result_is_the_same(name: str, verb: str) -> None:
    theirs, ours = map(inspect.signature, faces(name, verb))
    assert ours.return_annotation == theirs.return_annotation


@pytest.mark.parametrize(("name", "verb"), CASES)
def test_one_is_awaited_and_the_other_is_not(name: str, verb: str) -> None:
    theirs, ours = faces(name, verb)
    assert inspect.iscoroutinefunction(theirs)
    assert not inspect.iscoroutinefunction(ours)


@pytest.mark.parametrize(("name", "verb"), CASES)
def test_every_verb_has_a_docstring(name: str, verb: str) -> None:
    assert verb in ENTER or inspect.getdoc(faces(name, verb)[1])


@pytest.mark.parametrize("name", CLASSES)
def test_the_constructors_are_the_same(name: str) -> None:
    theirs, ours = (inspect.signature(getattr(module, name)) for module in (threadline, sync))
    assert list(ours.parameters.values()) == list(theirs.parameters.values())


def test_models_are_the_same_objects() -> None:
    assert Event is threadline.Event


def test_the_runner_is_the_same_object() -> None:
    assert Runner is threadline.Runner


# -- at work ------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite file", "sqlite memory", "engine"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made: Any
    if request.param == "memory":
        made = InMemorySessionService()
    elif request.param == "engine":
        made = sync.EngineSessionService(MemoryEngine())
    elif request.param == "sqlite file":
        made = DatabaseSessionService(f"sqlite:///{tmp_path}/sync.db")
    else:
        made = DatabaseSessionService("sqlite:///:memory:")
    with made:
        yield made


def test_a_session_is_created_and_read(service: Any) -> None:
    created = service.create_session(**IDS, session_id="s", state={"k": 1})
    found = service.get_session(**IDS, session_id="s")
    assert (found.id, found.state) == (created.id, {"k": 1})


def test_a_missing_session_is_none(service: Any) -> None:
    assert service.get_session(**IDS, session_id="s") is None


def test_an_event_is_appended(service: Any) -> None:
    session = service.create_session(**IDS)
    stored = service.append_event(session, Event(author="user", content="hi", state={"a": 1}))
    assert (stored.seq, session.events, session.state) == (1, [stored], {"a": 1})


def test_events_are_appended_at_once(service: Any) -> None:
    session = service.create_session(**IDS)
    stored = service.append_events(session, [Event(content="a"), Event(content="b")])
    assert [event.seq for event in stored] == [1, 2]


def test_sessions_and_events_are_listed(service: Any) -> None:
    session = service.create_session(**IDS)
    service.append_event(session, Event(content="a"))
    page = service.list_events(**IDS, session_id=session.id)
    assert [event.content.text for event in page.events] == ["a"]
    assert [one.id for one in service.list_sessions(app_name="app").sessions] == [session.id]


def test_a_handle_is_refreshed(service: Any) -> None:
    mine = service.create_session(**IDS, session_id="s")
    service.append_event(service.get_session(**IDS, session_id="s"), Event(content="a"))
    assert service.refresh(mine) is mine
    assert len(mine.events) == 1


def test_state_is_patched_and_read(service: Any) -> None:
    service.create_session(**IDS, session_id="s")
    service.patch_state(**IDS, set={"x": 1}, increment={"n": 2})
    service.patch_state(app_name="app", set={"y": 3})
    assert service.get_user_state(**IDS) == {"x": 1, "n": 2}
    assert service.get_app_state(app_name="app") == {"y": 3}


def test_a_session_is_deleted(service: Any) -> None:
    service.create_session(**IDS, session_id="s")
    service.delete_session(**IDS, session_id="s")
    assert service.get_session(**IDS, session_id="s") is None


def test_get_or_create_creates_once(service: Any) -> None:
    first = service.get_or_create_session(**IDS, session_id="s", state={"k": 1})
    assert service.get_or_create_session(**IDS, session_id="s") == first


def test_errors_are_the_same(service: Any) -> None:
    session = service.create_session(**IDS, session_id="s")
    with pytest.raises(AlreadyExistsError):
        service.create_session(**IDS, session_id="s")
    service.append_event(service.get_session(**IDS, session_id="s"), Event(content="a"))
    with pytest.raises(StaleSessionError):
        service.append_event(session, Event(content="b"))
    service.append_event(session, Event(content="b"), on_stale="rebase")
    service.delete_session(**IDS, session_id="s")
    with pytest.raises(SessionNotFoundError):
        service.refresh(session)


def test_it_works_inside_of_a_running_loop(service: Any) -> None:
    async def main() -> Any:
        return service.create_session(**IDS, session_id="s")

    assert asyncio.run(main()).id == "s"


def test_several_threads_may_share_it(service: Any) -> None:
    service.create_session(**IDS, session_id="s")
    begin = threading.Barrier(4)

    def write(writer: int) -> None:
        begin.wait()
        session = service.get_session(**IDS, session_id="s")
        for n in range(5):
            service.append_event(
                session, Event(id=f"{writer}-{n}", state={f"{writer}-{n}": n}), on_stale="rebase"
            )

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    found = service.get_session(**IDS, session_id="s")
    assert [event.seq for event in found.events] == list(range(1, 21))
    assert len(found.state) == 20


def test_several_threads_may_share_a_handle(service: Any) -> None:
    session = service.create_session(**IDS, session_id="s")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: service.append_event(session, Event(id=str(n))), range(12)))
    assert session.events == service.get_session(**IDS, session_id="s").events
    assert [event.seq for event in session.events] == list(range(1, 13))


def test_the_async_side_sees_the_same_sessions(service: Any) -> None:
    service.create_session(**IDS, session_id="s")
    found = asyncio.run(service.asynchronous.get_session(**IDS, session_id="s"))
    assert found is not None


def test_sessions_in_a_file_outlive_the_service(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/kept.db"
    with DatabaseSessionService(url) as first:
        session = first.create_session(**IDS, session_id="s")
        first.append_event(session, Event(content="hi", state={"user:x": 1}))
    with DatabaseSessionService(url) as second:
        found = second.get_session(**IDS, session_id="s")
    assert found is not None
    assert (found.events, found.state) == (session.events, {"user:x": 1})


def test_a_call_on_its_own_loop_is_an_error_and_no_deadlock() -> None:
    service = InMemorySessionService()

    async def on_the_loop_thread() -> None:
        service.create_session(**IDS)

    with pytest.raises(InvalidInputError, match="async"):
        blocking.call(on_the_loop_thread())


def test_the_loop_thread_is_one_for_all() -> None:
    async def thread() -> threading.Thread:
        return threading.current_thread()

    assert blocking.call(thread()) is blocking.call(thread()) is not threading.current_thread()


def test_an_error_in_the_work_reaches_the_caller_with_its_traceback() -> None:
    async def fail() -> None:
        raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here") as caught:
        blocking.call(fail())
    assert "fail" in [entry.name for entry in caught.traceback]


def run_script(code: str) -> subprocess.CompletedProcess[str]:
    """Run a script in an interpreter of its own, so that a deadlock ends with it."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip


def test_a_script_that_closes_nothing_ends(tmp_path: Path) -> None:
    done = run_script(
        "from threadline.sync import DatabaseSessionService\n"
        f"s = DatabaseSessionService('sqlite:///{tmp_path}/open.db')\n"
        "print(s.create_session(app_name='a', user_id='u', session_id='s').id)\n"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("s\n", "", 0)


def test_a_forked_child_gets_a_loop_of_its_own() -> None:
    done = run_script(
        "import os\n"
        "from threadline.sync import InMemorySessionService\n"
        "ids = dict(app_name='a', user_id='u', session_id='s')\n"
        "InMemorySessionService().create_session(**ids)\n"
        "if (child := os.fork()) == 0:\n"
        "    os._exit(InMemorySessionService().create_session(**ids).id != 's')\n"
        "print(os.waitpid(child, 0)[1])\n"
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
