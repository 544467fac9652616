"""The way in from outside: `get_host` names, WebSockets, signed file URLs."""

from __future__ import annotations

import socket
import time
import urllib.parse

import httpx
import pytest
from e2b import Sandbox
from sdk_support import eventually

from support.tiers import one_tier

PAGE = "served from inside"


@pytest.fixture
def web(sandbox: Sandbox) -> Sandbox:
    """A sandbox that serves its `site` directory on port 8000."""
    sandbox.files.write("site/index.html", PAGE)
    sandbox.commands.run("python3 -m http.server 8000 --directory site", background=True, timeout=0)
    return sandbox


def _get(server, host: str, path: str = "/", **kwargs) -> httpx.Response:
    return httpx.get(f"{server.url}{path}", headers={"Host": host, **kwargs.pop("headers", {})}, timeout=30, **kwargs)


def test_a_port_in_the_sandbox_is_reached_by_its_host_name(server, web: Sandbox) -> None:
    host = web.get_host(8000)
    assert host.startswith(f"8000-{web.sandbox_id}.")
    response = eventually(lambda: r if (r := _get(server, host)).status_code == 200 else None, what="the page")
    assert response.text == PAGE
    port = urllib.parse.urlsplit(server.url).port
    assert _get(server, f"8000-{web.sandbox_id}.localhost:{port}").text == PAGE
    assert _get(server, host, "/missing").status_code == 404


def test_a_port_in_the_sandbox_is_reached_by_headers(server, web: Sandbox) -> None:
    headers = {"E2b-Sandbox-Id": web.sandbox_id, "E2b-Sandbox-Port": "8000"}
    response = eventually(
        lambda: r if (r := httpx.get(server.url, headers=headers)).status_code == 200 else None, what="the page"
    )
    assert response.text == PAGE


def test_a_closed_port_and_a_dead_sandbox_say_which_it_is(server, sandbox: Sandbox) -> None:
    closed = _get(server, sandbox.get_host(9))
    assert closed.status_code == 502
    assert closed.json()["message"].endswith("port is not open")
    assert closed.json()["sandboxId"] == sandbox.sandbox_id
    sandbox.kill()
    dead = _get(server, sandbox.get_host(9))
    assert dead.status_code == 502
    assert "was not found" in dead.json()["message"]


def test_uploads_and_downloads_through_a_port_are_streamed_whole(server, sandbox: Sandbox) -> None:
    sandbox.files.write(
        "echo.py",
        "import http.server\n"
        "class Echo(http.server.BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        "        data = self.rfile.read(int(self.headers['Content-Length']))\n"
        "        self.send_response(200); self.send_header('Content-Length', str(len(data))); self.end_headers()\n"
        "        self.wfile.write(data)\n"
        "http.server.ThreadingHTTPServer(('127.0.0.1', 8001), Echo).serve_forever()\n",
    )
    sandbox.commands.run("python3 echo.py", background=True, timeout=0)
    data = bytes(range(256)) * 80_000
    host = sandbox.get_host(8001)
    eventually(lambda: _get(server, host).status_code != 502, what="the echo server listens")
    response = httpx.post(server.url, content=data, headers={"Host": host}, timeout=60)
    assert response.content == data


WEBSOCKET_ECHO = r"""
import base64, hashlib, socket, struct
s = socket.create_server(("127.0.0.1", 8002))
while True:
    c, _ = s.accept()
    f = c.makefile("rb")
    key = ""
    while (line := f.readline().strip()):
        if line.lower().startswith(b"sec-websocket-key:"):
            key = line.split(b":", 1)[1].strip().decode()
    accept = base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
    c.sendall(f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
              f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode())
    while (head := f.read(2)):
        op, n = head[0] & 15, head[1] & 127
        if n == 126: n = struct.unpack(">H", f.read(2))[0]
        elif n == 127: n = struct.unpack(">Q", f.read(8))[0]
        mask = f.read(4)
        data = bytes(b ^ mask[i % 4] for i, b in enumerate(f.read(n)))
        size = bytes([n]) if n < 126 else b"\x7e" + struct.pack(">H", n)
        c.sendall(bytes([0x80 | op]) + size + data)
        if op == 8: break
    f.close(); c.close()
"""


def test_a_websocket_goes_through_both_ways(server, sandbox: Sandbox) -> None:
    from websockets.sync.client import connect

    sandbox.files.write("ws.py", WEBSOCKET_ECHO)
    sandbox.commands.run("python3 ws.py", background=True, timeout=0)
    host = sandbox.get_host(8002)
    listening = "grep -q :1F42 /proc/net/tcp && echo yes || true"
    eventually(lambda: sandbox.commands.run(listening).stdout == "yes\n", what="port 8002 listens")
    address = urllib.parse.urlsplit(server.url)
    sock = socket.create_connection((address.hostname, address.port))
    with connect(f"ws://{host}/chat", sock=sock) as ws:
        for n in range(20):
            ws.send(f"message {n}")
            assert ws.recv(timeout=20) == f"message {n}"
        ws.send(b"\x00\xff" * 1000)
        assert ws.recv(timeout=20) == b"\x00\xff" * 1000


@one_tier("signed and served by the guest, the same program in every tier")
def test_a_signed_url_downloads_without_any_header(sandbox: Sandbox) -> None:
    sandbox.files.write("note é.txt", "signed")
    for url in (
        sandbox.download_url("note é.txt"),
        sandbox.download_url("note é.txt", user="user"),
        sandbox.download_url("/home/user/note é.txt", use_signature_expiration=60),
    ):
        response = httpx.get(url)
        assert (response.status_code, response.text) == (200, "signed"), url


@one_tier("signed and served by the guest, the same program in every tier")
def test_a_signed_url_uploads_without_any_header(sandbox: Sandbox) -> None:
    response = httpx.post(sandbox.upload_url("up.txt"), files={"file": ("up.txt", b"uploaded")})
    assert response.status_code == 200
    assert sandbox.files.read("up.txt") == "uploaded"
    assert sandbox.files.get_info("up.txt").owner == "user"


@one_tier("signed and served by the guest, the same program in every tier")
def test_a_signature_is_good_for_its_path_operation_user_and_time_only(server, sandbox: Sandbox) -> None:
    sandbox.files.write("note", "secret")
    sandbox.files.write("other", "secret")
    url = sandbox.download_url("note")
    assert httpx.get(url).status_code == 200
    assert httpx.get(url.replace("path=note", "path=other")).status_code in (401, 502)
    assert httpx.get(f"{url}&username=root").status_code in (401, 502)
    assert httpx.post(url, files={"file": ("note", b"x")}).status_code in (401, 502)
    assert httpx.get(f"{server.url}/files?path=note").status_code in (400, 401, 404, 502)
    stale = sandbox.download_url("note", use_signature_expiration=-10)
    assert httpx.get(stale).status_code == 401
    assert sandbox.files.read("note") == "secret"


@one_tier("signed and served by the guest, the same program in every tier")
def test_a_signed_url_dies_with_its_sandbox(sandbox: Sandbox) -> None:
    sandbox.files.write("note", "x")
    url = sandbox.download_url("note")
    sandbox.kill()
    eventually(lambda: httpx.get(url).status_code in (401, 404, 502), what="the URL is refused")


@one_tier("signed and served by the guest, the same program in every tier")
def test_a_range_of_a_file_can_be_asked_for(sandbox: Sandbox) -> None:
    sandbox.files.write("digits", "0123456789")
    response = httpx.get(sandbox.download_url("digits"), headers={"Range": "bytes=2-5"})
    assert (response.status_code, response.text) == (206, "2345")
    assert response.headers["content-range"] == "bytes 2-5/10"


def test_an_event_stream_through_a_port_is_not_buffered(server, sandbox: Sandbox) -> None:
    sandbox.files.write(
        "sse.py",
        "import http.server, time\n"
        "class S(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.send_header('Content-Type', 'text/event-stream'); self.end_headers()\n"
        "        for n in range(600):\n"
        "            self.wfile.write(f'data: {n}\\n\\n'.encode()); self.wfile.flush(); time.sleep(0.1)\n"
        "http.server.ThreadingHTTPServer(('127.0.0.1', 8003), S).serve_forever()\n",
    )
    sandbox.commands.run("python3 sse.py", background=True, timeout=0)
    host = sandbox.get_host(8003)

    def first_lines() -> list[str]:
        with httpx.stream("GET", server.url, headers={"Host": host}, timeout=20) as response:
            if response.status_code != 200:
                return []
            lines = response.iter_lines()
            return [next(lines) for _ in range(3)]

    began = time.monotonic()
    assert eventually(first_lines, what="the first events") == ["data: 0", "", "data: 1"]
    assert time.monotonic() - began < 55, "the events came only when the minute-long stream had ended"


@one_tier("answered by the edge")
def test_a_page_of_a_sandbox_runs_nothing_on_the_platforms_origin(sandbox: Sandbox) -> None:
    sandbox.files.write("page.html", "<script>alert(1)</script>")
    answer = httpx.get(sandbox.download_url("page.html"))
    assert answer.text == "<script>alert(1)</script>"
    assert answer.headers["content-type"].startswith("text/html"), "a browser would show it"
    assert answer.headers["content-security-policy"] == "sandbox"
    assert answer.headers["x-content-type-options"] == "nosniff"
