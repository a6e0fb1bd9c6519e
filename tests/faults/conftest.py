"""Fixtures of the fault tests: figures for the reader, folders for others, disks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .disks import DiskUnavailableError, LoopDisk, loop_disk, unavailable


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a measured figure past pytest's capture; figures are shown, never asserted."""

    def show(text: str) -> None:
        with capsys.disabled():
            print(f"\n  [measured] {text}", end="")

    return show


@pytest.fixture
def open_path() -> Iterator[Path]:
    """Give a folder that other users can enter, which those of `tmp_path` are not."""
    path = Path(tempfile.mkdtemp(prefix="threadline-faults-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def disk(open_path: Path, request: pytest.FixtureRequest) -> Iterator[LoopDisk]:
    """Give a disk whose power can be cut, or skip the test by name.

    A parameter of the fixture is its size in MiB; it is small if there is none.
    """
    with ExitStack() as stack:
        try:
            ready = stack.enter_context(loop_disk(open_path, getattr(request, "param", 0)))
        except DiskUnavailableError as error:
            unavailable("power cut on a loop device", error)
        yield ready
