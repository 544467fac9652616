"""Reads the name that a connection gives of itself: SNI in a TLS ClientHello, Host in an HTTP/1 request. Pure.

Formats: RFC 8446 section 4.1.2 and RFC 6066 section 3 (SNI); RFC 9112 (HTTP/1.1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

MAX_HELLO = 16 * 1024
"""Bytes after which a beginning that still shows no name is taken as nameless."""

_METHOD = re.compile(rb"[A-Z]{3,16} ")
_METHOD_BEGUN = re.compile(rb"[A-Z]{0,16}")
_HOST = re.compile(rb"(?im)^host[ \t]*:[ \t]*([^\r\n]*?)[ \t]*\r?$")


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


def sniff(data: bytes) -> Beginning:
    """Judges the bytes so far; call again with more while UNDECIDED."""
    if not data:
        return _UNDECIDED
    if data[0] == 0x16:
        return _sniff_tls(data)
    if _METHOD.match(data) or (len(data) < 17 and _METHOD_BEGUN.fullmatch(data)):
        return _sniff_http(data)
    return _OTHER


def _sniff_http(data: bytes) -> Beginning:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        end = data.find(b"\n\n")
    if end < 0:
        return _UNDECIDED if len(data) < MAX_HELLO else _OTHER
    hosts = _HOST.findall(data[: end + 2])
    if len(hosts) != 1:
        return Beginning(Speech.HTTP)
    return Beginning(Speech.HTTP, host_name(hosts[0].decode("latin-1")))


def host_name(value: str) -> str | None:
    """The name in a Host header's value, without the port; None for an address literal or nonsense."""
    name = value.rsplit(":", 1)[0] if re.search(r":\d*$", value) else value
    if not name or name.startswith("[") or not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        return None
    return name


def _handshake(data: bytes) -> bytes | None:
    """The handshake message carried by the first TLS records; None: incomplete. Raises ValueError: not TLS."""
    message = b""
    offset = 0
    while True:
        if len(data) < offset + 5:
            return None
        if data[offset] != 0x16 or data[offset + 1] != 3:
            raise ValueError("not a TLS handshake record")
        length = int.from_bytes(data[offset + 3 : offset + 5], "big")
        if not 0 < length <= 1 << 14:
            raise ValueError("bad TLS record length")
        message += data[offset + 5 : offset + 5 + length]
        offset += 5 + length
        if len(message) >= 4:
            if message[0] != 1:
                raise ValueError("not a ClientHello")
            wanted = 4 + int.from_bytes(message[1:4], "big")
            if wanted > MAX_HELLO:
                raise ValueError("ClientHello too long")
            if len(message) >= wanted:
                return message[4:wanted]


def _sniff_tls(data: bytes) -> Beginning:
    try:
        hello = _handshake(data)
        if hello is None:
            return _UNDECIDED if len(data) < MAX_HELLO else _OTHER
        return Beginning(Speech.TLS, _server_name(hello))
    except (ValueError, IndexError):
        return _OTHER


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
