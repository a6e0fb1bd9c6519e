"""The demo: a conversation is killed in the middle and goes on where it stopped.

A process talks to a small scripted agent, over a SQLite file, and is killed with SIGKILL
while a tool is at work. A second process opens the file and finishes the turn, without the
first having left word. What the first was told is stored is compared with what is there.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.text import Text

from threadline import clock
from threadline.connect import connect
from threadline.content import Content, FunctionCall, Part
from threadline.engines.base import Migratable
from threadline.errors import InvalidInputError
from threadline.models import Event
from threadline.runner import Runner
from threadline.store import DatabaseSessionService
from threadline.sync import DatabaseSessionService as BlockingService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from typing import Self

    from rich.console import Console

    from threadline.models import Session
    from threadline.runner import RunContext

APP = "demo"
USER = "ada"
SCRIPT = (
    "Hello! I am Ada. I need a train from Lisbon to Porto on Friday.",
    "The second one, please. A window seat.",
    "Yes, please pay it.",
    "And one back on Sunday, please, the last one, window again.",
    "Thank you. Which reference do I show, and what did it all cost?",
)
KILLED_IN = "pay"
"""The tool during which the first process dies."""

TRAINS = {
    ("Lisbon", "Porto"): [("721", "07:09", 28.5), ("723", "09:39", 31.9), ("127", "14:09", 34.1)],
    ("Porto", "Lisbon"): [("128", "15:44", 31.9), ("130", "18:44", 29.7)],
}
_SLOW_S = 60.0  # How long the payment takes in the process that does not live to see it.


class Check(msgspec.Struct, frozen=True, rename="camel"):
    """One thing that must be so, and whether it is."""

    name: str
    ok: bool


class DemoReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the demo found in the database."""

    session_id: str
    events_at_kill: int
    events: int
    messages: int
    function_calls: int
    partial_events: int
    state: dict[str, Any]
    checks: list[Check]
    bytes_on_disk: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing was missing."""
        return all(check.ok for check in self.checks)


# -- the agent --------------------------------------------------------------------------


class TicketClerk:
    """Sell train tickets by a script; where it stands is in the session and nowhere else.

    It does what the newest event asks for: a call is answered by its tool, anything else by
    the next thought. So a new process goes on wherever the last one stopped.
    """

    name = "clerk"

    def __init__(self, payment_s: float = 0.0) -> None:
        self._payment_s = payment_s

    async def run(self, ctx: RunContext) -> AsyncIterator[Content | Event]:
        """Answer the newest message, or go on with the turn that was cut off."""
        while True:
            calls = ctx.session.events[-1].get_function_calls()
            if calls:
                yield await self._answer(ctx, calls)
                continue
            thought = _think(ctx)
            if isinstance(thought, FunctionCall):
                yield Content(role="model", parts=[Part(function_call=thought)])
                continue
            for word in thought.splitlines(keepends=True):
                yield Event(content=word, partial=True)
            yield Content(role="model", parts=[Part(text=thought)])
            return

    async def _answer(self, ctx: RunContext, calls: list[FunctionCall]) -> Content:
        parts = []
        for call in calls:
            if call.name == KILLED_IN:
                await asyncio.sleep(self._payment_s)
            args = call.args or {}
            response = _TOOLS[call.name or ""](ctx, args)
            parts.append(
                Part.from_function_response(name=call.name or "", response=response, id=call.id)
            )
        return Content(role="user", parts=parts)


def _think(ctx: RunContext) -> FunctionCall | str:
    """Say what to do next: call a tool, or answer."""
    asked, done = _turn(ctx.session)
    said = asked.lower()
    if "which reference" in said:
        tickets = ctx.state["tickets"]
        cost = sum(ticket["eur"] for ticket in tickets)
        shown = " and ".join(ticket["reference"] for ticket in tickets)
        return f"Show {shown}. Together they cost EUR {cost:.2f}.\nHave a good journey, Ada!"
    origin, to, day = "Lisbon", "Porto", "Friday"
    if "back" in said:
        origin, to, day = "Porto", "Lisbon", "Sunday"
    if ("train" in said or "back" in said) and "search_trains" not in done:
        return _call(ctx, "search_trains", {"from": origin, "to": to, "day": day})
    if "train" in said:
        trains = [f"- {t['no']} at {t['leaves']}, EUR {t['eur']:.2f}" for t in ctx.state["found"]]
        return "\n".join([f"On {day} there are these from {origin}:", *trains, "Which one?"])
    if "window" in said and "hold_seat" not in done:
        train = ctx.state["found"][1]["no"]
        return _call(ctx, "hold_seat", {"train": train, "place": "window"})
    if "pay it" not in said and "back" not in said:
        held = ctx.state["held"]
        return f"I hold seat {held['seat']} in train {held['train']}.\nShall I pay it?"
    if KILLED_IN not in done:
        return _call(ctx, KILLED_IN, {"eur": ctx.state["held"]["eur"]})
    ticket = ctx.state["tickets"][-1]
    return f"Paid. Train {ticket['train']}, seat {ticket['seat']}: {ticket['reference']}."


def _turn(session: Session) -> tuple[str, set[str]]:
    """Return what the user said last, and the names of the tools that answered since."""
    done: set[str] = set()
    for event in reversed(session.events):
        if event.author == "user" and event.content is not None:
            return event.content.text, done
        done |= {answer.name or "" for answer in event.get_function_responses()}
    return "", done


def _call(ctx: RunContext, name: str, args: dict[str, Any]) -> FunctionCall:
    return FunctionCall(id=f"call-{len(ctx.session.events)}", name=name, args=args)


def _search_trains(ctx: RunContext, args: Mapping[str, Any]) -> dict[str, Any]:
    trains = [
        {"no": no, "leaves": leaves, "eur": eur}
        for no, leaves, eur in TRAINS[args["from"], args["to"]]
    ]
    ctx.state["found"] = trains
    ctx.state["day"] = args["day"]
    return {"trains": trains}


def _hold_seat(ctx: RunContext, args: Mapping[str, Any]) -> dict[str, Any]:
    (train,) = (train for train in ctx.state["found"] if train["no"] == args["train"])
    held = {"train": train["no"], "seat": f"{train['leaves'][:2]}A", "eur": train["eur"]}
    ctx.state["held"] = held
    ctx.state["user:place"] = args["place"]
    return held


def _pay(ctx: RunContext, args: Mapping[str, Any]) -> dict[str, Any]:
    held = ctx.state["held"]
    tickets = ctx.state.get("tickets", [])
    ticket = {**held, "reference": f"CP-{held['train']}-{len(tickets) + 1}"}
    ctx.state["tickets"] = [*tickets, ticket]
    ctx.state["held"] = None
    return {"paid_eur": args["eur"], "reference": ticket["reference"]}


_TOOLS = {"search_trains": _search_trains, "hold_seat": _hold_seat, KILLED_IN: _pay}


# -- a process that talks ---------------------------------------------------------------


async def talk(db_url: str, session_id: str, payment_s: float) -> None:
    """Hold the conversation from wherever it is, and print what the runner yields as JSON."""
    async with DatabaseSessionService(db_url) as service:
        runner = Runner(app_name=APP, agent=TicketClerk(payment_s), session_service=service)
        ids: dict[str, Any] = {"user_id": USER, "session_id": session_id}
        session = await service.get_or_create_session(
            app_name=APP,
            user_id=USER,
            session_id=session_id,
            display_name="Lisbon to Porto",
        )
        events = session.events
        if events and (events[-1].author == "user" or not events[-1].is_final_response()):
            _tell(resumes=events[-1].invocation_id)
            async for event in runner.run_async(**ids, invocation_id=events[-1].invocation_id):
                _tell(event=event.to_dict())
        for message in SCRIPT[len(_messages(session)) :]:
            _tell(says=message)
            async for event in runner.run_async(**ids, new_message=message):
                _tell(event=event.to_dict())


def _tell(**fact: Any) -> None:
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()


def _messages(session: Session) -> list[str]:
    return [e.content.text for e in session.events if e.author == "user" and e.content]


# -- the process that watches -----------------------------------------------------------


def run(console: Console, db_url: str | None = None) -> DemoReport:
    """Play both lives, narrate them, and check what the database holds."""
    if db_url is not None:
        return _run(console, db_url)
    with tempfile.TemporaryDirectory(prefix="threadline-demo-") as directory:
        return _run(console, f"sqlite:///{directory}/demo.db")


def _run(console: Console, db_url: str) -> DemoReport:
    started = time.perf_counter()
    session_id = f"demo-{clock.new_id()}"
    story = _Story(console)
    engine = connect(db_url)
    if not isinstance(engine, Migratable) or getattr(engine, "path", "") == ":memory:":
        raise InvalidInputError(
            f"{db_url} is gone with its process; the demo needs a database that a second process "
            "can open, like sqlite:///./demo.db"
        )
    _load(db_url, session_id)  # An unusable database is refused here, not in a child.

    with _Process(db_url, session_id, _SLOW_S) as first:
        story.scene(f"Process {first.pid} begins a conversation. It is stored in {db_url}")
        for fact in first.facts():
            story.tell(fact)
            if KILLED_IN in story.called:
                first.kill()  # The call is stored; its answer never comes.
    told = list(story.events)
    at_kill = _load(db_url, session_id)
    story.scene(f"Process {first.pid} is gone: {_ending(first.code)}, while it paid.")
    story.stored(at_kill)

    with _Process(db_url, session_id, 0.0) as second:
        story.scene(f"Process {second.pid} opens the same database and goes on.")
        for fact in second.facts():
            story.tell(fact)
    at_end = _load(db_url, session_id)

    report = DemoReport(
        session_id=session_id,
        events_at_kill=len(at_kill.events) if at_kill else 0,
        events=len(at_end.events) if at_end else 0,
        messages=len(_messages(at_end)) if at_end else 0,
        function_calls=sum(len(event.get_function_calls()) for event in story.events),
        partial_events=story.partial_events,
        state=dict(at_end.state) if at_end else {},
        checks=_checks((first.code, second.code), told, story, at_kill, at_end),
        bytes_on_disk=_bytes_on_disk(db_url),
        seconds=time.perf_counter() - started,
    )
    story.summary(report)
    return report


def _checks(
    codes: tuple[int, int],
    told: list[Event],
    story: _Story,
    at_kill: Session | None,
    at_end: Session | None,
) -> list[Check]:
    """Compare what the processes were told, `told` before the kill, with what is stored."""
    checks = [
        Check("the first process died of SIGKILL", codes[0] == -signal.SIGKILL),
        Check("the second process ended well", codes[1] == 0),
    ]
    if at_kill is None or at_end is None or not at_kill.events:
        return [*checks, Check("the conversation is in the database", False)]
    before, events, last = list(at_kill.events), list(at_end.events), at_kill.events[-1]
    calls = [call.id for event in events for call in event.get_function_calls()]
    answers = [answer.id for event in events for answer in event.get_function_responses()]
    seqs = [event.seq for event in events]
    paid = [ticket["train"] for ticket in at_end.state.get("tickets", ())]
    return [
        *checks,
        Check("what the first was told is stored is there, equal", _clerks(before) == told),
        Check("it was cut off inside of a tool call", _called(last) == [KILLED_IN]),
        Check("the second found all of it and changed none", events[: len(before)] == before),
        Check("it went on in the same turn", story.resumed == [last.invocation_id]),
        Check("what it was told is stored is there, equal", _clerks(events) == story.events),
        Check("the events are numbered 1 to n without a gap", seqs == [*range(1, len(seqs) + 1)]),
        Check("every message of the user is there once", _messages(at_end) == [*SCRIPT]),
        Check("every tool call was answered once", bool(calls) and calls == answers),
        Check("both tickets were paid once", paid == ["723", "130"]),
        Check("the state equals the replay of the events", at_end.state == _replay(events)),
    ]


class _Process:
    """A child process that holds the conversation, and does not outlive the `with`."""

    code = 0
    """How it ended, once it has: the exit code, negative for a signal."""

    def __init__(self, db_url: str, session_id: str, payment_s: float) -> None:
        command = [sys.executable, "-m", __name__, db_url, session_id, str(payment_s)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own module
        self.pid = self._process.pid
        self.kill = self._process.kill  # SIGKILL: no handler runs, nothing is flushed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.kill()
        with self._process:
            self.code = self._process.wait()

    def facts(self) -> Iterator[dict[str, Any]]:
        """Yield what the process tells, until it is gone."""
        if self._process.stdout is not None:
            for line in self._process.stdout:
                yield json.loads(line)


class _Story:
    """What the processes tell, shown and remembered."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._streaming = False
        self.events: list[Event] = []
        self.called: set[str] = set()
        self.resumed: list[str] = []
        self.partial_events = 0

    def scene(self, text: str) -> None:
        self._console.print()
        self._console.print(Text(text, style="bold"), soft_wrap=True)

    def tell(self, fact: dict[str, Any]) -> None:
        if "says" in fact:
            self._console.print()
            self._say("Ada", "bold cyan", fact["says"])
        elif "resumes" in fact:
            self.resumed.append(fact["resumes"])
            self._say("", "dim", "the turn has no end yet: resuming it")
        else:
            self._event(Event.from_dict(fact["event"]))

    def _event(self, event: Event) -> None:
        if event.partial:
            self.partial_events += 1
            if event.content is not None:
                self._stream(event.content.text)
            return
        self.events.append(event)
        for call in event.get_function_calls():
            self.called.add(call.name or "")
            self._say("calls", "yellow", f"{call.name} {json.dumps(call.args)}")
        for answer in event.get_function_responses():
            self._say("gets", "yellow", json.dumps(answer.response))
        self._streaming = False

    def _stream(self, text: str) -> None:
        self._say("" if self._streaming else "Clerk", "bold green", text.rstrip("\n"))
        self._streaming = True

    def _say(self, who: str, style: str, text: str) -> None:
        line = Text(f"  {who:>6}  ", style=style).append(text, style="default not bold")
        self._console.print(line, soft_wrap=True)

    def stored(self, session: Session | None) -> None:
        if session is None:
            self._say("", "red", "Nothing of it is in the database.")
            return
        self._say("", "dim", f"In the database: {len(session.events)} events, state:")
        for key, value in session.state.items():
            self._say("", "dim", f"  {key} = {json.dumps(value)}")

    def summary(self, report: DemoReport) -> None:
        self.scene("What the database holds")
        for check in report.checks:
            mark, style = ("yes", "green") if check.ok else ("NO", "bold red")
            self._say(mark, style, check.name)
        self._console.print()
        counts = (
            f"{report.events} events ({report.events_at_kill} at the kill), {report.messages} "
            f"messages of the user, {report.function_calls} tool calls; {report.partial_events} "
            "partial events were shown and not stored"
        )
        self._say("", "default", counts)
        self._say("", "default", f"state: {', '.join(sorted(report.state))}")
        size = f"{report.bytes_on_disk:,} bytes, " if report.bytes_on_disk else ""
        self._say("", "default", f"{size}{report.seconds:.2f} s")


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _called(event: Event) -> list[str | None]:
    return [call.name for call in event.get_function_calls()]


def _clerks(events: list[Event]) -> list[Event]:
    """Return the agent's events: the runner yields those, and the user's it only stores."""
    return [event for event in events if event.author != "user"]


def _replay(events: list[Event]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for event in events:
        state.update(event.actions.state_delta)
    return state


def _load(db_url: str, session_id: str) -> Session | None:
    with BlockingService(db_url) as service:
        return service.get_session(app_name=APP, user_id=USER, session_id=session_id)


def _bytes_on_disk(db_url: str) -> int:
    path = getattr(connect(db_url), "path", "")
    return sum(
        file.stat().st_size for end in ("", "-wal") if (file := Path(f"{path}{end}")).is_file()
    )


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # without a listener there is nothing to do
    url, session, seconds = sys.argv[1:]
    asyncio.run(talk(url, session, float(seconds)))
