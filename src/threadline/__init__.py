"""The session layer for AI agents."""

from threadline.content import (
    Blob,
    CodeExecutionResult,
    Content,
    ExecutableCode,
    FileData,
    FunctionCall,
    FunctionResponse,
    FunctionResponsePart,
    Part,
    Transcription,
    UsageMetadata,
)
from threadline.errors import (
    AlreadyExistsError,
    DamagedDataError,
    EngineClosedError,
    EventConflictError,
    ForeignDatabaseError,
    IncompleteReadError,
    InvalidIdError,
    InvalidInputError,
    MissingExtraError,
    NewerSchemaError,
    NotADatabaseError,
    OutdatedSchemaError,
    ReadOnlyDatabaseError,
    ReadOnlyStateError,
    SessionNotFoundError,
    StaleSessionError,
    StateConflictError,
    StateSchemaError,
    StorageBusyError,
    StorageError,
    StorageFullError,
    ThreadlineError,
    UnsupportedUrlError,
    UnsupportedValueError,
)
from threadline.history import History
from threadline.models import (
    CacheMetadata,
    Event,
    EventActions,
    EventCompaction,
    GetSessionConfig,
    ListEventsResponse,
    ListSessionsResponse,
    NodeInfo,
    Session,
    ToolConfirmation,
    UiWidget,
)
from threadline.runner import RunContext, Runner
from threadline.service import (
    MISSING,
    BaseSessionService,
    DatabaseSessionService,
    EngineSessionService,
    InMemorySessionService,
)
from threadline.state import State

__version__ = "0.1.0"

__all__ = sorted(  # noqa: PLE0605 - a test compares it with the public names
    name for name in dir() if not name.startswith("_") and name[0].isupper()
)
