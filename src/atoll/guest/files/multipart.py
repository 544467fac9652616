"""multipart/form-data as a stream: bytes go in as they arrive, parts come out. No I/O.

    feed(b"--B\\r\\nContent-Disposition: form-data; name=file\\r\\n\\r\\nda")    → PartBegin, b"da"
    feed(b"ta\\r\\n--B--\\r\\n")    → b"ta", PART_END
    finish()                         raises if the end is missing

Format: RFC 7578 over RFC 2046, with the name escapes of the HTML form encoding (`%22`, `%0D`, `%0A`) and of httpx.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import unquote

from atoll.guest.errors import GuestError

MAX_PART_HEAD = 32 * 1024
"""Bytes of one part's headers."""
MAX_PREAMBLE = 4 * 1024
"""Bytes before the first boundary (RFC 2046 allows any; no client sends some)."""
MAX_BOUNDARY = 256
"""RFC 2046 says 70; some clients send more."""

_PARAMETER = re.compile(r';\s*([!#$%&\'*+\-.^_`|~0-9A-Za-z]+)\s*=\s*(?:"((?:\\.|[^"\\])*)"|([^;\s"]*))')
_ESCAPED_CHARACTER = re.compile(r"%(22|0[0-9A-F]|1[0-9A-F])")


class MultipartError(GuestError, ValueError):
    """The body is not well-formed, too long in its heads, or ends early; the message says where."""


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A part's head. `name` is the form field, `filename` None for a plain field."""

    name: str
    filename: str | None


class _PartEnd:
    """The part is complete."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "PART_END"


PART_END = _PartEnd()
Event = PartBegin | bytes | _PartEnd


class _State(Enum):
    PREAMBLE = auto()
    AFTER_BOUNDARY = auto()
    HEAD = auto()
    DATA = auto()
    EPILOGUE = auto()


class MultipartParser:
    """One request body. `feed` returns what has become known; `finish` says whether the body was whole."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        # The first boundary may stand at the very start: pretend that a line has just ended.
        self._buffer = b"\r\n"
        self._state = _State.PREAMBLE

    def feed(self, data: bytes) -> list[Event]:
        """Events of `data`. Raises MultipartError."""
        self._buffer = self._buffer + data if self._buffer else data
        events: list[Event] = []
        while self._step(events):
            pass
        return events

    def finish(self) -> None:
        """The body has ended. Raises MultipartError when the closing boundary is missing."""
        if self._state is not _State.EPILOGUE:
            raise MultipartError("multipart body ends before its closing boundary")

    def _step(self, events: list[Event]) -> bool:
        """Takes one thing out of the buffer; False when more bytes are needed."""
        if self._state is _State.DATA:
            return self._data(events)
        if self._state is _State.HEAD:
            return self._head(events)
        if self._state is _State.AFTER_BOUNDARY:
            return self._after_boundary()
        if self._state is _State.PREAMBLE:
            return self._preamble()
        self._buffer = b""
        return False

    def _preamble(self) -> bool:
        at = self._buffer.find(self._delimiter)
        if at < 0 or at > MAX_PREAMBLE:
            if len(self._buffer) > MAX_PREAMBLE + len(self._delimiter):
                raise MultipartError("multipart body does not start with its boundary")
            return False
        self._buffer = self._buffer[at + len(self._delimiter) :]
        self._state = _State.AFTER_BOUNDARY
        return True

    def _after_boundary(self) -> bool:
        if self._buffer.startswith(b"--"):
            self._state = _State.EPILOGUE
            return True
        padding = len(self._buffer) - len(self._buffer.lstrip(b" \t"))
        if len(self._buffer) < padding + 2 and padding < MAX_BOUNDARY:
            return False
        if self._buffer[padding : padding + 2] != b"\r\n":
            raise MultipartError("a multipart boundary is not followed by a line end")
        self._buffer = self._buffer[padding:]
        self._state = _State.HEAD
        return True

    def _head(self, events: list[Event]) -> bool:
        # The buffer begins with the line end of the boundary, so that a part without headers also ends in CRLFCRLF.
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or end > MAX_PART_HEAD:
            if len(self._buffer) > MAX_PART_HEAD:
                raise MultipartError(f"the headers of a multipart part are larger than {MAX_PART_HEAD} bytes")
            return False
        events.append(_part_begin(self._buffer[2:end]))
        self._buffer = self._buffer[end + 4 :]
        self._state = _State.DATA
        return True

    def _data(self, events: list[Event]) -> bool:
        buffer = self._buffer
        at = buffer.find(self._delimiter)
        if at >= 0:
            if at:
                events.append(buffer[:at])
            events.append(PART_END)
            self._buffer = buffer[at + len(self._delimiter) :]
            self._state = _State.AFTER_BOUNDARY
            return True
        # All but what may be the beginning of a delimiter can go.
        keep = _overlap(buffer, self._delimiter)
        if len(buffer) > keep:
            events.append(buffer[: len(buffer) - keep] if keep else buffer)
            self._buffer = buffer[len(buffer) - keep :] if keep else b""
        return False


def _overlap(buffer: bytes, delimiter: bytes) -> int:
    """Length of the longest end of `buffer` with which `delimiter` begins."""
    tail = buffer[-(len(delimiter) - 1) :]
    at = tail.find(b"\r")
    while at >= 0:
        if delimiter.startswith(tail[at:]):
            return len(tail) - at
        at = tail.find(b"\r", at + 1)
    return 0


@functools.lru_cache(maxsize=32)
def _part_begin(head: bytes) -> PartBegin:
    try:
        lines = head.decode("utf-8").split("\r\n")
    except UnicodeDecodeError:
        raise MultipartError("the headers of a multipart part are not UTF-8") from None
    for line in lines:
        key, colon, value = line.partition(":")
        if colon and key.strip().lower() == "content-disposition":
            return _disposition(value)
    raise MultipartError("a multipart part has no Content-Disposition header")


def _disposition(value: str) -> PartBegin:
    kind = value.partition(";")[0].strip().lower()
    if kind != "form-data":
        raise MultipartError(f"a multipart part's disposition is {kind[:32]!r}, not form-data")
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(value):
        key, quoted, plain = match.groups()
        found.setdefault(key.lower(), _unescape(quoted) if quoted is not None else plain)
    filename = found.get("filename")
    if "filename*" in found:
        filename = _extended(found["filename*"]) or filename
    return PartBegin(found.get("name", ""), filename)


def _extended(text: str) -> str | None:
    """RFC 5987: `UTF-8''na%C3%AFve`. None when it is not that."""
    charset, _, rest = text.partition("'")
    _, quote, value = rest.partition("'")
    if charset.lower() != "utf-8" or not quote:
        return None
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        return None


def _unescape(text: str) -> str:
    """The text of a quoted parameter. A backslash escapes only a backslash or a quote: JS sends it bare."""
    text = re.sub(r'\\(["\\])', r"\1", text)
    return _ESCAPED_CHARACTER.sub(lambda match: chr(int(match.group(1), 16)), text)


def boundary_of(content_type: str) -> bytes:
    """The boundary in a Content-Type header. Raises MultipartError when it is not multipart/form-data or has none."""
    kind, _, parameters = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        raise MultipartError(
            f"content type {kind.strip()[:64]!r} is neither multipart/form-data nor application/octet-stream"
        )
    for match in _PARAMETER.finditer(";" + parameters):
        key, quoted, plain = match.groups()
        if key.lower() == "boundary":
            boundary = (quoted if quoted is not None else plain).encode("latin-1", "replace")
            if not 0 < len(boundary) <= MAX_BOUNDARY:
                break
            return boundary
    raise MultipartError("multipart/form-data without a usable boundary parameter")
