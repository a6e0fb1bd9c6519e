"""Calls of the Vertex AI Sessions API: address, credentials, and what is done when one fails.

A refusal for the quota, and a connection that was not made, leave nothing behind, so such a call
is made again. Where an answer was lost, or the server failed, what became of the call is not
known: one that may be repeated is repeated, any other is its caller's to look into.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from threadline.connections import Answer, Connections
from threadline.errors import (
    AlreadyExistsError,
    EventConflictError,
    InvalidInputError,
    MissingExtraError,
    NotSentError,
    PermissionDeniedError,
    QuotaExceededError,
    RequestTooLargeError,
    SessionNotFoundError,
    StorageError,
    StorageUnavailableError,
    UnauthenticatedError,
)
from threadline.vertex import wire

if TYPE_CHECKING:
    from collections.abc import Mapping
    from http.client import HTTPResponse
    from urllib.error import HTTPError

    from google.auth.credentials import Credentials

    from threadline.connections import Query

T = TypeVar("T")

VERSION = "v1beta1"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
BACKOFF_S, BACKOFF_MAX_S = 0.1, 4.0
_MULTI_REGIONS = ("us", "eu")
_UNKNOWN_OUTCOME = (408, 500, 502, 503, 504)


class Tries:
    """The pauses between tries, longer each time, for some time after the first failure."""

    def __init__(self, time_s: float) -> None:
        self._time_s = time_s
        self._give_up: float | None = None
        self._pause_s = BACKOFF_S

    async def pause(self, refusal: Exception, *, at_least_s: float = 0.0) -> None:
        """Wait before the next try, or raise what the last one ended with."""
        pause_s = max(self._pause_s * random.uniform(0.5, 1.0), at_least_s)  # noqa: S311
        now = asyncio.get_running_loop().time()
        if self._give_up is None:  # one try may have taken longer than all of this
            self._give_up = now + self._time_s
        if now + pause_s > self._give_up:
            raise refusal
        await asyncio.sleep(pause_s)
        self._pause_s = min(2 * self._pause_s, BACKOFF_MAX_S)


class VertexClient:
    """The API at one address, for one project or, in express mode, for an API key."""

    def __init__(
        self,
        *,
        project: str | None,
        location: str | None,
        api_key: str | None,
        base_url: str | None,
        credentials: Credentials | None,
        timeout_s: float,
        retry_for_s: float,
    ) -> None:
        if api_key is not None and (project or location):
            raise InvalidInputError("Give project and location, or express_mode_api_key, not both.")
        if api_key is not None and credentials is not None:
            raise InvalidInputError("Give express_mode_api_key or credentials, not both.")
        if api_key is None and credentials is None and _is_enterprise():
            api_key = os.environ.get("GOOGLE_API_KEY") or None
        if api_key is None:
            project = project or os.environ.get("GOOGLE_CLOUD_PROJECT") or None
            location = location or os.environ.get("GOOGLE_CLOUD_LOCATION") or None
        else:  # a key belongs to a project, so paths name none, whatever was given
            project = location = None
        if (project is None) != (location is None):
            raise InvalidInputError("Give project and location both, or neither.")
        if project is None and api_key is None and base_url is None:
            raise InvalidInputError(
                "Vertex AI needs project and location (or GOOGLE_CLOUD_PROJECT and "
                "GOOGLE_CLOUD_LOCATION), or express_mode_api_key."
            )
        self.project, self.location = project, location
        self.is_google = base_url is None
        self.timeout_s, self.retry_for_s = timeout_s, retry_for_s
        root = f"{(base_url or _host(location)).rstrip('/')}/{VERSION}"
        self._credentials = credentials
        # Google's tokens go to Google; to send one elsewhere is for the caller to say.
        self._looks_for_credentials = self.is_google and api_key is None
        self._refreshing = threading.Lock()
        headers = {} if api_key is None else {"x-goog-api-key": api_key}
        self._connections = Connections(root, headers, timeout_s, "vertex")

    async def close(self) -> None:
        """Let go of connections; the next call makes new ones."""
        await self._connections.close()

    def parent(self, engine: str) -> str:
        """Return an engine's name in paths, which is short where no project is named."""
        return wire.parent_of(engine, self.project, self.location)

    async def call(
        self,
        kind: type[T],
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes | None = None,
        is_repeatable: bool = True,
    ) -> T:
        """Return the answer, read as `kind`, or raise the error that it tells of.

        StorageUnavailableError says that what became of the call is not known, and
        QuotaExceededError that it did nothing.
        """
        tries, may_refresh = Tries(self.retry_for_s), True
        place = f"{method} {self._connections.base_url}/{path}"
        while True:
            may_repeat, wait_s = is_repeatable, 0.0
            headers = await self._authorization()
            try:
                answer = await self._connections.call(
                    method, f"/{path}", query=query, headers=headers, body=body
                )
                if answer.status == 200:
                    return _read(kind, answer, place)
                refusal = _error(answer, place)
                if answer.status == 401 and may_refresh and self._credentials is not None:
                    may_refresh = False  # a token may be revoked before its time
                    await asyncio.to_thread(self._refresh)
                    continue
                if answer.status == 429:
                    may_repeat, wait_s = True, _retry_after(answer)
                elif answer.status not in _UNKNOWN_OUTCOME:
                    raise refusal
            except NotSentError as error:
                may_repeat, refusal = True, error
            except StorageUnavailableError as error:
                refusal = error
            if not may_repeat:
                raise refusal
            await tries.pause(refusal, at_least_s=wait_s)

    # -- credentials --------------------------------------------------------------------

    async def _authorization(self) -> dict[str, str]:
        if self._credentials is None and not self._looks_for_credentials:
            return {}
        credentials = self._credentials
        if credentials is None or not credentials.valid:
            credentials = await asyncio.to_thread(self._valid_credentials)
        headers = {"authorization": f"Bearer {credentials.token}"}
        quota_project = getattr(credentials, "quota_project_id", None)
        if quota_project:
            headers["x-goog-user-project"] = quota_project
        return headers

    def _valid_credentials(self) -> Credentials:
        """Return credentials with a token that holds, found or refreshed where need be."""
        with self._refreshing:
            if self._credentials is None:
                self._credentials = _default_credentials()
            if self._credentials.valid:
                return self._credentials
        self._refresh()
        return self._credentials

    def _refresh(self) -> None:
        with self._refreshing:
            try:
                from google.auth.exceptions import GoogleAuthError
            except ModuleNotFoundError as error:
                raise _missing_extra() from error
            assert self._credentials is not None  # noqa: S101 - for the type checker
            try:
                self._credentials.refresh(_Transport())  # type: ignore[no-untyped-call]
            except GoogleAuthError as error:
                raise UnauthenticatedError(
                    f"The credentials for Vertex AI could not be refreshed: {error}"
                ) from error


class _Transport:
    """What google-auth fetches its tokens with."""

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> _Answer:
        from urllib.error import HTTPError
        from urllib.request import Request, urlopen

        from google.auth.exceptions import TransportError

        from threadline.connections import tls

        request = Request(url, body, dict(headers or {}), method=method)  # noqa: S310
        context = tls() if url.startswith("https:") else None
        try:
            with urlopen(request, timeout=timeout or 30.0, context=context) as answer:  # noqa: S310
                return _Answer.of(answer)
        except HTTPError as refusal:
            return _Answer.of(refusal)
        except OSError as error:
            raise TransportError(str(error)) from error  # type: ignore[no-untyped-call]


class _Answer(msgspec.Struct):
    """What google-auth reads of an answer."""

    status: int
    headers: dict[str, str]
    data: bytes

    @classmethod
    def of(cls, answer: HTTPResponse | HTTPError) -> _Answer:
        """Read an answer; google-auth looks for headers by names in lower case."""
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return cls(answer.status or 0, headers, answer.read())


def _default_credentials() -> Credentials:
    try:
        import google.auth
        from google.auth.exceptions import DefaultCredentialsError
    except ModuleNotFoundError as error:
        raise _missing_extra() from error
    try:
        credentials, _ = google.auth.default(scopes=[SCOPE])
    except DefaultCredentialsError as error:
        raise UnauthenticatedError(
            "There are no credentials for Vertex AI: run `gcloud auth application-default login`, "
            "set GOOGLE_APPLICATION_CREDENTIALS, or give credentials= or express_mode_api_key=."
        ) from error
    return credentials


def _missing_extra() -> MissingExtraError:
    return MissingExtraError("Vertex AI needs google-auth: pip install 'threadline[vertex]'")


def _is_enterprise() -> bool:
    """Whether GOOGLE_API_KEY is one of Vertex AI, as the official client decides it."""
    names = ("GOOGLE_GENAI_USE_ENTERPRISE", "GOOGLE_GENAI_USE_VERTEXAI")
    said = next((os.environ[name] for name in names if name in os.environ), "")
    return said.lower() in ("true", "1")


def _host(location: str | None) -> str:
    if location is None or location == "global":
        return "https://aiplatform.googleapis.com"
    if location in _MULTI_REGIONS:
        return f"https://aiplatform.{location}.rep.googleapis.com"
    return f"https://{location}-aiplatform.googleapis.com"


# -- answers ----------------------------------------------------------------------------


def _read(kind: type[T], answer: Answer, place: str) -> T:
    try:
        return msgspec.json.decode(answer.body or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StorageUnavailableError(
            f"{place} answered with what is no answer of the Sessions API: {error}"
        ) from error


def _error(answer: Answer, place: str) -> Exception:
    """Return the error that an answer tells of."""
    code, (status, message) = answer.status, _status(answer)
    text = f"{place} answered {code} {status}: {message}"
    if code == 400 and "already exists" in message:
        return AlreadyExistsError(message)
    if code == 429:
        return QuotaExceededError(f"{text} Nothing was carried out; try again later.")
    if code in _UNKNOWN_OUTCOME:
        return StorageUnavailableError(f"{text} Whether the call was carried out is not known.")
    kinds: dict[int, type[Exception]] = {
        400: InvalidInputError,
        401: UnauthenticatedError,
        403: PermissionDeniedError,
        404: SessionNotFoundError,
        409: EventConflictError,
        413: RequestTooLargeError,
    }
    return kinds.get(code, StorageError)(text)


def _status(answer: Answer) -> tuple[str, str]:
    """Return Google's name of what went wrong, and its words; a proxy has words of its own."""
    try:
        told = msgspec.json.decode(answer.body)
        told = told[0] if isinstance(told, list) else told
        return str(told["error"].get("status", "")), str(told["error"].get("message", ""))
    except (msgspec.MsgspecError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        return "error", answer.body[:200].decode(errors="replace")


def _retry_after(answer: Answer) -> float:
    seconds = answer.headers.get("retry-after", "")
    return float(seconds) if seconds.isdigit() else 0.0
