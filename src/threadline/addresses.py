"""Where a server is and how it is reached: TLS, and the proxy that the environment names.

The variables are those of curl and everything else: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and
NO_PROXY; SSL_CERT_FILE and SSL_CERT_DIR. Loaded with the first connection, as what it imports
takes a while.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from threadline.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

P = TypeVar("P", bound=asyncio.Protocol)

_PORTS = {"http": 80, "https": 443}
_HEAD_MAX_BYTES = 2**16
_NEXT_ADDRESS_S = 0.25
"""How long one of a host's addresses is given before the next is tried beside it, as RFC 8305."""


class Address:
    """How one server is reached.

    `prefix` stands before the path in a request's first line, and `headers` come with it.
    """

    def __init__(self, url: SplitResult, proxy: SplitResult | None) -> None:
        host = _host(url)
        named = f"{host}:{url.port}" if url.port else host
        self.prefix = ""
        self.headers = f"host: {named}\r\n"
        self._server = (host.strip("[]"), url.port or _PORTS[url.scheme])
        self._tls = tls() if url.scheme == "https" else None
        self._proxy: tuple[str, int] | None = None
        self._proxy_tls: ssl.SSLContext | None = None
        self._connect = b""
        if proxy is None:
            return
        self._proxy = (_host(proxy).strip("[]"), proxy.port or _PORTS[proxy.scheme])
        self._proxy_tls = tls() if proxy.scheme == "https" else None
        access = f"proxy-authorization: {_basic(proxy)}\r\n" if proxy.username else ""
        if self._tls is None:
            self.prefix = f"http://{named}"
            self.headers += access
        else:
            target = f"{host}:{self._server[1]}"
            self._connect = f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n{access}\r\n".encode()

    async def connect(self, make: Callable[[], P]) -> P:
        """Return the protocol of a new connection, or raise OSError."""
        loop = asyncio.get_running_loop()
        if not self._connect:
            host, port = self._proxy or self._server
            context = self._tls if self._proxy is None else self._proxy_tls
            _, protocol = await _open(make, host, port, context)
            return protocol
        assert self._proxy is not None  # noqa: S101 - for the type checker
        assert self._tls is not None  # noqa: S101
        transport, tunnel = await _open(_Tunnel, *self._proxy, self._proxy_tls)
        try:
            transport.write(self._connect)
            await tunnel.opened
            protocol = make()
            secured = await loop.start_tls(
                transport, protocol, self._tls, server_hostname=self._server[0]
            )
        except BaseException:
            transport.abort()
            raise
        assert secured is not None  # noqa: S101 - it was open a moment ago
        protocol.connection_made(secured)
        return protocol


async def _open(
    make: Callable[[], P], host: str, port: int, tls: ssl.SSLContext | None
) -> tuple[asyncio.Transport, P]:
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {}
    if isinstance(loop, asyncio.BaseEventLoop):  # uvloop's tries one after the other
        options["happy_eyeballs_delay"] = _NEXT_ADDRESS_S
    return await loop.create_connection(make, host, port, ssl=tls, **options)


class _Tunnel(asyncio.Protocol):
    """A connection to a proxy that is asked for a tunnel; `opened` is its answer."""

    def __init__(self) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._head = b""

    def data_received(self, data: bytes) -> None:
        self._head += data
        is_whole = b"\r\n\r\n" in self._head or len(self._head) > _HEAD_MAX_BYTES
        if not is_whole or self.opened.done():
            return
        if self._head.split(None, 2)[1:2] == [b"200"]:
            self.opened.set_result(None)
        else:
            said = self._head.split(b"\r\n")[0][:200].decode("latin-1")
            self.opened.set_exception(ConnectionRefusedError(f"The proxy said {said!r}"))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(error or ConnectionResetError("The proxy did not answer"))


def find_address(url: SplitResult) -> Address:
    """Return the address behind a URL, by way of the proxy that the environment has for it."""
    proxies = getproxies()
    named = proxies.get(url.scheme) or proxies.get("all")
    if not named or proxy_bypass(url.netloc):
        return Address(url, None)
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    if proxy.scheme not in _PORTS or not proxy.hostname:
        raise InvalidInputError(
            f"The proxy for {url.scheme} in the environment must begin with http:// or https://, "
            f"not with {proxy.scheme}://."
        )
    return Address(url, proxy)


def tls() -> ssl.SSLContext:
    """Return how certificates are checked: by the system's, or certifi's if there are none."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if paths.cafile is None and paths.capath is None:
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _host(url: SplitResult) -> str:
    """Return a host as it stands in a URL, in ASCII."""
    host = url.hostname or ""
    if ":" in host:
        return f"[{host}]"
    return host if host.isascii() else host.encode("idna").decode()


def _basic(url: SplitResult) -> str:
    pair = f"{unquote(url.username or '')}:{unquote(url.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"
