"""HTTP/2 for clients that come over TLS: every stream is one HTTP/1.1 exchange on a connection that exists in memory.

    TLS ── ALPN ──┬── http/1.1 ─► ClientConnection
                  └── h2 ───────► Http2Connection ─┬─ stream 1 ─► ClientConnection
                                                   └─ stream 3 ─► ClientConnection …

So routing, limits, time-outs and tunnelling have one implementation. Owned here: the translation of heads, flow control
(a slow reader of one stream stalls that stream only; memory per stream is bounded in both directions), and what a peer
may do to the connection itself (too many resets, answers that it never reads).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import h2.events
import httptools
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from atoll.edge.client import ESTABLISHED, IDLE_S, ClientConnection
from atoll.edge.head import HOP_BY_HOP, MAX_HEAD_BYTES, BadHead, Headers
from atoll.edge.upstream import HIGH_WATER

if TYPE_CHECKING:
    from atoll.edge.server import Edge

ALPN = ("h2", "http/1.1")
MAX_STREAMS = 1000
"""Each may have 64 KiB under way before somebody takes it: HTTP/2's own default for the window of a stream."""
CONNECTION_WINDOW = 4 * 1024 * 1024
MAX_STREAMS_OF_STRANGERS = 100
"""Until an answer shows that the client's key is good."""
MAX_RESETS = 500
"""Streams that a client may open and give up within RESETS_S."""
RESETS_S = 10.0
SLICE = 16 * 1024
"""Bytes that are looked at before what they cost is judged."""
TOKENS = 2000
TOKENS_PER_S = 100.0
"""Frames that carry nothing (settings, pings, windows, priorities, empty data): so many at once, and on average."""
SETTINGS_COST = 10
"""Settings may change the window of every stream."""
EARNED = 4
"""What a piece of an answer earns its client: it says that it took it, for the stream and for the connection."""
PIECE = 512
"""Bytes of a piece that earns; a client that opens its window byte by byte earns nothing."""

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"[^\x00\r\n]*")
_TARGET = re.compile(rb"(/[\x21-\x7e\x80-\xff]*|\*)")
_METHOD = re.compile(rb"[A-Z][A-Z-]{0,31}")
_AUTHORITY = re.compile(rb"[A-Za-z0-9._:\[\]-]{1,300}")


class TlsFront(asyncio.Protocol):
    """A TLS connection whose handshake is done: becomes what ALPN agreed on."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tls = transport.get_extra_info("ssl_object")
        chosen = tls.selected_alpn_protocol() if tls is not None else None
        protocol: asyncio.Protocol
        protocol = Http2Connection(self._edge) if chosen == "h2" else ClientConnection(self._edge, secure=True)
        cast(asyncio.Transport, transport).set_protocol(protocol)
        protocol.connection_made(transport)


class Http2Connection(asyncio.Protocol):
    """One client connection that carries many streams."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.deadline: float | None = None
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made, before any use
        self._streams: dict[int, _Stream] = {}
        self._ready: deque[_Stream] = deque()
        self._paused = False
        self._pumping = False
        self._lost = False
        self._stopping = False
        self._unacknowledged = 0
        self._resets: deque[float] = deque()
        self.known = False
        self._opened = False
        """A window that all streams share has opened."""
        self._tokens = float(TOKENS)
        self._tokens_at = edge.now()

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one by shape only
        transport.set_write_buffer_limits(high=HIGH_WATER)
        if self.edge.enter(self) is not None:
            transport.close()
            return
        limits = {
            SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS_OF_STRANGERS,
            SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
        }
        self._h2.local_settings = Settings(client=False, initial_values=limits)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW)
        self._rest()
        self.flush()

    def data_received(self, data: bytes) -> None:
        if self._lost or self._transport.is_closing():
            return
        try:
            for at in range(0, len(data), SLICE):
                for event in self._h2.receive_data(data[at : at + SLICE]):
                    self._on(event)
                if self._tokens < 0:
                    self.edge.log.debug("HTTP/2 connection refused", error="too many frames that carry nothing")
                    self._end(ErrorCodes.ENHANCE_YOUR_CALM)
                if self._transport.is_closing():
                    return
        except H2Error as error:
            self.edge.log.debug("HTTP/2 connection refused", error=str(error))
            self._end(ErrorCodes.PROTOCOL_ERROR)
            return
        if self._opened:
            self._opened = False
            for stream in self._streams.values():
                self.schedule(stream)
        self.pump()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self.edge.left(self)
        for stream in list(self._streams.values()):
            stream.lose()
        self._streams.clear()
        self._ready.clear()

    def pause_writing(self) -> None:
        """Nothing is read either: each frame may deserve an answer, and answers that nobody reads would pile up."""
        self._paused = True
        with contextlib.suppress(RuntimeError):
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        if not self._lost:
            with contextlib.suppress(RuntimeError):
                self._transport.resume_reading()
            self.pump()

    # The edge's side.

    @property
    def held(self) -> bool:
        return self._paused

    @property
    def peer_left(self) -> bool:
        """True when the client closed its side while nothing was read."""
        sock = self._transport.get_extra_info("socket")
        try:
            return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != ESTABLISHED)
        except (OSError, AttributeError):
            return False

    def expire(self) -> None:
        """Idle for too long."""
        self._end(ErrorCodes.NO_ERROR)

    def close_idle(self) -> None:
        """For a server that stops: no new streams; closes when the running ones are done."""
        self._stopping = True
        if not self._streams:
            self._end(ErrorCodes.NO_ERROR)

    def abort(self) -> None:
        if not self._lost:
            self._transport.abort()

    @property
    def peername(self) -> Any:
        return self._transport.get_extra_info("peername")

    # Events.

    def _on(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._open(event)
        elif isinstance(event, h2.events.DataReceived):
            self._acknowledge(event.flow_controlled_length or 0)
            if not event.data and event.stream_ended is None:
                self._spend(1)
            stream = self._streams.get(event.stream_id or 0)
            if stream is not None and event.data is not None:
                stream.receive(event.data, event.flow_controlled_length or 0)
        elif isinstance(event, h2.events.StreamEnded):
            if (stream := self._streams.get(event.stream_id or 0)) is not None:
                stream.receive_end()
        elif isinstance(event, h2.events.StreamReset):
            if (stream := self._streams.pop(event.stream_id or 0, None)) is not None:
                stream.lose()
                self._rest()
            self._count_reset()
        elif isinstance(event, h2.events.WindowUpdated):
            self._spend(1)
            if not event.stream_id:
                self._opened = True
            elif (stream := self._streams.get(event.stream_id)) is not None:
                self.schedule(stream)
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            self._spend(SETTINGS_COST)
            self._opened = True
        elif isinstance(event, h2.events.ConnectionTerminated):
            self._stopping = True
            if not self._streams:
                self._transport.close()
        else:
            self._spend(1)  # pings, priorities, frames that nobody knows

    def _spend(self, tokens: float) -> None:
        now = self.edge.now()
        self._tokens = min(TOKENS, self._tokens + (now - self._tokens_at) * TOKENS_PER_S) - tokens
        self._tokens_at = now

    def _open(self, event: h2.events.RequestReceived) -> None:
        stream_id = event.stream_id or 0
        ended = event.stream_ended is not None
        try:
            method, head, chunked = http1_head(cast(Headers, event.headers or []), ended=ended)
        except BadHead:
            self._h2.reset_stream(stream_id, ErrorCodes.PROTOCOL_ERROR)
            self._count_reset()
            return
        if self._stopping or self.edge.stopping:
            self._h2.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        self.deadline = None
        self.edge.room.works(self)
        stream = self._streams[stream_id] = _Stream(self, stream_id, method, chunked)
        stream.begin(head, ended=ended)

    def _acknowledge(self, size: int) -> None:
        """The connection's window never closes on account of one stream that nobody reads."""
        self._unacknowledged += size
        if self._unacknowledged >= CONNECTION_WINDOW // 4:
            self._h2.increment_flow_control_window(self._unacknowledged)
            self._unacknowledged = 0

    def _count_reset(self) -> None:
        now = self.edge.now()
        self._resets.append(now)
        while self._resets[0] < now - RESETS_S:
            self._resets.popleft()
        if len(self._resets) > MAX_RESETS:
            self._end(ErrorCodes.ENHANCE_YOUR_CALM)

    # What streams call.

    def open_window(self, stream_id: int, size: int) -> None:
        """The stream's `size` bytes were taken: the client may send as many more."""
        with contextlib.suppress(H2Error):
            self._h2.increment_flow_control_window(size, stream_id)
        self.flush()

    def trust(self) -> None:
        """A request with a good key was answered."""
        if not self.known:
            self.known = True
            self._h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS})

    def send_head(self, stream_id: int, fields: Headers, *, ended: bool) -> None:
        with contextlib.suppress(H2Error):
            self._h2.send_headers(stream_id, fields, end_stream=ended)
        self.flush()

    def send_reset(self, stream_id: int, code: ErrorCodes) -> None:
        with contextlib.suppress(H2Error):
            self._h2.reset_stream(stream_id, code)
        self.flush()

    def schedule(self, stream: _Stream) -> None:
        """The stream has something to send, or may again."""
        if not stream.scheduled and stream.has_to_send:
            stream.scheduled = True
            self._ready.append(stream)

    def pump(self) -> None:
        """Sends in turns, a frame of each stream that may, until the client takes no more."""
        if self._pumping or self._lost:
            return
        self._pumping = True
        try:
            self.flush()
            while self._ready and not self._paused and not self._lost:
                stream = self._ready.popleft()
                stream.scheduled = False
                if self._send_some(stream):
                    self.schedule(stream)
                self.flush()
        finally:
            self._pumping = False

    def _send_some(self, stream: _Stream) -> bool:
        """One frame. False: the stream's window is closed, or all is sent."""
        try:
            window = min(self._h2.local_flow_control_window(stream.id), self._h2.max_outbound_frame_size)
            chunk = stream.take(window)
            ended = stream.answered and not stream.pending
            if not chunk and not ended:
                return False
            self._h2.send_data(stream.id, chunk, end_stream=ended)
            if ended or len(chunk) >= PIECE:
                self._tokens += EARNED
        except H2Error:
            stream.forget_output()
            return False
        if ended:
            stream.end_sent = True
            self.forget(stream)
        return bool(stream.pending)

    def flush(self) -> None:
        data = self._h2.data_to_send()
        if data and not self._lost:
            self._transport.write(data)

    def forget(self, stream: _Stream) -> None:
        """Both sides are done with it."""
        if stream.end_sent and stream.closed:
            self._streams.pop(stream.id, None)
            self._rest()

    def drop(self, stream: _Stream) -> None:
        """It ended early."""
        self._streams.pop(stream.id, None)
        self._rest()

    # Endings.

    def _rest(self) -> None:
        if not self._streams and not self._lost:
            self.deadline = self.edge.now() + IDLE_S
            self.edge.room.rests(self)
            if self._stopping:
                self._end(ErrorCodes.NO_ERROR)

    def _end(self, code: ErrorCodes) -> None:
        if self._lost:
            return
        with contextlib.suppress(H2Error):
            self._h2.close_connection(code)
        self.flush()
        if code is ErrorCodes.NO_ERROR:
            self._transport.close()
        else:
            for stream in list(self._streams.values()):
                stream.lose()
            self._streams.clear()
            self._transport.close()


class _Stream:
    """The transport of an in-memory HTTP/1.1 connection: what is written to it becomes frames of one stream."""

    def __init__(self, parent: Http2Connection, stream_id: int, method: bytes, chunked: bool) -> None:
        self.id = stream_id
        self.scheduled = False
        self.answered = False
        """The answer is complete, if not sent."""
        self.end_sent = False
        self.closed = False
        self.pending = bytearray()
        self._parent = parent
        self._method = method
        self._chunked = chunked
        self._client = ClientConnection(parent.edge, secure=True)
        self._parser = httptools.HttpResponseParser(self)
        self._fields: Headers = []
        self._reading = True
        self._arrived: deque[tuple[bytes, int]] = deque()
        self._arrived_end = False
        self._request_ended = False
        self._stalled = False
        self._reset_seen = False

    # The parent's side.

    def begin(self, head: bytes, *, ended: bool) -> None:
        self._request_ended = ended
        self._client.connection_made(cast(asyncio.Transport, self))
        if not self.closed:
            self._client.data_received(head)

    def receive(self, data: bytes, counted: int) -> None:
        """A piece of the body, `counted` bytes of the window."""
        if self._reading and not self.closed:
            self._pass_on(data, counted)
        elif not self.closed:
            self._arrived.append((data, counted))

    def receive_end(self) -> None:
        self._request_ended = True
        if not self._chunked:
            return
        if self._reading and not self._arrived:
            self._client.data_received(b"0\r\n\r\n")
        else:
            self._arrived_end = True

    def _pass_on(self, data: bytes, counted: int) -> None:
        if data:
            self._client.data_received(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        if counted:
            self._parent.open_window(self.id, counted)

    def lose(self) -> None:
        """The client gave the stream up, or is gone."""
        self.forget_output()
        self.closed = True
        if not self._reset_seen:
            self._reset_seen = True
            self._client.connection_lost(None)

    def forget_output(self) -> None:
        self.pending.clear()
        self.end_sent = True

    @property
    def has_to_send(self) -> bool:
        return bool(self.pending) or (self.answered and not self.end_sent)

    def take(self, size: int) -> bytes:
        """Up to `size` bytes to send now."""
        if size <= 0 or not self.pending:
            return b""
        chunk = bytes(memoryview(self.pending)[:size])
        del self.pending[:size]
        if self._stalled and len(self.pending) < HIGH_WATER // 4:
            self._stalled = False
            self._parent.edge.loop.call_soon(self._client.resume_writing)
        return chunk

    # The transport's side, as ClientConnection uses it.

    def write(self, data: bytes) -> None:
        if self.closed or self.answered:
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.abort()
            return
        if len(self.pending) > HIGH_WATER and not self._stalled:
            self._stalled = True
            self._client.pause_writing()
        self._parent.schedule(self)
        self._parent.pump()

    def close(self) -> None:
        """What was written is still sent; a connection closed in the middle of an answer is a reset."""
        if self.closed:
            return
        if not self.answered:
            self.abort()
            return
        self.closed = True
        if not self._request_ended and self.end_sent:
            self._parent.send_reset(
                self.id, ErrorCodes.NO_ERROR
            )  # the answer stands; the rest of the body is not needed
        self._parent.forget(self)
        self._parent.edge.loop.call_soon(self._on_reset)

    def abort(self) -> None:
        if self.closed:
            return
        self.closed = True
        if not self.end_sent:
            self._parent.send_reset(self.id, ErrorCodes.INTERNAL_ERROR)
        self.forget_output()
        self._parent.drop(self)
        self._parent.edge.loop.call_soon(self._on_reset)

    def _on_reset(self) -> None:
        if not self._reset_seen:
            self._reset_seen = True
            self._client.connection_lost(None)

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        while self._arrived and self._reading and not self.closed:
            self._pass_on(*self._arrived.popleft())
        if self._arrived_end and self._reading and not self._arrived and not self.closed:
            self._arrived_end = False
            self._client.data_received(b"0\r\n\r\n")

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The limit is HIGH_WATER."""

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._parent.peername if name == "peername" else default

    # httptools' side: the answer.

    def on_message_begin(self) -> None:
        self._fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower not in HOP_BY_HOP:
            self._fields.append((lower, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status == 101:
            self.abort()  # a tunnel was not asked for: `upgrade` cannot be written in HTTP/2
            return
        bodiless = status >= 200 and (self._method == b"HEAD" or status in (204, 304))
        if self._client.known:
            self._parent.trust()
        fields = [(b":status", b"%d" % status), *self._fields]
        self._parent.send_head(self.id, fields, ended=bodiless)
        if bodiless:
            self.answered = self.end_sent = True

    def on_body(self, chunk: bytes) -> None:
        if not self.end_sent:
            self.pending += chunk

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self.answered = True


def http1_head(headers: Headers, *, ended: bool) -> tuple[bytes, bytes, bool]:
    """The method, the head as HTTP/1.1 says it, and whether the body is to be chunked.

    Raises BadHead for what could be read as two things there: line breaks, blanks in the target, a strange method.
    """
    pseudo: dict[bytes, bytes] = {}
    fields: list[bytes] = []
    cookies: list[bytes] = []
    length: bytes | None = None
    host = b""
    for name, value in headers:
        if name.startswith(b":"):
            pseudo[name] = value
        elif _NAME.fullmatch(name) is None or _VALUE.fullmatch(value) is None or name in HOP_BY_HOP:
            raise BadHead(400, "a field that HTTP/2 does not allow")
        elif name == b"cookie":
            cookies.append(value)
        elif name == b"host":
            host = value
        else:
            length = value if name == b"content-length" else length
            fields += (name, b": ", value, b"\r\n")
    method, target = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    authority = pseudo.get(b":authority", host)
    if not (_METHOD.fullmatch(method) and _TARGET.fullmatch(target) and _AUTHORITY.fullmatch(authority)):
        raise BadHead(400, "method, target or authority is malformed")
    if cookies:
        fields += (b"cookie: ", b"; ".join(cookies), b"\r\n")
    chunked = length is None and not ended
    if chunked:
        fields.append(b"transfer-encoding: chunked\r\n")
    elif length is None and method in (b"POST", b"PUT", b"PATCH"):
        fields.append(b"content-length: 0\r\n")
    start = (method, b" ", target, b" HTTP/1.1\r\nhost: ", authority, b"\r\n")
    return method, b"".join((*start, *fields, b"connection: close\r\n\r\n")), chunked
