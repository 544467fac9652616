"""What every request passes before it is routed: an id, key, rate, size of the body; and the last net for errors.

One pure ASGI layer in front of the application. Default-deny: only what PUBLIC lists needs no key, so a route that is
added and forgotten is closed, not open; and an unknown path reveals nothing to a stranger.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atoll.control.access.auth import Authenticator, Caller
from atoll.control.access.rates import CallRates, is_counted
from atoll.control.telemetry.tracing import Facts, Tracing
from atoll.model.errors import AtollError
from atoll.wire.rest.errors import ErrorReply, error_reply, plain_error

PUBLIC = frozenset({"/health", "/openapi.json", "/docs"})
_PUBLIC_BELOW = ("/docs/",)

STREAMED = (
    ("PUT", "/templates/uploads/"),
    *((method, "/volumecontent/") for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")),
)
"""Requests without a key: their path is their permission, or they get nothing (volumes that are not there). Their
handler checks that before it reads the body, which is unbounded."""

MAX_BODY = 1 << 20
"""Bytes. The largest body that a route here needs is a create with its environment and metadata."""

REQUEST_ID = b"x-request-id"
"""In the answer, in every line that is logged meanwhile, and in the audit log. A client's own is taken over."""

_USABLE_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that was answered. `route` is a pattern of the interface, `target` what stood in its places.

    A create's `target` holds the id of what it made. `caller` is None where no key was needed, or none was valid.
    """

    request_id: str
    method: str
    route: str
    status: int
    seconds: float
    caller: Caller | None
    target: Mapping[str, str]


UNROUTED = "other"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})


def known(method: str) -> str:
    """It, or one word for all that a stranger may make up: methods are labels of figures, which are kept for good."""
    return method if method in _METHODS else UNROUTED


_log = structlog.get_logger("atoll.control")


class Gate:
    """See the module. Puts the Caller into `request.state.caller`."""

    def __init__(
        self, app: ASGIApp, auth: Authenticator, answered: Callable[[Answered], None], tracing: Tracing
    ) -> None:
        self.inner = app
        self._tracing = tracing
        self._answered = answered
        self._auth = auth
        self._rates = CallRates(time.monotonic)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.inner(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        # Routed undecoded: `ns%2Fname` is one segment. The handlers decode their own parameters.
        path = (scope.get("raw_path") or scope["path"].encode("utf-8", "replace")).decode("latin-1")
        scope = {**scope, "path": path, "state": {}}
        began, status = time.perf_counter(), 0
        request_id = _request_id(scope["headers"])

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (REQUEST_ID, request_id.encode())]}
            await send(message)

        try:
            with (
                self._tracing.request(scope["method"], path, _Headers(scope["headers"])) as facts,
                structlog.contextvars.bound_contextvars(request_id=request_id, **facts),
            ):
                try:
                    await self._let_in(scope, receive, noting)
                finally:
                    facts |= _facts(scope, request_id, status)
        finally:
            # The router has put the route that it found into the scope; a stranger's path is no label.
            route = getattr(scope.get("route"), "path", UNROUTED)
            method, state = known(scope["method"]), scope["state"]
            target = {**scope.get("path_params", {}), **state.get("made", {})}
            seconds = time.perf_counter() - began
            self._answered(Answered(request_id, method, route, status, seconds, state.get("caller"), target))

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        try:
            streamed = _is_streamed(scope["method"], path)
            if path not in PUBLIC and not path.startswith(_PUBLIC_BELOW) and not streamed:
                scope["state"]["caller"] = caller = await self._auth.authenticate(_presented_key(scope["headers"]))
                if is_counted(scope["method"], path):
                    self._rates.count(caller.key)
        except AtollError as error:
            await _answer(send, error_reply(error))
            return
        if streamed:
            await self.inner(scope, receive, send)
        else:
            await self._pass_on(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        body = _BoundedBody(receive, scope["headers"])

        async def watched(message: Message) -> None:
            nonlocal begun
            if body.too_large:
                return  # the framework's own answer to a body that it could not read; ours comes below
            begun = True
            await send(message)

        try:
            await self.inner(scope, body.receive, watched)
        except Exception as error:
            if begun:
                raise
            if not body.too_large:
                _log.exception("request.failed", method=scope["method"], path=scope["path"][:200])
                await _answer(send, error_reply(error))
        if body.too_large and not begun:
            await _answer(send, plain_error(413, f"the body is larger than {MAX_BODY} bytes", "too_large"))


class _BoundedBody:
    """Ends reading at MAX_BODY, whether the length was announced or not."""

    def __init__(self, receive: Receive, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._receive = receive
        self._left = MAX_BODY
        length = next((value for name, value in headers if name == b"content-length"), b"0")
        self.too_large = not length.isdigit() or len(length) > 12 or int(length) > MAX_BODY

    async def receive(self) -> Message:
        """As ASGI's. Raises _TooLargeError."""
        if self.too_large:
            raise _TooLargeError
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.too_large = True
            raise _TooLargeError
        return message


class _TooLargeError(Exception):
    """Ends the framework's reading; `_pass_on` knows why."""


def _facts(scope: Scope, request_id: str, status: int) -> Facts:
    """By OpenTelemetry's names where it has one."""
    target = {**scope.get("path_params", {}), **scope["state"].get("made", {})}
    facts: Facts = {
        "http.request.method": scope["method"],
        "http.route": getattr(scope.get("route"), "path", UNROUTED),
        "http.response.status_code": status,
        "atoll.request_id": request_id,
    }
    return facts | ({"atoll.sandbox_id": target["sandbox_id"][:64]} if "sandbox_id" in target else {})


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    given = next((value.decode("latin-1") for name, value in headers if name == REQUEST_ID), "")
    return given if _USABLE_ID.fullmatch(given) else secrets.token_hex(8)


class _Headers(Mapping[str, str]):
    """Of an ASGI request, by lower-case names; decoded when one is asked for."""

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._headers = headers

    def __getitem__(self, name: str) -> str:
        wanted = name.lower().encode("latin-1", "replace")
        for key, value in self._headers:
            if key == wanted:
                return value.decode("latin-1")
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name, _ in self._headers)

    def __len__(self) -> int:
        return sum(1 for _ in self._headers)


def _is_streamed(method: str, path: str) -> bool:
    return any(method == one and path.startswith(prefix) for one, prefix in STREAMED)


def _presented_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """X-API-Key, else `Authorization: Bearer`, which the CLI sends for /teams and older SDKs for templates."""
    bearer = None
    for name, value in headers:
        if name == b"x-api-key":
            return value.decode("latin-1").strip()
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            bearer = value[7:].decode("latin-1").strip()
    return bearer


async def _answer(send: Send, reply: ErrorReply) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(reply.body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in reply.headers.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
