"""A state machine that drives a service and the reference side by side.

Hypothesis makes up calls with hostile ids, values and interleavings; after each, both sides
must have returned the same or refused with the same error. The reference is the service over
the memory engine.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import hypothesis
import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from threadline import clock
from threadline.canonical import dump, encode
from threadline.content import Content, FunctionCall, Part
from threadline.engines.base import ErasedUser
from threadline.errors import StaleSessionError, ThreadlineError
from threadline.models import Event, EventActions, GetSessionConfig, Session
from threadline.patch import MISSING
from threadline.service import BaseSessionService
from threadline.store import InMemorySessionService
from threadline.testing.service_suite import HOSTILE_IDS, HOSTILE_VALUES, REFUSED_IDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# -- what is made up --------------------------------------------------------------------

# Mostly few ids, so that calls meet each other; sometimes any text at all.
_names = st.sampled_from(["a", "b", "A", "a:b", "é", "%"])
ids = st.one_of(
    _names, _names, st.sampled_from(HOSTILE_IDS), st.sampled_from(REFUSED_IDS), st.text(max_size=8)
)
_any_text = st.text(st.characters(exclude_categories=[]), max_size=12)
_scalars = st.one_of(
    st.sampled_from([value for value in HOSTILE_VALUES if len(repr(value)) < 100]),
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.floats(),
    _any_text,
)
_refused = st.one_of(st.tuples(st.integers()), st.binary(max_size=3), st.just({1: 2}))
values = st.recursive(
    _scalars | _scalars | _scalars | _refused,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_any_text | st.just("k"), inner, max_size=3)
    ),
    max_leaves=6,
)
keys = st.one_of(
    st.sampled_from(
        ["k", "k", "n", "user:k", "user:n", "app:k", "temp:k", "user:app:k", "x:y", ""]
    ),
    _any_text,
)
deltas = st.dictionaries(keys, values, max_size=3)
timestamps = st.one_of(st.integers(0, 20).map(float), st.floats(0, 20), st.sampled_from([-1.0]))
event_ids = st.one_of(st.sampled_from(["e1", "e2", "e3"]), st.uuids().map(str), _any_text)


@st.composite
def events(draw: Any) -> Event:
    """Make up an event: text, a function call with any arguments, a delta, unknown fields."""
    parts: list[Part] = [Part(text=draw(_any_text))]
    if draw(st.booleans()):
        parts.append(Part(function_call=FunctionCall(name="f", args={"v": draw(values)})))
    extra = draw(st.none() | st.dictionaries(st.just("newField"), values, min_size=1))
    return Event(
        id=draw(event_ids) or "e0",
        timestamp=draw(timestamps),
        author=draw(st.sampled_from(["user", "agent", "\x00"])),
        content=draw(st.none() | st.just(Content(parts=parts, role="user"))),
        actions=EventActions(state_delta=draw(deltas)),
        partial=draw(st.sampled_from([None, None, None, False, True])),
        extra=extra,
    )


policies = st.sampled_from([None, "raise", "rebase"])
windows = st.builds(
    GetSessionConfig,
    num_recent_events=st.none() | st.integers(0, 4),
    after_timestamp=st.none() | timestamps,
    after_seq=st.none() | st.integers(0, 4),
)

# -- the two sides ----------------------------------------------------------------------


class Pair(msgspec.Struct):
    """One handle on each side."""

    ours: Session
    reference: Session


class SessionMachine(RuleBasedStateMachine):
    """Drives `make_service()` against the reference; `steps` counts the calls made."""

    make_service: ClassVar[Callable[[], BaseSessionService]]
    reopens: ClassVar[bool] = True
    steps: ClassVar[int] = 0

    pairs: Bundle[Pair] = Bundle("pairs")
    sent: Bundle[Event] = Bundle("sent")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.loop = asyncio.new_event_loop()
        self.ours = type(self).make_service()
        self.reference = InMemorySessionService()
        self._replaced = clock.replaced(now=lambda: self.now)
        self._replaced.__enter__()

    def teardown(self) -> None:
        """Close both sides."""
        self._replaced.__exit__(None, None, None)
        self.loop.run_until_complete(self.ours.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def both(self, call: Callable[[BaseSessionService, int], Awaitable[Any]]) -> tuple[Any, Any]:
        """Make one call on each side, compare the outcomes, return them."""
        type(self).steps += 1
        outcomes: list[tuple[Any, Exception | None]] = []
        for side, service in enumerate((self.ours, self.reference)):
            try:
                outcomes.append((self.loop.run_until_complete(_awaited(call(service, side))), None))
            except ThreadlineError as error:
                outcomes.append((None, error))
        (ours, our_error), (theirs, their_error) = outcomes
        assert shown(our_error) == shown(their_error), (our_error, their_error)
        assert shown(ours) == shown(theirs)
        return ours, theirs

    # -- sessions ---------------------------------------------------------------------------

    @initialize(target=pairs)
    def begin(self) -> Any:
        """Have one session from the start, so that most calls find something."""
        return self.create("a", "a", "a", {}, None, None)

    @rule(
        target=pairs,
        app=ids,
        user=ids,
        id=ids,
        state=deltas,
        ttl=st.none() | st.sampled_from([5.0, 0.0]),
        labels=st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
    )
    def create(self, app: str, user: str, id: str, state: Any, ttl: Any, labels: Any) -> Any:
        """Create a session."""
        return self._pair(
            self.both(
                lambda service, _: service.create_session(
                    app_name=app, user_id=user, session_id=id, state=state, ttl=ttl, labels=labels
                )
            )
        )

    @rule(target=pairs, app=ids, user=ids, id=ids, config=st.none() | windows)
    def get(self, app: str, user: str, id: str, config: Any) -> Any:
        """Load a session by made-up ids."""
        return self._pair(
            self.both(
                lambda service, _: service.get_session(
                    app_name=app, user_id=user, session_id=id, config=config
                )
            )
        )

    @rule(target=pairs, pair=pairs, config=st.none() | windows)
    def load(self, pair: Pair, config: Any) -> Any:
        """Load a known session again, through any filter."""
        known = pair.reference
        return self.get(known.app_name, known.user_id, known.id, config)

    @rule(pair=pairs)
    def refresh(self, pair: Pair) -> None:
        """Bring a handle up to date."""
        self.both(lambda service, side: service.refresh(_side(pair, side)))
        self._check(pair)

    @rule(
        pair=pairs,
        changes=st.fixed_dictionaries(
            {},
            optional={
                "display_name": st.none() | _any_text,
                "labels": st.none() | st.dictionaries(_any_text, _any_text, max_size=2),
                "ttl": st.sampled_from([5.0, 0.0]),
                "expire_time": st.sampled_from([None, 1010.0]),
            },
        ),
    )
    def update(self, pair: Pair, changes: Any) -> None:
        """Change a session's title, labels and expiry."""
        known = pair.reference
        self.both(
            lambda service, _: service.update_session(
                app_name=known.app_name, user_id=known.user_id, session_id=known.id, **changes
            )
        )

    @rule(app=ids, id=ids)
    def look(self, app: str, id: str) -> None:
        """Find sessions by their id, and list the apps."""
        self.both(lambda service, _: service.find_sessions(app_name=app, session_id=id))
        self.both(lambda service, _: service.list_apps())

    @rule(pair=pairs)
    def delete(self, pair: Pair) -> None:
        """Delete a session."""
        known = pair.reference
        self.both(
            lambda service, _: service.delete_session(
                app_name=known.app_name, user_id=known.user_id, session_id=known.id
            )
        )

    @rule(pair=pairs)
    def erase(self, pair: Pair) -> None:
        """Erase a user."""
        known = pair.reference
        self.both(
            lambda service, _: service.erase_user(app_name=known.app_name, user_id=known.user_id)
        )

    @rule(
        app=ids,
        user=st.none() | ids,
        limit=st.none() | st.integers(1, 3),
        order=st.sampled_from(["updated", "created"]),
        descending=st.booleans(),
        include_state=st.booleans(),
    )
    def list_sessions(self, app: str, user: Any, limit: Any, **how: Any) -> None:
        """Walk a list to its end."""
        cursors: list[Any] = [None, None]
        for _ in range(4):
            found = self.both(
                lambda service, side: service.list_sessions(
                    app_name=app,
                    user_id=user,
                    limit=limit,
                    cursor=cursors[side],  # noqa: B023 - called at once
                    **how,
                )
            )
            if found[0] is None or found[0].next_cursor is None:
                return
            cursors = [page.next_cursor for page in found]

    # -- events -----------------------------------------------------------------------------

    @rule(target=sent, pair=pairs, event=events(), policy=policies)
    def append(self, pair: Pair, event: Event, policy: Any) -> Event:
        """Append an event through any handle, however old."""
        self.both(
            lambda service, side: service.append_event(_side(pair, side), event, on_stale=policy)
        )
        self._check(pair)
        return event

    @rule(pair=pairs, event=sent, policy=policies)
    def retry(self, pair: Pair, event: Event, policy: Any) -> None:
        """Append an event again, to its session or to another."""
        self.append(pair, event, policy)

    @rule(pair=pairs, many=st.lists(events(), max_size=4), again=sent, policy=policies)
    def append_many(self, pair: Pair, many: list[Event], again: Event, policy: Any) -> None:
        """Append several events at once, one of them perhaps for the second time."""
        batch = [*many[:2], again, *many[2:]]
        self.both(
            lambda service, side: service.append_events(_side(pair, side), batch, on_stale=policy)
        )
        self._check(pair)

    @rule(
        pair=pairs,
        after_seq=st.none() | st.integers(0, 4),
        before_seq=st.none() | st.integers(0, 6),
        limit=st.integers(1, 3),
        reverse=st.booleans(),
    )
    def list_events(self, pair: Pair, **window: Any) -> None:
        """Read a page of events."""
        known = pair.reference
        self.both(
            lambda service, _: service.list_events(
                app_name=known.app_name, user_id=known.user_id, session_id=known.id, **window
            )
        )

    # -- state ------------------------------------------------------------------------------

    @rule(
        pair=pairs,
        scope=st.sampled_from(["session", "user", "app"]),
        set=st.dictionaries(keys, values, max_size=2),
        delete=st.lists(st.sampled_from(["k", "n"]), max_size=2),
        increment=st.dictionaries(st.sampled_from(["n", "m"]), st.integers(-2, 2), max_size=2),
        expect=st.dictionaries(
            st.sampled_from(["k", "n"]), st.sampled_from([MISSING, None, 1]), max_size=1
        ),
    )
    def patch(self, pair: Pair, scope: str, **changes: Any) -> None:
        """Change some scope's state without an event."""
        known = pair.reference
        self.both(
            lambda service, _: service.patch_state(
                app_name=known.app_name,
                user_id=None if scope == "app" else known.user_id,
                session_id=known.id if scope == "session" else None,
                **changes,
            )
        )

    @rule(app=ids, user=ids)
    def read_state(self, app: str, user: str) -> None:
        """Read a user's and an app's state."""
        self.both(lambda service, _: service.get_user_state(app_name=app, user_id=user))
        self.both(lambda service, _: service.get_app_state(app_name=app))

    # -- time and restarts ------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 5.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass, so that sessions expire."""
        self.now += seconds

    @rule()
    def reopen(self) -> None:
        """Close our side and use it again; what was stored must still be there."""
        if self.reopens:
            self.loop.run_until_complete(self.ours.close())

    # -- comparing --------------------------------------------------------------------------

    def _pair(self, outcomes: tuple[Any, Any]) -> Any:
        if not isinstance(outcomes[0], Session):
            return hypothesis.stateful.multiple()
        return Pair(*outcomes)

    def _check(self, pair: Pair) -> None:
        assert shown(pair.ours) == shown(pair.reference)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _side(pair: Pair, side: int) -> Session:
    return (pair.ours, pair.reference)[side]


def shown(outcome: Any) -> Any:
    """Return what is compared of an outcome: everything but what is an engine's own."""
    if isinstance(outcome, Session):
        fields = {f: getattr(outcome, f) for f in outcome.__struct_fields__}
        del fields["incarnation"]
        fields["events"] = shown(list(outcome.events))
        fields["state"] = {
            # A temp: value is never stored, so it may be anything.
            key: repr(value) if key.startswith("temp:") else encode(value)
            for key, value in outcome.state.items()
        }
        return fields
    if isinstance(outcome, Event):
        # A partial event comes back as it was given, even one that could not be stored.
        return repr(dump(outcome)) if outcome.partial else outcome.to_json()
    if isinstance(outcome, StaleSessionError):
        return type(outcome), outcome.expected, outcome.revision, shown(list(outcome.missed))
    if isinstance(outcome, Exception):
        return type(outcome)
    if isinstance(outcome, list):
        return [shown(item) for item in outcome]
    if isinstance(outcome, dict):
        return {key: encode(value) for key, value in outcome.items()}
    if isinstance(outcome, ErasedUser):
        return outcome
    if isinstance(outcome, msgspec.Struct):  # a page; cursor and incarnation are its service's
        page = {f: getattr(outcome, f) for f in outcome.__struct_fields__}
        page["next_cursor"] = page.get("next_cursor") is not None
        page.pop("incarnation", None)
        return {key: shown(list(item) if key == "events" else item) for key, item in page.items()}
    return outcome


def run_machine(
    make_service: Callable[[], BaseSessionService],
    *,
    examples: int = 20,
    steps_each: int = 50,
    reopens: bool = True,
) -> int:
    """Drive new services from `make_service` against the reference; return the calls made.

    `reopens=False` for stores that forget when they are closed.
    """
    machine: Any = type(
        "Machine",
        (SessionMachine,),
        {"make_service": staticmethod(make_service), "reopens": reopens, "steps": 0},
    )
    run_state_machine_as_test(
        machine,
        settings=hypothesis.settings(
            max_examples=examples,
            stateful_step_count=steps_each,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )
    return int(machine.steps)
