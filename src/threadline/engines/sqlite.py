"""SQLite: one file, many processes, nothing to set up.

One thread owns the write connection and commits whatever is queued in one transaction (group
commit), so concurrent appends share one fsync. Reads run on connections of their own, which
WAL keeps out of the writer's way. Limits: 2^31 sessions a file, 2^32 events a session.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import threading
import time
import weakref
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from threadline.engines import statements
from threadline.engines.base import (
    Appended,
    EventClashError,
    Scope,
    SessionRow,
    Snapshot,
    StateRows,
    Window,
    check_row,
    digest,
)
from threadline.errors import (
    AlreadyExistsError,
    EngineClosedError,
    ForeignDatabaseError,
    NotADatabaseError,
    ReadOnlyDatabaseError,
    SessionNotFoundError,
    StaleSessionError,
    StorageBusyError,
    StorageError,
    StorageFullError,
    ThreadlineError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from threadline.engines.base import (
        EventRow,
        Handle,
        Migration,
        NewEvent,
        NewSession,
        SessionKey,
        SessionQuery,
    )

T = TypeVar("T")

SQL = statements.load("sqlite")
_SELECT_SESSIONS = {
    (scope, order, descending): SQL["select_sessions"].format(
        scope=scope, time=order, beyond=beyond, direction=direction
    )
    for scope in ("app_key", "owner")
    for order in ("updated", "created")
    for descending, beyond, direction in ((False, ">", "ASC"), (True, "<", "DESC"))
}

BATCH_MAX = 512
READERS_MAX = 4
SEQ_BITS = 32
_SYNCHRONOUS = {"full": "FULL", "normal": "NORMAL"}
_NO_STATE = StateRows({}, {}, {})


class SqliteEngine:
    """Sessions in one SQLite file, or in memory with the path `:memory:`.

    `durability` is "full" (an append that returned survives power loss) or "normal" (it
    survives the death of the process). `busy_timeout_s` bounds the wait for other processes.
    """

    dialect = "sqlite"
    schema = None

    def __init__(
        self, path: str, *, durability: str = "full", busy_timeout_s: float = 30.0
    ) -> None:
        self.path = path
        self._durability = durability
        self._busy_timeout_s = busy_timeout_s
        self._opening = threading.Lock()
        self._writer: _Writer | None = None
        self._readers: _Readers | None = None
        self._pid = 0

    # -- life ---------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect; more than once does no harm."""
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        with self._opening:
            if self._writer is not None:
                return
            try:
                db = _connect(self.path, self._busy_timeout_s)
                try:
                    self._make_ready(db)
                except BaseException:
                    db.close()
                    raise
            except sqlite3.Error as error:
                raise _translate(error, self.path) from error
            self._pid = os.getpid()
            self._writer = _Writer(db, self.path, self._busy_timeout_s)
            if self.path != ":memory:":
                self._readers = _Readers(self.path, self._busy_timeout_s)
            # Threads must not keep a forgotten engine alive, nor outlive it.
            self._finalizer = weakref.finalize(self, _shut, self._writer, self._readers, self._pid)

    async def close(self) -> None:
        """Finish what is queued, then let go of every connection and thread."""
        if self._writer is not None:
            self._check_process()
            self._writer = self._readers = None
            await asyncio.to_thread(self._finalizer)

    def _make_ready(self, db: sqlite3.Connection) -> None:
        tables = {name for (name,) in db.execute(SQL["select_tables"])}
        if "threadline_migration" not in tables and {"sessions", "events"} <= tables:
            raise ForeignDatabaseError(
                f"{self.path} was written by google-adk, whose tables differ from threadline's. "
                "Give threadline a file of its own; an importer from google-adk's databases "
                "(`threadline import adk`) is on its way. The file was not changed."
            )
        db.execute("PRAGMA busy_timeout = 0")  # the waiting is done by _retry_busy
        # Before anything is changed, so that a file we cannot write is named as that.
        _begin(db, self.path, self._busy_timeout_s)
        db.execute("ROLLBACK")
        if self.path != ":memory:" and db.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            _retry_busy(
                lambda: db.execute("PRAGMA journal_mode = WAL"), self.path, self._busy_timeout_s
            )
        db.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[self._durability]}")
        # What was deleted is overwritten, not only unlinked.
        db.execute("PRAGMA secure_delete = ON")

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise EngineClosedError(
                "This service was opened before the process was forked; SQLite connections do "
                "not survive that. Create a service in the child."
            )

    # -- schema -------------------------------------------------------------------------

    async def version(self) -> int | None:
        """Read the ledger's newest version; None where there is no ledger."""

        def work(db: sqlite3.Connection) -> int | None:
            if ("threadline_migration",) not in db.execute(SQL["select_tables"]).fetchall():
                return None
            version: int | None = db.execute(SQL["select_version"]).fetchone()[0]
            return version

        return await self._read(work)

    async def migrate(self, migrations: Sequence[Migration]) -> list[str]:
        """Run those that are not in the ledger, under the write lock; return their names."""

        def work(db: sqlite3.Connection) -> list[str]:
            tables = db.execute(SQL["select_tables"]).fetchall()
            current = 0
            if ("threadline_migration",) in tables:
                current = db.execute(SQL["select_version"]).fetchone()[0] or 0
            due = [step for step in migrations if step.version > current]
            for step in due:
                for statement in _statements(step.sql):
                    db.execute(statement)
            return [step.name for step in due]

        return await self._write(work)

    # -- rows ---------------------------------------------------------------------------

    async def create(self, session: NewSession, state: StateRows, *, now: float) -> Snapshot:
        """Store a session and return it as `load` would, or raise AlreadyExistsError."""
        key = session.key
        values = {**msgspec.structs.asdict(key), **msgspec.structs.asdict(session)}
        del values["key"], values["scopes"]

        def work(db: sqlite3.Connection) -> Snapshot:
            before = _find(db, key)
            if before is not None and not _is_expired(before, now):
                raise AlreadyExistsError(f"The session {key.id!r} already exists.")
            if before is not None:
                _drop(db, key, before)
            row = SessionRow(*db.execute(SQL["insert_session"], values).fetchone())
            _apply(db, key, state)
            return Snapshot(row, _merged(db, key), [])

        return await self._write(work)

    async def load(
        self, key: SessionKey, window: Window, *, now: float, state: bool = True
    ) -> Snapshot | None:
        """Read a session, its state (of all scopes) and the events in the window."""

        def work(db: sqlite3.Connection) -> Snapshot | None:
            row = _find(db, key)
            if row is None or _is_expired(row, now):
                return None
            rows = _merged(db, key) if state else _NO_STATE
            return Snapshot(row, rows, _select(db, row.incarnation, window))

        return await self._read(work)

    async def append(
        self, handle: Handle, events: Sequence[NewEvent], *, rebase: bool, now: float
    ) -> Appended:
        """Store events at the end of the log, with their state; skip those that are there."""
        id_keys = [digest(event.id) for event in events]

        def work(db: sqlite3.Connection) -> Appended:
            return _append_next(db, handle, events, id_keys, now) or _append_carefully(
                db, handle, events, id_keys, rebase, now
            )

        return await self._write(work)

    async def patch(
        self,
        scope: Scope,
        keys: Sequence[str],
        change: Callable[[Mapping[str, bytes]], Mapping[str, bytes | None]],
        *,
        now: float,
    ) -> Mapping[str, bytes | None]:
        """Change keys of one scope by a function of their values; None deletes a key."""
        where = (scope.owner, scope.session)

        def work(db: sqlite3.Connection) -> Mapping[str, bytes | None]:
            if scope.session:
                found = db.execute(SQL["select_session"], where).fetchone()
                if found is None or _is_expired(SessionRow(*found), now):
                    raise SessionNotFoundError("The session to be patched does not exist.")
            stored = {}
            for key in keys:
                found = db.execute(SQL["select_state_key"], (*where, key)).fetchone()
                if found is not None:
                    stored[key] = found[0]
            changes = change(stored)
            for key, value in changes.items():
                if value is None:
                    db.execute(SQL["delete_state_key"], (*where, key))
                else:
                    db.execute(SQL["upsert_state"], (*where, key, value))
            return changes

        return await self._write(work)

    async def state(self, scope: Scope) -> Mapping[str, bytes]:
        """Read a user's or an app's state."""
        return await self._read(lambda db: _state(db, scope))

    async def sessions(
        self, query: SessionQuery, *, now: float
    ) -> list[tuple[SessionRow, StateRows]]:
        """Read a page of sessions, each with its state of all scopes if asked for."""
        scope = "app_key" if query.owner is None else "owner"
        statement = _SELECT_SESSIONS[scope, query.order, query.descending]
        beginning = (float("inf" if query.descending else "-inf"), "", "")
        after, user, id = query.after or beginning
        values = {
            "scope": query.app_key if query.owner is None else query.owner,
            "time": after,
            "user": user,
            "id": id,
            "now": now,
            "limit": -1 if query.limit is None else query.limit,
        }

        def work(db: sqlite3.Connection) -> list[tuple[SessionRow, StateRows]]:
            page = []
            app = _state(db, Scope(query.app_key)) if query.state else {}
            users: dict[bytes, dict[str, bytes]] = {}
            for *row, owner, session in db.execute(statement, values).fetchall():
                state = _NO_STATE
                if query.state:
                    if owner not in users:
                        users[owner] = _state(db, Scope(owner))
                    state = StateRows(app, users[owner], _state(db, Scope(owner, session)))
                page.append((SessionRow(*row), state))
            return page

        return await self._read(work)

    async def delete(self, key: SessionKey) -> bool:
        """Remove a session, its events and its state; tell whether it was there."""

        def work(db: sqlite3.Connection) -> bool:
            row = _find(db, key)
            if row is not None:
                _drop(db, key, row)
            return row is not None

        return await self._write(work)

    # -- transactions -------------------------------------------------------------------

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._writer is None:
            raise EngineClosedError(f"The engine of {self.path} is not open.")
        self._check_process()
        return await self._writer.submit(work)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._readers is None:  # a database in memory has one connection
            return await self._write(work)
        self._check_process()
        return await self._readers.submit(work)


# -- statements, inside a transaction ---------------------------------------------------


def _append_next(
    db: sqlite3.Connection,
    handle: Handle,
    events: Sequence[NewEvent],
    id_keys: Sequence[bytes],
    now: float,
) -> Appended | None:
    """Append to the revision that the handle knows, as most appends can; else change nothing.

    Two statements an event, and no question asked first: a place or an id that is taken says
    that the handle is stale or the event a repeated one.
    """
    no, key = handle.incarnation, handle.key
    if no is None:
        return None
    head = handle.revision
    for event, id_key in zip(events, id_keys, strict=True):
        row = (no << SEQ_BITS | head + 1, id_key, event.timestamp, event.body)
        if db.execute(SQL["insert_event"], row).rowcount == 0:
            break
        head += 1
    else:
        updated = events[-1].timestamp
        place = (no, handle.revision, key.owner, key.session, now)
        if db.execute(SQL["bump_known_session"], (head, updated, *place)).rowcount == 1:
            for event in events:
                _apply(db, key, event.state)
            return Appended(
                seqs=range(handle.revision + 1, head + 1),
                missed=(),
                incarnation=no,
                revision=head,
                updated=updated,
            )
    if head > handle.revision:  # take back what was inserted
        after = no << SEQ_BITS | handle.revision
        db.execute(SQL["delete_events"], (after, no << SEQ_BITS | head + 1))
    return None


def _append_carefully(
    db: sqlite3.Connection,
    handle: Handle,
    events: Sequence[NewEvent],
    id_keys: Sequence[bytes],
    rebase: bool,
    now: float,
) -> Appended:
    """Append through a handle that may be stale, skipping the events that are there."""
    key = handle.key
    row = _find(db, key)
    if row is None or _is_expired(row, now) or handle.incarnation not in (None, row.incarnation):
        raise SessionNotFoundError(f"The session {key.id!r} does not exist.")
    no = row.incarnation
    known: dict[int, int] = {}
    for index, event in enumerate(events):
        stored: EventRow | None = db.execute(
            SQL["select_event_by_id"], (no, id_keys[index])
        ).fetchone()
        if stored is not None:
            if stored[1] != event.body:
                raise EventClashError(index, stored)
            known[index] = stored[0]
    seen = max([handle.revision, *known.values()])
    if len(known) < len(events) and not rebase and seen != row.revision:
        raise StaleSessionError(
            f"The session {key.id!r} is at revision {row.revision}, not {seen}.",
            expected=seen,
            revision=row.revision,
            missed=_select(db, no, Window(after_seq=handle.revision)),
        )
    seqs: list[int] = []
    head, updated = row.revision, row.updated
    for index, event in enumerate(events):
        if index not in known:
            head, updated = head + 1, event.timestamp
            place = no << SEQ_BITS | head
            db.execute(SQL["insert_event"], (place, id_keys[index], updated, event.body))
            _apply(db, key, event.state)
        seqs.append(known.get(index, head))
    if head > row.revision:
        db.execute(SQL["bump_session"], (head, updated, no))
    revision = max([handle.revision, *seqs])
    between = _select(db, no, Window(after_seq=handle.revision, before_seq=revision))
    return Appended(
        seqs=seqs,
        missed=[event for event in between if event[0] not in seqs],
        incarnation=no,
        revision=revision,
        updated=updated,
    )


def _find(db: sqlite3.Connection, key: SessionKey) -> SessionRow | None:
    found = db.execute(SQL["select_session"], (key.owner, key.session)).fetchone()
    if found is None:
        return None
    row = SessionRow(*found)
    check_row(key, row)
    return row


def _is_expired(row: SessionRow, now: float) -> bool:
    return row.expires is not None and row.expires <= now


def _select(db: sqlite3.Connection, no: int, window: Window) -> list[EventRow]:
    if window.limit == 0:
        return []
    end = (1 << SEQ_BITS) if window.before_seq is None else window.before_seq
    values = {
        "after": no << SEQ_BITS | window.after_seq,
        "before": (no << SEQ_BITS) + end,
        "since": float("-inf") if window.after_timestamp is None else window.after_timestamp,
        "limit": -1 if window.limit is None else window.limit,
    }
    if not window.newest:
        return db.execute(SQL["select_events"], values).fetchall()
    return db.execute(SQL["select_newest_events"], values).fetchall()[::-1]


def _state(db: sqlite3.Connection, scope: Scope) -> dict[str, bytes]:
    return dict(db.execute(SQL["select_state"], (scope.owner, scope.session)).fetchall())


def _merged(db: sqlite3.Connection, key: SessionKey) -> StateRows:
    return StateRows(*(_state(db, scope) for scope in key.scopes))


def _apply(db: sqlite3.Connection, key: SessionKey, delta: StateRows) -> None:
    for scope, rows in zip(key.scopes, delta, strict=True):
        for name, value in rows.items():
            db.execute(SQL["upsert_state"], (scope.owner, scope.session, name, value))


def _drop(db: sqlite3.Connection, key: SessionKey, row: SessionRow) -> None:
    no = row.incarnation
    db.execute(SQL["delete_events"], (no << SEQ_BITS, (no + 1) << SEQ_BITS))
    db.execute(SQL["delete_state"], {"owner": key.owner, "session": key.session})
    db.execute(SQL["delete_session"], {"no": no})


def _statements(script: str) -> Iterator[str]:
    """Split a script; `executescript` would commit before it begins."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""


# -- threads ----------------------------------------------------------------------------


class _Job:
    """One piece of work and the future that waits for it, on its own event loop."""

    __slots__ = ("future", "loop", "work")

    def __init__(
        self, work: Callable[[sqlite3.Connection], Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.work = work
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()


_Outcome = tuple[_Job, Any, BaseException | None]


class _Inbox:
    """The jobs that wait for a thread; once it is closed no job gets in behind the last."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._is_open = True
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()

    def put(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        job = _Job(work, asyncio.get_running_loop())
        with self._lock:
            if not self._is_open:
                raise EngineClosedError(f"The engine of {self._path} was closed meanwhile.")
            self.jobs.put(job)
        return job.future

    def close(self, threads: int) -> None:
        """Tell each of the threads to end when the jobs before are done."""
        with self._lock:
            self._is_open = False
            for _ in range(threads):
                self.jobs.put(None)


class _Writer:
    """The thread that owns the write connection."""

    def __init__(self, db: sqlite3.Connection, path: str, busy_timeout_s: float) -> None:
        self._db = db
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._inbox = _Inbox(path)
        self.submit = self._inbox.put
        self._thread = threading.Thread(
            target=self._run, name=f"threadline-writer:{path}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._inbox.close(1)
        self._thread.join()
        self._db.close()

    def _run(self) -> None:
        jobs = self._inbox.jobs
        running = True
        while running:
            batch: list[_Job] = []
            job = jobs.get()
            # What has queued up while the last commit was under way goes into this one.
            with contextlib.suppress(Empty):
                while job is not None:
                    batch.append(job)
                    if len(batch) == BATCH_MAX:
                        break
                    job = jobs.get_nowait()
            running = job is not None
            if batch:
                _deliver(self._commit(batch))

    def _commit(self, batch: list[_Job]) -> list[_Outcome]:
        db = self._db
        try:
            _begin(db, self._path, self._busy_timeout_s)
        except Exception as error:
            failure = _translate(error, self._path)
            return [(job, None, failure) for job in batch]
        try:
            outcomes = [_attempt(job, db) for job in batch]
            db.execute("COMMIT")
        except Exception as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if len(batch) == 1:
                return [(batch[0], None, _translate(error, self._path))]
            # One of them spoilt it, or the disk is full for all: each finds out alone.
            return [outcome for job in batch for outcome in self._commit([job])]
        return outcomes


def _attempt(job: _Job, db: sqlite3.Connection) -> _Outcome:
    """Do one job's work; a refusal leaves nothing written, so the others of the batch stand."""
    try:
        return job, job.work(db), None
    except (ThreadlineError, EventClashError) as refusal:
        return job, None, refusal


def _deliver(outcomes: list[_Outcome]) -> None:
    """Wake each event loop once, with all that it waits for."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome[0].loop, []).append(outcome)
    for loop, mine in by_loop.items():
        # A loop that was closed meanwhile has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, mine)


def _settle(outcomes: list[_Outcome]) -> None:
    for job, result, error in outcomes:
        if job.future.done():  # the caller was cancelled; the work is done all the same
            continue
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)


class _Readers:
    """A few threads, begun as they are needed, each with a connection of its own."""

    def __init__(self, path: str, busy_timeout_s: float) -> None:
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._inbox = _Inbox(path)
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []

    def submit(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        future = self._inbox.put(work)
        if not self._idle.acquire(blocking=False) and len(self._threads) < READERS_MAX:
            thread = threading.Thread(
                target=self._run, name=f"threadline-reader:{self._path}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return future

    def stop(self) -> None:
        self._inbox.close(len(self._threads))
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        db: sqlite3.Connection | None = None
        while (job := self._inbox.jobs.get()) is not None:
            try:
                db = db or _connect(self._path, self._busy_timeout_s, query_only=True)
                # One transaction, so that session, state and events are of one moment.
                db.execute("BEGIN")
                try:
                    outcome: _Outcome = job, job.work(db), None
                finally:
                    db.execute("ROLLBACK")
            except Exception as error:
                outcome = job, None, _translate(error, self._path)
            _deliver([outcome])
            self._idle.release()
        if db is not None:
            db.close()


def _connect(path: str, busy_timeout_s: float, *, query_only: bool = False) -> sqlite3.Connection:
    db = sqlite3.connect(
        path,
        timeout=busy_timeout_s,
        isolation_level=None,  # BEGIN and COMMIT are ours
        check_same_thread=False,  # closed by another thread than the one it serves
        cached_statements=64,
    )
    try:
        db.execute("PRAGMA cache_size = -16384")
        db.execute(f"PRAGMA query_only = {query_only:d}")
    except sqlite3.Error:  # the file is no database
        db.close()
        raise
    return db


def _shut(writer: _Writer, readers: _Readers | None, pid: int) -> None:
    if pid != os.getpid():  # a fork: threads and connections are the parent's
        return
    if readers is not None:
        readers.stop()
    writer.stop()


# -- waiting and failing ----------------------------------------------------------------


def _begin(db: sqlite3.Connection, path: str, timeout_s: float) -> None:
    """Take the write lock now: a deferred transaction would fail later, not wait its turn."""
    _retry_busy(lambda: db.execute("BEGIN IMMEDIATE"), path, timeout_s)


def _retry_busy(attempt: Callable[[], object], path: str, timeout_s: float) -> None:
    """Poll for the lock more often than SQLite's own handler, which sleeps up to 100 ms."""
    deadline: float | None = None
    pause_s = 0.0002
    while True:
        try:
            attempt()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            now = time.monotonic()
            deadline = deadline or now + timeout_s
            if now >= deadline:
                raise StorageBusyError(
                    f"{path} stayed locked by another writer for {timeout_s} s; nothing was "
                    "written. Try again, raise busy_timeout_s, or look for a transaction that is "
                    "never committed."
                ) from error
            time.sleep(pause_s * random.random())  # noqa: S311 - only to keep writers apart
            pause_s = min(pause_s * 1.5, 0.01)
        else:
            return


def _translate(error: Exception, path: str) -> Exception:
    """Turn the driver's errors into ours, with what to do; the cause is kept."""
    if not isinstance(error, sqlite3.Error):
        return error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    kind, advice = _ADVICE.get(code, (StorageError, "{path}: {error}"))
    ours = kind(advice.format(path=path, error=error, folder=Path(path).parent))
    ours.__cause__ = error
    return ours


_ADVICE: dict[int, tuple[type[StorageError], str]] = {
    sqlite3.SQLITE_NOTADB: (
        NotADatabaseError,
        "{path} is not a SQLite database; it was not changed. Choose another path.",
    ),
    sqlite3.SQLITE_CORRUPT: (
        NotADatabaseError,
        "{path} is damaged ({error}). Restore a backup, or try `sqlite3 {path} .recover`.",
    ),
    sqlite3.SQLITE_READONLY: (
        ReadOnlyDatabaseError,
        "{path} cannot be written ({error}). The file and its directory must be writable.",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        ReadOnlyDatabaseError,
        "{path} cannot be opened ({error}). The directory {folder} must exist and be writable.",
    ),
    sqlite3.SQLITE_PERM: (ReadOnlyDatabaseError, "{path} cannot be opened ({error})."),
    sqlite3.SQLITE_FULL: (
        StorageFullError,
        "The disk of {path} is full; nothing was written. Make room and try again.",
    ),
    sqlite3.SQLITE_IOERR: (StorageError, "{path} cannot be read or written ({error})."),
    sqlite3.SQLITE_BUSY: (StorageBusyError, "{path} is locked by another process ({error})."),
    sqlite3.SQLITE_LOCKED: (StorageBusyError, "{path} is locked ({error})."),
}
