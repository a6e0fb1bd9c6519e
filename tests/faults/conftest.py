"""Fixtures of the fault tests: figures for the reader, folders for others, disks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


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
