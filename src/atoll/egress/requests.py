"""The requests of one client connection, HTTP/1: each is judged before a byte of it leaves, and may get more headers.

A connection that was allowed by name must not carry a request for another one (the server behind a shared address would
answer it), however it is dressed: a second request, one hidden in a body's length, an absolute target, an upgrade that
the server did not agree to. So this reads strictly (RFC 9112 without its leniencies), holds a head until it is whole,
and writes head and framing anew: what a server could read in two ways is refused, not passed on. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum, auto

from atoll.egress.sniff import host_name

MAX_HEAD = 64 * 1024
MAX_FIELDS = 256
_MAX_LINE = 256

_REQUEST = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([\x21-\x7e\x80-\xff]+) HTTP/1\.([01])")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_ABSOLUTE = re.compile(r"https?://([^/?#@]+)(?:[/?#].*)?", re.I | re.S)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_NOT_AGAIN = frozenset({b"upgrade", b"http2-settings"})

Judge = Callable[[str | None], Mapping[str, str] | None]
"""Host name (None: the request gives none) → headers to set, or None to refuse the request."""


class Refused(Exception):
    """The connection is to be cut; nothing of what was fed last may leave."""


class _At(Enum):
    HEAD = auto()
    BODY = auto()
    CHUNK_SIZE = auto()
    CHUNK = auto()
    CHUNK_END = auto()
    TRAILERS = auto()
    UPGRADING = auto()
    OPAQUE = auto()
    OVER = auto()


class RequestStream:
    """Feed it the client's bytes in order, and the first bytes of the server's answer."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._at = _At.HEAD
        self._buffer = bytearray()
        self._left = 0
        self._requests = 0
        self._answer = b""
        self._searched = 0
        """How much of the buffer holds no end of what is waited for: bytes that come one by one are looked at once."""

    def feed(self, data: bytes) -> bytes:
        """What may leave now. Raises Refused."""
        if self._at is _At.OPAQUE:
            return data
        if self._at in (_At.UPGRADING, _At.OVER):
            raise Refused("bytes before the server agreed to the upgrade")
        self._buffer += data
        out = bytearray()
        while self._step(out):
            pass
        return bytes(out)

    def answered(self, data: bytes) -> None:
        """Shows it what the server sends; only the beginning matters, and only for an upgrade."""
        if self._at is not _At.UPGRADING:
            return
        self._answer += data[:16]
        if len(self._answer) >= 13:
            self._at = _At.OPAQUE if self._answer.startswith(b"HTTP/1.1 101 ") else _At.OVER

    def _step(self, out: bytearray) -> bool:
        """One part of what is buffered; False when more bytes are needed."""
        if not self._buffer:
            return False
        match self._at:
            case _At.HEAD:
                return self._head(out)
            case _At.BODY | _At.CHUNK:
                return self._some_body(out)
            case _At.CHUNK_SIZE:
                return self._chunk_size(out)
            case _At.CHUNK_END:
                if (line := self._line()) is None:
                    return False
                if line:
                    raise Refused("a chunk longer than its size")
                out += b"\r\n"
                self._at = _At.CHUNK_SIZE
                return True
            case _At.TRAILERS:
                if (line := self._line(MAX_HEAD)) is None:
                    return False
                if not line:  # trailers are dropped, as RFC 9110 allows
                    out += b"0\r\n\r\n"
                    self._at = _At.HEAD
                return True
            case _:
                raise Refused("bytes after a request to upgrade")

    def _found(self, end: bytes, limit: int, otherwise: str) -> int:
        """Where `end` begins; -1: not yet. Raises Refused beyond the limit."""
        at = self._buffer.find(end, max(0, self._searched - len(end) + 1))
        if at > limit or (at < 0 and len(self._buffer) > limit):
            raise Refused(otherwise)
        self._searched = len(self._buffer) if at < 0 else 0
        return at

    def _line(self, limit: int = _MAX_LINE) -> bytes | None:
        end = self._found(b"\r\n", limit, "a line without an end")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        if b"\r" in line or b"\n" in line:
            raise Refused("a bare line break")
        del self._buffer[: end + 2]
        return line

    def _some_body(self, out: bytearray) -> bool:
        piece = self._buffer[: self._left]
        out += piece
        del self._buffer[: len(piece)]
        self._left -= len(piece)
        if self._left == 0:
            self._at = _At.CHUNK_END if self._at is _At.CHUNK else _At.HEAD
        return True

    def _chunk_size(self, out: bytearray) -> bool:
        if (line := self._line()) is None:
            return False
        found = _CHUNK.fullmatch(line)
        if found is None:
            raise Refused("not the size of a chunk")
        self._left = int(found[1], 16)
        if self._left:
            out += b"%x\r\n" % self._left
        self._at = _At.CHUNK if self._left else _At.TRAILERS
        return True

    # -- the head ------------------------------------------------------------------------------------------------------

    def _head(self, out: bytearray) -> bool:
        if self._requests and self._buffer[:2] == b"\r\n":  # some old clients end a body with it
            del self._buffer[:2]
            return True
        end = self._found(b"\r\n\r\n", MAX_HEAD, "a head without an end")
        if end < 0:
            return False
        raw = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        self._requests += 1
        out += self._judged(raw)
        return True

    def _judged(self, raw: bytes) -> bytes:
        first, *lines = raw.split(b"\r\n")
        request = _REQUEST.fullmatch(first)
        if request is None:
            raise Refused("not a request line")
        method, target, minor = request[1], request[2], request[3]
        if len(lines) > MAX_FIELDS:
            raise Refused("too many headers")
        headers = [_field(line) for line in lines]
        added = self._judge(_host(method, target, headers))
        if added is None:
            raise Refused("the request's host is not allowed")
        headers = self._frame(headers, minor == b"1")
        replaced = {name.lower().encode() for name in added}
        kept = [(name, value) for name, value in headers if name.lower() not in replaced]
        kept += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in added.items()]
        return first + b"\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in kept) + b"\r\n"

    def _frame(self, headers: list[tuple[bytes, bytes]], modern: bool) -> list[tuple[bytes, bytes]]:
        """Sets what follows the head; returns the headers without an upgrade that is not passed on."""
        lengths = _values(headers, b"content-length")
        codings = _values(headers, b"transfer-encoding")
        if codings:
            if lengths or not modern or [one.lower() for one in codings] != [b"chunked"]:
                raise Refused("a body whose length can be read in two ways")
            self._at = _At.CHUNK_SIZE
        elif lengths:
            if len(lengths) != 1 or not re.fullmatch(rb"[0-9]{1,15}", lengths[0]):
                raise Refused("a body whose length can be read in two ways")
            self._left = int(lengths[0])
            self._at = _At.BODY if self._left else _At.HEAD
        upgrades = [one.lower() for one in _values(headers, b"upgrade")]
        if not upgrades:
            return headers
        if upgrades == [b"websocket"] and self._requests == 1 and self._at is _At.HEAD:
            self._at = _At.UPGRADING
            return headers
        tokens = [token.strip() for value in _values(headers, b"connection") for token in value.split(b",")]
        kept = [(name, value) for name, value in headers if name.lower() not in _NOT_AGAIN | {b"connection"}]
        left = b", ".join(token for token in tokens if token and token.lower() not in _NOT_AGAIN)
        return kept + ([(b"Connection", left)] if left else [])


def _field(line: bytes) -> tuple[bytes, bytes]:
    """Name and value, without the blanks around the value. Raises Refused."""
    name, colon, value = line.partition(b":")
    if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
        raise Refused("not a header line")
    return name, value.strip(b" \t")


def _values(headers: list[tuple[bytes, bytes]], searched: bytes) -> list[bytes]:
    return [value for name, value in headers if name.lower() == searched]


def _host(method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]) -> str | None:
    """The one host that the request is for. Raises Refused where it names two, or is not for the server itself."""
    if method in (b"CONNECT", b"TRACE"):  # TRACE: the server would echo a rule's secret back into the sandbox
        raise Refused(method.decode())
    hosts = _values(headers, b"host")
    if len(hosts) > 1:
        raise Refused("more than one Host")
    name = host_name(hosts[0].decode("latin-1")) if hosts else None
    if target.startswith(b"/") or target == b"*":
        return name
    absolute = _ABSOLUTE.fullmatch(target.decode("latin-1"))
    meant = host_name(absolute[1]) if absolute else None
    if meant is None or name is None or meant.lower() != name.lower():
        raise Refused("a target that is not the Host")
    return name
