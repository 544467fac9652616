"""Requests of one connection are judged before they leave: what two servers could read in two ways does not leave."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.egress.requests import MAX_HEAD, Refused, RequestStream

GOOD = b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n"
BODY = b"POST /up HTTP/1.1\r\nHost: good.test\r\nContent-Length: 3\r\n\r\nabc"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: good.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def only_good(name: str | None) -> Mapping[str, str] | None:
    return {} if name is not None and name.lower() == "good.test" else None


def with_secret(name: str | None) -> Mapping[str, str] | None:
    return {"Authorization": "Bearer s3cret"} if name == "good.test" else {}


def fed(data: bytes, size: int = 1 << 20) -> bytes:
    stream = RequestStream(only_good)
    return b"".join(stream.feed(data[i : i + size]) for i in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_good_requests_pass_however_they_are_cut(size: int) -> None:
    chunked = b"PUT / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    data = GOOD + BODY + chunked + GOOD
    assert fed(data, size).count(b"HTTP/1.1\r\nHost: good.test") == 4
    assert b"\r\n\r\nabcPUT" in fed(data, size)
    assert fed(chunked, size).endswith(b"5\r\nhello\r\n0\r\n\r\n")


def test_nothing_of_a_later_request_for_another_host_leaves() -> None:
    stream = RequestStream(only_good)
    assert stream.feed(BODY)
    assert stream.feed(b"GET /2 HTTP/1.1\r\nHost: ev") == b"", "held until it is whole"
    with pytest.raises(Refused):
        stream.feed(b"il.test\r\n\r\n")


@pytest.mark.parametrize(
    "bad",
    [
        GOOD.replace(b"good", b"evil"),
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: good.test\r\nHost: evil.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: good.test\r\nHost: good.test\r\n\r\n",
        b"GET http://evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
        b"GET http://good.test@evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
        b"GET //evil.test HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"CONNECT evil.test:443 HTTP/1.1\r\nHost: good.test\r\n\r\n",
        b"CONNECT good.test:443 HTTP/1.1\r\nHost: good.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : good.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n Host: evil.test\r\nHost: good.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\nHost: evil.test\r\nHost: good.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\rHost: evil.test\r\nHost: good.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: \0\r\nHost: good.test\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: good.test\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        BODY.replace(b"Content-Length: 3", b"Content-Length: 3\r\nContent-Length: 300"),
        BODY.replace(b"Content-Length: 3", b"Content-Length: +3"),
        BODY.replace(b"Content-Length: 3", b"Content-Length: 3, 3"),
        BODY.replace(b"Content-Length: 3", b"Content-Length: 3\r\nTransfer-Encoding: chunked"),
        BODY.replace(b"Content-Length: 3", b"Transfer-Encoding: xchunked"),
        BODY.replace(b"Content-Length: 3", b"Transfer-Encoding: identity"),
        BODY.replace(b"Content-Length: 3", b"Transfer-Encoding: gzip, chunked"),
        BODY.replace(b"1.1", b"1.0").replace(b"Content-Length: 3", b"Transfer-Encoding: chunked"),
        GOOD + GOOD.replace(b"good", b"evil"),
        BODY + b"X" + GOOD.replace(b"good", b"evil"),
    ],
)  # fmt: skip
def test_what_could_reach_another_host_is_refused(bad: bytes) -> None:
    for size in (1, 1000):
        with pytest.raises(Refused):
            fed(bad, size)


@pytest.mark.parametrize("tail", [b"5\r\nhelloX", b"zz\r\n", b"-1\r\n", b"5\nhello\r\n", b"5" * 300])
def test_chunks_that_lie_about_their_size_are_refused(tail: bytes) -> None:
    head = b"PUT / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    with pytest.raises(Refused):
        fed(head + tail + GOOD * 10)


def test_chunk_extensions_and_trailers_do_not_leave() -> None:
    head = b"PUT / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    out = fed(head + b"05;x=y\r\nhello\r\n0\r\nHost: evil.test\r\n\r\n" + GOOD)
    assert out == head + b"5\r\nhello\r\n0\r\n\r\n" + GOOD


def test_an_endless_head_is_refused() -> None:
    with pytest.raises(Refused):
        fed(b"GET / HTTP/1.1\r\nHost: good.test\r\nA: " + b"a" * (MAX_HEAD + 10))


def test_an_upgrade_is_opaque_only_once_the_server_agreed() -> None:
    stream = RequestStream(only_good)
    assert stream.feed(UPGRADE)
    for byte in b"HTTP/1.1 101 Switching Protocols\r\n":
        stream.answered(bytes([byte]))
    assert stream.feed(b"\x81\x00anything") == b"\x81\x00anything"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 1011 x\r\n"])
def test_a_refused_upgrade_does_not_open_the_connection(answer: bytes) -> None:
    stream = RequestStream(only_good)
    stream.feed(UPGRADE)
    stream.answered(answer)
    with pytest.raises(Refused):
        stream.feed(GOOD.replace(b"good", b"evil"))
    with pytest.raises(Refused):
        fed(UPGRADE + GOOD.replace(b"good", b"evil"))
    with pytest.raises(Refused):
        fed(GOOD + UPGRADE + GOOD.replace(b"good", b"evil"))


def test_an_upgrade_to_http2_is_not_passed_on() -> None:
    out = fed(
        b"GET / HTTP/1.1\r\nHost: good.test\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABk\r\n\r\n"
    )
    assert out == b"GET / HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n"


def test_a_rule_sets_its_headers_and_replaces_those_of_the_same_name() -> None:
    stream = RequestStream(with_secret)
    out = stream.feed(b"GET / HTTP/1.1\r\nHost: good.test\r\nAUTHORIZATION: mine\r\nA: b\r\n\r\n")
    assert out == b"GET / HTTP/1.1\r\nHost: good.test\r\nA: b\r\nAuthorization: Bearer s3cret\r\n\r\n"
    assert b"s3cret" not in stream.feed(GOOD.replace(b"good", b"other"))


@given(st.binary(max_size=400))
def test_hostile_bytes_are_refused_or_held_and_never_reach_a_stranger(data: bytes) -> None:
    with contextlib.suppress(Refused):
        assert fed(data) == b""
    stream = RequestStream(only_good)
    out = stream.feed(BODY)
    with contextlib.suppress(Refused):
        out += stream.feed(b"GET / HTTP/1.1\r\n" + data + b"\r\n\r\n")
    assert b"Host: evil" not in out
