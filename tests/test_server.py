"""The server: its API, its refusals and its keys, through a real socket."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard
from openapi_spec_validator import validate
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import threadline.server.app
from servers_http import command, plain, served, wait_until
from threadline import (
    BaseSessionService,
    DatabaseSessionService,
    Event,
    InMemorySessionService,
    InvalidInputError,
    RemoteSessionService,
    wire,
)
from threadline.server.auth import KeyFile
from threadline.server.process import Settings
from threadline.server.tails import Tails
from threadline.testing.service_suite import HOSTILE_IDS

USER = "/v1/apps/app/users/ann"
SESSIONS = f"{USER}/sessions"
S = f"{SESSIONS}/s"
EVENTS = f"{S}/events"


@pytest.fixture
def service() -> BaseSessionService:
    return InMemorySessionService()


@pytest.fixture
def http(service: BaseSessionService) -> Iterator[httpx.Client]:
    with served(service) as url, httpx.Client(base_url=url, verify=False) as client:
        yield client


def create(http: httpx.Client, id: str = "s", **body: Any) -> dict[str, Any]:
    answer = http.post(SESSIONS, json={"sessionId": id, **body})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def append(http: httpx.Client, *events: dict[str, Any], **headers: str) -> httpx.Response:
    return http.post(EVENTS, json={"events": events}, headers=headers)


def event(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"author": "user", "content": {"parts": [{"text": text}]}, **fields}


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["type"]


def everything(http: httpx.Client) -> list[str]:
    """Return all that is stored."""
    paths = ("/v1/apps/app/sessions", S, "/v1/apps/app/state", "/v1/apps/app/users/ann/state")
    return [http.get(path).text for path in paths]


# -- sessions -----------------------------------------------------------------------------


def test_a_session_is_created_at_a_place_of_its_own(http: httpx.Client) -> None:
    answer = http.post(SESSIONS, json={"state": {"a": 1, "user:b": 2}, "labels": {"k": "v"}})
    assert answer.status_code == 201
    again = http.get(httpx.URL(str(http.base_url)).copy_with(path=answer.headers["location"]))
    assert again.json() == answer.json()
    assert answer.json()["state"] == {"a": 1, "user:b": 2}


def test_put_creates_once(http: httpx.Client) -> None:
    first = http.put(S, json={"state": {"a": 1}})
    second = http.put(S)
    assert (first.status_code, first.json()) == (200, second.json())


def test_delete_answers_the_same_twice(http: httpx.Client) -> None:
    create(http)
    assert [http.delete(S).status_code, http.delete(S).status_code] == [204, 204]
    assert refusal(http.get(S)) == (404, "SessionNotFoundError")


def test_what_a_change_leaves_out_stays_and_null_takes_it_away(http: httpx.Client) -> None:
    create(http, displayName="d", labels={"a": "b"}, expireTime=9e9)
    append(http, event())
    for given in (
        {"displayName": "e"}, {"labels": {"c": "d"}}, {"expireTime": 8e9}, {},
        {"displayName": None, "labels": None, "expireTime": None},
    ):  # fmt: skip
        before = {**http.get(S).json(), "events": []}
        expected = {**before, **given, "labels": given.get("labels", before["labels"]) or {}}
        answer = http.patch(S, json=given)
        assert (answer.status_code, answer.json()) == (200, expected)
        assert http.get(S).headers["etag"] == answer.headers["etag"]


def test_sessions_of_all_users_are_found_by_their_id(http: httpx.Client) -> None:
    for user in ("ben", "ann"):
        http.put(wire.session_path("app", user, "s"))
    create(http, "other")
    found = http.get("/v1/apps/app/sessions/s").json()
    assert [one["userId"] for one in found["sessions"]] == ["ann", "ben"]
    assert http.get("/v1/apps/app/sessions/missing").json()["sessions"] == []


def test_an_erasure_answers_with_what_it_removed(http: httpx.Client) -> None:
    create(http, state={"a": 1, "user:b": 2, "app:c": 3})
    append(http, event(), event())
    assert http.delete(USER).json() == {"sessions": 1, "events": 2, "stateKeys": 2}
    assert http.delete(USER).json() == {"sessions": 0, "events": 0, "stateKeys": 0}
    assert refusal(http.get(S)) == (404, "SessionNotFoundError")
    assert refusal(append(http, event())) == (404, "SessionNotFoundError")
    assert http.get("/v1/apps/app/state").json() == {"state": {"c": 3}}


def test_sessions_are_listed_in_pages(http: httpx.Client) -> None:
    for n in range(3):
        create(http, f"s{n}")
    first = http.get(SESSIONS, params={"limit": 2, "order": "created"}).json()
    rest = http.get(
        SESSIONS, params={"limit": 2, "order": "created", "cursor": first["nextCursor"]}
    ).json()
    assert [s["id"] for s in first["sessions"] + rest["sessions"]] == ["s0", "s1", "s2"]
    assert rest["nextCursor"] is None
    assert len(http.get("/v1/apps/app/sessions").json()["sessions"]) == 3


@pytest.mark.parametrize("id", [*HOSTILE_IDS, ".", "..", "a/../b", "%2F", "events:tail", "s?x=1#y"])
def test_any_id_is_kept_verbatim(http: httpx.Client, id: str) -> None:
    ids = wire.session_path(id, id, id)
    made = http.post(wire.sessions_path(id, id), json={"sessionId": id})
    assert made.json()["id"] == made.json()["userId"] == made.json()["appName"] == id
    assert http.get(ids).json() == made.json()


def test_a_session_that_the_caller_has_is_not_sent_again(http: httpx.Client) -> None:
    create(http)
    tag = http.get(S).headers["etag"]
    assert http.get(S, headers={"if-none-match": tag}).status_code == 304
    http.patch(f"{S}/state", json={"set": {"a": 1}})
    assert http.get(S, headers={"if-none-match": tag}).status_code == 200


def test_a_long_session_comes_whole_to_any_client(
    http: httpx.Client, service: BaseSessionService
) -> None:
    create(http)
    for n in range(3):
        append(http, *(event("x" * 300, id=f"{n}-{m}") for m in range(1000)))
    answer = http.get(S, headers={"accept-encoding": "identity"})
    assert len(answer.content) > 2 * wire.CHUNK_BYTES
    assert [one["seq"] for one in answer.json()["events"]] == list(range(1, 3001))


@pytest.mark.parametrize(
    ("name", "unpacked"),
    [("gzip", gzip.decompress), ("zstd", zstandard.ZstdDecompressor().decompressobj().decompress)],
)
def test_an_answer_is_compressed_as_the_client_likes(
    http: httpx.Client, name: str, unpacked: Any
) -> None:
    create(http, state={"long": "x" * 10_000})
    with http.stream("GET", S, headers={"accept-encoding": name}) as answer:
        data = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == name
    assert json.loads(unpacked(data))["state"] == {"long": "x" * 10_000}


# -- events -------------------------------------------------------------------------------


def test_an_append_needs_no_revision(http: httpx.Client) -> None:
    create(http)
    append(http, event("a"))
    answer = append(http, event("b"), event("c"))
    assert [one["seq"] for one in answer.json()["stored"]] == [2, 3]
    assert answer.json()["missed"] == []


def test_an_append_at_an_older_revision_is_refused_with_what_was_missed(http: httpx.Client) -> None:
    create(http)
    append(http, event("a"))
    answer = append(http, event("b"), **{"if-match": '"0"'})
    assert refusal(answer) == (409, "StaleSessionError")
    error = answer.json()["error"]
    assert (error["expected"], error["revision"]) == (0, 1)
    assert error["missed"][0]["content"] == {"parts": [{"text": "a"}]}


def test_the_etag_of_an_answer_is_a_revision_to_append_at(http: httpx.Client) -> None:
    create(http)
    first = append(http, event("a"), **{"if-match": http.get(S).headers["etag"]})
    assert append(http, event("b"), **{"if-match": first.headers["etag"]}).status_code == 200


def test_a_rebase_tells_what_came_between(http: httpx.Client) -> None:
    create(http)
    append(http, event("a"))
    body = {"events": [event("b")], "onStale": "rebase"}
    answer = http.post(EVENTS, json=body, headers={"if-match": '"0"'}).json()
    assert (answer["revision"], [one["seq"] for one in answer["missed"]]) == (2, [1])


def test_an_idempotency_key_stores_once(http: httpx.Client) -> None:
    create(http)
    answers = [append(http, event("a"), event("b"), **{"idempotency-key": "k"}) for _ in range(3)]
    assert len({answer.text for answer in answers}) == 1
    assert len(http.get(S).json()["events"]) == 2


def test_an_idempotency_key_with_other_content_is_refused(http: httpx.Client) -> None:
    create(http)
    append(http, event("a"), **{"idempotency-key": "k"})
    answer = append(http, event("b"), **{"idempotency-key": "k"})
    assert refusal(answer) == (409, "EventConflictError")
    assert len(http.get(S).json()["events"]) == 1


def test_an_event_id_with_other_content_is_refused(http: httpx.Client) -> None:
    create(http)
    append(http, event("a", id="e", timestamp=1.0))
    assert append(http, event("a", id="e", timestamp=1.0)).status_code == 200
    assert refusal(append(http, event("b", id="e"))) == (409, "EventConflictError")


def test_events_are_read_from_either_end(http: httpx.Client) -> None:
    create(http)
    append(http, *(event(str(n)) for n in range(5)))
    first = http.get(EVENTS, params={"limit": 2}).json()
    last = http.get(EVENTS, params={"limit": 2, "reverse": "true"}).json()
    assert [one["seq"] for one in first["events"]] == [1, 2]
    assert [one["seq"] for one in last["events"]] == [4, 5]
    assert first["hasMore"]


def test_stored_bytes_pass_through(tmp_path: Path) -> None:
    """What is in the file is sent, with the seq before it: also a form that we would not write."""
    service = DatabaseSessionService(f"sqlite:///{tmp_path}/s.db")
    with served(service) as url, httpx.Client(base_url=url, verify=False) as http:
        create(http)
        append(http, event("a"))
        with sqlite3.connect(tmp_path / "s.db") as db:
            db.execute("UPDATE threadline_event SET body = ?", (b'{ "id":"x",  "new":1e+00 }',))
        for path in (EVENTS, S):
            assert '{"seq":1, "id":"x",  "new":1e+00 }' in http.get(path).text


def test_an_append_goes_to_the_end_whoever_wrote_or_deleted_meanwhile(
    http: httpx.Client, service: BaseSessionService
) -> None:
    create(http)
    append(http, event("a"))

    async def elsewhere() -> None:
        ids: Any = {"app_name": "app", "user_id": "ann", "session_id": "s"}
        await service.append_event(await service.get_or_create_session(**ids), Event(author="b"))

    asyncio.run(elsewhere())
    assert append(http, event("c")).json()["revision"] == 3
    asyncio.run(service.delete_session(app_name="app", user_id="ann", session_id="s"))
    assert append(http, event("d")).status_code == 404
    asyncio.run(elsewhere())
    answer = append(http, event("d"))
    assert (answer.json()["revision"], answer.json()["missed"]) == (2, [])


# -- state --------------------------------------------------------------------------------


def test_state_of_every_scope_is_patched_and_read(http: httpx.Client) -> None:
    create(http)
    for path in ("/v1/apps/app/state", "/v1/apps/app/users/ann/state", f"{S}/state"):
        changed = http.patch(path, json={"set": {"a": path}, "increment": {"n": 2}})
        assert changed.json() == {"state": {"a": path, "n": 2}}
        assert http.get(path).json() == {"state": {"a": path, "n": 2}}


def test_a_patch_that_expects_otherwise_changes_nothing(http: httpx.Client) -> None:
    create(http)
    answer = http.patch(f"{S}/state", json={"set": {"a": 1}, "expect": {"a": 0}})
    assert refusal(answer) == (409, "StateConflictError")
    http.patch(f"{S}/state", json={"set": {"a": 1}, "expectMissing": ["a"]})
    answer = http.patch(f"{S}/state", json={"set": {"a": 2}, "expectMissing": ["a"]})
    assert refusal(answer) == (409, "StateConflictError")
    assert http.get(f"{S}/state").json() == {"state": {"a": 1}}


# -- hostile input ------------------------------------------------------------------------

BAD_REQUESTS: list[tuple[str, str, Any, int]] = [
    ("POST", SESSIONS, b"{", 400),
    ("POST", SESSIONS, b"[]", 400),
    ("POST", SESSIONS, b"\xff\xfe\x00", 400),
    ("POST", SESSIONS, b"[" * 100_000, 400),
    ("POST", SESSIONS, b'{"state": {"a": 1%b}}' % (b"0" * 5000), 400),
    ("POST", SESSIONS, {"sessionId": 7}, 400),
    ("POST", SESSIONS, {"sessionId": ""}, 400),
    ("POST", SESSIONS, {"sessionId": "x" * 513}, 400),
    ("POST", SESSIONS, b'{"sessionId": "\\ud800"}', 400),
    ("POST", SESSIONS, {"state": []}, 400),
    ("POST", SESSIONS, {"ttl": -1}, 400),
    ("POST", SESSIONS, b'{"ttl": NaN}', 400),
    ("POST", SESSIONS, {"ttl": 1, "expireTime": 9e9}, 400),
    ("POST", SESSIONS, {"labels": {"a": 1}}, 400),
    ("POST", SESSIONS, {"sesionId": "s"}, 400),
    ("POST", SESSIONS, {"sessionId": "s"}, 409),
    ("POST", EVENTS, {"events": []}, 400),
    ("POST", EVENTS, {"events": [None]}, 400),
    ("POST", EVENTS, {"events": ["x"]}, 400),
    ("POST", EVENTS, {"events": [{"content": 1}]}, 400),
    ("POST", EVENTS, {"events": [{"id": "x" * 513}]}, 400),
    ("POST", EVENTS, {"events": [{"timestamp": "now"}]}, 400),
    ("POST", EVENTS, b'{"events": [{"timestamp": Infinity}]}', 400),
    ("POST", EVENTS, {"events": [{"partial": True}]}, 400),
    ("POST", EVENTS, {"events": [{"actions": {"stateDelta": {"k" * 1025: 1}}}]}, 400),
    ("POST", EVENTS, {"events": [{"id": "a"}, {"id": "a"}]}, 409),
    ("POST", EVENTS, {"events": [{}], "onStale": "ignore"}, 400),
    ("POST", EVENTS, {"events": [{}], "onStale": "raise"}, 400),
    ("POST", f"{SESSIONS}/missing/events", {"events": [{}]}, 404),
    ("PATCH", S, {"ttl": None}, 400),
    ("PATCH", S, {"ttl": 0}, 400),
    ("PATCH", S, {"ttl": 1, "expireTime": None}, 400),
    ("PATCH", S, {"labels": {"a": 1}}, 400),
    ("PATCH", S, b'{"displayName": "\\ud800"}', 400),
    ("PATCH", S, {"state": {}}, 400),
    ("PATCH", f"{SESSIONS}/missing", {}, 404),
    ("GET", f"/v1/apps/app/sessions/{'x' * 513}", {}, 400),
    ("PATCH", f"{S}/state", {"set": {"user:a": 1}}, 400),
    ("PATCH", f"{S}/state", {"increment": {"a": "1"}}, 400),
    ("PATCH", f"{S}/state", {"set": {"a": 1}, "delete": ["a"]}, 400),
    ("PATCH", f"{SESSIONS}/missing/state", {"set": {"a": 1}}, 404),
    ("POST", S, {}, 405),
    ("POST", "/v1/apps/app/users//sessions", {}, 404),
    ("POST", "/v1/apps/app/users/%ff/sessions", {}, 400),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"), BAD_REQUESTS, ids=range(len(BAD_REQUESTS))
)
def test_a_bad_request_is_refused_and_writes_nothing(
    http: httpx.Client, method: str, path: str, body: Any, status: int
) -> None:
    create(http)
    before = everything(http)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = http.request(method, path, content=data, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) >= {"type", "message"}
    assert everything(http) == before


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=1001", "limit=x", "limit=1&unknown=2", "cursor=nonsense",
        "order=title", "descending=maybe",
    ],
)  # fmt: skip
def test_a_bad_query_is_refused(http: httpx.Client, query: str) -> None:
    assert refusal(http.get(f"{SESSIONS}?{query}"))[0] == 400


@pytest.mark.parametrize(
    "query", ["limit=1001", "after_seq=-1", "after_seq=x", "before_seq=99999999999999999999"]
)
def test_a_bad_page_of_events_is_refused(http: httpx.Client, query: str) -> None:
    create(http)
    assert refusal(http.get(f"{EVENTS}?{query}"))[0] == 400


@pytest.mark.parametrize("tag", ["x", "1", '"x"', "*", '"1", "2"', '"99999999999"', '"-1"'])
def test_a_bad_revision_is_refused(http: httpx.Client, tag: str) -> None:
    create(http)
    assert refusal(append(http, event(), **{"if-match": tag}))[0] == 400
    assert http.get(S).json()["events"] == []


def test_a_body_of_another_kind_is_refused(http: httpx.Client) -> None:
    """A page in a browser can send plain text to another site without being asked; not JSON."""
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = http.post(SESSIONS, content="{}", headers={"content-type": kind})
        assert refusal(answer) == (415, "UnsupportedMediaType")
    answer = http.post(
        SESSIONS,
        content=gzip.compress(b"{}"),
        headers={"content-type": "application/json", "content-encoding": "gzip"},
    )
    assert refusal(answer) == (415, "UnsupportedMediaType")


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_that_is_too_large_is_refused(
    service: BaseSessionService, is_announced: bool
) -> None:
    with served(service, body_bytes_max=1000) as url:
        data = json.dumps({"state": {"a": "x" * 5000}}).encode()
        body: Any = data if is_announced else iter([data[:500], data[500:]])
        answer = plain.post(
            url + SESSIONS, content=body, headers={"content-type": "application/json"}
        )
        assert refusal(answer) == (413, "RequestTooLargeError")
        assert plain.get(url + SESSIONS).json()["sessions"] == []


# -- keys ---------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


@pytest.fixture
def guarded(service: BaseSessionService, keys: KeyFile) -> Iterator[str]:
    keys.create()
    with served(service, keys=keys) as url:
        yield url


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_a_key_may_come_in_three_ways(guarded: str, keys: KeyFile) -> None:
    token = keys.create(writes=True)
    for headers, query in (
        (bearer(token), ""), ({"x-goog-api-key": token}, ""), ({}, f"?key={token}"),
    ):  # fmt: skip
        assert plain.post(guarded + SESSIONS + query, json={}, headers=headers).status_code == 201


@pytest.mark.parametrize("token", [None, "", "x", "tl_00000000_x", "tl__", "Basic", "é".encode()])
def test_without_a_right_key_nothing_is_answered(guarded: str, token: Any) -> None:
    headers = {} if token is None else {"x-goog-api-key": token}
    answer = plain.get(guarded + SESSIONS, headers=headers)
    assert refusal(answer) == (401, "UnauthenticatedError")
    assert "bearer" in answer.headers["www-authenticate"].lower()


def test_a_key_with_a_changed_secret_is_refused(guarded: str, keys: KeyFile) -> None:
    token = keys.create()
    assert plain.get(guarded + SESSIONS, headers=bearer(token)).status_code == 200
    assert plain.get(guarded + SESSIONS, headers=bearer(token[:-1] + "!")).status_code == 401


def test_a_revoked_key_is_refused_at_once(guarded: str, keys: KeyFile) -> None:
    token = keys.create()
    assert plain.get(guarded + SESSIONS, headers=bearer(token)).status_code == 200
    keys.revoke(keys.all()[-1].id)
    assert plain.get(guarded + SESSIONS, headers=bearer(token)).status_code == 401


def test_a_key_file_that_cannot_be_read_lets_nobody_in(
    guarded: str, keys: KeyFile, tmp_path: Path
) -> None:
    token = keys.create()
    (tmp_path / "keys.json").write_text("{")
    assert plain.get(guarded + SESSIONS, headers=bearer(token)).status_code == 401


OPERATION_PATHS = [
    ("GET", SESSIONS, None), ("POST", SESSIONS, {}), ("GET", "/v1/apps/app/sessions", None),
    ("GET", S, None), ("PUT", S, {}), ("PATCH", S, {}), ("DELETE", S, None), ("DELETE", USER, None),
    ("GET", EVENTS, None),
    ("POST", EVENTS, {"events": [{}]}), ("GET", f"{EVENTS}:tail", None),
    ("GET", "/v1/apps/app/state", None), ("PATCH", "/v1/apps/app/state", {"set": {"a": 1}}),
    ("GET", "/v1/apps/app/users/ann/state", None),
    ("PATCH", "/v1/apps/app/users/ann/state", {"set": {"a": 1}}),
    ("GET", f"{S}/state", None), ("PATCH", f"{S}/state", {"set": {"a": 1}}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "reach"),
    [
        (*operation, reach)
        for operation in OPERATION_PATHS
        for reach in ({"apps": ["other"]}, {"users": ["other"]}, {"writes": False})
        if operation[0] != "GET" or "writes" not in reach
    ],
)
def test_no_operation_answers_a_key_that_does_not_reach_it(
    guarded: str, keys: KeyFile, method: str, path: str, body: Any, reach: Any
) -> None:
    token = keys.create(**{"writes": True, **reach})
    answer = plain.request(method, guarded + path, json=body, headers=bearer(token))
    assert refusal(answer) == (403, "PermissionDeniedError")


def test_a_key_of_a_user_cannot_list_the_users_of_an_app(guarded: str, keys: KeyFile) -> None:
    token = keys.create(apps=["app"], users=["ann"])
    assert plain.get(guarded + SESSIONS, headers=bearer(token)).status_code == 200
    answer = plain.get(f"{guarded}/v1/apps/app/sessions", headers=bearer(token))
    assert answer.status_code == 403


def test_a_key_is_told_of_its_own_apps_and_users_only(guarded: str, keys: KeyFile) -> None:
    everywhere = bearer(keys.create(writes=True))
    for app, user in (("app", "ann"), ("app", "ben"), ("other", "ann")):
        plain.put(guarded + wire.session_path(app, user, "s"), headers=everywhere)

    def told(path: str, **reach: Any) -> Any:
        answer = plain.get(f"{guarded}/v1/apps{path}", headers=bearer(keys.create(**reach)))
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert told("")["apps"] == ["app", "other"]
    assert told("", apps=["app", "none"])["apps"] == ["app"]
    found = told("/app/sessions/s", users=["ben", "eve"])
    assert [session["userId"] for session in found["sessions"]] == ["ben"]
    answer = plain.get(
        f"{guarded}/v1/apps/app/sessions/s", headers=bearer(keys.create(apps=["other"]))
    )
    assert refusal(answer) == (403, "PermissionDeniedError")


def test_the_file_of_keys_holds_no_key(keys: KeyFile, tmp_path: Path) -> None:
    token = keys.create()
    assert token.split("_", 2)[2] not in (tmp_path / "keys.json").read_text()
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0


def test_without_keys_another_name_of_this_machine_is_refused(http: httpx.Client) -> None:
    """A web page's own name may lead to 127.0.0.1; its scripts must get nothing."""
    answer = http.get(SESSIONS, headers={"host": "evil.example"})
    assert refusal(answer) == (401, "UnauthenticatedError")
    answer = http.get(SESSIONS, headers={"x-forwarded-for": "203.0.113.9"})
    assert refusal(answer) == (401, "UnauthenticatedError")


@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://a.example", 200), ("http://localhost:3000", 200), ("null", 401), ("http://[", 401)],
)
def test_without_keys_pages_of_other_sites_write_nothing(
    service: BaseSessionService, origin: str, status: int
) -> None:
    # What a page may send without being asked for: no preflight comes before it.
    headers = {"origin": origin, "content-type": "text/plain"}
    with served(service, cors_origins=["https://a.example"]) as url:
        answer = plain.post(f"{url}/apps/a/users/u/sessions", content="{}", headers=headers)
        assert answer.status_code == status


def test_no_origin_may_call_unless_it_was_named(service: BaseSessionService) -> None:
    origin = {"origin": "https://a.example"}
    with served(service) as url:
        assert (
            "access-control-allow-origin" not in plain.get(url + SESSIONS, headers=origin).headers
        )
    with served(service, cors_origins=["https://a.example"]) as url:
        answer = plain.get(url + SESSIONS, headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"


def test_every_write_has_an_audit_line_without_the_key(
    guarded: str, keys: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    token = keys.create(writes=True)
    with caplog.at_level(logging.INFO, "threadline.audit"):
        plain.put(f"{guarded}{SESSIONS}/a%0Ab?key={token}")
        plain.get(f"{guarded}{SESSIONS}?key={token}")
    (line,) = [json.loads(record.getMessage()) for record in caplog.records]
    assert line["path"].endswith("/a%0Ab")
    assert (line["key"], line["method"], line["status"]) == (keys.all()[-1].id, "PUT", 200)
    assert token.split("_", 2)[2] not in caplog.text


def test_a_route_that_forgot_to_ask_answers_nothing(
    service: BaseSessionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forgetful(_: Request) -> PlainTextResponse:
        return PlainTextResponse("secret")

    monkeypatch.setattr(
        threadline.server.app, "_own_routes", lambda *_: [Route("/forgot", forgetful)]
    )
    with served(service) as url:
        answer = plain.get(f"{url}/forgot")
    assert (answer.status_code, "secret" in answer.text) == (500, False)


# -- tails --------------------------------------------------------------------------------


def frames(lines: Iterator[str], count: int) -> list[tuple[str, dict[str, Any]]]:
    """Read events of a stream: their ids and data."""
    found, id = [], ""
    for line in lines:
        if line.startswith("id: "):
            id = line[4:]
        elif line.startswith("data: "):
            found.append((id, json.loads(line[6:])))
            if len(found) == count:
                break
    return found


def test_a_tail_begins_where_it_is_told_and_goes_on(http: httpx.Client) -> None:
    create(http)
    append(http, event("1"), event("2"))
    with http.stream("GET", f"{EVENTS}:tail", params={"after_seq": 1}) as answer:
        lines = answer.iter_lines()
        ((_, first),) = frames(lines, 1)
        append(http, event("3"))
        ((_, second),) = frames(lines, 1)
    assert [first["seq"], second["seq"]] == [2, 3]


def test_a_tail_sees_what_another_process_appends(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/s.db"

    async def elsewhere() -> None:
        async with DatabaseSessionService(database) as other:
            session = await other.get_session(app_name="app", user_id="ann", session_id="s")
            assert session is not None
            await other.append_event(session, Event(author="a"))

    with (
        served(DatabaseSessionService(database)) as url,
        httpx.Client(base_url=url, verify=False) as http,
    ):
        create(http)
        with http.stream("GET", f"{EVENTS}:tail") as answer:
            lines = answer.iter_lines()
            next(lines)
            asyncio.run(elsewhere())
            assert len(frames(lines, 1)) == 1


def test_a_tail_goes_on_after_the_last_event_that_was_received(http: httpx.Client) -> None:
    create(http)
    append(http, event("1"), event("2"), event("3"))
    with http.stream("GET", f"{EVENTS}:tail") as answer:
        (_, (id, _)) = frames(answer.iter_lines(), 2)
    with http.stream("GET", f"{EVENTS}:tail", headers={"last-event-id": id}) as answer:
        ((_, third),) = frames(answer.iter_lines(), 1)
    assert third["seq"] == 3


def test_a_tail_does_not_go_on_in_a_session_that_took_the_id(http: httpx.Client) -> None:
    create(http)
    append(http, event("1"))
    with http.stream("GET", f"{EVENTS}:tail") as answer:
        ((id, _),) = frames(answer.iter_lines(), 1)
    http.delete(S)
    create(http)
    answer = http.get(f"{EVENTS}:tail", headers={"last-event-id": id})
    assert refusal(answer) == (404, "SessionNotFoundError")
    assert refusal(http.get(f"{EVENTS}:tail", headers={"last-event-id": "x"}))[0] == 400


def test_a_tail_tells_when_its_session_is_deleted(http: httpx.Client) -> None:
    create(http)
    with http.stream("GET", f"{EVENTS}:tail") as answer:
        lines = answer.iter_lines()
        next(lines)
        http.delete(S)
        ((_, told),) = frames(lines, 1)
    assert told["error"]["type"] == "SessionNotFoundError"


def test_a_reader_that_takes_nothing_is_cut_off(service: BaseSessionService) -> None:
    tails = Tails(service, send_timeout_s=0.5, poll_s=0.1)
    with served(service, tails=tails) as url, httpx.Client(base_url=url, verify=False) as http:
        create(http)
        for n in range(8):
            append(http, event("x" * 1_000_000, id=str(n)))
        where = httpx.URL(url)
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect((where.host, where.port))
            slow.sendall(
                f"GET {where.path}{EVENTS}:tail HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()
            )
            wait_until(lambda: len(tails) == 1)
            wait_until(lambda: len(tails) == 0)
        assert http.get(S).status_code == 200


def test_a_reader_that_leaves_is_forgotten(service: BaseSessionService) -> None:
    tails = Tails(service)
    with served(service, tails=tails) as url, httpx.Client(base_url=url, verify=False) as http:
        create(http)
        with http.stream("GET", f"{EVENTS}:tail") as answer:
            lines = answer.iter_lines()
            next(lines)
            assert len(tails) == 1
        wait_until(lambda: len(tails) == 0)


# -- the server itself --------------------------------------------------------------------


def test_the_document_is_valid(http: httpx.Client) -> None:
    validate(http.get("/openapi.json").json())


def test_the_page_of_the_document_needs_nothing_from_elsewhere(http: httpx.Client) -> None:
    page = http.get("/docs").text
    assert "Store events at the end" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page


def test_the_page_leads_to_every_operation_and_type_that_it_shows(http: httpx.Client) -> None:
    page = http.get("/docs").text
    assert {*re.findall('href="#(.+?)"', page)} == {*re.findall(' id="(.+?)"', page)}


def test_metrics_count_requests_by_route_and_name_nobody(http: httpx.Client) -> None:
    create(http)
    http.get(S)
    text = http.get("/metrics").text
    line = 'method="GET",route="/v1/apps/{app:id}/users/{user:id}/sessions/{session:id}"'
    assert f'threadline_requests_total{{{line},status="200"}} 1' in text
    assert "ann" not in text


def test_metrics_are_for_keys_that_reach_everything(guarded: str, keys: KeyFile) -> None:
    assert plain.get(f"{guarded}/metrics").status_code == 401
    assert (
        plain.get(f"{guarded}/metrics", headers=bearer(keys.create(apps=["a"]))).status_code == 403
    )
    assert plain.get(f"{guarded}/metrics", headers=bearer(keys.create())).status_code == 200


def test_health_and_readiness_need_no_key(guarded: str) -> None:
    assert plain.get(f"{guarded}/healthz").text == "ok"
    assert plain.get(f"{guarded}/readyz").text == "ok"


def test_a_server_that_ends_is_not_ready(service: BaseSessionService) -> None:
    tails = Tails(service)
    with served(service, tails=tails) as url:
        tails.close()
        assert plain.get(f"{url}/readyz").status_code == 503


# -- the command --------------------------------------------------------------------------


def test_it_refuses_to_be_open_to_the_network() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "threadline.cli", "serve", "--db", "memory://", "--host", "0.0.0.0"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1
    assert "--keys" in done.stderr


@pytest.mark.parametrize("db", ["memory://", "sqlite:///:memory:"])
def test_it_refuses_to_give_each_worker_a_memory_of_its_own(db: str) -> None:
    with pytest.raises(InvalidInputError, match="2 workers"):
        Settings(db=db, workers=2).check()
    Settings(db=db).check()


def test_a_database_that_cannot_be_opened_is_one_message(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "threadline.cli", "serve"),
            *("--db", f"sqlite:///{tmp_path}/missing/s.db", "--port", "0"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("threadline: ")
    assert done.stderr.count("\n") == 1


def test_two_processes_serve_one_database_and_end_gracefully(tmp_path: Path) -> None:
    """Also: every append that was under way at the end was answered and stored."""
    with command(f"sqlite:///{tmp_path}/s.db", "--workers", "2") as running:
        answered: list[str] = []
        with httpx.Client(verify=False, base_url=running.url) as http:
            create(http)

        def write(writer: int) -> None:
            with httpx.Client(
                verify=False, base_url=running.url, headers={"connection": "close"}
            ) as http:
                for n in range(1000):
                    try:
                        answer = append(http, event(id=f"{writer}-{n}"), connection="close")
                    except httpx.TransportError:
                        return  # it was not accepted, and so must not be stored
                    assert answer.status_code == 200
                    answered.append(f"{writer}-{n}")

        writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for writer in writers:
            writer.start()
        wait_until(lambda: len(answered) > 50)
        code, written = running.end()
        for writer in writers:
            writer.join()
    assert code == 0, written

    async def stored() -> set[str]:
        async with DatabaseSessionService(f"sqlite:///{tmp_path}/s.db") as service:
            session = await service.get_session(app_name="app", user_id="ann", session_id="s")
            assert session is not None
            return {one.id for one in session.events}

    assert asyncio.run(stored()) == set(answered)


def test_a_signal_that_comes_while_it_starts_is_not_lost(tmp_path: Path) -> None:
    script = """
import signal, sys
from threadline.server import process

class Server(process.Server):
    def run(self, sockets):
        signal.raise_signal(signal.SIGTERM)  # nobody listens to it yet but ourselves
        super().run(sockets)

process.Server = Server
process.serve(process.Settings(db=sys.argv[1], port=0))
"""
    db = f"sqlite:///{tmp_path}/s.db"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, db], check=True, timeout=30)


def test_a_tail_ends_when_the_server_does(tmp_path: Path) -> None:
    with (
        command(f"sqlite:///{tmp_path}/s.db") as running,
        httpx.Client(verify=False, base_url=running.url) as http,
    ):
        create(http)
        with http.stream("GET", f"{EVENTS}:tail") as answer:
            lines = answer.iter_lines()
            next(lines)
            code, _ = running.end()
            assert list(lines) == [""]
        assert code == 0


# -- the remote service -------------------------------------------------------------------


def test_the_remote_service_sends_its_token(guarded: str, keys: KeyFile) -> None:
    async def run() -> None:
        async with RemoteSessionService(guarded, token=keys.create(writes=True)) as service:
            await service.create_session(app_name="app", user_id="ann", session_id="s")
            found = await service.get_session(app_name="app", user_id="ann", session_id="s")
            assert found is not None

    asyncio.run(run())
