"""HTTP to one server, over connections that are kept open between calls.

A library parses what comes, and asyncio has the sockets and TLS; `docs/design/http-client.md` says
why the rest is here. There are no redirects and no cookies: the APIs that are called have none.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from threadline.errors import InvalidInputError, MissingExtraError, StorageUnavailableError
from threadline.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType
    from urllib.parse import SplitResult

    from threadline.addresses import Address

    Query = Mapping[str, str | int | float | bool | None]

KEEP_IDLE_S = 30.0
"""How long an idle connection is kept; less than the server keeps it, which closes them at 75."""
CONNECTIONS_MAX = 100
"""How many an event loop may have; further calls wait for one."""


class NotSentError(StorageUnavailableError):
    """No connection was made, so nothing was carried out."""


class Answer(NamedTuple):
    """What a server said; the names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connections:
    """The connections of one service to its server.

    `headers` go with every call, `timeout_s` is the time for a whole one, and `extra` is what
    brings the parser to those who lack it. JSON is sent and asked for.
    """

    def __init__(
        self, base_url: str, headers: Mapping[str, str], timeout_s: float, extra: str
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._url = _checked(self.base_url)
        self._path = quote(self._url.path, safe="/%:@!$&'()*+,;=~")
        common = {
            "user-agent": f"threadline/{__version__}",
            "accept": "application/json",
            "accept-encoding": "gzip",
        }
        self._headers = "".join(_header(*one) for one in {**common, **headers}.items())
        self._timeout_s = timeout_s
        self._extra = extra
        self._address: Address | None = None
        # A connection belongs to the event loop that made it.
        self._pools: dict[asyncio.AbstractEventLoop, _Pool] = {}

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
        address = self._address or self._find_address()
        request = self._request(address, method, path, query, headers, body)
        pool, connection, answer = self.pool(), None, None
        try:
            async with asyncio.timeout(self._timeout_s), pool.room:
                connection = pool.take() or await address.connect(_Connection)
                answer = await connection.ask(request)
            return answer._replace(body=_unpacked(answer))
        except (OSError, zlib.error) as error:
            said = str(error) or type(error).__name__
            if connection is None:
                raise NotSentError(f"{self.base_url} cannot be reached: {said}.") from error
            raise StorageUnavailableError(
                f"No answer from {self.base_url} to {method} {path}: {said}. Whether the call was "
                "carried out is not known."
            ) from error
        finally:
            if connection is not None:
                pool.give_back(connection, is_done=answer is not None)

    def pool(self) -> _Pool:
        """Return the running loop's connections."""
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            _parser(self._extra)
            for one in [one for one in list(self._pools) if one.is_closed()]:
                self._pools.pop(one, None)
            pool = self._pools[loop] = _Pool(loop)
        return pool

    async def close(self) -> None:
        """Let go of the running loop's connections; the next call makes new ones."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            pool.close()
            await asyncio.sleep(0)  # sockets are closed in the loop's next round

    def _find_address(self) -> Address:
        # Loaded when it is needed: certificates and proxies are more than the rest together.
        from threadline.addresses import find_address

        self._address = find_address(self._url)
        return self._address

    def _request(
        self,
        address: Address,
        method: str,
        path: str,
        query: Query | None,
        headers: Mapping[str, str] | None,
        body: bytes | None,
    ) -> bytes:
        target = f"{address.prefix}{self._path}{path}"
        if query:
            given = {
                name: str(value).lower() if isinstance(value, bool) else value
                for name, value in query.items()
                if value is not None
            }
            target = f"{target}?{urlencode(given, quote_via=quote)}" if given else target
        if " " in target or not (target.isascii() and target.isprintable()):
            raise InvalidInputError(f"{target!r} is no path of a URL.")
        head = f"{method} {target} HTTP/1.1\r\n{address.headers}{self._headers}"
        for name, value in (headers or {}).items():
            head += _header(name, value)
        if body is None:
            return f"{head}\r\n".encode()
        size = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        return (head + size).encode() + body


class _Pool:
    """The connections of one event loop; `room` is for those in use."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.room = asyncio.Semaphore(CONNECTIONS_MAX)
        self._loop = loop
        self._idle: list[_Connection] = []
        self._is_closed = False

    def take(self) -> _Connection | None:
        """Return the idle connection that was used last, if one is still open."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and self._loop.time() < connection.idle_until:
                return connection
            connection.end()
        return None

    def give_back(self, connection: _Connection, *, is_done: bool) -> None:
        """Keep a connection for the next call, if it is good for one."""
        if is_done and connection.is_open and not self._is_closed:
            connection.idle_until = self._loop.time() + KEEP_IDLE_S
            self._idle.append(connection)
        else:
            connection.end()

    def close(self) -> None:
        """End the idle connections, and the others when their calls end."""
        self._is_closed = True
        for connection in self._idle:
            connection.end()
        self._idle.clear()


class _Connection(asyncio.Protocol):
    """One connection, for one call at a time."""

    def __init__(self) -> None:
        self.is_open = True
        self.idle_until = 0.0
        self._parser = _parser().HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._clear()

    async def ask(self, request: bytes) -> Answer:
        """Send a request and wait for its answer, or for the end of the connection."""
        assert self._transport is not None  # noqa: S101 - for the type checker
        if not self.is_open:
            raise NotSentError("The server closed the connection before anything was sent.")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def end(self) -> None:
        """Break the connection off."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def _clear(self) -> None:
        self._headers: dict[str, str] = {}
        self._pieces: list[bytes] = []
        self._has_head = False

    # -- what asyncio calls -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # of a stream, as asked for

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except _parser().HttpParserError as error:
            self._fail(ConnectionError(f"The answer is no HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        sizes = self._headers.keys() & {"content-length", "transfer-encoding"}
        if error is None and self._has_head and not sizes:
            self.on_message_complete()  # the end of the connection is that of the answer
        else:
            self._fail(error or ConnectionResetError("The server closed the connection"))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.end()

    # -- what the parser calls ----------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._answer is None or self._answer.done():
            self.is_open = False  # nobody asked, so what it belongs to is not known

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._has_head = True

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        answer = Answer(status, self._headers, b"".join(self._pieces))
        self._clear()
        if status < 200:
            return  # one that announces another
        if not self._parser.should_keep_alive():
            self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)


def _checked(base_url: str) -> SplitResult:
    try:
        url = urlsplit(base_url)
        is_one = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:  # a port that is no number
        is_one = False
    if not is_one or url.username is not None or url.query or url.fragment:
        raise InvalidInputError(  # it may hold a password, so it is not said
            "base_url must begin with http:// or https:// and name a host, with a port and a path "
            "if there are any, and nothing else."
        )
    return url


def _header(name: str, value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise InvalidInputError(f"The header {name} must be printable ASCII.")  # it may be secret
    return f"{name}: {value}\r\n"


def _unpacked(answer: Answer) -> bytes:
    if answer.headers.get("content-encoding", "").lower() != "gzip" or not answer.body:
        return answer.body
    return zlib.decompress(answer.body, wbits=31)


def _parser(extra: str = "remote") -> ModuleType:
    try:
        import httptools
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"This service needs httptools: pip install 'threadline[{extra}]'"
        ) from error
    return httptools
