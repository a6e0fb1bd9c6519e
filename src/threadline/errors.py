"""What can go wrong, as one tree.

ThreadlineError
├── AlreadyExistsError                a session with this id is already there
├── SessionNotFoundError              no such session, or deleted, or expired   (ValueError)
├── StaleSessionError                 the handle is behind the store            (ValueError)
├── EventConflictError                one event id, two contents                (ValueError)
├── StateConflictError                a compare-and-set found another value     (ValueError)
├── InvalidInputError                 refused before anything was written       (ValueError)
│   ├── InvalidIdError                an app, user or session id
│   ├── UnsupportedValueError         a value that would not come back equal
│   ├── UnsupportedUrlError           a database URL that cannot work
│   └── RequestTooLargeError          more bytes than the server takes at once
├── UnauthenticatedError              the server knows no such key, or none was sent
├── PermissionDeniedError             the server's key does not reach this far
├── UnsupportedOperationError         this service cannot do it  (NotImplementedError)
├── StateSchemaError                  a state write that breaks the schema      (TypeError)
├── ReadOnlyStateError                a write to `session.state`                (TypeError)
├── DamagedDataError                  stored bytes that cannot be read
├── IncompleteReadError               the store returned less than it holds
├── MissingExtraError                 an optional dependency is not installed   (ImportError)
└── StorageError                      the database refused or could not answer
    ├── NotADatabaseError             the file is something else
    ├── ForeignDatabaseError          the database belongs to google-adk
    ├── ReadOnlyDatabaseError         the file or its directory cannot be written
    ├── StorageFullError              no room on the disk
    ├── StorageBusyError              locked for longer than the timeout
    ├── QuotaExceededError            the server took no more requests for now
    ├── StorageUnavailableError       no server answered in time; the outcome is not known
    │   └── NotSentError              no connection was made, so nothing was carried out
    ├── NewerSchemaError              written by a newer threadline
    ├── OutdatedSchemaError           migrations are due and were not to be run
    └── EngineClosedError             used after `close()`, or memory across a fork

Names and builtin bases are ADK's where it has the error, so `except ValueError`
written against ADK still catches it. Drivers' exceptions never leak; the cause is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


class ThreadlineError(Exception):
    """The root of every error raised on purpose."""


class AlreadyExistsError(ThreadlineError):
    """A session with this id is already there.

    Choose another id, omit it to get a new one, or call `get_or_create_session`.
    """


class SessionNotFoundError(ThreadlineError, ValueError):
    """The session does not exist: never created, deleted, or expired."""


class StaleSessionError(ThreadlineError, ValueError):
    """The session was changed in the store since this handle was loaded.

    `await service.refresh(session)` brings the handle up to date, then append again;
    or append with `on_stale="rebase"` to add to the end of the log whatever came before.

    `missed` holds the events that the handle has not seen, in order; `revision` is the
    store's, `expected` the handle's.
    """

    def __init__(
        self, message: str, *, expected: int = 0, revision: int = 0, missed: Sequence[Any] = ()
    ) -> None:
        super().__init__(message)
        self.expected = expected
        self.revision = revision
        self.missed = missed


class EventConflictError(ThreadlineError, ValueError):
    """The session already holds an event with this id and other content.

    A retry must send the event it sent before; a new event needs a new id. `stored` is the event
    that is there, where one is.
    """

    def __init__(self, message: str, *, stored: Any = None) -> None:
        super().__init__(message)
        self.stored = stored


class StateConflictError(ThreadlineError, ValueError):
    """A compare-and-set found another value than the one expected, and changed nothing."""


class InvalidInputError(ThreadlineError, ValueError):
    """An argument was refused before anything was written."""


class InvalidIdError(InvalidInputError):
    """An app name, user id, session id or event id that no engine could keep verbatim."""


class UnsupportedValueError(InvalidInputError):
    """A value that the store could not give back equal; the message names its path."""


class UnsupportedUrlError(InvalidInputError):
    """A database URL that cannot work; the message names one that would."""


class RequestTooLargeError(InvalidInputError):
    """The server takes fewer bytes in one request; send fewer events at once."""


class UnauthenticatedError(ThreadlineError):
    """No key was sent to the server, or one that it does not know, or that was revoked."""


class PermissionDeniedError(ThreadlineError):
    """The key is for other apps or users, or may only read."""


class UnsupportedOperationError(ThreadlineError, NotImplementedError):
    """The service keeps its sessions where this cannot be done; the message says what can."""


class StateSchemaError(ThreadlineError, TypeError):
    """A state write that breaks the declared schema."""


class ReadOnlyStateError(ThreadlineError, TypeError):
    """A direct write to `session.state`, which would be lost.

    State is changed by an event's `actions.state_delta`, by the runner context's `state`,
    or by `patch_state`.
    """


class DamagedDataError(ThreadlineError):
    """Stored bytes cannot be read; the message names the row."""


class IncompleteReadError(ThreadlineError):
    """The store returned fewer events than the session holds, so nothing was returned."""


class MissingExtraError(ThreadlineError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class StorageError(ThreadlineError):
    """The database refused, or could not answer.

    Nothing of the call was written, unless it is a StorageUnavailableError.
    """


class NotADatabaseError(StorageError):
    """The file is not a database of this kind."""


class ForeignDatabaseError(StorageError):
    """The database was written by google-adk and has another layout."""


class ReadOnlyDatabaseError(StorageError):
    """The database file or its directory cannot be written."""


class StorageFullError(StorageError):
    """The disk is full; nothing of the call was written."""


class StorageBusyError(StorageError):
    """The database stayed locked for longer than the timeout; nothing was written."""


class QuotaExceededError(StorageError):
    """The server refused for its quota until no time was left; nothing of the call was written."""


class StorageUnavailableError(StorageError):
    """No server answered in time; whether the call was written is not known.

    An append is safe to try again: the same event is stored once.
    """


class NotSentError(StorageUnavailableError):
    """No connection to the server was made, so nothing was carried out; repeat any call safely."""


class NewerSchemaError(StorageError):
    """The database was written by a newer threadline than this one."""


class OutdatedSchemaError(StorageError):
    """Migrations are due; run `threadline db upgrade --db URL`."""


class EngineClosedError(StorageError):
    """The engine was closed, or its database in memory is that of the process's parent."""
