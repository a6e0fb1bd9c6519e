"""One turn of a conversation, from the user's message to the stored answer.

The seven steps of ADK's lifecycle are the seven comments in `run_async`. What an agent yields
is stored before the caller sees it, so whatever the caller saw is in the history; an append
that has begun is finished even if the caller goes away.

A turn does not yet hold the session for itself: two runs of one session at the same time may
interleave. Until it does, run one turn of a session at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, Self

import msgspec

from threadline import blocking, clock
from threadline.canonical import build
from threadline.content import Content
from threadline.errors import InvalidInputError, SessionNotFoundError, StateSchemaError
from threadline.models import Event, EventActions
from threadline.state import State, temp_keys

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from threadline import sync
    from threadline.models import GetSessionConfig, Session
    from threadline.service import BaseSessionService, OnStale

CANCELLED = "CANCELLED"
"""The `error_code` of the event that closes a turn whose caller went away."""


class RunContext:
    """What an agent is given for one turn.

    It reads `session`, `new_message` and `invocation_id`, and writes `state`: a change travels
    with the agent's next event, or with one of its own at the end of the turn.
    """

    def __init__(
        self,
        session: Session,
        new_message: Content | None,
        invocation_id: str,
        state: State,
    ) -> None:
        self.session = session
        self.new_message = new_message
        self.invocation_id = invocation_id
        self.state = state


Yielded = str | Content | Event | None


class AgentObject(Protocol):
    """An agent with a name, which becomes the author of its events."""

    name: str

    def run(self, ctx: RunContext) -> AsyncIterator[Yielded] | Awaitable[Yielded]:
        """Answer the message in `ctx`."""


AgentFunction = Callable[[RunContext], AsyncIterator[Yielded] | Awaitable[Yielded]]


class Runner:
    """Run turns of an agent over sessions of one app.

    `agent` is an async generator function or an async function of one RunContext, or an object
    with `run(ctx)` and a `name`. It yields (or returns) text, Content, Event or partial events;
    partial events are passed on and never stored.
    """

    def __init__(
        self,
        *,
        app_name: str,
        agent: AgentObject | AgentFunction,
        session_service: BaseSessionService | sync.BaseSessionService,
        auto_create_session: bool = False,
    ) -> None:
        run = getattr(agent, "run", agent)
        if not callable(run):
            raise InvalidInputError(
                f"An agent is an async function of one context, or has run(ctx); got {agent!r}."
            )
        self.app_name = app_name
        # A blocking service is given with `threadline.sync`; its async side does the work.
        given: Any = session_service
        self.session_service: BaseSessionService = getattr(given, "asynchronous", given)
        self.auto_create_session = auto_create_session
        self._run: Callable[[RunContext], Any] = run
        self._author = str(getattr(agent, "name", None) or getattr(agent, "__name__", "agent"))

    async def run_async(
        self,
        *,
        user_id: str,
        session_id: str,
        new_message: Any = None,
        state_delta: dict[str, Any] | None = None,
        invocation_id: str | None = None,
        get_session_config: GetSessionConfig | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Run one turn and yield the agent's events as they are produced.

        `new_message` is text, a Content or a google-genai object; `state_delta` is stored with
        it. `get_session_config` limits which events the agent is given. Raises
        SessionNotFoundError without `auto_create_session`. If the agent raises, the turn is
        closed by an event with `error_code` and `error_message`, and the exception comes here.
        """
        message = _user_message(new_message)
        # 1. Start or resume: find the session, or create it.
        session = await self._session(user_id, session_id, get_session_config)
        turn = _Turn(self.session_service, session, invocation_id or f"e-{clock.new_id()}")
        state = State(session.state, schema=getattr(self.session_service, "state_schema", None))
        ctx = RunContext(session, message, turn.invocation_id, state)
        produced = _iterate(self._run, ctx)
        try:
            # 2. Store what the user said, with the changes of state that came along.
            if message is not None or state_delta:
                await turn.store(
                    Event(
                        author="user",
                        content=message,
                        actions=EventActions(state_delta=dict(state_delta or {})),
                        invocation_id=turn.invocation_id,
                    )
                )
            # 3. Give the agent its context, and 4. run it.
            async for item in produced:
                # 5. Package what it says, and what it changed, as an event.
                event = self._event(item, ctx)
                # 6. Append the event, unless it is a partial one, and pass it on.
                yield await turn.store(event)
            rest = ctx.state.take()
            if rest != temp_keys(rest):
                actions = EventActions(state_delta=rest)
                yield await turn.store(self._event(Event(actions=actions), ctx))
        except (GeneratorExit, asyncio.CancelledError):
            try:
                await produced.aclose()
            finally:
                await turn.close(self._author, CANCELLED, "The caller stopped before the end.", ctx)
            raise
        except Exception as error:
            await turn.close(self._author, type(error).__name__, str(error), ctx)
            raise
        finally:
            await produced.aclose()
        # 7. Ready for the next turn: everything is stored, and nothing is held.

    def run(
        self,
        *,
        user_id: str,
        session_id: str,
        new_message: Any = None,
        state_delta: dict[str, Any] | None = None,
        invocation_id: str | None = None,
        get_session_config: GetSessionConfig | None = None,
    ) -> Iterator[Event]:
        """Run one turn, blocking between events; stopping early closes it as cancelled.

        The agent runs on the event loop that `threadline.sync` uses too, so it must not block.
        """
        turn = self.run_async(
            user_id=user_id,
            session_id=session_id,
            new_message=new_message,
            state_delta=state_delta,
            invocation_id=invocation_id,
            get_session_config=get_session_config,
        )
        yield from _blocking(turn)

    async def close(self) -> None:
        """Wait until everything is stored; the session service stays open for its owner."""
        await self.session_service.flush()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _session(
        self, user_id: str, session_id: str, config: GetSessionConfig | None
    ) -> Session:
        found = await self.session_service.get_session(
            app_name=self.app_name, user_id=user_id, session_id=session_id, config=config
        )
        if found is None and self.auto_create_session:
            found = await self.session_service.get_or_create_session(
                app_name=self.app_name, user_id=user_id, session_id=session_id
            )
        if found is None:
            raise SessionNotFoundError(
                f"The session {session_id!r} does not exist for app {self.app_name!r} and user "
                f"{user_id!r}. Create it first, or give the Runner auto_create_session=True."
            )
        return found

    def _event(self, item: Yielded, ctx: RunContext) -> Event:
        """Make an event of what the agent yielded, and give it the state written since."""
        if isinstance(item, Event):
            event = item
        elif hasattr(item, "model_dump") and hasattr(item, "actions"):
            event = Event.from_dict(item)
        else:
            content: Content = build(Content, item, "what the agent yielded")
            event = Event(content=content)
        changes: dict[str, Any] = {}
        if not event.author:
            changes["author"] = self._author
        if not event.invocation_id:
            changes["invocation_id"] = ctx.invocation_id
        if event.content is not None and event.content.role is None:
            changes["content"] = msgspec.structs.replace(event.content, role="model")
        if not event.partial:
            delta = ctx.state.take()
            if delta:
                actions = event.actions
                changes["actions"] = msgspec.structs.replace(
                    actions, state_delta={**delta, **actions.state_delta}
                )
        return msgspec.structs.replace(event, **changes) if changes else event


class _Turn:
    """The writing side of a turn: every append is finished once it has begun."""

    def __init__(self, service: BaseSessionService, session: Session, invocation_id: str) -> None:
        self._service = service
        self._session = session
        self.invocation_id = invocation_id

    async def store(self, event: Event, on_stale: OnStale | None = None) -> Event:
        if event.partial:
            return event
        append = asyncio.ensure_future(
            self._service.append_event(self._session, event, on_stale=on_stale)
        )
        try:
            return await asyncio.shield(append)
        except asyncio.CancelledError:
            # The append goes on, and the turn is closed after it.
            with contextlib.suppress(Exception):
                await asyncio.wait([append])
            raise

    async def close(self, author: str, code: str, message: str, ctx: RunContext) -> None:
        """Close a turn that did not end well, with the state written since the last event."""
        event = Event(
            author=author,
            invocation_id=self.invocation_id,
            error_code=code,
            error_message=message,
            turn_complete=True,
        )
        # That the turn has ended matters more than what it had not said yet: if its last changes
        # of state cannot be stored, it is closed without them. And the reason why it failed
        # matters more than a failure to say so: the store may be the reason.
        with contextlib.suppress(Exception):
            try:
                actions = EventActions(state_delta=ctx.state.take())
                await self.store(msgspec.structs.replace(event, actions=actions), "rebase")
            except (InvalidInputError, StateSchemaError):
                await self.store(event, "rebase")


def _user_message(value: Any) -> Content | None:
    if value is None:
        return None
    message: Content = build(Content, value, "new_message")
    if any(part.function_call for part in message.parts or ()):
        raise InvalidInputError(
            "new_message holds a function call; a user can only answer one, by a function_response."
        )
    return message if message.role else msgspec.structs.replace(message, role="user")


async def _iterate(
    run: Callable[[RunContext], Any], ctx: RunContext
) -> AsyncGenerator[Yielded, None]:
    """Make one stream of what an agent may be: a generator, or one awaited value."""
    answer = run(ctx)
    if inspect.isawaitable(answer):
        item = await answer
        if item is not None:
            yield item
        return
    if not hasattr(answer, "__aiter__"):
        raise InvalidInputError(
            f"The agent returned a {type(answer).__name__}; it must be an async function or an "
            "async generator."
        )
    try:
        async for item in answer:
            if item is not None:
                yield item
    finally:
        if hasattr(answer, "aclose"):
            await answer.aclose()


def _blocking(events: AsyncGenerator[Event, None]) -> Iterator[Event]:
    """Drive an async generator from a blocking caller, in one task for its whole life."""
    produced: SimpleQueue[Event | None] = SimpleQueue()
    wanted: asyncio.Queue[None] = asyncio.Queue()
    failure: list[BaseException] = []

    async def drive() -> None:
        try:
            while True:
                await wanted.get()
                produced.put(await anext(events))
        except (StopAsyncIteration, asyncio.CancelledError):
            pass
        except BaseException as error:
            failure.append(error)
        finally:
            try:
                await events.aclose()
            finally:
                produced.put(None)

    loop, task = blocking.start(drive())
    event: Event | None = None
    try:
        loop.call_soon_threadsafe(wanted.put_nowait, None)
        while (event := produced.get()) is not None:
            yield event
            loop.call_soon_threadsafe(wanted.put_nowait, None)
        if failure:
            raise failure[0]
    finally:
        # Stopped early, by a break or an interrupt: wait until the turn is closed. Not when the
        # interpreter ends, which has already stopped the loop's thread.
        if not task.done() and not sys.is_finalizing():
            loop.call_soon_threadsafe(task.cancel)
            while event is not None or not task.done():
                event = produced.get()
                if event is None:
                    break
