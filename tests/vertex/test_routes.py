"""The Vertex AI Sessions API through a socket: what clients rely on, and what they trip over."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from servers_http import served
from threadline import BaseSessionService, Event, InMemorySessionService
from threadline.server.access import Grant
from threadline.testing.service_suite import HOSTILE_IDS
from threadline.vertex import wire

SHORT = "/v1beta1/reasoningEngines/42"
FULL = "/v1beta1/projects/p/locations/l/reasoningEngines/42"
SESSIONS = f"{FULL}/sessions"
S = f"{SESSIONS}/s"
EVENT: dict[str, Any] = {"author": "a", "invocationId": "i", "timestamp": "2025-10-09T08:53:20Z"}


@pytest.fixture
def service() -> BaseSessionService:
    return InMemorySessionService()


@pytest.fixture
def http(service: BaseSessionService) -> Iterator[httpx.Client]:
    with served(service) as url, httpx.Client(base_url=url, verify=False) as client:
        yield client


def create(http: httpx.Client, id: str = "s", user: str = "u", **fields: Any) -> dict[str, Any]:
    answer = http.post(SESSIONS, params={"sessionId": id}, json={"userId": user, **fields})
    assert answer.status_code == 200, answer.text
    message: dict[str, Any] = answer.json()
    return message


def append(http: httpx.Client, text: str = "hi", seconds: int = 0, **fields: Any) -> None:
    timestamp = wire.format_timestamp(1_760_000_000 + seconds)
    content = {"parts": [{"text": text}]}
    message = {**EVENT, "timestamp": timestamp, "content": content, **fields}
    answer = http.post(f"{S}:appendEvent", json=message)
    assert (answer.status_code, answer.json()) == (200, {})


def listed(http: httpx.Client, path: str = SESSIONS, **query: Any) -> list[str]:
    """Follow the pages to their end; return the last segments of the names."""
    names: list[str] = []
    while True:
        answer = http.get(path, params=query).json()
        for message in answer.get("sessions", answer.get("sessionEvents")):
            names.append(message["name"].rpartition("/")[2])
        if "nextPageToken" not in answer:
            return names
        query["pageToken"] = answer["nextPageToken"]


def texts(http: httpx.Client, **query: Any) -> list[str]:
    found: list[str] = []
    while True:
        answer = http.get(f"{S}/events", params=query).json()
        found += [event["content"]["parts"][0]["text"] for event in answer["sessionEvents"]]
        if "nextPageToken" not in answer:
            return found
        query["pageToken"] = answer["nextPageToken"]


def refusal(answer: httpx.Response, code: int, status: str) -> str:
    """Check the shape of an error; return its message."""
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["status"]) == (code, code, status)
    message: str = error["message"]
    return message


# -- sessions ---------------------------------------------------------------------------


def test_create_answers_with_an_operation_that_is_done(http: httpx.Client) -> None:
    operation = create(http, sessionState={"k": 1})
    name = "projects/p/locations/l/reasoningEngines/42/sessions/s"
    assert operation["done"] is True
    assert operation["name"].startswith(f"{name}/operations/")
    assert operation["response"]["name"] == name
    assert operation["response"]["sessionState"] == {"k": 1}
    assert operation["response"]["@type"].endswith("v1beta1.Session")
    assert {"createTime", "updateTime", "userId"} <= operation["response"].keys()


def test_an_operation_is_read_by_its_name_and_by_its_last_segment(http: httpx.Client) -> None:
    operation = create(http)
    last = operation["name"].rpartition("/")[2]
    for path in (
        operation["name"],
        f"projects/other/locations/other/operations/{last}",
        f"reasoningEngines/42/operations/{last}",
        f"operations/{last}",
    ):
        read = http.get(f"/v1beta1/{path}")
        assert read.status_code == 200
        assert read.json()["done"] is True
        assert read.json()["response"]["name"].endswith("reasoningEngines/42/sessions/s")
    assert http.get(f"/v1beta1/{operation['name']}").json() == operation
    assert http.post(f"/v1beta1/{operation['name']}:wait").json() == operation


def test_a_delete_is_an_operation_too(http: httpx.Client) -> None:
    create(http)
    answer = http.request("DELETE", S, content=b"{}")
    operation = answer.json()
    assert answer.status_code == 200
    assert operation["done"] is True
    assert operation["response"]["@type"] == "type.googleapis.com/google.protobuf.Empty"
    assert operation["name"].startswith("projects/p/locations/l/operations/")
    assert http.get(f"/v1beta1/{operation['name']}").json() == operation
    assert http.get(S).status_code == 404


def test_an_operation_that_never_was_is_not_found(http: httpx.Client) -> None:
    for id in ("123", "W10", wire.encode_token(["create", "42", "missing"])):
        refusal(http.get(f"/v1beta1/projects/p/locations/l/operations/{id}"), 404, "NOT_FOUND")


def test_an_id_is_made_where_none_is_given(http: httpx.Client) -> None:
    name = http.post(SESSIONS, json={"userId": "u"}).json()["response"]["name"]
    assert http.get(f"/v1beta1/{name}").json()["name"] == name


def test_a_short_path_leads_to_the_same_session_and_is_echoed(http: httpx.Client) -> None:
    create(http)
    assert http.get(f"{SHORT}/sessions/s").json()["name"] == "reasoningEngines/42/sessions/s"
    assert http.get(f"{SHORT.replace('v1beta1', 'v1')}/sessions/s").status_code == 200
    other = S.replace("/p/", "/987/").replace("/l/", "/-/")
    assert http.get(other).json()["name"] == other.removeprefix("/v1beta1/")


def test_the_app_is_the_engines_id(http: httpx.Client, service: BaseSessionService) -> None:
    create(http)
    found = asyncio.run(service.get_session(app_name="42", user_id="u", session_id="s"))
    assert found is not None


def test_an_id_that_is_taken_is_refused_whoevers_it_is(http: httpx.Client) -> None:
    create(http, sessionState={"app:k": 1})
    for user in ("u", "v"):
        again = {"userId": user, "sessionState": {"app:k": 2}}
        answer = http.post(SESSIONS, params={"sessionId": "s"}, json=again)
        message = refusal(answer, 400, "INVALID_ARGUMENT")
        assert message.endswith("/sessions/s' already exists.")
    assert http.get(S).json()["sessionState"] == {"app:k": 1}


def test_what_a_session_is_created_with_comes_back(http: httpx.Client) -> None:
    create(http, displayName="D", labels={"env": "dev"}, expireTime="2999-01-01T00:00:00Z")
    read = http.get(S).json()
    assert (read["displayName"], read["labels"]) == ("D", {"env": "dev"})
    assert read["expireTime"] == "2999-01-01T00:00:00Z"


def test_state_is_split_by_scope_and_temp_is_not_stored(http: httpx.Client) -> None:
    create(http, sessionState={"k": 1, "app:a": 2, "user:u": 3, "temp:t": 4, "none": None})
    create(http, "other")
    assert http.get(S).json()["sessionState"] == {"k": 1, "app:a": 2, "user:u": 3}
    assert http.get(f"{SESSIONS}/other").json()["sessionState"] == {"app:a": 2, "user:u": 3}


@pytest.mark.parametrize("id", HOSTILE_IDS)
def test_any_id_is_found_by_the_name_that_is_returned(http: httpx.Client, id: str) -> None:
    user = "u"
    made = http.post(f"{SHORT}/sessions", params={"sessionId": id}, json={"userId": user})
    name = made.json()["response"]["name"]
    assert http.get(f"/v1beta1/{name}").json()["name"] == name
    assert http.post(f"/v1beta1/{name}:appendEvent", json=EVENT).json() == {}
    assert len(http.get(f"/v1beta1/{name}/events").json()["sessionEvents"]) == 1
    assert http.get(f"/v1beta1/{made.json()['name']}").json()["done"] is True


def test_users_that_create_one_id_at_the_same_time_never_both_have_it(
    http: httpx.Client, service: BaseSessionService
) -> None:
    async def race(id: str) -> list[int]:
        async with httpx.AsyncClient(base_url=http.base_url, verify=False) as client:
            answers = await asyncio.gather(
                *(
                    client.post(SESSIONS, params={"sessionId": id}, json={"userId": user})
                    for user in "uvw"
                )
            )
        return sorted(answer.status_code for answer in answers)

    for n in range(5):
        id = f"s{n}"
        made = asyncio.run(race(id)).count(200)
        found = asyncio.run(service.find_sessions(app_name="42", session_id=id))
        assert len(found) == made <= 1


def test_an_id_that_two_users_have_is_ambiguous(
    http: httpx.Client, service: BaseSessionService
) -> None:
    for user in ("u", "v"):
        asyncio.run(service.create_session(app_name="42", user_id=user, session_id="s"))
    assert "2 users" in refusal(http.get(S), 400, "INVALID_ARGUMENT")


# -- patch ------------------------------------------------------------------------------


def test_a_patch_changes_what_its_mask_names(http: httpx.Client) -> None:
    create(http, displayName="D", labels={"a": "b"}, sessionState={"k": 1})
    answer = http.patch(
        S, params={"updateMask": "displayName,ttl"}, json={"displayName": "E", "ttl": "86400s",
        "labels": {"c": "d"}, "userId": "u"},
    )  # fmt: skip
    assert answer.status_code == 200
    read = http.get(S).json()
    assert read == answer.json()
    assert (read["displayName"], read["labels"]) == ("E", {"a": "b"})
    assert "expireTime" in read


def test_a_patch_without_a_mask_changes_what_was_sent(http: httpx.Client) -> None:
    create(http, displayName="D", labels={"a": "b"})
    read = http.patch(S, json={"labels": {"c": "d"}, "userId": "u"}).json()
    assert (read["displayName"], read["labels"]) == ("D", {"c": "d"})


def test_a_mask_without_a_value_takes_it_away(http: httpx.Client) -> None:
    create(http, displayName="D", labels={"a": "b"}, ttl="86400s")
    mask = {"updateMask": "display_name,labels,expire_time"}
    read = http.patch(S, params=mask, json={}).json()
    assert not read.keys() & {"displayName", "labels", "expireTime"}


def test_a_patch_replaces_the_sessions_own_state(http: httpx.Client) -> None:
    create(http, sessionState={"a": 1, "b": 2, "app:k": 3, "user:k": 4})
    state = {"b": 5, "c": 6, "user:k": 7, "temp:t": 8}
    read = http.patch(S, params={"updateMask": "sessionState"}, json={"sessionState": state})
    assert read.json()["sessionState"] == {"b": 5, "c": 6, "app:k": 3, "user:k": 7}
    assert http.get(f"{S}/events").json() == {"sessionEvents": []}


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ({"updateMask": "createTime"}, {}),
        ({}, {"userId": "v"}),
        ({"updateMask": "userId"}, {}),
        ({}, {"ttl": "-1s"}),
        ({}, {"ttl": "0s"}),
        ({}, {"labels": {"a": 1}}),
    ],
)
def test_a_patch_that_is_wrong_changes_nothing(
    http: httpx.Client, query: dict[str, str], body: dict[str, Any]
) -> None:
    create(http, displayName="D")
    before = http.get(S).json()
    refusal(http.patch(S, params=query, json={"displayName": "E", **body}), 400, "INVALID_ARGUMENT")
    assert http.get(S).json() == before


# -- lists ------------------------------------------------------------------------------


def test_sessions_come_newest_first_and_page_by_page(http: httpx.Client) -> None:
    for n in range(5):
        create(http, f"s{n}")
    newest = [f"s{n}" for n in (4, 3, 2, 1, 0)]
    assert listed(http) == newest
    assert listed(http, pageSize=2) == newest
    assert listed(http, pageSize=2, orderBy="create_time") == newest[::-1]


def test_sessions_are_filtered(http: httpx.Client) -> None:
    create(http, "a", user='u "1\\', labels={"env": "dev"})
    create(http, "b", user="v", labels={"env": "dev"}, displayName="D")
    create(http, "c", user="v")
    for filter, expected in (
        (r'user_id="u \"1\\"', ["a"]),
        ('userId="v"', ["c", "b"]),
        ('labels.env="dev"', ["b", "a"]),
        ('user_id="v" AND display_name="D"', ["b"]),
        ('user_id="nobody"', []),
    ):
        assert listed(http, filter=filter) == expected
        assert listed(http, filter=filter, pageSize=1) == expected


def test_a_page_token_remembers_the_filter_and_knows_another_one(http: httpx.Client) -> None:
    for n in range(3):
        create(http, f"s{n}", user="u")
        create(http, f"t{n}", user="v")
    query = {"filter": 'user_id="u"', "pageSize": "2"}
    token = http.get(SESSIONS, params=query).json()["nextPageToken"]
    page = http.get(SESSIONS, params={"pageToken": token}).json()
    assert [message["userId"] for message in page["sessions"]] == ["u"]
    for wrong in ({"pageToken": token, "filter": 'user_id="v"'}, {"pageToken": "5"}):
        assert "page_token" in refusal(http.get(SESSIONS, params=wrong), 400, "INVALID_ARGUMENT")


def test_events_come_whole_where_no_page_size_is_given(http: httpx.Client) -> None:
    create(http)
    for n in range(120):
        append(http, str(n))
    assert len(http.get(f"{S}/events").json()["sessionEvents"]) == 120


def test_events_come_page_by_page_either_way(http: httpx.Client) -> None:
    create(http)
    for n in range(5):
        append(http, str(n))
    for size in (None, 1, 2, 5, 9):
        assert texts(http, pageSize=size) == list("01234")
        assert texts(http, pageSize=size, orderBy="timestamp desc") == list("43210")


def test_events_of_one_moment_keep_the_order_they_arrived_in(http: httpx.Client) -> None:
    create(http)
    for text, seconds in (("b", 5), ("a", 5), ("c", 1)):
        append(http, text, seconds)
    assert texts(http) == ["b", "a", "c"]


def test_events_are_filtered_by_time(http: httpx.Client) -> None:
    create(http)
    for n in range(5):
        append(http, str(n), seconds=n)
    for filter, expected in (
        ('timestamp>="2025-10-09T08:53:22Z"', "234"),
        ('timestamp>="2025-10-09T10:53:22+02:00"', "234"),
        ('timestamp>"2025-10-09T08:53:22Z" AND timestamp<"2025-10-09T08:53:24Z"', "3"),
        ('timestamp<="2025-10-09T08:53:21Z"', "01"),
    ):
        for size in (None, 1, 2):
            assert texts(http, filter=filter, pageSize=size) == list(expected)
            backwards = texts(http, filter=filter, pageSize=size, orderBy="timestamp desc")
            assert backwards == list(expected)[::-1]


# -- append -----------------------------------------------------------------------------


def test_an_append_moves_the_update_time_and_merges_state(http: httpx.Client) -> None:
    create(http, sessionState={"a": {"b": 1}, "k": 1})
    append(http, actions={"stateDelta": {"a": {"c": 2}, "user:x": 1, "temp:t": 1}})
    read = http.get(S).json()
    assert read["updateTime"] == "2025-10-09T08:53:20Z"
    assert read["sessionState"] == {"a": {"c": 2}, "k": 1, "user:x": 1}


def test_an_event_sent_twice_is_stored_once(http: httpx.Client) -> None:
    create(http)
    for _ in range(2):
        append(http, rawEvent={"id": "e", "content": {"parts": [{"text": "raw"}]}})
    assert texts(http) == ["raw"]


def test_another_event_with_the_same_id_is_a_conflict_but_no_400(http: httpx.Client) -> None:
    create(http)
    append(http, rawEvent={"id": "e", "output": 1})
    answer = http.post(f"{S}:appendEvent", json={**EVENT, "rawEvent": {"id": "e", "output": 2}})
    refusal(answer, 409, "ALREADY_EXISTS")


def test_a_partial_event_is_taken_and_not_stored(http: httpx.Client) -> None:
    create(http)
    append(http, eventMetadata={"partial": True}, actions={"stateDelta": {"k": 1}})
    assert http.get(f"{S}/events").json() == {"sessionEvents": []}
    assert http.get(S).json()["sessionState"] == {}


def test_the_java_clients_timestamp_is_taken_and_answered_as_text(http: httpx.Client) -> None:
    create(http)
    append(http, timestamp={"seconds": 1760000000, "nanos": 123000000})
    (event,) = http.get(f"{S}/events").json()["sessionEvents"]
    assert event["timestamp"] == "2025-10-09T08:53:20.123Z"


def test_the_java_clients_additions_are_kept(http: httpx.Client) -> None:
    create(http)
    append(
        http,
        eventMetadata={"usageMetadata": {"promptTokenCount": 3}},
        actions={"endOfAgent": True, "requestedToolConfirmations": {"c": {"hint": "h"}}},
    )
    (event,) = http.get(f"{S}/events").json()["sessionEvents"]
    assert event["eventMetadata"]["usageMetadata"] == {"promptTokenCount": 3}
    assert event["actions"]["endOfAgent"] is True
    assert event["actions"]["requestedToolConfirmations"] == {"c": {"hint": "h"}}


def test_appends_at_the_same_time_are_all_stored(http: httpx.Client) -> None:
    create(http)

    async def all_at_once() -> list[int]:
        async with httpx.AsyncClient(base_url=http.base_url, verify=False) as client:
            answers = await asyncio.gather(
                *(client.post(f"{S}:appendEvent", json=EVENT) for _ in range(20))
            )
        return [answer.status_code for answer in answers]

    assert asyncio.run(all_at_once()) == [200] * 20
    assert len(listed(http, f"{S}/events")) == 20


def test_what_was_written_elsewhere_has_both_forms(
    http: httpx.Client, service: BaseSessionService
) -> None:
    async def write() -> None:
        session = await service.create_session(app_name="42", user_id="u", session_id="s")
        event = Event(id="e", author="a", content="hi", output=float("nan"))
        await service.append_event(session, event)

    asyncio.run(write())
    (event,) = http.get(f"{S}/events").json()["sessionEvents"]
    assert event["content"] == event["rawEvent"]["content"] == {"parts": [{"text": "hi"}]}
    assert (event["rawEvent"]["id"], event["rawEvent"]["output"]) == ("e", "NaN")


# -- refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", S, None), ("PATCH", S, {}), ("DELETE", S, None), ("GET", f"{S}/events", None),
     ("POST", f"{S}:appendEvent", EVENT)],
)  # fmt: skip
def test_a_missing_session_is_not_found(
    http: httpx.Client, method: str, path: str, body: dict[str, Any] | None
) -> None:
    message = refusal(http.request(method, path, json=body), 404, "NOT_FOUND")
    assert message == f"Session {S.removeprefix('/v1beta1/')} not found."


def test_required_fields_are_named_before_the_session_is_looked_for(http: httpx.Client) -> None:
    answer = http.post(f"{SESSIONS}/missing:appendEvent", json={"invocationId": "i"})
    assert "event.author" in refusal(answer, 400, "INVALID_ARGUMENT")
    answer = http.post(SESSIONS, json={"displayName": "D"})
    assert "session.user_id" in refusal(answer, 400, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (SESSIONS, {"pageSize": "x"}), (SESSIONS, {"pageSize": "-1"}), (SESSIONS, {"filter": "x"}),
        (SESSIONS, {"orderBy": "name"}), (f"{S}/events", {"filter": 'author="a"'}),
        (f"{S}/events", {"orderBy": "author"}), (f"{S}/events", {"pageToken": "x"}),
        (f"{S}/events", {"pageToken": wire.encode_token([None, None, "x"])}),
        (f"{S}/events", {"pageToken": wire.encode_token([None, None, -1])}),
        (SESSIONS, {"pageToken": wire.encode_token([None, None, "x"])}),
    ],
)  # fmt: skip
def test_wrong_queries_are_refused(http: httpx.Client, path: str, query: dict[str, str]) -> None:
    create(http)
    refusal(http.get(path, params=query), 400, "INVALID_ARGUMENT")


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"userId":NaN}', b'{"userId":["u"]}', b"\xff"])
def test_wrong_bodies_are_refused_and_nothing_is_written(http: httpx.Client, body: bytes) -> None:
    create(http)
    for path in (SESSIONS, f"{S}:appendEvent"):
        refusal(http.post(path, content=body), 400, "INVALID_ARGUMENT")
    assert listed(http) == ["s"]
    assert listed(http, f"{S}/events") == []


def test_a_value_that_would_not_come_back_is_refused(http: httpx.Client) -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    answer = http.post(SESSIONS, json={"userId": "u", "sessionState": {"k": deep}})
    assert "128" in refusal(answer, 400, "INVALID_ARGUMENT")


def test_what_is_not_served_is_said_in_the_apis_shape(http: httpx.Client) -> None:
    refusal(http.get("/v1beta1/projects/p/locations/l/models"), 404, "NOT_FOUND")
    refusal(http.post(f"{S}:compact", json={}), 501, "UNIMPLEMENTED")
    refusal(http.put(S, json={}), 501, "UNIMPLEMENTED")


def test_what_gapic_clients_add_is_ignored(http: httpx.Client) -> None:
    create(http)
    headers = {"x-goog-request-params": "name=x"}
    query = {"$alt": "json;enum-encoding=int"}
    assert http.get(S, params=query, headers=headers).status_code == 200


# -- keys -------------------------------------------------------------------------------


@pytest.fixture
def grants() -> dict[str, Grant]:
    return {
        "all": Grant("all", writes=True),
        "reader": Grant("reader"),
        "other": Grant("other", apps=frozenset({"43"}), writes=True),
        "v": Grant("v", apps=frozenset({"42"}), users=frozenset({"v"}), writes=True),
    }


@pytest.fixture
def guarded(service: BaseSessionService, grants: dict[str, Grant]) -> Iterator[httpx.Client]:
    def whose(request: Any) -> Grant | str:
        return grants.get(request.headers.get("x-goog-api-key", ""), "Send a key.")

    with (
        served(service, keys=whose) as url,
        httpx.Client(base_url=url, verify=False) as client,
    ):
        client.post(
            SESSIONS, params={"sessionId": "s"}, json={"userId": "u"},
            headers={"x-goog-api-key": "all"},
        )  # fmt: skip
        yield client


CALLS = [
    ("POST", SESSIONS, {"userId": "u"}), ("GET", SESSIONS, None), ("GET", S, None),
    ("PATCH", S, {"displayName": "D"}), ("DELETE", S, None), ("POST", f"{S}:appendEvent", EVENT),
    ("GET", f"{S}/events", None),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_without_a_key_nothing_is_answered(
    guarded: httpx.Client, method: str, path: str, body: dict[str, Any] | None
) -> None:
    refusal(guarded.request(method, path, json=body), 401, "UNAUTHENTICATED")


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_the_key_of_another_app_opens_nothing(
    guarded: httpx.Client, method: str, path: str, body: dict[str, Any] | None
) -> None:
    answer = guarded.request(method, path, json=body, headers={"x-goog-api-key": "other"})
    refusal(answer, 403, "PERMISSION_DENIED")


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_the_key_of_another_user_finds_nothing(
    guarded: httpx.Client, method: str, path: str, body: dict[str, Any] | None
) -> None:
    answer = guarded.request(method, path, json=body, headers={"x-goog-api-key": "v"})
    if path == SESSIONS:
        refusal(answer, 403, "PERMISSION_DENIED")
    else:
        refusal(answer, 404, "NOT_FOUND")


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_a_key_for_reading_writes_nothing(
    guarded: httpx.Client, method: str, path: str, body: dict[str, Any] | None
) -> None:
    answer = guarded.request(method, path, json=body, headers={"x-goog-api-key": "reader"})
    if method == "GET":
        assert answer.status_code == 200
    else:
        refusal(answer, 403, "PERMISSION_DENIED")
    assert guarded.get(f"{S}/events", headers={"x-goog-api-key": "all"}).json() == {
        "sessionEvents": []
    }


def test_the_key_of_one_user_tells_two_sessions_with_one_id_apart(
    guarded: httpx.Client, service: BaseSessionService
) -> None:
    asyncio.run(service.create_session(app_name="42", user_id="v", session_id="s"))
    read = guarded.get(S, headers={"x-goog-api-key": "v"}).json()
    assert read["userId"] == "v"
    mine = guarded.get(
        SESSIONS, params={"filter": 'user_id="v"'}, headers={"x-goog-api-key": "v"}
    ).json()
    assert len(mine["sessions"]) == 1


def test_an_operation_tells_nothing_to_the_key_of_another_app(guarded: httpx.Client) -> None:
    for token in (["create", "42", "s"], ["delete", "42", 1.0]):
        path = f"/v1beta1/projects/p/locations/l/operations/{wire.encode_token(token)}"
        answer = guarded.get(path, headers={"x-goog-api-key": "other"})
        refusal(answer, 403, "PERMISSION_DENIED")
