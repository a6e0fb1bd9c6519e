"""The OpenAPI 3.1 document of the native API, made from its table, and a page that shows it."""

from __future__ import annotations

import html
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


# -- the page ---------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #8881;
  --link: light-dark(#0550ae, #79c0ff) }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 3rem } h3 { margin: 0; padding: .5rem 1rem; background: var(--faint) }
a { color: var(--link); text-decoration: none } a:hover { text-decoration: underline }
code { font: .875rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere }
nav p { margin: .25rem 0; padding-left: 4.5rem; text-indent: -4.5rem } nav a { margin-right: 1ch }
section { border: 1px solid var(--line); border-radius: .5rem; overflow: auto;
  margin: 1rem 0; scroll-margin-top: 1rem } section p { margin: .5rem 1rem }
section:target { border-color: var(--link) }
table { border-collapse: collapse; width: 100% } tr { border-top: 1px solid var(--line) }
td { padding: .25rem 1rem; vertical-align: top; width: 60% } td:not(:last-child) { width: 20% }
td:first-child { white-space: nowrap }
b { display: inline-block; width: 4.5rem; font-size: .875rem; text-indent: 0 }
.get { color: light-dark(#0a5c36, #7ee2a8) } .delete { color: light-dark(#a40e26, #ff9a92) }
.post, .put, .patch { color: light-dark(#7a4100, #f0b972) }
@media (max-width: 40rem) { td { padding: .25rem .5rem } }
"""


def page(told: dict[str, Any]) -> str:
    """Return the document as a page that needs nothing else: no script, nothing from elsewhere."""
    operations = [
        (method, path, operation)
        for path, operations in told["paths"].items()
        for method, operation in operations.items()
    ]
    contents = [
        f'<p>{_method(method)}<a href="#{operation["operationId"]}"><code>{html.escape(path)}'
        f"</code></a> {_prose(operation['summary'])}"
        for method, path, operation in operations
    ]
    sections = [_section(*operation) for operation in operations]
    types = [_type(name, schema) for name, schema in told["components"]["schemas"].items()]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>threadline</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style><h1>threadline {html.escape(told['info']['version'])}</h1>"
        f"<p>{html.escape(told['info']['description'])} "
        'The document for programs is <a href="openapi.json">openapi.json</a>.</p>'
        f"<h2>Operations</h2><nav>{''.join(contents)}</nav>{''.join(sections)}<h2>Types</h2>{''.join(types)}</html>"
    )


def _section(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = [
        (f"<code>{html.escape(one['name'])}</code>", one["in"], _meaning(one["schema"], one))
        for one in operation["parameters"]
    ]
    if "requestBody" in operation:
        rows.append(("body", "", _body(operation["requestBody"]["content"])))
    refused = []
    for status, answer in operation["responses"].items():
        if status < "400":
            shown = _body(answer.get("content", {}))
            rows.append((status, html.escape(answer["description"]), shown))
        else:
            refused.append(f'<span title="{answer["description"]}">{status}</span>')
            refusal = _body(answer["content"])
    rows.append(("else", ", ".join(refused), refusal))
    text = f"{operation['summary']} {operation.get('description', '')}"
    return (
        f'<section id="{operation["operationId"]}"><h3>{_method(method)}'
        f"<code>{html.escape(path)}</code></h3><p>{_prose(text)}</p>{_table(rows)}</section>"
    )


def _type(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        (
            f"<code>{html.escape(field)}</code>",
            "required" if field in required and name.endswith("Body") else "",
            _meaning(one, one),
        )
        for field, one in schema["properties"].items()
    ]
    return (
        f'<section id="{name}"><h3><code>{name}</code></h3>'
        f"<p>{_prose(schema['description'])}</p>{_table(rows)}</section>"
    )


def _method(method: str) -> str:
    return f'<b class="{method}">{method.upper()}</b>'


def _table(rows: list[tuple[str, str, str]]) -> str:
    return f"<table>{''.join('<tr><td>' + '<td>'.join(row) for row in rows)}</table>"


def _prose(text: str) -> str:
    return re.sub("`(.*?)`", r"<code>\1</code>", html.escape(text))


def _body(content: dict[str, Any]) -> str:
    return "".join(
        _shape(one["schema"]) if kind == wire.JSON else kind for kind, one in content.items()
    )


def _meaning(schema: dict[str, Any], of: dict[str, Any]) -> str:
    told = [_shape(schema), _prose(of.get("description", ""))]
    return ". ".join(filter(None, told))


def _shape(schema: dict[str, Any]) -> str:
    """Return a schema in words, and a link to what it refers to."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#{name}"><code>{name}</code></a>'
    if "anyOf" in schema:
        return " or ".join(map(_shape, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(schema["enum"])
    kind = schema["type"]
    if kind == "array":
        return f"list of {_shape(schema['items'])}"
    return kind if isinstance(kind, str) else " or ".join(kind)
