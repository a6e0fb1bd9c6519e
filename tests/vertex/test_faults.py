"""The Vertex AI service where calls fail: the right result, or a clear error within its time."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from google.oauth2.credentials import Credentials

from servers import free_port
from servers_http import served
from threadline import (
    Event,
    GetSessionConfig,
    IncompleteReadError,
    InMemorySessionService,
    InvalidInputError,
    PermissionDeniedError,
    QuotaExceededError,
    Session,
    StorageUnavailableError,
    UnauthenticatedError,
    UnsupportedValueError,
    VertexAiSessionService,
)
from vertex.proxy import (
    Proxy,
    Reply,
    breaking,
    changing,
    cutting,
    failing,
    losing,
    refusing,
    saying,
)

pytestmark = pytest.mark.soak

IDS: Any = {"app_name": "123", "user_id": "u"}
APPEND = ":appendEvent"
EVENTS = "/events"
BOUND_S = 10.0
"""Far more than the times given below, on a machine with other work."""


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with served(InMemorySessionService()) as url, Proxy(url) as running:
        yield running


@pytest.fixture
def service(proxy: Proxy) -> VertexAiSessionService:
    return VertexAiSessionService("p", "l", base_url=proxy.url, timeout_s=1.0, retry_for_s=1.0)


def run(service: VertexAiSessionService, work: Any) -> Any:
    async def on_a_loop() -> Any:
        async with service:
            return await work

    return asyncio.run(on_a_loop())


@contextmanager
def bounded() -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < BOUND_S


async def texts(service: VertexAiSessionService, session: Session) -> list[str]:
    found = await service.get_session(**IDS, session_id=session.id)
    assert found is not None
    return [event.content.text for event in found.events if event.content]


def say(text: str, **fields: Any) -> Event:
    return Event(author="user", invocation_id="i", content=text, **fields)


async def appended(service: VertexAiSessionService, proxy: Proxy, *faults: Any) -> list[str]:
    session = await service.create_session(**IDS)
    await service.append_event(session, say("one"))
    proxy.faults += faults
    proxy.log.clear()
    await service.append_event(session, say("two"))
    assert session.revision == 2
    return await texts(service, session)


# -- an append is stored once ---------------------------------------------------------------

NOTHING_DONE = {
    "a refusal for the quota": refusing(429),
    "a refusal that says when": refusing(429, **{"retry-after": "0"}),
    "a server that is not available": refusing(503),
    "a connection that breaks": breaking,
}
DONE = {
    "a lost answer": losing,
    "a gateway that gives up": failing,
    "an answer that is no JSON": None,
    "an answer that ends in the middle": cutting,
}


@pytest.mark.parametrize("name", NOTHING_DONE)
def test_an_append_that_did_nothing_is_sent_again(
    service: VertexAiSessionService, proxy: Proxy, name: str
) -> None:
    outcome = run(service, appended(service, proxy, (APPEND, NOTHING_DONE[name])))
    assert outcome == ["one", "two"]
    assert proxy.count(APPEND) == 2


@pytest.mark.parametrize("name", DONE)
def test_an_append_that_was_stored_is_not_sent_again(
    service: VertexAiSessionService, proxy: Proxy, name: str
) -> None:
    def babbling(request: Any, forward: Any) -> Reply:
        forward(request)
        return Reply(200, b"<html>")

    outcome = run(service, appended(service, proxy, (APPEND, DONE[name] or babbling)))
    assert outcome == ["one", "two"]
    assert proxy.count(APPEND) == 1


def test_an_append_is_not_sent_again_while_nobody_can_look(
    service: VertexAiSessionService, proxy: Proxy
) -> None:
    looks = [(EVENTS, refusing(503)) for _ in range(50)]
    with bounded(), pytest.raises(StorageUnavailableError, match="not known"):
        run(service, appended(service, proxy, (APPEND, losing), *looks))
    assert proxy.count(APPEND) == 1


@pytest.mark.parametrize(
    ("status", "error"), [(429, QuotaExceededError), (503, StorageUnavailableError)]
)
def test_an_append_that_is_refused_for_long_raises(
    service: VertexAiSessionService, proxy: Proxy, status: int, error: type[Exception]
) -> None:
    faults = [(APPEND, refusing(status)) for _ in range(50)]
    with bounded(), pytest.raises(error, match=str(status)):
        run(service, appended(service, proxy, *faults))


def test_an_event_that_the_handle_holds_is_not_sent(
    service: VertexAiSessionService, proxy: Proxy
) -> None:
    async def twice() -> None:
        session = await service.create_session(**IDS)
        event = say("one")
        await service.append_event(session, event)
        loaded = await service.get_session(**IDS, session_id=session.id)
        assert loaded is not None
        assert (await service.append_event(loaded, event)).seq == 1

    run(service, twice())
    assert proxy.count(APPEND) == 1


def test_a_batch_that_breaks_off_goes_on_where_it_was(
    service: VertexAiSessionService, proxy: Proxy
) -> None:
    async def breaking_off() -> list[str]:
        session = await service.create_session(**IDS)
        events = [say("one"), say("two"), say("three")]
        answers = iter([False, True])

        def second(request: Any, forward: Any) -> Reply:
            return forward(request) if not next(answers) else Reply(403, b"{}")

        proxy.faults += [(APPEND, second), (APPEND, second)]
        with pytest.raises(PermissionDeniedError):
            await service.append_events(session, events)
        assert session.revision == 1
        await service.append_events(session, events)
        return await texts(service, session)

    assert run(service, breaking_off()) == ["one", "two", "three"]
    assert proxy.count(APPEND) == 4


# -- a read is whole or fails ---------------------------------------------------------------


async def filled(service: VertexAiSessionService, count: int = 7) -> Session:
    session = await service.create_session(**IDS)
    await service.append_events(session, [say(str(n)) for n in range(count)])
    return session


async def read(service: VertexAiSessionService, proxy: Proxy, *faults: Any) -> list[str]:
    session = await filled(service)
    proxy.faults += faults
    return await texts(service, session)


WHOLE = [str(n) for n in range(7)]


def short(request: Any, forward: Any) -> Reply:
    return forward(request._replace(query={**request.query, "pageSize": "2"}))


READS = {
    "a connection that breaks": breaking,
    "a lost answer": losing,
    "an answer that ends in the middle": cutting,
    "a quota": refusing(429),
    "a gateway that gives up": refusing(502),
    "an answer that is no JSON": saying(b"{"),
}


@pytest.mark.parametrize("name", READS)
def test_a_read_is_tried_again(service: VertexAiSessionService, proxy: Proxy, name: str) -> None:
    assert run(service, read(service, proxy, (EVENTS, READS[name]))) == WHOLE


def test_short_pages_are_followed_to_the_end(service: VertexAiSessionService, proxy: Proxy) -> None:
    faults = [(EVENTS, short) for _ in range(4)]
    assert run(service, read(service, proxy, *faults)) == WHOLE


def test_an_empty_page_is_not_the_end(service: VertexAiSessionService, proxy: Proxy) -> None:
    async def paged() -> list[str]:
        session = await filled(service)
        proxy.faults += [(EVENTS, short), (EVENTS, saying(b'{"nextPageToken": "x"}'))]

        def from_the_start(request: Any, forward: Any) -> Reply:
            return forward(request._replace(query={"pageToken": token}))

        first = short(proxy.log[-1]._replace(method="GET", path=path(session)), proxy.forward)
        token = json.loads(first.body)["nextPageToken"]
        proxy.faults += [(EVENTS, from_the_start)]
        return await texts(service, session)

    def path(session: Session) -> str:
        return f"/v1beta1/projects/p/locations/l/reasoningEngines/123/sessions/{session.id}/events"

    assert run(service, paged()) == WHOLE


def test_pages_without_an_end_are_an_error(service: VertexAiSessionService, proxy: Proxy) -> None:
    def endless(page: Any) -> Any:
        return {**page, "nextPageToken": "again"}

    def first(request: Any, forward: Any) -> Reply:
        return changing(endless)(request._replace(query={}), forward)

    faults = [(EVENTS, first) for _ in range(3)]
    with bounded(), pytest.raises(IncompleteReadError, match="twice"):
        run(service, read(service, proxy, *faults))


def test_a_page_that_cannot_be_read_is_an_error_and_no_shorter_history(
    service: VertexAiSessionService, proxy: Proxy
) -> None:
    faults = [(EVENTS, short), *((EVENTS, refusing(503)) for _ in range(50))]
    with bounded(), pytest.raises(StorageUnavailableError):
        run(service, read(service, proxy, *faults))


def test_a_refresh_that_misses_a_known_event_is_an_error(
    service: VertexAiSessionService, proxy: Proxy
) -> None:
    async def refreshed() -> None:
        session = await filled(service)
        proxy.faults += [(EVENTS, changing(lambda page: {"sessionEvents": []}))]
        with pytest.raises(IncompleteReadError):
            await service.refresh(session)
        assert session.revision == 7

    run(service, refreshed())


def test_an_answer_that_does_not_come_is_an_error_in_time(
    service: VertexAiSessionService, proxy: Proxy
) -> None:
    over = threading.Event()

    def slow(request: Any, forward: Any) -> None:
        over.wait(30)

    faults = [(EVENTS, slow) for _ in range(10)]
    with bounded(), pytest.raises(StorageUnavailableError, match="No answer"):
        run(service, read(service, proxy, *faults))
    over.set()


def test_a_server_that_is_not_there_is_an_error_in_time() -> None:
    service = VertexAiSessionService(
        "p", "l", base_url=f"http://127.0.0.1:{free_port()}", retry_for_s=0.3
    )
    with bounded(), pytest.raises(StorageUnavailableError, match="cannot be reached"):
        run(service, service.create_session(**IDS))


# -- operations -----------------------------------------------------------------------------


def pending(operation: Any) -> Any:
    return {"name": operation["name"]}


def test_an_operation_is_waited_for(service: VertexAiSessionService, proxy: Proxy) -> None:
    proxy.faults += [("POST", changing(pending)), ("/operations/", changing(pending))]
    session = run(service, service.create_session(**IDS, state={"a": 1}))
    assert session.state == {"a": 1}
    assert proxy.count("/operations/") == 2


def test_an_operation_that_never_ends_is_an_error_in_time(
    service: VertexAiSessionService, proxy: Proxy
) -> None:
    proxy.faults += [("POST", changing(pending))]
    proxy.faults += [("/operations/", changing(pending)) for _ in range(100)]
    with bounded(), pytest.raises(StorageUnavailableError, match="not finished"):
        run(service, service.create_session(**IDS))


def test_an_operation_that_failed_is_its_error(
    service: VertexAiSessionService, proxy: Proxy
) -> None:
    failed = {"name": "o", "done": True, "error": {"code": 3, "message": "the reason"}}
    proxy.faults += [("POST", saying(json.dumps(failed).encode()))]
    with pytest.raises(Exception, match="the reason"):
        run(service, service.create_session(**IDS))


@pytest.mark.parametrize("fault", [losing, failing, breaking], ids=["lost", "failed", "broken"])
def test_a_session_without_an_id_is_created_once(
    service: VertexAiSessionService, proxy: Proxy, fault: Any
) -> None:
    async def created() -> int:
        await service.create_session(**IDS)
        return len((await service.list_sessions(**IDS)).sessions)

    proxy.faults += [("POST", fault)]
    assert run(service, created()) == 1


def test_a_session_with_a_chosen_id_may_be_another_callers(
    service: VertexAiSessionService, proxy: Proxy
) -> None:
    proxy.faults += [("POST", losing)]
    with pytest.raises(StorageUnavailableError, match="not known"):
        run(service, service.create_session(**IDS, session_id="chosen"))


def test_a_delete_whose_answer_was_lost_is_done(
    service: VertexAiSessionService, proxy: Proxy
) -> None:
    async def deleted() -> Any:
        session = await filled(service, 1)
        proxy.faults += [("DELETE", losing)]
        await service.delete_session(**IDS, session_id=session.id)
        return await service.get_session(**IDS, session_id=session.id)

    assert run(service, deleted()) is None


def test_a_delete_of_another_users_session_is_not_sent(
    service: VertexAiSessionService, proxy: Proxy
) -> None:
    async def kept() -> Any:
        session = await service.create_session(**IDS)
        await service.delete_session(app_name="123", user_id="other", session_id=session.id)
        return await service.get_session(**IDS, session_id=session.id)

    assert run(service, kept()) is not None
    assert proxy.count("DELETE") == 0


# -- what is asked of the server ------------------------------------------------------------


def test_a_time_is_a_filter_on_the_server(service: VertexAiSessionService, proxy: Proxy) -> None:
    async def late() -> Any:
        session = await service.create_session(**IDS)
        for n in range(3):
            await service.append_event(session, say(str(n), timestamp=float(n)))
        proxy.log.clear()
        config = GetSessionConfig(after_timestamp=1.0)
        return await service.get_session(**IDS, session_id=session.id, config=config)

    assert [event.timestamp for event in run(service, late()).events] == [1.0, 2.0]
    (asked,) = [one.query for one in proxy.log if one.path.endswith(EVENTS)]
    assert asked == {"filter": 'timestamp>="1970-01-01T00:00:01Z"'}


def test_a_user_is_a_filter_on_the_server_whatever_its_characters(
    service: VertexAiSessionService, proxy: Proxy
) -> None:
    users = ['a" OR user_id="b', "back\\slash", "AND", "b"]

    async def listed() -> Any:
        for user in users:
            await service.create_session(app_name="123", user_id=user)
        found = await service.list_sessions(app_name="123", user_id=users[0])
        return [one.user_id for one in found.sessions]

    assert run(service, listed()) == users[:1]
    assert proxy.log[-1].query == {"filter": r'user_id="a\" OR user_id=\"b"'}


def test_what_the_api_refuses_is_not_sent_where_it_would_refuse_it(
    service: VertexAiSessionService, proxy: Proxy
) -> None:
    content = {"role": "user", "parts": [{"text": "hi", "partMetadata": {"k": 1}}]}

    async def there_and_back() -> Any:
        session = await service.create_session(**IDS, state={"temp:t": 1, "k": 2})
        await service.append_event(session, Event.from_dict({"content": content, "timestamp": 1.0}))
        return await service.get_session(**IDS, session_id=session.id)

    read = run(service, there_and_back())
    (event,) = read.events
    assert event.to_dict()["content"] == content
    assert (event.author, event.invocation_id) == ("", "")
    created, appended = (one.json() for one in proxy.log if one.method == "POST")
    assert created["sessionState"] == {"k": 2}
    assert appended["content"]["parts"] == [{"text": "hi"}]
    assert (appended["author"], appended["invocationId"]) == ("-", "-")
    assert appended["rawEvent"]["content"] == content


# -- clear errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, UnauthenticatedError),
        (403, PermissionDeniedError),
        (404, InvalidInputError),
        (400, InvalidInputError),
    ],
)
def test_a_refusal_has_a_class_and_the_servers_words(
    service: VertexAiSessionService, proxy: Proxy, status: int, error: type[Exception]
) -> None:
    proxy.faults += [("POST", refusing(status))]
    with pytest.raises(error, match="said so"):
        run(service, service.create_session(**IDS))
    assert proxy.count("POST") == 1


def test_what_a_struct_would_change_is_refused_before_it_is_sent(
    service: VertexAiSessionService, proxy: Proxy
) -> None:
    async def refused() -> None:
        session = await service.create_session(**IDS)
        for value in (2**53 + 1, float("nan"), "\ud800"):
            with pytest.raises(UnsupportedValueError, match="deep"):
                await service.append_events(
                    session, [say("good"), say("bad", state={"k": [{"deep": value}]})]
                )

    run(service, refused())
    assert proxy.count(APPEND) == 0


# -- credentials ----------------------------------------------------------------------------


def test_a_token_is_fetched_once_and_sent(proxy: Proxy) -> None:
    proxy.faults += [("/token", saying(b'{"access_token": "fresh", "expires_in": 3600}'))]
    credentials = Credentials(
        None,
        refresh_token="r",
        token_uri=f"{proxy.url}/token",
        client_id="c",
        client_secret="s",
    )
    service = VertexAiSessionService("p", "l", base_url=proxy.url, credentials=credentials)
    run(service, service.create_session(**IDS))
    assert proxy.count("/token") == 1
    sent = [one.headers.get("authorization") for one in proxy.log if "/token" not in one.path]
    assert sent == ["Bearer fresh", "Bearer fresh"]


def test_a_token_that_was_revoked_is_fetched_again(proxy: Proxy) -> None:
    proxy.faults += [
        ("POST /v1beta1", refusing(401)),
        ("/token", saying(b'{"access_token": "fresh", "expires_in": 3600}')),
    ]
    credentials = Credentials(
        "revoked",
        refresh_token="r",
        token_uri=f"{proxy.url}/token",
        client_id="c",
        client_secret="s",
    )
    service = VertexAiSessionService("p", "l", base_url=proxy.url, credentials=credentials)
    assert run(service, service.create_session(**IDS)).id


def test_a_token_comes_from_the_metadata_server_of_a_machine_of_googles(proxy: Proxy) -> None:
    told = {"access_token": "of-the-machine", "expires_in": 3600, "email": "a@b", "scopes": []}
    found = Reply(200, json.dumps(told).encode(), {"Metadata-Flavor": "Google"})
    proxy.faults += [("/computeMetadata", lambda *_: found) for _ in range(9)]
    proxy.faults += [("GET /", lambda *_: found)]  # whether there is one
    code = """
        import asyncio, sys
        from google.auth.compute_engine import Credentials
        from threadline import VertexAiSessionService
        async def main():
            async with VertexAiSessionService(
                "p", "l", base_url=sys.argv[1], credentials=Credentials()
            ) as service:
                await service.create_session(app_name="1", user_id="u")
        asyncio.run(main())
        """
    host = proxy.url.removeprefix("http://").partition("/")[0]
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), proxy.url],
        env={**os.environ, "GCE_METADATA_HOST": host, "GCE_METADATA_IP": host},
        check=True,
    )
    assert proxy.log[-1].headers["authorization"] == "Bearer of-the-machine"


def test_no_credentials_are_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    service = VertexAiSessionService("p", "l", "123", retry_for_s=0.1)
    with pytest.raises(UnauthenticatedError, match="gcloud auth"):
        run(service, service.create_session(**IDS))


SECRETS = [
    {"express_mode_api_key": "secret-key"},
    {"project": "p", "location": "l", "credentials": Credentials("secret-key")},
]


@pytest.mark.parametrize("given", SECRETS, ids=["key", "token"])
def test_no_secret_is_logged_or_said(
    proxy: Proxy, caplog: pytest.LogCaptureFixture, given: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    service = VertexAiSessionService(**given, base_url=proxy.url, retry_for_s=0.2)
    proxy.faults += [("POST", refusing(403)), ("GET", breaking)]
    with pytest.raises(PermissionDeniedError) as refused:
        run(service, service.create_session(**IDS))
    assert run(service, service.get_session(**IDS, session_id="s")) is None
    assert "secret-key" not in caplog.text + repr(refused) + str(refused.value) + repr(service)
    headers = proxy.log[0].headers
    assert "secret-key" in headers.get("x-goog-api-key", "") + headers.get("authorization", "")


HOSTS = [
    ({"project": "p", "location": "us-central1"}, "https://us-central1-aiplatform.googleapis.com"),
    ({"project": "p", "location": "global"}, "https://aiplatform.googleapis.com"),
    ({"project": "p", "location": "eu"}, "https://aiplatform.eu.rep.googleapis.com"),
    ({"project": "p", "location": "us"}, "https://aiplatform.us.rep.googleapis.com"),
    ({"express_mode_api_key": "k"}, "https://aiplatform.googleapis.com"),
]


@pytest.mark.parametrize(("given", "host"), HOSTS)
def test_the_host_is_that_of_the_location(given: Any, host: str) -> None:
    assert VertexAiSessionService(**given)._client._connections.base_url == f"{host}/v1beta1"


def test_the_environment_says_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p")
    monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "us-east1")
    client = VertexAiSessionService(agent_engine_id="1")._client
    assert (client.project, client.location) == ("p", "us-east1")


@pytest.mark.parametrize("is_enterprise", [True, False])
def test_a_key_of_the_environment_counts_where_it_is_said_to_be_vertex_ais(
    monkeypatch: pytest.MonkeyPatch, proxy: Proxy, is_enterprise: bool
) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", "from-outside")
    monkeypatch.setenv("GOOGLE_GENAI_USE_ENTERPRISE", str(is_enterprise))
    service = VertexAiSessionService("p", "l", base_url=proxy.url)
    run(service, service.create_session(**IDS))
    begin = "/v1beta1/reasoningEngines/" if is_enterprise else "/v1beta1/projects/p/locations/l/"
    assert all(one.path.startswith(begin) for one in proxy.log)
    keys = {one.headers.get("x-goog-api-key") for one in proxy.log}
    assert keys == {"from-outside" if is_enterprise else None}


def test_what_cannot_be_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION"):
        monkeypatch.delenv(name, raising=False)
    wrong: list[Any] = [
        {},
        {"project": "p"},
        {"project": "p", "location": "l", "express_mode_api_key": "k"},
        {"base_url": "localhost:80"},
    ]
    for given in wrong:
        with pytest.raises(InvalidInputError):
            VertexAiSessionService(**given)


def test_an_app_that_names_no_engine_is_refused() -> None:
    service = VertexAiSessionService("p", "l")
    with pytest.raises(InvalidInputError, match="agent_engine_id"):
        run(service, service.get_session(app_name="my-app", user_id="u", session_id="s"))
