"""The PostgreSQL engine: the kit on real servers, and what is peculiar to it."""

import itertools
import os

import pytest

import servers
from threadline import DatabaseSessionService
from threadline.connect import connect
from threadline.testing import EngineSuite, ServiceSuite, run_machine

_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=["found", "wheel"])
def database(request):
    """Return the URL of a new database on each of the servers."""
    with servers.new_database(servers.postgres(request.param)) as url:
        yield url


@pytest.fixture
def schema():
    """Return a schema's name that no other test has."""
    return f"test {next(_numbers)}"


class TestPostgresService(ServiceSuite):
    @pytest.fixture
    def service(self, database, schema):
        return DatabaseSessionService(database, schema=schema)


class TestPostgresWithoutStatementCache(ServiceSuite):
    @pytest.fixture
    def service(self, database, schema):
        return DatabaseSessionService(f"{database}?statement_cache_size=0", schema=schema)


class TestPostgresEngine(EngineSuite):
    @pytest.fixture
    def engine(self, database, schema):
        return connect(database, schema=schema)


def machine(database, examples):
    steps = run_machine(
        lambda: DatabaseSessionService(database, schema=f"machine {next(_numbers)}"),
        examples=examples,
    )
    print(f"\n{steps} calls on PostgreSQL agreed with the reference")
    return steps


def test_hostile_calls_agree_with_the_reference(database):
    assert machine(database, examples=10) > 200


@pytest.mark.soak
def test_ten_thousand_hostile_calls_agree_with_the_reference(database):
    examples = int(os.environ.get("THREADLINE_SOAK_EXAMPLES", "400"))
    assert machine(database, examples) >= 25 * examples
