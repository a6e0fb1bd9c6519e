"""The official clients of other languages as processes: a call goes in, its outcome comes out."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from servers import missing

HERE = Path(__file__).parent
ENGINE = "1234567890"
ADK_JS = "@google/adk@2.0.0"


class ClientError(Exception):
    """What the client raised, as it printed it."""


class Client:
    """A client's process."""

    def __init__(self, *command: str, key: str, cwd: Path | None = None) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={
                **os.environ,
                "KEY": key,
                "GOOGLE_GENAI_USE_ENTERPRISE": "true",  # or express mode ignores its key
                "PYTHONWARNINGS": "ignore",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, call: str, **given: Any) -> Any:
        """Make a call and return its answer, or raise what the client raised."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"call": call, **given}) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):  # what the libraries print is no answer
                outcome = json.loads(line)
                if "error" in outcome:
                    raise ClientError(outcome["error"])
                return outcome["answer"]
        raise ClientError("The client's process has ended.")

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=20)


def python(url: str, *mode: str, key: str = "any") -> Client:
    """Start google-adk's VertexAiSessionService."""
    if importlib.util.find_spec("agentplatform") is None:
        missing("adk-python", "google-cloud-aiplatform is not installed")
    return Client(sys.executable, str(HERE / "client.py"), url, ENGINE, *mode, key=key)


def javascript(url: str, folder: Path, key: str = "any") -> Client:
    """Start @google/adk's VertexAiSessionService, in a folder where it was installed."""
    shutil.copy(HERE / "client.mjs", folder)
    return Client("node", "client.mjs", url, ENGINE, key=key, cwd=folder)


def install_javascript(folder: Path) -> None:
    """Install @google/adk into a folder."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            missing("adk-js", f"there is no {program}")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", ADK_JS],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    if done.returncode != 0:
        missing("adk-js", f"npm install {ADK_JS} failed: {done.stderr.strip()[-300:]}")
