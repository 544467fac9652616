"""Whatever bytes a stranger or a sandbox sends: each parser takes linear time and bounded memory, and ends as it says.

Families of bytes that were once dear, and random ones; the same families grow fourfold and are compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from atoll.egress.requests import MAX_HEAD, Refused, RequestStream
from atoll.egress.sniff import MAX_HELLO, Sniffer, sniff
from support.effort import assert_linear, cpu_seconds

Family = Callable[[int], bytes]


def family(name: str, make: Family) -> object:
    return pytest.param(make, id=name)


HEADS = [
    family("blanks before nothing", lambda n: b"GET / HTTP/1.1\r\nHost:" + b" " * n + b"\rx\r\n\r\n"),
    family("blanks within a host", lambda n: b"GET / HTTP/1.1\r\nHost: a" + b" " * n + b"b\r\n\r\n"),
    family("blanks and a control character", lambda n: b"GET / HTTP/1.1\r\nHost: a\r\nA:" + b" \t" * n + b"\1\r\n\r\n"),
    family("blanks before a colon", lambda n: b"GET / HTTP/1.1\r\nHost" + b" " * n + b":x\r\n\r\n"),
    family("colons", lambda n: b"GET / HTTP/1.1\r\nHost: " + b":1" * n + b"x\r\n\r\n"),
    family("line feeds", lambda n: b"GET / HTTP/1.1\r\n" + b"\r" * n + b"\n"),
    family("short lines", lambda n: b"GET / HTTP/1.1\r\n" + b"a:\r\n" * n + b"\r\n"),
    family("a long target", lambda n: b"GET http://" + b"/?#@" * n + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
]


def ask(name: str | None) -> dict[str, str]:
    return {}


@pytest.mark.parametrize("make", HEADS)
def test_a_beginning_is_judged_in_linear_time(make: Family) -> None:
    assert cpu_seconds(lambda: sniff(make(MAX_HELLO))) < 1
    assert cpu_seconds(lambda: sniff(make(64 * MAX_HELLO))) < 1, "what lies beyond the limit is not looked at"


@pytest.mark.parametrize("make", HEADS)
def test_a_request_is_judged_in_linear_time(make: Family) -> None:
    def judge(size: int) -> None:
        with contextlib.suppress(Refused):
            RequestStream(ask).feed(make(size))

    assert_linear(judge, MAX_HEAD // 20)


RECORDS = b"\x16\x03\x01\x00\x05\x01\x00\x3f\x00\x00" + b"\x16\x03\x01\x00\x01\x00" * (MAX_HELLO // 6)


@pytest.mark.parametrize("data", [RECORDS, HEADS[0].values[0](MAX_HELLO), b"G" * 16], ids=["records", "head", "word"])  # type: ignore[attr-defined]
def test_a_beginning_that_comes_byte_by_byte_is_read_once(data: bytes) -> None:
    def feed(size: int) -> None:
        sniffer = Sniffer()
        for at in range(min(size, len(data))):
            sniffer.feed(data[at : at + 1])

    assert_linear(feed, MAX_HELLO // 4)


def test_a_head_that_comes_byte_by_byte_is_read_once() -> None:
    def feed(size: int) -> None:
        stream = RequestStream(ask)
        for _ in range(size):
            stream.feed(b"a")

    assert_linear(feed, MAX_HEAD // 4)
