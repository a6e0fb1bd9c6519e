"""Whose request it is: keys in a file, or whoever is on this machine.

Keys are kept in a file and not in the database: the engines know sessions only, whoever can write
sessions cannot make a key, and a file is what secret stores mount. Of a key the file has the
SHA-256, which is enough for 256 random bits. It is read again when it has changed, so a key that
is revoked is refused from then on.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
from starlette.requests import HTTPConnection

from threadline import clock
from threadline.errors import InvalidInputError, StorageError
from threadline.server.access import GRANT, Grant

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from starlette.types import ASGIApp, Receive, Scope, Send

    Authenticate = Callable[[HTTPConnection], Grant | str]
    """Tells whose a request is, or why it is nobody's."""

log = logging.getLogger("threadline.server")

_NO_KEY = (
    "Send a key: Authorization: Bearer KEY, or x-goog-api-key: KEY, or ?key=KEY. "
    "`threadline keys create` makes one."
)
_WRONG_KEY = "This is not a key of this server, or it was revoked."


class Key(msgspec.Struct, frozen=True, rename="camel"):
    """A key as the file has it; `None` stands for every app, or every user."""

    id: str
    sha256: str
    created: float
    apps: list[str] | None = None
    users: list[str] | None = None
    writes: bool = False

    @property
    def grant(self) -> Grant:
        """What its holder may reach."""
        apps, users = (None if ids is None else frozenset(ids) for ids in (self.apps, self.users))
        return Grant(name=self.id, apps=apps, users=users, writes=self.writes)


class _Keys(msgspec.Struct):
    keys: list[Key] = []


class KeyFile:
    """The keys in a file; an instance tells whose a request is."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._version: tuple[int, ...] | None = None
        self._keys: dict[str, Key] = {}

    def __call__(self, connection: HTTPConnection) -> Grant | str:
        """Return what the key of a request grants, or why there is none."""
        token = _token(connection)
        if token is None:
            return _NO_KEY
        _, _, id_and_secret = token.partition("_")
        key = self._read().get(id_and_secret.partition("_")[0])
        # Compared also where the id is unknown: the time taken tells nothing.
        wanted = key.sha256 if key else "0" * 64
        if not hmac.compare_digest(_digest(token), wanted) or key is None:
            return _WRONG_KEY
        return key.grant

    def all(self) -> list[Key]:
        """Return the keys, the oldest first."""
        return sorted(self._read().values(), key=lambda key: key.created)

    def create(
        self,
        *,
        apps: Iterable[str] | None = None,
        users: Iterable[str] | None = None,
        writes: bool = False,
    ) -> str:
        """Add a key and return it; nobody can read it again."""
        id = secrets.token_hex(4)
        token = f"tl_{id}_{secrets.token_urlsafe(32)}"
        keys = self.all() if self._path.exists() else []
        new = Key(
            id=id,
            sha256=_digest(token),
            created=clock.now(),
            apps=None if apps is None else list(apps),
            users=None if users is None else list(users),
            writes=writes,
        )
        self._write([*keys, new])
        return token

    def revoke(self, id: str) -> None:
        """Remove a key, or raise InvalidInputError."""
        keys = self.all()
        kept = [key for key in keys if key.id != id]
        if len(kept) == len(keys):
            raise InvalidInputError(f"{self._path} has no key {id!r}.")
        self._write(kept)

    def _read(self) -> dict[str, Key]:
        try:
            found = self._path.stat()
            version = (found.st_mtime_ns, found.st_size, found.st_ino)
            if version != self._version:
                listed = msgspec.json.decode(self._path.read_bytes(), type=_Keys).keys
                self._keys, self._version = {key.id: key for key in listed}, version
        except (OSError, msgspec.MsgspecError) as error:
            raise StorageError(f"The keys in {self._path} cannot be read: {error}") from error
        return self._keys

    def _write(self, keys: list[Key]) -> None:
        """Replace the file in one step: a server reads the old keys or the new ones."""
        data = msgspec.json.format(msgspec.json.encode(_Keys(keys)))
        try:
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(handle)
            Path(name).replace(self._path)
        except OSError as error:
            raise StorageError(f"The keys cannot be written to {self._path}: {error}") from error


def loopback_only(connection: HTTPConnection, *, origins: Collection[str] = ()) -> Grant | str:
    """Let in who is on this machine, and nobody else, where no keys are in use.

    The name in the Host header is checked too, as a web page could give a name of its own the
    address of this machine; a forwarded request comes from elsewhere; and a page from elsewhere
    can send what a browser sends without asking first, unless its origin is one of `origins`.
    """
    client = connection.client
    headers = connection.headers
    if client is None or not is_loopback(client.host):
        return "This server has no keys, so it answers this machine only."
    if not is_loopback(_host(f"//{headers.get('host', '')}")):
        return "This server has no keys, so it must be called localhost or 127.0.0.1."
    if "forwarded" in headers or "x-forwarded-for" in headers:
        return "This server has no keys, so it takes no forwarded requests."
    origin = headers.get("origin")
    if origin is not None and not {origin, "*"} & {*origins} and not is_loopback(_host(origin)):
        return "This server has no keys, so it takes nothing from the pages of other sites."
    return Grant("loopback", writes=True)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a host name or address can be this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Authentication:
    """The layer that leaves in the scope whose request it is."""

    def __init__(self, app: ASGIApp, authenticate: Authenticate) -> None:
        self._app = app
        self._authenticate = authenticate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                scope[GRANT] = self._authenticate(HTTPConnection(scope))
            except StorageError as error:
                log.error("%s", error)  # noqa: TRY400 - the error says it all
                scope[GRANT] = "The server cannot read its keys; its log says why."
        await self._app(scope, receive, send)


def _token(connection: HTTPConnection) -> str | None:
    kind, _, token = connection.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and token:
        return token.strip()
    return connection.headers.get("x-goog-api-key") or connection.query_params.get("key")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
