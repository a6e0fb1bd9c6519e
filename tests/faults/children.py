"""Child processes that speak JSON lines, so that real ones can be killed in mid-work."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

# Long enough for a slow machine, short enough that a hang ends the run and not the day.
PATIENCE_S = 120.0


class Child:
    """A running script of this directory, whose printed JSON lines are collected as they come."""

    def __init__(self, script: str, job: dict[str, Any], *, options: Sequence[str] = ()) -> None:
        # A file and not a pipe: nobody reads it while the child runs, and it must not block.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in `end`)
        self.lines: list[dict[str, Any]] = []
        self._times_s: list[float] = []
        self._process = subprocess.Popen(
            [sys.executable, *options, str(HERE / script), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        # Read all the time: a full pipe would stop the child at a print, never in a commit.
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith(b"\n"):
                break  # the child died while it printed: this was not yet said
            self._times_s.append(time.monotonic())
            self.lines.append(json.loads(line))

    def wait_for(self, count: int) -> dict[str, Any]:
        """Wait until the child has said so many lines; return the last of them."""
        end = time.monotonic() + PATIENCE_S
        while len(self.lines) < count:
            if self._process.poll() is not None:
                self._reader.join(PATIENCE_S)
                if len(self.lines) < count:
                    raise AssertionError(f"the child ended too early:\n{self.errors()}")
            assert time.monotonic() < end, "the child fell silent"
            time.sleep(0.002)
        return self.lines[count - 1]

    def longest_silence_s(self) -> float:
        """Return the longest time between two lines of the child."""
        return max((b - a for a, b in itertools.pairwise(self._times_s)), default=0.0)

    def wait_for_end_of_work(self) -> None:
        """Wait until the child has said that it is done."""
        count = 0
        while self.wait_for(count := count + 1).get("op") != "done":
            pass

    def tell(self, text: str) -> None:
        """Send a line to the child."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode() + b"\n")
        self._process.stdin.flush()

    def freeze(self) -> None:
        """Stop the child where it is, and wait until it cannot say anything any more.

        That is so when its main thread has stopped; another may still be inside of a sync.
        """
        stop(self._process.pid)

    def kill(self) -> int:
        """Kill the child with SIGKILL; return its exit status once all it said is read."""
        self._process.send_signal(signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        """Wait until the child ends and all it said is read; return its exit status."""
        status = self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return status

    def errors(self) -> str:
        """Return what the child wrote to stderr."""
        self._errors.seek(0)
        return self._errors.read()

    def end(self) -> None:
        """Leave nothing running and nothing open."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            # What was never read by a killed child is still in our buffer of its stdin.
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def stop(pid: int) -> None:
    """Stop a process where it is; return when its main thread has stopped."""
    os.kill(pid, signal.SIGSTOP)
    wait_for_state(pid, "TZ")


def wait_for_state(pid: int, letters: str) -> None:
    """Wait for one of the kernel's letters for a main thread: T is stopped, Z is dead."""
    end = time.monotonic() + PATIENCE_S
    while _state(pid) not in letters:
        assert time.monotonic() < end, f"the process {pid} did not come to {letters}"
        time.sleep(0.001)


def _state(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "Z"  # dead, and its parent knows
    return stat.rpartition(")")[2].split()[0]


@contextlib.contextmanager
def running(script: str, job: dict[str, Any], *, options: Sequence[str] = ()) -> Iterator[Child]:
    """Start a script of this directory, and end it whatever happens."""
    child = Child(script, job, options=options)
    try:
        yield child
    finally:
        child.end()


def said(script: str, job: dict[str, Any], *, options: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Run a script of this directory to its end and return what it printed."""
    with running(script, job, options=options) as child:
        status = child.wait()
        assert status == 0, f"{script} ended with {status}:\n{child.errors()}"
        return child.lines


def say(*records: dict[str, Any]) -> None:
    """Print records from inside a child: in one write, so that none is cut in half by another."""
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    while data:
        data = data[os.write(1, data) :]


def job() -> dict[str, Any]:
    """Return the job this script was started with."""
    work: dict[str, Any] = json.loads(sys.argv[1])
    return work
