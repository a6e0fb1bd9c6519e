"""What a service remembers of the sessions it loaded last, so that it reads only what is new."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

Item = TypeVar("Item")
Key = tuple[str, str, str]


class Known(Generic[Item]):
    """The first events of a session, and which of the sessions with its id that was."""

    def __init__(self, incarnation: int | None) -> None:
        self.incarnation = incarnation
        self.items: list[Item] = []
        self.size_bytes = 0


class Cache(Generic[Item]):
    """The events of the sessions used last, of `bytes_max` in all.

    An item stands for an event. Callers may be on several threads.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._known: OrderedDict[Key, Known[Item]] = OrderedDict()
        self._size_bytes = 0
        self._lock = threading.Lock()

    def find(self, key: Key) -> Known[Item] | None:
        """Return what is known of a session; its list may grow, and never shrinks."""
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
            return known

    def keep(
        self, key: Key, incarnation: int | None, after: int, items: Iterable[Item], size_bytes: int
    ) -> None:
        """Keep the events of a session that follow its first `after`."""
        with self._lock:
            known = self._known.setdefault(key, Known(incarnation))
            if known.incarnation != incarnation or len(known.items) != after:
                return  # somebody else was first
            known.items.extend(items)
            known.size_bytes += size_bytes
            self._size_bytes += size_bytes
            while self._size_bytes > self._bytes_max:
                _, oldest = self._known.popitem(last=False)
                self._size_bytes -= oldest.size_bytes

    def forget(self, key: Key) -> None:
        """Drop what is known of a session."""
        with self._lock:
            known = self._known.pop(key, None)
            if known is not None:
                self._size_bytes -= known.size_bytes
