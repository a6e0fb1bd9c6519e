"""The decoded events of the sessions that were loaded last.

To read an event's JSON into pydantic models is most of the cost of loading a session. So what
was decoded once is kept as a mould, from which equal events are cast at a fraction of it. A cast
shares nothing that can change with any other, nor with the mould.
"""

from __future__ import annotations

import copy
import datetime as dt
import enum
import functools
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from google.adk.events.event import Event

    Cast = Callable[[], Event]
    Key = tuple[str, str, str]


class Known(NamedTuple):
    """The first events of a session, and which of the sessions with its id that was."""

    incarnation: int | None
    casts: list[Cast]


class EventCache:
    """Moulds of sessions' events, `events_max` of them in all; the sessions used last stay.

    With `share` the same event is handed to every caller. Callers may be on several threads.
    """

    def __init__(self, events_max: int, *, share: bool) -> None:
        self._events_max = events_max
        self._mould: Callable[[Any], Cast] = _same if share else mould
        self._known: OrderedDict[Key, Known] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def find(self, key: Key) -> Known | None:
        """Return what is known of a session; its list may grow, and does not shrink."""
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
            return known

    def keep(self, key: Key, incarnation: int | None, after: int, events: Sequence[Event]) -> None:
        """Keep the events of a session that follow its first `after`."""
        if after + len(events) > self._events_max:
            self.forget(key)
            return
        casts = [self._mould(event) for event in events]
        with self._lock:
            known = self._known.get(key)
            if known is None:
                known = self._known[key] = Known(incarnation, [])
            if known.incarnation != incarnation or len(known.casts) != after:
                return  # somebody else was first
            known.casts.extend(casts)
            self._size += len(casts)
            while self._size > self._events_max:
                _, oldest = self._known.popitem(last=False)
                self._size -= len(oldest.casts)

    def forget(self, key: Key) -> None:
        """Drop what is known of a session."""
        with self._lock:
            known = self._known.pop(key, None)
            if known is not None:
                self._size -= len(known.casts)


def mould(value: Any) -> Callable[[], Any]:
    """Return a function that makes copies of a value, as `copy.deepcopy` would, but sooner.

    The value itself is free to change afterwards.
    """
    kind = type(value)
    if kind is dict:
        return _container_mould(value.copy(), value.items())
    if kind is list:
        return _container_mould(value.copy(), enumerate(value))
    if kind is set:
        return set(value).copy  # its items are hashable, so of no account here
    if isinstance(value, BaseModel) and value.__pydantic_extra__ is None:
        return _model_mould(value)
    return functools.partial(copy.deepcopy, copy.deepcopy(value))


def _container_mould(blank: Any, items: Iterable[tuple[Any, Any]]) -> Callable[[], Any]:
    changing = [(key, mould(item)) for key, item in items if not _is_fixed(item)]
    if not changing:
        copied: Callable[[], Any] = blank.copy
        return copied
    for key, _ in changing:
        blank[key] = None

    def cast() -> Any:
        made = blank.copy()
        for key, make in changing:
            made[key] = make()
        return made

    return cast


_set = object.__setattr__


def _model_mould(model: BaseModel) -> Callable[[], Any]:
    kind, new = type(model), type(model).__new__
    make_fields = _container_mould(model.__dict__.copy(), model.__dict__.items())
    make_names = model.__pydantic_fields_set__.copy().copy
    private = model.__pydantic_private__
    make_private = functools.partial(_nothing) if private is None else mould(private)

    def cast() -> BaseModel:
        # What BaseModel.__copy__ does, without the parts that cannot be there.
        made = new(kind)
        _set(made, "__dict__", make_fields())
        _set(made, "__pydantic_fields_set__", make_names())
        _set(made, "__pydantic_extra__", None)
        _set(made, "__pydantic_private__", make_private())
        return made

    return cast


def _nothing() -> None:
    return None


def _same(value: Event) -> Cast:
    return lambda: value


_FIXED = (str, int, float, bytes, enum.Enum, dt.date, dt.time, dt.timedelta)


def _is_fixed(value: Any) -> bool:
    return value is None or isinstance(value, _FIXED)
