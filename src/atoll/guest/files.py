"""`GET /files`, `POST /files`, `POST /files/compose`: contents in and out, never whole in memory.

Down: small files are read and answered in one write, larger ones go by `sendfile`; Range, conditions, gzip on demand.
Up: multipart (field `file`; the name is the path unless the query has one) or octet-stream, either of them gzipped if
`Content-Encoding` says so; `X-Metadata-*` headers become attributes of the file. `uploads.py` makes each file appear
whole. Everything is done with root's rights for the user's benefit: the reason stands in `filesystem.py`.

Access: the token in `X-Access-Token`, or a signature in the query (`signing.py`). The routes are open for the router,
the check is made here.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import mimetypes
import os
import re
import stat
import time
import zlib
from collections.abc import AsyncIterator, Callable
from typing import BinaryIO
from urllib.parse import quote

from atoll.guest import negotiation, signing
from atoll.guest.copying import copy_content
from atoll.guest.handles import open_path
from atoll.guest.multipart import MultipartError, MultipartParser, PartBegin, boundary_of
from atoll.guest.paths import shown
from atoll.guest.server import Router
from atoll.guest.state import GuestState
from atoll.guest.uploads import Upload, failure
from atoll.guest.users import User
from atoll.wire.connect import HTTP_STATUS, ConnectError
from atoll.wire.http import Body, FileBody, Headers, HttpError, Request, Response

OPEN_ROUTES = (("GET", "/files"), ("HEAD", "/files"), ("POST", "/files"))
"""For the router: these need no access token there, because a signature will do."""

WHOLE = 128 * 1024
"""Files up to this many bytes are read at once and sent with their head."""
PIECE = 256 * 1024
"""Bytes packed or unpacked between two turns of the event loop."""
IDLE_S = 300.0
"""An upload of which nothing arrives for so long is given up."""
MAX_COMPOSE = 1024 * 1024
MAX_SOURCES = 10_000
MAX_METADATA = 4096
"""Bytes of all metadata of a file, keys with their prefix and values: what a file system's inode has room for."""
MAX_METADATA_KEY = 246
"""255, Linux' limit on attribute names, without the prefix."""

_PART_HEADERS = frozenset(("range", "if-modified-since", "if-none-match", "if-range"))
_METADATA_HEADER = "x-metadata-"
_PREFIX_SIZE = len("user.e2b.")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Built once from Python's own table: the template's /etc/mime.types is not ours to trust, nor to read on a hot path.
_TYPES = dict(mimetypes.MimeTypes(filenames=()).types_map[True])
_GZIP_WINDOW = 31


class Files:
    """The handlers; `register` puts them on a router made with OPEN_ROUTES."""

    def __init__(self, state: GuestState, clock: Callable[[], float] = time.time) -> None:
        self._state = state
        self._clock = clock

    def register(self, router: Router) -> None:
        router.add("GET", "/files", self.download)
        router.add("POST", "/files", self.upload)
        router.add("POST", "/files/compose", self.compose)

    # -- access and names -------------------------------------------------------------------------------------------

    def _authorize(self, request: Request, operation: signing.Operation) -> None:
        token = self._state.access_token
        if token is None:
            return
        given = request.headers.get("x-access-token")
        if given is not None:
            if not hmac.compare_digest(given.encode("latin-1", "replace"), token.encode()):
                raise HttpError(401, "access token present in header but does not match")
            return
        reason = signing.refusal(request.query, operation, token, self._clock())
        if reason is not None:
            raise HttpError(401, reason)

    def _user(self, request: Request) -> User:
        try:
            return self._state.user_named(request.query.get("username"))
        except ConnectError as error:
            raise HttpError(HTTP_STATUS[error.code], error.message) from error

    def _resolve(self, path: str, user: User) -> str:
        try:
            return self._state.resolve(path, user)
        except ConnectError as error:
            raise HttpError(HTTP_STATUS[error.code], error.message) from error

    # -- down -------------------------------------------------------------------------------------------------------

    async def download(self, request: Request) -> Response:
        self._authorize(request, "read")
        path = self._resolve(request.query.get("path", ""), self._user(request))
        headers = request.headers
        try:
            coding = negotiation.choose_coding(headers.get("accept-encoding"))
        except negotiation.NotAcceptable as error:
            raise HttpError(406, str(error)) from error
        fd, found = _open_regular(path)
        try:
            if coding == "gzip" and request.method == "GET" and not _wants_part(headers):
                answer, keeps = _gzipped(fd, found, path)
            else:
                answer, keeps = _plain(fd, found, path, headers)
        except BaseException:
            os.close(fd)
            raise
        if not keeps:
            os.close(fd)
        return answer

    # -- up ---------------------------------------------------------------------------------------------------------

    async def upload(self, request: Request) -> Response:
        self._authorize(request, "write")
        user = self._user(request)
        metadata = metadata_of(request.headers)
        kind = (request.headers.get("content-type") or "").partition(";")[0].strip().lower()
        chunks = _decoded(request)
        try:
            if kind == "application/octet-stream":
                written = [await self._upload_raw(request, user, metadata, chunks)]
            else:
                written = await self._upload_parts(request, user, metadata, chunks)
        except MultipartError as error:
            raise HttpError(400, str(error)) from error
        return Response.json(written)

    async def _upload_raw(
        self, request: Request, user: User, metadata: dict[str, str], chunks: AsyncIterator[bytes]
    ) -> dict[str, object]:
        path = request.query.get("path")
        if not path:
            raise HttpError(400, "the 'path' query parameter is required for application/octet-stream uploads")
        upload = Upload.begin(self._resolve(path, user), user, metadata)
        try:
            async for chunk in chunks:
                upload.write(chunk)
            return await upload.commit()
        finally:
            upload.abort()

    async def _upload_parts(
        self, request: Request, user: User, metadata: dict[str, str], chunks: AsyncIterator[bytes]
    ) -> list[dict[str, object]]:
        parser = MultipartParser(boundary_of(request.headers.get("content-type") or ""))
        written: list[dict[str, object]] = []
        current: Upload | None = None
        try:
            async for chunk in chunks:
                for event in parser.feed(chunk):
                    if isinstance(event, bytes):
                        if current is not None:
                            current.write(event)
                    elif isinstance(event, PartBegin):
                        current = self._begin_part(request, event, user, metadata, written)
                    elif current is not None:
                        written.append(await current.commit())
                        current = None
            parser.finish()
        finally:
            if current is not None:
                current.abort()
        if not written:
            raise HttpError(400, "no part named 'file' in the multipart body")
        return written

    def _begin_part(
        self, request: Request, part: PartBegin, user: User, metadata: dict[str, str], written: list[dict[str, object]]
    ) -> Upload | None:
        """The upload that a part belongs to; None for a field that is no file."""
        if part.name != "file":
            return None
        name = request.query.get("path") or part.filename
        if not name:
            raise HttpError(400, "a part has no filename and the query has no 'path'")
        path = self._resolve(name, user)
        if any(info["path"] == shown(path) for info in written):
            raise HttpError(
                400,
                f"you cannot upload multiple files to the same path '{shown(path)}' in one upload request, "
                "only the first specified file was uploaded",
            )
        return Upload.begin(path, user, metadata)

    # -- compose ----------------------------------------------------------------------------------------------------

    async def compose(self, request: Request) -> Response:
        """Several files become one, copied inside the kernel; the sources are removed when all of it is there."""
        sources, destination, username = _compose_order(await request.body.read(MAX_COMPOSE))
        try:
            user = self._state.user_named(username or request.query.get("username"))
        except ConnectError as error:
            raise HttpError(HTTP_STATUS[error.code], error.message) from error
        paths = [self._resolve(source, user) for source in sources]
        upload = Upload.begin(self._resolve(destination, user), user, {})
        try:
            for path in paths:
                fd, _ = _open_regular(path)
                try:
                    upload.size += await copy_content(fd, upload.fd)
                except OSError as error:
                    raise failure(error, f"error composing '{shown(upload.path)}'") from error
                finally:
                    os.close(fd)
            info = await upload.commit()
        finally:
            upload.abort()
        _remove_sources(paths, upload.path)
        return Response.json(info)


# -- helpers of the way down ----------------------------------------------------------------------------------------


def _open_regular(path: str) -> tuple[int, os.stat_result]:
    """A regular file for reading, links followed. Raises HttpError; opens neither devices nor FIFOs."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise HttpError(404, f"path '{shown(path)}' does not exist") from error
    except OSError as error:
        raise failure(error, f"error checking if path '{shown(path)}' exists") from error
    if stat.S_ISDIR(mode):
        raise HttpError(400, f"path '{shown(path)}' is a directory")
    if not stat.S_ISREG(mode):
        raise HttpError(400, f"path '{shown(path)}' is not a regular file")
    try:
        fd = open_path(path, os.O_RDONLY)
    except OSError as error:
        raise failure(error, f"error opening file '{shown(path)}'") from error
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise HttpError(400, f"path '{shown(path)}' is not a regular file")
    return fd, found


def _wants_part(headers: Headers) -> bool:
    return any(name in _PART_HEADERS for name, _ in headers)


def _common_headers(found: os.stat_result, path: str) -> list[tuple[str, str]]:
    return [
        ("content-type", content_type(path)),
        ("content-disposition", disposition(os.path.basename(path))),
        ("vary", "Accept-Encoding"),
        ("last-modified", negotiation.http_date(found.st_mtime_ns)),
    ]


def _plain(fd: int, found: os.stat_result, path: str, headers: Headers) -> tuple[Response, bool]:
    """The answer as it is, and whether it keeps `fd` (a FileBody closes it itself)."""
    size = found.st_size
    tag = negotiation.etag(found.st_mtime_ns, size)
    common = [*_common_headers(found, path), ("accept-ranges", "bytes"), ("etag", tag)]
    if _wants_part(headers):
        if negotiation.not_modified(
            headers.get("if-none-match"), headers.get("if-modified-since"), tag, found.st_mtime_ns
        ):
            return Response(304, common[2:]), False
        wanted = headers.get("range")
        if wanted is not None and negotiation.range_still_applies(headers.get("if-range"), tag, found.st_mtime_ns):
            try:
                span = negotiation.parse_range(wanted, size)
            except negotiation.RangeNotSatisfiable as error:
                raise HttpError(416, str(error), (("content-range", f"bytes */{size}"),)) from error
            if span is not None:
                return _span(fd, 206, [*common, ("content-range", span.content_range(size))], span)
    return _span(fd, 200, common, negotiation.Span(0, size))


def _span(fd: int, status: int, headers: list[tuple[str, str]], span: negotiation.Span) -> tuple[Response, bool]:
    if span.count > WHOLE:
        return Response(status, headers, FileBody(os.fdopen(fd, "rb", 0), span.offset, span.count)), True
    try:
        # procfs and sysfs announce sizes of 0 or 4096 whatever they hold: believe what can be read.
        data = os.pread(fd, span.count or WHOLE, span.offset)
    except OSError as error:
        raise failure(error, "error reading file") from error
    return Response(status, headers, data), False


def _gzipped(fd: int, found: os.stat_result, path: str) -> tuple[Response, bool]:
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


# -- helpers of the way up ------------------------------------------------------------------------------------------


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


def _decoded(request: Request) -> AsyncIterator[bytes]:
    """The body without its Content-Encoding. Raises HttpError for a coding that is not known."""
    coding = (request.headers.get("content-encoding") or "").strip().lower()
    if coding in ("", "identity"):
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


def _remove_sources(paths: list[str], destination: str) -> None:
    kept = os.path.realpath(destination)
    for path in dict.fromkeys(paths):
        if os.path.realpath(path) != kept:
            try:
                os.unlink(path)
            except OSError as error:
                raise failure(error, f"the file is composed, but '{shown(path)}' cannot be removed") from error


def _compose_order(data: bytes) -> tuple[list[str], str, str | None]:
    try:
        order = json.loads(data)
        sources, destination, username = order["source_paths"], order["destination"], order.get("username")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise HttpError(400, 'expected JSON {"source_paths": [...], "destination": "..."}') from error
    if (
        not isinstance(sources, list)
        or not all(isinstance(source, str) and source for source in sources)
        or not isinstance(destination, str)
        or not isinstance(username, str | None)
    ):
        raise HttpError(400, "source_paths must be a list of paths, destination a path")
    if not 0 < len(sources) <= MAX_SOURCES or not destination:
        raise HttpError(400, f"between 1 and {MAX_SOURCES} source_paths and a destination are needed")
    return sources, destination, username
