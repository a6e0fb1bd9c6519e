"""The official Python and JavaScript clients against a server process over a SQLite file.

What differs between a client and its stock form is its address and its key; client.py and
client.mjs are the places. The JavaScript client is installed from npm, and so are its tests soak.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servers_http import command
from threadline import Event
from threadline.server.auth import KeyFile
from threadline.sync import DatabaseSessionService
from vertex.clients import ENGINE, Client, ClientError, install_javascript, javascript, python

USER = 'u "1\\'
TIME = 1_760_000_000.123
_numbers = itertools.count()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('server')}/sessions.db"


@pytest.fixture(scope="module")
def url(database: str) -> Iterator[str]:
    with command(database) as server:
        yield server.url


@pytest.fixture(scope="module")
def python_client(url: str) -> Iterator[Client]:
    client = python(url)
    yield client
    client.end()


@pytest.fixture(scope="module")
def adk_js(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adk-js")
    install_javascript(folder)
    return folder


@pytest.fixture(scope="module")
def javascript_client(url: str, adk_js: Path) -> Iterator[Client]:
    client = javascript(url, adk_js)
    yield client
    client.end()


@pytest.fixture(scope="module")
def express_client(url: str) -> Iterator[Client]:
    client = python(url, "express")
    yield client
    client.end()


JS = pytest.mark.soak
SLOW = ["python", "javascript"]
CLIENTS = [
    pytest.param("python_client", id="python"),
    pytest.param("javascript_client", id="javascript", marks=JS),
]
PAIRS = [
    pytest.param("python_client", "python_client", id="python-python"),
    pytest.param("python_client", "javascript_client", id="python-javascript", marks=JS),
    pytest.param("javascript_client", "python_client", id="javascript-python", marks=JS),
    pytest.param("javascript_client", "javascript_client", id="javascript-javascript", marks=JS),
]


@pytest.fixture
def one(request: pytest.FixtureRequest) -> Client:
    client: Client = request.getfixturevalue(request.param)
    return client


@pytest.fixture
def writer(request: pytest.FixtureRequest) -> Client:
    client: Client = request.getfixturevalue(request.param)
    return client


@pytest.fixture
def reader(request: pytest.FixtureRequest) -> Client:
    client: Client = request.getfixturevalue(request.param)
    return client


each_client = pytest.mark.parametrize("one", CLIENTS, indirect=True)
each_pair = pytest.mark.parametrize(("writer", "reader"), PAIRS, indirect=True)


@pytest.fixture
def ids() -> dict[str, str]:
    """Return a user and a session that no other test has."""
    number = next(_numbers)
    return {"userId": f"{USER}{number}", "sessionId": f"session-{number}"}


def event(**fields: Any) -> dict[str, Any]:
    """Return an event as ADK's JSON."""
    number = next(_numbers)
    return {
        "id": f"event{number}",
        "author": "agent",
        "invocationId": f"e-{number}",
        "timestamp": TIME + number,
        **fields,
    }


EVENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "text": lambda: event(
        content={"role": "model", "parts": [{"text": 'Grüße \U0001f30d\n\t"\\'}]}
    ),
    "a user's message": lambda: event(author="user", content={"parts": [{"text": "hi"}]}),
    "a tool call": lambda: event(
        content={
            "role": "model",
            "parts": [{"functionCall": {"id": "c", "name": "f", "args": {"snake_key": {"aB": 1}}}}],
        },
        longRunningToolIds=["c"],
    ),
    "a tool's answer": lambda: event(
        content={
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "c", "name": "f", "response": {"a_b": [1.5, True]}}}
            ],
        }
    ),
    "binary": lambda: event(
        content={
            "role": "model",
            "parts": [
                {"inlineData": {"mimeType": "image/png", "data": "AAH//g=="}},
                {"text": "thought", "thought": True, "thoughtSignature": "+/8="},
            ],
        }
    ),
    "metadata": lambda: event(
        partial=False,
        turnComplete=True,
        interrupted=False,
        branch="root.agent",
        errorCode="SAFETY",
        errorMessage="no",
        customMetadata={"my_key": {"aB": 1}},
        usageMetadata={"promptTokenCount": 3, "totalTokenCount": 5},
        groundingMetadata={"webSearchQueries": ["q"]},
        modelVersion="m-1",
    ),
    "actions": lambda: event(
        actions={
            "stateDelta": {"k_k": {"aB": None}, "app:a": [1], "user:u": "x", "none": None},
            "artifactDelta": {"f.txt": 3},
            "transferToAgent": "other",
            "escalate": True,
            "skipSummarization": True,
            "rewindBeforeInvocationId": "e-0",
        }
    ),
}


def said(sent: dict[str, Any]) -> dict[str, Any]:
    """Return what an event says, without the ways of saying it: empty fields, base64 alphabets."""
    told = Event.from_dict(sent).to_dict()
    return {key: value for key, value in told.items() if value not in ({}, [], {"path": ""})}


@each_pair
@pytest.mark.parametrize("kind", EVENTS)
def test_an_event_that_one_appends_another_reads(
    writer: Client, reader: Client, kind: str, ids: dict[str, str]
) -> None:
    sent = EVENTS[kind]()
    writer("create", **ids)
    writer("append", **ids, events=[sent])
    (read,) = reader("get", **ids)["events"]
    assert said(read) == said(sent)


@each_pair
def test_state_of_every_scope_that_one_sets_another_reads(
    writer: Client, reader: Client, ids: dict[str, str]
) -> None:
    name = ids["sessionId"]
    state = {"k": 1, "nested": {"a_b": [1, {"cD": 2.5}]}, f"app:{name}": "a", "user:u": "b"}
    writer("create", **ids, state={**state, "temp:t": 0})
    delta = {"k": 2, f"app:{name}2": True, "user:v": {"w": []}, "temp:t": 1}
    writer("append", **ids, events=[event(actions={"stateDelta": delta})])
    state |= {key: value for key, value in delta.items() if key != "temp:t"}
    read = reader("get", **ids)["state"]
    assert {key: read.get(key) for key in state} == state
    assert "temp:t" not in read
    other = {**ids, "sessionId": f"{name}-other"}
    assert reader("create", **other)["id"] == other["sessionId"]
    shared = reader("get", **other)["state"]
    assert {key: shared[key] for key in shared if key.startswith("user:") or name in key} == {
        key: value for key, value in state.items() if ":" in key
    }


def test_express_mode_uses_the_same_sessions(
    express_client: Client, python_client: Client, ids: dict[str, str]
) -> None:
    express_client("create", **ids, state={"k": 1})
    express_client("append", **ids, events=[event()])
    assert python_client("get", **ids)["events"] == express_client("get", **ids)["events"]
    assert ids["sessionId"] in {found["id"] for found in express_client("list")}
    express_client("delete", **ids)
    assert python_client("get", **ids) is None


@pytest.mark.parametrize("kind", ["express", *(pytest.param(kind, marks=JS) for kind in SLOW)])
def test_the_key_that_a_client_is_given_is_the_servers(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, ids: dict[str, str]
) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    given = keys.create(apps=[ENGINE], writes=True)
    options = ("--keys", str(tmp_path / "keys.json"))
    with command(f"sqlite:///{tmp_path}/sessions.db", *options) as server:

        def connected(key: str) -> Client:
            if kind == "javascript":
                return javascript(server.url, request.getfixturevalue("adk_js"), key)
            return python(server.url, *([kind] if kind == "express" else []), key=key)

        right, wrong = connected(given), connected("tl_wrong")
        assert right("create", **ids)["id"] == ids["sessionId"]
        with pytest.raises(ClientError, match="401"):
            wrong("create", **ids)
        right.end()
        wrong.end()


@each_client
def test_create_makes_an_id_where_none_is_given(one: Client, ids: dict[str, str]) -> None:
    made = one("create", userId=ids["userId"], state={"k": 1})
    assert made["state"]["k"] == 1
    assert one("get", userId=ids["userId"], sessionId=made["id"])["id"] == made["id"]


@each_client
def test_create_refuses_an_id_that_is_taken(one: Client, ids: dict[str, str]) -> None:
    one("create", **ids)
    with pytest.raises(ClientError, match="already exists"):
        one("create", **ids)
    with pytest.raises(ClientError, match="already exists"):
        one("create", userId="somebody else", sessionId=ids["sessionId"])


@each_client
def test_create_takes_a_ttl(one: Client, ids: dict[str, str]) -> None:
    assert one("create", **ids, ttl="86400s")["id"] == ids["sessionId"]
    with pytest.raises(ClientError, match="400"):
        one("create", userId=ids["userId"], ttl="tomorrow")


@each_client
def test_get_of_a_missing_session_is_none(one: Client) -> None:
    assert one("get", userId="u", sessionId="missing") is None


@each_client
def test_get_of_anothers_session_is_refused(one: Client, ids: dict[str, str]) -> None:
    one("create", **ids)
    with pytest.raises(ClientError, match="does not belong"):
        one("get", userId="somebody else", sessionId=ids["sessionId"])


@each_client
def test_get_returns_a_part_of_the_events(one: Client, ids: dict[str, str]) -> None:
    events = [event() for _ in range(5)]
    one("create", **ids)
    one("append", **ids, events=events)

    def names(**config: Any) -> list[str]:
        return [read["id"] for read in one("get", **ids, **config)["events"]]

    all_of_them = [sent["id"] for sent in events]
    assert names() == all_of_them
    assert names(recent=2) == all_of_them[-2:]
    assert names(recent=0) == []
    assert names(afterTimestamp=events[3]["timestamp"]) == all_of_them[3:]


@each_client
def test_an_event_that_is_appended_again_is_stored_once(one: Client, ids: dict[str, str]) -> None:
    sent = event(content={"parts": [{"text": "once"}]})
    one("create", **ids)
    one("append", **ids, events=[sent, sent])
    assert len(one("get", **ids)["events"]) == 1


@each_client
def test_an_id_with_another_content_is_refused_and_nothing_is_stored(
    one: Client, ids: dict[str, str]
) -> None:
    sent = event(content={"parts": [{"text": "one"}]})
    one("create", **ids)
    with pytest.raises(ClientError, match="409"):
        one("append", **ids, events=[sent, {**sent, "content": {"parts": [{"text": "two"}]}}])
    assert len(one("get", **ids)["events"]) == 1


@each_client
def test_list_returns_a_users_sessions(one: Client, ids: dict[str, str]) -> None:
    others = [f"{ids['sessionId']}-{n}" for n in range(3)]
    for other in others:
        one("create", userId=ids["userId"], sessionId=other, state={"k": other})
    one("create", userId="somebody else", sessionId=ids["sessionId"])
    listed = one("list", userId=ids["userId"])
    assert sorted((session["id"], session["state"]["k"]) for session in listed) == [
        (other, other) for other in others
    ]
    assert {session["userId"] for session in listed} == {ids["userId"]}


@each_client
def test_list_returns_everybodys_sessions(one: Client, ids: dict[str, str]) -> None:
    one("create", **ids)
    one("create", userId="somebody else", sessionId=f"{ids['sessionId']}-other")
    listed = {(session["userId"], session["id"]) for session in one("list")}
    assert {
        (ids["userId"], ids["sessionId"]),
        ("somebody else", f"{ids['sessionId']}-other"),
    } <= listed


@each_client
def test_delete_deletes_and_a_missing_session_is_no_error(one: Client, ids: dict[str, str]) -> None:
    one("create", **ids, state={"k": 1})
    one("append", **ids, events=[event()])
    one("delete", **ids)
    assert one("get", **ids) is None
    one("delete", **ids)
    one("create", **ids)
    assert one("get", **ids)["events"] == []
    assert "k" not in one("get", **ids)["state"]


@each_client
def test_a_session_of_3000_events_comes_back_whole(
    one: Client, database: str, ids: dict[str, str]
) -> None:
    events = [event(content={"parts": [{"text": f"word {n} " * 20}]}) for n in range(3000)]
    whose = {"app_name": ENGINE, "user_id": ids["userId"], "session_id": ids["sessionId"]}
    with DatabaseSessionService(database) as service:
        session = service.create_session(**whose)
        service.append_events(session, [Event.from_dict(sent) for sent in events])
    read = one("get", **ids)["events"]
    assert [said(found) for found in read] == [said(sent) for sent in events]
