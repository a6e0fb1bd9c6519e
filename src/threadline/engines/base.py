"""The seam between the service and a database.

An engine method is one transaction over rows. Keys come split by scope and values come
encoded: an engine knows no prefix, no model and no JSON. It raises threadline's errors only,
and a refusal (`AlreadyExistsError`, `StaleSessionError`, ...) leaves nothing written.

To write an engine, implement `Engine` and run `threadline.testing.EngineSuite` against it.
"""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from threadline.errors import DamagedDataError, InvalidIdError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

ID_BYTES_MAX = 512
SEQ_MAX = 2**32 - 1

EventRow = tuple[int, bytes]
"""A stored event: its seq and its body."""


class SessionKey(msgspec.Struct, frozen=True):
    """A session's ids and the fixed-length keys made of them.

    Every primary key begins with `owner`, so all rows of a user lie together, and on one
    shard where there are several.
    """

    app: str
    user: str
    id: str
    app_key: bytes
    owner: bytes
    session: bytes
    scopes: tuple[Scope, Scope, Scope]
    """Whose state it sees: the app's, the user's and its own, in the order of StateRows."""


class Scope(msgspec.Struct, frozen=True):
    """Whose state: a session's, or with an empty `session` a user's or an app's."""

    owner: bytes
    session: bytes = b""


class StateRows(NamedTuple):
    """Encoded values by key, for each stored scope."""

    app: Mapping[str, bytes]
    user: Mapping[str, bytes]
    session: Mapping[str, bytes]


NO_STATE = StateRows({}, {}, {})


class SessionRow(msgspec.Struct, frozen=True):
    """A stored session without its events and state; times are seconds since the epoch.

    `incarnation` tells apart the sessions that had the same id one after the other.
    """

    app: str
    user: str
    id: str
    incarnation: int
    revision: int
    created: float
    updated: float
    expires: float | None = None
    display_name: str | None = None
    labels: str | None = None


class NewSession(msgspec.Struct, frozen=True):
    """A session to be created."""

    key: SessionKey
    created: float
    expires: float | None = None
    display_name: str | None = None
    labels: str | None = None


class NewEvent(msgspec.Struct, frozen=True):
    """An event to be appended, and the state it sets."""

    id: str
    timestamp: float
    body: bytes
    state: StateRows


class Handle(msgspec.Struct, frozen=True):
    """What a caller of `append` knows of the session.

    `revision` is the newest seq it has seen. `incarnation` is None where it was made by hand
    and any session with the id will do.
    """

    key: SessionKey
    revision: int
    incarnation: int | None = None


class Appended(msgspec.Struct, frozen=True):
    """The outcome of an append.

    `seqs` are those of the given events, in their order. `missed` are the other events with a
    seq after the handle's revision and up to `revision`, the handle's new one.
    """

    seqs: Sequence[int]
    missed: Sequence[EventRow]
    incarnation: int
    revision: int
    updated: float


class Window(msgspec.Struct, frozen=True):
    """Which events of a session: `after_seq < seq < before_seq`, not older than a time.

    `limit` takes the first of them, or the last with `newest`; they come in seq order.
    """

    after_seq: int = 0
    before_seq: int | None = None
    after_timestamp: float | None = None
    limit: int | None = None
    newest: bool = False


class Snapshot(msgspec.Struct, frozen=True):
    """A session with its state and some events, all as of one moment."""

    session: SessionRow
    state: StateRows
    events: list[EventRow]


class Position(NamedTuple):
    """A session's place in a listing."""

    time: float
    user: str
    id: str


class SessionQuery(msgspec.Struct, frozen=True):
    """Which sessions, in the order of (time, user, id); `time` is `updated` or `created`."""

    app_key: bytes
    owner: bytes | None = None
    order: str = "updated"
    descending: bool = False
    after: Position | None = None
    limit: int | None = None
    state: bool = True


class SessionChange(msgspec.Struct, frozen=True):
    """What of a session's row is to be changed; what is UNSET stays."""

    display_name: str | msgspec.UnsetType | None = msgspec.UNSET
    labels: str | msgspec.UnsetType | None = msgspec.UNSET
    expires: float | msgspec.UnsetType | None = msgspec.UNSET

    @property
    def values(self) -> dict[str, Any]:
        """Each column, None where it stays, and beside it whether it is set."""
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        return {
            name: None if value is msgspec.UNSET else value for name, value in given.items()
        } | {f"sets_{name}": value is not msgspec.UNSET for name, value in given.items()}


class ErasedUser(msgspec.Struct, frozen=True):
    """How much of a user was removed; `state_keys` are the sessions' and the user's own."""

    sessions: int = 0
    events: int = 0
    state_keys: int = 0


class EventClashError(Exception):
    """An event id is stored with another body; the service decides whether it says the same."""

    def __init__(self, index: int, stored: EventRow) -> None:
        super().__init__(index, stored)
        self.index = index
        self.stored = stored


class SessionStore(Protocol):
    """What keeps sessions row by row: a database, or a server in front of one.

    `now` decides which sessions are expired: to every method they do not exist, and `create`
    puts a new one in their place.
    """

    async def open(self) -> None:
        """Connect; more than once does no harm."""

    async def close(self) -> None:
        """Let go of every connection and thread."""

    async def create(self, session: NewSession, state: StateRows, *, now: float) -> Snapshot:
        """Store a session and return it as `load` would, or raise AlreadyExistsError."""

    async def load(
        self, key: SessionKey, window: Window, *, now: float, state: bool = True
    ) -> Snapshot | None:
        """Read a session, its state (of all scopes) and the events in the window."""

    async def append(
        self, handle: Handle, events: Sequence[NewEvent], *, rebase: bool, now: float
    ) -> Appended:
        """Store events at the end of the log, with their state; skip those that are there.

        An event is there if its id is: equal bodies are a retry, others an EventClashError.
        Without `rebase`, new events are refused with StaleSessionError (`missed` being rows)
        unless the session's revision is the handle's, or that of a skipped event.
        SessionNotFoundError if there is no session, or not this incarnation.
        """

    async def delete(self, key: SessionKey) -> bool:
        """Remove a session, its events and its state; tell whether it was there."""


class Engine(SessionStore, Protocol):
    """A store of rows. Every method may be called from several event loops and threads."""

    async def patch(
        self,
        scope: Scope,
        keys: Sequence[str],
        change: Callable[[Mapping[str, bytes]], Mapping[str, bytes | None]],
        *,
        now: float,
    ) -> Mapping[str, bytes | None]:
        """Change keys of one scope by a function of their values; None deletes a key.

        `change` is pure; what it raises ends the call with nothing written.
        """

    async def state(self, scope: Scope) -> Mapping[str, bytes]:
        """Read a user's or an app's state."""

    async def sessions(
        self, query: SessionQuery, *, now: float
    ) -> list[tuple[SessionRow, StateRows]]:
        """Read a page of sessions, each with its state of all scopes if asked for."""

    async def find(self, app_key: bytes, id: str, *, now: float) -> list[SessionRow]:
        """Read the sessions of an app that have this id, one for each user, in any order."""

    async def apps(self) -> list[str]:
        """Read which apps have sessions, in order, at a cost that does not grow with those."""

    async def describe(self, key: SessionKey, change: SessionChange, *, now: float) -> bool:
        """Change a session's title, labels and expiry; tell whether it was there."""

    async def erase(self, user: Scope) -> ErasedUser:
        """Remove a user's sessions, expired ones too, and the user's state; tell how much it was.

        What another transaction stores meanwhile is removed whole or stays whole: a session with
        its events and its state, and what the same transaction sets of the user's.
        """


class Head(NamedTuple):
    """Where a session is: which of those that had its id, and its newest seq."""

    incarnation: int
    revision: int


class Channel(Protocol):
    """What carries word from process to process that sessions moved: at once, or not at all."""

    async def tell(self, scopes: Collection[Scope]) -> None:
        """Send word of sessions to whoever listens in another process."""

    async def listen(self, hear: Callable[[Scope | None], None]) -> None:
        """Call `hear` with every session of which there is word, until this is cancelled.

        `hear(None)` says that word of any may have been missed, as before the connection was
        there. It makes its connection again when that is lost, and returns where none would do.
        """


@runtime_checkable
class Tailable(Protocol):
    """What an engine can do for those who follow many sessions, beside being an engine."""

    @property
    def channel(self) -> Channel | None:
        """What carries word of appends; None where the database has nothing of the kind."""

    async def heads(self, keys: Sequence[SessionKey], *, now: float) -> list[Head | None]:
        """Read where each of the sessions is, in one go; None where there is none."""


class Migration(msgspec.Struct, frozen=True):
    """One numbered step of a schema: its statements, the last of which writes the ledger."""

    version: int
    name: str
    sql: str


@runtime_checkable
class Migratable(Protocol):
    """What an engine with tables can do beside being an engine."""

    dialect: str
    where: str
    """What messages call the database; no password is in it."""
    schema: str | None
    """The schema its tables are in, which every statement names; None where there is none."""

    async def version(self) -> int | None:
        """Read the ledger's newest version; None where there is no ledger."""

    async def migrate(self, migrations: Sequence[Migration]) -> list[str]:
        """Run those that are not in the ledger, under a lock; return their names."""


def quoted(name: str) -> str:
    """Return a schema's name as SQL that means this name and nothing else."""
    return '"' + name.replace('"', '""') + '"'


def session_key(app: str, user: str, id: str) -> SessionKey:
    """Return the key of a session, or raise InvalidIdError."""
    try:
        return _session_key(app, user, id)
    except TypeError as error:  # unhashable
        raise InvalidIdError(f"Ids are strings, got {(app, user, id)!r}.") from error


@functools.lru_cache(maxsize=4096)
def _session_key(app: str, user: str, id: str) -> SessionKey:
    check_id("session_id", id)
    app_, user_ = app_scope(app), user_scope(app, user)
    own = Scope(user_.owner, digest(id))
    return SessionKey(
        app=app,
        user=user,
        id=id,
        app_key=app_.owner,
        owner=own.owner,
        session=own.session,
        scopes=(app_, user_, own),
    )


def session_row(columns: Sequence[Any]) -> SessionRow:
    """Return a session of its columns, in SessionRow's order, where text is bytes."""
    app, user, id, incarnation, revision, created, updated, expires, name, labels = columns
    return SessionRow(
        app=app.decode(),
        user=user.decode(),
        id=id.decode(),
        incarnation=incarnation,
        revision=revision,
        created=created,
        updated=updated,
        expires=expires,
        display_name=None if name is None else name.decode(),
        labels=None if labels is None else labels.decode(),
    )


def check_row(key: SessionKey, row: SessionRow) -> None:
    """Compare the ids of a row with those that were asked for: a collision is never a mix-up."""
    if (row.id, row.user, row.app) != (key.id, key.user, key.app):
        raise DamagedDataError(
            f"The keys of session {key.id!r} lead to the row of session {row.id!r} of app "
            f"{row.app!r}: the row was changed by hand, or two ids have one digest."
        )


def is_expired(row: SessionRow, now: float) -> bool:
    """Whether the session's time is over: then it does not exist, to whoever asks."""
    return row.expires is not None and row.expires <= now


def user_scope(app: str, user: str) -> Scope:
    """Return the scope of a user's state, or raise InvalidIdError."""
    check_id("app_name", app)
    check_id("user_id", user)
    return Scope(digest(app, user))


def app_scope(app: str) -> Scope:
    """Return the scope of an app's state, or raise InvalidIdError."""
    check_id("app_name", app)
    return Scope(digest(app))


def check_id(name: str, value: object) -> None:
    """Refuse an id that some engine could not keep verbatim."""
    if not isinstance(value, str):
        raise InvalidIdError(f"{name} must be a string, got {value!r}.")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidIdError(f"{name} {value!r} is not valid Unicode: {error}") from error
    if not 1 <= size <= ID_BYTES_MAX:
        raise InvalidIdError(
            f"{name} must have 1 to {ID_BYTES_MAX} bytes in UTF-8; {value[:40]!r} has {size}."
        )


def digest(*ids: str) -> bytes:
    """Return 16 bytes that stand for ids of any length.

    Each id goes in with its length, so that ("a:b", "c") and ("a", "b:c") differ.
    """
    hashed = hashlib.blake2b(digest_size=16)
    for encoded in map(str.encode, ids):
        hashed.update(len(encoded).to_bytes(4, "big"))
        hashed.update(encoded)
    return hashed.digest()
