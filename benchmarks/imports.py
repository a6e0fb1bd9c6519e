"""How long `import threadline` takes in a fresh interpreter, and what it loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.peers import AdkDatabase, LangGraph, OpenAiAgents, absent
from benchmarks.results import Failure, Figure, Timing

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.results import Results
    from benchmarks.scale import Scale

NAME = "import"
TITLE = "Import time"
REFERENCE = "import threadline"

STATEMENTS = {
    REFERENCE: ("threadline",),
    "from threadline import the services, Runner and models": ("threadline",),
    "from google.adk.sessions import the services": AdkDatabase.modules,
    "from agents import SQLiteSession": OpenAiAgents.modules,
    "from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver": LangGraph.modules,
}
"""What is imported, and the modules that must be installed for it."""

_CODE = {
    "from threadline import the services, Runner and models": (
        "from threadline import DatabaseSessionService, InMemorySessionService, Runner, Event, "
        "EventActions, Content, Part, Session"
    ),
    "from google.adk.sessions import the services": (
        "from google.adk.sessions import DatabaseSessionService, InMemorySessionService"
    ),
}

_DRIVERS = {
    "aiomysql",
    "aiosqlite",
    "apsw",
    "asyncmy",
    "asyncpg",
    "MySQLdb",
    "mysql",
    "psycopg",
    "psycopg2",
    "pymysql",
    "sqlalchemy",
    "sqlite3",
}
_WEB = {
    "aiohttp",
    "django",
    "fastapi",
    "flask",
    "google",
    "grpc",
    "httpx",
    "requests",
    "starlette",
    "uvicorn",
}
_HEAVY = {"langchain_core", "langgraph", "agents", "openai", "pydantic", "rich", "typer"}
FOREIGN = frozenset(_DRIVERS | _WEB | _HEAVY)
"""Drivers, web frameworks and other heavy things that the import must not load."""

_PROGRAM = """
import asyncio, msgspec, json, sys, time
start = time.perf_counter()
{statement}
took = time.perf_counter() - start
print(json.dumps([took, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""


def run(results: Results, scale: Scale, say: Callable[[str], None]) -> None:
    """Import in fresh interpreters that have asyncio and msgspec already."""
    loaded: set[str] = set()
    for number in range(results.rounds + 1):  # the first one writes the byte code
        for name, modules in STATEMENTS.items():
            if absent(modules) is not None:
                continue
            say(f"{NAME}: round {number} of {results.rounds}, {name}")
            try:
                runs = [_import(_CODE.get(name, name)) for _ in range(scale.imports)]
            except subprocess.CalledProcessError as error:
                results.failures.append(Failure(NAME, name, error.stderr.splitlines()[-1]))
                continue
            if name == REFERENCE:
                loaded |= FOREIGN.intersection(*(names for _, names in runs))
            if number == 0:
                continue
            timing = results.timing(NAME, "", name)
            if timing is None:
                timing = Timing(NAME, "", name, scale.imports)
                results.timings.append(timing)
            timing.seconds.append(sum(took for took, _ in runs) / len(runs))
    ours = results.timing(NAME, "", REFERENCE)
    if ours is not None:
        results.figures += [
            Figure(NAME, "import threadline", ours.median * 1e3, "ms"),
            Figure(
                NAME,
                "drivers and frameworks loaded",
                len(loaded),
                "modules",
                ", ".join(sorted(loaded)),
            ),
        ]


def describe(scale: Scale) -> str:
    """Return what is done, in one sentence."""
    return (
        f"{scale.imports} fresh interpreters a round, each with asyncio and msgspec imported "
        "before the clock starts."
    )


def _import(statement: str) -> tuple[float, set[str]]:
    # Byte code is cached, as it is for everybody who imports more than once.
    names = {"PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"}
    variables = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM.format(statement=statement)],
        capture_output=True,
        text=True,
        check=True,
        env=variables,
    )
    took, modules = json.loads(done.stdout.splitlines()[-1])
    return took, set(modules)
