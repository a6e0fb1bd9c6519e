"""What google-adk's VertexAiSessionService writes ours reads equal, and the reverse; same requests.

Both go through one server, and through a proxy that notes what they send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from servers_http import served
from threadline import Event, InMemorySessionService, VertexAiSessionService
from vertex.clients import ENGINE, Client, python
from vertex.proxy import Proxy, Request
from vertex.test_clients import EVENTS, event, said

pytestmark = pytest.mark.soak

USER = 'u "1\\'

HARD = {
    **EVENTS,
    "a compaction": lambda: event(
        actions={
            "compaction": {
                "startTimestamp": 1.5,
                "endTimestamp": 2.5,
                "compactedContent": {"role": "model", "parts": [{"text": "short"}]},
            }
        }
    ),
    "a confirmation": lambda: event(
        actions={"requestedToolConfirmations": {"c": {"hint": "sure?", "payload": {"a": [1]}}}}
    ),
    "transcriptions": lambda: event(
        inputTranscription={"text": "heard", "finished": True},
        outputTranscription={"text": "said", "finished": False},
    ),
    "code": lambda: event(
        content={
            "role": "model",
            "parts": [
                {"executableCode": {"code": "1+1", "language": "PYTHON"}},
                {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "2"}},
                {"fileData": {"fileUri": "gs://b/f", "mimeType": "text/plain"}},
            ],
        }
    ),
}


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with served(InMemorySessionService()) as url, Proxy(url) as running:
        yield running


@pytest.fixture(scope="module")
def official(proxy: Proxy) -> Iterator[Client]:
    client = python(proxy.url)
    yield client
    client.end()


class Ours:
    """Our service, called as the official client's process is."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, call: str, **given: Any) -> Any:
        return asyncio.run(self.answer(call, **given))

    async def answer(
        # ruff: noqa: N803 - the names of the client processes' calls
        self,
        call: str,
        sessionId: str | None = None,
        userId: str | None = None,
        **given: Any,
    ) -> Any:
        ids: Any = {"app_name": ENGINE, "user_id": userId, "session_id": sessionId}
        url = self.url
        async with VertexAiSessionService(
            "my-project", "us-central1", ENGINE, base_url=url
        ) as service:
            if call == "create":
                return await service.create_session(**ids, state=given.get("state"))
            if call == "delete":
                return await service.delete_session(**ids)
            if call == "list":
                del ids["session_id"]
                return (await service.list_sessions(**ids)).sessions
            session = await service.get_session(**ids)
            if call == "append":
                assert session is not None
                for sent in given["events"]:
                    await service.append_event(session, Event.from_dict(sent))
            return session


@pytest.fixture
def ours(proxy: Proxy) -> Ours:
    return Ours(proxy.url)


@pytest.fixture
def ids(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return a user and a session that no other test has."""
    name = f"s{abs(hash(request.node.nodeid))}"
    return {"userId": f"{USER}{name}", "sessionId": name}


@pytest.mark.parametrize("kind", HARD)
def test_what_the_official_client_writes_ours_reads(
    official: Client, ours: Ours, ids: dict[str, str], kind: str
) -> None:
    sent = HARD[kind]()
    official("create", **ids)
    official("append", **ids, events=[sent])
    (read,) = ours("get", **ids).events
    assert said(read.to_dict() | {"seq": None}) == said(sent)


@pytest.mark.parametrize("kind", HARD)
def test_what_ours_writes_the_official_client_reads(
    official: Client, ours: Ours, ids: dict[str, str], kind: str
) -> None:
    sent = HARD[kind]()
    ours("create", **ids)
    ours("append", **ids, events=[sent])
    (read,) = official("get", **ids)["events"]
    assert said(read) == said(sent)


@pytest.mark.parametrize("writer", ["official", "ours"])
def test_state_is_the_same_to_both(
    request: pytest.FixtureRequest, ids: dict[str, str], writer: str
) -> None:
    official, ours = (request.getfixturevalue(name) for name in ("official", "ours"))
    one = {"official": official, "ours": ours}[writer]
    one("create", **ids, state={"k": 1, "user:u": [1.5], "temp:t": 0})
    one("append", **ids, events=[event(actions={"stateDelta": {"k": 2, "temp:t": 1}})])
    read = ours("get", **ids)
    assert official("get", **ids)["state"] == read.state
    assert (read.state["k"], read.state["user:u"], "temp:t" in read.state) == (2, [1.5], False)


@pytest.mark.soak
@pytest.mark.parametrize("writer", ["official", "ours"])
def test_3000_events_over_many_pages(
    request: pytest.FixtureRequest, proxy: Proxy, ids: dict[str, str], writer: str
) -> None:
    official, ours = (request.getfixturevalue(name) for name in ("official", "ours"))
    one = {"official": official, "ours": ours}[writer]
    sent = [event(content={"parts": [{"text": str(n)}]}) for n in range(3000)]
    one("create", **ids)
    one("append", **ids, events=sent)

    def short(request: Request, forward: Any) -> Any:
        return forward(request._replace(query={**request.query, "pageSize": "100"}))

    proxy.faults += [("/events", short) for _ in range(60)]
    begin = proxy.count("/events")
    found = [read.id for read in ours("get", **ids).events]
    assert proxy.count("/events") - begin == 30
    assert found == [one["id"] for one in official("get", **ids)["events"]]
    assert found == [one["id"] for one in sent]
    proxy.faults.clear()


# -- the same requests ----------------------------------------------------------------------


def sent_by(one: Any, proxy: Proxy, call: str, **given: Any) -> list[Request]:
    proxy.log.clear()
    one(call, **given)
    return sorted(proxy.log, key=lambda request: (request.method, request.path))


def lines(requests: list[Request], id: str) -> list[tuple[str, str, dict[str, str]]]:
    return [(one.method, one.path.replace(id, "ID"), one.query) for one in requests]


def camel(value: Any) -> Any:
    """Return typed fields in one spelling: the official client mixes two."""
    if isinstance(value, dict):
        return {
            "".join(part.title() if n else part for n, part in enumerate(key.split("_")))
            if not key.startswith("_")
            else key: camel(item)
            for key, item in value.items()
        }
    return [camel(item) for item in value] if isinstance(value, list) else value


def meaning(body: Any) -> Any:
    """Return what a body says: the differences that are known are taken out here, by name."""
    if body is None:
        return None
    told = {name: camel(value) for name, value in body.items() if name != "rawEvent"}
    if "rawEvent" not in body:
        return told
    # Empty fields are left out; a time has all of its digits, and Z for +00:00.
    told["actions"] = {k: v for k, v in told.get("actions", {}).items() if v != {}}
    told["timestamp"] = round(body["rawEvent"]["timestamp"], 3)
    return {**told, "rawEvent": said(body["rawEvent"])}


def both(
    official: Client, ours: Ours, proxy: Proxy, ids: dict[str, str], call: str, **given: Any
) -> tuple[list[Request], list[Request]]:
    mine = {**ids, "sessionId": ids["sessionId"] + "-b"}
    return (
        sent_by(official, proxy, call, **ids, **given),
        [
            one._replace(path=one.path.replace(mine["sessionId"], ids["sessionId"]))
            for one in sent_by(ours, proxy, call, **mine, **given)
        ],
    )


@pytest.fixture
def made(official: Client, ours: Ours, ids: dict[str, str]) -> dict[str, str]:
    for id in (ids["sessionId"], ids["sessionId"] + "-b"):
        official("create", **{**ids, "sessionId": id})
    return ids


def test_create_sends_the_same(
    official: Client, ours: Ours, proxy: Proxy, ids: dict[str, str]
) -> None:
    theirs, mine = both(official, ours, proxy, ids, "create", state={"k": 1, "app:a": "x"})
    for one in mine:
        if "sessionId" in one.query:
            one.query["sessionId"] = ids["sessionId"]
    assert lines(mine, "") == lines(theirs, "")
    assert [one.json() for one in mine] == [one.json() for one in theirs]


@pytest.mark.parametrize("call", ["get", "delete"])
def test_get_and_delete_send_the_same(
    official: Client, ours: Ours, proxy: Proxy, made: dict[str, str], call: str
) -> None:
    theirs, mine = both(official, ours, proxy, made, call)
    assert lines(mine, "") == lines(theirs, "")


def test_list_sends_the_same(
    official: Client, ours: Ours, proxy: Proxy, ids: dict[str, str]
) -> None:
    user = {"userId": ids["userId"]}
    theirs, mine = (sent_by(one, proxy, "list", **user) for one in (official, ours))
    assert lines(mine, "") == lines(theirs, "")


def typed(body: Any) -> Any:
    """Return an event's typed fields as an event of our own, and its side channel."""
    meta = body["eventMetadata"]
    fields = {**meta, "content": body.get("content"), "customMetadata": meta.get("customMetadata")}
    told = Event.from_dict({**fields, "id": "x", "timestamp": 0.0}).to_dict()
    return told if any(told.get("content", {"x": 1}).values()) else {**told, "content": None}


@pytest.mark.parametrize("kind", HARD)
def test_append_sends_the_same(
    official: Client, ours: Ours, proxy: Proxy, made: dict[str, str], kind: str
) -> None:
    sides = both(official, ours, proxy, made, "append", events=[HARD[kind]()])
    (theirs,), (mine,) = ([one for one in side if one.method == "POST"] for side in sides)
    assert mine.path == theirs.path
    bodies = [meaning(theirs.json()), meaning(mine.json())]
    assert typed(bodies[1]) == typed(bodies[0])
    for body in bodies:
        del body["eventMetadata"]
        body.pop("content", None)
    assert bodies[1] == bodies[0]
