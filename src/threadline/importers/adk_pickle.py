"""Read what google-adk pickled, and run nothing of it.

A pickle is a program for a small machine, and two of its instructions call whatever function
the pickle names. This is such a machine for the instructions that occur in an `EventActions`:
it imports nothing and calls nothing. Models become records of their fields, and the few other
names that google-adk itself writes are known one by one; everything else is refused by name.
Instructions that reach outside (persistent ids, extensions, buffers) do not exist here.
"""

from __future__ import annotations

import base64
import datetime as dt
import pickletools
import struct
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from threadline.canonical import DEPTH_MAX
from threadline.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

MODELS = ("google.adk.", "google.genai.", "fastapi.openapi.models")
"""Modules whose classes are models, read as their fields, or enumerations, read as their value."""

UNFOLDED_MAX = 1 << 18
GROWTH_MAX = 8
"""Characters and values that a pickle may unfold to in any case, and for each of its bytes.

References make much out of little: a few hundred bytes can stand for more than any memory.
"""


class PickleRefusedError(InvalidInputError):
    """The pickle is damaged, or asks for something that no `EventActions` needs."""


class Name(NamedTuple):
    """A class or function that a pickle names; nothing is behind it."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:200]

    @property
    def is_model(self) -> bool:
        return self.module.startswith(MODELS)


class Record:
    """An object of a pickle: the name of its class, and its fields once they are set."""

    __slots__ = ("fields", "kind")

    def __init__(self, kind: Name) -> None:
        self.kind = kind
        self.fields: dict[str, Any] = {}


def load(data: bytes) -> dict[str, Any]:
    """Return the fields of a pickled `EventActions` as JSON types, the way its own JSON has them.

    Raises PickleRefusedError.
    """
    try:
        value = _run(data)
    except (ValueError, LookupError, TypeError, OverflowError, struct.error) as error:
        if isinstance(error, PickleRefusedError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise PickleRefusedError(f"the pickle is damaged: {reason}") from error
    if isinstance(value, Record) and value.kind.is_model and value.kind.name == "EventActions":
        plain: dict[str, Any] = _Unfolding(len(data)).plain(value, 0)
        return plain
    kind = value.kind if isinstance(value, Record) else type(value).__name__
    raise PickleRefusedError(f"the pickle holds {kind}, not an EventActions.")


# -- the machine ------------------------------------------------------------------------


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        if not self.stack:
            raise PickleRefusedError("the pickle is damaged: it takes from an empty stack.")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise PickleRefusedError(f"the pickle is damaged: there is no {kind.__name__} to fill.")
        return self.stack[-1]

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        if not self.below:
            raise PickleRefusedError("the pickle is damaged: there is no mark.")
        items, self.stack = self.stack, self.below.pop()
        return items


def _run(data: bytes) -> Any:
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "STOP":
            break
        if opcode.name in _PUSHES:
            machine.stack.append(argument)
        elif opcode.name in _STEPS:
            _STEPS[opcode.name](machine, argument)
        else:
            raise PickleRefusedError(f"the pickle uses {opcode.name}, which is never needed here.")
    return machine.pop()


def _set_items(machine: _Machine, pairs: list[Any]) -> None:
    target = machine.top(dict)
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        target[_key(key)] = value


def _key(key: Any) -> str:
    """Return a dict's key as JSON writes it."""
    if isinstance(key, str):
        return key
    if isinstance(key, bool):
        return str(key).lower()
    if key is None or isinstance(key, int | float):
        return str(key)
    raise PickleRefusedError(f"a dict has a key that is a {type(key).__name__}.")


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _set_items(machine, [key, value])


def _append(machine: _Machine, _: Any) -> None:
    value = machine.pop()
    machine.top(list).append(value)


def _extend(machine: _Machine, _: Any) -> None:
    items = machine.pop_mark()
    machine.top(list).extend(items)


def _dict(machine: _Machine, _: Any) -> None:
    pairs = machine.pop_mark()
    machine.stack.append({})
    _set_items(machine, pairs)


def _drop(machine: _Machine, _: Any) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _drop_mark(machine: _Machine, _: Any) -> None:
    machine.pop_mark()


def _list(machine: _Machine, _: Any) -> None:
    items = machine.pop_mark()
    machine.stack.append(items)


def _tuple(machine: _Machine, size: int | None) -> None:
    items = machine.pop_mark() if size is None else [machine.pop() for _ in range(size)][::-1]
    machine.stack.append(tuple(items))


def _remember(machine: _Machine, place: int | None) -> None:
    if not machine.stack:
        raise PickleRefusedError("the pickle is damaged: there is nothing to remember.")
    machine.memo[len(machine.memo) if place is None else place] = machine.stack[-1]


def _recall(machine: _Machine, place: int) -> None:
    if place not in machine.memo:
        raise PickleRefusedError("the pickle is damaged: it recalls what it did not remember.")
    machine.stack.append(machine.memo[place])


def _name(machine: _Machine, given: str | None) -> None:
    if given is None:
        name, module = machine.pop(), machine.pop()
    else:
        module, _, name = given.partition(" ")
    if type(name) is not str or type(module) is not str:
        raise PickleRefusedError("the pickle is damaged: a name is no text.")
    found = Name(module, name)
    if not found.is_model and found not in _CALLS and found != _UUID:
        raise PickleRefusedError(f"the pickle names {found}, which no EventActions needs.")
    machine.stack.append(found)


def _new(machine: _Machine, _: Any) -> None:
    arguments, kind = machine.pop(), machine.pop()
    if type(kind) is not Name or arguments != () or not (kind.is_model or kind == _UUID):
        raise PickleRefusedError(f"the pickle makes an object of {kind!s:.200}, which is no model.")
    machine.stack.append(Record(kind))


def _call(machine: _Machine, _: Any) -> None:
    arguments, name = machine.pop(), machine.pop()
    if type(name) is not Name or type(arguments) is not tuple:
        raise PickleRefusedError("the pickle calls something that is no class.")
    if name in _CALLS:
        machine.stack.append(_CALLS[name](*arguments))
    elif len(arguments) == 1 and type(arguments[0]) in (str, int):  # a member of an enumeration
        machine.stack.append(arguments[0])
    else:
        raise PickleRefusedError(f"the pickle calls {name}, which is no enumeration.")


def _build(machine: _Machine, _: Any) -> None:
    state = machine.pop()
    record = machine.top(Record)
    fields = state.get("__dict__") if type(state) is dict and record.kind.is_model else state
    if type(fields) is not dict:
        raise PickleRefusedError(f"the pickle gives {record.kind} something else than fields.")
    more = state.get("__pydantic_extra__")
    record.fields = {**fields, **more} if type(more) is dict and record.kind.is_model else fields


_PUSHES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda *_: None),
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    # What is only listed needs no hashing, and JSON has no sets.
    "EMPTY_SET": lambda machine, _: machine.stack.append([]),
    "MARK": lambda machine, _: machine.mark(),
    "POP": _drop,
    "POP_MARK": _drop_mark,
    "APPEND": _append,
    "APPENDS": _extend,
    "ADDITEMS": _extend,
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: _set_items(machine, machine.pop_mark()),
    "LIST": _list,
    "FROZENSET": _list,
    "DICT": _dict,
    "TUPLE": _tuple,
    "TUPLE1": lambda machine, _: _tuple(machine, 1),
    "TUPLE2": lambda machine, _: _tuple(machine, 2),
    "TUPLE3": lambda machine, _: _tuple(machine, 3),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _recall),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _name),
    "NEWOBJ": _new,
    "REDUCE": _call,
    "BUILD": _build,
}


# -- what is known by name --------------------------------------------------------------

_UUID = Name("uuid", "UUID")


def _datetime(packed: bytes, zone: dt.tzinfo | None = None) -> dt.datetime:
    year_high, year, month, day, hour, minute, second, *micro = packed
    return dt.datetime(
        year_high << 8 | year,
        month & 127,
        *(day, hour, minute, second, int.from_bytes(micro, "big")),
        tzinfo=zone,
        fold=month >> 7,
    )


def _date(packed: bytes) -> dt.date:
    year_high, year, month, day = packed
    return dt.date(year_high << 8 | year, month, day)


def _time(packed: bytes, zone: dt.tzinfo | None = None) -> dt.time:
    hour, minute, second, *micro = packed
    return dt.time(hour & 127, minute, second, int.from_bytes(micro, "big"), tzinfo=zone)


def _span(days: int, seconds: int, microseconds: int) -> dt.timedelta:
    return dt.timedelta(days, seconds, microseconds)


def _zone(offset: Any, _name: str | None = None) -> dt.timezone:
    return dt.timezone(offset if isinstance(offset, dt.timedelta) else dt.timedelta(0, offset))


def _text(*given: Any) -> str:
    (text,) = given
    if type(text) is not str:
        raise PickleRefusedError("the pickle is damaged: a number is no text.")
    return text


def _listed(items: Any = ()) -> list[Any]:
    return list(items)


def _empty(*_factory: Any) -> dict[str, Any]:
    return {}


# Each makes a plain value out of plain values, and fails for others.
_CALLS: dict[Name, Callable[..., Any]] = {
    Name("datetime", "datetime"): _datetime,
    Name("datetime", "date"): _date,
    Name("datetime", "time"): _time,
    Name("datetime", "timedelta"): _span,
    Name("datetime", "timezone"): _zone,
    Name("pydantic_core._pydantic_core", "TzInfo"): _zone,
    Name("decimal", "Decimal"): _text,
    Name("collections", "OrderedDict"): _empty,
    Name("collections", "defaultdict"): _empty,
    # Also what a defaultdict makes its values with, which is named and never called.
    Name("builtins", "list"): _listed,
    Name("builtins", "set"): _listed,
    Name("builtins", "frozenset"): _listed,
    Name("builtins", "dict"): _empty,
    Name("builtins", "int"): _empty,
    Name("builtins", "str"): _empty,
}


# -- JSON types -------------------------------------------------------------------------


class _Unfolding:
    """Turn what the machine made into JSON types, and stop where it grows out of all bounds."""

    def __init__(self, pickled: int) -> None:
        self._left = max(UNFOLDED_MAX, GROWTH_MAX * pickled)

    def plain(self, value: Any, depth: int) -> Any:
        self._left -= 1 + (len(value) if isinstance(value, str | bytes | bytearray) else 0)
        if depth > DEPTH_MAX:
            raise PickleRefusedError(f"the pickle is nested more than {DEPTH_MAX} deep.")
        if self._left < 0:
            raise PickleRefusedError("the pickle unfolds to more than it could hold.")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Name):
            raise PickleRefusedError(f"the pickle holds the class {value} as a value.")
        if isinstance(value, list | tuple):
            return [self.plain(item, depth + 1) for item in value]
        if isinstance(value, dict):
            return {key: self.plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, Record):
            return self._record(value, depth)
        return _scalar(value)

    def _record(self, record: Record, depth: int) -> Any:
        if record.kind == _UUID:
            return str(uuid.UUID(int=record.fields["int"]))
        return {
            name: base64.urlsafe_b64encode(item).decode()
            if isinstance(item, bytes)
            else self.plain(item, depth + 1)
            for name, item in record.fields.items()
            if item is not None
        }


def _scalar(value: Any) -> str:
    """Return what has no form in JSON the way pydantic writes it."""
    if isinstance(value, bytes | bytearray):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise PickleRefusedError(f"the pickle holds bytes that are no text: {error}") from error
    if isinstance(value, dt.timedelta):
        return _duration(value)
    if isinstance(value, dt.date | dt.time):
        return value.isoformat().replace("+00:00", "Z")
    raise PickleRefusedError(f"the pickle holds a {type(value).__name__}.")


def _duration(value: dt.timedelta) -> str:
    sign, whole = ("-", -value) if value.days < 0 else ("", value)
    minutes, seconds = divmod(whole.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{whole.microseconds:06}".rstrip("0") if whole.microseconds else ""
    date = f"{whole.days}D" if whole.days else ""
    time = f"{hours}H" if hours else ""
    time += f"{minutes}M" if minutes else ""
    time += f"{seconds}{fraction}S" if seconds or fraction else ""
    if not date and not time:
        time = "0S"
    return f"{sign}P{date}{'T' if time else ''}{time}"
