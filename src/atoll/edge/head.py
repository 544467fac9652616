"""Heads of requests and responses: what is accepted, what is passed on, and how a body is framed. Pure.

Every head that leaves the edge is written here from parsed fields, never copied: two parties can then not read the same
bytes differently (request smuggling), and nothing that belongs to one connection only (hop-by-hop fields) travels on.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

Headers = list[tuple[bytes, bytes]]
"""Fields in order; names in lower case."""

MAX_HEAD_BYTES = 64 * 1024
MAX_FIELDS = 256

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

TRAFFIC_TOKEN = b"e2b-traffic-access-token"
SANDBOX_ID_FIELD = b"e2b-sandbox-id"
SANDBOX_PORT_FIELD = b"e2b-sandbox-port"

_OPEN = frozenset({b"/health", b"/openapi.json"})
"""Answered to anybody."""
_KEYS = frozenset({b"x-api-key", b"authorization", b"x-access-token", TRAFFIC_TOKEN})
_SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS"})
_FORWARDED = frozenset({b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-for"})
_DROPPED_FROM_REQUESTS = HOP_BY_HOP | {b"host", b"content-length", b"expect", TRAFFIC_TOKEN}
_DROPPED_FOR_GUESTS = _DROPPED_FROM_REQUESTS | {b"cookie"}
"""A signed URL of a file is of the platform's own host: a browser sends the console's log-in with it."""
_DROPPED_FROM_RESPONSES = HOP_BY_HOP | {b"content-length"}
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


class BadHead(Exception):
    """A head that the edge refuses. `status` is the answer that it deserves."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(slots=True)
class RequestHead:
    """A request's head, checked. `content_length` None and not `chunked`: there is no body."""

    method: bytes
    target: bytes
    """Origin form (`/path?query`) or `*`."""
    http11: bool
    keep_alive: bool
    headers: Headers
    host: bytes = b""
    content_length: int | None = None
    chunked: bool = False
    expects_continue: bool = False
    upgrade: bytes = b""
    """The protocol that the client asks to switch to, when the edge would tunnel it; else empty."""
    connection_tokens: frozenset[bytes] = frozenset()
    secure: bool = False
    """It came over TLS."""

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.content_length)

    @property
    def shows_key(self) -> bool:
        """Whether it carries what proves who asks, where that is looked at."""
        return self.path not in _OPEN and self.method != b"OPTIONS" and any(name in _KEYS for name, _ in self.headers)

    @property
    def replayable(self) -> bool:
        """True when sending it twice does no harm and needs no stored body."""
        return self.method in _SAFE and not self.has_body

    @property
    def path(self) -> bytes:
        return self.target.partition(b"?")[0]

    @property
    def query(self) -> bytes:
        return self.target.partition(b"?")[2]

    def get(self, name: bytes) -> bytes | None:
        """The first field of that (lower-case) name."""
        for field, value in self.headers:
            if field == name:
                return value
        return None

    def get_text(self, name: bytes) -> str | None:
        value = self.get(name)
        return None if value is None else value.decode("latin-1")


@dataclass(slots=True)
class ResponseHead:
    """An upstream's answer as parsed, and how its body is delimited."""

    status: int
    reason: bytes
    headers: Headers
    content_length: int | None = None
    chunked: bool = False
    bodiless: bool = False
    until_close: bool = False


def read_request(method: bytes, target: bytes, version: str, headers: Headers, keep_alive: bool) -> RequestHead:
    """Checks what the parser does not. Raises BadHead."""
    if version not in ("1.1", "1.0"):
        raise BadHead(505, "only HTTP/1.0 and 1.1 are spoken here")
    if method == b"CONNECT":
        raise BadHead(405, "CONNECT is not offered")
    head = RequestHead(method, target, version == "1.1", keep_alive, headers)
    hosts = lengths = encodings = 0
    upgrade = b""
    for name, value in headers:
        if name == b"host":
            hosts += 1
            head.host = value
        elif name == b"content-length":
            lengths += 1
            if not value.isdigit() or len(value) > 18:
                raise BadHead(400, "Content-Length is not a number")
            head.content_length = int(value)
        elif name == b"transfer-encoding":
            encodings += 1
            if value.strip().lower() != b"chunked":
                raise BadHead(501, "the only transfer coding understood here is chunked")
            head.chunked = True
        elif name == b"connection":
            head.connection_tokens |= _tokens(value)
        elif name == b"upgrade":
            upgrade = value.strip()
        elif name == b"expect":
            if value.strip().lower() != b"100-continue":
                raise BadHead(417, "unknown expectation")
            head.expects_continue = head.http11
    if hosts > 1 or (not hosts and head.http11):
        raise BadHead(400, "exactly one Host field is needed")
    if lengths > 1 or encodings > 1 or (lengths and encodings):
        raise BadHead(400, "the length of the body is ambiguous")
    if encodings and not head.http11:
        raise BadHead(400, "HTTP/1.0 has no transfer codings")
    if upgrade and b"upgrade" in head.connection_tokens and not head.has_body and upgrade.lower() != b"h2c":
        head.upgrade = upgrade
    _normalise_target(head)
    return head


def _normalise_target(head: RequestHead) -> None:
    target = head.target
    if target.startswith(b"/") or (target == b"*" and head.method == b"OPTIONS"):
        return
    scheme, colon, rest = target.partition(b"://")
    if not colon or scheme.lower() not in (b"http", b"https"):
        raise BadHead(400, "the request target is neither a path nor a URL")
    authority, slash, path = rest.partition(b"/")
    if not slash and b"?" in authority:
        authority, _, query = authority.partition(b"?")
        path = b"?" + query
    head.host = authority
    head.target = b"/" + path


def _tokens(value: bytes) -> frozenset[bytes]:
    return frozenset(token.strip().lower() for token in value.split(b",") if token.strip())


def upstream_head(head: RequestHead, *, host: bytes, client_ip: bytes, forwarded: bool) -> bytes:
    """The head that the sandbox gets.

    `forwarded` adds what web frameworks behind a proxy look for; the guest's own servers have no use for it, and get
    no cookies.
    """
    dropped = _DROPPED_FROM_REQUESTS if forwarded else _DROPPED_FOR_GUESTS
    if head.connection_tokens:
        dropped = dropped | head.connection_tokens
    lines = [head.method, b" ", head.target, b" HTTP/1.1\r\nhost: ", host, b"\r\n"]
    seen = b""
    for name, value in head.headers:
        if name in dropped:
            continue
        if forwarded and name in _FORWARDED:
            if name == b"x-forwarded-for":
                seen = value + b", "
            continue
        lines += (name, b": ", value, b"\r\n")
    if head.chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    elif head.content_length is not None:
        lines.append(b"content-length: %d\r\n" % head.content_length)
    if forwarded:
        lines += (b"x-forwarded-for: ", seen, client_ip, b"\r\nx-forwarded-host: ", head.host)
        lines.append(b"\r\nx-forwarded-proto: https\r\n" if head.secure else b"\r\nx-forwarded-proto: http\r\n")
    if head.upgrade:
        lines += (b"connection: upgrade\r\nupgrade: ", head.upgrade, b"\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


def read_response(request: RequestHead, status: int, reason: bytes, headers: Headers) -> ResponseHead:
    """How the upstream delimits its body. Raises BadHead(502) when it is ambiguous."""
    head = ResponseHead(status, reason, headers)
    lengths = 0
    for name, value in headers:
        if name == b"content-length":
            lengths += 1
            if not value.isdigit() or len(value) > 18 or lengths > 1:
                raise BadHead(502, "the sandbox's answer has a bad Content-Length")
            head.content_length = int(value)
        elif name == b"transfer-encoding":
            if value.strip().lower() != b"chunked" or head.chunked:
                raise BadHead(502, "the sandbox's answer has an unknown transfer coding")
            head.chunked = True
    if head.chunked and lengths:
        raise BadHead(502, "the length of the sandbox's answer is ambiguous")
    head.bodiless = status < 200 or status in (204, 304) or request.method == b"HEAD"
    head.until_close = not head.bodiless and not head.chunked and head.content_length is None
    return head


def downstream_head(request: RequestHead, head: ResponseHead, *, keep_alive: bool, extra: bytes = b"") -> bytes:
    """The head that the client gets. Bodies without a length go out chunked, or until close to an HTTP/1.0 client."""
    dropped = _DROPPED_FROM_RESPONSES
    lines = [b"HTTP/1.1 %d " % head.status, head.reason or reason_of(head.status), b"\r\n"]
    for name, value in head.headers:
        if name == b"connection":
            dropped = dropped | (_tokens(value) - {b"close"})
    for name, value in head.headers:
        if name not in dropped:
            lines += (name, b": ", value, b"\r\n")
    if head.content_length is not None and head.status != 204 and head.status >= 200:
        lines.append(b"content-length: %d\r\n" % head.content_length)
    elif not head.bodiless and request.http11:
        lines.append(b"transfer-encoding: chunked\r\n")
    if extra:
        lines.append(extra)
    lines.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
    return b"".join(lines)


def switching_head(head: ResponseHead) -> bytes:
    """A 101, with the fields that make it one."""
    lines = [b"HTTP/1.1 101 Switching Protocols\r\n"]
    upgrade = b""
    for name, value in head.headers:
        if name == b"upgrade":
            upgrade = value
        elif name not in _DROPPED_FROM_RESPONSES:
            lines += (name, b": ", value, b"\r\n")
    lines += (b"connection: upgrade\r\nupgrade: ", upgrade, b"\r\n\r\n")
    return b"".join(lines)


def reason_of(status: int) -> bytes:
    return _REASONS.get(status, b"Unknown")
