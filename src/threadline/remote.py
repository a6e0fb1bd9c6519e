"""The session service over a threadline server's REST API."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, UnsetType

from threadline import clock, codec, wire
from threadline.canonical import decode, encode
from threadline.connections import Connections
from threadline.engines.base import (
    Appended,
    ErasedUser,
    app_scope,
    check_id,
    session_key,
    user_scope,
)
from threadline.errors import NotSentError, SessionNotFoundError, StorageUnavailableError
from threadline.history import History
from threadline.models import ListEventsResponse, ListSessionsResponse
from threadline.patch import MISSING
from threadline.store import StoredSessionService, check_positive, session_change

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable, Mapping, Sequence

    from threadline.engines.base import (
        Handle,
        NewEvent,
        NewSession,
        SessionKey,
        Snapshot,
        StateRows,
        Window,
    )
    from threadline.models import Session
    from threadline.service import OnStale, Order

BACKOFF_S, BACKOFF_MAX_S = 0.05, 1.0


class RemoteSessionService(StoredSessionService):
    """Sessions behind a threadline server (`threadline serve`).

    `token` is a key of the server's. A call waits for an answer for `timeout_s`. Where no answer
    came, or the server was not available, a read, an append or an erasure is sent again for
    `retry_for_s`: an event is stored once however often it is sent. Other writes are sent again
    only if they cannot have reached the server; else StorageUnavailableError says that the
    outcome is not known.
    """

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
        super().__init__(on_stale=on_stale, state_schema=state_schema)
        self._server = _Server(base_url, token, timeout_s, retry_for_s)

    async def list_sessions(
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
        app_scope(app_name) if user_id is None else user_scope(app_name, user_id)
        if limit is not None:
            check_positive("limit", limit)
        asked = {"order": order, "descending": descending, "state": include_state}
        listed = ListSessionsResponse()
        while True:
            more = wire.PAGE_MAX if limit is None else limit - len(listed.sessions)
            data = await self._server.call(
                "GET",
                wire.sessions_path(app_name, user_id),
                query={**asked, "limit": min(more, wire.PAGE_MAX), "cursor": cursor},
            )
            rows, cursor = wire.sessions(data)
            listed.sessions += [codec.row_to_session(*row, History()) for row in rows]
            if cursor is None or len(listed.sessions) == limit:
                listed.next_cursor = cursor
                return listed

    async def find_sessions(self, *, app_name: str, session_id: str) -> list[Session]:
        """Return handles of the app's sessions with this id, one for each user that has one.

        Those of users that the key is for, where it is not for all of them.
        """
        app_scope(app_name)
        check_id("session_id", session_id)
        data = await self._server.call("GET", wire.session_path(app_name, None, session_id))
        rows, _ = wire.sessions(data)
        return [codec.row_to_session(*row, History()) for row in rows]

    async def list_apps(self) -> list[str]:
        """Return the names of the apps that have sessions and that the key is for, in order."""
        data = await self._server.call("GET", wire.APPS_PATH)
        return wire.read(wire.AppsAnswer, data, "The answer").apps

    async def update_session(
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
        session_key(app_name, user_id, session_id)
        change = session_change(clock.now(), display_name, labels, ttl, expire_time)
        body = wire.ChangedSessionBody(
            display_name=change.display_name, labels=labels, expire_time=change.expires
        )
        data = await self._server.call(
            "PATCH",
            wire.session_path(app_name, user_id, session_id),
            body=msgspec.json.encode(body),
            is_repeatable=False,  # it would undo what somebody else has changed since
        )
        found = wire.snapshot(data)
        return codec.row_to_session(found.session, found.state, History())

    async def erase_user(self, *, app_name: str, user_id: str) -> ErasedUser:
        """Remove all of a user in an app: sessions, expired ones too, and the user's state."""
        user_scope(app_name, user_id)
        data = await self._server.call("DELETE", wire.owner_path(app_name, user_id))
        answer = wire.read(wire.ErasedAnswer, data, "The answer")
        return ErasedUser(answer.sessions, answer.events, answer.state_keys)

    async def list_events(
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
        check_positive("limit", limit)
        session_key(app_name, user_id, session_id)
        path = wire.session_path(app_name, user_id, session_id) + "/events"
        found: list[Any] = []
        while True:
            query = {
                "after_seq": after_seq,
                "before_seq": before_seq,
                "limit": min(limit - len(found), wire.PAGE_MAX),
                "reverse": reverse,
            }
            page = wire.read(
                wire.EventsAnswer, await self._server.call("GET", path, query=query), "The answer"
            )
            rows = [wire.row(event) for event in page.events]
            found = [*rows, *found] if reverse else [*found, *rows]
            if not page.has_more or len(found) >= limit:
                return ListEventsResponse(events=History(found), has_more=page.has_more)
            after_seq, before_seq = (
                (after_seq, rows[0][0]) if reverse else (rows[-1][0], before_seq)
            )

    async def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        """Return a copy of the user's state, keys without their prefix."""
        user_scope(app_name, user_id)
        data = await self._server.call("GET", wire.state_path(app_name, user_id))
        return _state(data)

    async def get_app_state(self, *, app_name: str) -> dict[str, Any]:
        """Return a copy of the app's state, keys without their prefix."""
        app_scope(app_name)
        return _state(await self._server.call("GET", wire.state_path(app_name)))

    async def patch_state(
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
        _, patch = self._checked_patch(
            app_name, user_id, session_id, set, delete, increment, expect
        )
        asked = {
            "set": dict(patch.set),
            "delete": list(patch.delete),
            "increment": dict(patch.increment),
            "expect": {k: v for k, v in patch.expect.items() if v is not MISSING},
            "expectMissing": [k for k, v in patch.expect.items() if v is MISSING],
        }
        return _state(
            await self._server.call(
                "PATCH",
                wire.state_path(app_name, user_id, session_id),
                body=encode(asked, "patch_state"),
                is_repeatable=False,
            )
        )

    async def _ready(self) -> _Server:
        await self._server.open()
        return self._server

    async def close(self) -> None:
        """Let go of connections; the next call makes new ones."""
        await self._server.close()


class _Server:
    """A store whose transactions run behind the REST API."""

    def __init__(
        self, base_url: str, token: str | None, timeout_s: float, retry_for_s: float
    ) -> None:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._connections = Connections(base_url, headers, timeout_s, "remote")
        self._retry_for_s = retry_for_s

    async def open(self) -> None:
        self._connections.session()

    async def close(self) -> None:
        await self._connections.close()

    async def create(
        self,
        session: NewSession,
        state: StateRows,
        *,
        now: float,  # noqa: ARG002 - the server has a clock of its own
    ) -> Snapshot:
        key = session.key
        merged = codec.rows_to_state(state)
        asked = {
            "sessionId": key.id,
            "state": merged,
            "expireTime": session.expires,
            "displayName": session.display_name,
            "labels": None if session.labels is None else decode(None, session.labels.encode()),
        }
        data = await self.call(
            "POST",
            wire.sessions_path(key.app, key.user),
            body=encode(asked, "create_session"),
            is_repeatable=False,
        )
        return wire.snapshot(data)

    async def load(
        self,
        key: SessionKey,
        window: Window,
        *,
        now: float,  # noqa: ARG002
        state: bool = True,  # noqa: ARG002 - it comes in any case
    ) -> Snapshot | None:
        query = {
            "after_seq": window.after_seq or None,
            "after_timestamp": window.after_timestamp,
            "num_recent_events": window.limit,
        }
        path = wire.session_path(key.app, key.user, key.id)
        try:
            return wire.snapshot(await self.call("GET", path, query=query))
        except SessionNotFoundError:
            return None

    async def append(
        self,
        handle: Handle,
        events: Sequence[NewEvent],
        *,
        rebase: bool,
        now: float,  # noqa: ARG002
    ) -> Appended:
        key, policy = handle.key, b"rebase" if rebase else b"raise"
        bodies = b",".join(event.body for event in events)
        data = await self.call(
            "POST",
            wire.session_path(key.app, key.user, key.id) + "/events",
            body=b'{"onStale":"%b","events":[%b]}' % (policy, bodies),
            if_match=wire.etag(handle.revision, handle.incarnation),
        )
        answer = wire.read(wire.AppendAnswer, data, "The answer")
        return Appended(
            seqs=[stored.seq or 0 for stored in answer.stored],
            missed=[wire.row(event) for event in answer.missed],
            incarnation=answer.incarnation,
            revision=answer.revision,
            updated=answer.last_update_time,
        )

    async def delete(self, key: SessionKey) -> bool:
        path = wire.session_path(key.app, key.user, key.id)
        await self.call("DELETE", path, is_repeatable=False)
        return True

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: bytes | None = None,
        if_match: str | None = None,
        is_repeatable: bool = True,
    ) -> bytes:
        """Return the body of the answer, or raise the error that it tells of."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._retry_for_s
        headers = {"if-match": if_match} if if_match else None
        pause_s = BACKOFF_S
        while True:
            try:
                answer = await self._connections.call(
                    method, path, query=query, headers=headers, body=body
                )
            except StorageUnavailableError as error:
                may_repeat = is_repeatable or isinstance(error, NotSentError)
                refusal: Exception = error
            else:
                if answer.status < 400:
                    return answer.body
                may_repeat = is_repeatable and answer.status in (502, 503, 504)
                refusal = wire.error(answer.status, answer.body)
            if not may_repeat or loop.time() + pause_s > give_up:
                raise refusal
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            pause_s = min(2 * pause_s, BACKOFF_MAX_S)


def _state(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = decode(
        None, bytes(wire.read(wire.StateAnswer, data, "The answer").state)
    )
    return found
