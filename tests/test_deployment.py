"""The unit and the container file of docs/howto/serve.md, as far as they run without a host."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from servers import free_port, missing
from servers_http import plain, wait_until
from test_docs import DOCS, ROOT, read_blocks
from threadline.server.auth import KeyFile

NOBODY = 65534
AS_NOBODY: dict[str, Any] = (
    {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
)


def shown(name: str) -> str:
    """Return a file that the page shows."""
    blocks = read_blocks(DOCS / "howto" / "serve.md")
    (text,) = (block.code for block in blocks if block.marker == f"<!-- file: {name} -->")
    return text


@contextmanager
def running(command: list[str], environment: dict[str, str], **user: Any) -> Iterator[str]:
    """Run a server, with nothing of this environment, until the block ends; yield its URL."""
    port = str(free_port())
    command = [argument.replace("8080", port) for argument in command]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, **user)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None
        try:
            return plain.get(f"{url}/readyz").text == "ok"
        except httpx.TransportError:
            return False

    try:
        wait_until(answers)
        yield url
    finally:
        process.terminate()
        try:
            assert process.wait(timeout=40) == 0
        finally:
            process.kill()


def check_key(url: str, key: str) -> None:
    """See that sessions are for holders of a key."""
    sessions = f"{url}/v1/apps/a/users/u/sessions"
    assert plain.post(sessions).status_code == 401
    made = plain.post(sessions, json={}, headers={"x-goog-api-key": key})
    assert made.status_code == 201


# -- systemd ----------------------------------------------------------------------------


@pytest.fixture
def unit() -> configparser.SectionProxy:
    """The unit's service."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(shown("threadline.service"))
    return parser["Service"]


def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        missing("systemd", "there is no systemd-analyze")
    file = tmp_path / "threadline.service"
    file.write_text(
        shown(file.name).replace("/opt/threadline/bin", str(Path(sys.executable).parent))
    )
    done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_serves_what_is_in_its_state_directory_with_its_credential(
    unit: configparser.SectionProxy, tmp_path: Path
) -> None:
    name, _, path = unit["LoadCredential"].partition(":")
    assert path.endswith(name)
    key = KeyFile(tmp_path / name).create(writes=True)
    state = f"/var/lib/{unit['StateDirectory']}"
    assert state in unit["Environment"]
    variable, _, url = unit["Environment"].replace(state, str(tmp_path)).partition("=")
    program, *arguments = shlex.split(unit["ExecStart"].replace("%d", str(tmp_path)))
    program = str(Path(sys.executable).parent / Path(program).name)
    with running([program, *arguments], {variable: url}) as server:
        check_key(server, key)
    assert (tmp_path / "sessions.db").exists()


# -- a container ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that everybody can look into."""
    with tempfile.TemporaryDirectory(prefix="threadline-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def everyones_python() -> str:
    """Return a Python that nobody may run too; root's own may be in a folder of root's."""
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        attempt = ["sh", "-c", f"{shlex.quote(python)} -c 'import ensurepip, venv'"]
        if subprocess.run(attempt, capture_output=True, **AS_NOBODY).returncode == 0:
            return python
    return missing("container", f"the user {NOBODY} may run no Python that has venv")


@pytest.fixture(scope="module")
def image(place: Path) -> Path:
    """What the container file installs, in an environment made of this source's wheel."""
    run = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", place, ROOT]
    subprocess.run(run, check=True)
    (wheel,) = place.glob("*.whl")
    subprocess.run([everyones_python(), "-m", "venv", place / "venv"], check=True)
    (install,) = re.findall("^RUN (.*)", shown("Dockerfile"), re.MULTILINE)
    program, *arguments = shlex.split(install)
    arguments = [argument.replace("threadline[", f"{wheel}[", 1) for argument in arguments]
    subprocess.run([place / "venv" / "bin" / program, "-q", *arguments], check=True)
    return place / "venv" / "bin"


def words(instruction: str, folder: Path) -> list[str]:
    """Return the command of an instruction, its program in a folder."""
    (command,) = re.findall(f"^{instruction} (.*)", shown("Dockerfile"), re.MULTILINE)
    program, *arguments = json.loads(command)
    return [str(folder / program), *arguments]


@pytest.mark.soak
def test_the_container_serves_with_keys_as_nobody_and_is_healthy(place: Path, image: Path) -> None:
    assert f"USER {NOBODY}\n" in shown("Dockerfile")
    data = place / "data"
    data.mkdir()
    keys = data / "keys.json"
    key = KeyFile(keys).create(writes=True)
    if AS_NOBODY:
        for file in (data, keys):
            os.chown(file, NOBODY, NOBODY)
    environment = {"THREADLINE_DB": f"sqlite:///{data}/sessions.db", "THREADLINE_KEYS": str(keys)}
    with running(words("ENTRYPOINT", image), environment, **AS_NOBODY) as url:
        check_key(url, key)
        health = [word.replace("8080", url[-5:]) for word in words("HEALTHCHECK CMD", image)]
        subprocess.run(health, check=True)


@pytest.mark.soak
def test_the_container_refuses_to_serve_without_keys(place: Path, image: Path) -> None:
    done = subprocess.run(
        words("ENTRYPOINT", image),
        env={"THREADLINE_DB": f"sqlite:///{place}/never.db"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "--keys" in done.stderr
    assert not (place / "never.db").exists()


@pytest.mark.soak
def test_the_container_has_the_drivers_that_it_was_given(image: Path) -> None:
    subprocess.run([image / "python", "-c", "import asyncpg, uvicorn"], check=True)
