"""The way back: a database that google-adk 2.13 opens, in its schema version 1.

google-adk sorts a session's events by the column `timestamp`. Where an event is not later than
the one before it, the column gets the next microsecond, so that the order stays; the event's own
time, which google-adk takes from the JSON, is exact.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from threadline.canonical import Model, dump
from threadline.engines.sqlite_threads import translate
from threadline.errors import InvalidInputError
from threadline.importers.adk_source import TABLES, locate
from threadline.state import split

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    import asyncmy
    import asyncpg

    from threadline.engines.mysql import MysqlEngine
    from threadline.engines.postgres import PostgresEngine
    from threadline.models import Event, Session
    from threadline.service import BaseSessionService

PAGE = 200
"""Sessions that are listed at a time."""

_COLUMNS = {
    "app_states": ("app_name", "state", "update_time"),
    "user_states": ("app_name", "user_id", "state", "update_time"),
    "sessions": ("app_name", "user_id", "id", "state", "create_time", "update_time"),
    "events": (
        *("id", "app_name", "user_id", "session_id", "invocation_id", "timestamp"),
        "event_data",
    ),
}
_EPOCH = dt.datetime(1970, 1, 1)


class Refused(msgspec.Struct, frozen=True, rename="camel"):
    """A session that google-adk's tables cannot hold, and why."""

    app_name: str
    user_id: str
    session_id: str
    reason: str


class ExportReport(msgspec.Struct, kw_only=True, frozen=True, rename="camel"):
    """What an export wrote, and what google-adk has no place for."""

    sessions: int = 0
    events: int = 0
    users: int = 0
    display_names: int = 0
    labels: int = 0
    expire_times: int = 0
    events_with_unknown_fields: int = 0
    events_moved: int = 0
    refused: tuple[Refused, ...] = ()
    seconds: float = 0.0


class _CannotHoldError(Exception):
    """The database refused a row's values."""


class Target(Protocol):
    """A database being filled, in one transaction."""

    async def insert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Store rows, times being naive UTC."""

    def attempt(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Undo the block alone, and raise _CannotHoldError, if a value is refused."""


async def export_adk(
    service: BaseSessionService,
    target: str | Path,
    *,
    app_names: Sequence[str],
    on_progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Write the sessions of apps, with all state, into a new database of google-adk's.

    `target` is a file's path or a URL; what is there is not touched. It is one transaction: all
    of it is written, or nothing. `on_progress` is told the sessions and events written.
    """
    started = time.perf_counter()
    async with _open_target(target) as opened:
        export = _Export(service, opened)
        for app_name in dict.fromkeys(app_names):
            await export.add_app(app_name, on_progress)
    return msgspec.structs.replace(export.report, seconds=time.perf_counter() - started)


class _Export:
    def __init__(self, service: BaseSessionService, target: Target) -> None:
        self._service = service
        self._target = target
        self.report = ExportReport()

    async def add_app(self, app_name: str, on_progress: Callable[[int, int], None] | None) -> None:
        now = _to_datetime(time.time())
        state = await self._service.get_app_state(app_name=app_name)
        await self._target.insert("app_states", [(app_name, _to_json(state), now)])
        users: set[str] = set()
        cursor = None
        while True:
            page = await self._service.list_sessions(
                app_name=app_name, limit=PAGE, cursor=cursor, order="created", include_state=False
            )
            for listed in page.sessions:
                # The tables' rows of a user must be there before google-adk appends.
                if listed.user_id not in users:
                    users.add(listed.user_id)
                    await self._add_user(app_name, listed.user_id, now)
                await self._add_session(listed)
            if on_progress:
                on_progress(self.report.sessions, self.report.events)
            cursor = page.next_cursor
            if cursor is None:
                break
        if not users:
            raise InvalidInputError(f"App {app_name!r} has no sessions; nothing was written.")
        self._count(users=len(users))

    async def _add_user(self, app_name: str, user_id: str, now: dt.datetime) -> None:
        state = await self._service.get_user_state(app_name=app_name, user_id=user_id)
        with contextlib.suppress(_CannotHoldError):  # then his sessions will say so
            async with self._target.attempt():
                row = (app_name, user_id, _to_json(state), now)
                await self._target.insert("user_states", [row])

    async def _add_session(self, listed: Session) -> None:
        ids = (listed.app_name, listed.user_id, listed.id)
        session = await self._service.get_session(
            app_name=listed.app_name, user_id=listed.user_id, session_id=listed.id
        )
        if session is None:
            return  # deleted meanwhile, or its time is over
        try:
            moved, events = _event_rows(session)
            state = split(session.state).session
            times = (_to_datetime(session.create_time), _to_datetime(session.last_update_time))
            async with self._target.attempt():
                await self._target.insert("sessions", [(*ids, _to_json(state), *times)])
                await self._target.insert("events", events)
        except (_CannotHoldError, OverflowError) as error:
            refused = Refused(*ids, " ".join(str(error).split()))
            self.report = msgspec.structs.replace(
                self.report, refused=(*self.report.refused, refused)
            )
            return
        self._count(
            sessions=1,
            events=len(events),
            display_names=int(session.display_name is not None),
            labels=int(bool(session.labels)),
            expire_times=int(session.expire_time is not None),
            events_with_unknown_fields=sum(map(_has_unknown_fields, session.events)),
            events_moved=moved,
        )

    def _count(self, **more: int) -> None:
        counts = {name: getattr(self.report, name) + n for name, n in more.items()}
        self.report = msgspec.structs.replace(self.report, **counts)


def _event_rows(session: Session) -> tuple[int, list[tuple[Any, ...]]]:
    """Return the rows of a session's events, and how many have a column moved for the order."""
    rows: list[tuple[Any, ...]] = []
    moved = 0
    last: dt.datetime | None = None
    for event in session.events:
        at = _to_datetime(event.timestamp)
        if last is not None and at <= last:
            at = last + dt.timedelta(microseconds=1)
            moved += 1
        last = at
        ids = (event.id, session.app_name, session.user_id, session.id, event.invocation_id)
        rows.append((*ids, at, _to_json(_to_adk(event))))
    return moved, rows


def _to_adk(event: Event) -> dict[str, Any]:
    plain: dict[str, Any] = dump(event, as_adk=True)
    plain.pop("seq", None)
    return plain


def _to_json(value: Any) -> str:
    return json.dumps(value)


def _to_datetime(seconds: float) -> dt.datetime:
    return _EPOCH + dt.timedelta(microseconds=round(seconds * 1e6))


def _has_unknown_fields(value: Any) -> bool:
    if isinstance(value, Model):
        fields = (getattr(value, name) for name in value.__struct_fields__ if name != "extra")
        return bool(value.extra) or any(map(_has_unknown_fields, fields))
    if isinstance(value, list):
        return any(map(_has_unknown_fields, value))
    return False


# -- where it goes ----------------------------------------------------------------------


def _open_target(target: str | Path) -> contextlib.AbstractAsyncContextManager[Target]:
    place = locate(target)
    if isinstance(place, Path):
        return _sqlite(place)
    return _postgres(place) if place.dialect == "postgres" else _mysql(place)


def _ddl(json: str, time: str, key: str) -> list[str]:
    text = Path(__file__).with_name("adk_v1.sql").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    filled = "\n".join(lines).format(json=json, time=time, key=key)
    return [statement for statement in filled.split(";") if statement.strip()]


def _insert(table: str, marks: str) -> str:
    columns = _COLUMNS[table]
    values = ", ".join(marks.format(n) for n in range(1, len(columns) + 1))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"  # noqa: S608


def _refuse_full(name: str, found: Sequence[Any]) -> None:
    if found:
        raise InvalidInputError(
            f"{name} has tables with the names of google-adk's; export into a new database."
        )


@contextlib.asynccontextmanager
async def _sqlite(path: Path) -> AsyncIterator[Target]:
    if path.exists():  # noqa: ASYNC240 - nobody waits for this
        raise InvalidInputError(f"{path} exists; export into a new file.")
    # Under another name until it is whole.
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.unlink(missing_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(unfinished, isolation_level=None)) as db:
            db.execute("BEGIN")
            for statement in _ddl("TEXT", "DATETIME", '"key"'):
                db.execute(statement)
            yield SqliteTarget(db)
            db.execute("COMMIT")
        unfinished.rename(path)
    except sqlite3.Error as error:
        raise translate(error, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


class SqliteTarget:
    """A SQLite file; it takes texts of any length."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    async def insert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Store rows; times are texts, as SQLAlchemy writes them."""
        texts = [
            tuple(
                f"{value:%Y-%m-%d %H:%M:%S.%f}" if isinstance(value, dt.datetime) else value
                for value in row
            )
            for row in rows
        ]
        self._db.executemany(_insert(table, "?"), texts)

    @contextlib.asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """Let the block be: nothing is refused here."""
        yield


@contextlib.asynccontextmanager
async def _postgres(engine: PostgresEngine) -> AsyncIterator[Target]:
    async with engine.connection() as db, db.transaction():
        names = "SELECT name FROM unnest($1::text[]) name WHERE to_regclass(name) IS NOT NULL"
        _refuse_full(engine.where, await db.fetch(names, TABLES))
        for statement in _ddl("JSONB", "TIMESTAMP WITHOUT TIME ZONE", "key"):
            await db.execute(statement)
        yield PostgresTarget(db)


class PostgresTarget:
    """A PostgreSQL database."""

    def __init__(self, db: asyncpg.Connection) -> None:
        self._db = db

    async def insert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Store rows."""
        await self._db.executemany(_insert(table, "${}"), rows)

    @contextlib.asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """Undo the block alone if a value is too long, or no JSON to PostgreSQL."""
        import asyncpg

        try:
            async with self._db.transaction():
                yield
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
            raise _CannotHoldError(str(error)) from error


@contextlib.asynccontextmanager
async def _mysql(engine: MysqlEngine) -> AsyncIterator[Target]:
    async with engine.connection() as db:
        target = MysqlTarget(db)
        found = "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND "
        found += "table_name IN (%s, %s, %s, %s)"
        _refuse_full(engine.where, await target.run(found, TABLES))
        # A value that is too long is to be an error, not cut.
        await target.run("SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')")
        for statement in _ddl("LONGTEXT", "DATETIME(6)", "`key`"):
            await target.run(statement)
        await target.run("START TRANSACTION")
        yield target
        await target.run("COMMIT")


class MysqlTarget:
    """A MySQL or MariaDB database."""

    def __init__(self, db: asyncmy.Connection) -> None:
        self._db = db

    async def run(self, sql: str, values: Sequence[Any] = ()) -> Sequence[Any]:
        """Run a statement and return its rows."""
        async with self._db.cursor() as cursor:
            await cursor.execute(sql, values or None)
            rows: Sequence[Any] = await cursor.fetchall() if cursor.description else ()
            return rows

    async def insert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Store rows."""
        async with self._db.cursor() as cursor:
            for row in rows:
                await cursor.execute(_insert(table, "%s"), row)

    @contextlib.asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """Undo the block alone if a value is too long, or two ids are one to the collation."""
        from asyncmy import errors

        await self.run("SAVEPOINT attempt")
        try:
            yield
        except (errors.DataError, errors.IntegrityError) as error:
            await self.run("ROLLBACK TO SAVEPOINT attempt")
            raise _CannotHoldError(str(error.args[-1])) from error
