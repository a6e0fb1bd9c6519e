"""Changing state without an event: what `patch_state` asks for, as one function of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from threadline import state
from threadline.canonical import decode, encode
from threadline.errors import InvalidInputError, StateConflictError

if TYPE_CHECKING:
    from collections.abc import Mapping

MISSING = msgspec.UNSET
"""In `patch_state(expect=...)`: the key must not be there."""


class Patch(msgspec.Struct, frozen=True):
    """The arguments of `patch_state`, as one function of the stored values."""

    set: Mapping[str, Any]
    delete: tuple[str, ...]
    increment: Mapping[str, float]
    expect: Mapping[str, Any]
    schema: type | None = None

    @property
    def keys(self) -> list[str]:
        """The keys whose stored values the change depends on."""
        return [*self.increment, *self.expect]

    def check(self, *, in_session: bool) -> None:
        """Raise for what can be seen to be wrong without the stored values."""
        written = [*self.set, *self.delete, *self.increment]
        for key in (*written, *self.expect):
            state.check_key(key)
            if in_session and state.is_scoped(key):
                raise InvalidInputError(
                    f"{key!r} names another scope; patch that one, by leaving out session_id "
                    "(the user's) or user_id too (the app's), and the key's prefix."
                )
        if len(written) != len({*written}):
            raise InvalidInputError("A key can be set, deleted or incremented, only one of them.")
        state.check_schema(self.schema, self.set)
        for key, value in self.set.items():
            encode(value, f"set[{key!r}]")
        for key, amount in self.increment.items():
            if not _is_number(amount):
                raise InvalidInputError(f"increment[{key!r}] must be a number, got {amount!r}.")

    def change(self, stored: Mapping[str, bytes]) -> dict[str, bytes | None]:
        """Return the new values; raise StateConflictError where `expect` is not met."""
        for key, wanted in self.expect.items():
            found = decode(None, stored[key]) if key in stored else MISSING
            if type(found) is not type(wanted) or found != wanted:
                raise StateConflictError(
                    f"The state key {key!r} is {_told(found)}, not {_told(wanted)}; "
                    "nothing was changed."
                )
        changes: dict[str, bytes | None] = dict.fromkeys(self.delete)
        for key, value in self.set.items():
            changes[key] = encode(value, f"set[{key!r}]")
        for key, amount in self.increment.items():
            number = decode(None, stored[key]) if key in stored else 0
            if not _is_number(number):
                raise InvalidInputError(f"The state key {key!r} is no number but {number!r}.")
            state.check_schema(self.schema, {key: number + amount})
            changes[key] = encode(number + amount, f"increment[{key!r}]")
        return changes


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _told(value: object) -> str:
    return "missing" if value is MISSING else repr(value)
