"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import threadline
from threadline import Content, Event, FunctionCall, Part
from threadline.cli import app
from threadline.sync import DatabaseSessionService

TALK = [
    {"role": "user", "content": "To Porto?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "search", "arguments": '{"n":1}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c", "name": "search", "content": "721"},
    {"role": "assistant", "content": "The 721.\nAt 09:09."},
]


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("THREADLINE_DB", raising=False)
    return f"sqlite:///{tmp_path}/sessions.db"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "talks.jsonl"
    lines = [{"id": "a", "messages": TALK, "reward": 1.0}, {"id": "b", "messages": TALK[:1]}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def filled(url: str) -> str:
    """A database in which two users have sessions, and one session exists for both."""
    with DatabaseSessionService(url) as service:
        for user, session_id in (("ada", "one"), ("ada", "both"), ("bob", "both")):
            session = service.create_session(
                app_name="shop", user_id=user, session_id=session_id, display_name="About shoes"
            )
            call = FunctionCall(id="c", name="find", args={"size": 38})
            events = [
                Event(author="user", content="Shoes?", invocation_id="t1", timestamp=100.0),
                Event(
                    author="clerk",
                    content=Content(role="model", parts=[Part(function_call=call)]),
                    actions={"state_delta": {"size": 38}},
                    timestamp=101.0,
                ),
            ]
            service.append_events(session, events)
    return url


def run(*arguments: str, code: int = 0, text: str | None = None) -> Result:
    """Run a command in this process and check its exit code."""
    done = CliRunner().invoke(app, [*arguments], input=text)
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def run_json(*arguments: str) -> Any:
    """Run a command with --json: stdout is one document, and stderr empty."""
    done = run(*arguments, "--json")
    assert done.stderr == ""
    return json.loads(done.stdout)


# -- help, usage, version ---------------------------------------------------------------

COMMANDS = [
    (),
    ("version",),
    ("demo",),
    ("import",),
    ("import", "openai-chat"),
    ("sessions",),
    ("sessions", "list"),
    ("sessions", "show"),
    ("sessions", "delete"),
    ("users",),
    ("users", "erase"),
    ("db",),
    ("db", "status"),
    ("db", "upgrade"),
    ("db", "ddl"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: tuple[str, ...]) -> None:
    shown = run(*command, "--help").stdout
    assert "Usage:" in shown
    if len(command) == 2 or command == ("demo",):
        assert "Example: threadline " + " ".join(command) in " ".join(shown.split())


def test_help_loads_neither_the_store_nor_the_driver() -> None:
    program = (
        "import sys\n"
        "from threadline import cli\n"
        "try: cli.app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'sqlite3', 'asyncio', 'threadline.demo', 'threadline.importers.openai_chat'}\n"
        "print(sorted(heavy & set(sys.modules) - before), file=sys.stderr)\n"
    )
    # What `import threadline` itself brings is measured by the benchmarks.
    program = "import sys\nimport threadline\nbefore = set(sys.modules)\n" + program
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("sessions", "list", "--app", "shop"),
        ("sessions", "list", "--db", "sqlite:///x.db"),
        ("sessions", "list", "--db", "sqlite:///x.db", "--app", "shop", "--limit", "0"),
        ("import", "openai-chat", "no-such-file.jsonl", "--db", "sqlite:///x.db"),
    ],
    ids=" ".join,
)
def test_wrong_usage_has_exit_code_2(arguments: tuple[str, ...], url: str) -> None:
    assert run(*arguments, code=2).stdout == ""


def test_version() -> None:
    assert run("version").stdout == f"{threadline.__version__}\n"
    assert run_json("version") == {"version": threadline.__version__}


def test_the_installed_command_is_this_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "threadline.cli", "version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == (f"{threadline.__version__}\n", "")


# -- errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sessions.db", "write sqlite:///./sessions.db"),
        ("sqlite://sessions.db", "write sqlite:///sessions.db"),
        ("oracle://host/db", "'oracle' is unknown"),
        ("sqlite:///no-such.db", "There is no database file no-such.db."),
    ],
)
def test_a_url_that_cannot_work_is_one_message(
    url: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("sessions", "list", "--db", url, "--app", "shop", code=1)
    assert done.stdout == ""
    assert done.stderr.startswith("threadline: ")
    assert reason in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ("sessions", "list", "--app", "shop"),
        ("sessions", "show", "s", "--app", "shop"),
        ("sessions", "delete", "s", "--app", "shop", "--yes"),
        ("users", "erase", "u", "--app", "shop", "--yes"),
        ("db", "status"),
        ("db", "upgrade"),
        ("demo",),
    ],
    ids=" ".join,
)
def test_a_file_that_is_no_database_is_one_message(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear Sir or Madam, " * 100)
    done = run(*command, "--db", f"sqlite:///{path}", code=1)
    assert done.stderr.startswith("threadline: ")
    assert "Traceback" not in done.output
    assert path.read_text() == "Dear Sir or Madam, " * 100


def test_the_database_may_come_from_the_environment(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THREADLINE_DB", filled)
    assert len(run_json("sessions", "list", "--app", "shop")["sessions"]) == 3


# -- import -----------------------------------------------------------------------------


def test_an_import_says_what_it_did_and_how_fast(url: str, file: Path) -> None:
    first = run("import", "openai-chat", str(file), "--db", url)
    counts, rate = first.stdout.splitlines()
    assert counts == (
        "2 conversations, 5 messages: 2 sessions created, 5 events added, 0 already there"
    )
    assert re.fullmatch(r"\d+\.\d\d s, [\d,]+ events per second", rate)
    second = run("import", "openai-chat", str(file), "--db", url)
    assert "0 sessions created, 0 events added, 5 already there" in second.stdout


def test_an_import_as_json(url: str, file: Path) -> None:
    report = run_json("import", "openai-chat", str(file), "--db", url, "--app", "x", "--user", "y")
    assert report.pop("seconds") > 0
    assert report == {
        "conversations": 2,
        "eventsRead": 5,
        "sessionsCreated": 2,
        "eventsAdded": 5,
        "eventsPresent": 0,
        "statesUpdated": 0,
        "badLines": [],
    }
    listed = run_json("sessions", "list", "--db", url, "--app", "x", "--user", "y")
    assert {session["id"] for session in listed["sessions"]} == {"a", "b"}


def test_a_bad_line_stops_the_import_and_says_what_is_in(url: str, file: Path) -> None:
    file.write_text(file.read_text() + "oops\n")
    done = run("import", "openai-chat", str(file), "--db", url, code=1)
    assert done.stdout == ""
    assert "threadline: Line 3: this is not JSON" in done.stderr
    assert "2 conversations are in (5 events added)" in done.stderr


def test_bad_lines_can_be_left_out(url: str, file: Path) -> None:
    file.write_text("oops\n" + file.read_text())
    done = run("import", "openai-chat", str(file), "--db", url, "--skip-bad")
    assert "Left out line 1: this is not JSON" in done.stderr
    assert "5 events added, 0 already there, 1 lines left out" in done.stdout
    (bad,) = run_json("import", "openai-chat", str(file), "--db", url, "--skip-bad")["badLines"]
    assert bad["line"] == 1


# -- sessions ---------------------------------------------------------------------------


def test_a_list_shows_ids_whole_and_the_newest_first(filled: str) -> None:
    with DatabaseSessionService(filled) as service:
        session = service.create_session(app_name="shop", user_id="ada", session_id="x" * 150)
        service.append_event(session, Event(author="user", content="Hi", timestamp=200.0))
    lines = run("sessions", "list", "--db", filled, "--app", "shop").stdout.splitlines()
    assert lines[0].split() == ["SESSION", "USER", "UPDATED", "EVENTS", "NAME"]
    assert lines[1].split() == ["x" * 150, "ada", "1970-01-01", "00:03:20", "1"]
    assert len(lines) == 5
    assert "About shoes" in lines[2]


def test_a_list_is_paged(filled: str) -> None:
    seen: list[tuple[str, str]] = []
    cursor: list[str] = []
    for _ in range(3):
        page = run_json(
            "sessions", "list", "--db", filled, "--app", "shop", "--limit", "1", *cursor
        )
        seen += [(session["userId"], session["id"]) for session in page["sessions"]]
        cursor = ["--cursor", str(page["nextCursor"])]
    assert page["nextCursor"] is None
    assert sorted(seen) == [("ada", "both"), ("ada", "one"), ("bob", "both")]
    shown = run("sessions", "list", "--db", filled, "--app", "shop", "--limit", "2").stdout
    assert shown.splitlines()[-1].startswith("More: --cursor ")


def test_a_list_may_be_of_one_user_and_empty(filled: str) -> None:
    command = ("sessions", "list", "--db", filled, "--app", "shop", "--user")
    assert [s["id"] for s in run_json(*command, "bob")["sessions"]] == ["both"]
    assert run_json(*command, "eve") == {"sessions": [], "nextCursor": None}
    assert run(*command, "eve").stdout.splitlines() == ["SESSION  USER  UPDATED  EVENTS  NAME"]


def test_show_prints_who_said_what_the_calls_and_the_state(url: str, file: Path) -> None:
    run("import", "openai-chat", str(file), "--db", url)
    shown = run("sessions", "show", "a", "--db", url, "--app", "openai-chat").stdout
    for line in (
        "  user     imported",
        "  events   4",
        "    1  user  1970-01-01 00:00:00",
        "       To Porto?",
        '       calls search {"n": 1}',
        '       gets search {"result": "721"}',
        "       The 721.",
        "       At 09:09.",
        "  reward = 1.0",
    ):
        assert line in shown.splitlines()


def test_show_as_json_has_events_and_state(filled: str) -> None:
    shown = run_json("sessions", "show", "one", "--db", filled, "--app", "shop")
    assert (shown["id"], shown["userId"], shown["state"]) == ("one", "ada", {"size": 38})
    assert [event["seq"] for event in shown["events"]] == [1, 2]
    events = [Event.from_dict(event) for event in shown["events"]]
    assert events[1].get_function_calls()[0].args == {"size": 38}


def test_show_may_be_of_the_newest_events_only(filled: str) -> None:
    shown = run(
        "sessions", "show", "one", "--db", filled, "--app", "shop", "--last", "1"
    ).stdout.splitlines()
    assert "The newest 1 of them:" in shown
    assert "       Shoes?" not in shown
    assert '       calls find {"size": 38}' in shown


@pytest.mark.parametrize("command", [("show",), ("delete", "--yes")])
def test_a_session_that_is_not_there_is_an_error(filled: str, command: tuple[str, ...]) -> None:
    options = ("--db", filled, "--app", "shop")
    for more in ((), ("--user", "bob")):
        done = run("sessions", *command, "nope", *options, *more, code=1)
        assert done.stderr == "threadline: App 'shop' has no session 'nope'.\n"


def test_an_id_that_several_users_have_needs_the_user(filled: str) -> None:
    command = ("sessions", "show", "both", "--db", filled, "--app", "shop")
    assert "name one of them with --user: ada, bob" in run(*command, code=1).stderr
    assert run_json(*command, "--user", "bob")["userId"] == "bob"


def test_delete_asks_first(filled: str) -> None:
    command = ("sessions", "delete", "one", "--db", filled, "--app", "shop")
    refused = run(*command, code=1, text="n\n")
    assert "Delete session 'one' of user 'ada' with 2 events?" in refused.stderr
    run(*command, code=1, text="")
    assert run_json("sessions", "show", *command[2:])["id"] == "one"
    assert "Deleted session 'one' with 2 events." in run(*command, text="y\n").stdout
    run("sessions", "show", *command[2:], code=1)


def test_delete_with_yes_does_not_ask(filled: str) -> None:
    command = ("sessions", "delete", "both", "--db", filled, "--app", "shop", "--user", "bob")
    assert run_json(*command, "--yes") == {"deleted": "both", "userId": "bob", "events": 2}
    listed = run_json("sessions", "list", "--db", filled, "--app", "shop")
    assert {(s["userId"], s["id"]) for s in listed["sessions"]} == {("ada", "both"), ("ada", "one")}


def test_erase_asks_first_and_tells_how_much_it_was(filled: str) -> None:
    command = ("users", "erase", "ada", "--db", filled, "--app", "shop")
    refused = run(*command, code=1, text="n\n")
    assert "Erase all sessions and the state of user 'ada' in app 'shop'?" in refused.stderr
    assert len(run_json("sessions", "list", "--db", filled, "--app", "shop")["sessions"]) == 3
    done = run(*command, text="y\n")
    assert "Erased user 'ada': 2 sessions, 4 events, 2 state keys." in done.stdout
    left = run_json("sessions", "list", "--db", filled, "--app", "shop")["sessions"]
    assert [session["userId"] for session in left] == ["bob"]


def test_erase_of_a_user_who_has_nothing_is_no_error(filled: str) -> None:
    erased = run_json("users", "erase", "eve", "--db", filled, "--app", "shop", "--yes")
    assert erased == {"erased": "eve", "sessions": 0, "events": 0, "stateKeys": 0}


HOSTILE = "\x1b[31mred\x07 [bold]markup[/bold] \ud800 \u202egnp.exe \x9b"


def test_what_was_said_can_do_nothing_to_the_terminal(url: str) -> None:
    with DatabaseSessionService(url) as service:
        session = service.create_session(
            app_name="shop",
            user_id="\x1b[2J",
            session_id="\x1b]0;title",
            state={"\x1b[0m": HOSTILE},
            display_name="\x1b[5m",
        )
        service.append_event(session, Event(author="\x1b[1m", content=HOSTILE))
        service.append_event(session, Event(author="x", error_message=HOSTILE))
    for command in (
        ("sessions", "list"),
        ("sessions", "show", "\x1b]0;title"),
        ("sessions", "show", "\x1b]0;other"),
        ("sessions", "delete", "\x1b]0;title"),
        ("users", "erase", "\x1b[2J"),
    ):
        done = CliRunner().invoke(app, [*command, "--db", url, "--app", "shop"])
        assert isinstance(done.exception, SystemExit | None)
        assert not set(done.output) & set("\x1b\x07\x9b\ud800\u202e")
    shown = run("sessions", "show", "\x1b]0;title", "--db", url, "--app", "shop").stdout
    assert r"\x1b[31mred\x07 [bold]markup[/bold] \ud800 \u202egnp.exe \x9b" in shown


def test_a_terminal_of_another_encoding_gets_escapes(url: str) -> None:
    with DatabaseSessionService(url) as service:
        session = service.create_session(app_name="shop", user_id="ada", session_id="é")
        service.append_event(session, Event(author="user", content="😀 ü"))
    done = subprocess.run(
        [sys.executable, "-m", "threadline.cli", "sessions", "show", "é", "--app", "shop"],
        capture_output=True,
        check=False,
        env={**os.environ, "THREADLINE_DB": url, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert rb"\U0001f600 \xfc" in done.stdout


def test_an_output_that_nobody_reads_is_no_failure_to_tell(filled: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "threadline.cli", "sessions", "list", "--app", "shop"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "THREADLINE_DB": filled},
    )
    os.close(writer)
    assert "Traceback" not in done.stderr


# -- db ---------------------------------------------------------------------------------


def test_a_new_database_is_upgraded_once(url: str, tmp_path: Path) -> None:
    (tmp_path / "sessions.db").touch()
    before = run_json("db", "status", "--db", url)
    assert before["version"] is None
    assert len(before["pending"]) == before["latest"]
    shown = run("db", "status", "--db", url).stdout
    assert "no tables yet" in shown
    assert f"due: {before['pending'][0]}" in shown

    assert run_json("db", "upgrade", "--db", url) == {"applied": before["pending"]}
    assert run("db", "upgrade", "--db", url).stdout == "Nothing is due.\n"
    after = run_json("db", "status", "--db", url)
    assert (after["version"], after["pending"]) == (before["latest"], [])


def test_looking_at_sessions_changes_no_schema(url: str, tmp_path: Path) -> None:
    (tmp_path / "sessions.db").touch()
    done = run("sessions", "list", "--db", url, "--app", "shop", code=1)
    assert "threadline db upgrade" in done.stderr
    assert run_json("db", "status", "--db", url)["version"] is None


def test_the_printed_ddl_makes_a_usable_database(url: str, tmp_path: Path) -> None:
    import sqlite3

    ddl = run("db", "ddl", "--db", url).stdout
    assert run_json("db", "ddl", "--db", url) == {"dialect": "sqlite", "ddl": ddl}
    assert list(tmp_path.iterdir()) == []
    database = sqlite3.connect(tmp_path / "sessions.db")
    database.executescript(ddl)
    database.close()
    assert run_json("db", "status", "--db", url)["pending"] == []
    assert run_json("sessions", "list", "--db", url, "--app", "shop")["sessions"] == []


def test_a_store_without_tables_has_no_ddl() -> None:
    assert "no tables" in run("db", "ddl", "--db", "memory://", code=1).stderr.lower()
