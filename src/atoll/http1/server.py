"""HTTP/1.1, server side: framing on httptools (llhttp), one asyncio Protocol per connection, nothing more.

Owns: request heads with limits, request bodies as a stream with back-pressure, responses (bytes, stream, file),
keep-alive, pipelining, `Expect: 100-continue`, the answer to broken clients. Does not own: routing, authentication,
what a body means.

    bytes ──► HttpConnection ──► Request(method, path, query, headers, body) ──► handler(request)
    bytes ◄── corked writes  ◄── Response(status, headers, body) ◄────────────────────┘

One request of a connection is served at a time; its handler runs in a task of its own, and that task is **cancelled
when the client goes away**. Writes made in one turn of the loop leave in one `send`: head, first and last chunk cost
one system call.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import traceback
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, unquote

import httptools

MAX_HEAD = 64 * 1024
"""Bytes of request line and headers together; more is answered 431."""
MAX_HEADERS = 256
MAX_PIPELINED = 32
"""Requests that may wait behind the one being served; a client that sends more is cut off."""
BODY_HIGH_WATER = 256 * 1024
"""Unread request body bytes at which reading from the socket stops."""
CORK_LIMIT = 64 * 1024
"""Response bytes gathered before they are sent without waiting for the turn of the loop to end."""
LINGER_S = 5.0
"""How long a refused body is still read and thrown away, so that the client gets to see the answer."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES: dict[int, bytes] = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_LAST_CHUNK = b"0\r\n\r\n"


class HttpError(Exception):
    """An answer other than 2xx, raised by a handler: sent as JSON `{"code": status, "message": message}`."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = tuple(headers)


class BodyTooLarge(HttpError):
    """The request body is longer than the handler's limit for memory."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"request body is larger than {limit} bytes")


def json_object(data: bytes) -> dict[str, Any]:
    """A body that is one JSON object; nothing is an empty one. Raises HttpError."""
    try:
        found = json.loads(data or b"{}")
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"malformed JSON: {error}") from error
    if not isinstance(found, dict):
        raise HttpError(400, "the body must be an object")
    return found


class ClientDisconnected(Exception):
    """The client went away in the middle of its request body."""


class Headers:
    """Request headers in the order sent; names are lower case."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Sequence[tuple[str, str]] = ()) -> None:
        self._pairs = pairs

    def get(self, name: str) -> str | None:
        """The first value of `name` (lower case), or None."""
        for key, value in self._pairs:
            if key == name:
                return value
        return None

    def __contains__(self, name: object) -> bool:
        return any(key == name for key, _ in self._pairs)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._pairs)


class Body:
    """A request body: iterate over it once, or `read` it whole up to a limit. Iterating gives non-empty bytes.

    Reading from the socket stops while BODY_HIGH_WATER bytes wait here. Raises ClientDisconnected when the client goes
    away before the end (the handler's task is cancelled at the same time).
    """

    __slots__ = ("_chunks", "_connection", "_ended", "_error", "_size", "_waiter", "length")

    def __init__(self, connection: HttpConnection | None, length: int | None) -> None:
        self.length = length
        """Content-Length; None for a chunked body."""
        self._connection = connection
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @staticmethod
    def of(data: bytes) -> Body:
        """A body that is already here (tests, internal calls)."""
        body = Body(None, len(data))
        if data:
            body.feed(data)
        body.end()
        return body

    @property
    def ended(self) -> bool:
        """The whole body has arrived (it may still wait to be read)."""
        return self._ended

    @property
    def buffered(self) -> int:
        return self._size

    def feed(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        self._wake()

    def end(self) -> None:
        self._ended = True
        self._wake()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._wake()

    def discard(self) -> None:
        self._chunks.clear()
        self._size = 0

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            if self._connection is not None:
                self._connection.body_needed(self)
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunk = self._chunks.popleft()
        self._size -= len(chunk)
        if self._connection is not None and not self._chunks:
            self._connection.body_needed(self)
        return chunk

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises BodyTooLarge above `limit` bytes (before reading when the length is announced)."""
        if self.length is not None and self.length > limit:
            raise BodyTooLarge(limit)
        parts: list[bytes] = []
        size = 0
        async for chunk in self:
            size += len(chunk)
            if size > limit:
                raise BodyTooLarge(limit)
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One request. `path` is percent-decoded, `target` is as sent; of repeated query names the first counts."""

    method: str
    target: str
    path: str
    query: Mapping[str, str]
    headers: Headers
    body: Body


@dataclass(frozen=True, slots=True)
class FileBody:
    """A response body taken from an open file with `sendfile`. The connection closes the file when it is done."""

    file: BinaryIO
    offset: int
    count: int


ResponseBody = bytes | AsyncIterator[bytes] | FileBody


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. A stream without a `content-length` header goes out chunked; `content-length` of bytes is added.

    A stream is written with back-pressure: its next item is asked for when the client has taken enough of the last.
    Its `aclose` is called whatever happens. If it raises, the connection is cut so that the client sees a torn body.
    """

    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    body: ResponseBody = field(default=b"", repr=False)

    @staticmethod
    def json(value: Any, status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> Response:
        """`value` as JSON."""
        data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        return Response(status, (("content-type", "application/json"), *headers), data)

    @staticmethod
    def error(status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> Response:
        """The plain error form: `{"code": status, "message": message}`."""
        return Response.json({"code": status, "message": message}, status, headers)


Handler = Callable[[Request], Awaitable[Response]]


def parse_target(target: str) -> tuple[str, dict[str, str]]:
    """Path (percent-decoded) and query of a request target. Raises HttpError 400 on bytes that are not UTF-8."""
    if target.startswith(("http://", "https://")):
        target = "/" + target.split("://", 1)[1].partition("/")[2]
    raw_path, _, raw_query = target.partition("?")
    try:
        path = unquote(raw_path, errors="strict") if "%" in raw_path else raw_path
        query: dict[str, str] = {}
        if raw_query:
            for name, value in parse_qsl(raw_query, keep_blank_values=True, errors="strict", max_num_fields=256):
                query.setdefault(name, value)
    except ValueError as error:
        raise HttpError(400, "malformed request target") from error
    return path, query


@dataclass(slots=True)
class _Exchange:
    """A request whose head has arrived; `keep_alive` falls to False when the connection cannot be used again."""

    request: Request
    keep_alive: bool
    expects_continue: bool
    chunked_answer: bool


class HttpConnection(asyncio.Protocol):
    """One client connection: give it to a transport, or call the Protocol methods yourself."""

    def __init__(self, handler: Handler, loop: asyncio.AbstractEventLoop) -> None:
        self._handler = handler
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._in_head = True
        self._head_size = 0  # of the parts that are complete
        self._head_raw = 0  # of all that was fed since the last message ended
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._receiving: _Exchange | None = None
        self._serving: _Exchange | None = None
        self._waiting: deque[_Exchange] = deque()
        self._task: asyncio.Task[None] | None = None
        self._out: list[bytes] = []
        self._out_size = 0
        self._flush_scheduled = False
        self._writable: asyncio.Future[None] | None = None
        self._paused_writing = False
        self._paused_reading = False
        self._broken: HttpError | None = None
        self._closing = False
        self._linger: asyncio.TimerHandle | None = None

    # -- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._in_head:
            self._head_raw += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # We offer no upgrade: answer as plain HTTP/1.1, after that the stream cannot be parsed further.
            if self._receiving is not None:
                self._receiving.keep_alive = False
            elif self._waiting:
                self._waiting[-1].keep_alive = False
            elif self._serving is not None:
                self._serving.keep_alive = False
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._break(cause if isinstance(cause, HttpError) else HttpError(400, "malformed request"))
        except httptools.HttpParserError as error:
            self._break(HttpError(400, f"malformed HTTP request: {error}"))
        else:
            if self._in_head and self._head_raw > MAX_HEAD:
                self._break(HttpError(431, f"request head is larger than {MAX_HEAD} bytes"))

    def eof_received(self) -> None:
        # A half-closed client counts as gone, as in Go's server: returning None closes the transport.
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._out.clear()
        if self._linger is not None:
            self._linger.cancel()
        gone = ClientDisconnected("client disconnected")
        for exchange in (self._serving, self._receiving, *self._waiting):
            if exchange is not None and not exchange.request.body.ended:
                exchange.request.body.fail(gone)
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
        self._wake_writer()

    def pause_writing(self) -> None:
        self._paused_writing = True

    def resume_writing(self) -> None:
        self._paused_writing = False
        self._wake_writer()

    # -- httptools callbacks ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_size = 0
        self._target = b""
        self._headers = []

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) >= MAX_HEADERS:
            raise HttpError(431, f"more than {MAX_HEADERS} headers")
        self._count_head(len(name) + len(value) + 4)
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def _count_head(self, size: int) -> None:
        self._head_size += size
        if self._head_size > MAX_HEAD:
            raise HttpError(431, f"request head is larger than {MAX_HEAD} bytes")

    def on_headers_complete(self) -> None:
        self._in_head = False
        headers = Headers(self._headers)
        try:
            target = self._target.decode("ascii")
        except UnicodeDecodeError:
            raise HttpError(400, "malformed request target") from None
        path, query = parse_target(target)
        chunked = "transfer-encoding" in headers
        length_text = headers.get("content-length")
        length = None if chunked else int(length_text or 0)
        request = Request(self._parser.get_method().decode("ascii"), target, path, query, headers, Body(self, length))
        modern = self._parser.get_http_version() != "1.0"
        expects = modern and (headers.get("expect") or "").lower() == "100-continue"
        exchange = _Exchange(request, bool(self._parser.should_keep_alive()), expects, modern)
        self._receiving = exchange
        if self._serving is None:
            self._serve(exchange)
        elif len(self._waiting) >= MAX_PIPELINED:
            raise HttpError(400, f"more than {MAX_PIPELINED} pipelined requests")
        else:
            self._waiting.append(exchange)
            self._pause_reading()

    def on_body(self, data: bytes) -> None:
        exchange = self._receiving
        if exchange is None or self._closing:
            return
        body = exchange.request.body
        body.feed(data)
        if body.buffered >= BODY_HIGH_WATER:
            self._pause_reading()

    def on_message_complete(self) -> None:
        if self._receiving is not None:
            self._receiving.request.body.end()
            self._receiving = None
        self._in_head = True
        self._head_raw = 0

    # -- reading side -----------------------------------------------------------------------------------------------

    def body_needed(self, body: Body) -> None:
        """The handler is out of body bytes: read on (and answer `100 Continue` to a client that waits for it)."""
        exchange = self._serving
        if exchange is None or exchange.request.body is not body:
            return
        if exchange.expects_continue:
            exchange.expects_continue = False
            if not body.ended:
                self._write(_CONTINUE)
        if not body.ended:
            self._resume_reading()

    def _pause_reading(self) -> None:
        if not self._paused_reading and self._transport is not None:
            self._paused_reading = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._paused_reading and self._transport is not None and not self._transport.is_closing():
            self._paused_reading = False
            self._transport.resume_reading()

    def _break(self, error: HttpError) -> None:
        """The stream cannot be parsed further: answer what is being served, then the error, then close."""
        self._broken = error
        self._pause_reading()
        if self._receiving is not None:
            self._receiving.keep_alive = False
            self._receiving.request.body.fail(error)
            if self._receiving is not self._serving and self._receiving in self._waiting:
                self._waiting.remove(self._receiving)
        if self._serving is None:
            self._answer_broken(error)

    def _answer_broken(self, error: HttpError) -> None:
        response = Response.error(error.status, error.message)
        assert isinstance(response.body, bytes)
        self._write(self._head(response, len(response.body), False, False) + response.body)
        self._close()

    # -- serving ----------------------------------------------------------------------------------------------------

    def _serve(self, exchange: _Exchange) -> None:
        self._serving = exchange
        self._task = self._loop.create_task(self._run(exchange))

    async def _run(self, exchange: _Exchange) -> None:
        request = exchange.request
        head_sent = False
        try:
            response = await self._answer(request)
            if not request.body.ended:
                self._refuse_rest(exchange)
            head_sent = True
            await self._send(exchange, response)
        except asyncio.CancelledError:
            self._abort()
            raise
        except Exception as error:
            if not isinstance(error, ClientDisconnected | ConnectionError):
                _log_exception(request, error)
            assert head_sent
            self._abort()
            return
        self._finish(exchange)

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._handler(request)
        except HttpError as error:
            return Response.error(error.status, error.message, error.headers)
        except ClientDisconnected:
            return Response.error(400, "request body ended early")
        except Exception as error:
            _log_exception(request, error)
            return Response.error(500, "internal error in the sandbox daemon; see the sandbox's log")

    def _refuse_rest(self, exchange: _Exchange) -> None:
        """The handler answers without having read the body: it is thrown away while the answer goes out."""
        body = exchange.request.body
        if exchange.expects_continue or body.length is None or body.length > BODY_HIGH_WATER:
            exchange.keep_alive = False

    async def _send(self, exchange: _Exchange, response: Response) -> None:
        body = response.body
        method = exchange.request.method
        bodiless = method == "HEAD" or response.status in (204, 304)
        if isinstance(body, bytes):
            self._write(self._head(response, len(body), exchange.keep_alive, False))
            if not bodiless:
                self._write(body)
                await self._drain()
            return
        if isinstance(body, FileBody):
            with body.file:
                self._write(self._head(response, body.count, exchange.keep_alive, False))
                if not bodiless and body.count:
                    await self._send_file(body)
            return
        async with contextlib.aclosing(_closable(body)) as chunks:
            sized = any(name.lower() == "content-length" for name, _ in response.headers)
            chunked = exchange.chunked_answer and not sized and not bodiless
            if not sized and not chunked and not bodiless:
                exchange.keep_alive = False
            self._write(self._head(response, None, exchange.keep_alive, chunked))
            if bodiless:
                return
            async for chunk in chunks:
                if chunk:
                    self._write_chunk(chunk, chunked)
                    if self._paused_writing:
                        await self._drain()
            if chunked:
                self._write(_LAST_CHUNK)

    def _write_chunk(self, chunk: bytes, chunked: bool) -> None:
        if chunked:
            self._write(b"%x\r\n" % len(chunk))
            self._write(chunk)
            self._write(b"\r\n")
        else:
            self._write(chunk)

    async def _send_file(self, body: FileBody) -> None:
        self._flush()
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ClientDisconnected("client disconnected")
        await self._drain()
        sent = await self._loop.sendfile(transport, body.file, body.offset, body.count)
        if sent < body.count:
            raise ClientDisconnected("file became shorter while it was sent")

    def _head(self, response: Response, length: int | None, keep_alive: bool, chunked: bool) -> bytes:
        line = _STATUS_LINES.get(response.status) or f"HTTP/1.1 {response.status} \r\n".encode()
        parts = [line]
        sized = False
        for name, value in response.headers:
            if name.lower() == "content-length":
                sized = True
            if "\r" in value or "\n" in value or "\0" in value:
                value = value.replace("\r", " ").replace("\n", " ").replace("\0", " ")
            parts.append(f"{name}: {value}\r\n".encode("latin-1", "replace"))
        if chunked:
            parts.append(b"transfer-encoding: chunked\r\n")
        elif length is not None and not sized and response.status not in (204, 304):
            parts.append(b"content-length: %d\r\n" % length)
        if not keep_alive:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        return b"".join(parts)

    def _finish(self, exchange: _Exchange) -> None:
        """The answer is out: next request, or close."""
        self._task = None
        self._serving = None
        body = exchange.request.body
        if not exchange.keep_alive:
            if body.ended:
                self._close()
            else:
                self._linger_then_close(body)
            return
        body.discard()
        if not body.ended:
            # A short rest of a refused body: let it arrive; its bytes are dropped as it becomes the next read.
            self._task = self._loop.create_task(self._swallow(exchange))
            return
        self._next()

    async def _swallow(self, exchange: _Exchange) -> None:
        self._serving = exchange
        with contextlib.suppress(Exception):
            async for _ in exchange.request.body:
                pass
        self._serving = None
        if not self._closing:
            self._next()

    def _next(self) -> None:
        if self._waiting:
            self._serve(self._waiting.popleft())
        elif self._broken is not None:
            self._answer_broken(self._broken)
            return
        if not self._waiting:
            self._resume_reading()

    # -- writing side -----------------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        if self._closing:
            return
        self._out.append(data)
        self._out_size += len(data)
        if self._out_size >= CORK_LIMIT:
            self._flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flush_scheduled = False
        self._flush()

    def _flush(self) -> None:
        if not self._out:
            return
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self._out_size = 0
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def _drain(self) -> None:
        while self._paused_writing and not self._closing:
            self._writable = self._loop.create_future()
            await self._writable
        if self._closing:
            raise ClientDisconnected("client disconnected")

    def _wake_writer(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _close(self) -> None:
        self._flush()
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    def _abort(self) -> None:
        self._out.clear()
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def _linger_then_close(self, body: Body) -> None:
        self._flush()
        self._closing = True  # what still arrives is dropped in data_received
        body.discard()
        self._resume_reading()
        if self._transport is not None:
            self._linger = self._loop.call_later(LINGER_S, self._transport.close)


async def _iterate(chunks: AsyncIterator[bytes]) -> Any:
    async for chunk in chunks:
        yield chunk


def _closable(chunks: AsyncIterator[bytes]) -> Any:
    return chunks if hasattr(chunks, "aclose") else _iterate(chunks)


def _log_exception(request: Request, error: Exception) -> None:
    print(f"error while serving {request.method} {request.path}", file=sys.stderr)
    traceback.print_exception(error, file=sys.stderr)
