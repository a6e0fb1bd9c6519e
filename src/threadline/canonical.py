"""One canonical JSON: how a model becomes bytes and comes back equal.

The fast path is msgspec on typed structs. Three things it cannot do are done here, in
plain Python, only for the values that need it:

- *Unknown fields.* A struct refuses them, so the fast path never drops one silently; the
  slow path keeps them in `extra` and writes them back beside the known ones.
- *Both spellings.* JSON is camelCase; snake_case (as google-adk stores it) is read too.
- *Values JSON has no form for.* NaN, infinities and lone surrogates are written the way
  Python's `json` writes and reads them (`NaN`, `\\ud800`).

`encode` proves what it promises: it decodes its own bytes and compares. What would not
come back equal is refused with the path of the culprit.
"""

from __future__ import annotations

import base64
import enum
import functools
import json
import math
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

# The JSON name under which msgspec would write `extra`. A single rare byte gives it away, which
# is quick to look for; bytes that contain it take the slow path. It is never read under that
# name, as msgspec knows no way to make an Extra.
_EXTRA = "\x7fextra"
_EXTRA_MARK = b"\x7f"


class Extra(dict[str, Any]):
    """Fields that this version does not know, as they came."""

    __slots__ = ()


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
            if name == "extra":
                fields[name] = Extra(value) if value else msgspec.UNSET
            if value is None or name not in models:
                continue
            kind, item_kind = models[name]
            if item_kind is None:
                if type(value) is not kind:
                    fields[name] = build(kind, value, name)
            else:
                items = value.values() if isinstance(value, dict) else value
                if type(value) not in (list, dict) or any(
                    type(item) is not item_kind for item in items
                ):
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

    extra: Extra | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name=_EXTRA)
    """Fields this version does not know, kept as they came; UNSET where there are none."""

    @classmethod
    def __adapt__(cls, value: Any) -> Any:
        """Turn a shorthand for this model into a dict or an object with `model_dump`."""
        return value

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
        except (ValueError, RecursionError) as error:
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

        return core_schema.no_info_after_validator_function(
            lambda value: value if isinstance(value, cls) else cls.from_dict(value),
            core_schema.any_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(
                dump, return_schema=core_schema.dict_schema()
            ),
        )


# -- bytes ------------------------------------------------------------------------------


def encode(value: Any, path: str = "value") -> bytes:
    """Return JSON from which `decode` gives an equal value, or raise naming the path."""
    return encode_checked(value, path)[0]


def encode_checked(value: Any, path: str = "value") -> tuple[bytes, Any, bool]:
    """Return JSON that was decoded again and compared, or raise naming the path.

    With it come the decoded value, which shares nothing with the caller's, and whether the JSON
    is strict: without the forms that only Python's `json` reads.
    """
    kind = type(value) if isinstance(value, Model) else None
    try:
        data = _encoder.encode(value)
        if _EXTRA_MARK not in data and not _is_unordered(value):
            again = _decoder(kind).decode(data)
            if again == value:
                # Few brackets cannot be deep; many may be, or they stand in a text.
                if data.count(b"[") + data.count(b"{") > DEPTH_MAX:
                    _check(dump(value), path, 0)
                return data, again, True
    except UnsupportedValueError:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        pass  # The slow path either manages or says what is wrong and where.
    plain = dump(value)
    _check(plain, path, 0)
    data = json.dumps(plain, separators=(",", ":")).encode()
    again = decode(kind, data)
    if not is_same(dump(again), plain):
        raise UnsupportedValueError(f"{path} would not come back equal from the store.")
    return data, again, False


def encode_again(value: Any, _path: str) -> bytes:
    """Return the JSON of a part of what `encode_checked` found strict: it needs no proof."""
    return _encoder.encode(value)


def decode(kind: type | None, data: bytes) -> Any:
    """Return the value in `data`: a model of type `kind`, or plain JSON types for None."""
    try:
        return _decoder(kind).decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass  # unknown or snake_case fields, or values outside of strict JSON
    value = loads(data)
    return value if kind is None else _build_model(kind, value, kind.__name__)


def loads(data: bytes, **options: Any) -> Any:
    """Return plain JSON types as Python's `json` does, but never infinity for a large number."""
    return json.loads(data, parse_float=_finite, **options)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"The number {text:.40} is too large for a float.")
    return number


_encoder = msgspec.json.Encoder()


@functools.lru_cache(maxsize=64)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(Any if kind is None else kind)


def _is_unordered(value: Any) -> bool:
    """Whether msgspec would write a set of several strings in an order of its own."""
    ids: frozenset[str] | None = getattr(value, "long_running_tool_ids", None)
    return ids is not None and len(ids) > 1


# -- the slow path ----------------------------------------------------------------------


def dump(value: Any, *, as_adk: bool = False) -> Any:
    """Return a model as JSON types, unknown fields beside the known; leave other values alone.

    `as_adk` gives what google-adk stores: names in snake_case, bytes in URL-safe base64.
    """
    if not isinstance(value, Model):
        return value
    plain = {
        field.name if as_adk else field.encode_name: _dump_field(item, field.type, as_adk)
        for field in _fields(type(value))
        if (item := getattr(value, field.name)) is not None and not _is_default(field, item)
    }
    return {**(value.extra or {}), **plain}


def _dump_field(item: Any, kind: Any, as_adk: bool) -> Any:
    """Go by the declared type: what a user put into a dict is not ours to convert."""
    for option in _options(kind):
        origin, item_kind = get_origin(option), (get_args(option) or (None,))[-1]
        if isinstance(item, Model) and _is_model(option):
            return dump(item, as_adk=as_adk)
        if isinstance(item, bytes) and option is bytes:
            return (base64.urlsafe_b64encode if as_adk else base64.b64encode)(item).decode()
        if isinstance(item, frozenset) and origin is frozenset:
            return sorted(item)
        if isinstance(item, list) and origin is list and _is_model(item_kind):
            return [dump(one, as_adk=as_adk) for one in item]
        if isinstance(item, dict) and origin is dict and _is_model(item_kind):
            return {key: dump(one, as_adk=as_adk) for key, one in item.items()}
    return item


@functools.lru_cache(maxsize=1024)
def _options(kind: Any) -> tuple[Any, ...]:
    """The types a declared type allows, beside None."""
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(option for option in get_args(kind) if option is not type(None))
    return (kind,)


def _is_default(field: msgspec.structs.FieldInfo, item: Any) -> bool:
    """Whether msgspec leaves the item out: a plain default, or an empty container."""
    if field.default_factory in (dict, list, frozenset):
        return not item
    return field.default is not msgspec.NODEFAULT and bool(item == field.default)


def is_same(a: Any, b: Any) -> bool:
    """Equality of JSON values in which NaN equals NaN and 1, 1.0 and True are three values."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(is_same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (a != a and b != b)
    return bool(type(a) is type(b) and a == b) or (isinstance(a, str) and a == b)


def build(kind: Any, value: Any, path: str) -> Any:
    """Make a value of the type `kind` from JSON types or google objects."""
    if value is None or kind is Any:
        return value
    options = _options(kind)
    if len(options) > 1:
        return _convert(value, kind, path)
    (kind,) = options
    if type(value) is kind:  # most fields: a text, a number, a model
        return value
    if _is_model(kind):
        return _build_model(kind, value, path)
    origin, item_kind = get_origin(kind), (get_args(kind) or (None,))[-1]
    if origin is list and isinstance(value, list | tuple):
        if any(item is None for item in value):
            raise InvalidInputError(f"{path} holds None.")
        return [build(item_kind, item, f"{path}[{n}]") for n, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: build(item_kind, item, f"{path}[{key!r}]") for key, item in value.items()}
    if kind is bytes and isinstance(value, str):
        return _bytes(value, path)
    return _convert(value, kind, path)


def _build_model(kind: type[Model], value: Any, path: str) -> Model:
    if isinstance(value, kind):
        return value
    value = kind.__adapt__(value)
    is_object = hasattr(value, "model_dump")
    if is_object:
        # With its Nones: pydantic would take them out of users' dicts as well.
        value = _without_enums(value.model_dump(mode="python", by_alias=True))
    if not isinstance(value, dict):
        raise InvalidInputError(f"{path}: expected {kind.__name__}, got {type(value).__name__}.")
    names = _spellings(kind)
    known: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, item in value.items():
        field = names.get(key)
        if field is None:
            if item is not None or not is_object:
                extra[key] = item
        elif item is not None:
            known[field.name] = build(field.type, item, f"{path}.{field.name}")
    try:
        return kind(**known, extra=Extra(extra))
    except TypeError as error:  # a field that must be there is missing
        raise InvalidInputError(f"{path}: {error}") from error


def _without_enums(value: Any) -> Any:
    """Put an enumeration's value in its place, as the object's own JSON would."""
    if isinstance(value, dict):
        return {key: _without_enums(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_enums(item) for item in value]
    return value.value if isinstance(value, enum.Enum) else value


def _bytes(text: str, path: str) -> bytes:
    """Read base64 in both alphabets, with padding or without: ADK's releases differ."""
    standard = text.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except ValueError as error:
        raise InvalidInputError(f"{path} is not base64: {error}") from error


def _convert(value: Any, kind: Any, path: str) -> Any:
    plain = value.value if isinstance(value, enum.Enum) else value
    try:
        return msgspec.convert(plain, kind, builtin_types=(bytes,))
    except (msgspec.ValidationError, TypeError, UnicodeEncodeError) as error:
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
        for option in _options(field.type):
            item_kind = (get_args(option) or (None,))[-1]
            if _is_model(option):
                found[field.name] = option, None
            elif _is_model(item_kind):
                found[field.name] = option, item_kind
            elif get_origin(option) is frozenset:
                found[field.name] = option, None
    return found


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Model)
