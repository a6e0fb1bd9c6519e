"""One canonical JSON: how a model becomes bytes and comes back equal.

The fast path is msgspec on typed structs. Three things it cannot do are done here, in
plain Python, only for the values that need it:

- *Unknown fields.* A struct refuses them, so the fast path never drops one silently; the
  slow path keeps them in `extra` and writes them back where they stood.
- *Both spellings.* JSON is camelCase; snake_case (as google-adk stores it) is read too.
- *Values JSON has no form for.* NaN, infinities and lone surrogates are written the way
  Python's `json` writes and reads them (`NaN`, `\\ud800`).

`encode` proves what it promises: it decodes its own bytes and compares. What would not
come back equal is refused with the path of the culprit.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import re
import types
from typing import (
    TYPE_CHECKING,
    Any,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
)

import msgspec

from threadline.errors import InvalidInputError, UnsupportedValueError

if TYPE_CHECKING:
    from typing import Self

# The JSON name under which msgspec would write `extra`. No field of ours or of ADK's can
# have it; bytes that contain it take the slow path, where it is an ordinary unknown field.
_EXTRA = "threadline:extra"
_EXTRA_BYTES = _EXTRA.encode()

DEPTH_MAX = 128
"""Containers inside containers, at most: what loads here must load under a deep stack too."""

_INT_BITS_MAX = 14_000  # about 4,200 digits; Python refuses to parse more than 4,300
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class ModelMeta(msgspec.StructMeta):
    """Let constructors take dicts and google objects where a field is a model."""

    def __call__(cls, *args: Any, **fields: Any) -> Any:  # noqa: N805 - a metaclass
        models = _model_fields(cls)
        for name, value in fields.items():
            if value is None or name not in models:
                continue
            kind, item_kind = models[name]
            if item_kind is None:
                if type(value) is not kind:
                    fields[name] = build(kind, value, name)
            else:
                items = value.values() if isinstance(value, dict) else value
                if any(type(item) is not item_kind for item in items):
                    fields[name] = build(kind, value, name)
        return super().__call__(*args, **fields)


class Model(
    msgspec.Struct,
    metaclass=ModelMeta,
    frozen=True,
    kw_only=True,
    rename="camel",
    omit_defaults=True,
    forbid_unknown_fields=True,
    repr_omit_defaults=True,
    gc=False,
):
    """The base of every model: immutable, compared by value, lossless in JSON."""

    extra: dict[str, Any] | None = msgspec.field(default=None, name=_EXTRA)
    """Fields this version does not know, kept as they came."""

    @classmethod
    def from_dict(cls, value: Any) -> Self:
        """Make a model from a dict (either spelling) or from anything with `model_dump`."""
        built: Self = build(cls, value, cls.__name__)
        return built

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """Make a model from JSON, in either spelling; unknown fields are kept."""
        try:
            model: Self = decode(cls, data.encode() if isinstance(data, str) else data)
        except ValueError as error:
            raise InvalidInputError(f"This is not the JSON of {cls.__name__}: {error}") from error
        return model

    def to_dict(self) -> dict[str, Any]:
        """Return the model as JSON types, in camelCase, without what is at its default."""
        plain: dict[str, Any] = dump(self)
        return plain

    def to_json(self) -> str:
        """Return the canonical JSON."""
        return encode(self).decode()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Let pydantic and FastAPI models have fields of this type."""
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls.from_dict(value),
            serialization=core_schema.plain_serializer_function_ser_schema(
                dump, return_schema=core_schema.dict_schema()
            ),
        )


# -- bytes ------------------------------------------------------------------------------


def encode(value: Any, path: str = "value") -> bytes:
    """Return JSON from which `decode` gives an equal value, or raise naming the path."""
    return encode_checked(value, path)[0]


def encode_checked(value: Any, path: str = "value") -> tuple[bytes, Any]:
    """Return the JSON and the value decoded from it, which shares nothing with the caller's."""
    kind = type(value) if isinstance(value, Model) else None
    try:
        data = _encoder.encode(value)
        # Neither unknown fields, nor so deep that it might not load under a deep stack.
        if _EXTRA_BYTES not in data and data.count(b"[") + data.count(b"{") < DEPTH_MAX:
            again = _decoder(kind).decode(data)
            if again == value:
                return data, again
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        pass  # The slow path either manages or says what is wrong and where.
    plain = dump(value)
    _check(plain, path, 0)
    data = json.dumps(plain, separators=(",", ":")).encode()
    again = decode(kind, data)
    if not _same(dump(again), plain):
        raise UnsupportedValueError(f"{path} would not come back equal from the store.")
    return data, again


def decode(kind: type | None, data: bytes) -> Any:
    """Return the value in `data`: a model of type `kind`, or plain JSON types for None."""
    if _EXTRA_BYTES not in data:
        try:
            return _decoder(kind).decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass  # unknown or snake_case fields, or values outside of strict JSON
    value = json.loads(data)
    return value if kind is None else build(kind, value, kind.__name__)


def decode_many(kind: type, bodies: list[bytes]) -> list[Any]:
    """Decode many bodies in one go; the slow path is taken for those that need it."""
    data = b"[%b]" % b",".join(bodies)
    if _EXTRA_BYTES not in data:
        try:
            many: list[Any] = _decoder(list[kind]).decode(data)  # type: ignore[valid-type]
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass
        else:
            return many
    return [decode(kind, body) for body in bodies]


_encoder = msgspec.json.Encoder()


@functools.lru_cache(maxsize=64)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(Any if kind is None else kind)


# -- the slow path ----------------------------------------------------------------------


def dump(value: Any) -> Any:
    """Return a model as JSON types, unknown fields hoisted back; leave other values alone."""
    if not isinstance(value, Model):
        return value
    plain = {
        field.encode_name: _dump_field(item, field.type)
        for field in _fields(type(value))
        if (item := getattr(value, field.name)) is not None and item != _default(field)
    }
    return {**plain, **(value.extra or {})}


def _dump_field(item: Any, kind: Any) -> Any:
    """Go by the declared type: what a user put into a dict is not ours to convert."""
    for option in (kind, *get_args(kind)):
        origin, item_kind = get_origin(option), (get_args(option) or (None,))[-1]
        if _is_model(option):
            return dump(item)
        if option is bytes and isinstance(item, bytes):
            return base64.b64encode(item).decode()
        if origin is frozenset:
            return sorted(item)
        if origin is list and _is_model(item_kind):
            return [dump(one) for one in item]
        if origin is dict and _is_model(item_kind):
            return {key: dump(one) for key, one in item.items()}
    return item


def build(kind: Any, value: Any, path: str) -> Any:
    """Make a value of the type `kind` from JSON types or google objects."""
    if value is None or kind is Any:
        return value
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [arg for arg in get_args(kind) if arg is not type(None)]
        if len(kinds) > 1:
            return _convert(value, kind, path)
        return build(kinds[0], value, path)
    if _is_model(kind):
        return _build_model(kind, value, path)
    origin = get_origin(kind) or kind
    if origin is frozenset and isinstance(value, set | frozenset | list | tuple):
        return frozenset(value)
    if origin is list and isinstance(value, list | tuple):
        (item_kind,) = get_args(kind)
        return [build(item_kind, item, f"{path}[{n}]") for n, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        _, item_kind = get_args(kind)
        return {key: build(item_kind, item, f"{path}[{key!r}]") for key, item in value.items()}
    if kind is bytes and isinstance(value, str):
        try:
            # google-adk writes the URL-safe alphabet, older releases the standard one.
            return base64.b64decode(value.replace("-", "+").replace("_", "/"), validate=True)
        except binascii.Error as error:
            raise InvalidInputError(f"{path} is not base64: {error}") from error
    return _convert(value, kind, path)


def _build_model(kind: type[Model], value: Any, path: str) -> Model:
    if isinstance(value, kind):
        return value
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="python", exclude_none=True)
    if isinstance(value, str):
        value = kind.__from_str__(value) if hasattr(kind, "__from_str__") else value
    if not isinstance(value, dict):
        raise InvalidInputError(f"{path}: expected {kind.__name__}, got {type(value).__name__}.")
    names = _spellings(kind)
    known: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, item in value.items():
        field = names.get(key)
        if field is None:
            extra[key] = item
        elif item is not None:
            known[field.name] = build(field.type, item, f"{path}.{field.name}")
    return kind(**known, extra=extra or None)


def _convert(value: Any, kind: Any, path: str) -> Any:
    try:
        return msgspec.convert(value, kind, builtin_types=(bytes,))
    except (msgspec.ValidationError, TypeError) as error:
        raise InvalidInputError(f"{path}: {error}") from error


def _check(value: Any, path: str, depth: int) -> None:
    """Raise for the first value that Python's `json` would not give back equal."""
    if depth > DEPTH_MAX:
        raise UnsupportedValueError(f"{path} is nested more than {DEPTH_MAX} deep.")
    if isinstance(value, str):
        if _SURROGATE_PAIR.search(value):
            raise UnsupportedValueError(
                f"{path} holds two surrogates that JSON would join into one character."
            )
    elif isinstance(value, bool | float) or value is None:
        pass
    elif isinstance(value, int):
        if value.bit_length() > _INT_BITS_MAX:
            raise UnsupportedValueError(f"{path} is an integer of more than {_INT_BITS_MAX} bits.")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise UnsupportedValueError(
                    f"{path} has the key {key!r}: keys of a stored dict must be strings."
                )
            _check(key, f"the key {key!r} of {path}", depth)
            _check(item, f"{path}[{key!r}]", depth + 1)
    elif isinstance(value, list):
        for n, item in enumerate(value):
            _check(item, f"{path}[{n}]", depth + 1)
    else:
        hint = _HINTS.get(type(value).__name__, "convert it to JSON types first")
        raise UnsupportedValueError(
            f"{path} is a {type(value).__name__}, which would not come back equal: {hint}."
        )


_HINTS = {
    "tuple": "use a list",
    "set": "use a sorted list",
    "frozenset": "use a sorted list",
    "bytes": "use a part with inline_data, or base64 text",
    "datetime": "use `.isoformat()` or `.timestamp()`",
    "Decimal": "use a string",
    "UUID": "use a string",
}


def _same(a: Any, b: Any) -> bool:
    """Equality in which NaN equals NaN and 1, 1.0 and True are three values."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (a != a and b != b)
    return bool(type(a) is type(b) and a == b) or (isinstance(a, str) and a == b)


# -- what a model class is made of ------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _fields(kind: type[Model]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return tuple(field for field in msgspec.structs.fields(kind) if field.name != "extra")


@functools.lru_cache(maxsize=256)
def _spellings(kind: type[Model]) -> dict[str, msgspec.structs.FieldInfo]:
    return {name: f for f in _fields(kind) for name in (f.name, f.encode_name)}


@functools.lru_cache(maxsize=256)
def _model_fields(cls: Any) -> dict[str, tuple[Any, type[Model] | None]]:
    """The fields of `cls` that hold models: their type, and the items' type of a container."""
    found: dict[str, tuple[Any, type[Model] | None]] = {}
    for field in msgspec.structs.fields(cls):
        for kind in (field.type, *get_args(field.type)):
            if _is_model(kind):
                found[field.name] = kind, None
            elif get_args(kind) and _is_model(get_args(kind)[-1]):
                found[field.name] = kind, get_args(kind)[-1]
            elif get_origin(kind) is frozenset:
                found[field.name] = frozenset, None
    return found


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Model)


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default
