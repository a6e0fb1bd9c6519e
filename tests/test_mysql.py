"""The MySQL engine: the kit on a server, and what is peculiar to it."""

import pytest
from tests.servers_mysql import database, server

from threadline import DatabaseSessionService, clock
from threadline.testing import EngineSuite, ServiceSuite, run_machine


@pytest.fixture(scope="module")
def shared():
    """Return a database for this module; each test takes tables of its own there."""
    with database() as name:
        yield name


@pytest.fixture
def url(shared):
    return server().url(shared, f"?table_prefix=t{clock.new_id()[:8]}_")


class TestMysqlService(ServiceSuite):
    @pytest.fixture
    def service(self, url):
        return DatabaseSessionService(url)


class TestMysqlEngine(EngineSuite):
    @pytest.fixture
    def engine(self, url):
        from threadline.connect import connect

        return connect(url)


def machine(shared, examples):
    steps = run_machine(
        lambda: DatabaseSessionService(
            server().url(shared, f"?table_prefix=t{clock.new_id()[:8]}_")
        ),
        examples=examples,
    )
    print(f"\n{steps} calls on a server agreed with the reference")
    return steps


def test_hostile_calls_agree_with_the_reference(shared):
    assert machine(shared, examples=10) > 200
