"""Session and Event: ADK's models, immutable where ADK's are shared by accident.

Fields, JSON names and defaults are those of google-adk 2.13. `Event.seq` and the fields of
`Session` after `last_update_time` are threadline's own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self, dataclass_transform

import msgspec

from threadline import clock
from threadline.canonical import Model, ModelMeta, build
from threadline.content import (
    CitationMetadata,
    Content,
    FunctionCall,
    FunctionResponse,
    GoAway,
    GroundingMetadata,
    LogprobsResult,
    SessionResumptionUpdate,
    Transcription,
    UsageMetadata,
    VoiceActivity,
)
from threadline.errors import InvalidInputError
from threadline.state import ReadOnlyDict

if TYPE_CHECKING:
    from collections.abc import Sequence


class ToolConfirmation(Model):
    """A tool's question to the user, and the answer."""

    hint: str = ""
    confirmed: bool = False
    payload: Any = None


class UiWidget(Model):
    """Something to show to the user."""

    id: str
    provider: str
    payload: dict[str, Any] = msgspec.field(default_factory=dict)


class EventCompaction(Model):
    """A summary that stands for the events between two times, in seconds."""

    start_timestamp: float
    end_timestamp: float
    compacted_content: Content


class NodeInfo(Model):
    """Where in a workflow an event comes from."""

    path: str = ""
    output_for: list[str] | None = None
    message_as_output: bool | None = None


class CacheMetadata(Model, rename=None):
    """What a model call had cached; snake_case in JSON, as in ADK."""

    fingerprint: str
    contents_count: int
    cache_name: str | None = None
    expire_time: float | None = None
    invocations_used: int | None = None
    created_at: float | None = None


class EventActions(Model):
    """What an event does beside saying something."""

    state_delta: dict[str, Any] = msgspec.field(default_factory=dict)
    artifact_delta: dict[str, int] = msgspec.field(default_factory=dict)
    requested_auth_configs: dict[str, Any] = msgspec.field(default_factory=dict)
    requested_tool_confirmations: dict[str, ToolConfirmation] = msgspec.field(default_factory=dict)
    skip_summarization: bool | None = None
    transfer_to_agent: str | None = None
    transfer_reason: str | None = None
    escalate: bool | None = None
    compaction: EventCompaction | None = None
    end_of_agent: bool | None = None
    agent_state: dict[str, Any] | None = None
    rewind_before_invocation_id: str | None = None
    route: bool | int | str | list[bool | int | str] | None = None
    render_ui_widgets: list[UiWidget] | None = None
    set_model_response: Any = None


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class EventMeta(ModelMeta):
    """Give `Event(...)` the shorthands of ADK's constructor."""

    def __call__(cls, *args: Any, **fields: Any) -> Any:  # noqa: N805 - a metaclass
        if not fields.keys().isdisjoint(_SHORTHANDS):
            _expand(fields)
        if fields.get("id") == "":
            del fields["id"]
        return super().__call__(*args, **fields)


_SHORTHANDS = frozenset({"message", "state", "route", "node_path"})


def _expand(fields: dict[str, Any]) -> None:
    """Replace shorthands among an event's arguments by what they stand for."""
    message = fields.pop("message", None)
    if message is not None:
        if fields.get("content") is not None:
            raise InvalidInputError("Give an event `content` or `message`, not both.")
        content: Content = build(Content, message, "message")
        fields["content"] = (
            content if content.role else msgspec.structs.replace(content, role="user")
        )
    state, route = fields.pop("state", None), fields.pop("route", None)
    if state is not None or route is not None:
        actions: EventActions = build(
            EventActions, fields.get("actions") or EventActions(), "actions"
        )
        fields["actions"] = msgspec.structs.replace(
            actions,
            state_delta=actions.state_delta if state is None else dict(state),
            route=actions.route if route is None else route,
        )
    node_path = fields.pop("node_path", None)
    if node_path is not None:
        node_info: NodeInfo = build(NodeInfo, fields.get("node_info") or NodeInfo(), "node_info")
        fields["node_info"] = msgspec.structs.replace(node_info, path=node_path)


class Event(Model, metaclass=EventMeta):
    """One thing that happened in a session.

    An event never changes: the store returns a new one that carries its `seq`. Two events
    are equal when they say the same, wherever they are stored: `seq` does not count.

    `content` may be given as a str, a dict or a google-genai object; `message=`, `state=`,
    `route=` and `node_path=` are ADK's shorthands for `content`, `actions.state_delta`,
    `actions.route` and `node_info.path`.
    """

    id: str = msgspec.field(default_factory=clock.new_id)
    timestamp: float = msgspec.field(default_factory=clock.now)
    author: str = ""
    invocation_id: str = ""
    content: Content | None = None
    actions: EventActions = msgspec.field(default_factory=EventActions)
    partial: bool | None = None
    turn_complete: bool | None = None
    turn_complete_reason: str | None = None
    finish_reason: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    interrupted: bool | None = None
    long_running_tool_ids: frozenset[str] | None = None
    branch: str | None = None
    isolation_scope: str | None = None
    output: Any = None
    node_info: NodeInfo = NodeInfo()
    custom_metadata: dict[str, Any] | None = None
    usage_metadata: UsageMetadata | None = None
    model_version: str | None = None
    grounding_metadata: GroundingMetadata | None = None
    citation_metadata: CitationMetadata | None = None
    cache_metadata: CacheMetadata | None = None
    avg_logprobs: float | None = None
    logprobs_result: LogprobsResult | None = None
    input_transcription: Transcription | None = None
    output_transcription: Transcription | None = None
    interaction_id: str | None = None
    interaction_status: str | None = None
    environment_id: str | None = None
    live_session_id: str | None = None
    live_session_resumption_update: SessionResumptionUpdate | None = None
    go_away: GoAway | None = None
    voice_activity: VoiceActivity | None = None
    seq: int | None = None
    """The store's number, 1 for a session's first event; None before it is stored."""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            id: str = "",
            timestamp: float = ...,
            author: str = "",
            invocation_id: str = "",
            content: Any = None,
            actions: Any = ...,
            message: Any = None,
            state: dict[str, Any] | None = None,
            route: bool | int | str | list[bool | int | str] | None = None,
            node_path: str = "",
            partial: bool | None = None,
            turn_complete: bool | None = None,
            error_code: str | None = None,
            error_message: str | None = None,
            interrupted: bool | None = None,
            long_running_tool_ids: Any = None,
            branch: str | None = None,
            custom_metadata: dict[str, Any] | None = None,
            **fields: Any,
        ) -> None: ...

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Event) and self.seq != other.seq:
            other = msgspec.structs.replace(other, seq=self.seq)
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """Make an event from JSON, in either spelling; unknown fields are kept."""
        event = super().from_json(data)
        return event if event.id else msgspec.structs.replace(event, id=clock.new_id())

    @staticmethod
    def new_id() -> str:
        """Return a new event id."""
        return clock.new_id()

    @property
    def message(self) -> Content | None:
        """`content`, under ADK's other name for it."""
        return self.content

    def get_function_calls(self) -> list[FunctionCall]:
        """Return the function calls in the content, in order."""
        parts = self.content.parts if self.content else None
        return [part.function_call for part in parts or () if part.function_call]

    def get_function_responses(self) -> list[FunctionResponse]:
        """Return the function responses in the content, in order."""
        parts = self.content.parts if self.content else None
        return [part.function_response for part in parts or () if part.function_response]

    def has_trailing_code_execution_result(self) -> bool:
        """Whether the last part is the result of code that was run."""
        parts = self.content.parts if self.content else None
        return bool(parts) and parts[-1].code_execution_result is not None  # type: ignore[index]

    def is_final_response(self) -> bool:
        """Whether an agent has nothing more to say in this turn (ADK's rule)."""
        if self.actions.skip_summarization or self.long_running_tool_ids:
            return True
        calls = bool(self.get_function_calls())
        if self.error_code and not self.partial and not calls:
            return True
        return not (
            calls
            or self.get_function_responses()
            or self.partial
            or self.has_trailing_code_execution_result()
        )


class Session(msgspec.Struct, kw_only=True, dict=True):
    """One conversation thread, as it was when it was loaded: a handle.

    `events` is in `seq` order and `state` is read-only: both change when the service appends
    through this handle or refreshes it. A handle belongs to one event loop at a time.
    """

    id: str
    app_name: str
    user_id: str
    state: dict[str, Any] = msgspec.field(default_factory=ReadOnlyDict)
    events: Sequence[Event] = msgspec.field(default_factory=list)
    last_update_time: float = 0.0
    create_time: float = 0.0
    display_name: str | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    expire_time: float | None = None
    revision: int | None = None
    """The `seq` of the newest event this handle knows; None for a handle made by hand."""
    incarnation: int | None = None
    """Which of the sessions that ever had this id the handle belongs to."""

    @property
    def is_complete(self) -> bool:
        """Whether `events` is the whole history up to `revision`, not a part of it.

        False where a part was read and the service does not know how many there are.
        """
        return len(self.events) == self.revision


class GetSessionConfig(msgspec.Struct, kw_only=True, frozen=True):
    """Which events `get_session` loads; the state is always whole.

    `num_recent_events` takes the newest n of those that pass the other filters, 0 takes
    none; `after_timestamp` is inclusive, in seconds; `after_seq` is exclusive.
    """

    num_recent_events: int | None = None
    after_timestamp: float | None = None
    after_seq: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_recent_events", "after_seq"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InvalidInputError(f"{name} must not be negative, got {value}.")
        since = self.after_timestamp
        if since is not None and not (isinstance(since, int | float) and math.isfinite(since)):
            raise InvalidInputError(f"after_timestamp must be a finite number, got {since!r}.")


class ListSessionsResponse(msgspec.Struct, kw_only=True):
    """Sessions without events; `next_cursor` is None on the last page."""

    sessions: list[Session] = msgspec.field(default_factory=list)
    next_cursor: str | None = None

    @property
    def has_more(self) -> bool:
        """Whether there are sessions after these."""
        return self.next_cursor is not None


class ListEventsResponse(msgspec.Struct, kw_only=True):
    """A page of events in `seq` order; `has_more` looks in the direction of the read.

    `incarnation` tells of which of the sessions that had the id they are, where that is known.
    """

    events: Sequence[Event]
    has_more: bool = False
    incarnation: int | None = None
