"""What `import threadline` gives, and what it does not load."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types

import pytest

import threadline
import threadline.sync

HEAVY = {
    *(
        "typer",
        "rich",
        "click",
        "pydantic",
        "sqlite3",
        "aiosqlite",
        "apsw",
        "asyncpg",
        "sqlalchemy",
    ),
    *(
        "starlette",
        "fastapi",
        "uvicorn",
        "httpx",
        "aiohttp",
        "anyio",
        "google",
        "hypothesis",
        "pytest",
    ),
}


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules of what a statement loads in a fresh interpreter."""
    code = (  # `google` may be there before: a package of Google's makes it when Python starts
        f"import sys\nbefore = set(sys.modules)\n{statement}\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def public_names() -> set[str]:
    """Return what a user sees: no submodules and no private names."""
    return {
        name
        for name, value in vars(threadline).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }


def test_all_is_sorted() -> None:
    """Constants first, as the linter wants it."""
    ordered = sorted(threadline.__all__, key=lambda name: (not name.isupper(), name))
    assert threadline.__all__ == ordered


def test_all_has_each_name_once() -> None:
    assert len(set(threadline.__all__)) == len(threadline.__all__)


def test_all_is_the_public_names() -> None:
    assert set(threadline.__all__) == public_names()


@pytest.mark.parametrize(
    "name",
    [
        "Session", "Event", "EventActions", "EventCompaction", "Content", "Part", "FunctionCall",
        "FunctionResponse", "Blob", "FileData", "State", "GetSessionConfig", "ListSessionsResponse",
        "ListEventsResponse", "BaseSessionService", "InMemorySessionService",
        "DatabaseSessionService", "Runner",
    ],
)  # fmt: skip
def test_a_promised_name_is_public(name: str) -> None:
    assert name in threadline.__all__


@pytest.mark.parametrize("name", threadline.__all__)
def test_every_public_class_has_a_docstring(name: str) -> None:
    value = getattr(threadline, name)
    assert not inspect.isclass(value) or value.__dict__.get("__doc__")


@pytest.mark.parametrize("name", threadline.__all__)
def test_every_public_name_is_found_in_sync_too(name: str) -> None:
    assert hasattr(threadline.sync, name)


def test_sync_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        threadline.sync.no_such_name  # noqa: B018


def test_the_version_is_the_distributions() -> None:
    from importlib.metadata import version

    assert threadline.__version__ == version("threadline")


def test_the_package_is_typed() -> None:
    from importlib.resources import files

    assert files("threadline").joinpath("py.typed").is_file()


@pytest.mark.parametrize("module", ["threadline", "threadline.sync", "threadline.runner"])
def test_importing_loads_no_driver_no_framework_and_no_terminal(module: str) -> None:
    assert loaded_by(f"import {module}").isdisjoint(HEAVY)


def test_a_memory_service_loads_no_driver() -> None:
    statement = (
        "from threadline.sync import InMemorySessionService\n"
        "InMemorySessionService().create_session(app_name='a', user_id='u')"
    )
    assert loaded_by(statement).isdisjoint(HEAVY)


def test_a_star_import_gives_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from threadline import *", names)
    assert set(names) - {"__builtins__"} == set(threadline.__all__)


def test_a_schema_of_another_kind_loads_no_pydantic() -> None:
    statement = (
        "import msgspec, threadline\n"
        "class Schema(msgspec.Struct):\n    a: int = 0\n"
        "threadline.State(schema=Schema)['a'] = 1"
    )
    assert "pydantic" not in loaded_by(statement)
