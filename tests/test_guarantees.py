"""docs/guarantees.md names a test for every guarantee, and the test is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guarantees.md"
SECTIONS = re.split(r"^## (?=\d)", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
NUMBERS = range(1, 13)
TEST = re.compile(r"`(tests/[\w/]+\.py::[\w:]+)`")
NOT_YET = "Not there yet:"


def named(section: str) -> list[str]:
    """Return the tests that a guarantee names."""
    return TEST.findall(section)


@pytest.fixture(scope="module")
def collected() -> set[str]:
    """Return the tests that pytest finds in the files that are named, soak tests included."""
    files = sorted({test.partition("::")[0] for section in SECTIONS for test in named(section)})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", *files],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}


def test_guarantees_are_numbered_without_a_gap() -> None:
    assert [int(section.split(".")[0]) for section in SECTIONS] == list(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_guarantee_names_a_test_or_says_that_it_is_not_there(number: int) -> None:
    section = SECTIONS[number - 1]
    assert named(section) or NOT_YET in section


@pytest.mark.parametrize("number", NUMBERS)
def test_every_test_that_a_guarantee_names_is_there(number: int, collected: set[str]) -> None:
    assert [test for test in named(SECTIONS[number - 1]) if test not in collected] == []


def test_every_mention_of_a_test_is_one_that_is_checked() -> None:
    """A name in another form would look like a promise and be held by nothing."""
    text = PAGE.read_text(encoding="utf-8")
    assert len(re.findall(r"tests/[\w/]*\.py", text)) == len(TEST.findall(text))


def test_the_readme_links_every_guarantee_it_names() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = {int(n) for n in re.findall(r"docs/guarantees\.md#(\d+)-", readme)}
    assert linked <= set(NUMBERS)
    assert linked
