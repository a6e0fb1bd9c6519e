"""The threads of the SQLite engine, and how they wait and fail.

A job is a function of a connection. The writer's thread does those that have queued up in one
transaction; a few readers do theirs on connections of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import sqlite3
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from threadline.engines.base import EventClashError
from threadline.errors import (
    EngineClosedError,
    NotADatabaseError,
    ReadOnlyDatabaseError,
    StorageBusyError,
    StorageError,
    StorageFullError,
    ThreadlineError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

BATCH_MAX = 512
READERS_MAX = 4


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
        self._pid = os.getpid()
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()

    def put(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        job = _Job(work, asyncio.get_running_loop())
        with self._lock:
            if not self._is_open:
                raise EngineClosedError(f"The engine of {self._path} was closed meanwhile.")
            if self._pid != os.getpid():
                raise EngineClosedError(
                    f"The database {self._path} belongs to the process that made it, and this one "
                    "was forked from it. Create a service in the child."
                )
            self.jobs.put(job)
        return job.future

    def close(self, threads: int) -> None:
        """Tell each of the threads to end when the jobs before are done."""
        with self._lock:
            self._is_open = False
            for _ in range(threads):
                self.jobs.put(None)


class Writer:
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
            begin(db, self._path, self._busy_timeout_s)
        except Exception as error:
            failure = translate(error, self._path)
            return [(job, None, failure) for job in batch]
        try:
            outcomes = [_attempt(job, db) for job in batch]
            db.execute("COMMIT")
        except Exception as error:
            failure = translate(error, self._path)
            with contextlib.suppress(sqlite3.Error):  # the thread must live whatever happens
                if db.in_transaction:
                    db.execute("ROLLBACK")
            if len(batch) == 1 or _code(error) == sqlite3.SQLITE_IOERR:
                return [(job, None, failure) for job in batch]
            # One of them spoilt it, or the disk is full for some: each finds out alone.
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


class Readers:
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
                db = db or connect(self._path, self._busy_timeout_s, query_only=True)
                # One transaction, so that session, state and events are of one moment.
                db.execute("BEGIN")
                try:
                    outcome: _Outcome = job, job.work(db), None
                finally:
                    db.execute("ROLLBACK")
            except Exception as error:
                outcome = job, None, translate(error, self._path)
            _deliver([outcome])
            self._idle.release()
        if db is not None:
            db.close()


def connect(path: str, busy_timeout_s: float, *, query_only: bool = False) -> sqlite3.Connection:
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


def shut(writer: Writer, readers: Readers | None) -> None:
    if readers is not None:
        readers.stop()
    writer.stop()


# -- waiting and failing ----------------------------------------------------------------


def begin(db: sqlite3.Connection, path: str, timeout_s: float) -> None:
    """Take the write lock now: a deferred transaction would fail later, not wait its turn."""
    retry_busy(lambda: db.execute("BEGIN IMMEDIATE"), path, timeout_s)


def retry_busy(attempt: Callable[[], object], path: str, timeout_s: float) -> None:
    """Poll for the lock more often than SQLite's own handler, which sleeps up to 100 ms."""
    deadline: float | None = None
    pause_s = 0.0002
    while True:
        try:
            attempt()
        except sqlite3.OperationalError as error:
            if _code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
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


def translate(error: Exception, path: str) -> Exception:
    """Turn the driver's errors into ours, with what to do; the cause is kept."""
    if not isinstance(error, sqlite3.Error):
        return error
    code = sqlite3.SQLITE_FULL if _is_out_of_room(error) else _code(error)
    kind, advice = _ADVICE.get(code, (StorageError, "{path}: {error}"))
    ours = kind(advice.format(path=path, error=error, folder=Path(path).parent))
    ours.__cause__ = error
    return ours


def _code(error: Exception) -> int:
    """Return SQLite's primary error code."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_out_of_room(error: sqlite3.Error) -> bool:
    """Whether an I/O error means that a file could not grow: SQLite says so only of the disk."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_IOERR_SHMSIZE:
        return True
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return code == sqlite3.SQLITE_IOERR_WRITE and limit != resource.RLIM_INFINITY


_LOCKED = "{path} is locked by another process ({error}). Try again, or raise busy_timeout_s."

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
        "{path} cannot be opened ({error}). {folder} must exist and be writable, and this a file.",
    ),
    sqlite3.SQLITE_PERM: (ReadOnlyDatabaseError, "{path} cannot be opened ({error})."),
    sqlite3.SQLITE_FULL: (
        StorageFullError,
        "The disk of {path} is full, or the file may not grow; nothing was written. Make room.",
    ),
    sqlite3.SQLITE_IOERR: (StorageError, "{path} cannot be read or written ({error})."),
    sqlite3.SQLITE_BUSY: (StorageBusyError, _LOCKED),
    sqlite3.SQLITE_LOCKED: (StorageBusyError, _LOCKED),
}
