"""The Connect protocol, server side: codes, errors, envelopes, and typed methods as HTTP handlers.

    service = Service("process.Process")
    service.unary("List", ListRequest, handler)                  async handler(message, call) -> answer
    service.server_stream("Start", StartRequest, handler)        async generator handler(message, call) -> answers
    service.client_stream("StreamInput", StreamInputRequest, h)  async h(messages, call) -> answer

Codecs: JSON (`application/json`, `application/connect+json`) and binary protobuf (`application/proto`,
`application/connect+proto`). Only identity content encoding. A handler raises ConnectError for what the caller did
wrong; anything else becomes `internal` without details. `Connect-Timeout-Ms` cancels the handler and answers
`deadline_exceeded`.

Format: connectrpc.com/docs/protocol.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar, cast

from atoll.http1.server import Body, BodyTooLarge, ClientDisconnected, Handler, Headers, Request, Response
from atoll.wire.envd.messages import DecodeError, Message

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes of one request message: what a client may make the guest hold in memory."""

FLAG_COMPRESSED = 0x01
FLAG_END_STREAM = 0x02
_PREFIX = struct.Struct(">BI")


class Code(StrEnum):
    CANCELED = "canceled"
    UNKNOWN = "unknown"
    INVALID_ARGUMENT = "invalid_argument"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    PERMISSION_DENIED = "permission_denied"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    FAILED_PRECONDITION = "failed_precondition"
    ABORTED = "aborted"
    OUT_OF_RANGE = "out_of_range"
    UNIMPLEMENTED = "unimplemented"
    INTERNAL = "internal"
    UNAVAILABLE = "unavailable"
    DATA_LOSS = "data_loss"
    UNAUTHENTICATED = "unauthenticated"


HTTP_STATUS: Mapping[Code, int] = {
    Code.CANCELED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
"""The status of a unary error answer."""


class ConnectError(Exception):
    """An RPC that failed, in the protocol's own words. The message goes to the caller."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def to_value(self) -> dict[str, str]:
        return {"code": self.code.value, "message": self.message}

    def to_response(self, status: int | None = None) -> Response:
        """The answer to a unary call; also to a stream that cannot even begin."""
        return Response.json(self.to_value(), status or HTTP_STATUS[self.code])


# -- codecs and envelopes -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Codec:
    """How messages are written: a name as in the content type, and both directions."""

    name: str
    encode: Callable[[Message], bytes]
    decode: Callable[[type[Message], bytes], Message]


JSON = Codec("json", lambda value: value.to_json(), lambda cls, data: cls.from_json(data or b"{}"))
PROTO = Codec("proto", lambda value: value.to_binary(), lambda cls, data: cls.from_binary(data))
_UNARY_TYPES = {f"application/{codec.name}": codec for codec in (JSON, PROTO)}
_STREAM_TYPES = {f"application/connect+{codec.name}": codec for codec in (JSON, PROTO)}


def envelope(data: bytes, flags: int = 0) -> bytes:
    """Five bytes of prefix and the payload."""
    return _PREFIX.pack(flags, len(data)) + data


def end_of_stream(error: ConnectError | None = None) -> bytes:
    """The last envelope of a response stream."""
    if error is None:
        return b"\x02\x00\x00\x00\x02{}"
    return envelope(json.dumps({"error": error.to_value()}).encode(), FLAG_END_STREAM)


async def read_envelopes(body: Body, limit: int = MAX_MESSAGE) -> AsyncIterator[bytes]:
    """The payloads of a request stream. Raises ConnectError for truncated, oversized and compressed ones."""
    buffer = bytearray()
    async for chunk in body:
        buffer += chunk
        while len(buffer) >= _PREFIX.size:
            flags, length = _PREFIX.unpack_from(buffer)
            if length > limit:
                raise ConnectError(Code.RESOURCE_EXHAUSTED, f"message of {length} bytes is larger than {limit} bytes")
            if flags & FLAG_COMPRESSED:
                raise ConnectError(Code.INTERNAL, "compressed message, but no compression was agreed")
            if flags:
                raise ConnectError(Code.INVALID_ARGUMENT, f"envelope with unknown flags {flags:#04x}")
            end = _PREFIX.size + length
            if len(buffer) < end:
                break
            payload = bytes(buffer[_PREFIX.size : end])
            del buffer[:end]
            yield payload
    if buffer:
        raise ConnectError(Code.INVALID_ARGUMENT, "request stream ended in the middle of an envelope")


def parse_timeout_ms(headers: Headers) -> float | None:
    """Seconds from `Connect-Timeout-Ms`; None without one. Raises ConnectError."""
    text = headers.get("connect-timeout-ms")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise ConnectError(Code.INVALID_ARGUMENT, f"connect-timeout-ms must be up to ten digits, not {text[:32]!r}")
    return int(text) / 1000


# -- typed methods --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """What a method knows of its call besides the message."""

    headers: Headers
    timeout_s: float | None
    """From Connect-Timeout-Ms; the framework enforces it, a method needs it only to do more at the deadline."""


Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)
Unary = Callable[[Q, Call], Awaitable[A]]
ServerStream = Callable[[Q, Call], AsyncIterator[A]]
ClientStream = Callable[[AsyncIterator[Q], Call], Awaitable[A]]


class Service:
    """The methods of one service: register, then hand `routes` to a router."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.routes: dict[str, Handler] = {}
        """`/process.Process/List` → HTTP handler (any HTTP method; the handler checks)."""

    def unary(self, method: str, request_type: type[Q], handler: Unary[Q, A]) -> None:
        async def serve(request: Request) -> Response:
            return await _serve_unary(request, request_type, cast(Any, handler))

        self.routes[f"/{self.name}/{method}"] = serve

    def server_stream(self, method: str, request_type: type[Q], handler: ServerStream[Q, A]) -> None:
        async def serve(request: Request) -> Response:
            return await _serve_server_stream(request, request_type, cast(Any, handler))

        self.routes[f"/{self.name}/{method}"] = serve

    def client_stream(self, method: str, request_type: type[Q], handler: ClientStream[Q, A]) -> None:
        async def serve(request: Request) -> Response:
            return await _serve_client_stream(request, request_type, cast(Any, handler))

        self.routes[f"/{self.name}/{method}"] = serve


def _negotiate(request: Request, types: Mapping[str, Codec]) -> Codec | Response:
    """The codec of the call, or the answer that refuses it."""
    if request.method != "POST":
        return Response.error(405, "use POST", (("allow", "POST"),))
    content_type = (request.headers.get("content-type") or "").partition(";")[0].strip().lower()
    codec = types.get(content_type)
    if codec is None:
        return Response.error(
            415, f"content-type must be one of {', '.join(types)}", (("accept-post", ", ".join(types)),)
        )
    return codec


def _check_encoding(request: Request, header: str) -> None:
    encoding = request.headers.get(header)
    if encoding and encoding.lower() != "identity":
        raise ConnectError(
            Code.UNIMPLEMENTED, f"unknown compression {encoding[:32]!r}: supported encodings are identity"
        )


def _check_version(request: Request) -> None:
    version = request.headers.get("connect-protocol-version")
    if version not in (None, "1"):
        raise ConnectError(Code.INVALID_ARGUMENT, f"connect-protocol-version must be '1', not {version[:32]!r}")


def _decode(codec: Codec, cls: type[Message], data: bytes) -> Message:
    try:
        return codec.decode(cls, data)
    except DecodeError as error:
        raise ConnectError(Code.INVALID_ARGUMENT, f"cannot decode {cls.__name__}: {error}") from error


def _as_connect_error(error: Exception, request: Request) -> ConnectError:
    if isinstance(error, ConnectError):
        return error
    if isinstance(error, TimeoutError):
        return ConnectError(Code.DEADLINE_EXCEEDED, "the call's timeout has passed")
    if isinstance(error, BodyTooLarge):
        return ConnectError(Code.RESOURCE_EXHAUSTED, error.message)
    print(f"error while serving {request.path}", file=sys.stderr)
    traceback.print_exception(error, file=sys.stderr)
    return ConnectError(Code.INTERNAL, "internal error in the sandbox daemon; see the sandbox's log")


async def _serve_unary(
    request: Request, request_type: type[Message], handler: Callable[[Message, Call], Awaitable[Message]]
) -> Response:
    codec = _negotiate(request, _UNARY_TYPES)
    if isinstance(codec, Response):
        return codec
    try:
        _check_version(request)
        _check_encoding(request, "content-encoding")
        call = Call(request.headers, parse_timeout_ms(request.headers))
        async with asyncio.timeout(call.timeout_s):
            message = _decode(codec, request_type, await request.body.read(MAX_MESSAGE))
            answer = await handler(message, call)
        return Response(200, (("content-type", f"application/{codec.name}"),), codec.encode(answer))
    except ClientDisconnected:
        raise
    except Exception as error:
        return _as_connect_error(error, request).to_response()


def _stream_response(codec: Codec, body: AsyncIterator[bytes] | bytes) -> Response:
    return Response(200, (("content-type", f"application/connect+{codec.name}"),), body)


async def _serve_server_stream(
    request: Request, request_type: type[Message], handler: Callable[[Message, Call], AsyncIterator[Message]]
) -> Response:
    codec = _negotiate(request, _STREAM_TYPES)
    if isinstance(codec, Response):
        return codec
    try:
        call = _stream_call(request)
        message = await _only_message(request, codec, request_type)
    except ClientDisconnected:
        raise
    except Exception as error:
        return _stream_response(codec, end_of_stream(_as_connect_error(error, request)))
    return _stream_response(codec, _answers(request, codec, handler(message, call), call))


def _stream_call(request: Request) -> Call:
    _check_version(request)
    _check_encoding(request, "connect-content-encoding")
    _check_encoding(request, "content-encoding")
    return Call(request.headers, parse_timeout_ms(request.headers))


async def _only_message(request: Request, codec: Codec, request_type: type[Message]) -> Message:
    payloads = [payload async for payload in read_envelopes(_Limited(request.body), MAX_MESSAGE)]
    if len(payloads) != 1:
        raise ConnectError(Code.UNIMPLEMENTED, f"expected one request message, got {len(payloads)}")
    return _decode(codec, request_type, payloads[0])


class _Limited(Body):
    """A body that ends in an error when it is longer than one message may be: for calls with a single message."""

    __slots__ = ("_inner", "_seen")

    def __init__(self, inner: Body) -> None:
        super().__init__(None, inner.length)
        self._inner = inner
        self._seen = 0

    async def __anext__(self) -> bytes:
        chunk = await self._inner.__anext__()
        self._seen += len(chunk)
        if self._seen > MAX_MESSAGE + 64:
            raise ConnectError(Code.RESOURCE_EXHAUSTED, f"request is larger than {MAX_MESSAGE} bytes")
        return chunk


async def _answers(
    request: Request, codec: Codec, messages: AsyncIterator[Message], call: Call
) -> AsyncIterator[bytes]:
    encode = codec.encode
    failure: ConnectError | None = None
    try:
        async with asyncio.timeout(call.timeout_s), aclosing(cast(Any, messages)) as stream:
            async for message in stream:
                data = encode(message)
                yield _PREFIX.pack(0, len(data)) + data
    except Exception as error:
        failure = _as_connect_error(error, request)
    yield end_of_stream(failure)


async def _serve_client_stream(
    request: Request,
    request_type: type[Message],
    handler: Callable[[AsyncIterator[Message], Call], Awaitable[Message]],
) -> Response:
    codec = _negotiate(request, _STREAM_TYPES)
    if isinstance(codec, Response):
        return codec

    async def messages() -> AsyncIterator[Message]:
        async for payload in read_envelopes(request.body):
            yield _decode(codec, request_type, payload)

    try:
        call = _stream_call(request)
        async with asyncio.timeout(call.timeout_s), aclosing(cast(Any, messages())) as stream:
            answer = await handler(stream, call)
        return _stream_response(codec, envelope(codec.encode(answer)) + end_of_stream())
    except ClientDisconnected:
        raise
    except Exception as error:
        return _stream_response(codec, end_of_stream(_as_connect_error(error, request)))
