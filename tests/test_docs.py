"""The documentation is true: its code runs, its links lead somewhere, nothing public is missing.

A page is read from top to bottom in one temporary directory, like a reader would:

- a ```python block runs, all blocks of a page in one namespace; a ```text block right after it
  is what it prints (`...` stands for anything);
- a block after `<!-- file: NAME -->` is written to that file;
- in a ```console block the lines with `$ ` are run and must exit with 0, and the lines after
  one are what it prints; `make`, `pip` and `git` are not run, but make's targets must exist;
- a server, begun with a command that ends in `&`, runs until the page ends, on a free port that
  stands for 8080;
- a block after `<!-- not run: REASON -->` is left out, and the reason is printed.
"""

from __future__ import annotations

import contextlib
import doctest
import inspect
import io
import os
import re
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main

import threadline
from servers import free_port
from threadline import errors
from threadline.cli import app
from threadline.migrations import ddl

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted(DOCS.rglob("*.md"))
EVERY_PAGE = pytest.mark.parametrize(
    "page", PAGES, ids=[path.relative_to(ROOT).as_posix() for path in PAGES]
)

RUN = ("threadline", "python", "pytest", "curl")
NOT_RUN = ("make", "pip", "git", "cd")


# -- what a page says -------------------------------------------------------------------


class Block(NamedTuple):
    """A fenced block, the line its code begins on, and the comment right before it."""

    language: str
    code: str
    line: int
    marker: str
    follows: bool
    """Whether only blank lines stand between it and the block before."""


def read_blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page, in order."""
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    before, follows = "", False
    for number, line in lines:
        if line.startswith("```"):
            code = []
            for _, inner in lines:
                if inner.startswith("```"):
                    break
                code.append(inner)
            else:
                raise AssertionError(f"{page}:{number}: this block has no end")
            marker = before if before.startswith("<!--") else ""
            yield Block(line[3:].strip(), "\n".join(code) + "\n", number + 1, marker, follows)
            before, follows = "", True
        elif line.strip():
            before, follows = line.strip(), False


def read_commands(block: Block) -> Iterator[tuple[str, str]]:
    """Yield the commands of a console block, each with the output that is shown below it."""
    command, shown = "", ""
    for line in block.code.replace("\\\n", " ").splitlines(keepends=True):
        if line.startswith("$ "):
            if command:
                yield command, shown
            command, shown = line[2:].strip(), ""
        else:
            assert command, f"line {block.line}: a console block begins with a command"
            shown += line
    yield command, shown


def without_code(page: Path) -> str:
    """Return the prose of a page."""
    return re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )


def cells(page: Path, section: str = "") -> list[list[str]]:
    """Return the rows of a page's tables, of one section if its heading is given."""
    text = page.read_text(encoding="utf-8")
    if section:
        text = re.split(r"^#+ ", text.split(f"{section}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[
            0
        ]
    rows = re.findall(r"^\|(.+)\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in row.split(" | ")] for row in rows if "---" not in row]


def names(page: Path, section: str = "") -> list[str]:
    """Return the code words that begin the rows of a page's tables."""
    found = [re.match(r"`(\w+)", row[0]) for row in cells(page, section)]
    return [match[1] for match in found if match]


# -- the pages run ----------------------------------------------------------------------


@EVERY_PAGE
def test_the_blocks_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    port = str(free_port())
    if "$ curl" in page.read_text(encoding="utf-8") and not shutil.which("curl"):
        pytest.skip(f"NOT TESTED: {page.name} needs curl")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = None
    for block in read_blocks(page):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        block = block._replace(code=block.code.replace("8080", port))
        if reason := re.fullmatch(r"<!-- not run: (.+) -->", block.marker):
            print(f"{where}: not run: {reason[1]}")
            printed = None
        elif name := re.fullmatch(r"<!-- file: (\S+) -->", block.marker):
            Path(name[1]).write_text(block.code, encoding="utf-8")
            printed = None
        elif block.language == "python":
            printed = run_python(block, page, namespace)
        elif block.language == "console":
            for command, shown in read_commands(block):
                if command.endswith(" &"):
                    server = begin_server(command, port)
                    request.addfinalizer(server.wait)
                    request.addfinalizer(server.kill)  # the last one is called first
                else:
                    compare(shown, run_command(command, where), where)
            printed = None
        elif block.language == "text" and block.follows and printed is not None:
            compare(block.code, printed, where)


def run_python(block: Block, page: Path, namespace: dict[str, Any]) -> str:
    """Run a block under its own line numbers and return what it prints."""
    padded = "\n" * (block.line - 1) + block.code
    code = compile(padded, str(page), "exec", dont_inherit=True)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, namespace)
    return output.getvalue()


def begin_server(command: str, port: str) -> subprocess.Popen[bytes]:
    """Begin a server and wait until it takes connections."""
    arguments = shlex.split(command.removesuffix("&"))
    assert arguments[:2] == ["threadline", "serve"]
    server = subprocess.Popen([sys.executable, "-m", "threadline.cli", *arguments[1:]])
    while True:
        assert server.poll() is None
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port))).close()
            return server
        time.sleep(0.05)


def run_command(command: str, where: str) -> str:
    """Run a command as a shell would, with the programs of this environment."""
    program, *arguments = shlex.split(command.replace(".venv/bin/", ""))
    if program == "make":
        targets = re.findall(
            r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
        )
        assert arguments[0] in targets, f"{where}: make has no target {arguments[0]}"
    if program in NOT_RUN:
        return ""
    assert program in RUN, f"{where}: it is not known how to test {program!r}"
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        command.replace(".venv/bin/", ""),
        shell=True,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, f"{where}: {command}\n{done.stdout}{done.stderr}"
    return done.stdout


def compare(shown: str, printed: str, where: str) -> None:
    """Compare what a page shows with what came; nothing shown is nothing claimed."""
    if not shown.strip():
        return
    lines = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    alike = doctest.OutputChecker().check_output(
        shown.strip() + "\n", lines + "\n", doctest.ELLIPSIS
    )
    assert alike, f"{where} shows\n{shown}\nbut it prints\n{printed}"


@EVERY_PAGE
def test_the_commands_of_a_page_have_their_options(page: Path) -> None:
    """Also those that are not run, and those in the running text."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"(?:^\$ (?:\.venv/bin/)?|`)threadline ([a-z][^`\n]*)", text, re.MULTILINE)
    for line in found:
        words = re.split(r"&&|\||>", line)[0].split()
        command = " ".join(word for word in words[:2] if re.fullmatch(r"[a-z-]+", word))
        known = next((path for path in (command, words[0]) if path in OPTIONS), None)
        if known is None:
            assert words[0] in GROUPS, f"there is no command `threadline {line}`"
            continue
        unknown = {word for word in words if word.startswith("--")} - OPTIONS[known]
        assert not unknown, f"`threadline {known}` has no {unknown}"


# -- the links lead somewhere -----------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as a Git forge makes them."""
    found = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


def links(page: Path) -> list[str]:
    """Return the targets of a page's links that stay inside of the project."""
    found = re.findall(r"\]\(([^)\s]+)\)", without_code(page))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@EVERY_PAGE
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{page.name}: no heading for {link}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    pending = [ROOT / "README.md"]
    while pending:
        page = pending.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        pending += [(page.parent / link.partition("#")[0]).resolve() for link in links(page)]
    assert sorted(set(PAGES) - reached) == []


# -- nothing public is missing ----------------------------------------------------------

API = DOCS / "reference" / "api.md"
ERRORS = DOCS / "reference" / "errors.md"
CLI = DOCS / "reference" / "cli.md"
SCHEMA = DOCS / "reference" / "schema.md"


def public(kind: type) -> set[str]:
    """Return the public methods of a class."""
    return {name for name, _ in inspect.getmembers(kind, callable) if not name.startswith("_")}


def test_the_api_page_has_every_public_name_and_no_other() -> None:
    listed = [name for name in names(API) if name in threadline.__all__]
    error_names = {name for name in threadline.__all__ if name.endswith("Error")}
    assert sorted(set(threadline.__all__) - error_names - set(listed)) == []
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ("## Methods of a session service", threadline.EngineSessionService),
        ("## Methods of a runner", threadline.Runner),
        ("## Methods of a state", threadline.State),
    ],
)
def test_the_api_page_has_every_method_and_no_other(section: str, kind: type) -> None:
    assert sorted(names(API, section)) == sorted(public(kind))


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ("## Fields of a session", threadline.Session),
        ("## Fields of an event", threadline.Event),
    ],
)
def test_the_api_page_has_every_field(section: str, kind: Any) -> None:
    text = API.read_text(encoding="utf-8").split(f"{section}\n", 1)[1].split("\n## ", 1)[0]
    missing = [name for name in kind.__struct_fields__ if f"`{name}`" not in text]
    assert missing == []


def test_the_errors_page_has_every_class_and_no_other() -> None:
    classes = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.ThreadlineError)
    ]
    assert sorted(names(ERRORS)) == sorted(classes)


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the commands below a group, by the words that call them."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands(typer.main.get_command(app)))
GROUPS = {path.split()[0] for path in COMMANDS if " " in path}
OPTIONS = {
    path: {"--help"} | {name for option in command.params for name in option.opts if "-" in name}
    for path, command in COMMANDS.items()
}


@pytest.mark.parametrize("path", COMMANDS)
def test_the_cli_page_has_every_option_of_a_command_and_no_other(path: str) -> None:
    text = CLI.read_text(encoding="utf-8")
    heading = f"\n## threadline {path}\n"
    assert text.count(heading) == 1
    section = text.split(heading, 1)[1].split("\n## ", 1)[0]
    listed = set(re.findall(r"^\| `(-[\w-]+)", section, re.MULTILINE))
    listed |= set(re.findall(r"^\| `-[\w-]+[^`|]*`, `(-[\w-]+)", section, re.MULTILINE))
    assert listed == OPTIONS[path] - {"--help", "-h"}
    for option in COMMANDS[path].params:
        if option.param_type_name == "argument":
            assert f"`{option.metavar}`" in section


def test_the_cli_page_has_no_other_command() -> None:
    headings = re.findall(r"^## threadline (.+)$", CLI.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == list(COMMANDS)


def test_the_schema_page_has_every_table_view_and_column() -> None:
    db = sqlite3.connect(":memory:")
    db.executescript(ddl("sqlite"))
    text = SCHEMA.read_text(encoding="utf-8")
    kept = db.execute("SELECT type, name FROM sqlite_master WHERE name LIKE 'threadline%'")
    for kind, name in kept.fetchall():
        assert f"`{name}`" in text, name
        if kind in ("table", "view"):
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({name})")]
            assert names(SCHEMA, f"### {name}") == columns
    db.close()
