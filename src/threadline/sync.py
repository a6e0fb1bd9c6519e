"""The same services, blocking: same names, same arguments, same types.

    from threadline.sync import DatabaseSessionService

Every call hands the async service's coroutine to one private event loop on a thread and waits;
there is no second implementation. Inside of a running event loop use `threadline` itself: a
blocking call there would hold up the loop.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal, Self

from msgspec import UNSET, UnsetType

from threadline import remote, service, store
from threadline.blocking import call
from threadline.vertex import service as vertex

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    import asyncpg
    from google.auth.credentials import Credentials
    from sqlalchemy.ext.asyncio import AsyncEngine

    # The rest of the catalogue, for type checkers; at run time it comes by `__getattr__`.
    from threadline import MISSING as MISSING
    from threadline import AlreadyExistsError as AlreadyExistsError
    from threadline import Blob as Blob
    from threadline import CacheMetadata as CacheMetadata
    from threadline import CodeExecutionResult as CodeExecutionResult
    from threadline import Content as Content
    from threadline import DamagedDataError as DamagedDataError
    from threadline import EngineClosedError as EngineClosedError
    from threadline import ErasedUser as ErasedUser
    from threadline import Event as Event
    from threadline import EventActions as EventActions
    from threadline import EventCompaction as EventCompaction
    from threadline import EventConflictError as EventConflictError
    from threadline import ExecutableCode as ExecutableCode
    from threadline import FileData as FileData
    from threadline import ForeignDatabaseError as ForeignDatabaseError
    from threadline import FunctionCall as FunctionCall
    from threadline import FunctionResponse as FunctionResponse
    from threadline import FunctionResponsePart as FunctionResponsePart
    from threadline import GetSessionConfig as GetSessionConfig
    from threadline import History as History
    from threadline import IncompleteReadError as IncompleteReadError
    from threadline import InvalidIdError as InvalidIdError
    from threadline import InvalidInputError as InvalidInputError
    from threadline import ListEventsResponse as ListEventsResponse
    from threadline import ListSessionsResponse as ListSessionsResponse
    from threadline import MissingExtraError as MissingExtraError
    from threadline import NewerSchemaError as NewerSchemaError
    from threadline import NodeInfo as NodeInfo
    from threadline import NotADatabaseError as NotADatabaseError
    from threadline import OutdatedSchemaError as OutdatedSchemaError
    from threadline import Part as Part
    from threadline import PermissionDeniedError as PermissionDeniedError
    from threadline import QuotaExceededError as QuotaExceededError
    from threadline import ReadOnlyDatabaseError as ReadOnlyDatabaseError
    from threadline import ReadOnlyStateError as ReadOnlyStateError
    from threadline import RequestTooLargeError as RequestTooLargeError
    from threadline import RunContext as RunContext
    from threadline import Runner as Runner
    from threadline import Session as Session
    from threadline import SessionNotFoundError as SessionNotFoundError
    from threadline import StaleSessionError as StaleSessionError
    from threadline import State as State
    from threadline import StateConflictError as StateConflictError
    from threadline import StateSchemaError as StateSchemaError
    from threadline import StorageBusyError as StorageBusyError
    from threadline import StorageError as StorageError
    from threadline import StorageFullError as StorageFullError
    from threadline import StorageUnavailableError as StorageUnavailableError
    from threadline import ThreadlineError as ThreadlineError
    from threadline import ToolConfirmation as ToolConfirmation
    from threadline import Transcription as Transcription
    from threadline import UiWidget as UiWidget
    from threadline import UnauthenticatedError as UnauthenticatedError
    from threadline import UnsupportedOperationError as UnsupportedOperationError
    from threadline import UnsupportedUrlError as UnsupportedUrlError
    from threadline import UnsupportedValueError as UnsupportedValueError
    from threadline import UsageMetadata as UsageMetadata
    from threadline.engines.base import Engine
    from threadline.service import OnStale, Order


class BaseSessionService:
    """A blocking face of the async service in `asynchronous`; its methods say what they do."""

    asynchronous: service.BaseSessionService

    def create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        state: dict[str, Any] | None = None,
        session_id: str | None = None,
        ttl: float | dt.timedelta | None = None,
        expire_time: float | dt.datetime | None = None,
        display_name: str | None = None,
        labels: dict[str, str] | None = None,
    ) -> Session:
        """Create a session, with a new id if none is given."""
        return call(
            self.asynchronous.create_session(
                app_name=app_name,
                user_id=user_id,
                state=state,
                session_id=session_id,
                ttl=ttl,
                expire_time=expire_time,
                display_name=display_name,
                labels=labels,
            )
        )

    def get_or_create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        state: dict[str, Any] | None = None,
        ttl: float | dt.timedelta | None = None,
        expire_time: float | dt.datetime | None = None,
        display_name: str | None = None,
        labels: dict[str, str] | None = None,
    ) -> Session:
        """Return the session, created with these arguments if there is none."""
        return call(
            self.asynchronous.get_or_create_session(
                app_name=app_name,
                user_id=user_id,
                session_id=session_id,
                state=state,
                ttl=ttl,
                expire_time=expire_time,
                display_name=display_name,
                labels=labels,
            )
        )

    def get_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        config: GetSessionConfig | None = None,
    ) -> Session | None:
        """Return a handle of the session with its merged state and events, or None."""
        return call(
            self.asynchronous.get_session(
                app_name=app_name, user_id=user_id, session_id=session_id, config=config
            )
        )

    def list_sessions(
        self,
        *,
        app_name: str,
        user_id: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        order: Order = "updated",
        descending: bool = False,
        include_state: bool = True,
    ) -> ListSessionsResponse:
        """List sessions without their events, of all users if `user_id` is None."""
        return call(
            self.asynchronous.list_sessions(
                app_name=app_name,
                user_id=user_id,
                limit=limit,
                cursor=cursor,
                order=order,
                descending=descending,
                include_state=include_state,
            )
        )

    def list_events(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        after_seq: int | None = None,
        before_seq: int | None = None,
        limit: int = 100,
        reverse: bool = False,
    ) -> ListEventsResponse:
        """Return a page of events with `after_seq < seq < before_seq`."""
        return call(
            self.asynchronous.list_events(
                app_name=app_name,
                user_id=user_id,
                session_id=session_id,
                after_seq=after_seq,
                before_seq=before_seq,
                limit=limit,
                reverse=reverse,
            )
        )

    def append_event(
        self, session: Session, event: Event, *, on_stale: OnStale | None = None
    ) -> Event:
        """Store an event with its state delta and return it with its seq."""
        return call(self.asynchronous.append_event(session, event, on_stale=on_stale))

    def append_events(
        self, session: Session, events: Sequence[Event], *, on_stale: OnStale | None = None
    ) -> list[Event]:
        """Store several events in one transaction: all of them, or none."""
        return call(self.asynchronous.append_events(session, events, on_stale=on_stale))

    def refresh(self, session: Session) -> Session:
        """Bring a handle up to date, reading only the events it has not seen; return it."""
        return call(self.asynchronous.refresh(session))

    def find_sessions(self, *, app_name: str, session_id: str) -> list[Session]:
        """Return handles of the app's sessions with this id, one for each user that has one."""
        return call(self.asynchronous.find_sessions(app_name=app_name, session_id=session_id))

    def list_apps(self) -> list[str]:
        """Return the names of the apps that have sessions, in order."""
        return call(self.asynchronous.list_apps())

    def update_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        display_name: str | UnsetType | None = UNSET,
        labels: dict[str, str] | UnsetType | None = UNSET,
        ttl: float | dt.timedelta | None = None,
        expire_time: float | dt.datetime | UnsetType | None = UNSET,
    ) -> Session:
        """Change a session's title, labels or expiry; return a handle of it without events."""
        return call(
            self.asynchronous.update_session(
                app_name=app_name,
                user_id=user_id,
                session_id=session_id,
                display_name=display_name,
                labels=labels,
                ttl=ttl,
                expire_time=expire_time,
            )
        )

    def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Remove a session, its events and its state; a missing one is no error."""
        call(
            self.asynchronous.delete_session(
                app_name=app_name, user_id=user_id, session_id=session_id
            )
        )

    def erase_user(self, *, app_name: str, user_id: str) -> ErasedUser:
        """Remove all of a user in an app: sessions, expired ones too, and the user's state."""
        return call(self.asynchronous.erase_user(app_name=app_name, user_id=user_id))

    def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        """Return a copy of the user's state, keys without their prefix."""
        return call(self.asynchronous.get_user_state(app_name=app_name, user_id=user_id))

    def get_app_state(self, *, app_name: str) -> dict[str, Any]:
        """Return a copy of the app's state, keys without their prefix."""
        return call(self.asynchronous.get_app_state(app_name=app_name))

    def patch_state(
        self,
        *,
        app_name: str,
        user_id: str | None = None,
        session_id: str | None = None,
        set: Mapping[str, Any] | None = None,
        delete: Iterable[str] = (),
        increment: Mapping[str, float] | None = None,
        expect: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Change state without an event, atomically; return the new values of the keys set."""
        return call(
            self.asynchronous.patch_state(
                app_name=app_name,
                user_id=user_id,
                session_id=session_id,
                set=set,
                delete=delete,
                increment=increment,
                expect=expect,
            )
        )

    def flush(self) -> None:
        """Do nothing: an append that returned is stored."""
        call(self.asynchronous.flush())

    def close(self) -> None:
        """Let go of connections and threads."""
        call(self.asynchronous.close())

    def __enter__(self) -> Self:
        call(self.asynchronous.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EngineSessionService(BaseSessionService):
    """A blocking face of a service over an engine."""

    asynchronous: store.EngineSessionService

    def __init__(
        self,
        engine: Engine,
        *,
        on_stale: OnStale = "raise",
        auto_migrate: bool = True,
        state_schema: type | None = None,
    ) -> None:
        self.asynchronous = store.EngineSessionService(
            engine, on_stale=on_stale, auto_migrate=auto_migrate, state_schema=state_schema
        )

    def prepare_tables(self) -> None:
        """Connect, and create or upgrade the tables, ahead of the first request."""
        call(self.asynchronous.prepare_tables())


class InMemorySessionService(EngineSessionService):
    """Sessions in the memory of this process, for tests and throw-away runs."""

    def __init__(self, *, on_stale: OnStale = "raise", state_schema: type | None = None) -> None:
        self.asynchronous = store.InMemorySessionService(
            on_stale=on_stale, state_schema=state_schema
        )


class DatabaseSessionService(EngineSessionService):
    """Sessions in the database that a URL names; see `threadline.connect`."""

    def __init__(
        self,
        db_url: str | asyncpg.Pool | AsyncEngine,
        *,
        on_stale: OnStale = "raise",
        durability: Literal["full", "normal"] = "full",
        busy_timeout_s: float = 30.0,
        auto_migrate: bool = True,
        state_schema: type | None = None,
        schema: str | None = None,
        table_prefix: str | None = None,
        pool_min: int | None = None,
        pool_max: int | None = None,
        connect_with: Callable[..., Awaitable[Any]] | None = None,
        group_commit: bool | None = None,
        replica_url: str | None = None,
    ) -> None:
        self.asynchronous = store.DatabaseSessionService(
            db_url,
            on_stale=on_stale,
            durability=durability,
            busy_timeout_s=busy_timeout_s,
            auto_migrate=auto_migrate,
            state_schema=state_schema,
            schema=schema,
            table_prefix=table_prefix,
            pool_min=pool_min,
            pool_max=pool_max,
            connect_with=connect_with,
            group_commit=group_commit,
            replica_url=replica_url,
        )


class RemoteSessionService(BaseSessionService):
    """Sessions behind a threadline server (`threadline serve`)."""

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        on_stale: OnStale = "raise",
        state_schema: type | None = None,
        timeout_s: float = 30.0,
        retry_for_s: float = 10.0,
    ) -> None:
        self.asynchronous = remote.RemoteSessionService(
            base_url,
            token=token,
            on_stale=on_stale,
            state_schema=state_schema,
            timeout_s=timeout_s,
            retry_for_s=retry_for_s,
        )


class VertexAiSessionService(BaseSessionService):
    """Sessions of Vertex AI Agent Engine, or of a server that speaks its API."""

    def __init__(
        self,
        project: str | None = None,
        location: str | None = None,
        agent_engine_id: str | None = None,
        *,
        express_mode_api_key: str | None = None,
        base_url: str | None = None,
        credentials: Credentials | None = None,
        timeout_s: float = 30.0,
        retry_for_s: float = 10.0,
    ) -> None:
        self.asynchronous = vertex.VertexAiSessionService(
            project,
            location,
            agent_engine_id,
            express_mode_api_key=express_mode_api_key,
            base_url=base_url,
            credentials=credentials,
            timeout_s=timeout_s,
            retry_for_s=retry_for_s,
        )


def __getattr__(name: str) -> Any:
    """Return what is the same in both worlds: models, errors, `Runner`."""
    catalogue = importlib.import_module("threadline")
    if name in catalogue.__all__:
        return getattr(catalogue, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
