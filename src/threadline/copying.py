"""Sessions from one service to another: events, state, title, labels, expiry.

A copy that was broken off goes on where it was: a session of the target that holds the first
events of the source's receives the others. Each session is read back and compared.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from threadline import state
from threadline.canonical import is_same
from threadline.errors import (
    AlreadyExistsError,
    EventConflictError,
    IncompleteReadError,
    InvalidInputError,
    UnsupportedOperationError,
    UnsupportedUrlError,
)
from threadline.store import DatabaseSessionService

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from threadline.models import Session
    from threadline.service import BaseSessionService

SESSIONS_AT_ONCE = 8
EVENTS_AT_ONCE = 100
_VERTEX_OPTIONS = {"engine", "base_url"}


class CopyReport(msgspec.Struct):
    """What a copy did; `events_present` were there before."""

    sessions: int = 0
    sessions_created: int = 0
    events_added: int = 0
    events_present: int = 0


def service_of(url: str, *, token: str | None = None, create: bool = False) -> BaseSessionService:
    """Return the service that a URL names, unopened.

    A database's URL; the `http://` or `https://` of a threadline server, with `token` as its key;
    or `vertex://PROJECT/LOCATION`, `vertex://` where the environment says the rest, with the
    options `engine` and `base_url`.
    """
    if url.startswith(("http://", "https://")):
        from threadline.remote import RemoteSessionService

        return RemoteSessionService(url, token=token)
    if not url.startswith("vertex:"):
        return DatabaseSessionService(url, auto_migrate=create)
    from threadline.vertex.service import VertexAiSessionService

    parts = urlsplit(url)
    place = [unquote(part) for part in f"{parts.netloc}{parts.path}".split("/") if part]
    options = dict(parse_qsl(parts.query))
    if (
        not url.startswith("vertex://")
        or len(place) not in (0, 2)
        or options.keys() - _VERTEX_OPTIONS
    ):
        raise UnsupportedUrlError(
            f"{url!r} is no URL of Vertex AI; write vertex://PROJECT/LOCATION, or vertex:// where "
            "the environment names them, with ?engine=ID and &base_url=URL where you need them."
        )
    project, location = place or (None, None)
    return VertexAiSessionService(
        project, location, options.get("engine"), base_url=options.get("base_url")
    )


async def copy_sessions(
    source: BaseSessionService,
    target: BaseSessionService,
    *,
    app_names: Sequence[str] | None = None,
    to_app: str | None = None,
    on_progress: Callable[[CopyReport], None] | None = None,
) -> CopyReport:
    """Copy the sessions of some apps, or of all that the source lists, and compare them.

    With `to_app` they get another app's name, such as an engine's id. The state of an app and of
    its users is the source's in the end. Raises EventConflictError where the target has another
    history, IncompleteReadError where what was read back is not what was written.
    """
    report = CopyReport()
    apps = await source.list_apps() if app_names is None else list(app_names)
    if to_app is not None and len(apps) > 1:
        raise InvalidInputError(f"Several apps cannot become one, {to_app!r}: name one of them.")
    for app in apps:
        cursor = None
        shared: dict[str | None, dict[str, Any]] = {}
        new_app = to_app or app
        while True:
            page = await source.list_sessions(
                app_name=app, limit=SESSIONS_AT_ONCE, cursor=cursor, order="created"
            )
            # All of them end before an error is raised: what was begun is stored or refused.
            outcomes = await asyncio.gather(
                *(_copy(source, target, one, new_app, report) for one in page.sessions),
                return_exceptions=True,
            )
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
            for session in page.sessions:
                scopes = state.split(session.state)
                shared.setdefault(None, {}).update(scopes.app)
                shared.setdefault(session.user_id, {}).update(scopes.user)
            if on_progress is not None:
                on_progress(report)
            cursor = page.next_cursor
            if cursor is None:
                break
        for user, wanted in shared.items():
            await _share(target, new_app, user, wanted)
    return report


async def _copy(
    source: BaseSessionService,
    target: BaseSessionService,
    listed: Session,
    app: str,
    report: CopyReport,
) -> None:
    ids: dict[str, Any] = {"user_id": listed.user_id, "session_id": listed.id}
    session = await source.get_session(app_name=listed.app_name, **ids)
    if session is None:
        return  # deleted since it was listed
    ids["app_name"] = app
    copy = await target.get_session(**ids)
    report.sessions += 1
    if copy is None:
        try:
            copy = await target.create_session(
                **ids,
                state=dict(session.state),
                display_name=session.display_name,
                labels=session.labels,
                expire_time=session.expire_time,
            )
        except AlreadyExistsError as error:
            raise AlreadyExistsError(
                f"The session {session.id!r} of user {session.user_id!r} cannot be copied: {error}"
            ) from error
        report.sessions_created += 1
    begin = len(copy.events)
    for mine, theirs in zip(session.events, copy.events, strict=False):
        if mine != theirs:
            raise EventConflictError(
                f"The session {session.id!r} of user {session.user_id!r} has another history in "
                f"the target: its event {theirs.id!r} stands where the source has {mine.id!r}.",
                stored=theirs,
            )
    report.events_present += begin
    for at in range(begin, len(session.events), EVENTS_AT_ONCE):
        events = session.events[at : at + EVENTS_AT_ONCE]
        await target.append_events(copy, events)
        report.events_added += len(events)
    await _compare(target, session, ids)


async def _compare(target: BaseSessionService, session: Session, ids: dict[str, Any]) -> None:
    """Read a session back and raise for what is not as it was."""
    own = state.split(session.state).session
    copy = await target.get_session(**ids)
    if copy is not None and not _is_same_state(state.split(copy.state).session, own):
        await _patch(target, ids, own, state.split(copy.state).session)
        copy = await target.get_session(**ids)
    differs = ["everything"] if copy is None else []
    if copy is not None:
        pairs = {
            "its events": list(copy.events) == list(session.events),
            "its state": _is_same_state(state.split(copy.state).session, own),
            "its title": copy.display_name == session.display_name,
            "its labels": copy.labels == session.labels,
            "its expiry": session.expire_time in (None, copy.expire_time),
        }
        differs = [name for name, is_equal in pairs.items() if not is_equal]
    if differs:
        raise IncompleteReadError(
            f"The copy of the session {session.id!r} of user {session.user_id!r} is not equal: "
            f"{', '.join(differs)}."
        )


async def _share(
    target: BaseSessionService, app: str, user: str | None, wanted: dict[str, Any]
) -> None:
    """Give an app or a user the state that the source has: the copies' events may have others'."""
    ids: dict[str, Any] = {"app_name": app}
    if user is None:
        there = await target.get_app_state(**ids)
    else:
        ids["user_id"] = user
        there = await target.get_user_state(**ids)
    if not _is_same_state({key: there.get(key) for key in wanted}, wanted):
        await _patch(target, ids, wanted, {})


async def _patch(
    target: BaseSessionService,
    ids: dict[str, Any],
    wanted: Mapping[str, Any],
    there: Mapping[str, Any],
) -> None:
    gone = [key for key in there if key not in wanted]
    try:
        await target.patch_state(**ids, set=wanted, delete=gone)
    except UnsupportedOperationError as error:
        named = ", ".join(f"{name}={value!r}" for name, value in ids.items())
        raise UnsupportedOperationError(
            f"The state of {named} is not what its events make of it, and the target can only "
            f"be given events. {error}"
        ) from error


def _is_same_state(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Compare state; Vertex AI has none that is None."""
    return is_same(
        {key: value for key, value in a.items() if value is not None},
        {key: value for key, value in b.items() if value is not None},
    )
