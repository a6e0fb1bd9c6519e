"""Over HTTP: `threadline serve` beside the session routes of google-adk's api_server.

    python -m benchmarks.serving --quick
    python -m benchmarks.serving --postgres postgresql://postgres@127.0.0.1:5432 \\
        --output benchmarks/results/serving

Both are processes of their own over the same kind of database; the rounds alternate between them
in one run, and the client is a few lines over a socket, so that it does not take what it is to
measure. An append is `POST .../events` here, and there `PATCH .../sessions/{id}`, the route that
stores one event with a state delta. Each connection has a session of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from benchmarks import machine

EVENTS = 1000
CONNECTIONS = (1, 16, 64)


class Server:
    """A server process, and the database it is over."""

    def __init__(self, command: list[str], port: int) -> None:
        self.port = port
        self.process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def memory_mb(self) -> float:
        """Return what the process holds, resident."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(text.split("VmRSS:")[1].split()[0]) / 1024

    def end(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def threadline_serve(database: str, port: int) -> Server:
    """Start `threadline serve`, one worker."""
    return Server([sys.executable, "-m", "threadline.cli", "serve", "--db", database], port)


def adk_api_server(database: str, port: int, directory: Path) -> Server:
    """Start google-adk's api_server."""
    agents = directory / "agents" / "bench"
    agents.mkdir(parents=True, exist_ok=True)
    (agents / "__init__.py").touch()
    (agents / "agent.py").write_text(
        "from google.adk.agents import LlmAgent\nroot_agent = LlmAgent(name='bench')\n"
    )
    database = database.replace("sqlite:", "sqlite+aiosqlite:").replace(
        "postgresql:", "postgresql+asyncpg:"
    )
    program = str(Path(sys.executable).parent / "adk")
    return Server(
        [program, "api_server", "--session_service_uri", database, str(agents.parent)], port
    )


# -- the requests -----------------------------------------------------------------------

Request = tuple[str, str, Any]
"""Method, path and body."""


def text_event(number: int) -> dict[str, Any]:
    """Return an event of about 350 bytes."""
    return {
        "id": uuid.uuid4().hex,
        "timestamp": float(number + 1),
        "author": "user",
        "invocationId": f"turn-{number}",
        "content": {"role": "user", "parts": [{"text": "What was said, at some length. " * 6}]},
    }


class AdkRoutes:
    """The session routes of ADK's api_server, where appending is a change of state."""

    name = "adk api_server"

    def __init__(self, server: Server) -> None:
        self.server = server

    def create(self, session: str, events: int) -> list[Request]:
        """Return the requests that make a session with events."""
        body = {"sessionId": session, "events": [text_event(n) for n in range(events)]}
        return [("POST", "/apps/bench/users/u/sessions", body)]

    def append(self, session: str, number: int) -> Request:
        """Return the request that stores an event with a state delta."""
        text = "What was said, at some length. " * 6
        body = {"stateDelta": {"n": number, "text": text}}
        return "PATCH", f"/apps/bench/users/u/sessions/{session}", body

    def get(self, session: str) -> Request:
        """Return the request that reads a session with its events."""
        return "GET", f"/apps/bench/users/u/sessions/{session}", None


class OurAdkRoutes(AdkRoutes):
    """The same routes, served by threadline."""

    name = "threadline serve, ADK's routes"


class NativeRoutes(AdkRoutes):
    """threadline's own routes."""

    name = "threadline serve"

    def create(self, session: str, events: int) -> list[Request]:
        """Return the requests that make a session; its events are appended."""
        path = "/v1/apps/bench/users/u/sessions"
        created: Request = ("POST", path, {"sessionId": session})
        if not events:
            return [created]
        body = {"events": [text_event(n) for n in range(events)]}
        return [created, ("POST", f"{path}/{session}/events", body)]

    def append(self, session: str, number: int) -> Request:
        """Return the request that stores an event with a state delta."""
        event = {**text_event(number), "actions": {"stateDelta": {"n": number}}}
        return "POST", f"/v1/apps/bench/users/u/sessions/{session}/events", {"events": [event]}

    def get(self, session: str) -> Request:
        """Return the request that reads a session with its events."""
        return "GET", f"/v1/apps/bench/users/u/sessions/{session}", None


# -- the client -------------------------------------------------------------------------


class Connection:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def send(self, method: str, path: str, body: Any) -> bytes:
        """Send a request and return the body of its answer, or raise."""
        if self.reader is None or self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(
                "127.0.0.1", self.port, limit=2**24
            )
        data = b"" if body is None else json.dumps(body).encode()
        self.writer.write(
            f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n".encode()
            + data
        )
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        if b"transfer-encoding: chunked" in head:
            pieces = []
            while size := int(await self.reader.readline(), 16):
                pieces.append((await self.reader.readexactly(size + 2))[:-2])
            await self.reader.readline()
            answer = b"".join(pieces)
        else:
            length = head.partition(b"content-length: ")[2].split(b"\r\n")[0]
            answer = await self.reader.readexactly(int(length or 0))
        if not 200 <= int(head.split()[1]) < 300:
            raise RuntimeError(f"{method} {path}: {head.split()[1]!r} {answer[:300]!r}")
        return answer

    def close(self) -> None:
        """Close it."""
        if self.writer is not None:
            self.writer.close()


class Measured(NamedTuple):
    """A workload's outcome."""

    per_s: float
    p50_ms: float
    p99_ms: float


async def measure(port: int, connections: int, requests: Any, seconds: float) -> Measured:
    """Send requests on several connections for a while; `requests(connection, number)`."""
    times_s: list[float] = []
    begun = time.perf_counter()

    async def one(number: int) -> None:
        connection, n = Connection(port), 0
        while time.perf_counter() - begun < seconds:
            sent = time.perf_counter()
            await connection.send(*requests(number, n))
            times_s.append(time.perf_counter() - sent)
            n += 1
        connection.close()

    await asyncio.gather(*(one(number) for number in range(connections)))
    taken = time.perf_counter() - begun
    cuts = statistics.quantiles(times_s, n=100) if len(times_s) > 1 else [times_s[0]] * 99
    return Measured(len(times_s) / taken, cuts[49] * 1000, cuts[98] * 1000)


async def ready(server: Server) -> None:
    """Wait until the server answers."""
    give_up = time.monotonic() + 60
    while True:
        try:
            return (await asyncio.open_connection("127.0.0.1", server.port))[1].close()
        except OSError:
            if time.monotonic() > give_up or server.process.poll() is not None:
                raise
            await asyncio.sleep(0.2)


async def fill(routes: AdkRoutes, events: int) -> str:
    """Make a session with events and return its id."""
    session, connection = uuid.uuid4().hex, Connection(routes.server.port)
    for request in routes.create(session, events):
        await connection.send(*request)
    found = json.loads(await connection.send(*routes.get(session)))
    assert len(found["events"]) == events, routes.name
    connection.close()
    return session


async def run_workload(
    routes: AdkRoutes, workload: str, connections: int, seconds: float
) -> Measured:
    """Measure one workload through one server's routes."""
    port = routes.server.port
    if workload == APPEND:
        sessions = [await fill(routes, 0) for _ in range(connections)]
        return await measure(
            port, connections, lambda at, n: routes.append(sessions[at], n), seconds
        )
    session = await fill(routes, EVENTS)
    return await measure(port, connections, lambda *_: routes.get(session), seconds)


# -- the run ----------------------------------------------------------------------------

APPEND, GET = "append", f"get of {EVENTS:,} events"


class Row(NamedTuple):
    """What one server did in one workload: medians over the rounds, and every round."""

    database: str
    workload: str
    connections: int
    server: str
    per_s: float
    p50_ms: float
    p99_ms: float
    rounds: list[Measured]


async def compare(
    kind: str, make_url: Any, options: argparse.Namespace, directory: Path, report: Report
) -> None:
    """Measure the servers over one kind of database, in turns."""
    ours = threadline_serve(make_url("ours"), options.port)
    theirs = adk_api_server(make_url("adk"), options.port + 1, directory)
    routes = [NativeRoutes(ours), OurAdkRoutes(ours), AdkRoutes(theirs)]
    try:
        for server in (ours, theirs):
            await ready(server)
        report.begin(kind)
        for workload in (APPEND, GET):
            for connections in CONNECTIONS:
                rounds = [
                    [
                        await run_workload(one, workload, connections, options.seconds)
                        for one in routes
                    ]
                    for _ in range(options.rounds)
                ]
                for one, measured in zip(routes, zip(*rounds, strict=True), strict=True):
                    medians = map(statistics.median, zip(*measured, strict=True))
                    row = Row(kind, workload, connections, one.name, *medians, list(measured))
                    report.add(row, [last[-1] for last in rounds])
                report.save()
        report.say("\n" + await watch_memory(routes[0], options.requests))
        report.save()
    finally:
        ours.end()
        theirs.end()


async def watch_memory(routes: AdkRoutes, requests: int) -> str:
    """Return what the server holds before, in the middle of, and after many requests."""
    session = await fill(routes, 20)
    sizes = []
    connection = Connection(routes.server.port)
    for n in range(requests):
        await connection.send(*(routes.get(session) if n % 2 else routes.append(session, n)))
        if n % 200 == 199:  # so that the answers stay as small as they were
            await connection.send("DELETE", routes.get(session)[1], None)
            await connection.send(*routes.create(session, 0)[0])
        if n % (requests // 5) == 0:
            sizes.append(f"{routes.server.memory_mb():.0f}")
    connection.close()
    sizes.append(f"{routes.server.memory_mb():.0f}")
    return f"Memory of {routes.name} in MB, over {requests:,} requests: {', '.join(sizes)}."


class Report:
    """The tables, printed as they grow and kept as files."""

    def __init__(self, folder: Path | None, options: argparse.Namespace) -> None:
        self._folder = folder
        self._rows: list[Row] = []
        self._lines: list[str] = []
        self.say("# The server beside google-adk's api_server\n")
        self.say(
            f"One run, {options.rounds} rounds of {options.seconds:g} s for every cell, the "
            "servers in turns; rates and times are medians over the rounds. A ratio is of the "
            "requests in a second, over those of `adk api_server`: the median of the rounds' own, "
            "the lowest and the highest. An append of ADK's routes is a `PATCH` that answers with "
            "the whole session.\n"
        )
        for name, value in machine.environment().items():
            self.say(f"- {name}: {value}")

    def say(self, line: str) -> None:
        """Add a line."""
        print(line, flush=True)
        self._lines.append(line)

    def begin(self, kind: str) -> None:
        """Begin the table of a database."""
        self.say(f"\n## {kind}\n")
        self.say("| workload | connections | server | /s | p50 ms | p99 ms | ratio |")
        self.say("| --- | ---: | --- | ---: | ---: | ---: | ---: |")

    def add(self, row: Row, yardstick: list[Measured]) -> None:
        """Add a row; the yardstick is google-adk's of the same rounds."""
        ratios = sorted(
            own.per_s / other.per_s for own, other in zip(row.rounds, yardstick, strict=True)
        )
        told = f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
        self.say(
            f"| {row.workload} | {row.connections} | {row.server} | {row.per_s:,.0f} | "
            f"{row.p50_ms:.1f} | {row.p99_ms:.1f} | {told} |"
        )
        self._rows.append(row)

    def save(self) -> None:
        """Write what there is so far, if there is a folder for it."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            rows = [
                {**row._asdict(), "rounds": [one._asdict() for one in row.rounds]}
                for row in self._rows
            ]
            text = json.dumps(rows, indent=1)
            (self._folder / "results.json").write_text(text + "\n", encoding="utf-8")
            text = "\n".join(self._lines)
            (self._folder / "report.md").write_text(text + "\n", encoding="utf-8")


async def on_postgres(server: str, command: str) -> None:
    """Run a command on the server."""
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(command)
    finally:
        await connection.close()


async def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round: it still runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--requests", type=int, default=100_000, help="for the server's memory")
    parser.add_argument("--port", type=int, default=18080, help="this one and the next are used")
    parser.add_argument("--postgres", metavar="URL", help="a server to make databases on")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where the report goes, too")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.requests = 1, 0.5, 2000
    report = Report(options.output, options)
    with tempfile.TemporaryDirectory(prefix="threadline-bench-") as temporary:
        place = Path(temporary)
        await compare("SQLite", lambda name: f"sqlite:///{place}/{name}.db", options, place, report)
        if options.postgres:
            prefix = f"threadline_bench_{uuid.uuid4().hex[:8]}"
            names = [f"{prefix}_{name}" for name in ("ours", "adk")]
            for name in names:
                await on_postgres(options.postgres, f"CREATE DATABASE {name}")
            try:
                await compare(
                    "PostgreSQL",
                    lambda name: f"{options.postgres}/{prefix}_{name}",
                    options,
                    place,
                    report,
                )
            finally:
                for name in names:
                    await on_postgres(options.postgres, f"DROP DATABASE {name} WITH (FORCE)")


if __name__ == "__main__":
    asyncio.run(main())
