"""State and its scopes: the only place that knows `app:`, `user:` and `temp:`.

A delta is a dict of keys with their prefixes. It replaces values one key at a time; None is
a value like any other, and no delta removes a key (ADK's rules).
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn

import msgspec

from threadline.errors import InvalidInputError, ReadOnlyStateError, StateSchemaError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

APP_PREFIX = "app:"
USER_PREFIX = "user:"
TEMP_PREFIX = "temp:"

KEY_BYTES_MAX = 1024


class Scopes(NamedTuple):
    """A delta by scope, the prefixes of the stored scopes cut off."""

    app: dict[str, Any]
    user: dict[str, Any]
    session: dict[str, Any]


def split(delta: Mapping[str, Any]) -> Scopes:
    """Sort a delta's keys by scope; `temp:` keys are in none of them."""
    scopes = Scopes({}, {}, {})
    for key, value in delta.items():
        check_key(key)
        if key.startswith(APP_PREFIX):
            scopes.app[key[len(APP_PREFIX) :]] = value
        elif key.startswith(USER_PREFIX):
            scopes.user[key[len(USER_PREFIX) :]] = value
        elif not key.startswith(TEMP_PREFIX):
            scopes.session[key] = value
    return scopes


def merge(scopes: Scopes) -> dict[str, Any]:
    """Join the stored scopes into one dict with prefixed keys."""
    merged = dict(scopes.session)
    merged.update({USER_PREFIX + key: value for key, value in scopes.user.items()})
    merged.update({APP_PREFIX + key: value for key, value in scopes.app.items()})
    return merged


def temp_keys(delta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a delta that is never stored."""
    if not delta:
        return {}
    return {key: value for key, value in delta.items() if key.startswith(TEMP_PREFIX)}


def is_scoped(key: str) -> bool:
    """Whether the key names a scope that is not the session's."""
    return key.startswith((APP_PREFIX, USER_PREFIX, TEMP_PREFIX))


def check_key(key: Any) -> None:
    """Refuse a state key that some engine could not keep."""
    if not isinstance(key, str):
        raise InvalidInputError(f"State keys are strings, got {key!r}.")
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"The state key {key!r} is not valid Unicode: {error}") from error
    if size > KEY_BYTES_MAX:
        raise InvalidInputError(
            f"The state key {key[:40]!r}... has {size} bytes; at most {KEY_BYTES_MAX} are stored."
        )


# -- what a holder of a session sees ----------------------------------------------------


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise ReadOnlyStateError(
        "session.state is read-only: a direct write would never be stored. Put the change into "
        "an event's actions.state_delta and append it, write to the runner context's state, or "
        "call patch_state. To compute with a copy, take copy.deepcopy(session.state)."
    )


class ReadOnlyDict(dict[str, Any]):
    """A dict that teaches how state is changed; `copy()` gives a plain one."""

    __slots__ = ()
    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return {key: copy.deepcopy(value, memo) for key, value in self.items()}


class ReadOnlyList(list[Any]):
    """A list inside of a read-only state."""

    __slots__ = ()
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = extend = insert = pop = remove = clear = sort = reverse = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return [copy.deepcopy(value, memo) for value in self]


def read_only(value: Any) -> Any:
    """Return a value whose dicts and lists, all the way down, refuse to be written."""
    if type(value) is dict:
        return ReadOnlyDict({key: read_only(item) for key, item in value.items()})
    if type(value) is list:
        return ReadOnlyList([read_only(item) for item in value])
    return value


def plain(value: Any) -> Any:
    """Return a copy of a value whose dicts and lists, all the way down, are ordinary ones."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def write_through(state: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Apply a delta to a handle's read-only state: the service's privilege."""
    dict.update(state, {key: read_only(value) for key, value in delta.items()})


def replaced(state: dict[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Give a handle's state another content; return it, or a read-only one if it was plain."""
    if not isinstance(state, ReadOnlyDict):
        return ReadOnlyDict(content)
    dict.clear(state)
    dict.update(state, content)
    return state


# -- what an agent writes to ------------------------------------------------------------


class State:
    """A dict-like view that records every write, nested ones too, into a delta.

    Reads prefer the delta; writes go to the delta, and to `value` unless that is read-only.
    A dict or list that a read hands out is remembered with a copy: changing it in place counts
    as a write of its key (`has_delta`, `collect`). `schema` is a pydantic model or a msgspec
    struct; keys with a `:` are not checked.
    """

    APP_PREFIX: ClassVar = APP_PREFIX
    USER_PREFIX: ClassVar = USER_PREFIX
    TEMP_PREFIX: ClassVar = TEMP_PREFIX

    def __init__(
        self,
        value: dict[str, Any] | None = None,
        delta: dict[str, Any] | None = None,
        schema: type | None = None,
    ) -> None:
        self._value = {} if value is None else value
        self._delta = {} if delta is None else delta
        self._schema = schema
        self._handed: dict[str, tuple[Any, Any]] = {}

    def __getitem__(self, key: str) -> Any:
        if key in self._delta:
            return self._delta[key]
        value = self._value[key]
        if key in self._handed:
            handed, before = self._handed[key]
            if handed != before or value == before:
                return handed
        if isinstance(value, dict | list):
            # A read-only value becomes a plain one here; the stored one stays as it is.
            value = copy.deepcopy(value) if isinstance(self._value, ReadOnlyDict) else value
            self._handed[key] = (value, copy.deepcopy(value))
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __contains__(self, key: object) -> bool:
        return key in self._delta or key in self._value

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._value), **dict.fromkeys(self._delta)})

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value, or `default` when there is none."""
        try:
            return self[key]
        except KeyError:
            return default

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the value, writing `default` first when there is none."""
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, delta: Mapping[str, Any]) -> None:
        """Write several keys; none of them if one breaks the schema."""
        for key in delta:
            check_key(key)
        check_schema(self._schema, delta)
        for key, value in delta.items():
            self._handed.pop(key, None)
            self._delta[key] = value
            if not isinstance(self._value, ReadOnlyDict):
                self._value[key] = value

    def has_delta(self) -> bool:
        """Whether anything was written, in place or by key."""
        return bool(self.collect())

    def collect(self) -> dict[str, Any]:
        """Record containers that were changed in place, and return the delta."""
        for key, (value, before) in list(self._handed.items()):
            if key not in self._delta and value != before:
                check_schema(self._schema, {key: value})
                self._delta[key] = value
        return self._delta

    def take(self) -> dict[str, Any]:
        """Return the delta and begin a new one: what was written travels with one event.

        Containers stay remembered, so a later change in place goes into a later delta.
        """
        delta = dict(self.collect())
        self._delta.clear()
        for key, value in delta.items():
            if isinstance(value, dict | list):
                self._handed[key] = (value, copy.deepcopy(value))
        return delta

    def to_dict(self) -> dict[str, Any]:
        """Return everything as one plain dict."""
        return {key: self[key] for key in self}

    def __repr__(self) -> str:
        return f"State({self.to_dict()!r})"


def check_schema(schema: type | None, delta: Mapping[str, Any]) -> None:
    """Raise StateSchemaError for the first key that the schema has not, or another type."""
    if schema is None or not delta:
        return
    kinds = _schema_kinds(schema)
    for key, value in delta.items():
        if ":" in key:
            continue
        if key not in kinds:
            known = ", ".join(sorted(kinds)) or "none"
            raise StateSchemaError(f"{schema.__name__} has no state key {key!r}; it has: {known}.")
        try:
            kinds[key](value)
        except ValueError as error:  # pydantic's and msgspec's validation errors both are
            raise StateSchemaError(
                f"The state key {key!r} does not fit {schema.__name__}: {error}"
            ) from error


@functools.lru_cache(maxsize=64)
def _schema_kinds(schema: type) -> dict[str, Any]:
    """Map each key of a schema to a strict check of its values.

    Strict, because the value is stored as it was given: "5" is no int.
    """
    if hasattr(schema, "model_fields"):
        from pydantic import TypeAdapter

        def pydantic_check(kind: Any) -> Any:
            adapter = TypeAdapter(kind)
            return lambda value: adapter.validate_python(value, strict=True)

        return {
            key: pydantic_check(f.rebuild_annotation()) for key, f in schema.model_fields.items()
        }
    if issubclass(schema, msgspec.Struct):

        def struct_check(kind: Any) -> Any:
            return lambda value: msgspec.convert(value, kind)

        return {f.name: struct_check(f.type) for f in msgspec.structs.fields(schema)}
    raise InvalidInputError(
        f"A state schema is a pydantic model or a msgspec struct, not {schema!r}."
    )
