"""The session routes of ADK's api_server, and google-adk's models as readers of the answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from google.adk.sessions import Session

from servers_http import served
from threadline import BaseSessionService, Event, EventActions, InMemorySessionService
from threadline.server.access import Grant
from threadline.testing.service_suite import HOSTILE_IDS

SESSIONS = "/apps/demo/users/u/sessions"
S = f"{SESSIONS}/s"


@pytest.fixture
def service() -> BaseSessionService:
    return InMemorySessionService()


@pytest.fixture
def http(service: BaseSessionService) -> Iterator[httpx.Client]:
    with served(service) as url, httpx.Client(base_url=url, verify=False) as client:
        yield client


def store(service: BaseSessionService, *events: Event, id: str = "s") -> None:
    async def write() -> None:
        session = await service.create_session(app_name="demo", user_id="u", session_id=id)
        if events:
            await service.append_events(session, events)

    asyncio.run(write())


def test_apps_are_listed(http: httpx.Client) -> None:
    assert http.get("/list-apps?relative_path=./").json() == []
    for app in ("b", "a"):
        http.post(f"/apps/{app}/users/u/sessions")
    assert http.get("/list-apps?relative_path=./").json() == ["a", "b"]
    detailed = http.get("/list-apps?detailed=true").json()
    assert [app["name"] for app in detailed["apps"]] == ["a", "b"]


def test_what_comes_back_is_a_session_to_adk(
    http: httpx.Client, service: BaseSessionService
) -> None:
    store(service, Event(author="a", content="hi", actions={"state_delta": {"k": 1}}))
    session = Session.model_validate_json(http.get(S).content)
    assert (session.id, session.app_name, session.user_id) == ("s", "demo", "u")
    assert session.state == {"k": 1}
    assert session.events[0].content is not None
    assert session.events[0].content.parts is not None
    assert session.events[0].content.parts[0].text == "hi"


@pytest.mark.parametrize("body", [b"", b"null", b"{}"])
def test_create_makes_an_id(http: httpx.Client, body: bytes) -> None:
    answer = http.post(SESSIONS, content=body)
    assert answer.status_code == 200
    assert http.get(f"{SESSIONS}/{answer.json()['id']}").status_code == 200


def test_create_takes_id_state_and_events(http: httpx.Client) -> None:
    events = [{"author": "user", "content": {"parts": [{"text": "hi"}]}}]
    made = http.post(SESSIONS, json={"sessionId": "s", "state": {"k": 1}, "events": events}).json()
    assert (made["id"], made["state"], len(made["events"])) == ("s", {"k": 1}, 1)
    assert http.get(S).json() == made


def test_create_at_an_id_takes_the_body_as_state(http: httpx.Client) -> None:
    assert http.post(S, json={"b": 2}).json()["state"] == {"b": 2}
    assert http.post(f"{SESSIONS}/t").json()["state"] == {}


def test_an_id_that_is_taken_is_a_conflict(http: httpx.Client) -> None:
    http.post(S)
    for answer in (http.post(S), http.post(SESSIONS, json={"session_id": "s"})):
        assert answer.status_code == 409
        assert "already exists" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("event", "named"),
    [
        ({"longRunningToolIds": ["x"]}, "long-running tool IDs"),
        ({"actions": {"stateDelta": {"k": 1}}}, "event actions"),
        (
            {"content": {"parts": [{"functionCall": {"name": "adk_request_credential"}}]}},
            "ADK protocol function calls",
        ),
    ],
)
def test_a_session_does_not_begin_with_what_only_a_runner_says(
    http: httpx.Client, event: dict[str, Any], named: str
) -> None:
    answer = http.post(SESSIONS, json={"sessionId": "s", "events": [{"author": "a", **event}]})
    assert (answer.status_code, named in answer.json()["detail"]) == (400, True)
    assert http.get(S).status_code == 404


def test_options_are_those_of_create_session(http: httpx.Client) -> None:
    made = http.post(SESSIONS, json={"sessionId": "s", "options": {"display_name": "D"}})
    assert made.status_code == 200
    answer = http.post(SESSIONS, json={"options": {"app_name": "other"}})
    assert (answer.status_code, "app_name" in answer.json()["detail"]) == (400, True)


@pytest.mark.parametrize(
    "body",
    [
        {"state": []},
        {"events": {}},
        {"events": [5]},
        {"options": []},
        {"options": [1]},
        {"options": {"labels": "x"}},
        {"events": [{"id": "e", "author": "a"}, {"id": "e", "author": "b"}]},
        {"options": {"ttl": "x"}},
        {"sessionId": 5},
    ],
)
def test_bodies_that_are_wrong_are_refused_and_nothing_is_written(
    http: httpx.Client, body: dict[str, Any]
) -> None:
    assert http.post(SESSIONS, json=body).status_code in (400, 409, 422)
    assert http.get(SESSIONS).json() == []


def test_sessions_are_listed_without_events_and_evaluations(
    http: httpx.Client, service: BaseSessionService
) -> None:
    store(service, Event(author="a", actions=EventActions(state_delta={"k": 1})))
    for id in ("___eval___session___1", "adk-eval-session-1"):
        store(service, id=id)
    (listed,) = http.get(SESSIONS).json()
    assert (listed["id"], listed["state"], listed["events"]) == ("s", {"k": 1}, [])


def test_a_patch_sets_state_through_an_event(http: httpx.Client) -> None:
    http.post(S, json={"a": 1})
    delta = {"__session_metadata__": {"displayName": "D"}}
    changed = http.patch(S, json={"stateDelta": delta}).json()
    assert changed["state"] == {"a": 1, **delta}
    assert changed["events"][0]["author"] == "user"
    assert changed["events"][0]["invocationId"].startswith("p-")
    assert http.get(S).json() == changed
    assert http.patch(S, json={}).status_code == 422
    assert http.patch(f"{SESSIONS}/missing", json={"stateDelta": {}}).status_code == 404


def test_a_title_is_the_display_name_and_what_the_ui_keeps_in_state(
    http: httpx.Client, service: BaseSessionService
) -> None:
    def titles() -> tuple[str, str | None]:
        shown = http.get(S).json()["state"]["__session_metadata__"]
        stored = asyncio.run(service.get_session(app_name="demo", user_id="u", session_id="s"))
        assert stored is not None
        assert shown["pinned"] is True
        return shown["displayName"], stored.display_name

    http.post(S, json={"__session_metadata__": {"displayName": "made in the UI", "pinned": True}})
    assert titles() == ("made in the UI",) * 2
    ids = {"app_name": "demo", "user_id": "u", "session_id": "s"}
    asyncio.run(service.update_session(**ids, display_name="changed elsewhere"))
    assert titles() == ("changed elsewhere",) * 2
    metadata = {"displayName": "changed in the UI", "pinned": True}
    http.patch(S, json={"stateDelta": {"__session_metadata__": metadata}})
    assert titles() == ("changed in the UI",) * 2


@pytest.mark.parametrize("metadata", [None, 5, {}, {"displayName": None}, {"displayName": [1]}])
def test_metadata_without_a_title_is_kept_as_it_is(http: httpx.Client, metadata: Any) -> None:
    state = {"__session_metadata__": metadata}
    assert http.post(S, json=state).json()["state"] == state
    assert http.patch(S, json={"stateDelta": state}).json()["state"] == state


def test_what_agents_leave_behind_is_listed_as_empty(http: httpx.Client) -> None:
    for what in ("eval_sets", "eval_results", "debug/trace/session/s"):
        assert http.get(f"/dev/apps/demo/{what}").json() == []
    file = http.get("/dev/apps/demo/builder?ts=1")
    assert (file.status_code, file.text) == (200, "")
    assert http.get("/config/telemetry").json() == {"telemetry": False}


def test_a_turn_is_refused_where_its_caller_reads_the_reason(http: httpx.Client) -> None:
    run, run_sse = (http.post(path, json={"appName": "demo"}) for path in ("/run", "/run_sse"))
    assert run.status_code == run_sse.status_code == 501
    reason = run.json()["detail"]
    assert run_sse.text == f'data: {{"error": "{reason}"}}\n\n'


def test_a_missing_session_is_not_found_and_its_delete_no_error(http: httpx.Client) -> None:
    answer = http.get(S)
    assert (answer.status_code, answer.json()) == (404, {"detail": "Session not found"})
    http.post(S)
    for _ in range(2):
        answer = http.delete(S)
        assert (answer.status_code, answer.json()) == (200, None)
    assert http.get(S).status_code == 404


def test_secrets_and_internal_metadata_are_not_shown(
    http: httpx.Client, service: BaseSessionService
) -> None:
    credential = {"authType": "oauth2", "oauth2": {"clientSecret": "SECRET"}}
    store(
        service,
        Event(
            author="a",
            custom_metadata={"__adk_internal_x": "SECRET", "mine": 1},
            actions={
                "state_delta": {"c": credential, "authType": "a user's own"},
                "requested_auth_configs": {
                    "c": {"authScheme": {"type": "oauth2"}, "rawAuthCredential": credential}
                },
            },
        ),
    )
    text = http.get(S).text
    assert "SECRET" not in text
    assert "a user's own" in text
    event = http.get(S).json()["events"][0]
    assert event["customMetadata"] == {"mine": 1}
    assert event["actions"]["requestedAuthConfigs"]["c"] == {"authScheme": {"type": "oauth2"}}


def test_an_event_is_whole_whether_it_had_to_be_decoded_or_not(
    http: httpx.Client, service: BaseSessionService
) -> None:
    given = [
        Event(author="a", content="plain"),
        Event(author="a", actions={"state_delta": {"k": 1}}),
        Event(author="a", content="a lone \ud800", custom_metadata={"actions": "mine"}),
        Event(author="a", custom_metadata={"n": float("nan"), "authType": "mine"}),
    ]
    store(service, *given)
    expected = []
    for event in given:
        plain = {**event.to_dict(), "actions": event.to_dict().get("actions", {})}
        expected.append(json.loads(json.dumps(plain).replace("NaN", '"NaN"')))
    assert http.get(S).json()["events"] == expected


@pytest.mark.parametrize("id", HOSTILE_IDS)
def test_any_id_can_be_in_the_path(http: httpx.Client, id: str) -> None:
    path = f"/apps/demo/users/u/sessions/{''.join(f'%{byte:02X}' for byte in id.encode())}"
    assert http.post(path).json()["id"] == id
    assert http.get(path).json()["id"] == id


def test_a_key_shows_its_apps_and_its_user(service: BaseSessionService) -> None:
    for app in ("demo", "other"):
        asyncio.run(service.create_session(app_name=app, user_id="u", session_id="s"))
    grant = Grant("k", apps=frozenset({"demo"}), users=frozenset({"u"}))
    with (
        served(service, keys=lambda _: grant) as url,
        httpx.Client(base_url=url, verify=False) as http,
    ):
        assert http.get("/list-apps").json() == ["demo"]
        assert http.get(S).status_code == 200
        for path in (
            "/apps/other/users/u/sessions",
            "/apps/demo/users/v/sessions",
            "/dev/apps/other/eval_sets",
        ):
            assert http.get(path).status_code == 403
        assert http.delete(S).status_code == 403


def test_without_a_key_only_the_version_is_told(service: BaseSessionService) -> None:
    with (
        served(service, keys=lambda _: "Send a key.") as url,
        httpx.Client(base_url=url, verify=False) as http,
    ):
        assert http.get("/version").status_code == 200
        for path in ("/list-apps", SESSIONS, S, "/dev/apps/demo/eval_sets"):
            answer = http.get(path)
            assert (answer.status_code, answer.json()) == (401, {"detail": "Send a key."})
