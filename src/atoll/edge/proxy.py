"""One exchange between a client and a sandbox: request out, answer back, both streamed, never stored.

    dialling ──► sending ──► answering ──► done
        │           │            ├──► tunnel (after a 101)
        └───────────┴────────────┴──► failed (502 if nothing was answered yet, else the client's connection is cut)

Back-pressure: whichever side cannot take more stops the reading of the other. A client that goes away closes the
connection to the sandbox at once: that is how the guest learns to interrupt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from atoll.edge import answers
from atoll.edge.answers import Answer
from atoll.edge.head import (
    Headers,
    RequestHead,
    ResponseHead,
    downstream_head,
    read_response,
    switching_head,
    upstream_head,
)
from atoll.edge.routes import GUEST_PORTS, host_for
from atoll.edge.splice import AT_LEAST, Splice
from atoll.edge.upstream import HIGH_WATER, UpstreamConnection
from atoll.model.errors import AtollError, PortClosed, SandboxGone
from atoll.model.seams import Route

if TYPE_CHECKING:
    from atoll.edge.client import ClientConnection

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
Write = Callable[[bytes], None]
_JOIN_BELOW = 16 * 1024


class ProxyExchange:
    """Owned by the client's connection; the upstream connection's reader."""

    def __init__(self, client: ClientConnection, head: RequestHead, route: Route, port: int) -> None:
        self._client = client
        self._edge = client.edge
        self._head = head
        self._route = route
        self._port = port
        self._upstream: UpstreamConnection | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._early: list[bytes] = []
        self._early_size = 0
        self._body_ended = not head.has_body
        self._response: ResponseHead | None = None
        self._rechunk = False
        self._answering = False
        self._finished = False
        self._retried = False
        self._holding = False
        self._tunnel = False
        self._client_eof = False
        self._sandbox_eof = False
        self._left = 0
        """Bytes of the answer's body that are still to come, where its length is known."""
        self._splice: Splice | None = None

    # The client's side.

    def start(self) -> None:
        connection = self._edge.pool.take(self._route.sandbox_id, self._port, self._head.replayable)
        if connection is not None:
            self._attach(connection)
        else:
            self._dialling = self._edge.spawn(self._dial())

    def body(self, chunk: bytes) -> None:
        """A piece of the request's body."""
        if self._finished:
            return
        if self._upstream is None:
            self._early.append(chunk)
            self._early_size += len(chunk)
            if self._early_size > HIGH_WATER:
                self._hold(True)
        else:
            self._send_body(self._upstream, chunk)

    def body_end(self) -> None:
        self._body_ended = True
        if self._upstream is not None and self._head.chunked and not self._finished:
            self._upstream.write(LAST_CHUNK)

    def raw(self, data: bytes) -> None:
        """Bytes that followed a request for another protocol."""
        if self._tunnel and self._upstream is not None:
            self._upstream.write(data)
        else:
            self.body(data)

    def eof(self) -> bool:
        """The client will send no more. True: keep its connection open for the answer (tunnels only)."""
        if not self._tunnel or self._upstream is None or self._sandbox_eof:
            return False
        self._client_eof = True
        self._upstream.write_eof()
        return True

    def abort(self) -> None:
        """The client is gone."""
        self._finished = True
        if self._splice is not None:
            self._splice.cancel()
        if self._dialling is not None:
            self._dialling.cancel()
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None

    def client_writable(self, writable: bool) -> None:
        if self._upstream is not None and self._splice is None:
            if writable:
                self._upstream.resume()
            else:
                self._upstream.pause()

    # Getting a connection.

    async def _dial(self) -> None:
        try:
            connection = await self._edge.pool.dial(self._route, self._port)
        except PortClosed:
            self._fail(answers.port_closed(self._route.sandbox_id, self._port))
        except SandboxGone:
            self._fail(answers.sandbox_not_found(self._route.sandbox_id))
        except (AtollError, OSError) as error:
            self._edge.log.warning("dial failed", sandbox=self._route.sandbox_id, port=self._port, error=str(error))
            self._fail(self._gone_or(answers.connection_lost(self._route.sandbox_id, self._port)))
        else:
            self._dialling = None
            if self._finished:
                connection.close()
            else:
                self._attach(connection)

    def _attach(self, connection: UpstreamConnection) -> None:
        self._upstream = connection
        connection.begin(self)
        connection.write(
            upstream_head(
                self._head,
                host=host_for(self._head, self._route, self._port),
                client_ip=self._client.peer_ip,
                forwarded=self._port not in GUEST_PORTS,
            )
        )
        if self._head.expects_continue and not self._body_ended and not self._early:
            self._client.write(CONTINUE)
        early, self._early = self._early, []
        self._hold(False)
        for chunk in early:
            self._send_body(connection, chunk)
        if not self._client.writable:
            connection.pause()
        if self._body_ended and self._head.chunked:
            connection.write(LAST_CHUNK)

    def _send_body(self, connection: UpstreamConnection, chunk: bytes) -> None:
        if self._head.chunked:
            write_chunk(connection.write, chunk)
        else:
            connection.write(chunk)

    # The sandbox's side (upstream.Reader).

    def upstream_head(self, status: int, reason: bytes, headers: Headers) -> bool:
        if status == 101:
            self._switch(ResponseHead(status, reason, headers))
            return False
        response = read_response(self._head, status, reason, headers)
        if status < 200:
            if status != 100 and self._head.http11:
                self._client.write(downstream_head(self._head, response, keep_alive=True))
            return False
        self._response = response
        self._answering = True
        self._left = response.content_length or 0
        self._rechunk = self._head.http11 and (response.chunked or response.until_close) and not response.bodiless
        keep_alive = self._head.keep_alive and not self._head.upgrade
        if not self._head.http11 and response.content_length is None and not response.bodiless:
            keep_alive = False
        extra = answers.CORS if self._needs_cors(headers) else b""
        if self._port in GUEST_PORTS and self._head.path == b"/files":
            extra += answers.INERT
        keep_alive = self._client.begin_answer(keep_alive, status)
        self._client.write(downstream_head(self._head, response, keep_alive=keep_alive, extra=extra))
        if response.until_close and self._upstream is not None:
            self._upstream.read_until_close()
        return response.bodiless

    def _needs_cors(self, headers: Headers) -> bool:
        return (
            self._port in GUEST_PORTS
            and self._head.get(b"origin") is not None
            and all(name != b"access-control-allow-origin" for name, _ in headers)
        )

    def upstream_body(self, chunk: bytes) -> None:
        if self._rechunk:
            write_chunk(self._client.write, chunk)
            return
        self._client.write(chunk)
        self._left -= len(chunk)
        if self._left >= AT_LEAST and self._client.bare_socket is not None:
            self._edge.loop.call_soon(self._splice_rest)  # when the parser has given out all that it was fed

    def _splice_rest(self) -> None:
        """A long rest of a body need not come through this process."""
        sink = self._client.bare_socket
        if (
            self._finished
            or self._upstream is None
            or self._splice is not None
            or sink is None
            or self._left < AT_LEAST
            or self._upstream.counted
        ):
            return
        self._upstream.pause()
        try:
            self._splice = Splice(self._edge.loop, self._upstream.socket, sink, self._left, self._spliced)
        except OSError:  # out of descriptors: then it comes through here
            self._upstream.resume()

    def _spliced(self, whole: bool) -> None:
        if self._upstream is None:
            return
        if whole:
            self._upstream.body_moved()
        else:
            self._upstream.close()
            self.upstream_lost("", answered=True)

    def upstream_done(self, reusable: bool) -> None:
        connection, self._upstream = self._upstream, None
        if connection is not None:
            if reusable and self._body_ended:
                self._edge.pool.give(connection)
            else:
                connection.close()
        self._finished = True
        self._hold(False)
        if self._rechunk:
            self._client.write(LAST_CHUNK)
        self._client.finish()

    def upstream_lost(self, error: str, answered: bool) -> None:
        connection, self._upstream = self._upstream, None
        if self._splice is not None:
            self._splice.cancel()
        if self._finished:
            return
        if self._tunnel or self._answering:
            self._finished = True
            self._client.cut(graceful=self._tunnel)
            return
        stale = connection is not None and connection.reused and not answered
        if stale and self._head.replayable and not self._retried:
            self._retried = True
            self._dialling = self._edge.spawn(self._dial())
            return
        self._fail(self._gone_or(answers.connection_lost(self._route.sandbox_id, self._port, error or answers.LOST)))

    def upstream_writable(self, writable: bool) -> None:
        self._hold(not writable)

    def _hold(self, held: bool) -> None:
        """Stops or goes on reading the client."""
        if held != self._holding:
            self._holding = held
            if held:
                self._client.hold_reading()
            else:
                self._client.release_reading()

    # Other protocols (WebSocket and whatever a program in the sandbox speaks after a 101).

    def _switch(self, response: ResponseHead) -> None:
        if not self._head.upgrade or self._upstream is None:
            if self._upstream is not None:
                self._upstream.close()
                self._upstream = None
            self._fail(
                answers.connection_lost(
                    self._route.sandbox_id, self._port, "the sandbox switched protocols without being asked"
                )
            )
            return
        self._tunnel = True
        self._upstream.become_raw()
        self._client.begin_tunnel()
        self._client.write(switching_head(response))

    def upstream_raw(self, data: bytes) -> None:
        self._client.write(data)

    def upstream_eof(self) -> None:
        self._sandbox_eof = True
        if self._client_eof:
            self._finished = True
            if self._upstream is not None:
                self._upstream.close()
                self._upstream = None
            self._client.cut(graceful=True)
        else:
            self._client.write_eof()

    # Endings.

    def _gone_or(self, answer: Answer) -> Answer:
        """A sandbox that ended meanwhile is "not found", whatever its connection reported last."""
        if self._edge.routes.find(self._route.sandbox_id) is None:
            return answers.sandbox_not_found(self._route.sandbox_id)
        return answer

    def _fail(self, answer: Answer) -> None:
        if self._finished:
            return
        self._finished = True
        self._dialling = None
        self._hold(False)
        self._client.answer(answer, cors=self._port in GUEST_PORTS and self._head.get(b"origin") is not None)


def write_chunk(write: Write, chunk: bytes) -> None:
    """One chunk of a chunked body; large ones are not copied."""
    size = len(chunk)
    if size == 0:
        return
    if size < _JOIN_BELOW:
        write(b"%x\r\n%b\r\n" % (size, chunk))
    else:
        write(b"%x\r\n" % size)
        write(chunk)
        write(b"\r\n")
