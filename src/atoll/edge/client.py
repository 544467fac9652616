"""A client's connection: HTTP/1.1 framing, one exchange after the other, limits and time-outs.

Each request is routed by itself: clients send requests for the control plane and for sandboxes over one connection.

    idle ──► head ──► exchange running ──► (answer complete) ──► rest of the body drained ──► idle
                            └──► tunnel: bytes in, bytes out
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from atoll.edge import answers
from atoll.edge.answers import Answer
from atoll.edge.asgi import AsgiExchange
from atoll.edge.head import MAX_FIELDS, MAX_HEAD_BYTES, BadHead, Headers, RequestHead, read_request
from atoll.edge.proxy import ProxyExchange
from atoll.edge.routes import Preflight, ToControl, ToSandbox, decide
from atoll.edge.upstream import HIGH_WATER

if TYPE_CHECKING:
    from atoll.edge.server import Edge

HEAD_S = 30.0
"""A head must be complete within this."""
IDLE_S = 620.0
"""Longer than clients and proxies keep an idle connection, so that they close it, not we under their request."""
BODY_S = 60.0
"""How long a body may stand still while nothing is answered; who answers meanwhile may take its time."""
DRAIN_S = 30.0
"""How long a body is still read after its answer is complete, so that the client gets to read the answer."""


ESTABLISHED = 1
"""The kernel's TCPESTABLISHED."""


class Exchange(Protocol):
    """One request being answered, seen from its connection."""

    def start(self) -> None: ...
    def body(self, chunk: bytes) -> None: ...
    def body_end(self) -> None: ...
    def raw(self, data: bytes) -> None: ...
    def eof(self) -> bool: ...
    def abort(self) -> None: ...
    def client_writable(self, writable: bool) -> None: ...


class _Incoming:
    """A request as the parser found it; what arrives before its turn waits here."""

    __slots__ = ("chunks", "ended", "head")

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self.chunks: list[bytes] = []
        self.ended = False


class ClientConnection(asyncio.Protocol):
    """Parses, starts exchanges in turn, carries their answers out."""

    def __init__(self, edge: Edge, *, secure: bool = False) -> None:
        self.edge = edge
        self._secure = secure
        self.peer_ip = b"unknown"
        self.peer: tuple[str, int] | None = None
        self.known = False
        self.deadline: float | None = None
        self.writable = True
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made, before any use
        self._parser = httptools.HttpRequestParser(self)
        self._exchange: Exchange | None = None
        self._current: _Incoming | None = None
        self._parsing: _Incoming | None = None
        self._waiting: deque[_Incoming] = deque()
        self._keep_alive = True
        self._answer_begun = False
        self._held = 0
        self._lost = False
        self._closing = False
        self._raw = False
        self._tunnel = False
        self._refused: BadHead | None = None
        self._poison: BadHead | None = None
        self._resume_parsing: bytes | None = None
        self._reset_head()

    def _reset_head(self) -> None:
        self._url = b""
        self._headers: Headers = []
        self._head_bytes = 0
        self._in_head = False

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one by shape only
        transport.set_write_buffer_limits(high=HIGH_WATER)
        sock = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.peer = (str(peer[0]), int(peer[1]))
            self.peer_ip = self.peer[0].encode()
        self.deadline = self.edge.now() + HEAD_S
        full = self.edge.enter(self)
        if full is not None:
            transport.write(full.render(None, keep_alive=False))
            self._close()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._raw:
            if self._exchange is not None:
                self._exchange.raw(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._after_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if self._refused is None and isinstance(error, httptools.HttpParserCallbackError):
                self.edge.log.exception("exchange could not start", exc_info=error.__context__ or error)
                self._refused = BadHead(500, "internal error")
            self._refuse(self._refused or BadHead(400, f"this is not an HTTP request: {error}"))

    def eof_received(self) -> bool:
        if self._exchange is not None and self._tunnel:
            return self._exchange.eof()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self.edge.left(self)
        self._waiting.clear()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abort()

    def pause_writing(self) -> None:
        self.writable = False
        if self._exchange is not None:
            self._exchange.client_writable(False)

    def resume_writing(self) -> None:
        self.writable = True
        if self._exchange is not None:
            self._exchange.client_writable(True)

    # httptools' side.

    def on_message_begin(self) -> None:
        self._reset_head()
        self._in_head = True
        self._parsing = None
        if self._exchange is None:
            self.deadline = self.edge.now() + HEAD_S

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count(len(url), 414)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: nothing here needs one
        self._count(len(name) + len(value), 431)
        self._headers.append((name.lower(), value))

    def _count(self, size: int, status: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES or len(self._headers) >= MAX_FIELDS:
            self._refused = BadHead(status, "the head of the request is too large")
            raise self._refused

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._resume_parsing is not None:
            return
        parser = self._parser
        try:
            head = read_request(
                parser.get_method(), self._url, parser.get_http_version(), self._headers, parser.should_keep_alive()
            )
        except BadHead as bad:
            self._refused = bad
            raise
        head.secure = self._secure
        incoming = self._parsing = _Incoming(head)
        if parser.should_upgrade() and not head.upgrade:
            # The parser stops at any upgrade and forgets the body; what is not tunnelled is read on as plain HTTP.
            self._resume_parsing = _framing_only(head)
        self._waiting.append(incoming)
        if self._exchange is None and self._current is None:
            self._next()
        else:
            self.hold_reading()

    def on_body(self, chunk: bytes) -> None:
        incoming = self._parsing
        if incoming is None:
            return
        if incoming is self._current:
            if self._exchange is not None:
                if not self._answer_begun:
                    self.deadline = self.edge.now() + BODY_S
                self._exchange.body(chunk)
        else:
            incoming.chunks.append(chunk)

    def on_message_complete(self) -> None:
        incoming = self._parsing
        if incoming is None or (self._resume_parsing is not None):
            return
        incoming.ended = True
        if incoming is self._current:
            if self._exchange is not None:
                self.deadline = None
                self._exchange.body_end()
            else:
                self._turn_over()

    def _after_upgrade(self, rest: bytes) -> None:
        framing = self._resume_parsing
        if framing is None:
            self._raw = True
            if rest and self._exchange is not None:
                self._exchange.raw(rest)
            return
        incoming = self._parsing
        self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(framing)  # on_message_begin forgets `_parsing`; the head is not announced again
            self._parsing = incoming
            self._resume_parsing = None
            if incoming is not None and not incoming.head.has_body:
                self.on_message_complete()
        except httptools.HttpParserError as error:
            self._refuse(BadHead(400, str(error)))
            return
        if rest:
            self.data_received(rest)

    # Turns.

    def _next(self) -> None:
        """Starts the oldest waiting request."""
        incoming = self._current = self._waiting.popleft()
        self._keep_alive = incoming.head.keep_alive and not self.edge.stopping
        self._answer_begun = False
        waits = incoming.head.has_body and not incoming.ended and not incoming.head.expects_continue
        self.deadline = self.edge.now() + BODY_S if waits else None
        self.edge.room.works(self)
        decision = decide(incoming.head, self.edge.routes, self.edge.domains)
        if isinstance(decision, ToSandbox):
            self._exchange = ProxyExchange(self, incoming.head, decision.route, decision.port)
        elif isinstance(decision, ToControl):
            self._exchange = AsgiExchange(self, incoming.head)
        elif isinstance(decision, Preflight):
            self.write(answers.preflight(incoming.head))
            self.finish()
            return
        else:
            self.answer(decision, cors=incoming.head.get(b"origin") is not None)
            return
        exchange = self._exchange
        exchange.start()
        for chunk in incoming.chunks:
            exchange.body(chunk)
        incoming.chunks.clear()
        if incoming.ended:
            exchange.body_end()

    def finish(self) -> None:
        """The answer of the current exchange is complete. What is left of its request's body is read and dropped."""
        self._exchange = None
        incoming = self._current
        if self._lost or incoming is None:
            return
        if incoming.ended:
            self._turn_over()
        elif incoming.head.has_body:
            self.deadline = self.edge.now() + DRAIN_S
        # Else the parser is about to come to the end of a request without a body.

    def _turn_over(self) -> None:
        """Answer sent and body read: the next request's turn, or idle, or the end."""
        self._current = None
        if not self._keep_alive:
            self._close()
        elif self._waiting:
            self.edge.loop.call_soon(self._begin_waiting)
        elif self._poison is not None:
            self._refuse(self._poison)
        else:
            self.deadline = self.edge.now() + (HEAD_S if self._in_head else IDLE_S)
            self.edge.room.rests(self)

    def _begin_waiting(self) -> None:
        if self._lost or self._closing or self._current is not None or not self._waiting:
            return
        self.release_reading()
        self._next()

    # What exchanges call.

    def write(self, data: bytes) -> None:
        if not self._lost and not self._closing:
            self._transport.write(data)

    @property
    def bare_socket(self) -> socket.socket | None:
        """The client's socket when bytes may go into it past this object: plain HTTP/1.1 with nothing left to write."""
        if self._secure or self._lost or self._closing or self._transport.get_write_buffer_size() > 0:
            return None
        found: socket.socket | None = self._transport.get_extra_info("socket")
        return found

    def write_eof(self) -> None:
        """Signals the end of our output. TLS cannot do that for one direction: there the connection ends."""
        if not self._transport.can_write_eof():
            self._close()
            return
        with contextlib.suppress(OSError, RuntimeError, NotImplementedError):
            self._transport.write_eof()

    def begin_answer(self, keep_alive: bool, status: int) -> bool:
        """The head of the final answer goes out. Returns whether the connection serves another request after it."""
        self._answer_begun = True
        self.deadline = None
        if not self.known and status < 400 and self._current is not None:
            self.known = self._current.head.shows_key
        self._keep_alive = self._keep_alive and keep_alive
        return self._keep_alive

    def begin_tunnel(self) -> None:
        self._tunnel = True
        self._keep_alive = False

    def answer(self, answer: Answer, *, cors: bool = False) -> None:
        """Sends a whole answer of the edge's own and finishes."""
        head = self._current.head if self._current is not None else None
        if head is not None and (head.upgrade or head.expects_continue):
            self._keep_alive = False  # what the client sends next depends on what it makes of this answer
        self.write(answer.render(head, keep_alive=self._keep_alive, cors=cors))
        self.finish()

    def cut(self, *, graceful: bool = False) -> None:
        """Ends the connection in the middle of an answer, so that the client sees that it is not whole."""
        self._exchange = None
        if graceful:
            self._close()
        elif not self._lost:
            self._closing = True
            self._transport.abort()

    def hold_reading(self) -> None:
        """Stops reading; held as often as released."""
        self._held += 1
        if self._held == 1 and not self._lost:
            with contextlib.suppress(RuntimeError):
                self._transport.pause_reading()

    def release_reading(self) -> None:
        self._held = max(0, self._held - 1)
        if self._held == 0 and not self._lost:
            with contextlib.suppress(RuntimeError):
                self._transport.resume_reading()

    # Endings.

    @property
    def held(self) -> bool:
        return self._held > 0

    @property
    def peer_left(self) -> bool:
        """True when the client closed its side: the kernel knows, but a connection that is held gets no event."""
        sock = self._transport.get_extra_info("socket")
        try:
            return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != ESTABLISHED)
        except (OSError, AttributeError):
            return False

    @property
    def peername(self) -> object:
        return self.peer

    @property
    def idle(self) -> bool:
        return self._current is None and self._exchange is None

    def expire(self) -> None:
        """The deadline passed: an unfinished request is answered, everything else is closed."""
        if self.idle and self._in_head:
            self._refuse(BadHead(408, "the head of the request did not arrive in time"))
        elif self._exchange is not None and self.held:
            self.deadline = self.edge.now() + BODY_S  # not the client is slow: nobody takes what it sends
        elif self._exchange is not None and not self._answer_begun:
            self._refuse(BadHead(408, "the body of the request did not arrive in time"))
        else:
            self._close()

    def close_idle(self) -> None:
        """For a server that stops: closes now if nothing runs, else after the current answer."""
        if self.idle:
            self._close()
        else:
            self._keep_alive = False

    def abort(self) -> None:
        if not self._lost:
            self._transport.abort()

    def _refuse(self, bad: BadHead) -> None:
        """What follows on this connection cannot be understood. Requests before it still get their answers."""
        if self._waiting or (self._current is not None and self._current.ended):
            self._poison = bad
            self.hold_reading()
            return
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abort()
        if self._answer_begun and self._current is not None:
            self.abort()
            return
        self.write(Answer(bad.status, bad.message).render(None, keep_alive=False))
        self._close()

    def _close(self) -> None:
        if not self._lost and not self._closing:
            self._closing = True
            self._transport.close()


def _framing_only(head: RequestHead) -> bytes:
    """A head that makes a fresh parser expect the body of `head`."""
    if head.chunked:
        return b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
    return b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (head.content_length or 0)
