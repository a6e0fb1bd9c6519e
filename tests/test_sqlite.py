"""The SQLite engine: the kit on a file and in memory, and what is peculiar to it."""

import asyncio
import os
import sqlite3

import pytest

from threadline import DatabaseSessionService, EngineSessionService, Event, clock
from threadline.engines import sqlite
from threadline.engines.sqlite import SqliteEngine
from threadline.testing import EngineSuite, ServiceSuite, run_machine
from threadline.testing.service_suite import IDS, say


class TestSqliteService(ServiceSuite):
    @pytest.fixture
    def service(self, tmp_path):
        return DatabaseSessionService(f"sqlite:///{tmp_path}/sessions.db")


class TestSqliteMemoryService(ServiceSuite):
    @pytest.fixture
    def service(self):
        return DatabaseSessionService("sqlite:///:memory:")


class TestSqliteEngine(EngineSuite):
    @pytest.fixture
    def engine(self, tmp_path):
        return SqliteEngine(str(tmp_path / "sessions.db"))


def machine_on_files(tmp_path, examples):
    steps = run_machine(
        lambda: DatabaseSessionService(f"sqlite:///{tmp_path}/{clock.new_id()}.db"),
        examples=examples,
    )
    print(f"\n{steps} calls on a SQLite file agreed with the reference")
    return steps


def test_hostile_calls_agree_with_the_reference(tmp_path):
    assert machine_on_files(tmp_path, examples=25) > 500


@pytest.mark.soak
def test_ten_thousand_hostile_calls_agree_with_the_reference(tmp_path):
    examples = int(os.environ.get("THREADLINE_SOAK_EXAMPLES", "400"))
    steps = machine_on_files(tmp_path, examples=examples)
    assert steps >= 25 * examples


def test_hostile_calls_in_memory_agree_with_the_reference():
    run_machine(lambda: DatabaseSessionService("sqlite:///:memory:"), examples=10, reopens=False)
