"""Values that nobody expects, in every field of every API: refused or kept, never a failure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from servers import new_database, postgres
from servers_http import served
from servers_mysql import database, server
from threadline import DatabaseSessionService

VALUES = [
    *("null", "true", "0", "-1", "1.5", "-0.0", "1e308", "1e999", "NaN", "Infinity"),
    *("12345678901234567890123", "9" * 5000),
    *('"x"', '""', '"\\ud800"', '"\\u0000"', '"' + "x" * 70_000 + '"'),
    *('"9999-99-99T99:99:99Z"', '"2024-01-01T00:00:00+99:99"', '"1e400s"'),
    *('{"seconds":1e308,"nanos":-1}', '{"seconds":"x"}'),
    *("[]", "{}", "[1]", "[[1]]", '{"a":1}', '{"":{"":null}}', '{"__proto__":1}'),
    *("[" * 200 + "]" * 200, "[" * 5000 + "]" * 5000),
]
TEXTS = [
    *("", "0", "-1", "1", "9" * 20, "abc", "1.5", "nan", "inf", "-inf", "1e400", "true", "null"),
    *("\0", '"', "x" * 3000, "((((", "a=b AND", 'user_id="u', 'labels.a="x"', "create_time desc"),
    *('timestamp>="x"', 'timestamp>="9999-12-31T23:59:59Z"', "timestamp", "2025-01-01"),
    *("W10", "eyJ9", "bnVsbA", "WzEsMl0", "W251bGwsbnVsbCwiYSJd", "WyIiLCIiLCIiXQ"),
]

EVENT = [
    *("id", "timestamp", "author", "invocationId", "content", "actions", "longRunningToolIds"),
    *("branch", "partial", "errorCode", "customMetadata", "usageMetadata", "seq", "output"),
]
ACTIONS = ["stateDelta", "artifactDelta", "compaction", "transferToAgent", "agentState"]
SESSION = ["userId", "displayName", "labels", "sessionState", "ttl", "expireTime"]
ENVELOPES = ["author", "timestamp", "content", "actions", "eventMetadata", "rawEvent"]
SIDE = ["_compaction", "_usage_metadata", "_workflow"]
COMPACTION = '"eventMetadata":{"customMetadata":{"_compaction":{"startTime":1,"NAME":VALUE}}}}'
PART = ["text", "inlineData", "functionCall", "functionResponse", "thoughtSignature", "fileData"]

NATIVE = "/v1/apps/e/users/u/sessions"
VERTEX = "/v1beta1/reasoningEngines/e/sessions"
ADK = "/apps/e/users/u/sessions"


APPEND = f"{VERTEX}/s:appendEvent"
ENVELOPE = '{"author":"a","invocationId":"i",'
PLACES: list[tuple[str, str, str, list[str]]] = [
    ("POST", NATIVE, "VALUE", []),
    ("POST", NATIVE, '{"NAME":VALUE}', ["sessionId", "state", "ttl", "expireTime", "labels"]),
    ("PUT", f"{NATIVE}/p", '{"NAME":VALUE}', ["state", "ttl", "expireTime", "displayName"]),
    ("POST", f"{NATIVE}/s/events", '{"events":VALUE}', []),
    ("POST", f"{NATIVE}/s/events", '{"events":[{"NAME":VALUE}]}', EVENT),
    ("POST", f"{NATIVE}/s/events", '{"events":[{"actions":{"NAME":VALUE}}]}', ACTIONS),
    ("POST", f"{NATIVE}/s/events", '{"events":[{"content":{"parts":[{"NAME":VALUE}]}}]}', PART),
    ("PATCH", f"{NATIVE}/s/state", '{"NAME":VALUE}', ["set", "delete", "increment", "expect"]),
    ("PATCH", "/v1/apps/e/state", '{"NAME":{"k":VALUE}}', ["set", "increment", "expect"]),
    ("POST", VERTEX, "VALUE", []),
    ("POST", VERTEX, '{"userId":"u","NAME":VALUE}', SESSION),
    ("PATCH", f"{VERTEX}/t", '{"NAME":VALUE}', SESSION),
    ("POST", APPEND, "VALUE", []),
    ("POST", APPEND, ENVELOPE + '"NAME":VALUE}', ENVELOPES),
    ("POST", APPEND, ENVELOPE + '"rawEvent":{"NAME":VALUE}}', EVENT),
    ("POST", APPEND, ENVELOPE + '"actions":{"NAME":VALUE}}', ACTIONS),
    ("POST", APPEND, ENVELOPE + '"content":{"parts":[{"NAME":VALUE}]}}', PART),
    ("POST", APPEND, ENVELOPE + '"eventMetadata":{"NAME":VALUE}}', EVENT),
    ("POST", APPEND, ENVELOPE + '"eventMetadata":{"customMetadata":{"NAME":VALUE}}}', SIDE),
    ("POST", APPEND, ENVELOPE + COMPACTION, ["startTime", "endTime"]),
    ("POST", ADK, "VALUE", []),
    ("POST", ADK, '{"NAME":VALUE}', ["sessionId", "state", "events", "options"]),
    ("POST", ADK, '{"events":[{"NAME":VALUE}]}', EVENT),
    ("POST", f"{ADK}/z", "VALUE", []),
    ("PATCH", f"{ADK}/s", '{"stateDelta":VALUE}', []),
]
QUERIES = [
    (f"{NATIVE}?NAME=TEXT", ["limit", "cursor", "order", "descending", "state", "zzz"]),
    (f"{NATIVE}/s/events?NAME=TEXT", ["limit", "after_seq", "before_seq", "reverse"]),
    (f"{NATIVE}/s?NAME=TEXT", ["num_recent_events", "after_timestamp", "after_seq"]),
    (f"{NATIVE}/TEXT", []),
    (f"{VERTEX}?NAME=TEXT", ["pageSize", "pageToken", "filter", "orderBy"]),
    (f"{VERTEX}/s/events?NAME=TEXT", ["pageSize", "pageToken", "filter", "orderBy"]),
    (f"{VERTEX}/TEXT", []),
    ("/v1/projects/p/locations/l/operations/TEXT", []),
    (f"{ADK}/TEXT", []),
    ("/list-apps?detailed=TEXT", []),
]


def requests() -> Iterator[tuple[str, str, str | None]]:
    """Yield a request for each value in each place: method, path and body."""
    for method, path, template, names in PLACES:
        for name in names or [""]:
            for value in VALUES:
                yield method, path, template.replace("NAME", name).replace("VALUE", value)
    for template, names in QUERIES:
        for name in names or [""]:
            for text in TEXTS:
                yield "GET", template.replace("NAME", name).replace("TEXT", quote(text)), None
    for text in TEXTS:
        yield "PATCH", f"{VERTEX}/s?updateMask={quote(text)}", "{}"
        yield "POST", f"{VERTEX}?sessionId={quote(text)}", '{"userId":"u"}'


@pytest.mark.parametrize(
    ("engine", "step"),
    [
        ("sqlite", 5),  # every fifth of them with every run, and all with the long ones
        *(pytest.param(one, 1, marks=pytest.mark.soak) for one in ("sqlite", "postgres", "mysql")),
    ],
)
def test_no_value_in_any_field_is_a_failure(engine: str, step: int, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        if engine == "sqlite":
            where = f"sqlite:///{tmp_path}/s.db"
        elif engine == "postgres":
            where = stack.enter_context(new_database(postgres("found")))
        else:
            where = server().url(stack.enter_context(database()))
        url = stack.enter_context(served(DatabaseSessionService(where)))
        http = stack.enter_context(httpx.Client(base_url=url, verify=False, timeout=30))
        http.headers["content-type"] = "application/json"
        for id in ("s", "t"):  # t expires in the course of it
            assert http.post(f"{VERTEX}?sessionId={id}", content=b'{"userId":"u"}').is_success
        for method, path, body in islice(requests(), 0, None, step):
            answer = http.request(method, path, content=body)
            told = (method, path[:200], (body or "")[:200], answer.status_code, answer.text[:300])
            assert answer.status_code < 500 or answer.status_code == 501, told
            assert answer.headers["content-type"] == "application/json", told
            answer.json()
        # Whatever was kept does not keep anybody from reading it.
        for path in (NATIVE, VERTEX, ADK):
            for more in ("", "/s"):
                answer = http.get(path + more)
                assert answer.status_code == 200, answer.text[:300]
                answer.json()
