"""Domain mode: real TLS, real name look-up on loopback (`*.localhost`), HTTP/2 and HTTP/1.1 by ALPN, old clients."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import websockets
from e2b import Sandbox
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset
from sdk_support import creates_held_up, eventually

from matrix import versions
from matrix.run import client_environ, run_one
from support.host import skip_without
from support.server import ServerProcess
from support.tiers import one_tier

pytestmark = one_tier("names and TLS end at the edge")

MIB = 1024 * 1024


@dataclass(frozen=True)
class Domain:
    """A server in domain mode and what its clients need."""

    server: ServerProcess
    name: str
    host: str
    port: int
    bundle: str

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.bundle)

    def environ(self) -> dict[str, str]:
        told = {"E2B_API_KEY": self.server.api_key, "E2B_DOMAIN": self.name}
        return client_environ({**told, "SSL_CERT_FILE": self.bundle, "NODE_EXTRA_CA_CERTS": self.bundle})


@pytest.fixture(scope="module")
def domain(templates_dir: Path, tmp_path_factory: pytest.TempPathFactory, server: ServerProcess) -> Iterator[Domain]:
    skip_without("*.localhost")
    data_dir = tmp_path_factory.mktemp("domain") / "data"
    options = ["--end-sandboxes", "--domain", "sbx.localhost:0", "--tls", "auto"]
    running = ServerProcess.start(data_dir, templates_dir=templates_dir, options=options)
    told = json.loads((data_dir / "server.json").read_text())
    host, _, port = told["domain"].partition(":")
    yield Domain(running, told["domain"], host, int(port), told["ca_bundle"])
    assert running.stop() == 0, running.log_tail()


@pytest.fixture
def sandbox(domain: Domain) -> Iterator[Sandbox]:
    made = Sandbox.create(timeout=120, **plain(domain))
    yield made
    made.kill()


def plain(domain: Domain) -> dict[str, str]:
    """This process trusts no new authority: it comes by the plain port."""
    return {"api_key": domain.server.api_key, "api_url": domain.server.url, "sandbox_url": domain.server.url}


WEB = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = repr(sorted((k.lower(), v) for k, v in self.headers.items())).encode()
        if self.path.startswith("/big"):
            body = b"x" * int(self.path[4:])
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        size = 0
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while n := int(self.rfile.readline(), 16):
                size += len(self.rfile.read(n)); self.rfile.readline()
            self.rfile.readline()
        else:
            size = len(self.rfile.read(int(self.headers["content-length"])))
        body = str(size).encode()
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024  # its 5 drops connections, and the kernel tries those again after seconds
Server(("", 8000), Handler).serve_forever()
"""


@pytest.fixture
def web(sandbox: Sandbox, domain: Domain) -> str:
    """The host of a web server in a sandbox."""
    sandbox.files.write("web.py", WEB)
    sandbox.commands.run("python3 web.py", background=True, timeout=0)
    host = sandbox.get_host(8000)
    with httpx.Client(verify=domain.trust) as client:
        for _ in range(200):
            if client.get(f"https://{host}/").status_code == 200:
                return host
            time.sleep(0.05)
    raise AssertionError("the web server in the sandbox never answered")


def test_get_host_urls_are_served_over_trusted_tls(web: str, domain: Domain) -> None:
    assert web.endswith(f".{domain.name}")
    for http2 in (True, False):
        with httpx.Client(verify=domain.trust, http2=http2, http1=not http2) as client:
            answer = client.get(f"https://{web}/")
        assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        assert "('x-forwarded-proto', 'https')" in answer.text
    with pytest.raises(httpx.ConnectError), httpx.Client(verify=ssl.create_default_context()) as stranger:
        stranger.get(f"https://{web}/")


def test_bodies_of_any_size_pass_both_ways_over_http2(web: str, domain: Domain) -> None:
    with httpx.Client(verify=domain.trust, http2=True, http1=False, timeout=60) as client:
        for size in (0, 1, 65535, 65536, 5 * MIB):
            assert len(client.get(f"https://{web}/big{size}").content) == size
            assert client.post(f"https://{web}/", content=b"y" * size).text == str(size)
        pieces = client.post(f"https://{web}/", content=(b"z" * 1000 for _ in range(1000)))
        assert pieces.text == "1000000"
        assert client.head(f"https://{web}/").status_code == 501


async def test_many_streams_share_one_connection(web: str, domain: Domain) -> None:
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(verify=domain.trust, http2=True, http1=False, limits=limits, timeout=60) as client:
        answers = await asyncio.gather(*(client.get(f"https://{web}/big{n * 1000}") for n in range(100)))
    assert [len(answer.content) for answer in answers] == [n * 1000 for n in range(100)]


class Peer:
    """An HTTP/2 client that can do what libraries do not."""

    def __init__(self, domain: Domain) -> None:
        context = domain.trust
        context.set_alpn_protocols(["h2"])
        sock = socket.create_connection(("127.0.0.1", domain.port), timeout=20)
        self.sock = context.wrap_socket(sock, server_hostname=f"api.{domain.host}")
        assert self.sock.selected_alpn_protocol() == "h2"
        self.h2 = H2Connection(
            H2Configuration(client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False)
        )
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(2**30)
        self.flush()

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def request(self, host: str, path: str = "/", more: tuple[tuple[str, str], ...] = (), *, end: bool = True) -> int:
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", "GET" if end else "POST"), (":scheme", "https"), (":authority", host), (":path", path)]
        self.h2.send_headers(stream, [*head, *more], end_stream=end)
        self.flush()
        return stream

    def until(self, stream: int, kind: type) -> list[object]:
        """The stream's events up to one of that kind. DATA is not acknowledged: windows stay shut once used up."""
        seen: list[object] = []
        while True:
            data = self.sock.recv(65536)
            assert data, f"closed before {kind.__name__}: {seen}"
            seen += [event for event in self.h2.receive_data(data) if getattr(event, "stream_id", None) == stream]
            self.flush()
            if any(isinstance(event, kind) for event in seen):
                return seen

    def close(self) -> None:
        self.sock.close()


def test_a_slow_reader_of_one_stream_stalls_only_that_stream(web: str, domain: Domain) -> None:
    peer = Peer(domain)
    slow = peer.request(web, f"/big{4 * MIB}")
    peer.until(slow, ResponseReceived)
    for _ in range(5):
        quick = peer.request(web, "/big1000")
        events = peer.until(quick, StreamEnded)
        assert sum(len(event.data) for event in events if isinstance(event, DataReceived)) == 1000
    peer.h2.increment_flow_control_window(8 * MIB, slow)
    peer.flush()
    peer.until(slow, StreamEnded)
    peer.close()


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/ HTTP/1.1\r\nx: y", ()),
        ("/", (("x", "a\r\nhost: other"),)),
        ("/", (("x\r\ny", "z"),)),
        ("http://other/", ()),
        ("/", (("transfer-encoding", "chunked"),)),
    ],
)
def test_a_head_that_http1_would_read_differently_is_refused(
    domain: Domain, path: str, more: tuple[tuple[str, str], ...]
) -> None:
    peer = Peer(domain)
    stream = peer.request(f"api.{domain.name}", path, more)
    data, refused = b"", False
    while not refused:
        data = peer.sock.recv(65536)
        refused = not data or any(
            isinstance(event, StreamReset) or type(event).__name__ == "ConnectionTerminated"
            for event in peer.h2.receive_data(data)
        )
    assert stream
    peer.close()
    assert httpx.get(f"https://api.{domain.name}/health", verify=domain.trust).status_code < 300


def test_a_stream_that_is_reset_during_a_create_leaves_no_sandbox(domain: Domain) -> None:
    before = {one.sandbox_id for one in Sandbox.list(**plain(domain)).next_items()}
    peer = Peer(domain)
    with creates_held_up(domain.server):
        body = (("x-api-key", domain.server.api_key), ("content-type", "application/json"))
        stream = peer.request(f"api.{domain.name}", "/v2/sandboxes", body, end=False)
        peer.h2.send_data(stream, b'{"templateID":"base","timeout":3600}', end_stream=True)
        peer.flush()
        began = Path(domain.server.data_dir) / "sandboxes"
        eventually(lambda: len(list(began.iterdir())) > len(before), what="the create has begun")
        peer.h2.reset_stream(stream)
        peer.flush()
        # The connection lives on, so it is the stream alone that the server hears of.
        peer.until(peer.request(f"api.{domain.name}", "/health"), StreamEnded)
    eventually(lambda: len(list(began.iterdir())) == len(before), what="nothing of it is left")
    assert {one.sandbox_id for one in Sandbox.list(**plain(domain)).next_items()} == before
    peer.close()


def test_a_client_that_only_opens_and_resets_streams_is_sent_away(domain: Domain) -> None:
    peer = Peer(domain)
    with suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(3000):
            stream = peer.h2.get_next_available_stream_id()
            head = [(":method", "GET"), (":scheme", "https"), (":authority", f"api.{domain.name}"), (":path", "/")]
            peer.h2.send_headers(stream, head, end_stream=True)
            peer.h2.reset_stream(stream)
            peer.flush()
    with suppress(ConnectionResetError, ssl.SSLError):  # a time-out is neither: it fails the test
        while peer.sock.recv(65536):
            pass
    assert httpx.get(f"https://api.{domain.name}/health", verify=domain.trust).status_code < 300


async def test_websockets_pass_over_tls(sandbox: Sandbox, domain: Domain) -> None:
    sandbox.files.write("ws.py", WEBSOCKET)
    sandbox.commands.run("python3 ws.py", background=True, timeout=0)
    url = f"wss://{sandbox.get_host(8001)}/"
    for attempt in range(100):
        try:
            async with websockets.connect(url, ssl=domain.trust) as connection:
                await connection.send("hello")
                assert await connection.recv() == "hello"
                return
        except websockets.InvalidStatus:
            assert attempt < 99
            await asyncio.sleep(0.05)


WEBSOCKET = """
import base64, hashlib, socket
server = socket.create_server(("", 8001))
while True:
    peer, _ = server.accept()
    head = b""
    while b"\\r\\n\\r\\n" not in head: head += peer.recv(4096)
    key = next(l.split(b":", 1)[1].strip() for l in head.split(b"\\r\\n") if l.lower().startswith(b"sec-websocket-key"))
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    peer.sendall(b"HTTP/1.1 101 S\\r\\nupgrade: websocket\\r\\nconnection: upgrade\\r\\nsec-websocket-accept: "
                 + accept + b"\\r\\n\\r\\n")
    frame = peer.recv(4096)
    size, mask = frame[1] & 127, frame[2:6]
    text = bytes(c ^ mask[i % 4] for i, c in enumerate(frame[6:6 + size]))
    peer.sendall(b"\\x81" + bytes([size]) + text)
    peer.recv(4096)
    peer.close()
"""


def test_the_operators_certificate_is_served_and_read_again_when_it_changes(
    templates_dir: Path, tmp_path: Path, domain: Domain
) -> None:
    from atoll.tls import Authority

    first, second = Authority.kept_in(tmp_path / "one", "one"), Authority.kept_in(tmp_path / "two", "two")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def put(authority: Authority) -> None:
        key.write_bytes(authority.leaf_key_pem)
        certificate.write_bytes(authority.issue(("own.localhost", "*.own.localhost")))

    put(first)
    running = ServerProcess.start(
        tmp_path / "data",
        templates_dir=templates_dir,
        options=["--domain", "own.localhost:0", "--tls-cert", str(certificate), "--tls-key", str(key)],
    )
    try:
        name = json.loads((tmp_path / "data" / "server.json").read_text())["domain"]
        assert _health(name, first) < 300
        put(second)
        eventually(lambda: _serves(name, second), what="the new certificate is served")
        with pytest.raises(httpx.ConnectError):
            _health(name, first)
    finally:
        running.stop()


def _serves(name: str, authority: object) -> bool:
    try:
        return _health(name, authority) < 300
    except httpx.ConnectError:
        return False


def _health(name: str, authority: object) -> int:
    context = ssl.create_default_context(cadata=authority.pem)  # type: ignore[attr-defined]
    return httpx.get(f"https://api.{name}/health", verify=context).status_code


def test_env_prints_what_points_a_client_at_the_domain(domain: Domain) -> None:
    command = [sys.executable, "-m", "atoll.cli.main", "env", "--domain", "--json"]
    environ = {**os.environ, "ATOLL_DATA_DIR": str(domain.server.data_dir)}
    told = json.loads(subprocess.run(command, env=environ, capture_output=True, check=True).stdout)
    assert told["E2B_DOMAIN"] == domain.name
    assert told["SSL_CERT_FILE"] == told["NODE_EXTRA_CA_CERTS"] == domain.bundle


SAMPLE = [(language, version) for language in versions.FIRST for version in versions.sample(language)]


@pytest.fixture(scope="module")
def sample_results(domain: Domain, interpreter_template: None) -> dict[tuple[str, str], object]:
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda one: run_one(*one, domain.environ()), SAMPLE)
        return dict(zip(SAMPLE, results, strict=True))


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("language", "version"), SAMPLE)
def test_an_old_client_runs_the_core_scenario(
    sample_results: dict[tuple[str, str], object], language: str, version: str
) -> None:
    result = sample_results[language, version]
    if result.trouble.startswith("not installed"):  # type: ignore[attr-defined]
        pytest.skip(result.trouble)  # type: ignore[attr-defined]
    assert result.failures == {}  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_http2", [False, True], ids=["http1", "http2"])
def test_the_console_by_tls_is_no_sandboxs(domain: Domain, sandbox: Sandbox, is_http2: bool) -> None:
    """Sandboxes are of the same site: their pages get the cookie sent along, and change nothing for all that."""
    url = f"https://{domain.name}"
    theirs = f"https://8000-{sandbox.sandbox_id}.{domain.name}"
    with httpx.Client(base_url=url, verify=domain.trust, http2=is_http2, timeout=60) as client:
        form = {"key": domain.server.api_key}
        assert client.post("/console/login", data=form, headers={"Origin": theirs}).status_code == 403
        cookie = client.post("/console/login", data=form, headers={"Origin": url}).headers["set-cookie"]
        assert cookie.startswith("__Host-atoll-console=")
        assert {"Secure", "HttpOnly", "Path=/", "SameSite=strict"} <= set(cookie.split("; "))
        text = client.get("/console/").text
        csrf = text.partition('<meta name="csrf" content="')[2].partition('"')[0]
        kill = f"/console/sandboxes/{sandbox.sandbox_id}/kill"
        assert client.post(kill, data={"csrf": csrf}, headers={"Origin": theirs}).status_code == 403
        assert sandbox.is_running()
        assert client.post(kill, data={"csrf": csrf}, headers={"Origin": url}).status_code == 303
        assert not sandbox.is_running()
