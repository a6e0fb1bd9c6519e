"""The events of a session, decoded when they are looked at.

Loading a long conversation costs what reading its bytes costs. Nothing is decoded before it is
looked at, nothing twice, and no two histories share an event's insides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from threadline.codec import event_to_row, row_to_event
from threadline.models import Event

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from threadline.engines.base import EventRow


class History(Sequence[Event]):
    """A read-only sequence of events; slices and sums are plain lists."""

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[Event | EventRow] = ()) -> None:
        self._items: list[Any] = list(items)

    @classmethod
    def of(cls, events: Iterable[Event]) -> History:
        """Return events as a history: themselves, if they are one."""
        return events if isinstance(events, History) else cls(events)

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self._items)))]
        item = self._items[index]
        if type(item) is tuple:
            item = self._items[index] = row_to_event(item)
        event: Event = item
        return event

    def __iter__(self) -> Iterator[Event]:
        # Up to the end as it is now: appends may go on while the holder iterates.
        return map(self.__getitem__, range(len(self._items)))

    def __reversed__(self) -> Iterator[Event]:
        return reversed(list(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, History | list):
            return NotImplemented
        return len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Iterable[Event]) -> list[Event]:
        return [*self, *other]

    def __radd__(self, other: Iterable[Event]) -> list[Event]:
        return [*other, *self]

    def __repr__(self) -> str:
        return repr(list(self))

    def rows(self) -> Iterator[EventRow]:
        """Yield each event's seq and its JSON without it, decoding nothing."""
        for item in self._items:
            yield item if type(item) is tuple else (item.seq or 0, event_to_row(item)[0].body)

    def push(self, item: Event | EventRow) -> None:
        """Add the next event: the service's privilege."""
        self._items.append(item)
