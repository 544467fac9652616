"""Reads the name that a connection gives of itself: SNI in a TLS ClientHello, Host in an HTTP/1 request. Pure.

Formats: RFC 8446 section 4.1.2 and RFC 6066 section 3 (SNI); RFC 9112 (HTTP/1.1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

MAX_HELLO = 16 * 1024
"""Bytes after which a beginning that still shows no name is taken as nameless; no more of it is ever looked at."""

_METHOD = re.compile(rb"[A-Z]{3,16} ")
_METHOD_BEGUN = re.compile(rb"[A-Z]{0,16}")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


class Speech(Enum):
    """What kind of beginning it is."""

    UNDECIDED = "more bytes needed"
    TLS = "tls"
    HTTP = "http"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Beginning:
    """The verdict on the first bytes of a connection; `name` is None where they give none."""

    speech: Speech
    name: str | None = None


_UNDECIDED = Beginning(Speech.UNDECIDED)
_OTHER = Beginning(Speech.OTHER)


class Sniffer:
    """Judges a beginning as it arrives: each byte is looked at once, in however many pieces it comes."""

    def __init__(self) -> None:
        self.data = bytearray()
        """All that was fed."""
        self._offset = 0
        self._message = bytearray()

    def feed(self, piece: bytes) -> Beginning:
        """The verdict so far; feed more while UNDECIDED."""
        seen = len(self.data)
        self.data += piece
        data = self.data[:MAX_HELLO]
        if not data:
            return _UNDECIDED
        if data[0] == 0x16:
            found = self._tls(data)
        elif _METHOD.match(data) or (len(data) < 17 and _METHOD_BEGUN.fullmatch(data)):
            found = _http(data, max(0, seen - 3))
        else:
            return _OTHER
        return _OTHER if found is _UNDECIDED and len(data) >= MAX_HELLO else found

    def _tls(self, data: bytearray) -> Beginning:
        try:
            hello = self._hello(data)
            return _UNDECIDED if hello is None else Beginning(Speech.TLS, _server_name(hello))
        except (ValueError, IndexError):
            return _OTHER

    def _hello(self, data: bytearray) -> bytes | None:
        """The ClientHello carried by the first TLS records; None: incomplete. Raises ValueError: not TLS."""
        message = self._message
        while len(data) >= self._offset + 5:
            head = data[self._offset : self._offset + 5]
            if head[0] != 0x16 or head[1] != 3:
                raise ValueError("not a TLS handshake record")
            end = self._offset + 5 + int.from_bytes(head[3:], "big")
            if not self._offset + 5 < end <= self._offset + 5 + (1 << 14):
                raise ValueError("bad TLS record length")
            if len(data) < end:
                break
            message += data[self._offset + 5 : end]
            self._offset = end
            if len(message) >= 4:
                length = 4 + int.from_bytes(message[1:4], "big")
                if message[0] != 1 or length > MAX_HELLO:
                    raise ValueError("not a ClientHello, or too long")
                if len(message) >= length:
                    return bytes(message[4:length])
        return None


def sniff(data: bytes) -> Beginning:
    """The verdict on bytes that are there already; what lies beyond MAX_HELLO is not looked at."""
    return Sniffer().feed(data[:MAX_HELLO])


def _http(data: bytearray, searched: int) -> Beginning:
    end = data.find(b"\r\n\r\n", searched)
    if end < 0:
        end = data.find(b"\n\n", searched)
    if end < 0:
        return _UNDECIDED
    fields = (line.partition(b":") for line in data[:end].split(b"\n"))
    hosts = [value.strip(b" \t\r") for name, _, value in fields if name.rstrip(b" \t").lower() == b"host"]
    return Beginning(Speech.HTTP, host_name(hosts[0].decode("latin-1")) if len(hosts) == 1 else None)


def host_name(value: str) -> str | None:
    """The name in a Host header's value, without the port; None for an address literal or nonsense."""
    name, colon, port = value.rpartition(":")
    if not colon or (port and not (port.isascii() and port.isdigit())):
        name = value
    return name if _NAME.fullmatch(name) else None


def _server_name(hello: bytes) -> str | None:
    offset = 2 + 32
    offset += 1 + hello[offset]
    offset += 2 + int.from_bytes(hello[offset : offset + 2], "big")
    offset += 1 + hello[offset]
    end = offset + 2 + int.from_bytes(hello[offset : offset + 2], "big")
    offset += 2
    while offset + 4 <= min(end, len(hello)):
        kind = int.from_bytes(hello[offset : offset + 2], "big")
        length = int.from_bytes(hello[offset + 2 : offset + 4], "big")
        body = hello[offset + 4 : offset + 4 + length]
        if kind == 0 and len(body) >= 5 and body[2] == 0:
            size = int.from_bytes(body[3:5], "big")
            return host_name(body[5 : 5 + size].decode("latin-1"))
        offset += 4 + length
    return None
