"""The remote service: the kit, through a real server on a socket."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers_http import served
from threadline import DatabaseSessionService, RemoteSessionService
from threadline.clock import new_id
from threadline.testing import ServiceSuite, run_machine


class TestRemoteService(ServiceSuite):
    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[RemoteSessionService]:
        with served(DatabaseSessionService(f"sqlite:///{tmp_path}/s.db")) as url:
            yield RemoteSessionService(url)


def test_the_machine_finds_no_difference_over_sqlite(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:

        def make() -> RemoteSessionService:
            database = f"sqlite:///{tmp_path}/{new_id()}.db"
            return RemoteSessionService(
                stack.enter_context(served(DatabaseSessionService(database)))
            )

        assert run_machine(make, examples=5, steps_each=30) > 50
