"""A file on its way out, as `GET /files` answers it: headers, conditions, Range, gzip; never whole in memory.

Small files are read and answered in one write, larger ones go by `sendfile`. Who may read what is `files`' to know.
"""

from __future__ import annotations

import asyncio
import mimetypes
import os
import re
import stat
import zlib
from collections.abc import AsyncIterator
from typing import BinaryIO
from urllib.parse import quote

from atoll.guest.files import negotiation
from atoll.guest.files.paths import shown
from atoll.guest.files.safe_open import open_path
from atoll.guest.files.uploads import failure
from atoll.http1.server import FileBody, Headers, HttpError, Response

WHOLE = 128 * 1024
"""Files up to this many bytes are read at once and sent with their head."""
PIECE = 256 * 1024
"""Bytes packed between two turns of the event loop."""

_PART_HEADERS = frozenset(("range", "if-modified-since", "if-none-match", "if-range"))
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Built once from Python's own table: the template's /etc/mime.types is not ours to trust, nor to read on a hot path.
_TYPES = dict(mimetypes.MimeTypes(filenames=()).types_map[True])
_GZIP_WINDOW = 31


def open_regular(path: str) -> tuple[int, os.stat_result]:
    """A regular file for reading, links followed. Raises HttpError; opens neither devices nor FIFOs."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise HttpError(404, f"path '{shown(path)}' does not exist") from error
    except OSError as error:
        raise failure(error, "error looking for", path) from error
    if stat.S_ISDIR(mode):
        raise HttpError(400, f"path '{shown(path)}' is a directory")
    if not stat.S_ISREG(mode):
        raise HttpError(400, f"path '{shown(path)}' is not a regular file")
    try:
        fd = open_path(path, os.O_RDONLY)
    except OSError as error:
        raise failure(error, "error opening file", path) from error
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise HttpError(400, f"path '{shown(path)}' is not a regular file")
    return fd, found


def is_partial(headers: Headers) -> bool:
    return any(name in _PART_HEADERS for name, _ in headers)


def _common_headers(found: os.stat_result, path: str) -> list[tuple[str, str]]:
    return [
        ("content-type", content_type(path)),
        ("content-disposition", disposition(os.path.basename(path))),
        ("vary", "Accept-Encoding"),
        ("last-modified", negotiation.http_date(found.st_mtime_ns)),
    ]


def plain(fd: int, found: os.stat_result, path: str, headers: Headers) -> tuple[Response, bool]:
    """The answer as it is, and whether it keeps `fd` (a FileBody closes it itself)."""
    size = found.st_size
    tag = negotiation.etag(found.st_mtime_ns, size)
    common = [*_common_headers(found, path), ("accept-ranges", "bytes"), ("etag", tag)]
    if is_partial(headers):
        if negotiation.not_modified(
            headers.get("if-none-match"), headers.get("if-modified-since"), tag, found.st_mtime_ns
        ):
            return Response(304, common[2:]), False
        span_header = headers.get("range")
        if span_header is not None and negotiation.range_still_applies(headers.get("if-range"), tag, found.st_mtime_ns):
            try:
                span = negotiation.parse_range(span_header, size)
            except negotiation.RangeNotSatisfiable as error:
                raise HttpError(416, str(error), (("content-range", f"bytes */{size}"),)) from error
            if span is not None:
                return _span(fd, path, 206, [*common, ("content-range", span.content_range(size))], span)
    return _span(fd, path, 200, common, negotiation.Span(0, size))


def _span(
    fd: int, path: str, status: int, headers: list[tuple[str, str]], span: negotiation.Span
) -> tuple[Response, bool]:
    if span.count > WHOLE:
        return Response(status, headers, FileBody(os.fdopen(fd, "rb", 0), span.offset, span.count)), True
    try:
        # procfs and sysfs announce sizes of 0 or 4096 whatever they hold: believe what can be read.
        data = os.pread(fd, span.count or WHOLE, span.offset)
    except OSError as error:
        raise failure(error, "error reading file", path) from error
    return Response(status, headers, data), False


def gzipped(fd: int, found: os.stat_result, path: str) -> tuple[Response, bool]:
    headers = [*_common_headers(found, path), ("content-encoding", "gzip")]
    if found.st_size <= WHOLE:
        packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP_WINDOW)
        return Response(200, headers, packer.compress(os.pread(fd, WHOLE, 0)) + packer.flush()), False
    return Response(200, headers, _packed(os.fdopen(fd, "rb", 0))), True


async def _packed(file: BinaryIO) -> AsyncIterator[bytes]:
    """The file through gzip at the speed level; closes it."""
    packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP_WINDOW)
    with file:
        while data := file.read(PIECE):
            if packed := packer.compress(data):
                yield packed
            await asyncio.sleep(0)
    yield packer.flush()


def content_type(path: str) -> str:
    """By the name's extension, `application/octet-stream` when that says nothing. Text is UTF-8."""
    kind = _TYPES.get(os.path.splitext(path)[1].lower(), "application/octet-stream")
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def disposition(name: str) -> str:
    """`inline` with the file's name, written as Go's `mime.FormatMediaType` does."""
    if not name:
        return "inline"
    if _TOKEN.fullmatch(name):
        return f"inline; filename={name}"
    if _PRINTABLE.fullmatch(name):
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'inline; filename="{escaped}"'
    return f"inline; filename*=utf-8''{quote(os.fsencode(name), safe='')}"
