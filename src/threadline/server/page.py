"""The page that shows the OpenAPI document: no script, and nothing from elsewhere."""

from __future__ import annotations

import html
import re
from typing import Any

from threadline import wire

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
