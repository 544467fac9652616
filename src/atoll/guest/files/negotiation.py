"""What a download's request headers ask for: ranges, conditions, coding. Pure; RFC 9110 and what Go's file server does.

One range is served as 206; several ranges in one header are answered with the whole file, which the RFC allows.
"""

from __future__ import annotations

import email.utils
import functools
import re
from dataclasses import dataclass
from typing import Literal

from atoll.guest.errors import GuestError

_RANGE = re.compile(r"\s*+bytes\s*+=\s*+(\d{0,20})\s*+-\s*+(\d{0,20})\s*+", re.ASCII)
_RANGES = re.compile(r"\s*bytes\s*=[\s\d,-]*", re.ASCII)
_QVALUE = re.compile(r"\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Span:
    """`count` bytes from `offset`."""

    offset: int
    count: int

    def content_range(self, size: int) -> str:
        return f"bytes {self.offset}-{self.offset + self.count - 1}/{size}"


class RangeNotSatisfiable(GuestError, ValueError):
    """No byte of the range exists: answer 416."""


class NotAcceptable(GuestError, ValueError):
    """The client takes neither gzip nor identity: answer 406."""


def parse_range(header: str, size: int) -> Span | None:
    """The part of a file of `size` bytes that `Range` asks for; None when the whole file is the right answer.

    Raises RangeNotSatisfiable when the range is well-formed but outside of the file, or not a range in bytes at all
    (Go's server answers 416 to both).
    """
    match = _RANGE.fullmatch(header)
    if match is None:
        if _RANGES.fullmatch(header):
            return None
        raise RangeNotSatisfiable(f"invalid range {header[:64]!r}")
    first, last = match.groups()
    if not first:
        if not last or not int(last):
            raise RangeNotSatisfiable(f"invalid range {header[:64]!r}")
        count = min(int(last), size)
        if not count:
            raise RangeNotSatisfiable("the file is empty")
        return Span(size - count, count)
    start = int(first)
    if start >= size or (last and int(last) < start):
        raise RangeNotSatisfiable(f"range {header[:64]!r} is outside of the file's {size} bytes")
    end = min(int(last), size - 1) if last else size - 1
    return Span(start, end - start + 1)


def etag(mtime_ns: int, size: int) -> str:
    """A validator that changes with every write: modification time and size."""
    return f'"{mtime_ns:x}-{size:x}"'


def http_date(mtime_ns: int) -> str:
    return email.utils.formatdate(mtime_ns // 1_000_000_000, usegmt=True)


def not_modified(if_none_match: str | None, if_modified_since: str | None, tag: str, mtime_ns: int) -> bool:
    """Whether the client's copy is still good (304). `If-None-Match` wins over `If-Modified-Since`."""
    if if_none_match is not None:
        return _matches(if_none_match, tag)
    if if_modified_since is not None:
        since = _seconds(if_modified_since)
        return since is not None and mtime_ns // 1_000_000_000 <= since
    return False


def range_still_applies(if_range: str | None, tag: str, mtime_ns: int) -> bool:
    """Whether `Range` may be honoured: the file is the one that the client already has a part of."""
    if if_range is None:
        return True
    if if_range.strip().startswith('"'):
        return if_range.strip() == tag
    return _seconds(if_range) == mtime_ns // 1_000_000_000


def _matches(header: str, tag: str) -> bool:
    candidates = [part.strip().removeprefix("W/") for part in header.split(",")]
    return "*" in candidates or tag in candidates


def _seconds(date: str) -> int | None:
    try:
        return int(email.utils.parsedate_to_datetime(date.strip()).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None


@functools.lru_cache(maxsize=64)
def choose_coding(accept_encoding: str | None) -> Literal["identity", "gzip"]:
    """The coding of a download. Raises NotAcceptable.

    gzip only for a client that asks for it and for nothing else (the SDKs' `gzip=True` sends exactly `gzip`), or that
    puts it above identity. HTTP libraries list `gzip, deflate, br` on every request as what they could read; packing
    100 MB for them on the way to the same machine would cost seconds and save nothing.
    """
    if accept_encoding is None or not accept_encoding.strip():
        return "identity"
    weights: dict[str, float] = {}
    for item in accept_encoding.lower().split(","):
        name, _, parameter = item.partition(";")
        if name.strip():
            match = _QVALUE.fullmatch(parameter) if parameter else None
            weights.setdefault(name.strip(), float(match.group(1)) if match else 1.0)
    rest = weights.get("*")
    gzip = weights.get("gzip", weights.get("x-gzip", rest if rest is not None else 0.0))
    identity = weights.get("identity", 0.0 if rest == 0.0 else None)
    if identity is None:
        # Not named: acceptable, and preferred unless gzip is the one coding that was asked for.
        accepted = [name for name, weight in weights.items() if weight > 0]
        return "gzip" if accepted in (["gzip"], ["x-gzip"]) else "identity"
    if gzip > identity:
        return "gzip"
    if identity > 0:
        return "identity"
    raise NotAcceptable("no acceptable encoding found, supported: [identity, gzip]")
