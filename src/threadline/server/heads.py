"""Where sessions ended when this process last appended to them.

An append that names no revision begins there, which saves a read; it need not be right, as such
an append goes to the end wherever that is.
"""

from __future__ import annotations

from collections import OrderedDict

Ids = tuple[str, str, str]
"""A session's app, user and id."""

SESSIONS_MAX = 4096


class Heads:
    """Revision and incarnation of the sessions appended to last."""

    def __init__(self) -> None:
        self._known: OrderedDict[Ids, tuple[int, int]] = OrderedDict()

    def get(self, ids: Ids) -> tuple[int, int] | None:
        """Return the revision and incarnation that were seen, if any."""
        return self._known.get(ids)

    def put(self, ids: Ids, revision: int, incarnation: int) -> None:
        """Remember them, and forget the session that was used longest ago."""
        self._known[ids] = revision, incarnation
        self._known.move_to_end(ids)
        if len(self._known) > SESSIONS_MAX:
            self._known.popitem(last=False)

    def forget(self, ids: Ids) -> bool:
        """Forget a session; tell whether it was known."""
        return self._known.pop(ids, None) is not None
