"""Whatever a client sends to the guest or the edge is read in linear time and bounded memory, and ends as it says."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable

import pytest

from atoll.edge.h2 import http1_head
from atoll.edge.head import MAX_FIELDS, MAX_HEAD_BYTES, BadHead, read_request
from atoll.guest.files import negotiation
from atoll.guest.files.multipart import MultipartError, MultipartParser, boundary_of
from atoll.http1.server import Body, HttpError, parse_target
from atoll.wire.envd.connect import JSON, PROTO, ConnectError, read_envelopes
from atoll.wire.envd.process import StartRequest
from support.effort import assert_linear, peak_bytes

Family = Callable[[int], bytes]
BEGIN = b"--B\r\nContent-Disposition: form-data; name=f"
PART = BEGIN + b"\r\n\r\nx\r\n"


def family(name: str, make: Family) -> object:
    return pytest.param(make, id=name)


BODIES = [
    family("small parts", lambda n: PART * (n // len(PART)) + b"--B--"),
    family("beginnings of a boundary", lambda n: BEGIN + b"\r\n\r\n" + b"\r\n--" * (n // 4)),
    family("carriage returns", lambda n: BEGIN + b"\r\n\r\n" + b"\r" * n),
    family("an endless head", lambda n: BEGIN + b" " * n),
    family("parameters", lambda n: BEGIN + b";a=b" * (n // 4) + b"\r\n\r\n"),
    family("quotes without an end", lambda n: BEGIN + b';a="\\' * (n // 5) + b"\r\n\r\n"),
    family("escapes", lambda n: BEGIN + b';a="' + b"\\x" * (n // 2) + b"\r\n\r\n"),
    family("blanks behind a semicolon", lambda n: BEGIN + b"; " + b" " * n + b"\r\n\r\n"),
    family("an endless preamble", lambda n: b"\r\n--" * (n // 4)),
    family("blanks behind a boundary", lambda n: b"--B" + b" " * n),
]


@pytest.mark.parametrize("make", BODIES)
@pytest.mark.parametrize("piece", [100, 65536])
@pytest.mark.parametrize("size", [7_500, 250_000])
def test_a_form_is_read_in_linear_time_and_memory(make: Family, piece: int, size: int) -> None:
    bodies = {one: make(one) for one in (size, 4 * size)}

    def read(size: int) -> None:
        body, parser = bodies[size], MultipartParser(b"B")
        with contextlib.suppress(MultipartError):
            for at in range(0, len(body), piece):
                parser.feed(body[at : at + piece])

    assert_linear(read, size)
    assert peak_bytes(lambda: read(4 * size)) < 20_000_000


HEADERS: list[object] = [
    family("range: blanks", lambda n: b"bytes=" + b" " * n + b"x"),
    family("range: many", lambda n: b"bytes=" + b"0-0," * (n // 4) + b"x"),
    family("range: digits", lambda n: b"bytes=" + b"1" * n + b"-"),
    family("boundary: parameters", lambda n: b"multipart/form-data" + b"; a=b" * (n // 5)),
    family("boundary: quotes", lambda n: b"multipart/form-data" + b';a="\\' * (n // 5)),
    family("boundary: blanks", lambda n: b"multipart/form-data;" + b" " * n),
    family("target: fields", lambda n: b"/files?" + b"a=%zz&" * (n // 6)),
    family("codings", lambda n: b"gzip;q=0.1 ," * (n // 12)),
    family("codings: blanks", lambda n: b"gzip;" + b" " * n + b"q=x"),
    family("tags", lambda n: b'"x", ' * (n // 5)),
    family("target: slashes", lambda n: b"/" * n + b"?" * n),
]


@pytest.mark.parametrize("make", HEADERS)
def test_a_header_is_read_in_linear_time(make: Family) -> None:
    def read(size: int) -> None:
        text = make(size).decode()
        with contextlib.suppress(negotiation.RangeNotSatisfiable):
            negotiation.parse_range(text, 100)
        with contextlib.suppress(negotiation.NotAcceptable):
            negotiation.choose_coding(text)
        negotiation.not_modified(text, text, '"tag"', 0)
        with contextlib.suppress(MultipartError):
            boundary_of(text)
        with contextlib.suppress(HttpError, ValueError):
            parse_target(text)

    assert_linear(read, 16_000)


ENVELOPES = [
    family("empty ones", lambda n: bytes(5) * (n // 5)),
    family("one that never ends", lambda n: struct.pack(">BI", 0, 2**20) + bytes(n)),
    family("small ones", lambda n: (struct.pack(">BI", 0, 3) + b"abc") * (n // 8)),
]


@pytest.mark.parametrize("make", ENVELOPES)
@pytest.mark.parametrize("piece", [7, 65536])
def test_envelopes_are_cut_in_linear_time(make: Family, piece: int) -> None:
    async def cut(data: bytes) -> None:
        body = Body(None, None)
        for at in range(0, len(data), piece):
            body.feed(data[at : at + piece])
        body.end()
        with contextlib.suppress(ConnectError):
            async for _ in read_envelopes(body):
                pass

    assert_linear(lambda size: asyncio.run(cut(make(size))), 125_000)


MESSAGES = [
    family("groups", lambda n: b"\x0b" * n),
    family("nested fields", lambda n: b"\x0a\x7f" * (n // 2)),
    family("unknown fields", lambda n: b"\xf8\x7f\x01" * (n // 3)),
    family("varints without an end", lambda n: b"\xff" * n),
    family("repeated fields", lambda n: b"\x0a\x02\x0a\x00" * (n // 4)),
    family("JSON: lists", lambda n: b"[" * n),
    family("JSON: objects", lambda n: b'{"a":' * (n // 5)),
    family("JSON: digits", lambda n: b'{"process":' + b"1" * n),
    family("JSON: keys", lambda n: b"{" + b",".join(b'"k%d":1' % i for i in range(n // 10)) + b"}"),
]


@pytest.mark.parametrize("make", MESSAGES)
@pytest.mark.parametrize("codec", [PROTO, JSON], ids=["proto", "json"])
def test_a_message_is_decoded_in_linear_time(make: Family, codec: object) -> None:
    def read(size: int) -> None:
        with contextlib.suppress(ValueError, RecursionError, ConnectError):
            codec.decode(StartRequest, make(size))  # type: ignore[attr-defined]

    assert_linear(read, 30_000)
    assert peak_bytes(lambda: read(60_000)) < 30_000_000


HEADS = [
    family("tokens", lambda n: b",a" * (n // 2)),
    family("blanks", lambda n: b" " * n),
    family("cookies", lambda n: b";" * n),
]


@pytest.mark.parametrize("make", HEADS)
def test_a_request_head_at_the_edge_is_checked_in_linear_time(make: Family) -> None:
    def read(size: int) -> None:
        value = make(size)
        for name in (b"connection", b"expect", b"transfer-encoding", b"upgrade", b"content-length"):
            with contextlib.suppress(BadHead):
                read_request(b"GET", b"http://h?" + value, "1.1", [(b"host", b"h"), (name, value)], True)
        fields = [(b":method", b"GET"), (b":path", b"/" + value), (b":authority", b"h")]
        with contextlib.suppress(BadHead):
            http1_head([*fields, *[(b"cookie", value[:100])] * MAX_FIELDS, (b"x", value)], ended=True)

    assert_linear(read, MAX_HEAD_BYTES // 4)
