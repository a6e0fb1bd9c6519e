"""Errors that are google-adk's and threadline's at once: either `except` catches them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from google.adk.errors import StaleSessionError as _AdkStaleSessionError
from google.adk.errors.already_exists_error import AlreadyExistsError as _AdkAlreadyExistsError
from google.adk.errors.session_not_found_error import (
    SessionNotFoundError as _AdkSessionNotFoundError,
)
from google.adk.sessions import StateSchemaError as _AdkStateSchemaError

from threadline import errors
from threadline.integrations.adk.events import events_of

if TYPE_CHECKING:
    from collections.abc import Iterator


class AlreadyExistsError(errors.AlreadyExistsError, _AdkAlreadyExistsError):
    """A session with this id is already there."""


class SessionNotFoundError(errors.SessionNotFoundError, _AdkSessionNotFoundError):
    """The session does not exist: never created, deleted, or expired."""


class StaleSessionError(errors.StaleSessionError, _AdkStaleSessionError):
    """The session was changed in the store since it was loaded.

    `missed` holds the events that were stored since, as google-adk's.
    """


class StateSchemaError(errors.StateSchemaError, _AdkStateSchemaError):
    """A state write that breaks the declared schema."""


@contextlib.contextmanager
def as_adk_errors() -> Iterator[None]:
    """Raise threadline's errors as those that google-adk has a name for; leave the others."""
    try:
        yield
    except errors.AlreadyExistsError as error:
        raise AlreadyExistsError(str(error)) from error
    except errors.SessionNotFoundError as error:
        raise SessionNotFoundError(str(error)) from error
    except errors.StaleSessionError as error:
        raise StaleSessionError(
            f"{error} Load the session again, or call refresh(session), before appending.",
            expected=error.expected,
            revision=error.revision,
            missed=events_of(error.missed),
        ) from error
    except errors.StateSchemaError as error:
        raise StateSchemaError(str(error)) from error
