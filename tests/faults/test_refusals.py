"""A database that cannot be used says why, by a typed error that names it and helps."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from threadline import (
    DatabaseSessionService,
    Event,
    ForeignDatabaseError,
    NewerSchemaError,
    NotADatabaseError,
    ReadOnlyDatabaseError,
    Session,
    StorageBusyError,
    StorageError,
    StorageFullError,
    UnsupportedUrlError,
)

from .children import said
from .disks import DiskUnavailableError, loop_disk, mounted, remount_read_only, tiny_disk
from .evidence import check_integrity
from .visitor import APP, ID, USER

KEY = {"app_name": APP, "user_id": USER, "session_id": ID}


def url(path: Path) -> str:
    return f"sqlite:///{path}"


async def use(path: Path, **options: Any) -> Session:
    """Do what every program does: open, create, append, read."""
    service = DatabaseSessionService(url(path), **options)
    try:
        session = await service.get_or_create_session(**KEY)
        await service.append_event(session, Event(author="ann", content="Hello"))
        found = await service.get_session(**KEY)
        assert found is not None
        return found
    finally:
        await service.close()


def check_message(message: str, path: Path, advice: str) -> None:
    """The message names the file, says what to do, and shows nothing of the driver's."""
    assert str(path) in message
    assert re.search(advice, message, re.IGNORECASE), message
    assert "Traceback" not in message
    assert "sqlite3." not in message
    assert "SELECT" not in message


def refused(path: Path, kind: type[StorageError], advice: str, **options: Any) -> None:
    """Using the file is refused, every time anew."""
    for _ in range(2):
        with pytest.raises(StorageError) as caught:
            asyncio.run(use(path, **options))
        assert type(caught.value) is kind, caught.value
        check_message(str(caught.value), path, advice)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# -- files that are something else --------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"Dear diary, today I was opened as a database.\n" * 100,
        bytes(range(256)) * 400,
        b"{}",
        b"SQLite format 3\0" + b"\xff" * 5000,
        bytes(8192),
    ],
    ids=["text", "binary", "two bytes", "header and rubbish", "zeros"],
)
def test_a_file_that_is_no_database_is_refused_and_left_alone(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "diary.txt"
    path.write_bytes(content)
    refused(path, NotADatabaseError, "another path|other path|another file|backup")
    assert contents(tmp_path) == {"diary.txt": content}


@pytest.mark.parametrize("share", [0.001, 0.02, 0.1, 0.5, 0.9])
def test_a_truncated_database_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.db"
    asyncio.run(use(path))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, NotADatabaseError, "backup|another path")


def test_a_database_with_overwritten_pages_gives_no_wrong_answer(tmp_path: Path) -> None:
    path = tmp_path / "scratched.db"
    asyncio.run(use(path))
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xaa" * (len(whole) - 4096))
    refused(path, NotADatabaseError, "backup|another path")


def test_an_empty_file_is_a_new_database(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch()
    assert len(asyncio.run(use(path)).events) == 1


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    asyncio.run(use(path))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "INSERT INTO threadline_migration (version, name) VALUES (9999, '9999_future')"
        )
    before = path.read_bytes()
    refused(path, NewerSchemaError, "9999.*upgrade")
    assert path.read_bytes() == before


# -- files of google-adk ------------------------------------------------------------------

ADK_V1 = """
    CREATE TABLE adk_internal_metadata (
        key VARCHAR(128) NOT NULL PRIMARY KEY, value VARCHAR(256) NOT NULL);
    INSERT INTO adk_internal_metadata VALUES ('schema_version', '1');
    CREATE TABLE app_states (
        app_name VARCHAR(128) NOT NULL PRIMARY KEY, state TEXT, update_time DATETIME);
    CREATE TABLE user_states (
        app_name VARCHAR(128) NOT NULL, user_id VARCHAR(128) NOT NULL, state TEXT,
        update_time DATETIME, PRIMARY KEY (app_name, user_id));
    CREATE TABLE sessions (
        app_name VARCHAR(128) NOT NULL, user_id VARCHAR(128) NOT NULL, id VARCHAR(128) NOT NULL,
        state TEXT, create_time DATETIME, update_time DATETIME,
        PRIMARY KEY (app_name, user_id, id));
    INSERT INTO sessions VALUES ('app', 'ann', 's0', '{}', '2026-01-01', '2026-01-01');
    CREATE TABLE events (
        id VARCHAR(128) NOT NULL, app_name VARCHAR(128) NOT NULL, user_id VARCHAR(128) NOT NULL,
        session_id VARCHAR(128) NOT NULL, invocation_id VARCHAR(256), timestamp DATETIME,
        event_data TEXT, PRIMARY KEY (id, app_name, user_id, session_id),
        FOREIGN KEY (app_name, user_id, session_id)
            REFERENCES sessions (app_name, user_id, id) ON DELETE CASCADE);
"""
ADK_V0 = """
    CREATE TABLE app_states (app_name VARCHAR(128) PRIMARY KEY, state TEXT, update_time DATETIME);
    CREATE TABLE user_states (
        app_name VARCHAR(128), user_id VARCHAR(128), state TEXT, update_time DATETIME,
        PRIMARY KEY (app_name, user_id));
    CREATE TABLE sessions (
        app_name VARCHAR(128), user_id VARCHAR(128), id VARCHAR(128), state TEXT,
        create_time DATETIME, update_time DATETIME, PRIMARY KEY (app_name, user_id, id));
    CREATE TABLE events (
        id VARCHAR(128), app_name VARCHAR(128), user_id VARCHAR(128), session_id VARCHAR(128),
        invocation_id VARCHAR(256), author VARCHAR(256), actions BLOB,
        long_running_tool_ids_json TEXT, branch VARCHAR(256), timestamp DATETIME, content TEXT,
        PRIMARY KEY (id, app_name, user_id, session_id));
"""
ADK_SQLITE_SERVICE = """
    CREATE TABLE app_states (app_name TEXT PRIMARY KEY, state TEXT, update_time REAL);
    CREATE TABLE user_states (
        app_name TEXT, user_id TEXT, state TEXT, update_time REAL,
        PRIMARY KEY (app_name, user_id));
    CREATE TABLE sessions (
        app_name TEXT, user_id TEXT, id TEXT, state TEXT, create_time REAL, update_time REAL,
        PRIMARY KEY (app_name, user_id, id));
    CREATE TABLE events (
        id TEXT, app_name TEXT, user_id TEXT, session_id TEXT, invocation_id TEXT,
        timestamp REAL, event_data TEXT, PRIMARY KEY (app_name, user_id, session_id, id),
        FOREIGN KEY (app_name, user_id, session_id)
            REFERENCES sessions (app_name, user_id, id) ON DELETE CASCADE);
"""


def refused_as_foreign(path: Path) -> None:
    before = contents(path.parent)
    refused(path, ForeignDatabaseError, r"google-adk.*import")
    assert contents(path.parent) == before


@pytest.mark.parametrize(
    "layout", [ADK_V1, ADK_V0, ADK_SQLITE_SERVICE], ids=["v1", "v0", "sqlite service"]
)
@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_database_of_google_adk_is_refused_and_left_alone(
    tmp_path: Path, layout: str, journal: str
) -> None:
    path = tmp_path / "adk.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.executescript(layout)
    refused_as_foreign(path)


ADK_FILES = sorted(
    # Beside the project, where its authors keep databases written by real versions of google-adk.
    (Path(__file__).parents[3] / "shared" / "data" / "adk-databases").glob("*.db")
)


@pytest.mark.skipif(not ADK_FILES, reason="no databases written by google-adk beside the project")
@pytest.mark.parametrize("source", ADK_FILES, ids=lambda path: path.stem)
def test_a_real_database_of_google_adk_is_refused_and_left_alone(
    tmp_path: Path, source: Path
) -> None:
    path = tmp_path / "adk.db"
    path.write_bytes(source.read_bytes())
    refused_as_foreign(path)


# -- no right to write --------------------------------------------------------------------


def used_by_nobody(path: Path, *, write: bool) -> dict[str, Any]:
    """Use the file in a process that permissions count for, and tell what came of it."""
    warm_up, outcome = said("visitor.py", {"visit": "as_nobody", "url": url(path), "write": write})
    assert warm_up["error"] is None
    return outcome


def refused_to_nobody(path: Path) -> None:
    """Writing is refused by the right error, to whom permissions count for."""
    outcome = used_by_nobody(path, write=True)
    assert outcome["error"] == "ReadOnlyDatabaseError", outcome
    assert outcome["is_ours"]
    check_message(outcome["message"], path, "writable")


def test_a_read_only_file_is_refused(open_path: Path) -> None:
    path = open_path / "read-only.db"
    asyncio.run(use(path))
    open_path.chmod(0o777)
    path.chmod(0o444)
    before = path.read_bytes()
    refused_to_nobody(path)
    assert path.read_bytes() == before


def test_a_read_only_file_can_be_read(open_path: Path) -> None:
    path = open_path / "read-only.db"
    asyncio.run(use(path))
    open_path.chmod(0o777)
    path.chmod(0o444)
    assert used_by_nobody(path, write=False) == {"error": None, "events": 1}


@pytest.mark.parametrize("exists", [True, False])
def test_a_read_only_directory_is_refused(open_path: Path, exists: bool) -> None:
    path = open_path / "some.db"
    if exists:
        asyncio.run(use(path))
        path.chmod(0o666)
    open_path.chmod(0o555)
    try:
        refused_to_nobody(path)
    finally:
        open_path.chmod(0o755)


def test_a_file_that_may_not_be_read_is_refused(open_path: Path) -> None:
    path = open_path / "secret.db"
    asyncio.run(use(path))
    path.chmod(0)
    open_path.chmod(0o777)
    refused_to_nobody(path)


def test_a_read_only_filesystem_is_refused(tmp_path: Path) -> None:
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(mounted(tmp_path / "disk", "-t", "tmpfs", "tmpfs"))
        except DiskUnavailableError as error:
            pytest.skip(f"read-only filesystem: {error}")
        path = folder / "some.db"
        asyncio.run(use(path))
        remount_read_only(folder)
        refused(path, ReadOnlyDatabaseError, "writable")
        refused(folder / "new.db", ReadOnlyDatabaseError, "writable")


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "some.db"
    with pytest.raises(StorageError, match="must exist") as caught:
        asyncio.run(use(path))
    check_message(str(caught.value), path, re.escape(str(path.parent)))
    assert not path.parent.exists()


def test_a_directory_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        asyncio.run(use(tmp_path))
    check_message(str(caught.value), tmp_path, "directory")


def test_no_password_is_shown() -> None:
    for address in (
        "postgresql+pg8000://ann:hunter2@db.example/app",
        "mysql+pymysql://ann:hunter2@db.example/app",
        "nonsense://ann:hunter2@db.example/app",
    ):
        with pytest.raises(UnsupportedUrlError) as caught:
            DatabaseSessionService(address)
        assert "hunter2" not in str(caught.value)


# -- no room ------------------------------------------------------------------------------


@pytest.fixture(params=["tmpfs", "loop device"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Give a disk that can be filled, or skip by name."""
    with ExitStack() as stack:
        try:
            if request.param == "tmpfs":
                folder = stack.enter_context(tiny_disk(tmp_path / "disk", 2048))
            else:
                folder = stack.enter_context(loop_disk(tmp_path)).folder
        except DiskUnavailableError as error:
            pytest.skip(f"full disk on a {request.param}: {error}")
        yield folder


def fill(folder: Path, *, leave: int) -> Path:
    """Fill a disk but for some bytes; return the file to delete when there shall be room."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65536))
        except OSError:
            file.truncate(max(0, file.tell() - leave))
            os.fsync(file.fileno())
    return ballast


def big(turn: int) -> Event:
    return Event(
        id=f"turn{turn}",
        author="ann",
        content="x" * 20_000,
        state={"turn": turn, f"turn{turn}": turn, "user:turn": turn, "app:turn": turn},
    )


async def check_exactly(service: DatabaseSessionService, events: int, last: int) -> None:
    """The store holds these events and the state of the last of them, and nothing else."""
    found = await service.get_session(**KEY)
    assert found is not None
    assert [event.seq for event in found.events] == list(range(1, events + 1))
    own = {key: value for key, value in found.state.items() if ":" not in key}
    assert own == {"turn": last, **{f"turn{n}": n for n in range(last + 1)}}
    assert await service.get_user_state(app_name=APP, user_id=USER) == {"turn": last}
    assert await service.get_app_state(app_name=APP) == {"turn": last}


def test_a_full_disk_refuses_whole_appends_and_goes_on_when_there_is_room(
    small_disk: Path,
) -> None:
    path = small_disk / "some.db"

    async def run() -> None:
        async with DatabaseSessionService(url(path)) as service:
            session = await service.create_session(**KEY)
            ballast = fill(small_disk, leave=600_000)
            turn = -1
            with pytest.raises(StorageFullError) as caught:
                while turn < 10_000:
                    await service.append_event(session, big(turn + 1))
                    turn += 1
            check_message(str(caught.value), path, "room|space")
            assert turn >= 0
            assert session.revision == len(session.events) == turn + 1
            await check_exactly(service, turn + 1, turn)
            with pytest.raises(StorageFullError):
                await service.append_events(session, [big(n) for n in range(turn + 1, turn + 20)])
            outcomes = await asyncio.gather(
                *(service.append_event(session, big(n), on_stale="rebase")
                  for n in range(turn + 1, turn + 20)),
                return_exceptions=True,
            )  # fmt: skip
            assert {type(outcome) for outcome in outcomes} == {StorageFullError}
            with pytest.raises(StorageFullError):
                await service.patch_state(**KEY, set={"large": "x" * 60_000})
            await check_exactly(service, turn + 1, turn)
            ballast.unlink()
            for n in range(turn + 1, turn + 4):
                assert (await service.append_event(session, big(n))).seq == n + 1
            await check_exactly(service, turn + 4, turn + 3)

    asyncio.run(run())
    check_integrity(path)


def test_a_database_cannot_be_created_on_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "some.db"
    ballast = fill(small_disk, leave=0)
    refused(path, StorageFullError, "room|space")
    ballast.unlink()
    assert len(asyncio.run(use(path)).events) == 1


def test_a_database_on_a_full_disk_is_refused_and_works_when_there_is_room(
    small_disk: Path,
) -> None:
    path = small_disk / "some.db"
    asyncio.run(use(path))
    ballast = fill(small_disk, leave=0)
    refused(path, StorageFullError, "room|space")
    ballast.unlink()
    assert len(asyncio.run(use(path)).events) == 2


def test_a_file_that_may_not_grow_refuses_whole_appends(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    job = {"visit": "with_a_limit", "url": url(path), "bytes_max": 512 * 1024}
    refusal, before, found, after = said("visitor.py", job)
    assert refusal["error"] == "StorageFullError", refusal
    check_message(refusal["message"], path, "room|space|limit")
    assert found["events"] == before["events"] > 0
    assert found["state"] == {"turn": before["events"] - 1}
    assert after["seq"] == before["events"] + 1
    check_integrity(path)


# -- somebody else has it -----------------------------------------------------------------


def test_a_locked_database_is_refused_after_the_timeout_and_works_when_released(
    tmp_path: Path,
) -> None:
    path = tmp_path / "some.db"

    async def run() -> None:
        service = DatabaseSessionService(url(path), busy_timeout_s=0.3)
        async with service:
            session = await service.create_session(**KEY)
            event = Event(author="ann", content="Hello", state={"said": "Hello"})
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(StorageBusyError) as caught:
                    # The bound is only against a hang: the default timeout is longer.
                    await asyncio.wait_for(service.append_event(session, event), 20)
                check_message(str(caught.value), path, "busy_timeout_s|try again")
                # Readers are not in the way of a writer, nor it in theirs.
                found = await service.get_session(**KEY)
                assert found is not None
                assert list(found.events) == []
                other.execute("ROLLBACK")
                assert (await service.append_event(session, event)).seq == 1
            assert (await service.refresh(session)).state == {"said": "Hello"}

    asyncio.run(run())


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_opening_a_locked_database_is_refused_and_works_when_released(
    tmp_path: Path, lock: str, journal: str
) -> None:
    path = tmp_path / "some.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"PRAGMA journal_mode = {journal}")
        other.execute("CREATE TABLE other (column)")
        other.execute(f"BEGIN {lock}")
        refused(path, StorageBusyError, "busy_timeout_s|try again", busy_timeout_s=0.3)
        other.execute("ROLLBACK")
    assert len(asyncio.run(use(path, busy_timeout_s=0.3)).events) == 1
