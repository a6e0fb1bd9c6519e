"""HTTP as it comes: answers of every shape, broken ones, proxies, certificates, event loops."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import gzip
import ssl
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from servers import free_port
from servers_http import served
from threadline import (
    InMemorySessionService,
    InvalidInputError,
    NotSentError,
    StorageUnavailableError,
    connections,
)
from threadline.connections import Answer, Connections, tls

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@contextlib.contextmanager
def _ended(*writers: asyncio.StreamWriter) -> Iterator[None]:
    """End connections with a block, which may be cancelled with its loop."""
    try:
        yield
    finally:
        for writer in writers:
            writer.close()


class Server:
    """A server that says what it is told, and notes what it hears.

    `script` has what is sent for each request, or None for a connection that breaks; a connection
    that ends after its answer is said so by `closing`.
    """

    def __init__(self, *script: bytes | None, closing: bool = False) -> None:
        self.script = list(script)
        self.closing = closing
        self.heard: list[bytes] = []
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with _ended(writer), contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
                self.heard.append(head + await reader.readexactly(int(size or 0)))
                answer = self.script.pop(0)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
                if self.closing:
                    break

    @contextlib.asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Connections]:
        port = free_port()
        self.url = f"{'https' if tls else 'http'}://localhost:{port}"
        async with await asyncio.start_server(self.serve, "localhost", port, ssl=tls):
            calls = Connections(self.url, {"x-fixed": "yes"}, 5.0, "remote")
            try:
                yield calls
            finally:
                await calls.close()


async def call(*script: bytes | None, closing: bool = False) -> Answer:
    async with Server(*script, closing=closing).running() as calls:
        return await calls.call("GET", "/")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


# -- requests ---------------------------------------------------------------------------


def test_a_request_has_its_query_headers_and_body() -> None:
    server = Server(OK)

    async def run() -> None:
        async with server.running() as calls:
            query = {"a": 'x "&é', "b": True, "c": None, "d": 1}
            await calls.call("POST", "/p", query=query, headers={"if-match": "1"}, body=b"[]")

    asyncio.run(run())
    line, *headers = server.heard[0].split(b"\r\n")
    assert line == b"POST /p?a=x%20%22%26%C3%A9&b=true&d=1 HTTP/1.1"
    assert headers[-1] == b"[]"
    expected = {b"x-fixed: yes", b"if-match: 1", b"content-type: application/json"}
    assert expected | {b"content-length: 2"} <= {header.lower() for header in headers}


@pytest.mark.parametrize(
    "given",
    [
        {"path": "/a b"},
        {"path": "/a\r\nx: y"},
        {"path": "/é"},
        {"path": "/", "headers": {"authorization": "Bearer a\r\nx: y"}},
    ],
)
def test_what_would_break_out_of_its_line_is_not_sent(given: Any) -> None:
    server = Server(OK)

    async def run() -> None:
        async with server.running() as calls:
            with pytest.raises(InvalidInputError) as refused:
                await calls.call("GET", **given)
            assert "Bearer" not in str(refused.value)

    asyncio.run(run())
    assert server.heard == []


@pytest.mark.parametrize(
    "url", ["localhost:80", "ftp://host", "http://", "http://h:port", "http://u:secret@host", ""]
)
def test_what_is_no_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidInputError, match="base_url") as refused:
        Connections(url, {}, 1.0, "remote")
    assert "secret" not in str(refused.value)


# -- answers ----------------------------------------------------------------------------

ANSWERS = {
    "a length": OK,
    "chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
    "an announcement": b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK,
    "packed": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%b"
    % (len(gzip.compress(b"{}")), gzip.compress(b"{}")),
    "old": b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_is_read_whatever_its_shape(kind: str) -> None:
    answer = asyncio.run(call(ANSWERS[kind]))
    assert (answer.status, answer.body) == (200, b"{}")
    assert "link" not in answer.headers


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    assert asyncio.run(call(b"HTTP/1.1 200 OK\r\n\r\n{}", closing=True)).body == b"{}"


def test_an_answer_without_a_body_is_one() -> None:
    assert asyncio.run(call(b"HTTP/1.1 204 No Content\r\n\r\n")).status == 204


def test_a_redirect_is_an_answer_and_not_followed() -> None:
    moved = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
    assert asyncio.run(call(moved)).status == 302


BROKEN = {
    "none": None,
    "half a head": b"HTTP/1.1 200",
    "half a body": b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}",
    "half a chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\n{}",
    "no HTTP": b"SSH-2.0-hello\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "no gzip": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_of_a_broken_answer_the_outcome_is_not_known(kind: str) -> None:
    with pytest.raises(StorageUnavailableError, match="is not known") as failed:
        asyncio.run(call(BROKEN[kind], closing=True))
    assert not isinstance(failed.value, NotSentError)


def test_of_an_answer_that_does_not_come_the_outcome_is_not_known() -> None:
    async def run() -> None:
        async with Server(b"").running() as calls:
            calls._timeout_s = 0.1
            with pytest.raises(StorageUnavailableError, match="is not known"):
                await calls.call("GET", "/")

    asyncio.run(run())


def test_without_a_server_nothing_was_sent() -> None:
    with pytest.raises(NotSentError):
        calls = Connections(f"http://127.0.0.1:{free_port()}", {}, 5.0, "remote")
        asyncio.run(calls.call("GET", "/"))


# -- connections ------------------------------------------------------------------------


async def _calls(server: Server, times: int) -> None:
    async with server.running() as calls:
        for _ in range(times):
            assert (await calls.call("GET", "/")).body == b"{}"
            await asyncio.sleep(0.02)  # what the server does to the connection arrives


def test_a_connection_is_used_again() -> None:
    server = Server(OK, OK, OK)
    asyncio.run(_calls(server, 3))
    assert server.connections == 1


def test_a_connection_that_is_left_for_too_long_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "KEEP_IDLE_S", 0.0)
    server = Server(OK, OK)
    asyncio.run(_calls(server, 2))
    assert server.connections == 2


CLOSES = {
    "without a word": (OK, True),
    "and says so": (OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), False),
    "after saying too much": (OK + OK, False),
}


@pytest.mark.parametrize("kind", CLOSES)
def test_a_connection_that_the_server_closes_is_not_used(kind: str) -> None:
    answer, closing = CLOSES[kind]
    server = Server(answer, answer, closing=closing)
    asyncio.run(_calls(server, 2))
    assert server.connections == 2


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
def test_a_call_whose_connection_broke_is_not_sent_again(method: str) -> None:
    server = Server(OK, None, OK)

    async def run() -> None:
        async with server.running() as calls:
            await calls.call("GET", "/")
            with pytest.raises(StorageUnavailableError, match="is not known"):
                await calls.call(method, "/")

    asyncio.run(run())
    assert len(server.heard) == 2


def test_a_call_that_is_cancelled_leaves_no_answer_to_the_next() -> None:
    server = Server(b"", OK)

    async def run() -> None:
        async with server.running() as calls:
            task = asyncio.create_task(calls.call("GET", "/"))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await calls.call("GET", "/")).body == b"{}"

    asyncio.run(run())
    assert server.connections == 2


def test_more_calls_than_connections_wait_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_MAX", 2)
    server = Server(*[OK] * 9)

    async def run() -> None:
        async with server.running() as calls:
            await asyncio.gather(*(calls.call("GET", "/") for _ in range(9)))

    asyncio.run(run())
    assert server.connections == 2


def test_every_event_loop_has_connections_of_its_own() -> None:
    with served(InMemorySessionService()) as url:
        calls = Connections(url, {}, 5.0, "remote")

        async def run() -> int:
            answer = await calls.call("GET", "/readyz")
            await calls.close()
            return answer.status

        assert [asyncio.run(run()) for _ in range(3)] == [200, 200, 200]


def test_without_aiohttp_the_extra_is_named() -> None:
    code = """
        import asyncio, sys
        sys.modules["aiohttp"] = None
        import threadline
        async def main():
            async with threadline.RemoteSessionService("http://127.0.0.1:1"):
                pass
        try:
            asyncio.run(main())
        except threadline.MissingExtraError as error:
            print(error)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert "threadline[remote]" in done.stdout, done.stderr


# -- certificates and proxies -----------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a key and a certificate for localhost, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    pem = serialization.Encoding.PEM
    file.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed.public_bytes(pem)
    )
    return file


def _tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def _secure(certificate: Path) -> Answer:
    async with Server(OK).running(_tls(certificate)) as calls:
        return await calls.call("GET", "/")


def test_a_certificate_that_the_environment_trusts_is_taken(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert asyncio.run(_secure(certificate)).status == 200


def test_a_certificate_that_nobody_trusts_is_refused_before_anything_is_sent(
    certificate: Path,
) -> None:
    with pytest.raises(NotSentError, match="certificate"):
        asyncio.run(_secure(certificate))


def test_where_python_finds_no_certificates_there_are_certifis(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    assert tls().cert_store_stats()["x509_ca"] > 50


def test_another_event_loop_will_do(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(call(OK)).status == 200
        assert runner.run(_secure(certificate)).status == 200


class TunnelProxy:
    """A proxy that connects to where it is told, if it is told the right password."""

    def __init__(self, refusal: bytes = b"") -> None:
        self.heads: list[bytes] = []
        self.refusal = refusal

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with _ended(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            if self.refusal:
                writer.write(self.refusal)
                return
            host, _, port = head.split()[1].decode().rpartition(":")
            there, out = await asyncio.open_connection(host, int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(self.pump(reader, out), self.pump(there, writer))

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with _ended(writer), contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)


async def _through(
    proxy: TunnelProxy, work: Callable[[], Any], port: int, tls: ssl.SSLContext | None = None
) -> Any:
    async with await asyncio.start_server(proxy.serve, "localhost", port, ssl=tls):
        return await work()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_https_goes_through_a_tunnel_of_the_proxy(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    proxy, port = TunnelProxy(), free_port()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://ada:p%40ss@localhost:{port}")
    tls = _tls(certificate) if scheme == "https" else None
    answer = asyncio.run(_through(proxy, lambda: _secure(certificate), port, tls))
    assert answer.body == b"{}"
    assert proxy.heads[0].startswith(b"CONNECT localhost:")
    assert b"Basic " + base64.b64encode(b"ada:p@ss") in proxy.heads[0]


def test_a_proxy_that_refuses_is_named_and_nothing_was_sent(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = b"HTTP/1.1 407 Authenticate\r\n\r\n"
    port = free_port()
    monkeypatch.setenv("HTTPS_PROXY", f"http://ada:secret@localhost:{port}")
    with pytest.raises(NotSentError, match="proxy") as refused:
        asyncio.run(_through(TunnelProxy(refusal), lambda: _secure(certificate), port))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("exempt", [False, True])
def test_http_is_asked_of_the_proxy_but_for_hosts_that_are_exempt(
    monkeypatch: pytest.MonkeyPatch, exempt: bool
) -> None:
    server, proxy = Server(OK), Server(OK)

    async def run() -> None:
        async with proxy.running():
            monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//ada:b@"))
            if exempt:
                monkeypatch.setenv("NO_PROXY", "localhost")
            async with server.running() as calls:
                await calls.call("GET", "/p")

    asyncio.run(run())
    heard, other = (server, proxy) if exempt else (proxy, server)
    assert other.heard == []
    assert heard.heard[0].startswith(f"GET {'' if exempt else server.url}/p HTTP/1.1\r\n".encode())
    assert (b"proxy-authorization: basic" in heard.heard[0].lower()) is not exempt


def test_a_proxy_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(InvalidInputError, match="socks5"):
        asyncio.run(Connections("http://host", {}, 1.0, "remote").call("GET", "/"))
