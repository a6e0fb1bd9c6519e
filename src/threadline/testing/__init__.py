"""The conformance kit: what every engine and every session service must do.

It needs `pip install 'threadline[testing]'`. Inherit a suite and give it what it tests:

    class TestMyService(ServiceSuite):
        @pytest.fixture
        def service(self, tmp_path):
            return DatabaseSessionService(f"sqlite:///{tmp_path}/sessions.db")

    class TestMyEngine(EngineSuite):
        @pytest.fixture
        def engine(self, tmp_path):
            return SqliteEngine(f"{tmp_path}/sessions.db")

    def test_my_service_against_the_reference(tmp_path):
        run_machine(lambda: DatabaseSessionService(f"sqlite:///{tmp_path}/{new_id()}.db"))

A service or engine is given unopened, is used on one event loop, and is closed by the suite.
What a service cannot do by its nature, its author marks with a strict xfail and a reason.
"""

from threadline.testing.engine_suite import EngineSuite
from threadline.testing.machine import SessionMachine, run_machine
from threadline.testing.service_suite import ServiceSuite

__all__ = ["EngineSuite", "ServiceSuite", "SessionMachine", "run_machine"]
