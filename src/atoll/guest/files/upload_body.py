"""What comes with an upload: the body without its coding, piece by piece, and the file's metadata from the headers."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator

from atoll.http1.server import Body, Headers, HttpError, Request

PIECE = 256 * 1024
"""Bytes unpacked between two turns of the event loop."""
IDLE_S = 300.0
"""An upload of which nothing arrives for so long is given up."""
MAX_METADATA = 4096
"""Bytes of all metadata of a file, keys with their prefix and values: what a file system's inode has room for."""
MAX_METADATA_KEY = 246
"""255, Linux' limit on attribute names, without the prefix."""

_METADATA_HEADER = "x-metadata-"
_PREFIX_SIZE = len("user.e2b.")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_GZIP_WINDOW = 31


def metadata_of(headers: Headers) -> dict[str, str]:
    """The user's metadata in `X-Metadata-<key>` headers. Raises HttpError 400 for what cannot be stored."""
    found: dict[str, str] = {}
    for name, value in headers:
        if name.startswith(_METADATA_HEADER):
            key = name.removeprefix(_METADATA_HEADER)
            if not key or not _PRINTABLE.fullmatch(key) or not _PRINTABLE.fullmatch(value):
                raise HttpError(
                    400, f"metadata {key[:64]!r}: keys and values must be printable US-ASCII, keys not empty"
                )
            if len(key) > MAX_METADATA_KEY:
                raise HttpError(400, f"metadata key of {len(key)} bytes is longer than {MAX_METADATA_KEY}")
            found.setdefault(key, value)
    size = sum(_PREFIX_SIZE + len(key) + len(value) for key, value in found.items())
    if size > MAX_METADATA:
        raise HttpError(400, f"metadata of {size} bytes (with prefixes) is larger than {MAX_METADATA}")
    return found


def _coding(request: Request) -> str:
    return (request.headers.get("content-encoding") or "").strip().lower()


def is_plain(request: Request) -> bool:
    """Whether the body is sent as it is."""
    return _coding(request) in ("", "identity")


def decoded(request: Request) -> AsyncIterator[bytes]:
    """The body without its Content-Encoding. Raises HttpError for a coding that is not known."""
    coding = _coding(request)
    if is_plain(request):
        return _arriving(request.body)
    if coding in ("gzip", "x-gzip"):
        return gunzip(_arriving(request.body))
    raise HttpError(415, f"unsupported Content-Encoding {coding[:32]!r}, supported: [identity, gzip]")


async def _arriving(body: Body) -> AsyncIterator[bytes]:
    """The body's chunks. Raises HttpError 408 when none comes for IDLE_S; a body that is all here costs no timer."""
    while not (body.ended and not body.buffered):
        try:
            if body.buffered:
                chunk = await anext(body)
            else:
                async with asyncio.timeout(IDLE_S):
                    chunk = await anext(body)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise HttpError(408, f"no byte of the upload arrived for {IDLE_S:g} seconds") from error
        yield chunk


async def gunzip(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Unpacks gzip (several members in a row as well), never more than PIECE bytes at a time. Raises HttpError 400."""
    unpacker = zlib.decompressobj(_GZIP_WINDOW)
    started = False
    try:
        async for chunk in chunks:
            while chunk:
                if unpacker.eof:
                    unpacker = zlib.decompressobj(_GZIP_WINDOW)
                started = True
                data = unpacker.decompress(chunk, PIECE)
                while data:
                    yield data
                    if len(data) < PIECE:
                        break
                    await asyncio.sleep(0)
                    data = unpacker.decompress(unpacker.unconsumed_tail, PIECE)
                chunk = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
    except zlib.error as error:
        raise HttpError(400, f"the gzip body is damaged: {error}") from error
    if not started or not unpacker.eof:
        raise HttpError(400, "the gzip body ends early")
