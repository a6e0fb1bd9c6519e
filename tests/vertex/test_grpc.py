"""The API over gRPC: Google's own client against a server process, and REST's clients beside it.

The client for Go is not here, as its modules cannot be had where these tests run. What it sends
was read in its source, and the Python client sends the same in the same order.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from google.adk.events import Event as ADKEvent
from google.api_core import exceptions
from google.cloud.aiplatform_v1beta1 import (
    AppendEventRequest,
    SessionEvent,
    SessionServiceAsyncClient,
    SessionServiceClient,
)
from google.cloud.aiplatform_v1beta1.services.session_service import transports
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2, json_format, struct_pb2

import threadline.server
from servers import free_port
from servers_http import Command, plain, wait_until
from threadline import Event, InvalidInputError, MissingExtraError, VertexAiSessionService
from threadline.server.auth import KeyFile
from threadline.server.process import Settings
from threadline.sync import DatabaseSessionService
from threadline.testing.service_suite import HOSTILE_IDS
from vertex.clients import ENGINE, Client, python
from vertex.test_clients import EVENTS, USER, event, said

PARENT = f"projects/my-project/locations/us-central1/reasoningEngines/{ENGINE}"
GO = {"x-goog-api-client": "gl-go/1.26.6 gapic/1.126.0 gax/2.15.0 grpc/1.75.0 pb/1.36.9"}
_numbers = itertools.count()


class Server(Command):
    """`threadline serve --grpc-port`."""

    def __init__(self, db: str, *options: str) -> None:
        self.target = f"127.0.0.1:{free_port()}"
        super().__init__(db, *options, "--grpc-port", self.target.rpartition(":")[2])

    def __enter__(self) -> Self:
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()

    def client(self, metadata: dict[str, str] | None = None) -> SessionServiceClient:
        """Return Google's client, with this metadata in every call, on a connection of its own."""
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        options = [*unlimited, ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.insecure_channel(self.target, options=options)
        if metadata:
            channel = grpc.intercept_channel(channel, _Metadata(metadata))
        transport = transports.SessionServiceGrpcTransport(channel=channel)
        return SessionServiceClient(transport=transport)


class _Metadata(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    def __init__(self, given: dict[str, str]) -> None:
        self.given = given

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        kept = [one for one in details.metadata if one[0] not in self.given]
        return continuation(details._replace(metadata=[*kept, *self.given.items()]), request)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('server')}/sessions.db"


@pytest.fixture(scope="module")
def server(database: str) -> Iterator[Server]:
    with Server(database) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> SessionServiceClient:
    return server.client()


@pytest.fixture(scope="module")
def go(server: Server) -> SessionServiceClient:
    return server.client(GO)


@pytest.fixture(scope="module")
def official(server: Server) -> Iterator[Client]:
    """Return google-adk's VertexAiSessionService, which speaks REST."""
    running = python(server.url)
    yield running
    running.end()


@pytest.fixture
def ids() -> dict[str, str]:
    """Return a user and a session that no other test has."""
    number = next(_numbers)
    return {"userId": f"{USER}{number}", "sessionId": f"session-{number}"}


def create(
    client: SessionServiceClient, ids: dict[str, str], parent: str = PARENT, **fields: Any
) -> str:
    """Create a session; return its name, as the operation has it."""
    session = {"user_id": ids["userId"], **fields}
    request = {"parent": parent, "session": session, "session_id": ids["sessionId"]}
    operation = client.create_session(request=request)
    assert operation.done()
    name: str = operation.result().name
    assert operation.operation.name.startswith(f"{name}/operations/")
    return name


def append(client: SessionServiceClient, name: str, **fields: Any) -> None:
    given = {"author": "a", "invocation_id": "i", "timestamp": {"seconds": 1_760_000_000}}
    client.append_event(name=name, event={**given, **fields})


def state_of(client: SessionServiceClient, name: str) -> dict[str, Any]:
    session = client.get_session(name=name)
    return told(session).get("sessionState", {})


def told(message: Any) -> dict[str, Any]:
    """Return a message of the official client as JSON; its numbers are doubles."""
    found: dict[str, Any] = json_format.MessageToDict(type(message).pb(message))
    return found


def own(session: Any) -> dict[str, Any]:
    """Return the state of a session that other tests' sessions do not share."""
    state = told(session)["sessionState"]
    return {key: value for key, value in state.items() if not key.startswith("app:")}


def listed(client: SessionServiceClient, **request: Any) -> list[str]:
    return [one.name.rpartition("/")[2] for one in client.list_sessions(request=request)]


def texts(client: SessionServiceClient, name: str, **request: Any) -> list[str]:
    found = client.list_events(request={"parent": name, **request})
    return [one.content.parts[0].text for one in found]


# -- the calls --------------------------------------------------------------------------


def test_create_answers_with_an_operation_that_is_done(
    client: SessionServiceClient, ids: dict[str, str]
) -> None:
    session = {"user_id": ids["userId"], "session_state": {"k": 1}}
    made = client.create_session(
        request={"parent": PARENT, "session": session, "session_id": ids["sessionId"]}
    )
    assert made.result().name == f"{PARENT}/sessions/{ids['sessionId']}"
    assert own(made.result()) == {"k": 1}
    assert made.metadata.generic_metadata.create_time == made.result().create_time
    operations = client.transport.operations_client
    assert operations.get_operation(made.operation.name) == made.operation
    waited = client.wait_operation(operations_pb2.WaitOperationRequest(name=made.operation.name))
    assert operations_pb2.Operation.FromString(waited) == made.operation  # it leaves that to us


def test_create_makes_an_id_where_none_is_given(client: SessionServiceClient) -> None:
    made = client.create_session(parent=PARENT, session={"user_id": "u"}).result()
    assert client.get_session(name=made.name).name == made.name


def test_an_update_changes_what_the_mask_names(
    client: SessionServiceClient, ids: dict[str, str]
) -> None:
    name = create(client, ids, display_name="D", labels={"a": "b"}, session_state={"k": 1})
    mask = {"paths": ["display_name", "labels", "session_state", "ttl"]}
    session = {"name": name, "display_name": "E", "session_state": {"l": 2}, "ttl": "86400s"}
    updated = client.update_session(session=session, update_mask=mask)
    assert (updated.display_name, dict(updated.labels)) == ("E", {})
    assert updated.expire_time > dt.datetime.now(dt.UTC)
    assert state_of(client, name) == {"l": 2.0}
    session = {"name": name, "labels": {"c": "d"}}
    updated = client.update_session(request={"session": session})
    assert (updated.display_name, dict(updated.labels)) == ("E", {"c": "d"})


def test_delete_answers_with_an_operation_that_is_done(
    client: SessionServiceClient, ids: dict[str, str]
) -> None:
    name = create(client, ids)
    deleted = client.delete_session(name=name)
    assert deleted.done()
    assert deleted.result() == empty_pb2.Empty()
    operations = client.transport.operations_client
    assert operations.get_operation(deleted.operation.name) == deleted.operation
    with pytest.raises(exceptions.NotFound):
        client.get_session(name=name)


def test_sessions_are_filtered_and_come_page_by_page(
    client: SessionServiceClient, ids: dict[str, str]
) -> None:
    parent, user = f"{PARENT}-list", {"userId": "u"}
    names = [f"s{n}" for n in range(103)]
    for id in names:
        create(client, {**user, "sessionId": id}, parent)
    create(client, {"userId": ids["userId"], "sessionId": "other"}, parent, labels={"env": "dev"})
    assert listed(client, parent=parent, filter='user_id="u"') == names[::-1]
    assert listed(client, parent=parent, filter='labels.env="dev"') == ["other"]
    first = next(iter(client.list_sessions(parent=parent).pages))
    assert (len(first.sessions), bool(first.next_page_token)) == (100, True)
    pages = client.list_sessions(request={"parent": parent, "page_size": 40}).pages
    assert [len(page.sessions) for page in pages] == [40, 40, 24]
    assert listed(client, parent=parent, order_by="create_time")[:2] == ["s0", "s1"]


def test_events_are_filtered_and_come_page_by_page(
    client: SessionServiceClient, ids: dict[str, str]
) -> None:
    name = create(client, ids)
    for n in range(5):
        moment = {"seconds": 1_760_000_000 + n}
        append(client, name, timestamp=moment, content={"parts": [{"text": str(n)}]})
    assert texts(client, name) == list("01234")
    for size in (1, 2, 5, 9):
        assert texts(client, name, page_size=size) == list("01234")
        assert texts(client, name, page_size=size, order_by="timestamp desc") == list("43210")
    after = 'timestamp>="2025-10-09T10:53:22+02:00"'
    assert texts(client, name, filter=after) == list("234")
    assert texts(client, name, filter=after, page_size=2) == list("234")


def test_a_session_of_3000_events_comes_back_whole(
    client: SessionServiceClient, database: str, ids: dict[str, str]
) -> None:
    sent = [event(content={"parts": [{"text": f"word {n} " * 20}]}) for n in range(3000)]
    whose = {"app_name": ENGINE, "user_id": ids["userId"], "session_id": ids["sessionId"]}
    with DatabaseSessionService(database) as service:
        session = service.create_session(**whose)
        service.append_events(session, [Event.from_dict(one) for one in sent])
    pages = list(client.list_events(parent=f"{PARENT}/sessions/{ids['sessionId']}").pages)
    assert [len(page.session_events) for page in pages] == [100] * 30
    read = [told(one)["rawEvent"] for page in pages for one in page.session_events]
    assert [said(one) for one in read] == [said(one) for one in sent]


def test_the_asynchronous_client_is_served_too(server: Server, ids: dict[str, str]) -> None:
    async def run() -> list[str]:
        async with grpc.aio.insecure_channel(server.target) as channel:
            transport = transports.SessionServiceGrpcAsyncIOTransport(channel=channel)
            client = SessionServiceAsyncClient(transport=transport)
            request = {"parent": PARENT, "session": {"user_id": ids["userId"]}}
            name = (await (await client.create_session(request=request)).result()).name
            sent = [{"author": f"a{n}", "invocation_id": "i"} for n in range(20)]
            await asyncio.gather(*(client.append_event(name=name, event=one) for one in sent))
            return [one.author async for one in await client.list_events(parent=name)]

    assert sorted(asyncio.run(run())) == sorted(f"a{n}" for n in range(20))


# -- what is refused --------------------------------------------------------------------


def test_a_missing_session_is_not_found(client: SessionServiceClient) -> None:
    name = f"{PARENT}/sessions/missing"
    for call in (
        lambda: client.get_session(name=name),
        lambda: client.delete_session(name=name),
        lambda: client.update_session(request={"session": {"name": name, "display_name": "D"}}),
        lambda: list(client.list_events(parent=name)),
        lambda: append(client, name),
    ):
        with pytest.raises(exceptions.NotFound, match=f"Session {name} not found"):
            call()
    with pytest.raises(exceptions.NotFound):
        client.get_operation(operations_pb2.GetOperationRequest(name=f"{PARENT}/operations/x"))


def test_what_is_wrong_is_an_invalid_argument(
    client: SessionServiceClient, ids: dict[str, str]
) -> None:
    name = create(client, ids)
    for match, call in (
        ("already exists", lambda: create(client, ids)),
        ("session.user_id", lambda: client.create_session(parent=PARENT, session={})),
        ("event.author", lambda: client.append_event(name=name, event={"invocation_id": "i"})),
        ("event.author", lambda: client.append_event(AppendEventRequest(name=name))),
        ("page_size", lambda: client.list_sessions(request={"parent": PARENT, "page_size": -1})),
        ("page_token", lambda: client.list_events(request={"parent": name, "page_token": "x"})),
        ("'filter'", lambda: client.list_sessions(request={"parent": PARENT, "filter": "x"})),
        ("'name'", lambda: client.get_session(name=f"{name}/events")),
        ("'parent'", lambda: client.list_events(parent=PARENT)),
        ("'name'", lambda: client.get_session(name="")),
        ("NaN", lambda: append(client, name, actions={"state_delta": {"k": float("nan")}})),
    ):
        with pytest.raises(exceptions.InvalidArgument, match=match):
            call()
    assert texts(client, name) == []


def test_what_is_no_message_is_an_invalid_argument(server: Server) -> None:
    with grpc.insecure_channel(server.target) as channel:
        service = "/google.cloud.aiplatform.v1beta1.SessionService"
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"{service}/GetSession")(b"\xff")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_another_event_with_the_same_id_is_a_conflict(
    client: SessionServiceClient, ids: dict[str, str]
) -> None:
    name = create(client, ids)
    for _ in range(2):
        append(client, name, raw_event={"id": "e", "output": 1})
    with pytest.raises(exceptions.AlreadyExists):
        append(client, name, raw_event={"id": "e", "output": 2})


def test_what_is_not_served_is_unimplemented(client: SessionServiceClient) -> None:
    with pytest.raises(exceptions.MethodNotImplemented):
        client.list_operations(operations_pb2.ListOperationsRequest(name=PARENT))


def test_an_event_that_grpc_cannot_carry_is_an_error(
    client: SessionServiceClient, server: Server, ids: dict[str, str]
) -> None:
    name = create(client, ids)
    url = f"{server.url}/v1beta1/{name}"
    sent = {"author": "a", "invocationId": "i", "content": {"parts": [{"text": "\ud800"}]}}
    assert plain.post(f"{url}:appendEvent", content=json.dumps(sent)).status_code == 200
    with pytest.raises(exceptions.InternalServerError, match="REST can"):
        list(client.list_events(parent=name))
    assert client.get_session(name=name).name == name


def test_a_message_is_as_large_as_a_body_may_be(tmp_path: Path, ids: dict[str, str]) -> None:
    def blob(count: int) -> Any:
        data = b"\xff" * count
        return {"parts": [{"inline_data": {"mime_type": "image/png", "data": data}}]}

    with Server(f"sqlite:///{tmp_path}/s.db", "--max-body-mb", "8") as server:
        client = server.client()
        name = create(client, ids)
        append(client, name, content=blob(5_000_000))
        (read,) = client.list_events(parent=name)
        assert read.content.parts[0].inline_data.data == b"\xff" * 5_000_000
        with pytest.raises(exceptions.ResourceExhausted):
            append(client, name, content=blob(8_000_001))
        with pytest.raises(exceptions.InvalidArgument, match="8,000,000"):
            append(client, name, content=blob(7_000_000))  # 9 MB as JSON, as by REST
        assert len(list(client.list_events(parent=name))) == 1


# -- interchange ------------------------------------------------------------------------


def from_adk(sent: dict[str, Any], ids: dict[str, str]) -> Any:
    """Return an event as adk-go sends it: typed fields only, of which it has fewer than the API."""
    names = ("author", "invocationId", "content", "errorCode", "errorMessage")
    message = {name: sent[name] for name in names if name in sent}
    meta = ("partial", "turnComplete", "interrupted", "branch", "longRunningToolIds")
    meta = (*meta, "customMetadata", "groundingMetadata")
    message["eventMetadata"] = {name: sent[name] for name in meta if name in sent}
    actions = sent.get("actions", {})
    deltas = ("stateDelta", "artifactDelta")
    message["actions"] = {name: actions[name] for name in deltas if name in actions}
    event = json_format.ParseDict(message, SessionEvent.pb(SessionEvent()))
    seconds = round(sent["timestamp"] * 1000)
    event.timestamp.FromMilliseconds(seconds)
    return event


NOT_SENT_BY_GO = ("id", "usageMetadata", "modelVersion")
NOT_SENT_ACTIONS = ("transferToAgent", "escalate", "skipSummarization", "rewindBeforeInvocationId")


def by_go(read: dict[str, Any]) -> dict[str, Any]:
    """Return what an event says of what adk-go sends; a flag that is false is not sent."""
    kept = {name: value for name, value in said(read).items() if name not in NOT_SENT_BY_GO}
    for name in NOT_SENT_ACTIONS:
        kept.get("actions", {}).pop(name, None)
    return {name: value for name, value in kept.items() if value is not False}


GROUNDED = event(
    content={"role": "model", "parts": [{"text": "It rains."}]},
    groundingMetadata={
        "webSearchQueries": ["rain"],
        "retrievalQueries": ["r"],
        "searchEntryPoint": {"renderedContent": "<b>", "sdkBlob": "AAH//g=="},
        "groundingChunks": [
            {"web": {"uri": "https://rain.example", "title": "Rain"}},
            {
                "retrievedContext": {
                    "uri": "gs://b/f",
                    "documentName": "d",
                    "ragChunk": {"text": "t", "pageSpan": {"firstPage": 1, "lastPage": 2}},
                }
            },
            {
                "maps": {
                    "placeId": "p",
                    "placeAnswerSources": {"reviewSnippets": [{"googleMapsUri": "https://m"}]},
                }
            },
        ],
        "groundingSupports": [
            {
                "groundingChunkIndices": [0, 1],
                "confidenceScores": [0.5],
                "segment": {"startIndex": 1, "endIndex": 9, "text": "It rains."},
            }
        ],
        "retrievalMetadata": {"googleSearchDynamicRetrievalScore": 0.25},
        "googleMapsWidgetContextToken": "w",
    },
)
ALL = {**EVENTS, "grounding": lambda: {**GROUNDED, "id": f"grounded{next(_numbers)}"}}


@pytest.mark.parametrize("kind", ALL)
def test_an_event_that_grpc_appends_rest_reads(
    go: SessionServiceClient, official: Client, server: Server, kind: str, ids: dict[str, str]
) -> None:
    sent = ALL[kind]()
    name = create(go, ids)
    go.append_event(AppendEventRequest.wrap(_request(name, from_adk(sent, ids))))
    (read,) = official("get", **ids)["events"]
    assert by_go(read) == by_go(sent)
    assert by_go(ours(server, ids).events[0].to_dict() | {"seq": None}) == by_go(sent)


def _request(name: str, event: Any) -> Any:
    return AppendEventRequest.pb()(name=name, event=event)


def ours(server: Server, ids: dict[str, str]) -> Any:
    """Return what threadline's own VertexAiSessionService reads."""

    async def run() -> Any:
        async with VertexAiSessionService("p", "l", ENGINE, base_url=server.url) as service:
            return await service.get_session(
                app_name=ENGINE, user_id=ids["userId"], session_id=ids["sessionId"]
            )

    return asyncio.run(run())


@pytest.mark.parametrize("kind", ALL)
def test_an_event_that_rest_appends_grpc_reads_in_both_forms(
    go: SessionServiceClient, official: Client, kind: str, ids: dict[str, str]
) -> None:
    sent = ALL[kind]()
    official("create", **ids)
    official("append", **ids, events=[sent])
    (read,) = go.list_events(parent=f"{PARENT}/sessions/{ids['sessionId']}")
    raw = json_format.MessageToDict(SessionEvent.pb(read).raw_event)
    assert ADKEvent.model_validate(raw) == ADKEvent.model_validate(sent)
    assert read.name.rpartition("/")[2] == sent["id"]
    # The typed form: what adk-go would have sent of this event, and the actions it leaves out.
    expected, found = told(SessionEvent.wrap(from_adk(sent, ids))), told(read)
    for form in (expected, found):
        form["eventMetadata"] = {
            name: value for name, value in form.get("eventMetadata", {}).items() if value
        }
        form["eventMetadata"].get("customMetadata", {}).pop("_usage_metadata", None)
        form.setdefault("content", {})
    for name in ("content", "eventMetadata", "author", "invocationId", "timestamp"):
        assert found[name] == expected[name]
    actions = sent.get("actions", {})
    for name in ("stateDelta", "artifactDelta", "escalate", "skipSummarization"):
        assert found["actions"].get(name, {}) == actions.get(name, {})
    assert found["actions"].get("transferAgent") == actions.get("transferToAgent")


def test_state_of_every_scope_is_the_same_to_both(
    go: SessionServiceClient, official: Client, server: Server, ids: dict[str, str]
) -> None:
    key = f"app:{ids['sessionId']}"
    state = {"k": 1, "n": {"a_b": [1, {"cD": 2.5}]}, key: "a", "user:u": "b", "temp:t": 0}
    name = create(go, ids, session_state=state)
    append(go, name, actions={"state_delta": {"k": 2, "user:v": [], "temp:t": 1, "gone": None}})
    expected = {"k": 2, "n": state["n"], key: "a", "user:u": "b", "user:v": []}
    read = official("get", **ids)["state"]
    assert {name: value for name, value in read.items() if name in expected} == expected
    assert (type(read["k"]), "temp:t" in read) == (int, False)
    official("append", **ids, events=[event(actions={"stateDelta": {"k": {"x": None}, key: 3}})])
    found = state_of(go, name)
    assert {one: found[one] for one in expected} == {**expected, "k": {"x": None}, key: 3}
    assert ours(server, ids).state["k"] == {"x": None}


def test_numbers_beyond_doubles_are_rounded(
    client: SessionServiceClient, official: Client, ids: dict[str, str]
) -> None:
    name = create(client, ids)
    official("append", **ids, events=[event(actions={"stateDelta": {"k": 2**60 + 1}})])
    assert state_of(client, name)["k"] == float(2**60)
    assert official("get", **ids)["state"]["k"] == 2**60 + 1


@pytest.mark.parametrize("id", [*HOSTILE_IDS, "a:appendEvent", "100%", "%2F", "..", "s?x=1#y"])
def test_any_id_is_kept_verbatim(client: SessionServiceClient, database: str, id: str) -> None:
    user = "u"
    name = create(client, {"userId": user, "sessionId": id}, f"{PARENT}-ids")
    append(client, name, content={"parts": [{"text": id}]})
    assert client.get_session(name=name).user_id == user
    with DatabaseSessionService(database) as service:
        found = service.get_session(app_name=f"{ENGINE}-ids", user_id=user, session_id=id)
    assert found is not None
    assert found.events[0].content.text == id
    client.delete_session(name=name)


# -- the calls of adk-go ----------------------------------------------------------------


class Go:
    """The calls that adk-go's session/vertexai makes, in its order, as read in its source."""

    def __init__(self, client: SessionServiceClient) -> None:
        self.client = client

    def create(self, user: str, id: str = "", state: dict[str, Any] | None = None) -> Any:
        session: dict[str, Any] = {"user_id": user}
        if state:
            session["session_state"] = state
        made = self.client.create_session(
            request={"parent": PARENT, "session": session, "session_id": id}
        )
        name = made.operation.name
        begin, end = name.rindex("/sessions/") + len("/sessions/"), name.rindex("/operations/")
        return self.get_session(user, name[begin:end])

    def get_session(self, user: str, id: str) -> Any:
        session = self.client.get_session(name=f"{PARENT}/sessions/{id}")
        assert session.user_id == user, "the session does not belong to the user"
        assert session.update_time
        return session

    def get(self, user: str, id: str, after: str = "") -> tuple[Any, list[Any]]:
        session = self.get_session(user, id)
        request = {"parent": f"{PARENT}/sessions/{id}"}
        if after:
            request["filter"] = f'timestamp>="{after}"'
        events = []
        for one in self.client.list_events(request=request):
            assert one.name.rpartition("/")[2]
            assert one.timestamp
            events.append(one)
        return session, events

    def list(self, user: str = "") -> list[str]:
        request = {"parent": PARENT}
        if user:
            request["filter"] = f'userId="{user}"'
        return [one.name.rpartition("/")[2] for one in self.client.list_sessions(request=request)]

    def append(self, id: str, event: Any) -> None:
        request = _request(f"{PARENT}/sessions/{id}", event)
        self.client.append_event(AppendEventRequest.wrap(request))

    def delete(self, user: str, id: str) -> None:
        try:
            self.get_session(user, id)
        except exceptions.NotFound:
            return
        deleted = self.client.delete_session(name=f"{PARENT}/sessions/{id}")
        assert deleted.operation.done  # or it asks for the operation, with pauses


def test_the_calls_of_adk_go_in_its_order(
    go: SessionServiceClient, official: Client, ids: dict[str, str]
) -> None:
    user, id = ids["userId"], ids["sessionId"]
    client = Go(go)
    made = client.create(user, id, {"k": 1, "user:u": "x", "temp:t": 1})
    assert own(made) == {"k": 1, "user:u": "x"}
    for text in ("one", "two"):
        sent = event(content={"role": "user", "parts": [{"text": text}]})
        client.append(id, from_adk(sent, ids))
    # An event of a workflow has a raw form too, whose time is text.
    sent = from_adk(event(content={"role": "model", "parts": [{"text": "three"}]}), ids)
    raw = {
        "id": "w1",
        "timestamp": "2025-10-09T08:53:20Z",
        "output": {"n": 1},
        "nodeInfo": {"path": "wf/A@1"},
        "routes": ["r"],
        "content": {"role": "model", "parts": [{"text": "three"}]},
        "actions": {"stateDelta": {"done": True}},
    }
    sent.raw_event.CopyFrom(json_format.ParseDict(raw, struct_pb2.Struct()))
    client.append(id, sent)
    session, events = client.get(user, id)
    assert [one.content.parts[0].text for one in events] == ["one", "two", "three"]
    assert own(session) == {"k": 1, "user:u": "x", "done": True}
    assert told(events[2])["rawEvent"]["routes"] == ["r"]
    at = dt.datetime.fromtimestamp(int(events[1].timestamp.timestamp()), dt.UTC)
    _, later = client.get(user, id, at.isoformat())
    assert [one.name for one in later] == [one.name for one in events[1:]]
    assert [one["id"] for one in official("get", **ids)["events"]][2] == "w1"
    assert client.list(user) == [id]
    assert id in client.list()
    client.delete(user, id)
    client.delete(user, id)
    assert client.list(user) == []


def test_adk_go_finds_the_session_that_it_did_not_name(go: SessionServiceClient) -> None:
    made = Go(go).create("u")
    assert Go(go).get("u", made.name.rpartition("/")[2])[1] == []


@pytest.mark.parametrize("user", ['a"b', "a\\b", 'a" AND user_id="b', '"', "\\", 'x\\"'])
def test_a_user_that_adk_go_does_not_escape_is_found(
    go: SessionServiceClient, ids: dict[str, str], user: str
) -> None:
    create(go, {"userId": user, "sessionId": ids["sessionId"]})
    create(go, {"userId": "ab", "sessionId": f"{ids['sessionId']}-other"})
    assert ids["sessionId"] in Go(go).list(user)
    assert f"{ids['sessionId']}-other" not in Go(go).list(user)


# -- keys -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFile:
    return KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")


@pytest.fixture(scope="module")
def all_rights(keys: KeyFile) -> str:
    return keys.create(writes=True)


@pytest.fixture(scope="module")
def guarded(
    keys: KeyFile, all_rights: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("guarded")
    with Server(f"sqlite:///{folder}/s.db", "--keys", str(keys._path)) as running:
        yield running


@pytest.mark.parametrize("way", ["authorization", "x-goog-api-key"])
def test_a_key_opens_either_way(
    guarded: Server, all_rights: str, way: str, ids: dict[str, str]
) -> None:
    given = f"Bearer {all_rights}" if way == "authorization" else all_rights
    client = guarded.client({way: given})
    name = create(client, ids)
    assert client.get_session(name=name).user_id == ids["userId"]


def test_without_a_key_nothing_is_answered(guarded: Server) -> None:
    for metadata in ({}, {"authorization": "Bearer tl_wrong"}, {"x-goog-api-key": "x"}):
        client = guarded.client(metadata)
        for call in (
            lambda client=client: client.get_session(name=f"{PARENT}/sessions/s"),
            lambda client=client: client.create_session(parent=PARENT, session={"user_id": "u"}),
            lambda client=client: append(client, f"{PARENT}/sessions/s"),
            lambda client=client: client.list_sessions(parent=PARENT),
        ):
            with pytest.raises(exceptions.Unauthenticated):
                call()


def test_a_key_opens_what_it_is_for(
    guarded: Server, keys: KeyFile, all_rights: str, ids: dict[str, str]
) -> None:
    name = create(guarded.client({"x-goog-api-key": all_rights}), ids)
    reader = guarded.client({"x-goog-api-key": keys.create()})
    other_app = guarded.client({"x-goog-api-key": keys.create(apps=["other"], writes=True)})
    other_user = guarded.client({"x-goog-api-key": keys.create(users=["other"], writes=True)})
    assert reader.get_session(name=name).name == name
    for client in (reader, other_app):
        with pytest.raises(exceptions.PermissionDenied):
            append(client, name)
    with pytest.raises(exceptions.NotFound):
        other_user.get_session(name=name)


def test_a_write_leaves_an_audit_line_and_every_call_is_counted(
    guarded: Server, all_rights: str, ids: dict[str, str]
) -> None:
    name = create(guarded.client({"x-goog-api-key": all_rights}), ids)
    append(guarded.client({"x-goog-api-key": all_rights}), name)
    (line,) = [one for one in guarded.written().splitlines() if f"{name}:appendEvent" in one]
    audit = json.loads(line[line.index("{") :])
    assert audit == {
        "key": all_rights.split("_")[1],
        "app": ENGINE,
        "user": ids["userId"],
        "method": "POST",
        "path": f"/v1beta1/{name}:appendEvent",
        "status": 200,
    }
    assert all_rights not in guarded.written()
    numbers = plain.get(f"{guarded.url}/metrics", headers={"x-goog-api-key": all_rights}).text
    assert 'sessions/{session:id}:appendEvent",status="200"}' in numbers


def test_a_forwarded_call_needs_a_key(server: Server) -> None:
    client = server.client({"x-forwarded-for": "192.0.2.1"})
    with pytest.raises(exceptions.Unauthenticated):
        client.list_sessions(parent=PARENT)


# -- the process ------------------------------------------------------------------------


def test_workers_share_the_port_and_end_gracefully(tmp_path: Path, ids: dict[str, str]) -> None:
    db = f"sqlite:///{tmp_path}/s.db"
    with Server(db, "--workers", "2") as server:
        name = create(server.client(), ids)
        answered: list[str] = []

        def write(writer: int) -> None:
            client = server.client()
            for n in range(2000):
                id = f"{writer}-{n}"
                try:
                    append(client, name, raw_event={"id": id})
                except (exceptions.ServiceUnavailable, exceptions.Cancelled):
                    return  # it was not taken, and so must not be stored
                answered.append(id)

        writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for writer in writers:
            writer.start()
        wait_until(lambda: len(answered) > 50)
        code, written = server.end()
        for writer in writers:
            writer.join()
    assert code == 0, written
    with DatabaseSessionService(db) as service:
        session = service.get_session(
            app_name=ENGINE, user_id=ids["userId"], session_id=ids["sessionId"]
        )
    assert session is not None
    assert {one.id for one in session.events} == set(answered)


def test_a_port_that_is_taken_is_one_message(server: Server, tmp_path: Path) -> None:
    port = int(server.target.rpartition(":")[2])
    with pytest.raises(InvalidInputError, match=f"Cannot listen on 127.0.0.1:{port}"):
        Settings(db=f"sqlite:///{tmp_path}/s.db", grpc_port=port).check()


@pytest.mark.parametrize("module", ["grpc", "google.protobuf"])
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    for name in ("vertex_grpc", "messages"):
        monkeypatch.delitem(sys.modules, f"threadline.server.{name}", raising=False)
        monkeypatch.delattr(threadline.server, name, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'threadline\[grpc\]'"):
        Settings(db="sqlite:///s.db", grpc_port=free_port()).check()
