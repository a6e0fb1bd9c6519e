"""Conversations in the form of OpenAI's chat API: JSON Lines in, the same messages out.

A line is one conversation: a list of messages, or an object that holds the list under
`messages` or `traj`. `openai_messages` turns its messages into events, and back.

Ids are derived, so that importing twice adds nothing and a conversation that has grown gets
its new messages only. The session's id is the line's `id`, `session_id` or
`conversation_id`. Without one it is a digest of the messages up to the first of the user;
the second conversation of a file that opens with the same words gets `-2` at the end. An
event's id is a digest of the session's id, and the message's number. The line's other fields
become the session's state.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from threadline.canonical import encode, is_same
from threadline.errors import (
    AlreadyExistsError,
    InvalidInputError,
    StaleSessionError,
    ThreadlineError,
)
from threadline.importers.openai_messages import (
    ROLES,
    TIMES,
    time_of,
    to_events,
)
from threadline.state import check_key, is_scoped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from threadline.models import Event, Session
    from threadline.service import BaseSessionService

LISTS = ("messages", "traj")
IDS = ("id", "session_id", "conversation_id")
LABELS = {"source": "openai-chat"}

BATCH = 32
"""Conversations that are stored side by side, so that they can share a commit."""

_TITLE_CHARS = 60


class LineError(InvalidInputError):
    """A line that cannot be imported; nothing of it was written.

    `report`, on the error that ends an import, says what was stored before.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"Line {line}: {reason}")
        self.line = line
        self.reason = reason
        self.report: ImportReport | None = None


class Conversation(msgspec.Struct, kw_only=True, frozen=True):
    """What a line means: a session and its events."""

    line: int
    session_id: str
    state: dict[str, Any]
    display_name: str | None
    labels: dict[str, str]
    events: list[Event]


class BadLine(msgspec.Struct, frozen=True, rename="camel"):
    """A line that was left out, and why."""

    line: int
    reason: str


class ImportReport(msgspec.Struct, kw_only=True, frozen=True, rename="camel"):
    """What an import found and what it changed."""

    conversations: int = 0
    events_read: int = 0
    sessions_created: int = 0
    events_added: int = 0
    events_present: int = 0
    states_updated: int = 0
    bad_lines: tuple[BadLine, ...] = ()
    seconds: float = 0.0


class Progress(NamedTuple):
    """How far an import is."""

    bytes_read: int
    bytes_total: int
    conversations: int
    events: int


# -- a file -----------------------------------------------------------------------------


async def import_file(
    service: BaseSessionService,
    path: Path | str,
    *,
    app_name: str = "openai-chat",
    user_id: str = "imported",
    skip_bad: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> ImportReport:
    """Store every conversation of a file, each in one transaction; running twice adds nothing.

    Raises LineError for a line that cannot be imported, after storing those before it;
    `skip_bad` leaves such lines out and reports them.
    """
    started = time.perf_counter()
    report = ImportReport()
    for bytes_read, bytes_total, batch in _batches(Path(path)):
        lines = [item for item in batch if isinstance(item, Conversation)]
        stored = await asyncio.gather(
            *(_store(service, app_name, user_id, line) for line in lines), return_exceptions=True
        )
        failed = [item for item in (*batch, *stored) if isinstance(item, BaseException)]
        bad = sorted((e for e in failed if isinstance(e, LineError)), key=lambda e: e.line)
        report = msgspec.structs.replace(
            _sum(report, *(item for item in stored if isinstance(item, ImportReport))),
            bad_lines=(*report.bad_lines, *(BadLine(error.line, error.reason) for error in bad)),
            seconds=time.perf_counter() - started,
        )
        _raise_worst(failed, bad, report, skip_bad)
        if on_progress:
            on_progress(Progress(bytes_read, bytes_total, report.conversations, report.events_read))
    return report


def conversations(lines: Iterable[bytes]) -> Iterator[Conversation | LineError]:
    """Read the lines of a file; a line that means nothing comes as the error that says why."""
    openings: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not text.strip():
            continue
        try:
            yield read_line(_parse(text), line=number, openings=openings)
        except InvalidInputError as error:
            yield error if isinstance(error, LineError) else LineError(number, str(error))


def read_line(value: Any, *, line: int = 1, openings: dict[str, int] | None = None) -> Conversation:
    """Turn one line into a session and its events.

    `openings` counts, over a file, the conversations that begin alike and have no id.
    """
    messages, fields = _split(value)
    for name in fields:
        check_key(name)
        if is_scoped(name):
            raise InvalidInputError(
                f"the field {name!r} cannot be kept in the session's state: "
                "names with this prefix belong to another scope. Rename the field."
            )
    for n, message in enumerate(messages, 1):
        _check_message(message, n)
    session_id = _given_id(fields) or _opening_id(messages, {} if openings is None else openings)
    return Conversation(
        line=line,
        session_id=session_id,
        state=fields,
        display_name=_title(fields, messages),
        labels=dict(LABELS),
        events=to_events(session_id, messages, start=time_of(fields, TIMES[:2]) or 0.0),
    )


def _batches(path: Path) -> Iterator[tuple[int, int, list[Conversation | LineError]]]:
    """Yield what can be stored side by side, and how many bytes of how many are read.

    A batch has no session twice and ends at a bad line: nothing after it is begun before the
    caller has seen it.
    """
    batch: list[Conversation | LineError] = []
    seen: set[str] = set()
    bytes_total = path.stat().st_size
    with path.open("rb") as file:
        for item in conversations(file):
            if isinstance(item, Conversation) and item.session_id in seen:
                yield file.tell(), bytes_total, batch
                batch, seen = [], set()
            batch.append(item)
            if isinstance(item, LineError) or len(batch) == BATCH:
                yield file.tell(), bytes_total, batch
                batch, seen = [], set()
            else:
                seen.add(item.session_id)
    if batch:
        yield bytes_total, bytes_total, batch


async def _store(
    service: BaseSessionService, app_name: str, user_id: str, conversation: Conversation
) -> ImportReport:
    while True:
        try:
            return await _store_once(service, app_name, user_id, conversation)
        except (AlreadyExistsError, StaleSessionError):
            continue  # Somebody else wrote the session meanwhile: look again at what is there.
        except InvalidInputError as error:
            if isinstance(error, LineError):
                raise
            raise LineError(conversation.line, str(error)) from error


async def _store_once(
    service: BaseSessionService, app_name: str, user_id: str, conversation: Conversation
) -> ImportReport:
    ids: dict[str, Any] = {
        "app_name": app_name,
        "user_id": user_id,
        "session_id": conversation.session_id,
    }
    session = await service.get_session(**ids)
    created = session is None
    # A value that cannot be stored is refused here, while nothing of the line is written yet.
    encode(conversation.state, "state")
    if session is None:
        for event in conversation.events:
            encode(event, "event")
        session = await service.create_session(
            **ids,
            state=conversation.state,
            display_name=conversation.display_name,
            labels=conversation.labels,
        )
    new = _new_events(conversation, session)
    if new:
        await service.append_events(session, new, on_stale="raise")
    changed = {
        name: value
        for name, value in conversation.state.items()
        if name not in session.state or not is_same(session.state[name], value)
    }
    if changed:
        await service.patch_state(**ids, set=changed)
    return ImportReport(
        conversations=1,
        events_read=len(conversation.events),
        sessions_created=int(created),
        events_added=len(new),
        events_present=len(conversation.events) - len(new),
        states_updated=int(bool(changed)),
    )


def _new_events(conversation: Conversation, session: Session) -> list[Event]:
    """Return the events that the session has not; refuse a history that has parted from it."""
    stored = {event.id: event for event in session.events}
    new = []
    for n, event in enumerate(conversation.events, 1):
        if event.id not in stored:
            new.append(event)
        elif not (stored[event.id] == event or is_same(_said(stored[event.id]), _said(event))):
            raise LineError(
                conversation.line,
                f"message {n} is not the one that session {session.id!r} holds. A conversation "
                "may grow, but what was imported stays: delete the session to import it anew, "
                "or give the line an id of its own.",
            )
    if new and len(stored) > len(conversation.events) - len(new):
        raise LineError(
            conversation.line,
            f"session {session.id!r} was continued in the store, so its new messages would come "
            "after words that the file does not know. Delete the session to import it anew, "
            "or give the line an id of its own.",
        )
    return new


def _said(event: Event) -> dict[str, Any]:
    """Return an event's fields, in which NaN can be compared too, without the store's number."""
    return {name: value for name, value in event.to_dict().items() if name != "seq"}


def _sum(*reports: ImportReport) -> ImportReport:
    counts = ("conversations", "events_read", "sessions_created", "events_added")
    return ImportReport(
        **{
            name: sum(getattr(report, name) for report in reports)
            for name in (*counts, "events_present", "states_updated")
        }
    )


def _raise_worst(
    failed: list[BaseException], bad: list[LineError], report: ImportReport, skip_bad: bool
) -> None:
    """Raise what ends the import, with a note that says what was stored before it."""
    others = [error for error in failed if not isinstance(error, LineError)]
    for error in (*others, *(() if skip_bad else bad)):
        if isinstance(error, ThreadlineError):
            error.add_note(
                f"{report.conversations} conversations are in ({report.events_added} events "
                "added); the import can be run again and goes on from there."
            )
        if isinstance(error, LineError):
            error.report = report
        raise error


# -- a line -----------------------------------------------------------------------------


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode(), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"this is not UTF-8: {error}.") from error
    except RecursionError as error:
        raise InvalidInputError("this is nested too deep.") from error
    except json.JSONDecodeError as error:
        raise InvalidInputError(
            f"this is not JSON: {error.msg} at column {error.colno}. The file must be JSON "
            "Lines: each conversation whole, on one line."
        ) from error
    except ValueError as error:  # an integer of more digits than Python reads
        raise InvalidInputError(f"this cannot be read: {error}.") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object, refusing one in which the last of two values would win silently."""
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for n, name in enumerate(names) if name in names[:n])
        raise InvalidInputError(f"the field {twice!r} stands twice in one object.")
    return made


def _split(value: Any) -> tuple[list[Any], dict[str, Any]]:
    if isinstance(value, list):
        return value, {}
    if not isinstance(value, dict):
        raise InvalidInputError(
            f"expected a conversation, a list or an object, but got {_kind(value)}."
        )
    for name in LISTS:
        if isinstance(value.get(name), list):
            return value[name], {key: item for key, item in value.items() if key != name}
    raise InvalidInputError(
        "expected a list of messages under 'messages' or 'traj'; the fields are: "
        f"{', '.join(map(repr, value)) or 'none'}."
    )


def _check_message(message: Any, n: int) -> None:
    if not isinstance(message, dict):
        raise InvalidInputError(f"message {n} is {_kind(message)}, not an object.")
    if message.get("role") not in ROLES:
        raise InvalidInputError(
            f"message {n} has the role {message.get('role')!r}; known are {', '.join(ROLES)}."
        )
    content = message.get("content")
    if not (content is None or isinstance(content, str | list)):
        raise InvalidInputError(
            f"message {n} has {_kind(content)} as content, not a text, a list of parts or null."
        )
    calls = message.get("tool_calls")
    if not (calls is None or isinstance(calls, list)):
        raise InvalidInputError(f"message {n} has {_kind(calls)} as tool_calls, not a list.")
    for name, items in (("content", content), ("tool_calls", calls)):
        for item in items if isinstance(items, list) else ():
            if not isinstance(item, dict):
                raise InvalidInputError(f"message {n} has {_kind(item)} in {name}, not an object.")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


def _given_id(fields: dict[str, Any]) -> str | None:
    for name in IDS:
        value = fields.get(name)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
    return None


def _opening_id(messages: list[dict[str, Any]], openings: dict[str, int]) -> str:
    opening = []
    for message in messages:
        opening.append(message)
        if message["role"] == "user":
            break
    digest = hashlib.blake2b(json.dumps(opening, sort_keys=True).encode(), digest_size=12)
    session_id = f"chat-{digest.hexdigest()}"
    openings[session_id] = nth = openings.get(session_id, 0) + 1
    return session_id if nth == 1 else f"{session_id}-{nth}"


def _title(fields: dict[str, Any], messages: list[dict[str, Any]]) -> str | None:
    """Return the line's `title`, else the first words of the user, to tell sessions by."""
    said = (message.get("content") for message in messages if message["role"] == "user")
    for text in (fields.get("title"), *said):
        if isinstance(text, str) and text.strip():
            words = " ".join(text.encode(errors="replace").decode().split())
            return words if len(words) <= _TITLE_CHARS else words[: _TITLE_CHARS - 1] + "…"
    return None
