"""The remote service: the kit, through a real server on a socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servers_http import served
from threadline import (
    DatabaseSessionService,
    ErasedUser,
    InMemorySessionService,
    RemoteSessionService,
    StorageUnavailableError,
)
from threadline.clock import new_id
from threadline.testing import ServiceSuite, run_machine
from vertex.proxy import Proxy, losing


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

        assert run_machine(make, examples=10, steps_each=30) > 50


def test_an_erasure_whose_answer_was_lost_is_sent_again_and_a_change_is_not() -> None:
    ids: Any = {"app_name": "app", "user_id": "ann"}

    async def use(service: RemoteSessionService, proxy: Proxy) -> None:
        await service.create_session(**ids, session_id="s")
        proxy.faults = [("PATCH", losing), ("DELETE", losing)]
        with pytest.raises(StorageUnavailableError, match="not known"):
            await service.update_session(**ids, session_id="s", display_name="d")
        assert await service.erase_user(**ids) == ErasedUser()  # the first one removed it
        assert (proxy.count("PATCH"), proxy.count("DELETE")) == (1, 2)
        assert (await service.list_sessions(**ids)).sessions == []
        await service.close()

    with served(InMemorySessionService()) as url, Proxy(url) as proxy:
        asyncio.run(use(RemoteSessionService(proxy.url), proxy))
