"""The memory engine passes the kit; it is what the others are compared with."""

import pytest

from threadline import InMemorySessionService
from threadline.engines.memory import MemoryEngine
from threadline.testing import EngineSuite, ServiceSuite


class TestMemoryService(ServiceSuite):
    @pytest.fixture
    def service(self):
        return InMemorySessionService()


class TestMemoryEngine(EngineSuite):
    @pytest.fixture
    def engine(self):
        return MemoryEngine()
