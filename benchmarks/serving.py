"""Over HTTP: `threadline serve` beside the session routes of google-adk's api_server.

    python -m benchmarks.serving --quick
    python -m benchmarks.serving --postgres postgresql://postgres@127.0.0.1:5432

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

EVENTS = 1000
CONNECTIONS = (1, 16, 64)


class Server:
    """A server under test: how it is started, and how its requests look."""

    name = ""
    package = ""

    def __init__(self, database: str, port: int, directory: Path) -> None:
        self.port = port
        self.process = subprocess.Popen(
            self.command(database, directory), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def command(self, database: str, directory: Path) -> list[str]:
        """Return the command that starts it."""
        raise NotImplementedError

    def create(self, session: str, events: int) -> tuple[str, str, Any]:
        """Return the request that makes a session with events."""
        raise NotImplementedError

    def append(self, session: str, number: int) -> tuple[str, str, Any]:
        """Return the request that stores an event."""
        raise NotImplementedError

    def get(self, session: str) -> tuple[str, str, Any]:
        """Return the request that reads a session with its events."""
        raise NotImplementedError

    def memory_mb(self) -> float:
        """Return what the process holds, resident."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(text.split("VmRSS:")[1].split()[0]) / 1024

    def end(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def text_event(number: int) -> dict[str, Any]:
    """Return an event of about 350 bytes."""
    return {
        "id": uuid.uuid4().hex,
        "timestamp": float(number + 1),
        "author": "user",
        "invocationId": f"turn-{number}",
        "content": {"role": "user", "parts": [{"text": "What was said, at some length. " * 6}]},
    }


class Ours(Server):
    """`threadline serve`, one worker."""

    name = "threadline serve"
    package = "threadline"

    def command(self, database: str, directory: Path) -> list[str]:
        """Return the command that starts it."""
        command = [sys.executable, "-m", "threadline.cli", "serve", "--db", database]
        return [*command, "--port", str(self.port)]

    def create(self, session: str, events: int) -> tuple[str, str, Any]:
        """Return the request that makes a session; its events are appended."""
        return "POST", "/v1/apps/bench/users/u/sessions", {"sessionId": session}

    def append(self, session: str, number: int) -> tuple[str, str, Any]:
        """Return the request that stores an event with a state delta."""
        event = {**text_event(number), "actions": {"stateDelta": {"n": number}}}
        return "POST", f"/v1/apps/bench/users/u/sessions/{session}/events", {"events": [event]}

    def get(self, session: str) -> tuple[str, str, Any]:
        """Return the request that reads a session with its events."""
        return "GET", f"/v1/apps/bench/users/u/sessions/{session}", None


class Adk(Server):
    """google-adk's api_server."""

    name = "adk api_server"
    package = "google-adk"

    def command(self, database: str, directory: Path) -> list[str]:
        """Return the command that starts it."""
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
        options = ["--port", str(self.port), "--session_service_uri", database]
        return [program, "api_server", *options, str(agents.parent)]

    def create(self, session: str, events: int) -> tuple[str, str, Any]:
        """Return the request that makes a session with events."""
        body = {"sessionId": session, "events": [text_event(n) for n in range(events)]}
        return "POST", "/apps/bench/users/u/sessions", body

    def append(self, session: str, number: int) -> tuple[str, str, Any]:
        """Return the request that stores an event with a state delta."""
        text = "What was said, at some length. " * 6
        body = {"stateDelta": {"n": number, "text": text}}
        return "PATCH", f"/apps/bench/users/u/sessions/{session}", body

    def get(self, session: str) -> tuple[str, str, Any]:
        """Return the request that reads a session with its events."""
        return "GET", f"/apps/bench/users/u/sessions/{session}", None


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


async def fill(server: Server, events: int) -> str:
    """Make a session with events and return its id."""
    session, connection = uuid.uuid4().hex, Connection(server.port)
    await connection.send(*server.create(session, events))
    if events and isinstance(server, Ours):
        method, path, _ = server.append(session, 0)
        body = {"events": [text_event(n) for n in range(events)]}
        await connection.send(method, path, body)
    found = json.loads(await connection.send(*server.get(session)))
    assert len(found["events"]) == events, server.name
    connection.close()
    return session


async def run_workload(server: Server, workload: str, connections: int, seconds: float) -> Measured:
    """Measure one workload of one server."""
    if workload == "append":
        sessions = [await fill(server, 0) for _ in range(connections)]
        return await measure(
            server.port, connections, lambda at, n: server.append(sessions[at], n), seconds
        )
    session = await fill(server, EVENTS)
    return await measure(server.port, connections, lambda *_: server.get(session), seconds)


# -- the run ----------------------------------------------------------------------------


async def compare(kind: str, make_url: Any, options: argparse.Namespace, directory: Path) -> None:
    """Measure both servers over one kind of database, in turns, and print the ratios."""
    servers = [
        Ours(make_url("ours"), options.port, directory),
        Adk(make_url("adk"), options.port + 1, directory),
    ]
    try:
        for server in servers:
            await ready(server)
        print(f"\n## {kind}\n")
        print("| workload | connections | server | /s | p50 ms | p99 ms | ratio, and its spread |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for workload in ("append", "get of 1,000 events"):
            for connections in CONNECTIONS:
                rounds = [
                    [
                        await run_workload(server, workload, connections, options.seconds)
                        for server in servers
                    ]
                    for _ in range(options.rounds)
                ]
                ratios = sorted(ours.per_s / theirs.per_s for ours, theirs in rounds)
                told = f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
                for at, server in enumerate(servers):
                    best = [
                        statistics.median(one) for one in zip(*(r[at] for r in rounds), strict=True)
                    ]
                    print(
                        f"| {workload} | {connections} | {server.name} | {best[0]:,.0f} | "
                        f"{best[1]:.1f} | {best[2]:.1f} | {told if at == 0 else ''} |"
                    )
        await watch_memory(servers[0], options.requests)
    finally:
        for server in servers:
            server.end()


async def watch_memory(server: Server, requests: int) -> None:
    """Print what our server holds before, in the middle of, and after many requests."""
    session = await fill(server, 20)
    sizes = []
    connection = Connection(server.port)
    for n in range(requests):
        await connection.send(*(server.get(session) if n % 2 else server.append(session, n)))
        if n % 200 == 199:  # so that the answers stay as small as they were
            await connection.send("DELETE", server.get(session)[1], None)
            await connection.send(*server.create(session, 0))
        if n % (requests // 5) == 0:
            sizes.append(f"{server.memory_mb():.0f}")
    connection.close()
    sizes.append(f"{server.memory_mb():.0f}")
    print(f"\nMemory of {server.name} in MB, over {requests:,} requests: {', '.join(sizes)}")


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
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.requests = 1, 0.5, 2000
    with tempfile.TemporaryDirectory(prefix="threadline-bench-") as temporary:
        place = Path(temporary)
        await compare("SQLite", lambda name: f"sqlite:///{place}/{name}.db", options, place)
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
                )
            finally:
                for name in names:
                    await on_postgres(options.postgres, f"DROP DATABASE {name} WITH (FORCE)")


if __name__ == "__main__":
    asyncio.run(main())
