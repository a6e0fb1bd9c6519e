"""The session service over an engine: every rule once, whatever the database.

`append_event` in one breath: check and encode the event, let the engine store it in one
transaction, bring the caller's handle up to date with what was stored before it and with it.
"""

from __future__ import annotations

import abc
import asyncio
import base64
import binascii
import datetime as dt
import math
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec
from msgspec import UNSET, UnsetType

from threadline import clock, codec, migrations, state
from threadline.canonical import decode, dump, encode, is_same
from threadline.connect import connect
from threadline.engines.base import (
    NO_STATE,
    SEQ_MAX,
    Engine,
    EventClashError,
    Handle,
    Migratable,
    NewEvent,
    NewSession,
    Position,
    Scope,
    SessionChange,
    SessionQuery,
    SessionStore,
    Tailable,
    Window,
    app_scope,
    check_id,
    session_key,
    user_scope,
)
from threadline.engines.memory import MemoryEngine
from threadline.errors import (
    EventConflictError,
    IncompleteReadError,
    InvalidInputError,
    SessionNotFoundError,
    StaleSessionError,
)
from threadline.history import History
from threadline.models import (
    Event,
    GetSessionConfig,
    ListEventsResponse,
    ListSessionsResponse,
    Session,
)
from threadline.patch import Patch
from threadline.service import BaseSessionService, OnStale, Order

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    import asyncpg
    from sqlalchemy.ext.asyncio import AsyncEngine

    from threadline.engines.base import Appended, ErasedUser, StateRows


class HandleSessionService(BaseSessionService):
    """What is the same wherever sessions are kept: appending through a handle."""

    def __init__(self, *, on_stale: OnStale, state_schema: type | None) -> None:
        _check_policy(on_stale)
        self._on_stale: OnStale = on_stale
        self.state_schema = state_schema

    # -- events -------------------------------------------------------------------------

    async def append_events(
        self, session: Session, events: Sequence[Event], *, on_stale: OnStale | None = None
    ) -> list[Event]:
        """Store several events in one transaction: all of them, or none."""
        rebase = (_check_policy(on_stale) if on_stale else self._on_stale) == "rebase"
        given: list[Event] = []
        rows: list[NewEvent] = []
        stored: list[Event] = []
        for one in events:
            event = one if isinstance(one, Event) else Event.from_dict(one)
            given.append(event)
            if not event.partial:
                state.check_schema(self.state_schema, event.actions.state_delta)
                row, clean = codec.event_to_row(event)
                rows.append(row)
                stored.append(clean)
        if not rows:
            return given
        if len(rows) > 1 and len({row.id for row in rows}) < len(rows):
            raise EventConflictError("Two of the events to be appended have the same id.")
        # Appends through one handle take turns: each needs the revision the last one left.
        async with turn_of(session):
            handle = Handle(
                key=session_key(session.app_name, session.user_id, session.id),
                revision=_revision(session),
                incarnation=session.incarnation,
            )
            appended = await self._append(session, handle, rows, rebase)
            for event, seq in zip(stored, appended.seqs, strict=True):
                codec.set_seq(event, seq)
            _advance(session, handle.revision, appended, stored)
            for event in given:
                temp = state.temp_keys(event.actions.state_delta)
                if temp and not event.partial:
                    state.write_through(session.state, temp)
        if len(stored) == len(given):
            return stored
        complete = iter(stored)
        return [event if event.partial else next(complete) for event in given]

    @abc.abstractmethod
    async def _store(
        self, session: Session, handle: Handle, rows: list[NewEvent], rebase: bool
    ) -> Appended:
        """Store the rows as `SessionStore.append` does."""

    async def _append(
        self, session: Session, handle: Handle, rows: list[NewEvent], rebase: bool
    ) -> Appended:
        while True:
            try:
                return await self._store(session, handle, rows, rebase)
            except StaleSessionError as error:
                error.missed = History(error.missed)
                raise
            except EventClashError as clash:
                # The same event may have been written in other words, such as a dict's keys in
                # another order. Take the stored ones and it is the retry that it is.
                row = rows[clash.index]
                mine, theirs = (decode(Event, body) for body in (row.body, clash.stored[1]))
                if not is_same(dump(mine), dump(theirs)):
                    raise EventConflictError(
                        f"The session {handle.key.id!r} already holds an event with the id "
                        f"{row.id!r} and other content, at seq {clash.stored[0]}. A retry must "
                        "send the same event; a new event needs a new id.",
                        stored=codec.row_to_event(clash.stored),
                    ) from None
                rows[clash.index] = msgspec.structs.replace(row, body=clash.stored[1])


class StoredSessionService(HandleSessionService):
    """What is the same wherever sessions are kept row by row: in a database, or behind a server."""

    @abc.abstractmethod
    async def _ready(self) -> SessionStore:
        """Return the store, opened."""

    # -- sessions -----------------------------------------------------------------------

    async def create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        state: dict[str, Any] | None = None,
        session_id: str | None = None,
        ttl: float | dt.timedelta | None = None,
        expire_time: float | dt.datetime | None = None,
        display_name: str | None = None,
        labels: dict[str, str] | None = None,
    ) -> Session:
        """Create a session, with a new id if none is given."""
        now = clock.now()
        key = session_key(app_name, user_id, clock.new_id() if session_id is None else session_id)
        rows = self._delta_to_rows(state or {})
        new = NewSession(
            key=key,
            created=now,
            expires=expiry(now, ttl, expire_time),
            display_name=_checked_text("display_name", display_name),
            labels=encoded_labels(labels),
        )
        store = await self._ready()
        created = await store.create(new, rows, now=now)
        return codec.row_to_session(created.session, created.state, History())

    async def get_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        config: GetSessionConfig | None = None,
    ) -> Session | None:
        """Return a handle of the session with its merged state and events, or None."""
        key = session_key(app_name, user_id, session_id)
        window = _window(config)
        found = await (await self._ready()).load(key, window, now=clock.now())
        if found is None:
            return None
        if window == _ALL and len(found.events) != found.session.revision:
            raise IncompleteReadError(
                f"The session {session_id!r} has {found.session.revision} events, but "
                f"{len(found.events)} were read. Try again; if it stays so, the store is damaged."
            )
        return codec.row_to_session(found.session, found.state, History(found.events))

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Remove a session, its events and its state; a missing one is no error."""
        key = session_key(app_name, user_id, session_id)
        await (await self._ready()).delete(key)

    # -- events -------------------------------------------------------------------------

    async def _store(
        self,
        session: Session,  # noqa: ARG002 - the handle says all that a store asks
        handle: Handle,
        rows: list[NewEvent],
        rebase: bool,
    ) -> Appended:
        store = await self._ready()
        return await store.append(handle, rows, rebase=rebase, now=clock.now())

    async def refresh(self, session: Session) -> Session:
        """Bring a handle up to date, reading only the events it has not seen; return it."""
        key = session_key(session.app_name, session.user_id, session.id)
        store = await self._ready()
        async with turn_of(session):
            window = Window(after_seq=_revision(session))
            found = await store.load(key, window, now=clock.now())
            if found is None or session.incarnation not in (None, found.session.incarnation):
                raise SessionNotFoundError(f"The session {session.id!r} does not exist any more.")
            fresh = codec.row_to_session(
                found.session, found.state, _grown(session.events, found.events)
            )
            bring_up_to_date(session, fresh)
        return session

    # -- state --------------------------------------------------------------------------

    def _checked_patch(
        self,
        app_name: str,
        user_id: str | None,
        session_id: str | None,
        set: Mapping[str, Any] | None,
        delete: Iterable[str],
        increment: Mapping[str, float] | None,
        expect: Mapping[str, Any] | None,
    ) -> tuple[Scope, Patch]:
        if session_id is not None:
            if user_id is None:
                raise InvalidInputError("A session's state needs user_id as well as session_id.")
            key = session_key(app_name, user_id, session_id)
            scope = Scope(key.owner, key.session)
        else:
            scope = app_scope(app_name) if user_id is None else user_scope(app_name, user_id)
        # A schema is about the session's own keys, as it is in a delta.
        schema = None if session_id is None else self.state_schema
        patch = Patch(set or {}, tuple(delete), increment or {}, expect or {}, schema)
        patch.check(in_session=session_id is not None)
        return scope, patch

    def _delta_to_rows(self, delta: Mapping[str, Any]) -> StateRows:
        state.check_schema(self.state_schema, delta)
        return codec.state_to_rows(delta)

    async def __aenter__(self) -> Self:
        await self._ready()
        return self


class EngineSessionService(StoredSessionService):
    """The session service over an engine."""

    def __init__(
        self,
        engine: Engine,
        *,
        on_stale: OnStale = "raise",
        auto_migrate: bool = True,
        state_schema: type | None = None,
    ) -> None:
        super().__init__(on_stale=on_stale, state_schema=state_schema)
        self._engine = engine
        self._auto_migrate = auto_migrate
        self._is_ready = False

    async def list_sessions(
        self,
        *,
        app_name: str,
        user_id: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        order: Order = "updated",
        descending: bool = False,
        include_state: bool = True,
    ) -> ListSessionsResponse:
        """List sessions without their events, of all users if `user_id` is None."""
        if order not in ("updated", "created"):
            raise InvalidInputError(f"order must be 'updated' or 'created', got {order!r}.")
        if limit is not None:
            check_positive("limit", limit)
        app = app_scope(app_name)
        owner = None if user_id is None else user_scope(app_name, user_id).owner
        asked = [order, descending, app.owner.hex(), owner.hex() if owner else None]
        query = SessionQuery(
            app_key=app.owner,
            owner=owner,
            order=order,
            descending=descending,
            after=None if cursor is None else _cursor_to_position(cursor, asked),
            limit=None if limit is None else limit + 1,  # one more tells whether there are more
            state=include_state,
        )
        page = await (await self._ready()).sessions(query, now=clock.now())
        cut = page[:limit]
        sessions = [codec.row_to_session(row, rows, History()) for row, rows in cut]
        if len(page) == len(cut):
            return ListSessionsResponse(sessions=sessions)
        last = cut[-1][0]
        place = Position(last.created if order == "created" else last.updated, last.user, last.id)
        return ListSessionsResponse(
            sessions=sessions, next_cursor=_position_to_cursor(place, asked)
        )

    async def find_sessions(self, *, app_name: str, session_id: str) -> list[Session]:
        """Return handles of the app's sessions with this id, one for each user that has one."""
        check_id("session_id", session_id)
        app_key = app_scope(app_name).owner
        rows = await (await self._ready()).find(app_key, session_id, now=clock.now())
        return [
            codec.row_to_session(row, NO_STATE, History())
            for row in sorted(rows, key=lambda row: row.user)
        ]

    async def list_apps(self) -> list[str]:
        """Return the names of the apps that have sessions, in order."""
        return await (await self._ready()).apps()

    async def update_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        display_name: str | UnsetType | None = UNSET,
        labels: dict[str, str] | UnsetType | None = UNSET,
        ttl: float | dt.timedelta | None = None,
        expire_time: float | dt.datetime | UnsetType | None = UNSET,
    ) -> Session:
        """Change a session's title, labels or expiry; return a handle of it without events."""
        now = clock.now()
        key = session_key(app_name, user_id, session_id)
        change = session_change(now, display_name, labels, ttl, expire_time)
        engine = await self._ready()
        if await engine.describe(key, change, now=now):
            found = await engine.load(key, Window(limit=0), now=now)
            if found is not None:
                return codec.row_to_session(found.session, found.state, History())
        raise SessionNotFoundError(f"The session {session_id!r} does not exist.")

    async def erase_user(self, *, app_name: str, user_id: str) -> ErasedUser:
        """Remove all of a user in an app: sessions, expired ones too, and the user's state."""
        return await (await self._ready()).erase(user_scope(app_name, user_id))

    async def list_events(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        after_seq: int | None = None,
        before_seq: int | None = None,
        limit: int = 100,
        reverse: bool = False,
    ) -> ListEventsResponse:
        """Return a page of events with `after_seq < seq < before_seq`."""
        check_positive("limit", limit)
        window = Window(
            after_seq=check_seq("after_seq", after_seq) or 0,
            before_seq=check_seq("before_seq", before_seq),
            limit=limit + 1,
            newest=reverse,
        )
        key = session_key(app_name, user_id, session_id)
        found = await (await self._ready()).load(key, window, now=clock.now(), state=False)
        if found is None:
            raise SessionNotFoundError(f"The session {session_id!r} does not exist.")
        rows = found.events
        page = rows[-limit:] if reverse else rows[:limit]
        return ListEventsResponse(
            events=History(page),
            has_more=len(rows) > limit,
            incarnation=found.session.incarnation,
        )

    async def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        """Return a copy of the user's state, keys without their prefix."""
        scope = user_scope(app_name, user_id)
        return codec.values(await (await self._ready()).state(scope))

    async def get_app_state(self, *, app_name: str) -> dict[str, Any]:
        """Return a copy of the app's state, keys without their prefix."""
        scope = app_scope(app_name)
        return codec.values(await (await self._ready()).state(scope))

    async def patch_state(
        self,
        *,
        app_name: str,
        user_id: str | None = None,
        session_id: str | None = None,
        set: Mapping[str, Any] | None = None,
        delete: Iterable[str] = (),
        increment: Mapping[str, float] | None = None,
        expect: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Change state without an event, atomically; return the new values of the keys set."""
        scope, patch = self._checked_patch(
            app_name, user_id, session_id, set, delete, increment, expect
        )
        engine = await self._ready()
        changes = await engine.patch(scope, patch.keys, patch.change, now=clock.now())
        return {key: decode(None, value) for key, value in changes.items() if value is not None}

    # -- life ---------------------------------------------------------------------------

    @property
    def tailable(self) -> Tailable | None:
        """The engine, if it can tell where many sessions are; it is open after the first call."""
        return self._engine if isinstance(self._engine, Tailable) else None

    async def prepare_tables(self) -> None:
        """Connect, and create or upgrade the tables, ahead of the first request."""
        await self._ready()

    async def _ready(self) -> Engine:
        engine = self._engine
        if not self._is_ready:
            await engine.open()
            try:
                if isinstance(engine, Migratable):
                    await migrations.prepare(engine, auto_migrate=self._auto_migrate)
            except BaseException:
                await engine.close()  # nobody else does, after an `async with` that failed
                raise
            self._is_ready = True
        return engine

    async def close(self) -> None:
        """Let go of connections and threads; the next call opens them again."""
        self._is_ready = False
        await self._engine.close()


class InMemorySessionService(EngineSessionService):
    """Sessions in the memory of this process, for tests and throw-away runs."""

    def __init__(self, *, on_stale: OnStale = "raise", state_schema: type | None = None) -> None:
        super().__init__(MemoryEngine(), on_stale=on_stale, state_schema=state_schema)


class DatabaseSessionService(EngineSessionService):
    """Sessions in the database that a URL names, or an asyncpg.Pool or AsyncEngine leads to.

    `durability` is "full" or "normal"; `busy_timeout_s` bounds the wait for a locked database;
    with `auto_migrate=False` the tables must be there (`threadline db upgrade`). A database with
    a server also has a `schema` (PostgreSQL) or `table_prefix` (MySQL) for the tables, a pool of
    `pool_min` to `pool_max` connections, `connect_with` for credentials that change, and
    `replica_url` for reads. `threadline.connect.connect` tells more.
    """

    def __init__(
        self,
        db_url: str | asyncpg.Pool | AsyncEngine,
        *,
        on_stale: OnStale = "raise",
        durability: Literal["full", "normal"] = "full",
        busy_timeout_s: float = 30.0,
        auto_migrate: bool = True,
        state_schema: type | None = None,
        schema: str | None = None,
        table_prefix: str | None = None,
        pool_min: int | None = None,
        pool_max: int | None = None,
        connect_with: Callable[..., Awaitable[Any]] | None = None,
        group_commit: bool | None = None,
        replica_url: str | None = None,
    ) -> None:
        engine = connect(
            db_url,
            durability=durability,
            busy_timeout_s=busy_timeout_s,
            schema=schema,
            table_prefix=table_prefix,
            pool_min=pool_min,
            pool_max=pool_max,
            connect_with=connect_with,
            group_commit=group_commit,
            replica_url=replica_url,
        )
        super().__init__(
            engine, on_stale=on_stale, auto_migrate=auto_migrate, state_schema=state_schema
        )


# -- handles ----------------------------------------------------------------------------


def turn_of(session: Session) -> asyncio.Lock:
    """Return the handle's lock; it is no field, so it is neither compared nor shown."""
    attributes = vars(session)
    lock: asyncio.Lock | None = attributes.get("lock")
    if lock is None:
        lock = attributes["lock"] = asyncio.Lock()
    return lock


def bring_up_to_date(session: Session, fresh: Session) -> None:
    """Give a handle what a new one has, in place: whoever holds the state sees the new one."""
    temp = state.temp_keys(session.state)
    fresh.state = state.replaced(session.state, {**fresh.state, **temp})
    for field in fresh.__struct_fields__:
        setattr(session, field, getattr(fresh, field))


def _revision(session: Session) -> int:
    """Return the newest seq a handle knows, also for one that was made by hand."""
    if session.revision is not None:
        return session.revision
    return max((event.seq or 0 for event in session.events), default=0)


def _advance(session: Session, known: int, appended: Appended, stored: Iterable[Event]) -> None:
    """Give a handle what was stored since its revision, in order."""
    news = [event for event in stored if event.seq and event.seq > known]
    if appended.missed:
        news += map(codec.row_to_event, appended.missed)
        news.sort(key=lambda event: event.seq or 0)
    session.events = history = History.of(session.events)
    if not isinstance(session.state, state.ReadOnlyDict):
        session.state = state.ReadOnlyDict(session.state)
    for event in news:
        history.push(event)
        if event.actions.state_delta:
            state.write_through(session.state, event.actions.state_delta)
    session.revision = appended.revision
    session.incarnation = appended.incarnation
    session.last_update_time = appended.updated


def _grown(events: Sequence[Event], rows: Iterable[Any]) -> History:
    history = History.of(events)
    for row in rows:
        history.push(row)
    return history


# -- arguments --------------------------------------------------------------------------

_ALL = Window()


def _window(config: GetSessionConfig | None) -> Window:
    if config is None:
        return _ALL
    recent = config.num_recent_events
    return Window(
        after_seq=min(config.after_seq or 0, SEQ_MAX),
        after_timestamp=config.after_timestamp,
        limit=None if recent is None else min(recent, SEQ_MAX),
        newest=recent is not None,
    )


def _check_policy(on_stale: str) -> OnStale:
    if on_stale == "raise":
        return "raise"
    if on_stale == "rebase":
        return "rebase"
    raise InvalidInputError(f"on_stale must be 'raise' or 'rebase', got {on_stale!r}.")


def check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or not 1 <= value <= SEQ_MAX:
        raise InvalidInputError(f"{name} must be an integer from 1 to {SEQ_MAX}, got {value!r}.")


def check_seq(name: str, value: int | None) -> int | None:
    if value is not None and (not isinstance(value, int) or not 0 <= value <= SEQ_MAX):
        raise InvalidInputError(
            f"{name} must be None or an integer from 0 to {SEQ_MAX}, got {value!r}."
        )
    return value


def _checked_text(name: str, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        value.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        raise InvalidInputError(f"{name} must be valid Unicode text, got {value!r}.") from error
    return value


def encoded_labels(labels: dict[str, str] | None) -> str | None:
    if not labels:
        return None
    if not isinstance(labels, dict):
        raise InvalidInputError(f"labels map strings to strings, got {labels!r}.")
    for key, value in labels.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidInputError(f"labels map strings to strings, got {key!r}: {value!r}.")
        _checked_text("A label", key + value)
    return msgspec.json.encode(labels).decode()


def session_change(
    now: float,
    display_name: str | UnsetType | None,
    labels: dict[str, str] | UnsetType | None,
    ttl: float | dt.timedelta | None,
    expire_time: float | dt.datetime | UnsetType | None,
) -> SessionChange:
    if ttl is not None and expire_time is not UNSET:
        raise InvalidInputError("Give ttl or expire_time, not both.")
    is_timed = ttl is not None or expire_time is not UNSET
    return SessionChange(
        display_name=UNSET
        if display_name is UNSET
        else _checked_text("display_name", display_name),
        labels=UNSET if labels is UNSET else encoded_labels(labels),
        expires=expiry(now, ttl, None if expire_time is UNSET else expire_time)
        if is_timed
        else UNSET,
    )


def expiry(
    now: float,
    ttl: float | dt.timedelta | None,
    expire_time: float | dt.datetime | None,
) -> float | None:
    if ttl is not None and expire_time is not None:
        raise InvalidInputError("Give ttl or expire_time, not both.")
    if isinstance(ttl, dt.timedelta):
        ttl = ttl.total_seconds()
    if ttl is not None and not (isinstance(ttl, int | float) and 0 < ttl < math.inf):
        raise InvalidInputError(f"ttl must be a positive number of seconds, got {ttl!r}.")
    if isinstance(expire_time, dt.datetime):
        if expire_time.tzinfo is None:
            raise InvalidInputError("expire_time must have a time zone, or be epoch seconds.")
        expire_time = expire_time.timestamp()
    expires = now + ttl if ttl is not None else expire_time
    if expires is not None and not (isinstance(expires, int | float) and math.isfinite(expires)):
        raise InvalidInputError(f"expire_time must be a finite number, got {expires!r}.")
    return expires


def _position_to_cursor(place: Position, asked: list[Any]) -> str:
    return base64.urlsafe_b64encode(encode([*place, asked])).decode()


def _cursor_to_position(cursor: str, asked: list[Any]) -> Position:
    try:
        time, user, id, asked_before = msgspec.json.decode(
            base64.urlsafe_b64decode(cursor), type=tuple[float, str, str, list[Any]]
        )
    except (msgspec.MsgspecError, binascii.Error, ValueError, TypeError) as error:
        raise InvalidInputError("cursor is not one that list_sessions returned.") from error
    if asked_before != asked:
        raise InvalidInputError(
            "cursor belongs to a call with another app_name, user_id, order or direction."
        )
    return Position(time, user, id)
