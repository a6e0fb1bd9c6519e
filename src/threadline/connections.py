"""HTTP to one server, over connections that are kept open between calls.

aiohttp does it, which parses in C; `docs/design/http-client.md` says why it was taken.
"""

from __future__ import annotations

import asyncio
import io
import weakref
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from threadline.errors import (
    InvalidInputError,
    MissingExtraError,
    NotSentError,
    StorageUnavailableError,
)
from threadline.version import __version__

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    import aiohttp

    Query = Mapping[str, str | int | float | bool | None]

KEEP_IDLE_S = 30.0
"""How long an idle connection is kept; less than the server keeps it, which closes them at 75."""
CONNECTIONS_MAX = 100
"""How many an event loop may have; further calls wait for one."""
PIECE_BYTES = 2**16


class Answer(NamedTuple):
    """What a server said; names of headers are found in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connections:
    """The connections of one service to its server.

    `headers` go with every call, `timeout_s` is the time for a whole one, and `extra` is what
    brings aiohttp to those who lack it. JSON is sent and asked for; a redirect is an answer, and
    cookies are not kept.
    """

    def __init__(
        self, base_url: str, headers: Mapping[str, str], timeout_s: float, extra: str
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._root = _checked(self.base_url)
        self._headers = {
            "user-agent": f"threadline/{__version__}",
            "accept": "application/json",
            "accept-encoding": "gzip",
            **headers,
        }
        self._timeout_s = timeout_s
        self._extra = extra
        # A connection belongs to the event loop that made it.
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}
        weakref.finalize(self, _let_go, self._sessions)

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """Return the answer to a request, whatever it says.

        NotSentError says that nothing was carried out, any other StorageUnavailableError that
        what became of the call is not known.
        """
        session = self.session()
        import aiohttp
        from yarl import URL

        if query:
            path = f"{path}?{_encoded(query)}"
        if not (path.isascii() and path.isprintable()) or " " in path:
            raise InvalidInputError(f"{path!r} is no path of a URL.")
        url = URL(self._root + path, encoded=True)  # as it is: an id may be %2E
        headers = {"content-type": "application/json", **(headers or {})} if body else headers
        try:
            async with session.request(
                method, url, headers=headers, data=_sent(body), allow_redirects=False
            ) as answer:
                return Answer(answer.status, answer.headers, await answer.read())
        except aiohttp.ClientConnectorError as error:
            raise NotSentError(f"{self.base_url} cannot be reached: {_said(error)}.") from error
        except aiohttp.ClientHttpProxyError as error:  # its own words have the proxy's password
            said = f"{error.status} {error.message}"
            raise NotSentError(
                f"{self.base_url} cannot be reached: the proxy answered {said}."
            ) from None
        except ValueError:  # the value may be secret
            raise InvalidInputError("A header holds what HTTP cannot.") from None
        except (aiohttp.ClientError, OSError) as error:
            raise StorageUnavailableError(
                f"No answer from {self.base_url} to {method} {path}: {_said(error)}. Whether the "
                "call was carried out is not known."
            ) from error

    def session(self) -> aiohttp.ClientSession:
        """Return the running loop's session, made when it is first asked for."""
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            try:
                import aiohttp
            except ModuleNotFoundError as error:
                raise MissingExtraError(
                    f"This service needs aiohttp: pip install 'threadline[{self._extra}]'"
                ) from error
            ended = [one for one in list(self._sessions) if one.is_closed()]
            _let_go({one: self._sessions.pop(one) for one in ended})
            session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                connector=aiohttp.TCPConnector(
                    limit=CONNECTIONS_MAX,
                    keepalive_timeout=KEEP_IDLE_S,
                    ssl=tls() if self._root.startswith("https:") else True,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                # Found here once: with `trust_env` every call asks a thread for it.
                proxy=_proxy(self._root),
            )
            # What is sent again is for callers to decide. Not public, so it may go; then a GET, PUT
            # or DELETE whose connection broke is sent once more.
            session._retry_connection = False  # noqa: SLF001
            self._sessions[loop] = session
        return session

    async def close(self) -> None:
        """Let go of the running loop's connections; the next call makes new ones."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()


def _let_go(sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession]) -> None:
    """End what nobody closed, as every other service does: without a complaint."""
    for session in sessions.values():
        # Not public, so it may go; then aiohttp complains.
        close = getattr(session.connector, "_close", None)
        session.detach()
        if close is not None:
            close()


def _proxy(url: str) -> str | None:
    """Return the proxy that the environment has for a URL: HTTP_PROXY, NO_PROXY and the others."""
    from urllib.request import getproxies, proxy_bypass

    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise InvalidInputError(
            f"The proxy for {parts.scheme} in the environment must begin with http:// or "
            f"https://, not with {proxy.partition('://')[0]}://."
        )
    return proxy


def tls() -> ssl.SSLContext:
    """Return what certificates are checked with: the system's, or certifi's if there are none."""
    import ssl

    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if paths.cafile is None and paths.capath is None:
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _checked(base_url: str) -> str:
    """Return a URL as it goes over the wire, or raise without repeating it: it may be secret."""
    try:
        url = urlsplit(base_url)
        is_one = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:  # a port that is no number
        is_one = False
    if not is_one or url.username is not None or url.query or url.fragment:
        raise InvalidInputError(
            "base_url must begin with http:// or https:// and name a host, with a port and a path "
            "if there are any, and nothing else."
        )
    path = quote(url.path, safe="/%:@!$&'()*+,;=~")
    return f"{url.scheme}://{url.netloc}{path}"


def _encoded(query: Query) -> str:
    given = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in query.items()
        if value is not None
    }
    return urlencode(given, quote_via=quote)


def _sent(body: bytes | None) -> bytes | io.BytesIO | None:
    """Let a large body be sent in pieces, between which others have their turn."""
    return io.BytesIO(body) if body is not None and len(body) > PIECE_BYTES else body


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
