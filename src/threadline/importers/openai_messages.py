"""Messages of OpenAI's chat API as events, and the same messages back.

Every message becomes one event, `to_messages` gives it back:

| message                              | event                                                     |
| ------------------------------------ | --------------------------------------------------------- |
| `role`                               | `author`; `content.role` is `model` for the assistant's   |
| text, image, audio, file             | a part of `content`                                       |
| `tool_calls`, `function_call`        | a part with a `function_call`, its arguments parsed       |
| the answer of a tool or function     | a part with a `function_response`, `{"result": content}`  |
| `created`, `created_at`, `timestamp` | `timestamp`; else one second after the message before     |
| all else                             | `custom_metadata["openai_chat"]`                          |

What events cannot say (unknown fields, arguments whose text is not how we would write them)
is kept there as the edits that turn our rendering of the event into the message. So a
message comes back equal, and the arguments' text to the byte; the order of keys does not.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from threadline.canonical import is_same
from threadline.content import Blob, Content, FileData, FunctionCall, FunctionResponse, Part
from threadline.errors import InvalidInputError
from threadline.models import Event

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from threadline.models import Session

TIMES = ("created", "created_at", "timestamp")
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
ANSWERS = ("tool", "function")
METADATA = "openai_chat"

_MILLISECONDS = 1e11  # epoch seconds reach this in the year 5138


def to_events(
    session_id: str, messages: list[dict[str, Any]], *, start: float = 0.0
) -> list[Event]:
    """Turn messages into events whose ids depend on the session's id and their place only."""
    try:
        prefix = hashlib.blake2b(session_id.encode(), digest_size=12).hexdigest()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"the id {session_id!r} is not valid Unicode.") from error
    names: dict[Any, Any] = {}
    turn = 0
    moment = start - 1
    events = []
    for n, message in enumerate(messages):
        turn += message["role"] == "user"
        given = time_of(message)
        moment = moment + 1 if given is None else given
        events.append(
            _event(
                message,
                names,
                id=f"{prefix}-{n + 1}",
                timestamp=moment,
                invocation_id=f"turn-{turn}",
            )
        )
        names.update((call.id, call.name) for call in events[-1].get_function_calls() if call.id)
    return events


def _event(message: dict[str, Any], names: dict[Any, Any], **fields: Any) -> Event:
    """Make a message's event; `names` has those of the tools that were called before."""
    role = message["role"]
    form: dict[str, Any] = {}
    if role in ANSWERS:
        parts = [_answer(message, names)]
    else:
        parts = _content_parts(message)
        if isinstance(message.get("content"), list):
            form["list"] = True
        calls = message.get("tool_calls")
        legacy = message.get("function_call")
        if calls:
            parts += [_call(call.get("function"), call) for call in calls]
        elif isinstance(legacy, dict):
            form["legacy"] = True
            parts.append(_call(legacy, {}))
    content = Content(parts=parts, role="model" if role == "assistant" else "user")
    edits = list(_edits(_message(role, parts, form), message, ()))
    kept = {**form, "edits": edits} if edits else form
    return Event(
        author=role, content=content, custom_metadata={METADATA: kept} if kept else None, **fields
    )


def _answer(message: dict[str, Any], names: dict[Any, Any]) -> Part:
    call_id = _text(message.get("tool_call_id"))
    name = _text(message.get("name"))
    return Part(
        function_response=FunctionResponse(
            id=call_id,
            # Gemini wants the name; the message alone need not have it.
            name=names.get(call_id) if name is None else name,
            response={"result": message.get("content")},
        )
    )


def _call(function: Any, call: dict[str, Any]) -> Part:
    function = function if isinstance(function, dict) else {}
    arguments = function.get("arguments")
    if isinstance(custom := call.get("custom"), dict):
        # A custom tool takes a text, where a function takes JSON.
        function, arguments = custom, {"input": custom.get("input")}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None  # The text is kept as an edit.
    return Part(
        function_call=FunctionCall(
            id=_text(call.get("id")),
            name=_text(function.get("name")),
            args=arguments if isinstance(arguments, dict) else None,
        )
    )


def _content_parts(message: dict[str, Any]) -> list[Part]:
    content = message.get("content")
    if isinstance(content, str):
        return [Part(text=content)]
    if isinstance(content, list):
        return [_part(item) for item in content]
    refusal = _text(message.get("refusal"))
    return [] if refusal is None else [Part(text=refusal)]


def _part(item: dict[str, Any]) -> Part:
    """Make the part of one piece of content; an empty one where Gemini has no form for it."""
    for name in ("text", "refusal"):
        if isinstance(item.get(name), str):
            return Part(text=item[name])
    image, audio, file = (
        value if isinstance(value := item.get(name), dict) else {}
        for name in ("image_url", "input_audio", "file")
    )
    if isinstance(url := image.get("url"), str):
        blob = _blob(url)
        return Part(inline_data=blob) if blob else Part(file_data=FileData(file_uri=url))
    if (blob := _blob(f"data:audio/{audio.get('format')};base64,{audio.get('data')}")) and audio:
        return Part(inline_data=blob)
    if blob := _blob(str(file.get("file_data"))):
        name = _text(file.get("filename")) or ""
        return Part(inline_data=msgspec.structs.replace(blob, display_name=name))
    return Part()


def _blob(url: str) -> Blob | None:
    """Return what a `data:` URL holds, if the same URL can be made of it again."""
    head, comma, text = url.partition(";base64,")
    if not comma or not head.startswith("data:"):
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    if base64.b64encode(data).decode() != text:
        return None
    return Blob(data=data, mime_type=head.removeprefix("data:"))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


# -- events to messages -----------------------------------------------------------------


def to_messages(session: Session) -> list[dict[str, Any]]:
    """Return the conversation as chat messages: those that were imported, exactly.

    Events that were not imported give the nearest message; those without content give none.
    """
    return [message for event in session.events for message in _messages(event)]


def _messages(event: Event) -> list[dict[str, Any]]:
    if event.content is None:
        return []
    parts = list(event.content.parts or ())
    answers = [part for part in parts if part.function_response]
    if answers and (event.author not in ANSWERS or len(parts) > 1):
        return [_message("tool", [part], {}) for part in answers]
    role = event.author
    if role not in ROLES:
        role = "assistant" if event.content.role == "model" else "user"
    kept = (event.custom_metadata or {}).get(METADATA, {})
    return [_edited(_message(role, parts, kept), kept.get("edits", ()))]


def _message(role: str, parts: list[Part], form: dict[str, Any]) -> dict[str, Any]:
    """Render parts as the message that says the same; `form` chooses among equals."""
    if role in ANSWERS and len(parts) == 1 and parts[0].function_response:
        return _rendered_answer(role, parts[0].function_response)
    calls = [_rendered_call(part.function_call) for part in parts if part.function_call]
    items = [_rendered_part(part) for part in parts if not part.function_call]
    content: Any = items or None
    if form.get("list"):
        content = items
    elif len(items) == 1 and items[0].get("type") == "text":
        content = items[0]["text"]
    message = {"role": role, "content": content}
    if calls and form.get("legacy"):
        message["function_call"] = calls[0]["function"]
    elif calls:
        message["tool_calls"] = calls
    return message


def _rendered_answer(role: str, answer: FunctionResponse) -> dict[str, Any]:
    response = answer.response or {}
    content = response.get("result")
    if response.keys() != {"result"} or not isinstance(content, str | list | None):
        content = _compact(response)
    message = {"role": role, "tool_call_id": answer.id, "name": answer.name, "content": content}
    return {key: item for key, item in message.items() if item is not None or key == "content"}


def _rendered_call(call: FunctionCall) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {
            "name": call.name,
            "arguments": "" if call.args is None else _compact(call.args),
        },
    }


def _rendered_part(part: Part) -> dict[str, Any]:
    if part.text is not None:
        return {"type": "text", "text": part.text}
    if part.file_data:
        return {"type": "image_url", "image_url": {"url": part.file_data.file_uri}}
    if part.inline_data:
        kind = part.inline_data.mime_type or ""
        data = base64.b64encode(part.inline_data.data or b"").decode()
        url = f"data:{kind};base64,{data}"
        if part.inline_data.display_name is not None:
            file = {"file_data": url, "filename": part.inline_data.display_name}
            return {"type": "file", "file": file}
        if kind.startswith("audio/"):
            audio = {"data": data, "format": kind.removeprefix("audio/")}
            return {"type": "input_audio", "input_audio": audio}
        return {"type": "image_url", "image_url": {"url": url}}
    return {}


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


# -- what a rendering lacks -------------------------------------------------------------


def _edits(rendered: Any, wanted: Any, path: tuple[str | int, ...]) -> Iterator[list[Any]]:
    """Yield what turns `rendered` into `wanted`: [path] drops a field, [path, value] sets it."""
    if isinstance(rendered, dict) and isinstance(wanted, dict):
        for key in sorted(rendered.keys() | wanted.keys()):
            if key not in wanted:
                yield [[*path, key]]
            elif key not in rendered:
                yield [[*path, key], wanted[key]]
            else:
                yield from _edits(rendered[key], wanted[key], (*path, key))
    elif isinstance(rendered, list) and isinstance(wanted, list) and len(rendered) == len(wanted):
        for n, (item, other) in enumerate(zip(rendered, wanted, strict=True)):
            yield from _edits(item, other, (*path, n))
    elif not is_same(rendered, wanted):
        yield [[*path], wanted]


def _edited(message: dict[str, Any], edits: Iterable[list[Any]]) -> dict[str, Any]:
    for path, *value in edits:
        target: Any = message
        for step in path[:-1]:
            target = target[step]
        if value:
            target[path[-1]] = value[0]
        else:
            del target[path[-1]]
    return message


def time_of(fields: dict[str, Any], names: Iterable[str] = TIMES) -> float | None:
    """Return the first time among the fields, in epoch seconds; milliseconds are recognised."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, str):
            try:
                moment = datetime.fromisoformat(value)
            except ValueError:
                continue
            value = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        # An infinite time or NaN is in neither range; a huge integer compares exactly.
        if isinstance(value, int | float) and 0 < value < _MILLISECONDS * 1000:
            return float(value if value < _MILLISECONDS else value / 1000)
    return None
