"""The edge before real sandboxes: programs of the template serve, the published SDK and plain clients ask.

What a hostile program could send is tested on bare sockets in `test_edge_sockets.py`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from e2b import Sandbox
from sdk_support import eventually

from support.tiers import one_tier

pytestmark = one_tier("the edge forwards bytes; that a port of a sandbox is reached in every tier: test_sdk_urls.py")

PORT = 8000

WEB = r"""
import hashlib, http.server, json, os, socketserver, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/slow":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"4\r\ntick\r\n")
                    time.sleep(0.05)
            except OSError:
                open("/tmp/client-left", "w").close()
            self.close_connection = True
            return
        if self.path.startswith("/big/"):
            size = int(self.path[5:])
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            block = b"\xa5" * 65536
            while size:
                size -= self.wfile.write(block[:size])
            return
        body = json.dumps({"path": self.path, "headers": dict(self.headers.items())}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        left, digest = int(self.headers["Content-Length"]), hashlib.sha256()
        while left:
            data = self.rfile.read(min(left, 1 << 20))
            digest.update(data)
            left -= len(data)
        body = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024  # its 5 drops connections, and the kernel tries those again after seconds

Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

ECHO_WEBSOCKET = r"""
import base64, hashlib, socket, struct, sys

def frames(stream):
    while True:
        head = stream.read(2)
        if len(head) < 2:
            return
        size = head[1] & 127
        if size == 126:
            size = struct.unpack(">H", stream.read(2))[0]
        elif size == 127:
            size = struct.unpack(">Q", stream.read(8))[0]
        mask = stream.read(4)
        yield head[0], bytes(b ^ mask[i % 4] for i, b in enumerate(stream.read(size)))

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    peer, _ = listener.accept()
    stream = peer.makefile("rwb")
    key = b""
    while (line := stream.readline().strip()):
        if line.lower().startswith(b"sec-websocket-key:"):
            key = line.split(b":", 1)[1].strip()
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    stream.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                 b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
    stream.flush()
    for opcode, data in frames(stream):
        size = len(data)
        head = bytes([opcode]) + (bytes([size]) if size < 126 else b"\x7e" + struct.pack(">H", size))
        stream.write(head + data)
        stream.flush()
        if opcode & 15 == 8:
            break
    peer.close()
"""


@pytest.fixture(scope="module")
def web(server: Any) -> Any:
    """A sandbox whose web server answers on port 8000; with a client that is routed to it by headers."""
    sandbox = Sandbox.create(timeout=600)
    try:
        sandbox.files.write("/tmp/web.py", WEB)
        sandbox.commands.run(f"python3 /tmp/web.py {PORT}", background=True, timeout=0)
        client = httpx.Client(
            base_url=server.url,
            headers={"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(PORT)},
            timeout=60,
        )
        with client:
            eventually(lambda: client.get("/").status_code == 200, what="the program serves")
            yield sandbox, client
    finally:
        sandbox.kill()


def test_a_program_in_the_sandbox_is_reached_and_knows_who_asks(web: Any) -> None:
    _, client = web
    answer = client.get("/a/b?c=d", headers={"X-Mine": "1"})
    told = {name.lower(): value for name, value in answer.json()["headers"].items()}
    assert answer.json()["path"] == "/a/b?c=d"
    assert told["x-mine"] == "1"
    assert told["x-forwarded-for"] == "127.0.0.1"
    assert told["x-forwarded-proto"] == "http"


def test_a_host_name_reaches_the_same_program(server: Any, web: Any) -> None:
    sandbox, _ = web
    for host in (sandbox.get_host(PORT), f"{PORT}-{sandbox.sandbox_id}.localhost"):
        assert httpx.get(f"{server.url}/x", headers={"Host": host}).json()["path"] == "/x"


def test_a_hundred_megabytes_go_up_and_down_whole(web: Any) -> None:
    _, client = web
    size = 100 * 1024 * 1024
    block = os.urandom(1024 * 1024)
    digest = hashlib.sha256()
    for _ in range(100):
        digest.update(block)
    answer = client.post("/", content=(block for _ in range(100)), headers={"Content-Length": str(size)})
    assert answer.text == digest.hexdigest()
    got = 0
    with client.stream("GET", f"/big/{size}") as stream:
        for piece in stream.iter_bytes():
            got += len(piece)
            assert piece.strip(b"\xa5") == b""
    assert got == size


def test_a_client_that_leaves_is_noticed_inside_at_once(web: Any) -> None:
    sandbox, client = web
    with client.stream("GET", "/slow") as stream:
        assert next(stream.iter_raw()).startswith(b"tick")
    eventually(lambda: sandbox.files.exists("/tmp/client-left"), what="the program saw the client leave")


def test_many_clients_at_once_each_get_their_own_answer(server: Any, web: Any) -> None:
    sandbox, _ = web

    async def ask() -> list[str]:
        headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(PORT)}
        async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as client:
            answers = await asyncio.gather(*(client.get(f"/{number}") for number in range(300)))
        return [answer.json()["path"] for answer in answers]

    assert asyncio.run(ask()) == [f"/{number}" for number in range(300)]


def test_one_connection_carries_control_sandbox_and_dead_sandbox_in_any_order(server: Any, web: Any) -> None:
    sandbox, _ = web
    control = {"X-API-Key": server.api_key}
    inside = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(PORT)}
    dead = {"E2b-Sandbox-Id": "i0000000000000000000"}
    with httpx.Client(base_url=server.url, limits=httpx.Limits(max_connections=1)) as client:
        for _ in range(3):
            assert client.get("/v2/sandboxes", headers=control).status_code == 200
            assert client.get("/p", headers=inside).json()["path"] == "/p"
            assert client.get("/p", headers=dead).status_code == 502


def test_a_websocket_runs_through_the_edge(server: Any, web: Any) -> None:
    sandbox, _ = web
    sandbox.files.write("/tmp/ws.py", ECHO_WEBSOCKET)
    sandbox.commands.run("python3 /tmp/ws.py 8010", background=True, timeout=0)
    address = urllib.parse.urlsplit(server.url)

    def dial() -> socket.socket | None:
        sock = socket.create_connection((address.hostname, address.port), timeout=20)
        key = base64.b64encode(os.urandom(16)).decode()
        sock.sendall(
            f"GET /ws HTTP/1.1\r\nHost: {sandbox.get_host(8010)}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        if sock.recv(4096).startswith(b"HTTP/1.1 101 "):
            return sock
        sock.close()
        return None

    with eventually(dial, what="the program in the sandbox switched protocols") as sock:  # type: ignore[union-attr]
        for text in (b"hello", b"x" * 100):
            sock.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
            answer = b""
            while len(answer) < len(text) + 2:
                answer += sock.recv(4096)
            assert answer[2:] == text


def test_a_closed_port_and_a_late_server(web: Any) -> None:
    sandbox, client = web
    headers = {"E2b-Sandbox-Port": "8020"}
    refused = client.get("/", headers=headers)
    assert (refused.status_code, refused.json()["port"]) == (502, 8020)
    assert "port is not open" in refused.json()["message"]
    assert "<h1>" in client.get("/", headers={**headers, "Accept": "text/html"}).text
    sandbox.commands.run("python3 /tmp/web.py 8020", background=True)
    eventually(lambda: client.get("/", headers=headers).status_code == 200, what="the port opened")


def test_a_kill_cuts_streams_and_is_told_as_not_found(server: Any, create: Callable[..., Sandbox]) -> None:
    sandbox = create(timeout=120)
    sandbox.files.write("/tmp/web.py", WEB)
    sandbox.commands.run(f"python3 /tmp/web.py {PORT}", background=True, timeout=0)
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(PORT)}
    with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
        eventually(lambda: client.get("/").status_code == 200, what="the program serves")
        with client.stream("GET", "/slow") as stream:
            pieces = stream.iter_raw()
            assert next(pieces)
            killer = threading.Thread(target=sandbox.kill)
            killer.start()
            with pytest.raises(httpx.TransportError):
                for _ in pieces:
                    pass
            killer.join()
        assert client.get("/").json() == {
            "sandboxId": sandbox.sandbox_id,
            "message": "The sandbox was not found",
            "code": 502,
        }
