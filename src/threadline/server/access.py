"""Who may do what: the one question that every handler asks before it does anything.

The layer around the routes (`auth.py`) finds out whose request it is and leaves the answer in
the request's scope; a handler calls `authorize` with what it is about to touch. A handler that
forgets is found out: no answer of success leaves the server unless it was called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from threadline.errors import PermissionDeniedError, UnauthenticatedError

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

GRANT = "threadline.grant"
"""The scope's key for whose request it is: a Grant, or why it is nobody's (a str)."""
ACCESS = "threadline.access"
"""The scope's key for what the handler said it is about to do: an Access."""


class Grant(msgspec.Struct, frozen=True):
    """What the holder of a key may reach; `None` stands for every app, or every user."""

    name: str
    apps: frozenset[str] | None = None
    users: frozenset[str] | None = None
    writes: bool = False

    def is_for_app(self, app: str | None) -> bool:
        """Whether it reaches an app; None stands for all of them."""
        return self.apps is None or app in self.apps

    def is_for_user(self, user: str | None) -> bool:
        """Whether it reaches a user; None stands for all of them."""
        return self.users is None or user in self.users


class Access(NamedTuple):
    """What a request is about to touch; `user` is None for an app's state and all its users."""

    grant: Grant
    app: str | None
    user: str | None
    write: bool


def authorize(
    connection: HTTPConnection, *, app: str | None, user: str | None, write: bool
) -> Grant:
    """Return the key's grant; raise UnauthenticatedError (401) or PermissionDeniedError (403).

    `app` and `user` are the decoded ids. `user=None` asks for all users of the app, or for what
    they share; `app=None` asks for all apps.
    """
    grant = connection.scope.get(GRANT, "This route is not behind the server's authentication.")
    if not isinstance(grant, Grant):
        raise UnauthenticatedError(grant)
    if write and not grant.writes:
        raise PermissionDeniedError(f"The key {grant.name!r} may read and not write.")
    if not grant.is_for_app(app):
        raise PermissionDeniedError(f"The key {grant.name!r} is not for {_named('app', app)}.")
    if not grant.is_for_user(user):
        raise PermissionDeniedError(f"The key {grant.name!r} is not for {_named('user', user)}.")
    connection.scope[ACCESS] = Access(grant, app, user, write)
    return grant


def authorize_part(connection: HTTPConnection, *, app: str | None, write: bool) -> Grant:
    """Authorize for what the key may see of an app, or of all apps; return its grant.

    For handlers that do not know yet whose sessions they will find: they pass on nothing of
    other apps and users than the grant's, and call `authorize` once they know.
    """
    grant = connection.scope.get(GRANT)
    users = grant.users if isinstance(grant, Grant) else None
    apps = grant.apps if isinstance(grant, Grant) and app is None else None
    return authorize(
        connection,
        app=min(apps) if apps else app,
        user=min(users) if users else None,
        write=write,
    )


def open_to_all(connection: HTTPConnection) -> None:
    """Say of a route, such as the health check, that it touches nobody's sessions."""
    connection.scope[ACCESS] = Access(Grant(""), None, None, write=False)


def _named(kind: str, id: str | None) -> str:
    return f"all {kind}s" if id is None else f"the {kind} {id!r}"
