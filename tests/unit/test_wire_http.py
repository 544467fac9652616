"""The HTTP/1.1 server over real sockets, driven byte by byte: what a broken or hostile client sends, and gets."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from atoll.http1 import server as http
from atoll.http1.server import ClientDisconnected, FileBody, Handler, HttpConnection, HttpError, Request, Response

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Open = Callable[[], Awaitable[tuple[Reader, Writer]]]


@asynccontextmanager
async def server(handler: Handler, tmp_path: Path) -> AsyncIterator[Open]:
    loop = asyncio.get_running_loop()
    path = tempfile.mktemp(dir=tmp_path, prefix="s")
    listener = await loop.create_unix_server(lambda: HttpConnection(handler, loop), path)
    opened: list[Writer] = []

    async def connect() -> tuple[Reader, Writer]:
        reader, writer = await asyncio.open_unix_connection(path)
        opened.append(writer)
        return reader, writer

    try:
        yield connect
    finally:
        for writer in opened:
            writer.close()
        listener.close()


async def answer(reader: Reader) -> tuple[int, dict[str, str], bytes]:
    """One response with a length or chunks."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    status = int(head[0].split(" ")[1])
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    if headers.get("transfer-encoding") == "chunked":
        parts: list[bytes] = []
        while size := int(await reader.readline(), 16):
            parts.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readexactly(2)
        return status, headers, b"".join(parts)
    return status, headers, await reader.readexactly(int(headers.get("content-length", "0")))


async def echo(request: Request) -> Response:
    body = await request.body.read(1024 * 1024)
    return Response.json([request.method, request.path, dict(request.query), body.decode("latin-1")])


async def test_keep_alive_serves_several_requests(tmp_path: Path) -> None:
    async with server(echo, tmp_path) as connect:
        reader, writer = await connect()
        for number in range(3):
            writer.write(b"POST /x%d?a=b%%20c&a=d HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi" % number)
            status, _, body = await answer(reader)
            assert status == 200
            assert body == b'["POST","/x%d",{"a":"b c"},"hi"]' % number


async def test_a_request_that_arrives_byte_by_byte_is_understood(tmp_path: Path) -> None:
    async with server(echo, tmp_path) as connect:
        reader, writer = await connect()
        for byte in b"POST /%C3%A9 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await answer(reader))[2] == '["POST","/é",{},"abcd"]'.encode()


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def slow_first(request: Request) -> Response:
        if request.path == "/0":
            await release.wait()
        return Response(200, (), request.path.encode())

    async with server(slow_first, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % number for number in range(5)))
        await asyncio.sleep(0.01)
        release.set()
        assert [(await answer(reader))[2] for _ in range(5)] == [b"/%d" % number for number in range(5)]


async def test_too_many_pipelined_requests_cut_the_client_off(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def waits(request: Request) -> Response:
        await release.wait()
        return Response(200, (), b"")

    async with server(waits, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\n\r\n" * 1000)
        await writer.drain()
        await asyncio.sleep(0.05)
        release.set()
        told = await asyncio.wait_for(reader.read(), 5)
        assert told.count(b"HTTP/1.1 200 ") == http.MAX_PIPELINED + 1
        assert told.count(b"HTTP/1.1 400 ") == 1
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert (await answer(reader))[0] == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello", 400),
        (b"GET /%ff HTTP/1.1\r\n\r\n", 400),
        (b"GET /?a=%ff HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 200_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 300 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n bad: folded\r\n\r\n", 400),
    ],
)
async def test_a_malformed_request_is_answered_and_the_connection_closed(
    tmp_path: Path, request_bytes: bytes, status: int
) -> None:
    async with server(echo, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(request_bytes)
        got, headers, _ = await asyncio.wait_for(answer(reader), 5)
        assert got == status
        assert headers["connection"] == "close"
        assert await reader.read() == b""


async def test_a_malformed_chunk_ends_the_body_with_an_error_and_closes(tmp_path: Path) -> None:
    async with server(echo, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n")
        status, _, _ = await asyncio.wait_for(answer(reader), 5)
        assert status == 400
        assert await reader.read() == b""


async def test_a_body_above_the_handlers_limit_is_413_before_it_is_read(tmp_path: Path) -> None:
    async def small(request: Request) -> Response:
        return Response(200, (), await request.body.read(10))

    async with server(small, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\ncontent-length: 100000000\r\n\r\n")
        assert (await asyncio.wait_for(answer(reader), 5))[0] == 413


async def test_a_chunked_body_above_the_limit_is_413(tmp_path: Path) -> None:
    async def small(request: Request) -> Response:
        return Response(200, (), await request.body.read(10))

    async with server(small, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n20\r\n" + b"a" * 32 + b"\r\n")
        assert (await asyncio.wait_for(answer(reader), 5))[0] == 413


async def test_a_refused_body_does_not_hide_the_answer(tmp_path: Path) -> None:
    async def refuse(request: Request) -> Response:
        raise HttpError(403, "no")

    async with server(refuse, tmp_path) as connect:
        reader, writer = await connect()
        size = 20 * 1024 * 1024
        writer.write(b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % size)

        async def upload() -> None:
            for _ in range(size // 65536):
                writer.write(bytes(65536))
                await writer.drain()

        sending = asyncio.create_task(upload())
        assert (await asyncio.wait_for(answer(reader), 5))[0] == 403
        await asyncio.wait_for(sending, 10)


async def test_a_small_refused_body_keeps_the_connection(tmp_path: Path) -> None:
    async def refuse(request: Request) -> Response:
        if request.method == "POST":
            raise HttpError(403, "no")
        return Response(200, (), b"ok")

    async with server(refuse, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\ncontent-length: 10\r\n\r\n12345")
        assert (await answer(reader))[0] == 403
        writer.write(b"67890GET / HTTP/1.1\r\n\r\n")
        assert (await asyncio.wait_for(answer(reader), 5))[2] == b"ok"


async def test_continue_is_sent_only_when_the_body_is_wanted(tmp_path: Path) -> None:
    async def maybe(request: Request) -> Response:
        if request.path == "/no":
            raise HttpError(401, "no")
        return Response(200, (), await request.body.read(100))

    async with server(maybe, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"POST /yes HTTP/1.1\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hi")
        assert (await answer(reader))[2] == b"hi"
        writer.write(b"POST /no HTTP/1.1\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n")
        status, headers, _ = await answer(reader)
        assert (status, headers["connection"]) == (401, "close")


async def test_an_unread_body_stops_the_client_instead_of_filling_memory(tmp_path: Path) -> None:
    seen: list[Request] = []
    go_on = asyncio.Event()

    async def slow(request: Request) -> Response:
        seen.append(request)
        await go_on.wait()
        total = 0
        async for chunk in request.body:
            total += len(chunk)
        return Response.json(total)

    size = 8 * 1024 * 1024
    async with server(slow, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % size)
        sending = asyncio.create_task(_send(writer, size))
        await asyncio.sleep(0.1)
        assert not sending.done()
        assert seen[0].body.buffered <= 2 * http.BODY_HIGH_WATER
        go_on.set()
        assert (await asyncio.wait_for(answer(reader), 10))[2] == str(size).encode()
        await sending


async def _send(writer: Writer, size: int) -> None:
    for _ in range(size // 65536):
        writer.write(bytes(65536))
        await writer.drain()


async def test_a_stream_waits_for_a_slow_client(tmp_path: Path) -> None:
    produced = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal produced
        for _ in range(1000):
            produced += 65536
            yield bytes(65536)

    async def stream(request: Request) -> Response:
        return Response(200, (), chunks())

    async with server(stream, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await asyncio.sleep(0.2)
        assert produced < 4 * 1024 * 1024
        assert len((await asyncio.wait_for(answer(reader), 30))[2]) == 1000 * 65536


async def test_a_client_that_leaves_cancels_the_handler_and_closes_the_stream(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.sleep(3600)
        finally:
            ended.set()

    async def stream(request: Request) -> Response:
        return Response(200, (), chunks())

    async with server(stream, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"first")
        writer.close()
        assert await asyncio.wait_for(ended.wait(), 5)


async def test_a_client_that_leaves_inside_its_body_is_told_to_the_handler(tmp_path: Path) -> None:
    outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def read(request: Request) -> Response:
        try:
            await request.body.read(1000)
        except (ClientDisconnected, asyncio.CancelledError) as error:
            outcome.set_result(type(error).__name__)
            raise
        return Response()

    async with server(read, tmp_path) as connect:
        _, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\ncontent-length: 100\r\n\r\nhalf")
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.close()
        assert await asyncio.wait_for(outcome, 5) in ("ClientDisconnected", "CancelledError")


async def test_a_stream_that_fails_tears_the_body_instead_of_ending_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        raise RuntimeError("broken on the way")

    async def stream(request: Request) -> Response:
        return Response(200, (), chunks())

    async with server(stream, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        try:
            seen = await reader.read()
        except ConnectionError:
            seen = b""
        assert not seen.endswith(b"0\r\n\r\n")
    assert "broken on the way" in capsys.readouterr().err


async def test_an_error_in_a_handler_is_500_without_its_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(request: Request) -> Response:
        raise RuntimeError("secret detail")

    async with server(broken, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        status, _, body = await answer(reader)
        assert status == 500
        assert b"secret" not in body
    assert "secret detail" in capsys.readouterr().err


async def test_a_file_is_sent_from_offset_to_count(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 4096)

    async def send(request: Request) -> Response:
        return Response(206, (), FileBody(path.open("rb"), 1000, 500_000))

    async with server(send, tmp_path) as connect:
        reader, writer = await connect()
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            status, headers, body = await answer(reader)
            assert (status, headers["content-length"]) == (206, "500000")
            assert body == path.read_bytes()[1000:501_000]


async def test_a_file_that_shrinks_while_it_is_sent_tears_the_body(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x" * 100)

    async def send(request: Request) -> Response:
        return Response(200, (), FileBody(path.open("rb"), 0, 200))

    async with server(send, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await answer(reader)


async def test_head_has_the_length_and_no_body(tmp_path: Path) -> None:
    async def text(request: Request) -> Response:
        return Response(200, (), b"12345")

    async with server(text, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"HEAD / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 5" in head
        assert (await answer(reader))[2] == b"12345"


async def test_http_1_0_is_answered_and_closed(tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async def stream(request: Request) -> Response:
        return Response(200, (), chunks())

    async with server(stream, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"\r\n\r\nonetwo")


async def test_an_upgrade_is_not_taken_but_answered(tmp_path: Path) -> None:
    async with server(echo, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"GET /up HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
        status, headers, body = await asyncio.wait_for(answer(reader), 5)
        assert (status, headers["connection"]) == (200, "close")
        assert b"/up" in body


async def test_a_header_value_cannot_split_the_response(tmp_path: Path) -> None:
    async def inject(request: Request) -> Response:
        return Response(200, (("x-name", "a\r\nevil: 1"),), b"")

    async with server(inject, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert "evil" not in (await answer(reader))[1]


async def test_an_absolute_target_is_read_as_its_path(tmp_path: Path) -> None:
    async with server(echo, tmp_path) as connect:
        reader, writer = await connect()
        writer.write(b"GET http://host/a/b?c=d HTTP/1.1\r\n\r\n")
        assert (await answer(reader))[2] == b'["GET","/a/b",{"c":"d"},""]'
