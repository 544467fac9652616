"""The edge over real sockets, with programs in the sandbox's place that behave, misbehave and attack.

The sandbox's side is a plain TCP server of the test; that lets it send bytes that no guest of ours would send.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import uvloop
import websockets

from atoll.edge import client, proxy, room, server, upstream
from atoll.edge.routes import LiveRoutes
from atoll.edge.server import Edge, bind
from atoll.edge.signed import signature_of
from atoll.model.errors import PortClosed, SandboxGone
from atoll.model.seams import Route

ID = "abcd1234"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def control(scope: Any, receive: Any, send: Any) -> None:
    """An application in the control plane's place: tells what it got."""
    assert scope["type"] == "http"
    if scope["path"] == "/boom":
        raise RuntimeError("boom")
    size, digest = 0, hashlib.sha256()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        digest.update(message["body"])
        if not message["more_body"]:
            break
    if scope["path"] == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3):
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    answer = {"control": scope["path"], "size": size, "sha": digest.hexdigest(), "method": scope["method"]}
    await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


class Rig:
    """An edge, its route table, and servers that stand for ports of one sandbox."""

    def __init__(self) -> None:
        self.routes = LiveRoutes()
        self.edge = Edge(self.routes, control, domains=["sbx.example.com:3000"])
        self.ports: dict[int, tuple[str, int]] = {}
        self.dials = 0
        self.servers: list[asyncio.Server] = []
        self.port = 0
        self.route()

    def route(self, **more: Any) -> None:
        self.routes.add(Route(ID, self.dial, **more))

    async def dial(self, port: int) -> socket.socket:
        self.dials += 1
        address = self.ports.get(port)
        if address is None:
            raise PortClosed(ID, port)
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
        return sock

    async def serve(self, port: int, handler: Handler) -> None:
        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await handler(reader, writer)
            writer.close()

        server = await asyncio.start_server(guarded, "127.0.0.1", 0)
        self.servers.append(server)
        self.ports[port] = server.sockets[0].getsockname()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def raw(self, request: bytes) -> bytes:
        """Sends bytes, returns all that comes back until the edge closes."""
        reader, writer = await self.connect()
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    async def ask(
        self, path: str = "/", *, port: int = 8000, method: str = "GET", extra: str = "", body: bytes = b""
    ) -> bytes:
        length = f"content-length: {len(body)}\r\n" if body else ""
        return await self.raw(
            f"{method} {path} HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: {ID}\r\ne2b-sandbox-port: {port}\r\n"
            f"connection: close\r\n{length}{extra}\r\n".encode()
            + body
        )


@pytest.fixture(scope="module")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """The server's own kind of loop."""
    return uvloop.EventLoopPolicy()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    _, made.port = await made.edge.listen(bind("127.0.0.1", 0))
    yield made
    await made.edge.aclose(grace_s=0.1)
    for listener in made.servers:
        listener.close()


async def read_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def replying(answer: bytes, *, close: bool = False, seen: list[bytes] | None = None) -> Handler:
    """A server that answers every bodiless request with the same bytes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await read_head(reader)
            if seen is not None:
                seen.append(head)
            writer.write(answer)
            await writer.drain()
            if close:
                return

    return handle


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def read_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """One answer with Content-Length or chunks."""
    head = await asyncio.wait_for(read_head(reader), 10)
    fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:-2])
    if b"content-length" in fields:
        return head, await asyncio.wait_for(reader.readexactly(int(fields[b"content-length"])), 10)
    assert fields[b"transfer-encoding"] == b"chunked"
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return head, body


async def test_one_connection_serves_control_and_sandboxes_in_turn(rig: Rig) -> None:
    await rig.serve(8000, replying(OK))
    reader, writer = await rig.connect()
    for _ in range(3):
        writer.write(b"GET /sandboxes HTTP/1.1\r\nhost: x\r\n\r\n")
        _, body = await read_answer(reader)
        assert json.loads(body)["control"] == "/sandboxes"
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\n\r\n" % ID.encode())
        _, body = await read_answer(reader)
        assert body == b"ok"
    assert rig.dials == 1
    writer.close()


async def test_pipelined_requests_are_answered_in_order(rig: Rig) -> None:
    await rig.serve(8000, replying(OK))
    reader, writer = await rig.connect()
    sandbox = b"GET / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\n\r\n" % ID.encode()
    post = b"POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"
    writer.write(sandbox + post + sandbox + post)
    bodies = [(await read_answer(reader))[1] for _ in range(4)]
    assert bodies[0] == bodies[2] == b"ok"
    assert json.loads(bodies[1])["size"] == json.loads(bodies[3])["size"] == 5
    writer.close()


@pytest.mark.parametrize("domain", ["localhost", "localhost:3000", "sbx.example.com", "SBX.example.com:443"])
async def test_host_names_route_to_the_sandbox(rig: Rig, domain: str) -> None:
    seen: list[bytes] = []
    await rig.serve(8000, replying(OK, seen=seen))
    answer = await rig.raw(f"GET /a?b=c HTTP/1.1\r\nHost: 8000-{ID}.{domain}\r\nConnection: close\r\n\r\n".encode())
    assert answer.endswith(b"ok")
    assert seen[0].startswith(b"GET /a?b=c HTTP/1.1\r\nhost: 8000-")
    assert b"x-forwarded-for: 127.0.0.1\r\n" in seen[0]
    assert b"x-forwarded-proto: http\r\n" in seen[0]


async def test_a_strangers_domain_reaches_no_sandbox(rig: Rig) -> None:
    await rig.serve(8000, replying(OK))
    answer = await rig.raw(f"GET / HTTP/1.1\r\nHost: 8000-{ID}.evil.test\r\nConnection: close\r\n\r\n".encode())
    assert b'"control": "/"' in answer


async def test_an_unknown_sandbox_is_told_in_the_sdks_words(rig: Rig) -> None:
    answer = await rig.raw(b"GET /health HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: zzzz\r\nconnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 ")
    assert json.loads(body) == {"sandboxId": "zzzz", "message": "The sandbox was not found", "code": 502}


async def test_a_closed_port_is_told_in_the_sdks_words(rig: Rig) -> None:
    _, _, body = (await rig.ask(port=8001)).partition(b"\r\n\r\n")
    assert json.loads(body) == {
        "sandboxId": ID,
        "message": "The sandbox is running but port is not open",
        "code": 502,
        "port": 8001,
    }


async def test_a_browser_gets_a_page_instead(rig: Rig) -> None:
    answer = await rig.ask(port=8001, extra="accept: text/html,application/xhtml+xml\r\n")
    assert b"content-type: text/html" in answer
    assert b"<h1>The sandbox is running but port is not open</h1>" in answer


async def test_a_sandbox_that_ended_while_dialled_is_not_found(rig: Rig) -> None:
    async def gone(port: int) -> socket.socket:
        raise SandboxGone(ID)

    rig.routes.add(Route(ID, gone))
    assert b"The sandbox was not found" in await rig.ask()


@pytest.mark.parametrize("path", ["/init", "/freeze", "/unfreeze", "/fsfreeze", "/fsthaw", "/collapse", "/upgrade"])
async def test_what_only_the_node_may_ask_is_unknown_from_outside(rig: Rig, path: str) -> None:
    await rig.serve(49983, replying(OK))
    for spelling in (path, path + "/", "/" + path, path + "?x=1", "/%" + f"{ord(path[1]):02x}" + path[2:], "/." + path):
        assert (await rig.ask(spelling, port=49983)).startswith(b"HTTP/1.1 404 "), spelling
    assert rig.dials == 0


async def test_traffic_token_guards_user_ports_but_not_envd(rig: Rig) -> None:
    seen: list[bytes] = []
    for port in (8000, 49983):
        await rig.serve(port, replying(OK, seen=seen))
    rig.route(traffic_access_token="s3cret")
    assert b" 403 " in (await rig.ask()).split(b"\r\n")[0]
    assert b" 403 " in (await rig.ask(extra="e2b-traffic-access-token: wrong\r\n")).split(b"\r\n")[0]
    assert (await rig.ask(extra="E2B-Traffic-Access-Token: s3cret\r\n")).endswith(b"ok")
    assert b"s3cret" not in seen[-1]
    assert (await rig.ask(port=49983)).endswith(b"ok")


async def test_host_is_masked_where_its_owner_asked_for_it(rig: Rig) -> None:
    seen: list[bytes] = []
    await rig.serve(8000, replying(OK, seen=seen))
    rig.route(mask_request_host="localhost:${PORT}")
    await rig.ask()
    assert b"\r\nhost: localhost:8000\r\n" in seen[0]
    assert b"\r\nx-forwarded-host: x\r\n" in seen[0]


async def test_a_signed_url_without_id_finds_its_sandbox(rig: Rig) -> None:
    await rig.serve(49983, replying(OK))
    rig.route(envd_access_token="tok")
    from urllib.parse import urlencode

    good = urlencode({"path": "/tmp/ä b", "signature": signature_of("/tmp/ä b", "read", "", "tok", None)})
    bad = urlencode({"path": "/tmp/other", "signature": signature_of("/tmp/ä b", "read", "", "tok", None)})
    request = "GET /files?{} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    assert (await rig.raw(request.format(good).encode())).endswith(b"ok")
    assert b'"control": "/files"' in await rig.raw(request.format(bad).encode())


async def test_browsers_preflight_is_answered_without_a_sandbox(rig: Rig) -> None:
    answer = await rig.raw(
        b"OPTIONS /process.Process/Start HTTP/1.1\r\nhost: x\r\norigin: http://page\r\n"
        b"access-control-request-method: POST\r\n"
        b"access-control-request-headers: e2b-sandbox-id,content-type\r\nconnection: close\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 204 ")
    assert b"access-control-allow-headers: e2b-sandbox-id,content-type\r\n" in answer
    await rig.serve(49983, replying(OK))
    assert b"access-control-allow-origin: *\r\n" in await rig.ask(port=49983, extra="origin: http://page\r\n")


SMUGGLING = [
    b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +3\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3 3\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\nx: a\r\n transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nabc",
    b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nfoo\x00bar: y\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nfoo: b\x00r\r\n\r\n",
    b"GET / HTTP/1.1\nhost: x\n\n",
    b"GET / HTTP/2.0\r\nhost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT evil:25 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET file:///etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\r\n\r\n\x00\x01garbage\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nexpect: 200-maybe\r\n\r\n",
]


@pytest.mark.parametrize("request_bytes", SMUGGLING)
@pytest.mark.parametrize("to_sandbox", [False, True])
async def test_ambiguous_or_broken_requests_are_refused_and_the_connection_ends(
    rig: Rig, request_bytes: bytes, to_sandbox: bool
) -> None:
    seen: list[bytes] = []
    await rig.serve(8000, replying(OK, seen=seen))
    if to_sandbox:
        fields = b"e2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\n" % ID.encode()
        request_bytes = request_bytes.replace(b"host: x\r\n", b"host: x\r\n" + fields, 1)
    answer = await rig.raw(request_bytes + b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n")
    status = int(answer.split(b" ", 2)[1])
    assert status in (400, 405, 417, 501, 505), answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"smuggled" not in answer
    assert not any(b"smuggled" in head for head in seen)


async def test_a_sound_request_before_a_broken_one_is_still_answered(rig: Rig) -> None:
    answer = await rig.raw(b"GET /first HTTP/1.1\r\nhost: x\r\n\r\nNONSENSE\r\n\r\n")
    assert b'"control": "/first"' in answer
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 400 " in answer


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 300 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\ncontent-type: application/json\r\n\r\n", 413),
    ],
)
async def test_heads_and_json_bodies_have_a_limit(rig: Rig, request_bytes: bytes, status: int) -> None:
    reader, writer = await rig.connect()
    writer.write(request_bytes)
    answer = await asyncio.wait_for(reader.read(300), 10)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    writer.close()


async def test_a_chunked_json_body_without_end_is_cut_at_the_limit(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(160):
        writer.write(b"10000\r\n" + b"a" * 65536 + b"\r\n")
    assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 413 ")
    writer.close()


EVIL_ANSWERS = [
    b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nx: a\x00b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nraw",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\nraw",
    b"",
]


@pytest.mark.parametrize("answer", EVIL_ANSWERS)
async def test_an_answer_that_is_not_sound_http_becomes_502(rig: Rig, answer: bytes) -> None:
    await rig.serve(8000, replying(answer, close=True))
    got = await rig.ask()
    assert got.startswith(b"HTTP/1.1 502 "), got
    assert got.count(b"HTTP/1.1") == 1


async def test_bytes_after_an_answer_never_reach_the_next_client(rig: Rig) -> None:
    await rig.serve(8000, replying(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"))
    for _ in range(5):
        answer = await rig.ask()
        assert answer.endswith(b"\r\n\r\nok")
        assert b"poison" not in answer


async def test_late_bytes_on_an_idle_connection_are_not_taken_for_an_answer(rig: Rig) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(OK)
        await asyncio.sleep(0.05)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")
        await reader.read()

    await rig.serve(8000, handle)
    for _ in range(3):
        assert (await rig.ask()).endswith(b"\r\n\r\nok")
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", b"hello"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nx-trailer: y\r\n\r\n",
            b"hello",
        ),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", b"hello"),
    ],
)
async def test_every_framing_of_an_answer_arrives_whole(rig: Rig, answer: bytes, body: bytes) -> None:
    await rig.serve(8000, replying(answer, close=True))
    reader, writer = await rig.connect()
    request = b"GET / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\n\r\n" % ID.encode()
    for _ in range(2):
        writer.write(request)
        assert (await read_answer(reader))[1] == body
    writer.close()
    old = await rig.raw(b"GET / HTTP/1.0\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\n\r\n" % ID.encode())
    assert old.endswith(b"\r\n\r\n" + body)
    assert b"chunked" not in old


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 1000\r\n\r\n"),
    ],
)
async def test_answers_without_body_end_with_their_head(rig: Rig, method: str, answer: bytes) -> None:
    await rig.serve(8000, replying(answer))
    reader, writer = await rig.connect()
    for _ in range(3):
        writer.write(
            f"{method} / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: {ID}\r\ne2b-sandbox-port: 8000\r\n\r\n".encode()
        )
        head = await asyncio.wait_for(read_head(reader), 5)
        assert head.split(b" ")[1] == answer.split(b" ")[1]
    assert rig.dials == 1
    writer.close()


async def test_a_truncated_answer_is_seen_as_truncated(rig: Rig) -> None:
    await rig.serve(8000, replying(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", close=True))
    reader, writer = await rig.connect()
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\n\r\n" % ID.encode())
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await read_answer(reader)
    writer.close()


async def test_hop_by_hop_fields_stay_on_their_hop(rig: Rig) -> None:
    seen: list[bytes] = []
    await rig.serve(
        8000, replying(b"HTTP/1.1 200 OK\r\nkeep-alive: timeout=1\r\ncontent-length: 2\r\n\r\nok", seen=seen)
    )
    answer = await rig.raw(
        b"GET / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\nconnection: close, x-mine\r\n"
        b"x-mine: 1\r\nte: trailers\r\nkeep-alive: 3\r\nx-kept: 1\r\n\r\n" % ID.encode()
    )
    assert b"keep-alive" not in answer.lower()
    assert b"x-kept: 1\r\n" in seen[0]
    for name in (b"x-mine", b"te:", b"keep-alive", b"connection"):
        assert name not in seen[0]


async def test_expect_continue_is_answered_once_the_port_is_reached(rig: Rig) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_head(reader)
        assert b"expect" not in head
        assert await reader.readexactly(5) == b"hello"
        writer.write(OK)

    await rig.serve(8000, handle)
    for port, first in ((8000, b"HTTP/1.1 100 "), (8001, b"HTTP/1.1 502 ")):
        reader, writer = await rig.connect()
        writer.write(
            b"POST / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: %d\r\ncontent-length: 5\r\n"
            b"expect: 100-continue\r\n\r\n" % (ID.encode(), port)
        )
        assert (await asyncio.wait_for(read_head(reader), 5)).startswith(first)
        if port == 8000:
            writer.write(b"hello")
            assert (await read_answer(reader))[1] == b"ok"
        writer.close()
    reader, writer = await rig.connect()
    writer.write(b"POST /c HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n")
    assert (await asyncio.wait_for(read_head(reader), 5)).startswith(b"HTTP/1.1 100 ")
    writer.write(b"hello")
    assert json.loads((await read_answer(reader))[1])["size"] == 5
    writer.close()


async def test_a_hundred_megabytes_go_through_both_ways_without_being_stored(rig: Rig) -> None:
    total = 100 * 1024 * 1024
    block = os.urandom(1024 * 1024)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        digest = hashlib.sha256()
        left = total
        while left:
            data = await reader.read(min(left, 1 << 20))
            digest.update(data)
            left -= len(data)
        writer.write(
            b"HTTP/1.1 200 OK\r\nx-sha: %b\r\ncontent-length: %d\r\n\r\n" % (digest.hexdigest().encode(), total)
        )
        for _ in range(100):
            writer.write(block)
            await writer.drain()

    await rig.serve(8000, handle)
    expected = hashlib.sha256()
    for _ in range(100):
        expected.update(block)
    reader, writer = await rig.connect()
    writer.write(
        b"POST / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\ncontent-length: %d\r\n\r\n"
        % (ID.encode(), total)
    )
    for _ in range(100):
        writer.write(block)
        await writer.drain()
    head = await asyncio.wait_for(read_head(reader), 30)
    assert expected.hexdigest().encode() in head
    back = hashlib.sha256()
    left = total
    while left:
        data = await asyncio.wait_for(reader.read(min(left, 1 << 20)), 30)
        back.update(data)
        left -= len(data)
    assert back.hexdigest() == expected.hexdigest()
    writer.close()


async def test_a_slow_reader_slows_the_sandbox_down(rig: Rig) -> None:
    sent = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    await rig.serve(8000, handle)
    reader, writer = await rig.connect()
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\n\r\n" % ID.encode())
    await read_head(reader)
    previous = -1
    while previous != sent:
        previous = sent
        await asyncio.sleep(0.3)
    assert sent < 32 * 1024 * 1024
    writer.close()


async def test_a_sandbox_that_does_not_read_slows_the_client_down(rig: Rig) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    await rig.serve(8000, handle)
    _, writer = await rig.connect()
    writer.write(
        b"POST / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\n"
        b"content-length: 999999999\r\n\r\n" % ID.encode()
    )
    sent = 0
    with suppress(TimeoutError):
        while sent < 64 * 1024 * 1024:
            writer.write(b"x" * 65536)
            await asyncio.wait_for(writer.drain(), 1)
            sent += 65536
    assert sent < 32 * 1024 * 1024
    # A reset passes the closed window at once; a FIN would queue behind the unread bytes.
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    for _ in range(100):
        if not rig.edge.pool.open_connections:
            break
        await asyncio.sleep(0.1)
    assert rig.edge.pool.open_connections == 0


async def test_a_client_that_leaves_closes_the_sandboxs_side_at_once(rig: Rig) -> None:
    left = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        with suppress(ConnectionError):
            assert await reader.read() == b""
        left.set()

    await rig.serve(8000, handle)
    reader, writer = await rig.connect()
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\n\r\n" % ID.encode())
    await read_head(reader)
    writer.close()
    await asyncio.wait_for(left.wait(), 5)


LONG = os.urandom(1024 * 1024) * 12
"""Long enough that most of it goes from socket to socket inside the kernel."""
LONG_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(LONG) + LONG


@pytest.fixture
def splices(monkeypatch: pytest.MonkeyPatch) -> list[proxy.Splice]:
    """Those that begin during the test."""
    begun: list[proxy.Splice] = []

    class Noted(proxy.Splice):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            begun.append(self)

    monkeypatch.setattr(proxy, "Splice", Noted)
    return begun


async def test_after_a_long_answer_both_connections_serve_on(rig: Rig, splices: list[proxy.Splice]) -> None:
    await rig.serve(49983, replying(LONG_ANSWER))
    descriptors = len(os.listdir("/proc/self/fd"))
    reader, writer = await rig.connect()
    request = b"GET / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 49983\r\n\r\n" % ID.encode()
    writer.write(request * 2)  # the second waits for its turn
    for _ in range(2):
        assert (await read_answer(reader))[1] == LONG
    writer.write(request)
    assert (await read_answer(reader))[1] == LONG
    assert rig.dials == 1
    assert splices
    writer.close()
    # The client's connection at both ends, the pooled one at both ends; of the pipes nothing.
    assert await reached(lambda: len(os.listdir("/proc/self/fd")) <= descriptors + 4)


async def test_bytes_after_a_long_answer_never_reach_the_next_client(rig: Rig, splices: list[proxy.Splice]) -> None:
    await rig.serve(49983, replying(LONG_ANSWER + OK))
    request = b"GET / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 49983\r\n\r\n" % ID.encode()
    reader, writer = await rig.connect()
    for _ in range(2):
        writer.write(request)
        assert (await read_answer(reader))[1] == LONG
    assert splices
    assert rig.dials == 2
    writer.close()


async def test_a_long_answer_that_ends_early_is_seen_as_truncated(rig: Rig, splices: list[proxy.Splice]) -> None:
    await rig.serve(8000, replying(LONG_ANSWER[:-1], close=True))
    answer = await rig.ask()
    assert LONG_ANSWER.endswith(b"\r\n\r\n" + LONG)
    assert len(answer.partition(b"\r\n\r\n")[2]) <= len(LONG) - 1
    assert splices


async def test_a_client_that_leaves_a_long_answer_ends_it(rig: Rig, splices: list[proxy.Splice]) -> None:
    left = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(LONG) * 1000))
        with suppress(ConnectionError):
            while True:
                writer.write(LONG)
                await writer.drain()
        left.set()

    await rig.serve(8000, handle)
    reader, writer = await rig.connect()
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\n\r\n" % ID.encode())
    await read_head(reader)
    await reader.readexactly(4 * len(LONG))
    assert await reached(lambda: bool(splices))
    writer.transport.abort()
    await asyncio.wait_for(left.wait(), 5)
    assert await reached(lambda: rig.edge.pool.open_connections == 0)


async def test_a_long_answer_to_a_reader_that_stops_waits(rig: Rig, splices: list[proxy.Splice]) -> None:
    sent = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (1 << 40))
        while True:
            writer.write(LONG[:65536])
            await writer.drain()
            sent += 65536

    await rig.serve(8000, handle)
    reader, writer = await rig.connect()
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\n\r\n" % ID.encode())
    await read_head(reader)
    previous = -1
    while previous != sent:
        previous = sent
        await asyncio.sleep(0.3)
    assert splices
    assert sent < 32 * 1024 * 1024
    for _ in range(32):
        assert await reader.readexactly(65536) == LONG[:65536]
    assert await reached(lambda: sent > previous)
    writer.close()


async def reached(condition: Callable[[], bool]) -> bool:
    """Whether it holds within five seconds."""
    for _ in range(100):
        if condition():
            return True
        await asyncio.sleep(0.05)
    return False


async def test_a_request_is_not_lost_to_a_connection_that_just_closed(rig: Rig) -> None:
    """The program closes after each answer without saying so: the classic race of connection pools."""
    served = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        await read_head(reader)
        served += 1
        writer.write(OK)

    await rig.serve(8000, handle)
    reader, writer = await rig.connect()
    for _ in range(200):
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\n\r\n" % ID.encode())
        assert (await read_answer(reader))[1] == b"ok"
    assert served == 200
    writer.close()


async def test_a_request_that_changes_things_is_never_sent_twice(rig: Rig) -> None:
    seen = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        await read_head(reader)
        seen += 1

    await rig.serve(8000, handle)
    answer = await rig.ask(method="POST", body=b"x")
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert seen == 1


async def test_an_early_answer_to_an_upload_is_delivered(rig: Rig) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 507 Insufficient Storage\r\ncontent-length: 4\r\n\r\nfull")
        with suppress(ConnectionError):
            while await reader.read(1 << 20):
                pass

    await rig.serve(8000, handle)
    reader, writer = await rig.connect()
    size = 20_000_000
    writer.write(
        b"POST / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\ncontent-length: %d\r\n\r\n"
        % (ID.encode(), size)
    )
    for _ in range(20):
        writer.write(b"x" * 1_000_000)
        await writer.drain()
    head, body = await read_answer(reader)
    assert b" 507 " in head
    assert body == b"full"
    writer.write(b"GET /after HTTP/1.1\r\nhost: x\r\n\r\n")
    assert json.loads((await read_answer(reader))[1])["control"] == "/after"
    writer.close()


async def test_websockets_work_through_the_edge(rig: Rig) -> None:
    async def echo(connection: Any) -> None:
        async for message in connection:
            await connection.send(message)

    async with websockets.serve(echo, "127.0.0.1", 0) as server:
        rig.ports[8000] = next(iter(server.sockets)).getsockname()
        fields = {"e2b-sandbox-id": ID, "e2b-sandbox-port": "8000"}
        async with websockets.connect(
            f"ws://127.0.0.1:{rig.port}/ws", additional_headers=fields, max_size=None
        ) as client:
            for size in (0, 10, 70_000, 1_000_000):
                await client.send(b"x" * size)
                assert len(await asyncio.wait_for(client.recv(), 10)) == size
    for _ in range(50):
        if not rig.edge.pool.open_connections:
            break
        await asyncio.sleep(0.05)
    assert rig.edge.pool.open_connections == 0


async def test_a_tunnel_passes_bytes_that_came_with_the_handshake_and_half_closes(rig: Rig) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: shout\r\nconnection: upgrade\r\n\r\nhello ")
        data = await reader.read()
        writer.write(data.upper())

    await rig.serve(8000, handle)
    reader, writer = await rig.connect()
    writer.write(
        b"GET / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\nconnection: upgrade\r\n"
        b"upgrade: shout\r\n\r\nworld" % ID.encode()
    )
    assert (await asyncio.wait_for(read_head(reader), 5)).startswith(b"HTTP/1.1 101 ")
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 5) == b"hello WORLD"
    writer.close()


async def test_a_refused_upgrade_is_an_ordinary_answer(rig: Rig) -> None:
    await rig.serve(8000, replying(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno"))
    answer = await rig.raw(
        b"GET / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\nconnection: upgrade\r\n"
        b"upgrade: websocket\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n" % ID.encode()
    )
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert answer.endswith(b"no")


async def test_an_offer_of_http2_is_ignored_and_its_body_kept(rig: Rig) -> None:
    """Java's client offers h2c on its first request, body and all."""
    reader, writer = await rig.connect()
    for _ in range(2):
        writer.write(
            b"POST /j HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n"
            b"http2-settings: AAM\r\ncontent-length: 5\r\n\r\nhelloGET /k HTTP/1.1\r\nhost: x\r\n"
            b"connection: upgrade\r\nupgrade: h2c\r\n\r\n"
        )
        assert json.loads((await read_answer(reader))[1])["size"] == 5
        assert json.loads((await read_answer(reader))[1])["control"] == "/k"
    writer.close()


async def test_the_control_planes_answers_stream_and_its_errors_are_500(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await read_answer(reader))[1] == b"012"
    writer.write(b"GET /boom HTTP/1.1\r\nhost: x\r\n\r\n")
    head, body = await read_answer(reader)
    assert b" 500 " in head
    assert b"boom" not in body
    writer.write(b"HEAD /h HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await asyncio.wait_for(read_head(reader), 5)).startswith(b"HTTP/1.1 200 ")
    writer.write(b"GET /%73 HTTP/1.1\r\nhost: x\r\n\r\n")
    assert json.loads((await read_answer(reader))[1])["control"] == "/s"
    writer.close()


async def test_control_gets_large_streamed_bodies_whole(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(
        b"PUT /u HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    block = os.urandom(65536)
    expected = hashlib.sha256()
    for _ in range(320):
        writer.write(b"10000\r\n" + block + b"\r\n")
        expected.update(block)
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    answer = json.loads((await read_answer(reader))[1])
    assert answer["size"] == 320 * 65536
    assert answer["sha"] == expected.hexdigest()
    writer.close()


async def test_a_stopping_edge_finishes_what_runs_and_closes_the_rest(rig: Rig) -> None:
    release = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        await release.wait()
        writer.write(OK)

    await rig.serve(8000, handle)
    idle_reader, idle_writer = await rig.connect()
    reader, writer = await rig.connect()
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: %b\r\ne2b-sandbox-port: 8000\r\n\r\n" % ID.encode())
    await asyncio.sleep(0.1)
    closing = asyncio.create_task(rig.edge.aclose(grace_s=5))
    assert await asyncio.wait_for(idle_reader.read(), 2) == b""
    release.set()
    assert (await read_answer(reader))[1] == b"ok"
    await asyncio.wait_for(closing, 3)
    idle_writer.close()
    writer.close()


async def test_a_head_that_never_ends_and_an_idle_connection_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((client, "HEAD_S"), (client, "IDLE_S"), (client, "DRAIN_S"), (server, "SWEEP_S")):
        monkeypatch.setattr(module, name, 0.05)
    rig = Rig()
    _, rig.port = await rig.edge.listen(bind("127.0.0.1", 0))
    assert (await rig.raw(b"GET / HTTP/1.1\r\nhost: x\r\nslow: ")).startswith(b"HTTP/1.1 408 ")
    assert await rig.raw(b"") == b""
    reader, writer = await rig.connect()
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), 10)).count(b"HTTP/1.1 200 ") == 1
    writer.close()
    # An answer before the end of a body that never comes.
    stuck = await rig.raw(b"POST / HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: zzzz\r\ncontent-length: 9\r\n\r\nabc")
    assert stuck.startswith(b"HTTP/1.1 502 ")
    assert not rig.edge.connections
    await rig.edge.aclose(grace_s=0.1)


async def test_idle_connections_into_sandboxes_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SWEEP_S", 0.02)
    monkeypatch.setattr(upstream, "USER_IDLE_S", 0.02)
    rig = Rig()
    _, rig.port = await rig.edge.listen(bind("127.0.0.1", 0))
    await rig.serve(8000, replying(OK))
    assert (await rig.ask()).endswith(b"ok")
    for _ in range(200):
        if not rig.edge.pool.open_connections:
            break
        await asyncio.sleep(0.02)
    assert rig.edge.pool.open_connections == 0
    await rig.edge.aclose(grace_s=0.1)
    for listener in rig.servers:
        listener.close()


async def test_one_connection_too_many_is_told_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_CONNECTIONS", 1)
    begun, release = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        begun.set()
        await release.wait()
        writer.write(OK)

    await rig.serve(8000, slow)
    busy = asyncio.create_task(rig.ask())
    await begun.wait()
    assert (await rig.raw(b"")).startswith(b"HTTP/1.1 503 ")
    release.set()
    assert (await busy).endswith(b"ok")


async def idle_connection(rig: Rig, key: str = "") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """One that has had an answer and waits for the next request."""
    reader, writer = await rig.connect()
    writer.write(f"GET /ok HTTP/1.1\r\nhost: x\r\n{key}\r\n".encode())
    assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 200")
    return reader, writer


async def open_still(*readers: asyncio.StreamReader) -> list[bool]:
    await asyncio.sleep(0.1)
    return [not reader.at_eof() for reader in readers]


async def test_at_the_limit_the_longest_idle_goes_strangers_first(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_CONNECTIONS", 3)
    customer, _1 = await idle_connection(rig, "x-api-key: e2b_good\r\n")
    older, _2 = await idle_connection(rig)
    newer, _3 = await idle_connection(rig)
    _4 = await idle_connection(rig)
    assert await open_still(customer, older, newer) == [True, False, True]
    _5 = await idle_connection(rig)
    assert await open_still(customer, newer) == [True, False]
    for _, writer in ((None, _1), (None, _2), (None, _3), _4, _5):
        writer.close()


async def test_one_address_has_a_share_of_the_room(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_OF_ADDRESS", 2)
    first, one = await idle_connection(rig)
    second, two = await idle_connection(rig)
    other = socket.create_connection(("127.0.0.1", rig.port), source_address=("127.0.0.9", 0))
    assert await open_still(first, second) == [True, True], "another address"
    third, three = await idle_connection(rig)
    assert await open_still(first, second, third) == [False, True, True]
    for writer in (one, two, three):
        writer.close()
    other.close()


def test_ipv6_addresses_of_one_customer_count_together() -> None:
    assert room.address_key(("2001:db8:1:2::1", 1, 0, 0)) == room.address_key(("2001:db8:1:2:ffff::9", 2, 0, 0))
    assert room.address_key(("2001:db8:1:3::1", 1, 0, 0)) != room.address_key(("2001:db8:1:2::1", 1, 0, 0))
    assert room.address_key(("::ffff:1.2.3.4", 1, 0, 0)) == room.address_key(("1.2.3.4", 1))


async def test_a_body_that_stands_still_is_ended_and_one_that_moves_or_is_answered_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "BODY_S", 0.5)
    monkeypatch.setattr(server, "SWEEP_S", 0.05)
    rig = Rig()
    _, rig.port = await rig.edge.listen(bind("127.0.0.1", 0))
    begun = asyncio.Event()

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_head(reader)
        if b"/early" in head:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no")
            await reader.readexactly(3)
            writer.write(b"k")
        else:
            await reader.readexactly(3)
            writer.write(OK)
        begun.set()

    await rig.serve(8000, early)
    post = f"HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: {ID}\r\ne2b-sandbox-port: 8000\r\ncontent-length: 3\r\n\r\n"
    assert (await rig.raw(f"POST /still {post}a".encode())).startswith(b"HTTP/1.1 408 ")
    for path in ("/early", "/moves"):
        reader, writer = await rig.connect()
        writer.write(f"POST {path} {post}".encode())
        for byte in (b"a", b"b", b"c"):
            await asyncio.sleep(1.0 if path == "/early" else 0.2)
            writer.write(byte)
        assert (await read_answer(reader))[1] == b"ok"
        writer.close()
    await rig.edge.aclose(grace_s=0.1)
    for listener in rig.servers:
        listener.close()


def test_the_signature_is_the_published_sdks() -> None:
    from e2b.sandbox.signature import get_signature

    ours = signature_of("/tmp/x y", "write", "root", "tok", None)
    assert ours == get_signature("/tmp/x y", "write", "root", "tok")["signature"]
    assert base64.b64decode(ours[3:] + "=")
