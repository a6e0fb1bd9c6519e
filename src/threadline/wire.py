"""The REST API's JSON, for both ends of the wire: `server` writes what `remote` reads.

An event on the wire is its stored JSON with `seq` put in front: neither end decodes it to pass it
on. Values that JSON has no form for (NaN, infinities, lone surrogates) are written the way
Python's `json` writes and reads them, as they are stored.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin
from urllib.parse import quote

import msgspec
from msgspec import UNSET, UnsetType

from threadline import errors, state
from threadline.canonical import decode, encode, loads
from threadline.engines.base import EventRow, SessionRow, Snapshot, StateRows
from threadline.errors import InvalidInputError, StaleSessionError, ThreadlineError
from threadline.history import History

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from threadline.models import Session

PAGE_DEFAULT = 100
PAGE_MAX = 1000
"""Sessions or events in one page."""
CHUNK_BYTES = 256 * 1024
"""About how much of a long history is sent at a time."""
JSON = "application/json"

Kind = TypeVar("Kind")


EventJson = Annotated[
    msgspec.Raw, msgspec.Meta(extra_json_schema={"$ref": "#/components/schemas/Event"})
]
StateJson = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "object"})]
SessionJson = Annotated[
    msgspec.Raw, msgspec.Meta(extra_json_schema={"$ref": "#/components/schemas/SessionAnswer"})
]
FaultJson = Annotated[
    msgspec.Raw, msgspec.Meta(extra_json_schema={"$ref": "#/components/schemas/Fault"})
]


class Body(
    msgspec.Struct, kw_only=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True
):
    """What a request holds, and nothing else."""


class Answer(msgspec.Struct, kw_only=True, rename="camel"):
    """What an answer holds; a client leaves alone what it does not know."""


class NewSessionBody(Body):
    """A session to be created; `ttl` is in seconds, `expireTime` in seconds since the epoch."""

    session_id: str | None = None
    state: dict[str, Any] | None = None
    ttl: float | None = None
    expire_time: float | None = None
    display_name: str | None = None
    labels: dict[str, str] | None = None


class SameSessionBody(Body):
    """A session to be created if there is none with the id in the path."""

    state: dict[str, Any] | None = None
    ttl: float | None = None
    expire_time: float | None = None
    display_name: str | None = None
    labels: dict[str, str] | None = None


class ChangedSessionBody(Body):
    """What changes of a session: what is left out stays, and null takes it away.

    `ttl` is in seconds from now and stands for an `expireTime`, so give one of them.
    """

    display_name: str | UnsetType | None = UNSET
    labels: dict[str, str] | UnsetType | None = UNSET
    ttl: float | UnsetType = UNSET
    expire_time: float | UnsetType | None = UNSET


class AppendBody(Body):
    """Events to be stored, all of them or none."""

    events: list[EventJson]
    on_stale: str | None = None


class PatchBody(Body):
    """A change of state without an event; `expectMissing` are keys that must not be there."""

    set: dict[str, Any] = {}
    delete: list[str] = []
    increment: dict[str, float | int] = {}
    expect: dict[str, Any] = {}
    expect_missing: list[str] = []


class AppsAnswer(Answer):
    """The names of apps, in order."""

    apps: list[str]


class ErasedAnswer(Answer):
    """How much of a user was removed; `stateKeys` are the sessions' and the user's own."""

    sessions: int
    events: int
    state_keys: int


class SessionAnswer(Answer):
    """A session; times are seconds since the epoch."""

    id: str
    app_name: str
    user_id: str
    create_time: float
    last_update_time: float
    expire_time: float | None
    display_name: str | None
    labels: dict[str, str]
    revision: int
    incarnation: int
    state: StateJson
    events: list[EventJson]


class SessionsAnswer(Answer):
    """A page of sessions without events; `nextCursor` leads to the next page, if there is one."""

    sessions: list[SessionJson]
    next_cursor: str | None


class EventsAnswer(Answer):
    """A page of events in the order of their seq."""

    events: list[EventJson]
    has_more: bool


class Stored(msgspec.Struct):
    """An event's id and its place."""

    id: str
    seq: int


class AppendAnswer(Answer):
    """What became of the events; `missed` came between `If-Match` and the last of them."""

    stored: list[Stored]
    missed: list[EventJson]
    revision: int
    incarnation: int
    last_update_time: float


class StateAnswer(Answer):
    """State by key, without a prefix."""

    state: StateJson


class Fault(msgspec.Struct, omit_defaults=True):
    """What went wrong: the name of the error's class, and a sentence for people."""

    type: str
    message: str
    expected: int | None = None
    revision: int | None = None
    missed: list[EventJson] = []


class ErrorAnswer(Answer):
    """What every refusal holds: a Fault."""

    error: FaultJson


# -- paths ------------------------------------------------------------------------------


def segment(id: str) -> str:
    """Return an id as one path segment: everything but letters, digits and `_-~` is encoded.

    A dot is encoded too, as clients and proxies take `.` and `..` for directions.
    """
    return quote(id, safe="").replace(".", "%2E")


APPS_PATH = "/v1/apps"


def owner_path(app: str, user: str | None) -> str:
    """Return the path of a user, or of an app."""
    return f"{APPS_PATH}/{segment(app)}" + ("" if user is None else f"/users/{segment(user)}")


def sessions_path(app: str, user: str | None = None) -> str:
    """Return the path of the sessions of a user, or of all users of an app."""
    return f"{owner_path(app, user)}/sessions"


def session_path(app: str, user: str | None, id: str) -> str:
    """Return the path of a session, or of those that all users of an app have with this id."""
    return f"{sessions_path(app, user)}/{segment(id)}"


def state_path(app: str, user: str | None = None, id: str | None = None) -> str:
    """Return the path of the state of a session, a user or an app."""
    return f"{owner_path(app, user) if id is None else session_path(app, user, id)}/state"


# -- reading ----------------------------------------------------------------------------


def read(kind: type[Kind], data: bytes, what: str = "The body") -> Kind:
    """Return what is in the JSON, or raise InvalidInputError."""
    try:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            return msgspec.json.decode(data, type=kind)
        # It is wrong, or holds values outside of strict JSON.
        return msgspec.convert(_undecoded(kind, loads(data)), kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"{what} is not what is expected here: {error}") from error


def _undecoded(kind: type, value: Any) -> Any:
    """Put JSON again in the place of what a struct takes undecoded."""
    if not isinstance(value, dict):
        return value
    value = {**value}
    for field in msgspec.structs.fields(kind):
        name, inner = field.encode_name, value.get(field.encode_name)
        if _is_raw(field.type) and name in value:
            value[name] = _json(inner)
        elif _is_raw(*get_args(field.type)[:1]) and isinstance(inner, list):
            value[name] = [_json(item) for item in inner]
    return value


def _is_raw(kind: Any = None) -> bool:
    return get_origin(kind) is Annotated and get_args(kind)[0] is msgspec.Raw


def _json(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def row(event: msgspec.Raw) -> EventRow:
    """Return the row of an event on the wire."""
    body = bytes(event)
    return read(_Place, body, "An event").seq, body


class _Place(msgspec.Struct):
    seq: int


def snapshot(data: bytes) -> Snapshot:
    """Return the session in an answer as rows."""
    answer = read(SessionAnswer, data, "The answer")
    return Snapshot(
        session=_session_row(answer),
        state=_state_rows(answer.state),
        events=[row(event) for event in answer.events],
    )


def sessions(data: bytes) -> tuple[list[tuple[SessionRow, StateRows]], str | None]:
    """Return a page of sessions as rows, and the cursor of the next."""
    page = read(SessionsAnswer, data, "The answer")
    answers = [read(SessionAnswer, bytes(session), "A session") for session in page.sessions]
    return [(_session_row(one), _state_rows(one.state)) for one in answers], page.next_cursor


def _session_row(answer: SessionAnswer) -> SessionRow:
    return SessionRow(
        app=answer.app_name,
        user=answer.user_id,
        id=answer.id,
        incarnation=answer.incarnation,
        revision=answer.revision,
        created=answer.create_time,
        updated=answer.last_update_time,
        expires=answer.expire_time,
        display_name=answer.display_name,
        labels=msgspec.json.encode(answer.labels).decode() if answer.labels else None,
    )


def _state_rows(merged: msgspec.Raw) -> StateRows:
    values: dict[str, Any] = decode(None, bytes(merged))
    return StateRows(
        *({key: encode(value) for key, value in scope.items()} for scope in state.split(values))
    )


# -- writing ----------------------------------------------------------------------------


def bodies(events: Iterable[Any]) -> Iterator[msgspec.Raw]:
    """Yield events as they are on the wire, undecoded where nobody has looked at them."""
    for seq, body in History.of(events).rows():
        yield msgspec.Raw(b'{"seq":%d,%b' % (seq, body[1:]))


def session_body(session: Session) -> bytes:
    """Return a session as it is on the wire, without its events."""
    return msgspec.json.encode(
        SessionAnswer(
            id=session.id,
            app_name=session.app_name,
            user_id=session.user_id,
            create_time=session.create_time,
            last_update_time=session.last_update_time,
            expire_time=session.expire_time,
            display_name=session.display_name,
            labels=session.labels,
            revision=session.revision or 0,
            incarnation=session.incarnation or 0,
            state=raw(session.state),
            events=[],
        )
    )


def chunks(session: bytes, events: Iterable[Any]) -> Iterator[bytes]:
    """Yield a session's body with events in it, a long one in several pieces."""
    before, after = session[:-2], session[-2:]  # its last field is `"events":[]`
    piece, size, separator = [before], 0, b""
    for event in bodies(events):
        body = bytes(event)
        piece += (separator, body)
        separator, size = b",", size + len(body)
        if size >= CHUNK_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
    yield b"".join((*piece, after))


def raw(value: Any) -> msgspec.Raw:
    """Return a value as JSON that is put into other JSON as it is."""
    return msgspec.Raw(encode(value))


# -- revisions --------------------------------------------------------------------------

_ETAG = re.compile(r'(?:W/)?"(\d{1,10})(?:\.(\d{1,19}))?(?:\.[0-9a-f]+)?"')


def etag(revision: int, incarnation: int | None, digest: str = "") -> str:
    """Return the entity tag of a session at a revision; the digest is that of its state."""
    parts = [str(revision), *([] if incarnation is None else [str(incarnation), digest])]
    return '"' + ".".join(part for part in parts if part) + '"'


def revision(tag: str) -> tuple[int, int | None]:
    """Return the revision in an entity tag, and the incarnation if it has one."""
    found = _ETAG.fullmatch(tag.strip())
    if found is None:
        raise InvalidInputError(
            f'If-Match holds one revision, like "17", or the ETag of an answer; got {tag!r}.'
        )
    return int(found[1]), None if found[2] is None else int(found[2])


# -- errors -----------------------------------------------------------------------------

_STATUS: dict[type[ThreadlineError], int] = {
    errors.AlreadyExistsError: 409,
    errors.SessionNotFoundError: 404,
    errors.StaleSessionError: 409,
    errors.EventConflictError: 409,
    errors.StateConflictError: 409,
    errors.RequestTooLargeError: 413,
    errors.UnsupportedOperationError: 501,
    errors.InvalidInputError: 400,
    errors.StateSchemaError: 400,
    errors.UnauthenticatedError: 401,
    errors.PermissionDeniedError: 403,
    errors.IncompleteReadError: 503,
    errors.StorageFullError: 507,
    errors.StorageError: 503,
}


def status_of(error: ThreadlineError) -> int:
    """Return the HTTP status of an error."""
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)


def error_body(error: ThreadlineError) -> bytes:
    """Return what is told of an error."""
    message = str(error).encode(errors="backslashreplace").decode()  # it may quote a surrogate
    told = Fault(type=type(error).__name__, message=message)
    if isinstance(error, StaleSessionError):
        told.expected, told.revision = error.expected, error.revision
        told.missed = list(bodies(error.missed))
    return msgspec.json.encode({"error": told})


def error(status: int, data: bytes) -> ThreadlineError:
    """Return the error that an answer tells of."""
    try:
        told = read(Fault, bytes(read(ErrorAnswer, data).error))
    except InvalidInputError:
        told = Fault(type="", message=f"The server answered {status} and did not say why.")
    kind = getattr(errors, told.type, None)
    if kind is StaleSessionError:
        return StaleSessionError(
            told.message,
            expected=told.expected or 0,
            revision=told.revision or 0,
            missed=[row(event) for event in told.missed],
        )
    if isinstance(kind, type) and issubclass(kind, ThreadlineError):
        return kind(told.message)
    if status < 500:
        return InvalidInputError(f"The server refused the request ({status}): {told.message}")
    return errors.StorageUnavailableError(f"The server failed ({status}): {told.message}")
