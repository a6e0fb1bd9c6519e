"""google-adk's servers and command line on threadline's URI schemes, driven from outside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from servers import free_port
from threadline.sync import DatabaseSessionService

pytestmark = pytest.mark.soak

TESTS = Path(__file__).parents[1]

SERVICES = """\
from threadline.integrations.adk import register_schemes

register_schemes()
"""
AGENT = """\
from adk import scripted

root_agent = scripted.tool_agent()
"""
SESSIONS = "/apps/forecaster/users/ada/sessions"


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    """Return an agents' folder as google-adk wants it, with the documented services.py."""
    folder = tmp_path / "agents"
    (folder / "forecaster").mkdir(parents=True)
    (folder / "services.py").write_text(SERVICES)
    (folder / "forecaster" / "__init__.py").write_text("from . import agent\n")
    (folder / "forecaster" / "agent.py").write_text(AGENT)
    return folder


async def drive(client: httpx.AsyncClient) -> None:
    """Create, run, list, patch and delete, and look at what comes back."""

    async def ask(method: str, path: str, body: Any = None, status: int = 200) -> Any:
        answer = await client.request(method, path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    made = await ask("POST", SESSIONS, {"sessionId": "talk", "state": {"k": 1, "app:a": 2}})
    assert (made["id"], made["state"], made["events"]) == ("talk", {"k": 1, "app:a": 2}, [])
    await ask("POST", SESSIONS, {"sessionId": "talk"}, status=409)
    await ask("POST", SESSIONS, {"sessionId": "other"})
    message = {"role": "user", "parts": [{"text": "How is the sky?"}]}
    turn = {"appName": "forecaster", "userId": "ada", "sessionId": "talk", "newMessage": message}
    events = await ask("POST", "/run", turn)
    assert events[-1]["content"]["parts"][0]["text"] == "Blue, 21.5 degrees."
    await ask("POST", "/run", turn | {"sessionId": "unknown"}, status=404)
    async with client.stream("POST", "/run_sse", json=turn) as stream:
        lines = [line async for line in stream.aiter_lines() if line.startswith("data:")]
    assert len(lines) == 3
    found = await ask("GET", f"{SESSIONS}/talk")
    assert [one["author"] for one in found["events"]] == ["user", *["forecaster"] * 3] * 2
    assert found["events"][1:4] == events
    assert found["state"]["user:cities"] == ["Paris", "Paris"]
    listed = await ask("GET", SESSIONS)
    assert [one["id"] for one in listed] == ["other", "talk"]
    patched = await ask("PATCH", f"{SESSIONS}/talk", {"stateDelta": {"k": 5}})
    assert patched["state"]["k"] == 5
    await ask("DELETE", f"{SESSIONS}/other")
    await ask("DELETE", f"{SESSIONS}/other")
    await ask("GET", f"{SESSIONS}/other", status=404)


async def look(client: httpx.AsyncClient) -> Any:
    """Return what is stored after the drive."""
    found = (await client.get(f"{SESSIONS}/talk")).json()
    assert len(found["events"]) == 9
    assert found["state"]["k"] == 5
    assert found["state"]["app:asked"] == 2
    return found


def environment() -> dict[str, str]:
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}


@contextlib.contextmanager
def server(verb: str, agents: Path, uri: str) -> Iterator[str]:
    """Run `adk web` or `adk api_server` on a free port of this machine, and end it."""
    port = free_port()
    log = agents.parent / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "google.adk.cli", verb, "--host", "127.0.0.1"),
                *("--port", str(port), "--session_service_uri", uri, str(agents)),
            ],
            env=environment(),
            cwd=agents.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/list-apps").status_code == 200:
                    break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        else:
            raise AssertionError(log.read_text())
        yield url
    finally:
        process.terminate()
        process.wait(30)


async def visit(url: str, *steps: Any) -> Any:
    """Take steps against a server; return what the last one saw."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        return [await step(client) for step in steps][-1]


def test_an_api_server_that_is_started_again_has_everything(agents: Path, tmp_path: Path) -> None:
    uri = f"threadline+sqlite:///{tmp_path}/s.db"
    with server("api_server", agents, uri) as url:
        before = asyncio.run(visit(url, drive, look))
    with server("api_server", agents, uri) as url:
        assert asyncio.run(visit(url, look)) == before


def test_adk_web_stores_what_its_api_is_told(agents: Path, tmp_path: Path) -> None:
    with server("web", agents, f"threadline+sqlite:///{tmp_path}/s.db") as url:
        asyncio.run(visit(url, drive, look))


def test_adk_run_goes_on_where_it_stopped(agents: Path, tmp_path: Path) -> None:
    uri = f"threadline+sqlite:///{tmp_path}/s.db"
    # `adk run` looks for it in the agent's own folder.
    (agents / "services.py").rename(agents / "forecaster" / "services.py")
    for turns in (1, 2):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "google.adk.cli", "run", "--session_service_uri", uri),
                *("--session_id", "talk", str(agents / "forecaster"), "How is the sky?"),
            ],
            env=environment(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert "Blue, 21.5 degrees." in done.stdout, done.stdout + done.stderr
        with DatabaseSessionService(f"sqlite:///{tmp_path}/s.db") as service:
            (listed,) = service.list_sessions(app_name="forecaster").sessions
            assert (listed.id, listed.revision) == ("talk", 4 * turns)
