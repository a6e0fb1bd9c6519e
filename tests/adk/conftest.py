"""Every test with a `store` runs on each of them, but on those that its `unlike` mark names."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from adk.stores import ADKS, OURS, SLOW, VERTEX_DIFFERENCES, Store, opened


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "unlike(*stores): google-adk's stores in which the fact does not hold"
    )
    config.addinivalue_line("markers", "only(store): the one store that the fact is about")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "store" in metafunc.fixturenames:
        unlike = {name for mark in metafunc.definition.iter_markers("unlike") for name in mark.args}
        assert unlike <= {*ADKS}, f"{metafunc.definition.name}: no such stores: {unlike}"
        only = [name for mark in metafunc.definition.iter_markers("only") for name in mark.args]
        names = only or [name for name in (*OURS, *ADKS) if name not in unlike]
        metafunc.parametrize("store", [_slow(name) for name in names], indirect=True)


def _slow(name: str) -> Any:
    """Leave google-adk's services on files to the long run: they sync some ten times an append."""
    return pytest.param(name, marks=pytest.mark.soak) if name in SLOW else name


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Store]]:
    """Open each store once, when it is first asked for."""
    folder = tmp_path_factory.mktemp("adk")
    made: dict[str, Store] = {}
    with contextlib.ExitStack() as stack:

        def get(name: str) -> Store:
            if name not in made:
                made[name] = stack.enter_context(opened(name, folder))
            return made[name]

        yield get


@pytest.fixture
def store(request: pytest.FixtureRequest, stores: Callable[[str], Store]) -> Store:
    """Give the store with an app of the test's own."""
    if request.param == "vertex":
        names = request.node.originalname, request.node.name
        for reason in filter(None, map(VERTEX_DIFFERENCES.get, names)):
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    return dataclasses.replace(stores(request.param), app=f"app-{uuid.uuid4().hex[:12]}")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Any:
    """Run an async test on its store's event loop."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    given = {name: pyfuncitem.funcargs[name] for name in wanted}
    given["store"].run(pyfuncitem.obj(**given))
    return True
