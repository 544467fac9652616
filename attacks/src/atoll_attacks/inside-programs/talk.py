"""Speaking to the small internet of a run: requests, TLS, DNS, datagrams. Lies beside the programs of family egress."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import time
from collections.abc import Callable

from inside import TAG, W

_PLACES: dict[str, str] = W["internet"]
GOOD, EVIL, METADATA, DNS = (_PLACES[name] for name in ("good", "evil", "metadata", "dns"))
SERVER, SERVER_TOO = _PLACES["server"], _PLACES["server_too"]

WAYS: dict[str, Callable[[], None]] = {}


def way(act: Callable[[], None]) -> Callable[[], None]:
    """Makes a function a way out, called as it is."""
    WAYS[act.__name__] = act
    return act


def talk(
    address: str, port: int, *parts: str | bytes, family: int = socket.AF_INET, pause: float = 0.3
) -> socket.socket:
    """Sends the parts one after the other, each after an answer or a time. Raises OSError."""
    s = socket.socket(family, socket.SOCK_STREAM)
    s.settimeout(3)
    s.connect((address, port))
    for part in parts:
        s.sendall(part.encode("latin-1") if isinstance(part, str) else part)
        s.settimeout(3)
        try:
            s.recv(65536)
        except OSError:
            pass
        time.sleep(pause if len(parts) > 1 else 0)
    return s


def get(host: str, path: str | None = None, version: str = "1.1", more: str = "") -> str:
    """A request; its path is the tag."""
    return f"GET {path or '/' + TAG} HTTP/{version}\r\nHost: {host}\r\n{more}\r\n"


def http(address: str, host: str, port: int = 80, family: int = socket.AF_INET) -> socket.socket:
    """A request to an address. Raises OSError."""
    return talk(address, port, get(host), family=family)


def tls(address: str, sni: str | None, host: str, port: int = 443) -> None:
    """A request inside TLS that believes any certificate. Raises OSError."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    s = context.wrap_socket(socket.create_connection((address, port), timeout=3), server_hostname=sni)
    s.sendall(get(host).encode())
    s.recv(4096)


def question(name: str, kind: int = 1, arcount: int = 0) -> bytes:
    """A question to a name server."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    return os.urandom(2) + struct.pack(">5H", 0x0100, 1, 0, 0, arcount) + labels + struct.pack(">2H", kind, 1)


def ask(name: str, server: str = DNS, extra: bytes = b"", arcount: int = 0, stream: bool = False) -> None:
    """Asks a name server, by datagram or by TCP. Raises OSError."""
    data = question(name, arcount=arcount) + extra
    if stream:
        talk(server, 53, struct.pack(">H", len(data)) + data)
        return
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(3)
    s.sendto(data, (server, 53))
    s.recv(4096)


def udp(address: str, port: int, data: bytes | None = None) -> None:
    """Sends a datagram, the tag unless given. Raises OSError."""
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.sendto(data or TAG.encode(), (address, port))


def checksum(data: bytes) -> int:
    """The checksum of IP and ICMP."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
