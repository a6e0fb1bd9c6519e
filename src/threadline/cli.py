"""The command line: it parses and prints; the work is elsewhere.

Exit codes: 0 done, 1 refused or failed (one message on stderr), 2 wrong usage. With `--json`
stdout holds one JSON document and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from threadline.errors import SessionNotFoundError, StorageError, ThreadlineError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from rich.console import Console

    from threadline.content import Part
    from threadline.importers.adk import AdkReport
    from threadline.importers.adk_export import ExportReport
    from threadline.importers.openai_chat import ImportReport
    from threadline.models import Event, Session
    from threadline.store import DatabaseSessionService

# What a command needs is imported when it runs: `threadline --help` is to be quick.

PAGE = 1000
"""Sessions that are read at a time where a session is looked for among all users."""


def _group(help: str) -> typer.Typer:
    return typer.Typer(
        help=help,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _group("Sessions of AI agents in a database: try it, import, look, migrate.")
import_app = _group("Bring conversations in from elsewhere.")
export_app = _group("Take conversations out for another system.")
sessions_app = _group("List, show and delete sessions.")
users_app = _group("Erase users.")
keys_app = _group("Make, list and revoke the keys of a server.")
db_app = _group("Look at a database's schema and bring it up to date.")
app.add_typer(import_app, name="import")
app.add_typer(export_app, name="export")
app.add_typer(sessions_app, name="sessions")
app.add_typer(users_app, name="users")
app.add_typer(db_app, name="db")
app.add_typer(keys_app, name="keys")

Db = Annotated[
    str,
    typer.Option(
        "--db",
        envvar="THREADLINE_DB",
        metavar="URL",
        help="The database, like sqlite:///./sessions.db (four slashes for an absolute path).",
    ),
]
App = Annotated[str, typer.Option("--app", metavar="NAME", help="The app the sessions are of.")]
AnyUser = Annotated[
    str | None,
    typer.Option("--user", metavar="ID", help="The user the sessions are of. Default: any."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="The session's id.")]


@app.command()
def version(as_json: Json = False) -> None:
    """Print the version."""
    import threadline

    if as_json:
        _print_json({"version": threadline.__version__})
    else:
        typer.echo(threadline.__version__)


@app.command(
    epilog="Example: threadline demo --db sqlite:///./demo.db && "
    "threadline sessions list --db sqlite:///./demo.db --app demo"
)
def demo(
    db: Annotated[
        str | None,
        typer.Option("--db", metavar="URL", help="Where to store it. Default: a temporary file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Kill a conversation in the middle, go on with it, and check that nothing is missing.

    Exit code 1 if anything is.
    """
    from threadline import demo as play

    with _one_message():
        # Where JSON goes to stdout, the story goes to stderr.
        report = play.run(_console(stderr=as_json), db)
    if as_json:
        from msgspec import to_builtins

        _print_json({"ok": report.ok, **to_builtins(report)})
    if not report.ok:
        _fail("the demo found something missing; see above.")


# -- import -----------------------------------------------------------------------------


@import_app.command(
    "openai-chat",
    epilog="Example: threadline import openai-chat talks.jsonl --db sqlite:///./sessions.db",
)
def import_openai_chat(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.jsonl",
            exists=True,
            dir_okay=False,
            readable=True,
            help="One conversation a line: a list of messages, or an object that has it under "
            "`messages` or `traj`.",
        ),
    ],
    db: Db,
    app_name: Annotated[
        str, typer.Option("--app", metavar="NAME", help="The app of the new sessions.")
    ] = "openai-chat",
    user_id: Annotated[
        str, typer.Option("--user", metavar="ID", help="The user of the new sessions.")
    ] = "imported",
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave bad lines out and list them, instead of stopping."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Import conversations in the form of OpenAI's chat API, tool calls included.

    Running it twice adds nothing; a conversation that has grown gets its new messages. A session
    gets the line's `id`, `session_id` or `conversation_id`, else one derived from how the
    conversation opens; the line's other fields become its state.
    """
    from threadline.importers.openai_chat import import_file

    with _one_message(), _progress("Importing") as advance:
        report = _with_service(
            db,
            lambda service: import_file(
                service,
                file,
                app_name=app_name,
                user_id=user_id,
                skip_bad=skip_bad,
                on_progress=lambda at: advance(at.bytes_read, at.bytes_total, at.events),
            ),
            create=True,
        )
    if as_json:
        from msgspec import to_builtins

        _print_json(to_builtins(report))
    else:
        _print_import(report)


def _print_import(report: ImportReport) -> None:
    for bad in report.bad_lines:
        typer.echo(_visible(f"Left out line {bad.line}: {bad.reason}"), err=True)
    left_out = f", {len(report.bad_lines):,} lines left out" if report.bad_lines else ""
    typer.echo(
        f"{report.conversations:,} conversations, {report.events_read:,} messages: "
        f"{report.sessions_created:,} sessions created, {report.events_added:,} events added, "
        f"{report.events_present:,} already there{left_out}"
    )
    _print_rate(report.events_read, report.seconds)


def _print_rate(events: int, seconds: float) -> None:
    rate = events / seconds if seconds else 0.0
    typer.echo(f"{seconds:.2f} s, {rate:,.0f} events per second")


@contextlib.contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int | None, int], None]]:
    """Show a bar on a terminal, and give what moves it: (done, of how many, events)."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (
        TextColumn(title),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[events]:,} events"),
    )
    console = _console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", events=0)
        yield lambda done, total, events: progress.update(
            task, completed=done, total=total, events=events
        )


@import_app.command(
    "adk", epilog="Example: threadline import adk old.db --db sqlite:///./sessions.db --dry-run"
)
def import_adk(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="google-adk's database: a SQLite file, or a URL as google-adk takes it.",
        ),
    ],
    db: Db,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and report all of it; write nothing.")
    ] = False,
    time_zone: Annotated[
        str,
        typer.Option(
            "--time-zone",
            metavar="NAME",
            help="The zone of the processes that wrote a database of before google-adk 1.22.",
        ),
    ] = "UTC",
    overwrite_state: Annotated[
        bool,
        typer.Option(
            "--overwrite-state",
            help="Where the state of an app or user differs, take the source's values.",
        ),
    ] = False,
    quarantine: Annotated[
        Path | None,
        typer.Option(
            "--quarantine",
            metavar="FILE",
            dir_okay=False,
            help="Where rows that are left out are kept. Default: NAME.quarantine.jsonl here.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Import a database that google-adk wrote, whichever of its releases it was.

    Running it twice adds nothing, and one that was stopped goes on. What was stored is read back
    and compared. Exit code 1 if rows were left out or the target has something else; the rest is
    imported in any case.
    """
    import asyncio

    from threadline.connect import connect
    from threadline.importers import adk

    async def run(advance: Callable[[int, int | None, int], None]) -> AdkReport:
        engine = connect(db)
        try:
            return await adk.import_adk(
                source,
                engine,
                time_zone=time_zone,
                overwrite_state=overwrite_state,
                quarantine=quarantine or f"{_stem(source)}.quarantine.jsonl",
                dry_run=dry_run,
                on_progress=lambda at: advance(at.rows, at.rows_total, at.rows),
            )
        finally:
            await engine.close()

    with _one_message(), _progress("Reading" if dry_run else "Importing") as advance:
        report = asyncio.run(run(advance))
    if as_json:
        from msgspec import to_builtins

        _print_json(to_builtins(report))
    else:
        _print_adk_import(report)
    if not report.is_whole:
        _fail(
            f"{len(report.damaged):,} rows could not be read, {len(report.conflicts):,} things are "
            "otherwise in the target; see above."
        )


def _stem(source: str) -> str:
    """Return the name of the file or database in a URL."""
    return Path(source.partition("?")[0]).name or "adk"


def _print_adk_import(report: AdkReport) -> None:
    for left in report.damaged:
        typer.echo(_visible(f"Left out {left.table} {' '.join(left.key)}: {left.reason}"), err=True)
    for left in report.conflicts:
        typer.echo(_visible(f"Kept {left.table} {' '.join(left.key)}: {left.reason}"), err=True)
    zone = f", times read in {report.time_zone}" if report.time_zone else ""
    typer.echo(
        f"google-adk's schema {report.source_schema}{zone}: {report.sessions:,} sessions, "
        f"{report.events:,} events, {report.orphans:,} events of deleted sessions, "
        f"{len(report.damaged):,} damaged rows"
    )
    if report.temp_keys:
        typer.echo(f"{report.temp_keys:,} temp: values in events were left out")
    if report.dry_run:
        typer.echo("Nothing was written.")
    else:
        typer.echo(
            f"{report.sessions_created:,} sessions created, {report.events_added:,} events added, "
            f"{report.events_present:,} already there, {report.state_keys_set:,} keys of apps' and "
            "users' state set; read back and compared"
        )
    if report.quarantine:
        typer.echo(_visible(f"Rows that were left out are in {report.quarantine}"))
    _print_rate(report.events, report.seconds)


# -- export -----------------------------------------------------------------------------


@export_app.command(
    "adk",
    epilog="Example: threadline export adk adk.db --db sqlite:///./sessions.db --app demo",
)
def export_adk(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="A new SQLite file, or the URL of a database without tables."
        ),
    ],
    db: Db,
    app_names: Annotated[
        list[str], typer.Option("--app", metavar="NAME", help="An app to export; may be repeated.")
    ],
    as_json: Json = False,
) -> None:
    """Write sessions and state into a new database that google-adk 2.13 opens.

    Exit code 1 if a session does not fit into google-adk's tables; the others are written.
    """
    from threadline.importers import adk_export

    with _one_message(), _progress("Exporting") as advance:
        report: ExportReport = _with_service(
            db,
            lambda service: adk_export.export_adk(
                service,
                target,
                app_names=app_names,
                on_progress=lambda _, events: advance(0, None, events),
            ),
        )
    if as_json:
        from msgspec import to_builtins

        _print_json(to_builtins(report))
    else:
        _print_export(report)
    if report.refused:
        _fail(f"{len(report.refused):,} sessions do not fit into google-adk's tables; see above.")


def _print_export(report: ExportReport) -> None:
    for one in report.refused:
        typer.echo(_visible(f"Left out session {one.session_id!r}: {one.reason}"), err=True)
    typer.echo(
        f"{report.sessions:,} sessions of {report.users:,} users, {report.events:,} events written"
    )
    without_place = {
        "display names": report.display_names,
        "sets of labels": report.labels,
        "expiry times": report.expire_times,
    }
    for name, count in without_place.items():
        if count:
            typer.echo(f"{count:,} {name} were left out: google-adk has no place for them")
    if report.events_with_unknown_fields:
        typer.echo(
            f"{report.events_with_unknown_fields:,} events have fields that google-adk 2.13 may "
            "not know; it refuses to read sessions that have such a field inside of content or "
            "actions"
        )
    if report.events_moved:
        typer.echo(
            f"{report.events_moved:,} events are not later than the one before; their time column "
            "was moved so that google-adk keeps the order"
        )
    _print_rate(report.events, report.seconds)


# -- copy -------------------------------------------------------------------------------


@app.command(
    epilog="Example: threadline copy sqlite:///./sessions.db vertex://my-project/us-central1 "
    "--app my-app --to-app 1234567890"
)
def copy(
    source: Annotated[
        str, typer.Argument(metavar="FROM", help="A database's URL, http(s):// or vertex://.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="TO", help="As FROM. A new database gets its tables.")
    ],
    app_name: Annotated[
        list[str] | None,
        typer.Option("--app", metavar="NAME", help="An app to copy; repeatable. Default: all."),
    ] = None,
    to_app: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The app's new name, such as an engine's id."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="THREADLINE_TOKEN", metavar="KEY", help="The key of a server at http(s)://."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Copy sessions from one service to another, and compare what arrived.

    Running it again goes on where it broke off; what is there already is only compared.
    """
    import asyncio

    from threadline.copying import CopyReport, copy_sessions, service_of

    async def run() -> CopyReport:
        async with (
            service_of(source, token=token) as one,
            service_of(target, token=token, create=True) as other,
        ):
            return await copy_sessions(one, other, app_names=app_name, to_app=to_app)

    with _one_message():
        if "://" in source and not source.startswith(("http:", "https:", "vertex:")):
            _must_exist(source)
        report = asyncio.run(run())
    if as_json:
        from msgspec import to_builtins

        _print_json(to_builtins(report))
        return
    typer.echo(
        f"{report.sessions:,} sessions, {report.sessions_created:,} of them created: "
        f"{report.events_added:,} events added, {report.events_present:,} already there"
    )


# -- sessions ---------------------------------------------------------------------------


@sessions_app.command(
    "list",
    epilog="Example: threadline sessions list --db sqlite:///./sessions.db --app demo --limit 20",
)
def list_sessions(
    db: Db,
    app_name: App,
    user_id: AnyUser = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to list.")] = 50,
    cursor: Annotated[
        str | None,
        typer.Option(metavar="CURSOR", help="Go on after a page, with what it printed at its end."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List sessions, those updated last first."""
    with _one_message():
        page = _with_service(
            db,
            lambda service: service.list_sessions(
                app_name=app_name,
                user_id=user_id,
                limit=limit,
                cursor=cursor,
                descending=True,
                include_state=False,
            ),
        )
    if as_json:
        found = [_session_to_json(session) for session in page.sessions]
        _print_json({"sessions": found, "nextCursor": page.next_cursor})
        return
    rows = [
        (
            session.id,
            session.user_id,
            _moment(session.last_update_time),
            f"{session.revision:,}",
            session.display_name or "",
        )
        for session in page.sessions
    ]
    _print_table(("SESSION", "USER", "UPDATED", "EVENTS", "NAME"), rows)
    if page.next_cursor:
        typer.echo(f"More: --cursor {page.next_cursor}")


@sessions_app.command(
    epilog="Example: threadline sessions show SESSION --db sqlite:///./sessions.db "
    "--app demo --last 10"
)
def show(
    session_id: SessionId,
    db: Db,
    app_name: App,
    user_id: AnyUser = None,
    last: Annotated[
        int | None, typer.Option(min=0, help="Show only the newest events, this many.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a conversation: who said what, the tool calls, the state."""
    from threadline.models import GetSessionConfig

    async def load(service: DatabaseSessionService) -> Session:
        user = await _owner(service, app_name, user_id, session_id)
        session = await service.get_session(
            app_name=app_name,
            user_id=user,
            session_id=session_id,
            config=GetSessionConfig(num_recent_events=last),
        )
        return session or _no_session(app_name, session_id)

    with _one_message():
        session = _with_service(db, load)
        list(session.events)  # decodes them: one that cannot be read is an error like any other
    if as_json:
        events = [event.to_dict() for event in session.events]
        _print_json({**_session_to_json(session), "state": session.state, "events": events})
    else:
        _print_session(session)


def _print_session(session: Session) -> None:
    console = _console()
    console.print(_text(f"{session.id}", "bold"), soft_wrap=True)
    facts = {
        "app": session.app_name,
        "user": session.user_id,
        "name": session.display_name,
        "labels": ", ".join(f"{key}={value}" for key, value in session.labels.items()),
        "created": _moment(session.create_time),
        "updated": _moment(session.last_update_time),
        "expires": session.expire_time and _moment(session.expire_time),
        "events": f"{session.revision:,}",
    }
    for name, value in facts.items():
        if value:
            console.print(_text(f"  {name:<8} {value}", "dim"), soft_wrap=True)
    if not session.is_complete:
        console.print(_text(f"The newest {len(session.events):,} of them:", "dim"))
    turn = None
    for event in session.events:
        if event.invocation_id != turn:
            turn = event.invocation_id
            console.print()
        _print_event(console, event)
    console.print()
    console.print(_text("State" if session.state else "No state", "bold"))
    for key, value in session.state.items():
        console.print(_text(f"  {key} = {_compact(value)}"), soft_wrap=True)


def _print_event(console: Console, event: Event) -> None:
    content = event.content
    style = "bold green" if content is not None and content.role == "model" else "bold cyan"
    head = _text(f"{event.seq:>5}  {event.author or '-'}", style)
    console.print(head.append(_visible(f"  {_moment(event.timestamp)}"), "dim"), soft_wrap=True)
    for part in (content.parts if content is not None else None) or ():
        kind, said = _part(part)
        for n, line in enumerate(said.splitlines() or [""]):
            label = kind if n == 0 else ""
            console.print(_text(f"       {label}{line}", "yellow" if kind else ""), soft_wrap=True)
    if event.error_code or event.error_message:
        error = f"       error {event.error_code or ''} {event.error_message or ''}"
        console.print(_text(error, "red"), soft_wrap=True)
    if event.actions.state_delta:
        changed = ", ".join(event.actions.state_delta)
        console.print(_text(f"       sets {changed}", "dim"), soft_wrap=True)


def _part(part: Part) -> tuple[str, str]:
    """Say what a part is, and its text; text itself needs no label."""
    if part.text is not None:
        return ("thinks ", part.text) if part.thought else ("", part.text)
    if part.function_call:
        return "calls ", f"{part.function_call.name} {_compact(part.function_call.args or {})}"
    if part.function_response:
        answer = part.function_response
        return "gets ", f"{answer.name} {_compact(answer.response)}"
    if part.inline_data:
        size = len(part.inline_data.data or b"")
        return "data ", f"{part.inline_data.mime_type}, {size:,} bytes"
    return "", _compact(part.to_dict())


@sessions_app.command(
    epilog="Example: threadline sessions delete SESSION --db sqlite:///./sessions.db "
    "--app demo --yes"
)
def delete(
    session_id: SessionId,
    db: Db,
    app_name: App,
    user_id: AnyUser = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete a session with its events and its state; the user's and the app's state stay."""

    async def remove(service: DatabaseSessionService) -> tuple[str, int]:
        from threadline.models import GetSessionConfig

        user = await _owner(service, app_name, user_id, session_id)
        ids = {"app_name": app_name, "user_id": user, "session_id": session_id}
        session = await service.get_session(
            app_name=app_name,
            user_id=user,
            session_id=session_id,
            config=GetSessionConfig(num_recent_events=0),
        )
        if session is None:
            _no_session(app_name, session_id)
        question = (
            f"Delete session {session_id!r} of user {user!r} with {session.revision:,} events?"
        )
        if not yes:
            typer.confirm(_visible(question), abort=True, err=True)
        await service.delete_session(**ids)
        return user, session.revision or 0

    with _one_message():
        user, events = _with_service(db, remove)
    if as_json:
        _print_json({"deleted": session_id, "userId": user, "events": events})
    else:
        typer.echo(_visible(f"Deleted session {session_id!r} with {events:,} events."))


async def _owner(
    service: DatabaseSessionService, app_name: str, user_id: str | None, session_id: str
) -> str:
    """Return the user whose session it is, looking among all if none is given."""
    if user_id is not None:
        return user_id
    owners: list[str] = []
    cursor = None
    while True:
        page = await service.list_sessions(
            app_name=app_name, limit=PAGE, cursor=cursor, include_state=False
        )
        owners += [session.user_id for session in page.sessions if session.id == session_id]
        cursor = page.next_cursor
        if cursor is None:
            break
    if not owners:
        _no_session(app_name, session_id)
    if len(owners) > 1:
        raise SessionNotFoundError(
            f"Several users have a session {session_id!r}: name one of them with --user: "
            f"{', '.join(owners[:10])}"
        )
    return owners[0]


def _no_session(app_name: str, session_id: str) -> NoReturn:
    raise SessionNotFoundError(f"App {app_name!r} has no session {session_id!r}.")


# -- users ------------------------------------------------------------------------------


@users_app.command(
    epilog="Example: threadline users erase USER --db sqlite:///./sessions.db --app demo --yes"
)
def erase(
    user_id: Annotated[str, typer.Argument(metavar="USER", help="The user's id.")],
    db: Db,
    app_name: App,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Erase all that an app has of a user, sessions and state; the app's state stays."""
    with _one_message():
        if not yes:
            question = f"Erase all sessions and the state of user {user_id!r} in app {app_name!r}?"
            typer.confirm(_visible(question), abort=True, err=True)
        erased = _with_service(
            db, lambda service: service.erase_user(app_name=app_name, user_id=user_id)
        )
    if as_json:
        _print_json(
            {
                "erased": user_id,
                "sessions": erased.sessions,
                "events": erased.events,
                "stateKeys": erased.state_keys,
            }
        )
    else:
        typer.echo(
            _visible(
                f"Erased user {user_id!r}: {erased.sessions:,} sessions, {erased.events:,} events, "
                f"{erased.state_keys:,} state keys."
            )
        )


# -- serve ------------------------------------------------------------------------------

Keys = Annotated[
    Path,
    typer.Option(
        "--keys", envvar="THREADLINE_KEYS", metavar="FILE", help="The file that holds the keys."
    ),
]


@app.command(epilog="Example: threadline serve --db sqlite:///./sessions.db --keys keys.json")
def serve(
    db: Db,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    workers: Annotated[int, typer.Option(min=1, help="How many processes.")] = 1,
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys",
            envvar="THREADLINE_KEYS",
            metavar="FILE",
            help="The file of keys. Without it, only this machine is served.",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A web origin whose pages may call; repeatable."),
    ] = None,
    adk_ui: Annotated[
        bool, typer.Option("--adk-ui", help="Serve ADK's web UI at /dev-ui/; needs google-adk.")
    ] = False,
    max_body_mb: Annotated[int, typer.Option(min=1, help="The largest request, in MB.")] = 64,
    drain_seconds: Annotated[
        int, typer.Option(min=0, help="How long requests under way may take at the end.")
    ] = 30,
    grpc_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="A port for gRPC, which is what ADK's client for Go speaks."
        ),
    ] = None,
) -> None:
    """Serve a database's sessions over HTTP, until SIGTERM.

    The address, `/docs` and the rest of the interface are in docs/reference/rest.md.
    """
    with _one_message():
        from threadline.server import process

        process.set_up_logging()
        process.serve(
            process.Settings(
                db=db,
                host=host,
                port=port,
                workers=workers,
                keys=None if keys is None else str(keys),
                cors_origins=tuple(cors_origin or ()),
                body_bytes_max=max_body_mb * 1_000_000,
                with_adk_ui=adk_ui,
                drain_s=drain_seconds,
                grpc_port=grpc_port,
            )
        )


@keys_app.command(
    "create",
    epilog="Example: threadline keys create --keys keys.json --app demo --write",
)
def create_key(
    keys: Keys,
    app_name: Annotated[
        list[str] | None,
        typer.Option("--app", metavar="NAME", help="An app it is for; repeatable. Default: all."),
    ] = None,
    user_id: Annotated[
        list[str] | None,
        typer.Option("--user", metavar="ID", help="A user it is for; repeatable. Default: all."),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="It may write, not only read.")] = False,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once: the file holds only its hash."""
    with _one_message():
        from threadline.server.auth import KeyFile

        token = KeyFile(keys).create(apps=app_name, users=user_id, writes=write)
    if as_json:
        _print_json({"key": token})
    else:
        typer.echo(token)


@keys_app.command("list", epilog="Example: threadline keys list --keys keys.json")
def list_keys(keys: Keys, as_json: Json = False) -> None:
    """List the keys: their ids, and what they reach."""
    with _one_message():
        from threadline.server.auth import KeyFile

        found = KeyFile(keys).all()
    if as_json:
        _print_json(
            [
                {"id": key.id, "apps": key.apps, "users": key.users, "writes": key.writes}
                for key in found
            ]
        )
        return
    rows = [
        (
            key.id,
            _moment(key.created),
            "all" if key.apps is None else ", ".join(key.apps),
            "all" if key.users is None else ", ".join(key.users),
            "read, write" if key.writes else "read",
        )
        for key in found
    ]
    _print_table(("KEY", "CREATED", "APPS", "USERS", "MAY"), rows)


@keys_app.command("revoke", epilog="Example: threadline keys revoke 1a2b3c4d --keys keys.json")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="The key's id, as `list` has it.")],
    keys: Keys,
    as_json: Json = False,
) -> None:
    """Revoke a key: a server that is running refuses it from then on."""
    with _one_message():
        from threadline.server.auth import KeyFile

        KeyFile(keys).revoke(key_id)
    if as_json:
        _print_json({"revoked": key_id})
    else:
        typer.echo(_visible(f"Revoked {key_id}."))


# -- db ---------------------------------------------------------------------------------


@db_app.command(epilog="Example: threadline db status --db sqlite:///./sessions.db")
def status(db: Db, as_json: Json = False) -> None:
    """Tell which version the database's tables have, and which migrations are due."""
    from threadline import migrations

    with _one_message():
        _must_exist(db)
        found = _with_engine(db, migrations.status)
    if as_json:
        from msgspec import to_builtins

        _print_json(to_builtins(found))
        return
    there = "no tables yet" if found.version is None else f"schema version {found.version}"
    typer.echo(f"{there}, newest is {found.latest}")
    for name in found.pending:
        typer.echo(f"due: {name}")
    if found.pending:
        typer.echo("Run `threadline db upgrade` to apply what is due.")


@db_app.command(epilog="Example: threadline db upgrade --db sqlite:///./sessions.db")
def upgrade(db: Db, as_json: Json = False) -> None:
    """Apply the migrations that are due; a new database gets its tables."""
    from threadline import migrations

    with _one_message():
        applied = _with_engine(db, migrations.upgrade)
    if as_json:
        _print_json({"applied": applied})
        return
    for name in applied:
        typer.echo(f"applied: {name}")
    if not applied:
        typer.echo("Nothing is due.")


@db_app.command(epilog="Example: threadline db ddl --db sqlite:///./sessions.db > tables.sql")
def ddl(db: Db, as_json: Json = False) -> None:
    """Print the SQL of all migrations, for those who run it by hand; connect to nothing."""
    from threadline import migrations
    from threadline.connect import connect

    with _one_message():
        engine = connect(db)
        dialect = getattr(engine, "dialect", "memory")
        sql = migrations.ddl(dialect, getattr(engine, "schema", None))
        if hasattr(engine, "ddl"):  # the names of its tables are its own
            sql = engine.ddl(sql)
    if as_json:
        _print_json({"dialect": dialect, "ddl": sql})
    else:
        typer.echo(sql, nl=False)


# -- running ----------------------------------------------------------------------------


def _with_service(
    db: str, work: Callable[[DatabaseSessionService], Awaitable[Any]], *, create: bool = False
) -> Any:
    """Run work on the service of a database, which must be there unless it may be created."""
    import asyncio

    from threadline.store import DatabaseSessionService

    if not create:
        _must_exist(db)

    async def run() -> Any:
        async with DatabaseSessionService(db, auto_migrate=create) as service:
            return await work(service)

    return asyncio.run(run())


def _with_engine(db: str, work: Callable[[Any], Awaitable[Any]]) -> Any:
    import asyncio

    from threadline.connect import connect

    async def run() -> Any:
        engine = connect(db)
        await engine.open()
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def _must_exist(db: str) -> None:
    """Refuse a file that is not there: opening it to look would make an empty one."""
    from threadline.connect import connect

    path = getattr(connect(db), "path", ":memory:")
    if path != ":memory:" and not Path(path).exists():
        raise StorageError(f"There is no database file {path}.")


@contextlib.contextmanager
def _one_message() -> Iterator[None]:
    """Turn an error that can be expected into one message and exit code 1."""
    try:
        yield
    except BrokenPipeError:
        raise  # The reader of our output has seen enough; typer ends quietly.
    except (ThreadlineError, OSError) as error:
        _fail("\n".join([str(error), *getattr(error, "__notes__", ())]))


def _fail(message: str) -> NoReturn:
    typer.echo(_visible(f"threadline: {message}"), err=True)
    raise typer.Exit(1)


# -- printing ---------------------------------------------------------------------------


def _print_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print columns as wide as they must be: an id that is cut short is of no use."""
    from rich.cells import cell_len

    lines = [head, *(tuple(map(_visible, row)) for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)
        )
        typer.echo("  ".join(cells).rstrip())


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def _text(text: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(_visible(text), style=style)


def _visible(text: str) -> str:
    """Return text that can be printed anywhere and tells a terminal to do nothing."""
    shown = "".join(
        character
        if character in "\n\t" or character.isprintable()
        else character.encode("unicode_escape").decode()
        for character in text
    )
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def _moment(seconds: float) -> str:
    """Return a time in UTC, to the second."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _session_to_json(session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "appName": session.app_name,
        "userId": session.user_id,
        "createTime": session.create_time,
        "lastUpdateTime": session.last_update_time,
        "expireTime": session.expire_time,
        "displayName": session.display_name,
        "labels": session.labels,
        "revision": session.revision,
    }


if __name__ == "__main__":
    app()
