"""The Vertex AI Sessions API as JSON: names, sessions, events, operations, filters, errors.

What a server and a client of that API share; there is no web framework in it. JSON comes in
camelCase or snake_case, mixed as the clients mix it, and goes out in camelCase.

An event has two forms in one message: the *typed* fields of the API, and `rawEvent`, the whole
event of the client's ADK. One event is stored. `rawEvent` wins where it is given, and both
forms are made of what is stored, so a client that reads either sees what any other wrote.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import functools
import json
import math
import operator
import re
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import UNSET, UnsetType

from threadline import canonical
from threadline.errors import (
    AlreadyExistsError,
    EventConflictError,
    InvalidInputError,
    PermissionDeniedError,
    RequestTooLargeError,
    SessionNotFoundError,
    StaleSessionError,
    StateConflictError,
    StateSchemaError,
    StorageBusyError,
    StorageFullError,
    StorageUnavailableError,
    UnauthenticatedError,
)
from threadline.models import Event

if TYPE_CHECKING:
    from collections.abc import Mapping

    from threadline.errors import ThreadlineError
    from threadline.models import Session

Json = dict[str, Any]
T = TypeVar("T")

# -- bodies -----------------------------------------------------------------------------


def dumps(value: Any) -> bytes:
    """Return JSON that every client reads: NaN and infinities as text, as in proto3's JSON."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:
        return json.dumps(_finite(value), separators=(",", ":")).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return value


def loads(body: bytes) -> Json:
    """Read a body, which must be an object; an empty one is an empty object."""
    if not body:
        return {}
    try:
        value = canonical.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"Invalid JSON payload received. {error}") from error
    if not isinstance(value, dict):
        raise InvalidInputError("Invalid JSON payload received. The root must be an object.")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON.")


def _field(message: Mapping[str, Any], name: str) -> Any:
    """Return a field of a message by its camelCase name, in either spelling."""
    value = message.get(name)
    return message.get(snake(name)) if value is None else value


def _object(message: Mapping[str, Any], name: str) -> Json:
    value = _field(message, name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInputError(f"Invalid value at '{snake(name)}': an object is expected.")
    return value


def _text(message: Mapping[str, Any], name: str) -> str | None:
    value = _field(message, name)
    if value is not None and not isinstance(value, str):
        raise InvalidInputError(f"Invalid value at '{snake(name)}': a string is expected.")
    return value


def snake(name: str) -> str:
    """Return a field's other spelling."""
    return re.sub(r"[A-Z]", lambda found: "_" + found[0].lower(), name)


def _require(fields: Mapping[str, str | None]) -> None:
    missing = [name for name, value in fields.items() if not value]
    if missing:
        listed = "".join(
            f"{n}.Field: {name}; Message: Required field is not set.\t"
            for n, name in enumerate(missing, 1)
        )
        raise InvalidInputError(f"List of found errors:\t{listed}")


# -- names ------------------------------------------------------------------------------


def name_of(parent: str, collection: str, id: str) -> str:
    """Return a resource's name; an id is encoded only where a URL or a name would break.

    Clients take the last segment of a name as the id and put it into the next URL as it is.
    """
    return f"{parent}/{collection}/{_segment(id)}"


def parent_of(engine: str, project: str | None = None, location: str | None = None) -> str:
    """Return an engine's name: the full one, or the short one of requests without a project."""
    short = f"reasoningEngines/{_segment(engine)}"
    if project is None or location is None:
        return short
    return f"{location_of(project, location)}/{short}"


def location_of(project: str, location: str) -> str:
    """Return the name that operations of a location begin with."""
    return f"projects/{_segment(project)}/locations/{_segment(location)}"


@functools.lru_cache(maxsize=4096)
def _segment(id: str) -> str:
    # A segment of dots only is a direction to whoever makes a URL of it.
    return quote(id, safe="-._~@") if id.strip(".") else id.replace(".", "%2E")


# -- times ------------------------------------------------------------------------------

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
# A `+` that nobody encoded is a space when it arrives in a query.
_TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+\- ])(\d\d):?(\d\d))"
)
_DURATION = re.compile(r"(-?\d{1,12})(?:\.(\d{1,9}))?s")
_NANOS = 10**9


def format_timestamp(seconds: float) -> str:
    """Return RFC 3339 in UTC with 0, 3 or 6 digits, or with 9 where 6 would not be read back equal.

    What no calendar has is cut to its ends.
    """
    try:
        nanos = round(seconds * 1e6) * 1000
        if nanos / _NANOS != seconds:
            numerator, denominator = float(seconds).as_integer_ratio()
            nanos = (2 * numerator * _NANOS + denominator) // (2 * denominator)
        moment = _EPOCH + dt.timedelta(seconds=nanos // _NANOS)
    except OverflowError:
        moment, nanos = dt.datetime.max if seconds > 0 else dt.datetime.min, 0
    text = moment.replace(tzinfo=None).isoformat(timespec="seconds")
    digits = f"{nanos % _NANOS:09}"
    while digits.endswith("000"):
        digits = digits[:-3]
    return f"{text}.{digits}Z" if digits else f"{text}Z"


def parse_timestamp(value: Any, where: str) -> float:
    """Read RFC 3339, or the `{seconds, nanos}` that the Java client sends."""
    if isinstance(value, dict):
        return _seconds_and_nanos(value, where)
    found = _TIMESTAMP.fullmatch(value) if isinstance(value, str) else None
    if found is not None:
        day, time, fraction, sign, hours, minutes = found.groups()
        try:
            moment = dt.datetime.fromisoformat(f"{day}T{time}+00:00")
        except ValueError:
            pass
        else:
            seconds = (moment - _EPOCH) // dt.timedelta(seconds=1)
            if sign:
                offset = int(hours) * 3600 + int(minutes) * 60
                seconds += offset if sign == "-" else -offset
            return (seconds * _NANOS + int((fraction or "").ljust(9, "0"))) / _NANOS
    raise InvalidInputError(
        f"Invalid value at '{where}': {value!r} is not a timestamp such as 2025-10-09T08:53:20Z."
    )


def parse_duration(value: Any, where: str) -> float:
    """Read seconds such as `86400s` or `1.5s`."""
    if isinstance(value, dict):
        return _seconds_and_nanos(value, where)
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise InvalidInputError(
            f"Invalid value at '{where}': {value!r} is not a duration such as 86400s."
        )
    return float(value[:-1])


def _seconds_and_nanos(value: Json, where: str) -> float:
    try:
        return (int(value.get("seconds") or 0) * _NANOS + int(value.get("nanos") or 0)) / _NANOS
    except (TypeError, ValueError, OverflowError):
        raise InvalidInputError(
            f"Invalid value at '{where}': seconds and nanos are integers."
        ) from None


# -- sessions ---------------------------------------------------------------------------


class SessionResource(msgspec.Struct, frozen=True):
    """A Session message as it was sent; what was not sent is UNSET. Times are in seconds."""

    user_id: str | UnsetType = UNSET
    display_name: str | UnsetType = UNSET
    labels: dict[str, str] | UnsetType = UNSET
    session_state: Json | UnsetType = UNSET
    ttl: float | UnsetType = UNSET
    expire_time: float | UnsetType = UNSET


def session_from_json(body: Json) -> SessionResource:
    """Read a Session message; output-only and unknown fields are ignored."""
    given: Json = {}
    for name in ("userId", "displayName"):
        if _text(body, name) is not None:
            given[snake(name)] = _text(body, name)
    for name in ("labels", "sessionState"):
        if _field(body, name) is not None:
            given[snake(name)] = _object(body, name)
    if body.get("ttl") is not None:
        given["ttl"] = parse_duration(body["ttl"], "session.ttl")
    if _field(body, "expireTime") is not None:
        given["expire_time"] = parse_timestamp(_field(body, "expireTime"), "session.expire_time")
    if len(given.keys() & {"ttl", "expire_time"}) == 2:
        raise InvalidInputError("Invalid value at 'session': give ttl or expire_time, not both.")
    return SessionResource(**given)


def require_user(session: SessionResource) -> str:
    """Return whose session is to be created."""
    user_id = "" if session.user_id is UNSET else session.user_id
    _require({"session.user_id": user_id})
    return user_id


def session_to_json(session: Session, parent: str) -> Json:
    """Return a Session message; state that is None is left out, which the Java client needs."""
    message: Json = {
        "name": name_of(parent, "sessions", session.id),
        "createTime": format_timestamp(session.create_time),
        "updateTime": format_timestamp(session.last_update_time),
        "userId": session.user_id,
        "sessionState": {key: value for key, value in session.state.items() if value is not None},
    }
    if session.display_name is not None:
        message["displayName"] = session.display_name
    if session.labels:
        message["labels"] = session.labels
    if session.expire_time is not None:
        message["expireTime"] = format_timestamp(session.expire_time)
    return message


_MASK = {
    *("userId", "displayName", "labels", "sessionState", "ttl", "expireTime"),
}


def parse_mask(text: str | None, session: SessionResource) -> set[str]:
    """Return the fields, in snake_case, that an update is about: without a mask, those sent."""
    if not text or text == "*":
        return {name for name in session.__struct_fields__ if getattr(session, name) is not UNSET}
    paths = {path.strip() for path in text.split(",")}
    known = {spelling: snake(name) for name in _MASK for spelling in (name, snake(name))}
    if unknown := paths - known.keys():
        raise InvalidInputError(
            f"Invalid value at 'update_mask': {min(unknown)!r} cannot be updated; "
            f"fields that can are {', '.join(sorted(_MASK - {'userId'}))}."
        )
    return {known[path] for path in paths}


# -- events -----------------------------------------------------------------------------

_USAGE = "_usage_metadata"
_COMPACTION = "_compaction"
_WORKFLOW = "_workflow"
_OPAQUE = "rawEvent"
"""An event's unknown field that holds a rawEvent which is no ADK event."""

_META = (
    *("partial", "turnComplete", "interrupted", "branch", "longRunningToolIds"),
    *("groundingMetadata", "inputTranscription", "outputTranscription"),
    "usageMetadata",  # where the Java client looks for it
)
_ACTIONS = (
    *("skipSummarization", "stateDelta", "artifactDelta", "escalate", "requestedAuthConfigs"),
    *("requestedToolConfirmations", "endOfAgent"),  # the Java client's, unknown to the API
)
_MAPS = ("stateDelta", "artifactDelta", "requestedAuthConfigs", "requestedToolConfirmations")


def event_from_json(body: Json) -> Event:
    """Read a SessionEvent message: what appendEvent takes, and what a list returns."""
    author, invocation_id = _text(body, "author"), _text(body, "invocationId")
    _require({"event.author": author, "event.invocation_id": invocation_id})
    envelope: Json = {"author": author, "invocationId": invocation_id}
    if body.get("timestamp") is not None:
        envelope["timestamp"] = parse_timestamp(body["timestamp"], "event.timestamp")
    raw = _object(body, "rawEvent")
    if not raw:
        return _event({**_typed(body), **envelope})
    fields = {key: value for key, value in raw.items() if key not in _ENVELOPE}
    try:
        return _event({**fields, **envelope})
    except InvalidInputError:
        # Any object is a rawEvent: it is kept as it is, beside what the typed fields say.
        fields = {"id": raw["id"]} if isinstance(raw.get("id"), str) else {}
        return _event({**_typed(body), **fields, **envelope, _OPAQUE: raw})


_ENVELOPE = {"author", "invocationId", "invocation_id", "timestamp", "seq"}


def _event(fields: Json) -> Event:
    return Event.from_dict({key: value for key, value in fields.items() if value is not None})


def _typed(body: Json) -> Json:
    """Return the fields of ADK's event from the API's typed ones."""
    meta = dict(_object(body, "eventMetadata"))
    custom = dict(_object(meta, "customMetadata"))
    for spelling in ("customMetadata", "custom_metadata"):
        meta.pop(spelling, None)
    if usage := custom.pop(_USAGE, None):
        meta["usageMetadata"] = usage
    actions = dict(_object(body, "actions"))
    for spelling in ("transfer_agent", "transferAgent"):
        if agent := actions.pop(spelling, None):
            actions["transferToAgent"] = agent
    if compaction := custom.pop(_COMPACTION, None):
        actions["compaction"] = _compaction(compaction)
    workflow = _object(custom, _WORKFLOW)
    custom.pop(_WORKFLOW, None)
    for name in ("route", "agentState", "endOfAgent"):
        if name in workflow:
            actions[name] = workflow[name]
    fields = {name: workflow.get(name) for name in ("output", "nodeInfo", "isolationScope")}
    for name in ("content", "errorCode", "errorMessage"):
        fields[name] = _field(body, name)
    return {**meta, **fields, "actions": actions, "customMetadata": custom or None}


def _compaction(value: Any) -> Any:
    """Bring the JavaScript client's summary, with times in milliseconds, into ADK's form."""
    match value:
        case {"startTime": int() | float() as start, "endTime": int() | float() as end}:
            return {
                "startTimestamp": start / 1000,
                "endTimestamp": end / 1000,
                "compactedContent": value.get("compactedContent"),
            }
    return value


def event_to_json(raw: Json, session_name: str) -> Json:
    """Return a SessionEvent message with both forms of an event, given as it is stored."""
    opaque = raw.get(_OPAQUE)
    actions = raw.get("actions", {})
    # Clients index into these without asking whether they are there.
    raw = {**raw, "actions": {**{name: {} for name in _MAPS}, **actions}}
    custom = dict(raw.get("customMetadata", {}))
    if "usageMetadata" in raw:
        custom[_USAGE] = raw["usageMetadata"]
    if "compaction" in actions:
        custom[_COMPACTION] = actions["compaction"]
    meta = {name: raw[name] for name in _META if name in raw}
    if custom:
        meta["customMetadata"] = custom
    typed = {name: actions[name] for name in _ACTIONS if name in actions}
    if "transferToAgent" in actions:
        typed["transferAgent"] = actions["transferToAgent"]
    message = {
        "name": name_of(session_name, "events", raw["id"]),
        "author": raw.get("author", ""),
        "invocationId": raw.get("invocationId", ""),
        "timestamp": format_timestamp(raw["timestamp"]),
        "content": raw.get("content", {}),
        "actions": typed,
        "eventMetadata": meta,
        "rawEvent": raw if opaque is None else opaque,
    }
    for name in ("errorCode", "errorMessage"):
        if name in raw:
            message[name] = raw[name]
    return message


# -- filters and order ------------------------------------------------------------------


class Comparison(NamedTuple):
    """One comparison of a filter; `key` is that of a label."""

    field: str
    key: str | None
    operator: str
    value: str


_STRING = r'"(?:[^"\\]|\\.)*"'
_COMPARISON = re.compile(
    rf"""\s*(?P<field>[A-Za-z_]+)(?:\.(?P<key>[\w-]+|{_STRING}))?
         \s*(?P<operator><=|>=|!=|=|<|>)
         \s*(?P<value>{_STRING}|[^\s"()]+)\s*(?P<and>AND\s|$)?""",
    re.VERBOSE | re.DOTALL,
)
_OPERATORS = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def parse_filter(text: str | None) -> list[Comparison]:
    """Read comparisons joined by AND, their values in double quotes with `\\` as escape."""
    comparisons: list[Comparison] = []
    position = 0
    while text and position < len(text):
        found = _COMPARISON.match(text, position)
        if found is None or (found["and"] is None and not text[found.end() - 1].isspace()):
            raise InvalidInputError(
                f"Invalid value at 'filter': {text[position:]!r} is not understood; a filter is "
                'made of comparisons such as user_id="u", joined by AND.'
            )
        if found["and"] and found["and"].strip() and found.end() == len(text):
            raise InvalidInputError("Invalid value at 'filter': it ends with AND.")
        key = found["key"]
        comparisons.append(
            Comparison(
                snake(found["field"]),
                None if key is None else _unquoted(key),
                found["operator"],
                _unquoted(found["value"]),
            )
        )
        position = found.end()
    return comparisons


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL) if text[0] == '"' else text


class SessionFilter(msgspec.Struct, frozen=True):
    """Which sessions a list returns: `user_id`, `display_name` and `labels.KEY`, = and !=."""

    comparisons: list[Comparison]

    @classmethod
    def parse(cls, text: str | None) -> SessionFilter:
        """Read a filter, or say which part of it there is no support for."""
        comparisons = parse_filter(text)
        for one in comparisons:
            is_label = one.field == "labels" and one.key is not None
            if not is_label and (one.field not in ("user_id", "display_name") or one.key):
                raise InvalidInputError(
                    f"Invalid value at 'filter': sessions are filtered by user_id, display_name "
                    f"and labels.KEY, not by {one.field!r}."
                )
            if one.operator not in ("=", "!="):
                raise InvalidInputError(
                    f"Invalid value at 'filter': {one.field} is compared by = or !=, not by "
                    f"{one.operator}."
                )
        return cls(comparisons)

    @property
    def user_id(self) -> str | None:
        """The one user whose sessions can pass, if there is one."""
        users = [c.value for c in self.comparisons if (c.field, c.operator) == ("user_id", "=")]
        return users[0] if users else None

    def passes(self, session: Session) -> bool:
        """Whether a session is one of them."""

        def is_equal(one: Comparison) -> bool:
            value = session.labels.get(one.key) if one.key else getattr(session, one.field)
            return bool(value == one.value)

        return all(is_equal(one) == (one.operator == "=") for one in self.comparisons)


class EventFilter(msgspec.Struct, frozen=True):
    """Which events a list returns: comparisons of `timestamp`, in seconds."""

    bounds: list[tuple[str, float]]

    @classmethod
    def parse(cls, text: str | None) -> EventFilter:
        """Read a filter, or say which part of it there is no support for."""
        bounds = []
        for field, key, operator_, value in parse_filter(text):
            if field != "timestamp" or key is not None:
                raise InvalidInputError(
                    "Invalid value at 'filter': events are filtered by timestamp, "
                    f"not by {field!r}."
                )
            bounds.append((operator_, parse_timestamp(value, "filter")))
        return cls(bounds)

    @property
    def since(self) -> float | None:
        """The time before which no event passes."""
        starts = [time for operator_, time in self.bounds if operator_ in (">", ">=", "=")]
        return max(starts, default=None)

    def passes(self, timestamp: float) -> bool:
        """Whether an event of a time is one of them."""
        return all(_OPERATORS[one](timestamp, time) for one, time in self.bounds)


def parse_order(
    text: str | None, fields: Mapping[str, T], default: tuple[T, bool]
) -> tuple[T, bool]:
    """Read `field`, `field asc` or `field desc`; return what the field stands for, and the way.

    `fields` has their names in snake_case.
    """
    name, _, way = (text or "").strip().partition(" ")
    if not name:
        return default
    if snake(name) not in fields or way.strip().lower() not in ("", "asc", "desc"):
        raise InvalidInputError(
            f"Invalid value at 'order_by': {text!r} is not understood; it is one of "
            f"{', '.join(fields)}, with desc for the other way."
        )
    return fields[snake(name)], way.strip().lower() == "desc"


# -- pages ------------------------------------------------------------------------------


def encode_token(value: Any) -> str:
    """Return JSON as text for URLs: what a page token, or an operation's id, stands for."""
    return base64.urlsafe_b64encode(dumps(value)).decode().rstrip("=")


def decode_token(token: str) -> Any:
    """Return the JSON that a token stands for; None if it is none of ours."""
    try:
        return json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return None


def parse_page_size(text: str | None, size_max: int) -> int | None:
    """Read how many are asked for; None, and 0 as the API has it, leaves it to the server."""
    if not text:
        return None
    if not re.fullmatch(r"-?\d{1,10}", text) or int(text) < 0:
        raise InvalidInputError(f"Invalid value at 'page_size': {text!r} is no count.")
    return min(int(text), size_max) or None


# -- operations -------------------------------------------------------------------------


def operation(name: str, kind: str, version: str, time: float, response: Json) -> Json:
    """Return an operation that is done.

    `kind` is `CreateSession`, whose response is the session, or `Delete`, whose response is empty.
    """
    types = "type.googleapis.com/google."
    package = f"{types}cloud.aiplatform.{version}"
    moment = format_timestamp(time)
    is_empty = kind == "Delete"
    return {
        "name": name,
        "metadata": {
            "@type": f"{package}.{kind}OperationMetadata",
            "genericMetadata": {"createTime": moment, "updateTime": moment},
        },
        "done": True,
        "response": {
            "@type": f"{types}protobuf.Empty" if is_empty else f"{package}.Session",
            **response,
        },
    }


# -- errors -----------------------------------------------------------------------------

_STATUSES: list[tuple[type[ThreadlineError], int, str]] = [
    # The API has no 409 for a session's id; its clients look for none.
    (AlreadyExistsError, 400, "INVALID_ARGUMENT"),
    (SessionNotFoundError, 404, "NOT_FOUND"),
    # Not 400, after which the JavaScript client sends the event again under another id.
    (EventConflictError, 409, "ALREADY_EXISTS"),
    (StaleSessionError, 409, "ABORTED"),
    (StateConflictError, 409, "ABORTED"),
    (RequestTooLargeError, 413, "INVALID_ARGUMENT"),
    (InvalidInputError, 400, "INVALID_ARGUMENT"),
    (StateSchemaError, 400, "INVALID_ARGUMENT"),
    (UnauthenticatedError, 401, "UNAUTHENTICATED"),
    (PermissionDeniedError, 403, "PERMISSION_DENIED"),
    (StorageBusyError, 503, "UNAVAILABLE"),
    (StorageFullError, 503, "UNAVAILABLE"),
    (StorageUnavailableError, 503, "UNAVAILABLE"),
]


def status_of(error: ThreadlineError) -> tuple[int, str]:
    """Return the HTTP status and Google's name of what went wrong."""
    for kind, code, status in _STATUSES:
        if isinstance(error, kind):
            return code, status
    return 500, "INTERNAL"


def error_to_json(code: int, status: str, message: str) -> Json:
    """Return the body of an answer that is no success."""
    return {"error": {"code": code, "message": message, "status": status}}
