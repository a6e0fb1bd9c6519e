"""The tree of errors that errors.py draws is the tree that is there."""

from __future__ import annotations

import builtins
import copy
import inspect
import pickle
import re
from typing import NamedTuple

import pytest
from google.adk.errors.already_exists_error import AlreadyExistsError as AdkAlreadyExistsError
from google.adk.errors.session_not_found_error import (
    SessionNotFoundError as AdkSessionNotFoundError,
)

import threadline
from threadline import errors

LINE = re.compile(r"^(?P<lead>[│ ]*)(?P<branch>[├└]── )?(?P<name>\w+Error)\b(?P<rest>.*)$")
BASE = re.compile(r"\((?P<base>\w+)\)\s*$")


class Drawn(NamedTuple):
    """One line of the drawing."""

    name: str
    parent: str | None
    builtin: str | None


def drawn() -> list[Drawn]:
    """Parse the drawing in the module's docstring."""
    found: list[Drawn] = []
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        depth = (len(match["lead"]) + 4) // 4 if match["branch"] else 0
        del path[depth:]
        base = BASE.search(match["rest"])
        found.append(Drawn(match["name"], path[-1] if path else None, base and base["base"]))
        path.append(match["name"])
    return found


CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and value.__module__ == errors.__name__
}
EVERY = pytest.mark.parametrize("name", CLASSES)


def make(name: str) -> BaseException:
    """Make an error the way the code does."""
    if name == "StaleSessionError":
        return errors.StaleSessionError("stale", expected=1, revision=2, missed=[3])
    error: BaseException = CLASSES[name](f"a {name}")
    return error


def test_the_drawing_is_found() -> None:
    assert drawn()[0] == Drawn("ThreadlineError", None, None)


def test_every_class_is_drawn_once() -> None:
    assert sorted(line.name for line in drawn()) == sorted(CLASSES)


@pytest.mark.parametrize("line", drawn(), ids=lambda line: line.name)
def test_every_base_is_as_drawn(line: Drawn) -> None:
    wanted = [line.parent or "Exception"] + ([line.builtin] if line.builtin else [])
    assert [base.__name__ for base in CLASSES[line.name].__bases__] == wanted


@pytest.mark.parametrize("line", [line for line in drawn() if line.builtin], ids=lambda d: d.name)
def test_a_drawn_builtin_catches_it(line: Drawn) -> None:
    with pytest.raises(getattr(builtins, line.builtin or "")):
        raise make(line.name)


@EVERY
def test_every_class_has_a_docstring_of_its_own(name: str) -> None:
    assert "__doc__" in vars(CLASSES[name])
    assert CLASSES[name].__doc__


@EVERY
def test_every_class_is_public(name: str) -> None:
    assert getattr(threadline, name) is CLASSES[name]


@EVERY
def test_the_message_is_the_text(name: str) -> None:
    assert str(make(name)) in {f"a {name}", "stale"}


@EVERY
@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
def test_every_error_crosses_a_process_boundary(name: str, copied: object) -> None:
    """An error that cannot be unpickled breaks a whole process pool."""
    error = make(name)
    again = copied(error)  # type: ignore[operator]
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_stale_session_error_tells_what_was_missed() -> None:
    error = errors.StaleSessionError("stale", expected=1, revision=2, missed=["event"])
    assert (error.expected, error.revision, error.missed) == (1, 2, ["event"])


@pytest.mark.parametrize("theirs", [AdkAlreadyExistsError, AdkSessionNotFoundError])
def test_names_are_adks(theirs: type[Exception]) -> None:
    assert theirs.__name__ in CLASSES


@pytest.mark.parametrize("theirs", [AdkAlreadyExistsError, AdkSessionNotFoundError])
def test_builtin_bases_are_adks(theirs: type[Exception]) -> None:
    builtin_bases = {base for base in theirs.__mro__ if base.__module__ == "builtins"}
    assert builtin_bases <= set(CLASSES[theirs.__name__].__mro__)
