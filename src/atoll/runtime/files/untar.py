"""Reads a tar stream that a sandbox made: strictly, each header bounded, and never more data than was allowed.

Python's tarfile fills holes of sparse members with zeros (two kilobytes can declare exabytes), reads extended headers
whole, and is lenient with what it does not know. Read here: POSIX ustar with pax headers, as GNU tar writes it with
`--format=pax`. Regular files, directories and symbolic links are reported, everything else without data is passed over,
and everything else with data (sparse files, GNU's long names, continued volumes) is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

BLOCK = 512
MAX_EXTENDED = 64 * 1024
"""Bytes of one pax header."""
MAX_NAME = 4096
_KNOWN = frozenset(b"025") | {0}
_PASSED_OVER = frozenset(b"13467")
"""Hard links, devices, queues and the reserved kind 7, which have no data where they are honest."""

Read = Callable[[int], bytes]
"""A stream: so many bytes, fewer only at its end."""


class BadArchive(ValueError):
    """Not a tar stream as it is read here; the message says what is wrong with it."""


class Kind(Enum):
    """What is reported."""

    FILE = "0"
    LINK = "2"
    DIRECTORY = "5"


@dataclass(frozen=True, slots=True)
class Member:
    """`content` yields the data once, before the next member is asked for."""

    kind: Kind
    name: str
    mode: int
    target: str
    size: int
    content: Iterator[bytes]


def members(read: Read, chunk: int = 256 * 1024) -> Iterator[Member]:
    """The members in order, up to the two zero blocks. Raises BadArchive, also where the stream ends early."""
    extended: dict[str, str] = {}
    while any(head := _exactly(read, BLOCK)):
        _check(head)
        flag = head[156]
        if flag in b"xg":
            size = _number(head[124:136])
            if size > MAX_EXTENDED:
                raise BadArchive(f"an extended header of {size} bytes")
            found = _pax(_exactly(read, _padded(size))[:size])
            extended = extended | found if flag == ord("x") else extended
            continue
        if any(key.startswith("GNU.sparse.") for key in extended):
            raise BadArchive("a sparse file")
        member = _member(head, flag, extended, read, chunk)
        extended = {}
        if member is None:
            continue
        yield member
        for _ in member.content:
            pass


def _member(head: bytes, flag: int, extended: dict[str, str], read: Read, chunk: int) -> Member | None:
    size = _decimal(extended["size"]) if "size" in extended else _number(head[124:136])
    if flag in _PASSED_OVER:
        if size and flag != ord("1"):
            raise BadArchive("data behind something that is no file")
        return None
    if flag not in _KNOWN:
        raise BadArchive(f"a member of the kind {chr(flag)!r}")
    kind = Kind.FILE if flag == 0 else Kind(chr(flag))
    if kind is not Kind.FILE and size:
        raise BadArchive("data behind something that is no file")
    prefix, short = _text(head[345:500]), _text(head[:100])
    name = extended.get("path") or (f"{prefix}/{short}" if prefix else short)
    target = extended.get("linkpath") or _text(head[157:257])
    if max(len(name), len(target)) > MAX_NAME or "\0" in name + target:
        raise BadArchive("a name that no file can have")
    return Member(kind, name, _number(head[100:108]) & 0o7777, target, size, _content(read, size, chunk))


def _content(read: Read, size: int, chunk: int) -> Iterator[bytes]:
    left = size
    while left:
        piece = _exactly(read, min(left, chunk))
        left -= len(piece)
        yield piece
    _exactly(read, _padded(size) - size)


def _exactly(read: Read, size: int) -> bytes:
    data = read(size) if size else b""
    if len(data) != size:
        raise BadArchive("it ends early")
    return data


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _check(head: bytes) -> None:
    if head[257:262] != b"ustar":
        raise BadArchive("a header that is not ustar")
    if sum(head[:148]) + sum(head[156:]) + 8 * 32 != _number(head[148:156]):
        raise BadArchive("a header whose checksum is wrong")


def _number(field: bytes) -> int:
    """Octal; what does not fit stands in a pax header."""
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if len(digits) > 12 or digits.strip(b"01234567"):
        raise BadArchive("a number that is not octal")
    return int(digits, 8)


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise BadArchive("a size that is no number")
    return int(text)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _pax(data: bytes) -> dict[str, str]:
    """`length key=value\\n` records."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        blank = data.find(b" ", at, at + 8)
        length = _decimal(data[at:blank].decode("latin-1")) if blank > at else 0
        record = data[blank + 1 : at + length]
        key, equals, value = record.partition(b"=")
        if blank < 0 or at + length > len(data) or not equals or not value.endswith(b"\n"):
            raise BadArchive("a broken extended header")
        found[key.decode("utf-8", "surrogateescape")] = value[:-1].decode("utf-8", "surrogateescape")
        at += length
    return found
