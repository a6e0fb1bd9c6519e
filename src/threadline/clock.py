"""Time and ids, from sources that a test can replace.

They are process-wide on purpose: an event made far from any service takes part too.
"""

from __future__ import annotations

import contextlib
import time as _time
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _uuid4() -> str:
    return str(uuid.uuid4())


_now: Callable[[], float] = _time.time
_new_id: Callable[[], str] = _uuid4


def now() -> float:
    """Return the current time, in seconds since the epoch (UTC)."""
    return _now()


def new_id() -> str:
    """Return a new unique id."""
    return _new_id()


@contextlib.contextmanager
def replaced(
    *, now: Callable[[], float] | None = None, new_id: Callable[[], str] | None = None
) -> Iterator[None]:
    """Replace the sources of time and of ids inside the block."""
    global _now, _new_id
    before = _now, _new_id
    _now, _new_id = now or _now, new_id or _new_id
    try:
        yield
    finally:
        _now, _new_id = before
