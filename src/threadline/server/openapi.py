"""The OpenAPI 3.1 document of the native API, made from its table."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from threadline import wire
from threadline.engines.base import ID_BYTES_MAX
from threadline.errors import RequestTooLargeError, ThreadlineError
from threadline.server.routes import OPERATIONS, REFUSALS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from threadline.server.routes import Operation

_TEXT = {"type": "string"}
_EVENT = {
    "type": "object",
    "description": "One thing that happened; ADK's Event in camelCase. Other fields are kept.",
    "properties": {
        "seq": {"type": "integer", "description": "Its place, given by the store."},
        "id": {**_TEXT, "description": "Made if it is left out."},
        "timestamp": {"type": "number", "description": "Seconds since the epoch; now if left out."},
        "author": _TEXT,
        "invocationId": _TEXT,
        "content": {"type": ["object", "null"]},
        "actions": {
            "type": "object",
            "properties": {"stateDelta": {"type": "object"}},
        },
    },
}
_HEADERS = {
    "If-Match": 'The revision that the caller knows, like `"17"`, or the ETag of an answer.',
    "If-None-Match": "An ETag; where it is still right the answer is 304.",
    "Idempotency-Key": "Makes the ids of events that have none, so that a retry is harmless.",
    "Last-Event-ID": "The id of the last event received; it goes before `after_seq`.",
}
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "x-goog-api-key"},
    "query": {"type": "apiKey", "in": "query", "name": "key"},
}


def document(version: str) -> dict[str, Any]:
    """Return the OpenAPI document as JSON types."""
    types = {kind for operation in OPERATIONS for kind in (operation.body, operation.answer)}
    kinds = [*sorted(filter(None, types), key=lambda kind: kind.__name__), wire.ErrorAnswer]
    _, schemas = msgspec.json.schema_components(
        [*kinds, wire.Fault], ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        path = operation.path.replace(":id}", "}")
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "threadline",
            "version": version,
            "description": "Sessions of AI agents: events, state and live tails.",
        },
        "paths": paths,
        "components": {
            "schemas": {"Event": _EVENT, **schemas},
            "securitySchemes": _SCHEMES,
        },
        "security": [{name: []} for name in _SCHEMES],
    }


def _operation(operation: Operation) -> dict[str, Any]:
    description = (operation.handler.__doc__ or "").partition("\n")[2]
    told: dict[str, Any] = {
        "operationId": _name(operation),
        "summary": operation.summary,
        "parameters": [*_parameters(operation)],
        "responses": {str(status): answer for status, answer in sorted(_answers(operation))},
    }
    if description.strip():
        told["description"] = " ".join(description.split())
    if operation.body is not None:
        told["requestBody"] = {
            "required": any(field.required for field in msgspec.structs.fields(operation.body)),
            "content": {wire.JSON: {"schema": _ref(operation.body)}},
        }
    return told


def _name(operation: Operation) -> str:
    """Return a name that no other operation has: the handler's, and of whom it is."""
    of = [part for part in ("app", "user", "session") if f"{{{part}:" in operation.path]
    return "_of_".join([operation.handler.__name__, *of[-1:]])


def _parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+):id}", operation.path):
        schema = {**_TEXT, "minLength": 1, "maxLength": ID_BYTES_MAX}
        yield {"name": name, "in": "path", "required": True, "schema": schema}
    _, schemas = msgspec.json.schema_components([operation.query])
    for name, schema in schemas[operation.query.__name__]["properties"].items():
        # A parameter that is left out is null; there is no other way to write one.
        plain = next((one for one in schema.get("anyOf", ()) if one.get("type") != "null"), schema)
        yield {"name": name, "in": "query", "schema": {**_LIMITS.get(name, {}), **plain}}
    for name in operation.headers:
        yield {"name": name, "in": "header", "description": _HEADERS[name], "schema": _TEXT}


_LIMITS: dict[str, dict[str, Any]] = {
    "limit": {"minimum": 1, "maximum": wire.PAGE_MAX},
    "order": {"enum": ["updated", "created"]},
    "num_recent_events": {"minimum": 0},
    "after_seq": {"minimum": 0},
    "before_seq": {"minimum": 0},
}


def _answers(operation: Operation) -> Iterator[tuple[int, dict[str, Any]]]:
    content: dict[str, Any] = {}
    if operation.answer is not None:
        content = {"content": {wire.JSON: {"schema": _ref(operation.answer)}}}
    elif operation.status == 200:
        content = {"content": {"text/event-stream": {"schema": _TEXT}}}
    yield operation.status, {"description": HTTPStatus(operation.status).phrase, **content}
    if "If-None-Match" in operation.headers:
        yield 304, {"description": HTTPStatus(304).phrase}
    refusals: list[type[ThreadlineError]] = [*REFUSALS, *operation.refusals]
    statuses = {503, 507}
    if operation.body is not None:
        refusals.append(RequestTooLargeError)
        statuses.add(415)
    statuses |= {wire.status_of(kind("")) for kind in refusals}
    for status in statuses:
        yield (
            status,
            {
                "description": HTTPStatus(status).phrase,
                "content": {wire.JSON: {"schema": _ref(wire.ErrorAnswer)}},
            },
        )


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
