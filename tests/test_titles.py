"""Titles, labels and expiry that change, and the list of apps: not yet asked of every service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from threadline import (
    BaseSessionService,
    DatabaseSessionService,
    InMemorySessionService,
    InvalidInputError,
    SessionNotFoundError,
    clock,
)
from threadline.testing.loops import asynchronous
from threadline.testing.service_suite import IDS, reload, say


@asynchronous
class TitleSuite:
    """What a service over an engine can do beside what every service can."""

    async def test_update_session_changes_what_is_given(self, service: BaseSessionService) -> None:
        ids = {**IDS, "session_id": "s"}
        with clock.replaced(now=lambda: 1000.0):
            made = await service.create_session(
                **ids, display_name="d", labels={"a": "b"}, ttl=60, state={"k": 1}
            )
            for given in (
                {"display_name": "e"},
                {"labels": {"c": "d"}},
                {"ttl": 90},
                {"expire_time": 2000.0},
                {"display_name": None, "labels": None, "expire_time": None},
            ):
                changed: Any = {"expire_time": 1090.0} if "ttl" in given else {**given}
                if changed.get("labels", True) is None:
                    changed["labels"] = {}
                made = msgspec.structs.replace(made, **changed)
                assert await service.update_session(**ids, **given) == made
                assert await service.get_session(**ids) == made

    async def test_update_session_makes_no_handle_stale(self, service: BaseSessionService) -> None:
        session = await service.create_session(**IDS)
        await service.update_session(**IDS, session_id=session.id, display_name="d")
        assert (await service.append_event(session, say())).seq == 1

    async def test_update_session_refuses_what_is_missing_or_wrong(
        self, service: BaseSessionService
    ) -> None:
        with pytest.raises(SessionNotFoundError):
            await service.update_session(**IDS, session_id="s", display_name="d")
        session = await service.create_session(**IDS, session_id="s")
        for wrong in ({"ttl": 0}, {"ttl": 1, "expire_time": None}, {"labels": {"a": 1}}):
            with pytest.raises(InvalidInputError):
                await service.update_session(**IDS, session_id="s", **wrong)
        assert await reload(service, session) == session

    async def test_apps_are_listed(self, service: BaseSessionService) -> None:
        for app in ("b", "a", "b"):
            await service.create_session(app_name=app, user_id="u")
        assert await service.list_apps() == ["a", "b"]


class TestInMemory(TitleSuite):
    @pytest.fixture
    def service(self) -> BaseSessionService:
        return InMemorySessionService()


class TestDatabase(TitleSuite):
    @pytest.fixture
    def service(self, tmp_path: Path) -> BaseSessionService:
        return DatabaseSessionService(f"sqlite:///{tmp_path}/s.db")
