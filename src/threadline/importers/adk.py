"""Databases of google-adk: every session, event and state, into a store of threadline's.

Two rules a reader may question. Events are stored with their state deltas as history, but the
state is not computed from them again: what the source holds is what the target gets, and an
import never takes a key of an app or user back to an older value. And an import is a copy, no
synchronisation: what the target holds is only ever added to, and where the two have parted, the
report names the session or key and leaves it alone.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
import zoneinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec

from threadline import clock
from threadline.canonical import decode, dump, encode, is_same
from threadline.codec import event_to_row
from threadline.engines.base import (
    NO_STATE,
    Handle,
    NewEvent,
    NewSession,
    StateRows,
    Window,
    app_scope,
    session_key,
    user_scope,
)
from threadline.errors import (
    AlreadyExistsError,
    DamagedDataError,
    IncompleteReadError,
    InvalidInputError,
    StaleSessionError,
)
from threadline.importers.adk_rows import V0, read_event, read_state, schema_of, to_seconds
from threadline.importers.adk_source import METADATA, Group, Row, Source, connect_source
from threadline.models import Event
from threadline.state import check_key, is_scoped, temp_keys
from threadline.store import EngineSessionService

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from threadline.engines.base import Engine, EventRow, SessionKey, Snapshot

BATCH = 32
"""Sessions that are stored side by side, so that they can share a commit."""

BATCH_EVENTS = 2000
"""Events after which a batch is full."""

APPEND_MAX = 250
"""Events that are stored in one transaction."""

ORPHAN = "its session does not exist: it was deleted, and this event was left behind."


class LeftOut(msgspec.Struct, frozen=True, rename="camel"):
    """What was left out or left alone, and why; `key` are the row's ids."""

    table: str
    key: list[str]
    reason: str


class AdkReport(msgspec.Struct, kw_only=True, frozen=True, rename="camel"):
    """What an import found and what it changed.

    `damaged` rows could not be read; `conflicts` are sessions and keys that the target holds
    otherwise. Events of deleted sessions are `orphans`.
    """

    source_schema: str
    time_zone: str | None
    """The zone that the times of events were read in; None where the source leaves no doubt."""
    sessions: int = 0
    events: int = 0
    sessions_created: int = 0
    events_added: int = 0
    events_present: int = 0
    state_keys_set: int = 0
    temp_keys: int = 0
    orphans: int = 0
    damaged: tuple[LeftOut, ...] = ()
    conflicts: tuple[LeftOut, ...] = ()
    quarantine: str | None = None
    dry_run: bool = False
    seconds: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether everything that the source's sessions hold is in the target."""
        return not self.damaged and not self.conflicts


class Progress(NamedTuple):
    """How far an import is, in rows of the table of events."""

    rows: int
    rows_total: int


class ConflictError(InvalidInputError):
    """The target holds something else under this name; it was left as it is."""


async def import_adk(
    source: str | Path,
    engine: Engine,
    *,
    time_zone: str = "UTC",
    overwrite_state: bool = False,
    quarantine: Path | str | None = None,
    dry_run: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> AdkReport:
    """Copy a database of google-adk's into the store of an engine, and compare afterwards.

    `source` is a file's path or a URL. `time_zone` is that of the processes which wrote schema
    v0. Rows that cannot be imported are written to the file `quarantine`, one JSON object a
    line. Running it again adds what is missing. With `dry_run` the source is read in the same
    way, and nothing is written anywhere.
    """
    try:
        zone = zoneinfo.ZoneInfo(time_zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidInputError(
            f"The time zone {time_zone!r} is unknown; write it like Europe/Zurich."
        ) from error
    async with connect_source(source) as opened:
        columns = await opened.columns()
        versions = [row async for row in _rows_of(opened, columns, METADATA)]
        schema = schema_of(opened.name, columns, versions)
        with _Quarantine(None if dry_run or quarantine is None else Path(quarantine)) as kept:
            run = _Import(
                opened,
                schema,
                None if dry_run else engine,
                zone=zone,
                overwrite_state=overwrite_state,
                quarantine=kept,
            )
            return await run.run(columns, on_progress)


async def _rows_of(source: Source, columns: Mapping[str, set[str]], table: str) -> Any:
    if table in columns:
        async for row in source.rows(f"SELECT * FROM {table}"):  # noqa: S608 - names of our own
            yield row


# -- one run ----------------------------------------------------------------------------


class _Session(msgspec.Struct):
    """A session as it is to be stored."""

    key: SessionKey
    created: float
    state: dict[str, bytes]
    events: list[NewEvent]


class _Stored(NamedTuple):
    created: bool
    added: int


class _Import:
    """One run: what it reads from, what it writes to, and what it has counted."""

    def __init__(
        self,
        source: Source,
        schema: str,
        engine: Engine | None,
        *,
        zone: dt.tzinfo,
        overwrite_state: bool,
        quarantine: _Quarantine,
    ) -> None:
        self._source = source
        self._schema = schema
        self._zone = zone
        self._overwrite_state = overwrite_state
        self._quarantine = quarantine
        self._engine = engine
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._damaged: list[LeftOut] = []
        self._conflicts: list[LeftOut] = []

    async def run(
        self, columns: Mapping[str, set[str]], on_progress: Callable[[Progress], None] | None
    ) -> AdkReport:
        started = time.perf_counter()
        if self._engine is not None:
            await EngineSessionService(self._engine).prepare_tables()
        (total,) = [row["n"] async for row in self._source.rows("SELECT count(*) n FROM events")]
        for table in ("app_states", "user_states"):
            async for row in _rows_of(self._source, columns, table):
                await self._take_state(table, row)
        rows = 0
        batch: list[_Session] = []
        async for group in self._source.groups():
            rows += len(group.events)
            if session := self._read(group):
                batch.append(session)
            if len(batch) == BATCH or sum(len(one.events) for one in batch) >= BATCH_EVENTS:
                await self._write(batch)
                batch = []
                if on_progress:
                    on_progress(Progress(rows, total))
        await self._write(batch)
        if on_progress:
            on_progress(Progress(rows, total))
        if rows != total:
            raise IncompleteReadError(
                f"{self._source.name} has {total} events, but {rows} were read. Try again; what "
                "was imported stays, and is not imported twice."
            )
        return AdkReport(
            source_schema=self._schema,
            time_zone=str(self._zone) if self._schema == V0 else None,
            damaged=tuple(self._damaged),
            conflicts=tuple(self._conflicts),
            quarantine=self._quarantine.written,
            dry_run=self._engine is None,
            seconds=time.perf_counter() - started,
            **self._counts,
        )

    # -- reading ------------------------------------------------------------------------

    def _read(self, group: Group) -> _Session | None:
        """Turn a session's rows into what is to be stored; None if nothing is."""
        row = group.session
        if row is None:
            self._counts["orphans"] += len(group.events)
            for event in group.events:
                self._quarantine.keep("events", event, ORPHAN)
            return None
        try:
            key = session_key(row["app_name"], row["user_id"], row["id"])
            created = to_seconds(row["create_time"], _UTC)
        except _UNREADABLE as error:
            self._leave_out("sessions", row, str(error))
            for event in group.events:
                self._leave_out("events", event, f"its session cannot be imported: {error}")
            return None
        self._counts["sessions"] += 1
        return _Session(
            key=key,
            created=created,
            state=self._read_state("sessions", row),
            events=[new for one in group.events if (new := self._read_event(one))],
        )

    def _read_event(self, row: Row) -> NewEvent | None:
        try:
            event = read_event(self._schema, row, self._zone)
            # The state comes from where the source keeps it, not once more from the deltas.
            new = msgspec.structs.replace(event_to_row(event)[0], state=NO_STATE)
        except _UNREADABLE as error:
            self._leave_out("events", row, str(error))
            return None
        self._counts["events"] += 1
        self._counts["temp_keys"] += len(temp_keys(event.actions.state_delta))
        return new

    def _read_state(self, table: str, row: Row) -> dict[str, bytes]:
        """Return a row's state, without the keys that cannot be stored."""
        state: dict[str, bytes] = {}
        try:
            values = read_state(row)
        except _UNREADABLE as error:
            self._leave_out(table, row, str(error))
            return state
        for name, value in values.items():
            try:
                _check_key(table, name)
                state[name] = encode(value, f"state[{name!r}]")
            except InvalidInputError as error:
                self._leave_out(table, row, str(error))
        return state

    def _leave_out(self, table: str, row: Row, reason: str) -> None:
        self._damaged.append(LeftOut(table, _ids(row), reason))
        self._quarantine.keep(table, row, reason)

    # -- writing ------------------------------------------------------------------------

    async def _take_state(self, table: str, row: Row) -> None:
        """Set the keys of an app's or a user's state that the target has not."""
        try:
            app = row["app_name"]
            scope = app_scope(app) if table == "app_states" else user_scope(app, row["user_id"])
        except InvalidInputError as error:
            self._leave_out(table, row, str(error))
            return
        state = self._read_state(table, row)
        if self._engine is None or not state:
            return
        other: list[str] = []

        def change(stored: Mapping[str, bytes]) -> Mapping[str, bytes]:
            other[:] = [
                name for name, value in stored.items() if not _is_same_value(value, state[name])
            ]
            replaced = other if self._overwrite_state else []
            return {
                name: value
                for name, value in state.items()
                if name not in stored or name in replaced
            }

        changed = await self._engine.patch(scope, list(state), change, now=clock.now())
        self._counts["state_keys_set"] += len(changed)
        stored = await self._engine.state(scope)
        for name, value in state.items():
            if name in stored and _is_same_value(stored[name], value):
                continue
            if name not in other or self._overwrite_state:
                raise DamagedDataError(
                    f"The key {name!r} of {table} did not come back from the target as it was "
                    "stored. Somebody else writes it, or the store is damaged."
                )
            reason = f"the target has another value for the key {name!r}, and keeps it."
            self._conflicts.append(LeftOut(table, _ids(row), reason))

    async def _write(self, batch: list[_Session]) -> None:
        if self._engine is None:
            return
        outcomes = await asyncio.gather(*map(self._store, batch), return_exceptions=True)
        for session, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, ConflictError):
                key = session.key
                self._conflicts.append(
                    LeftOut("sessions", [key.app, key.user, key.id], str(outcome))
                )
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                self._counts["sessions_created"] += outcome.created
                self._counts["events_added"] += outcome.added
                self._counts["events_present"] += len(session.events) - outcome.added

    async def _store(self, session: _Session) -> _Stored:
        while True:
            try:
                return await self._store_once(session)
            except (AlreadyExistsError, StaleSessionError):
                continue  # Somebody else wrote the session meanwhile: look again at what is there.

    async def _store_once(self, session: _Session) -> _Stored:
        engine, key = self._target, session.key
        found = await engine.load(key, Window(), now=clock.now())
        created = found is None
        if found is None:
            new = NewSession(key=key, created=session.created)
            state = StateRows({}, {}, session.state)
            found = await engine.create(new, state, now=clock.now())
        missing = session.events[_known(session, found.events) :]
        handle = Handle(key, found.session.revision, found.session.incarnation)
        for start in range(0, len(missing), APPEND_MAX):
            chunk = missing[start : start + APPEND_MAX]
            appended = await engine.append(handle, chunk, rebase=False, now=clock.now())
            handle = Handle(key, appended.revision, appended.incarnation)
        if missing and session.state and not created:
            # Its new events belong to the state that the source has now.
            await engine.patch(
                key.scopes[2], list(session.state), lambda _: session.state, now=clock.now()
            )
        if created or missing:
            _compare(session, await engine.load(key, Window(), now=clock.now()))
        return _Stored(created, len(missing))

    @property
    def _target(self) -> Engine:
        if self._engine is None:
            raise AssertionError("a dry run has no target")
        return self._engine


_COUNTS = (
    *("sessions", "events", "sessions_created", "events_added", "events_present"),
    *("state_keys_set", "temp_keys", "orphans"),
)
_UTC = zoneinfo.ZoneInfo("UTC")
_UNREADABLE = (InvalidInputError, ValueError, OverflowError, RecursionError)


def _check_key(table: str, name: str) -> None:
    check_key(name)
    if table == "sessions" and is_scoped(name):
        raise InvalidInputError(f"the state key {name!r} belongs to another scope.")


def _ids(row: Row) -> list[str]:
    names = ("app_name", "user_id", "session_id", "id")
    return [str(row[name]) for name in names if name in row]


def _known(session: _Session, stored: list[EventRow]) -> int:
    """Return how many of the source's events the target has, or raise ConflictError."""
    for (seq, body), event in zip(stored, session.events, strict=False):
        if not _is_same_event(body, event.body):
            raise ConflictError(
                f"event {seq} of the target's session is not the source's event {event.id!r}: the "
                "two have parted. Delete the session in the target to import it anew."
            )
    # It may have gone on in the target; then the source has nothing that is new to it.
    return min(len(stored), len(session.events))


def _compare(session: _Session, found: Snapshot | None) -> None:
    """Read back what was stored: every event, and the session's state."""
    bodies = [body for _, body in found.events] if found else []
    wanted = [event.body for event in session.events]
    state = found.state.session if found else {}
    if (
        len(bodies) < len(wanted)
        or not all(map(_is_same_event, bodies, wanted))
        or not all(
            name in state and _is_same_value(state[name], value)
            for name, value in session.state.items()
        )
    ):
        raise DamagedDataError(
            f"The session {session.key.id!r} of user {session.key.user!r} did not come back from "
            "the target as it was stored. Somebody else writes it, or the store is damaged."
        )


def _is_same_event(a: bytes, b: bytes) -> bool:
    """Whether two bodies say the same, if in other words."""
    return a == b or is_same(dump(decode(Event, a)), dump(decode(Event, b)))


def _is_same_value(a: bytes, b: bytes) -> bool:
    return a == b or is_same(decode(None, a), decode(None, b))


# -- what is kept aside -----------------------------------------------------------------


class _Quarantine:
    """A file of rows that were left out, made when there is the first."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: Any = None

    @property
    def written(self) -> str | None:
        return str(self._path) if self._file else None

    def keep(self, table: str, row: Row, reason: str) -> None:
        """Write a row down, with what it takes to put it back."""
        if self._path is None:
            return
        if self._file is None:
            # Conversations are in it: nobody else is to read them.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            self._file = os.fdopen(descriptor, "w", encoding="utf-8")
        line = {"table": table, "reason": reason, "row": row}
        self._file.write(json.dumps(line, default=_in_json) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file:
            self._file.close()


def _in_json(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"base64": base64.b64encode(value).decode()}
    return str(value)
