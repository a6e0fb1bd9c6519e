"""Clients of the Vertex AI Sessions API: threadline's beside google-adk's, over one server.

    python -m benchmarks.vertex --quick

The server is a `threadline serve` of its own over a SQLite file, on this machine. In every round
each client has a process of its own, which counts its own CPU; they take turns to begin.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console

from benchmarks import machine, peers, report
from benchmarks.aims import Verdict
from benchmarks.results import Failure, Results, Timing
from benchmarks.vertex_clients import (
    APPEND,
    CLIENTS,
    CREATE,
    FIRST,
    GET,
    GET_AND_READ,
    GET_NEWEST,
    AdkClient,
    Counts,
    Spent,
    ThreadlineClient,
    fill,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.vertex_clients import Client

HOME = Path(__file__).parent / "results" / "vertex"
LIBRARIES = (
    *("threadline", "msgspec", "aiohttp", "google-auth"),
    *("google-adk", "google-cloud-aiplatform", "google-genai", "httpx", "aiohttp"),
)
EVENTS = 1_000
IMPORTS = 3
CPU, CLOCK = "CPU of the client", "time on the clock"
IMPORT = "import the class"
BARE = "the same, with nothing loaded before"

AIMS = ((APPEND, 3.0), (GET, 3.0), (GET_AND_READ, 3.0), (IMPORT, 10.0))
"""What a call is to cost google-adk's client in CPU, over what it costs ours."""

_PROGRAM = "import time; start = time.process_time(); {}; print(time.process_time() - start)"


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """Run `threadline serve` until the block ends; yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "threadline.cli", "serve", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--db", f"sqlite:///{directory}/sessions.db"], stderr=subprocess.DEVNULL
    )
    try:
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def run(results: Results, url: str, counts: Counts, events: int, say: Console) -> None:
    """Let every client have its turn in every round; a first round warms up."""
    filled = uuid.uuid4().hex
    asyncio.run(fill(url, filled, events))
    kinds = [kind for kind in CLIENTS if peers.absent(kind.modules) is None]
    results.missing |= {
        kind.name: missing for kind in CLIENTS if (missing := peers.absent(kind.modules))
    }
    for number in range(results.rounds + 1):
        for kind in kinds[number % len(kinds) :] + kinds[: number % len(kinds)]:
            say.print(f"round {number} of {results.rounds}: {kind.name}", highlight=False)
            try:
                spent = _imports(kind) | _calls(kind, url, filled, counts)
            except subprocess.CalledProcessError as error:
                told = (error.stderr or "it said nothing").strip().splitlines()[-1]
                results.failures.append(Failure("vertex", kind.name, told))
                continue
            if number == 0:
                continue
            for call, one in spent.items():
                _note(results, CPU, call, kind, one.operations, one.cpu_s)
                if call not in (IMPORT, BARE):
                    _note(results, CLOCK, call, kind, one.operations, one.wall_s)


def _note(
    results: Results, what: str, call: str, kind: type[Client], operations: int, seconds: float
) -> None:
    timing = results.timing(what, call, kind.name)
    if timing is None:
        timing = Timing(what, call, kind.name, operations)
        results.timings.append(timing)
    timing.seconds.append(seconds)


def _imports(kind: type[Client]) -> dict[str, Spent]:
    spent = {}
    for name, before in ((IMPORT, "import asyncio, msgspec; "), (BARE, "")):
        program = before + _PROGRAM.format(kind.statement)
        times = [float(_run("-W", "ignore", "-c", program)) for _ in range(IMPORTS)]
        spent[name] = Spent(sum(times) / IMPORTS, 0.0, IMPORTS)
    return spent


def _calls(kind: type[Client], url: str, filled: str, counts: Counts) -> dict[str, Spent]:
    given = msgspec.json.encode(counts).decode()
    told = _run("-m", "benchmarks.vertex_clients", kind.name, url, filled, given)
    return msgspec.json.decode(told, type=dict[str, Spent])


def _run(*arguments: str) -> str:
    """Return the last line that a fresh interpreter prints."""
    # Byte code is cached, as it is for everybody who imports more than once.
    names = {"PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"}
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name not in names},
    )
    return done.stdout.splitlines()[-1]


def judge(results: Results) -> list[Verdict]:
    """Return the aims that the run measured."""
    verdicts = []
    for call, wanted in AIMS:
        ours, theirs = (
            results.timing(CPU, call, kind.name) for kind in (ThreadlineClient, AdkClient)
        )
        if ours and theirs:
            ratio = theirs.ratio(ours)
            aim = f"{call}: CPU against {AdkClient.name}"
            bound = f"at least {report.times(wanted)}"
            verdicts.append(Verdict(aim, bound, report.times(ratio), ratio >= wanted))
    return verdicts


TEXTS = {
    IMPORT: "In fresh interpreters that have asyncio and msgspec.",
    BARE: "asyncio and msgspec are part of it, and two thirds of what threadline's takes.",
    FIRST: "Import, construct with google-auth's credentials, create a session: what a cold start "
    "waits for, whatever is loaded when. The interpreter has asyncio and msgspec.",
    CREATE: "The session is created and read back.",
    APPEND: "To one session, each awaited before the next.",
    GET: "threadline decodes an event when it is looked at; for google-adk all are decoded.",
    GET_AND_READ: "Every event is looked at.",
    GET_NEWEST: "The API finds no event by its place, so every client reads the whole list.",
}


def sections(results: Results, verdicts: list[Verdict]) -> list[report.Section]:
    """Return the report's tables."""
    found = [report.aims_section(results, verdicts)] if verdicts else []
    for call, text in TEXTS.items():
        for what in (CPU, CLOCK):
            timings = [
                one for one in results.timings if (one.workload, one.measure) == (what, call)
            ]
            if timings:
                names = [kind.name for kind in CLIENTS]
                table = report.timed(results, timings, names, ThreadlineClient.name, "call")
                table.title, table.text = f"{call}: {what}", text if what == CPU else ""
                found.append(table)
    return found


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round: it still runs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="where report.md and results.json go")
    options = parser.parse_args()
    rounds, counts, events = options.rounds, Counts(), EVENTS
    if options.quick:
        rounds, counts, events = 1, Counts(creates=3, appends=10, gets=2), 50
    home = options.output or (HOME.parent / "partial" / "vertex" if options.quick else HOME)
    home.mkdir(parents=True, exist_ok=True)
    console = Console()
    results = Results(
        machine.environment(LIBRARIES), "sqlite", "the Vertex AI API", rounds, not options.quick
    )
    with tempfile.TemporaryDirectory(prefix="threadline-bench-") as temporary:
        results.environment |= machine.disk(Path(temporary))
        with served(Path(temporary)) as url:
            run(results, url, counts, events, console)
    verdicts = judge(results)
    shown, remarks = sections(results, verdicts), report.remarks(results)
    report.show_sections(console, shown, remarks)
    command = shlex.join(["python", "-m", "benchmarks.vertex", *sys.argv[1:]])
    report.write_sections(home, results, shown, remarks, command)
    data = asdict(results) | {"aims": [asdict(one) for one in verdicts]}
    report.write_results(home, data | {"counts": msgspec.to_builtins(counts)})
    console.print(f"Written to {home}", markup=False, soft_wrap=True)
    if results.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
