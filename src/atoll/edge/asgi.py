"""A small bridge from the edge's connections to the control plane's ASGI application.

Owns: scope, streamed request bodies with back-pressure, response framing, the size limit of JSON bodies.
Does not own: routing, authentication, what a body means, the application's start and stop (the composition root's).

A client that goes away does not cancel the application: what it has begun (a kill) it finishes. It is notified, as ASGI
has it: `receive` answers `http.disconnect`, and `send` raises ClientLeft once the answer cannot be delivered.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from atoll.edge.answers import Answer
from atoll.edge.head import BadHead, RequestHead, ResponseHead, downstream_head
from atoll.edge.proxy import CONTINUE, LAST_CHUNK, write_chunk
from atoll.edge.upstream import HIGH_WATER
from atoll.model.errors import PlatformError

if TYPE_CHECKING:
    from atoll.edge.client import ClientConnection

MAX_JSON_BYTES = 8 * 1024 * 1024
"""Bodies that an application reads whole. Uploads (any other content type) are streamed and have no limit here."""

_ASKED_OFTEN = ("/health", "/console/")
"""Every few seconds by something that waits: logged at level debug alone."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class ClientLeft(OSError):
    """Nobody is there to get the answer."""


class AsgiExchange:
    """One request that the control plane answers."""

    def __init__(self, client: ClientConnection, head: RequestHead) -> None:
        self._client = client
        self._head = head
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._total = 0
        self._body_ended = not head.has_body
        self._delivered = False
        self._gone = False
        self._wake = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._start_message: Message | None = None
        self._response: ResponseHead | None = None
        self._chunked = False
        self._complete = False
        self._holding = False
        self._continue_sent = not head.expects_continue
        self._task: asyncio.Task[None] | None = None

    # The connection's side.

    def start(self) -> None:
        if self._is_json and (self._head.content_length or 0) > MAX_JSON_BYTES:
            self._too_large()
            return
        if self._head.target == b"*":
            self._complete = True
            self._client.answer(Answer(400, "the request target must be a path"))
            return
        if not self._client.writable:
            self._may_write.clear()
        self._task = self._client.edge.spawn(self._run())

    @property
    def _is_json(self) -> bool:
        kind = self._head.get(b"content-type")
        return kind is None or kind.lower().startswith((b"application/json", b"text/"))

    def body(self, chunk: bytes) -> None:
        if self._complete or self._gone:
            return
        self._total += len(chunk)
        if self._is_json and self._total > MAX_JSON_BYTES:
            self._too_large()
            return
        self._chunks.append(chunk)
        self._size += len(chunk)
        self._hold(self._size > HIGH_WATER)
        self._wake.set()

    def body_end(self) -> None:
        self._body_ended = True
        self._wake.set()

    def raw(self, data: bytes) -> None:
        """The control plane speaks nothing but HTTP: what follows an upgrade request is dropped."""

    def eof(self) -> bool:
        return False

    def abort(self) -> None:
        self._gone = True
        self._wake.set()
        self._may_write.set()

    def client_writable(self, writable: bool) -> None:
        if writable:
            self._may_write.set()
        elif not self._gone:
            self._may_write.clear()

    def _hold(self, held: bool) -> None:
        if held != self._holding:
            self._holding = held
            if held:
                self._client.hold_reading()
            else:
                self._client.release_reading()

    def _too_large(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._hold(False)
        if self._response is None and not self._complete:
            self._complete = True
            self._client.answer(Answer(413, f"the body is larger than {MAX_JSON_BYTES} bytes"))
        elif not self._complete:
            self._complete = True
            self._client.cut()

    # The application's side.

    async def _run(self) -> None:
        edge = self._client.edge
        started = time.perf_counter()
        try:
            await edge.app(self._scope(), self._receive, self._send)
            if not self._complete and not self._gone:
                raise PlatformError("the application returned without an answer")
        except ClientLeft:
            pass
        except Exception:
            edge.log.exception("request failed", method=self._method, path=self._path)
            self._fail()
        finally:
            ms = round((time.perf_counter() - started) * 1e3, 1)
            status = self._response.status if self._response is not None else 0
            log = edge.log.debug if self._path.startswith(_ASKED_OFTEN) else edge.log.info
            log("request", method=self._method, path=self._path, status=status, ms=ms)

    @property
    def _method(self) -> str:
        return self._head.method.decode("ascii")

    @property
    def _path(self) -> str:
        return self._head.path.decode("ascii", "replace")

    def _scope(self) -> Scope:
        head = self._head
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1" if head.http11 else "1.0",
            "method": self._method,
            "scheme": "https" if head.secure else "http",
            "path": unquote_to_bytes(head.path).decode("utf-8", "replace"),
            "raw_path": head.path,
            "query_string": head.query,
            "root_path": "",
            "headers": head.headers,
            "client": self._client.peer,
            "server": self._client.edge.address,
        }

    async def _receive(self) -> Message:
        if not self._continue_sent and not self._chunks and not self._body_ended and self._response is None:
            self._continue_sent = True
            self._client.write(CONTINUE)
        while True:
            if self._gone or self._complete:
                return {"type": "http.disconnect"}
            if self._chunks:
                chunk = b"".join(self._chunks) if len(self._chunks) > 1 else self._chunks[0]
                self._chunks.clear()
                self._size = 0
                self._hold(False)
                self._delivered = self._body_ended
                return {"type": "http.request", "body": chunk, "more_body": not self._body_ended}
            if self._body_ended and not self._delivered:
                self._delivered = True
                return {"type": "http.request", "body": b"", "more_body": False}
            self._wake.clear()
            await self._wake.wait()

    async def _send(self, message: Message) -> None:
        if self._complete:
            return
        if self._gone or (self._response is None and self._client.peer_left):
            self._gone = True
            raise ClientLeft("the client has gone")
        if message["type"] == "http.response.start":
            self._start_message = message
            return
        if message["type"] != "http.response.body":
            return
        chunk: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        if self._response is None:
            self._send_head(chunk, more)
        response = self._response
        if chunk and response is not None and not response.bodiless:
            if self._chunked:
                write_chunk(self._client.write, chunk)
            else:
                self._client.write(chunk)
        if not more:
            self._complete = True
            self._hold(False)
            if self._chunked:
                self._client.write(LAST_CHUNK)
            self._client.finish()
            return
        await self._may_write.wait()

    def _send_head(self, chunk: bytes, more: bool) -> None:
        if self._start_message is None:
            raise PlatformError("the application sent a body before the head of its answer")
        head = self._head
        status: int = self._start_message["status"]
        fields = [(bytes(name).lower(), bytes(value)) for name, value in self._start_message.get("headers", ())]
        response = ResponseHead(status, b"", fields)
        response.bodiless = status in (204, 304) or head.method == b"HEAD"
        for name, value in fields:
            if b"\r" in value or b"\n" in value:
                raise BadHead(500, f"line break in the field {name!r} of an answer")
            if name == b"content-length":
                response.content_length = int(value)
        if response.content_length is None and not more and not response.bodiless:
            response.content_length = len(chunk)
        self._chunked = head.http11 and response.content_length is None and not response.bodiless
        keep_alive = self._client.begin_answer(
            head.keep_alive
            and not head.upgrade
            and (head.http11 or response.content_length is not None or response.bodiless)
            and (self._continue_sent or self._body_ended),
            status,
        )
        self._response = response
        self._client.write(downstream_head(head, response, keep_alive=keep_alive))

    def _fail(self) -> None:
        if self._gone or self._complete:
            return
        self._complete = True
        self._hold(False)
        if self._response is None:
            self._client.answer(Answer(500, "internal error"))
        else:
            self._client.cut()
