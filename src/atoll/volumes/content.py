"""The interface of a volume's contents, as E2B's clients speak it: `/volumecontent/{id}/{path|dir|file}?path=…`.

Served by a program of the volume's own (see `confined`). The token of the volume is the permission. Bodies are streamed
both ways; a file that is written appears whole, and is on the machine's disk when that is answered.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import hmac
import json
import os
import posixpath
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TypeVar

from atoll.guest.files import negotiation
from atoll.guest.files.upload_body import decoded
from atoll.http1.server import FileBody, HttpError, Request, Response, json_object
from atoll.volumes.tree import MAX_PATH, Entry, Owner, Tree

MAX_ID = 65535
"""Users and groups of a sandbox."""
_MAX_MODE = 0o7777
_MAX_DEPTH = 1 << 20
_MAX_BODY = 64 << 10
_WHOLE = 128 << 10
"""Files up to this many bytes are sent with their head."""

_CODES = {
    400: "bad_request", 401: "unauthorized", 404: "not_found", 405: "method_not_allowed", 408: "timeout",
    409: "conflict", 413: "too_large", 415: "unsupported", 416: "range_not_satisfiable", 507: "no_space",
}  # fmt: skip
_STATUS = {
    errno.ENOENT: 404, errno.ENOTDIR: 404, errno.EEXIST: 409, errno.ENOTEMPTY: 409, errno.EBUSY: 409,
    errno.EISDIR: 400, errno.EINVAL: 400, errno.ELOOP: 400, errno.ENAMETOOLONG: 400, errno.EPERM: 400,
    errno.EACCES: 400, errno.ENXIO: 400, errno.ENOSPC: 507, errno.EDQUOT: 507, errno.EFBIG: 507, errno.E2BIG: 400,
}  # fmt: skip
Handler = Callable[[Request], Awaitable[Response]]
_T = TypeVar("_T")


class VolumeContent:
    """The handler of every connection. `token_digest`: SHA-256 of the volume's token, as hex."""

    def __init__(self, volume_id: str, token_digest: str, tree: Tree) -> None:
        self._prefix = f"/volumecontent/{volume_id}/"
        self._digest = token_digest
        self._tree = tree
        self._routes: Mapping[tuple[str, str], Handler] = {
            ("GET", "path"): self._stat,
            ("PATCH", "path"): self._change,
            ("DELETE", "path"): self._remove,
            ("GET", "dir"): self._list,
            ("POST", "dir"): self._make_directory,
            ("GET", "file"): self._read,
            ("HEAD", "file"): self._read,
            ("PUT", "file"): self._write,
        }

    async def __call__(self, request: Request) -> Response:
        """See http1's Handler. Errors are `{"code": text, "message": text}`."""
        try:
            return await self._answer(request)
        except HttpError as error:
            return _error(error.status, error.message, error.headers)
        except OSError as error:
            status = _STATUS.get(error.errno or 0, 500)
            reason = (error.strerror or "failed").removeprefix("openat2: ").lower()
            if status == 507:
                reason = "no space left in the volume"
            return _error(status, f"path {_shown(request.query.get('path', ''))}: {reason}")

    async def _answer(self, request: Request) -> Response:
        if not self._is_allowed(request):
            raise HttpError(401, "the volume's token is missing or wrong")
        kind = request.path.removeprefix(self._prefix)
        if kind == request.path or (handler := self._routes.get((request.method, kind))) is None:
            known = any(one == kind for _, one in self._routes)
            raise HttpError(405 if known else 404, f"{request.method} {request.path[:200]}: there is no such call")
        return await handler(request)

    def _is_allowed(self, request: Request) -> bool:
        scheme, _, token = (request.headers.get("authorization") or "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("latin-1", "replace")).hexdigest()
        return scheme.lower() == "bearer" and hmac.compare_digest(digest, self._digest)

    # -- what there is -------------------------------------------------------------------------------------------------

    async def _stat(self, request: Request) -> Response:
        return Response.json(_out(await asyncio.to_thread(self._tree.entry, _path(request))))

    async def _list(self, request: Request) -> Response:
        path, depth = _path(request), _number(request.query, "depth", _MAX_DEPTH)
        if depth == 0:
            raise HttpError(400, "depth must be at least 1")
        try:
            directory = await asyncio.to_thread(self._tree.open_directory, path)
        except NotADirectoryError as error:
            raise HttpError(400, f"path {_shown(path)}: it is no directory") from error
        batches = self._tree.listing(directory, path, 1 if depth is None else depth)
        return Response(200, (("content-type", "application/json"),), _array(batches))

    async def _read(self, request: Request) -> Response:
        descriptor = await asyncio.to_thread(self._tree.open_file, _path(request))
        try:
            found = os.fstat(descriptor)
            size, tag = found.st_size, negotiation.etag(found.st_mtime_ns, found.st_size)
            headers = [("content-type", "application/octet-stream"), ("accept-ranges", "bytes"), ("etag", tag)]
            status, span = 200, negotiation.Span(0, size)
            wished = request.headers.get("range")
            applies = negotiation.range_still_applies(request.headers.get("if-range"), tag, found.st_mtime_ns)
            if wished is not None and applies:
                try:
                    part = negotiation.parse_range(wished, size)
                except negotiation.RangeNotSatisfiable as error:
                    raise HttpError(416, str(error), (("content-range", f"bytes */{size}"),)) from error
                if part is not None:
                    status, span = 206, part
                    headers.append(("content-range", span.content_range(size)))
            if span.count <= _WHOLE:
                return Response(status, headers, await asyncio.to_thread(os.pread, descriptor, span.count, span.offset))
            body = FileBody(os.fdopen(os.dup(descriptor), "rb", 0), span.offset, span.count)
            return Response(status, headers, body)
        finally:
            os.close(descriptor)

    # -- changes -------------------------------------------------------------------------------------------------------

    async def _make_directory(self, request: Request) -> Response:
        path, owner, force = _path(request), _owner(request.query), _flag(request.query, "force")
        made = await asyncio.to_thread(self._tree.make_directory, path, owner, parents=force)
        return Response.json(_out(made), 201)

    async def _change(self, request: Request) -> Response:
        wished = json_object(await request.body.read(_MAX_BODY))
        given = {name: value for name in Owner._fields if (value := wished.get(name)) is not None}
        if any(type(value) is not int for value in given.values()):
            raise HttpError(400, "uid, gid and mode are whole numbers")
        owner = _owner({name: str(value) for name, value in given.items()})
        return Response.json(_out(await asyncio.to_thread(self._tree.change, _path(request), owner)))

    async def _remove(self, request: Request) -> Response:
        await asyncio.to_thread(self._tree.remove, _path(request))
        return Response(204)

    async def _write(self, request: Request) -> Response:
        path, owner, force = _path(request), _owner(request.query), _flag(request.query, "force")
        begun = asyncio.ensure_future(asyncio.to_thread(self._tree.upload, path, owner, parents=force))
        try:
            upload = await _carried_out(begun)
        except asyncio.CancelledError:  # the client has left while the file was made
            if not begun.cancelled() and begun.exception() is None:
                begun.result().close()
            raise
        try:
            async for chunk in decoded(request):
                await _carried_out(asyncio.to_thread(upload.write, chunk))
            return Response.json(_out(await _carried_out(asyncio.to_thread(upload.commit))), 201)
        finally:
            upload.close()


async def _carried_out(work: Awaitable[_T]) -> _T:
    """A thread's work goes on when its caller is cancelled: its end is waited for, as it uses what he closes."""
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait((running,))
        if not running.cancelled():
            running.exception()  # its caller has left: nobody asks for it
        raise


def _path(request: Request) -> str:
    """As a path from the top of the volume: `/a/b`."""
    text = request.query.get("path", "")
    if not text or "\0" in text or len(os.fsencode(text)) > MAX_PATH:
        raise HttpError(400, f"path: one of 1 to {MAX_PATH} bytes without NUL is needed")
    return "/" + posixpath.normpath(f"/{text}").strip("/")


def _owner(query: Mapping[str, str]) -> Owner:
    return Owner(_number(query, "uid", MAX_ID), _number(query, "gid", MAX_ID), _number(query, "mode", _MAX_MODE))


def _number(query: Mapping[str, str], name: str, most: int) -> int | None:
    text = query.get(name)
    if text is None or text == "":
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > most:
        raise HttpError(400, f"{name}: a whole number from 0 to {most} is needed")
    return int(text)


def _flag(query: Mapping[str, str], name: str) -> bool:
    text = query.get(name, "false").lower()
    if text not in ("true", "false", "1", "0", ""):
        raise HttpError(400, f"{name}: true or false is needed")
    return text in ("true", "1")


def _out(entry: Entry) -> dict[str, object]:
    found = entry.found
    out: dict[str, object] = {
        "name": _text(posixpath.basename(entry.path)) or "/",
        "type": entry.kind,
        "path": _text(entry.path),
        "size": found.st_size,
        "mode": found.st_mode & _MAX_MODE,
        "uid": found.st_uid,
        "gid": found.st_gid,
        "atime": _time(found.st_atime_ns),
        "mtime": _time(found.st_mtime_ns),
        "ctime": _time(found.st_ctime_ns),
    }
    return out if entry.target is None else out | {"target": _text(entry.target)}


def _text(name: str) -> str:
    """Bytes that are no UTF-8 are shown as U+FFFD."""
    return os.fsencode(name).decode("utf-8", "replace")


def _time(ns: int) -> str:
    """Programs may set any; what a calendar does not know becomes its first moment."""
    try:
        return datetime.fromtimestamp(ns // 1000 / 1e6, UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return "1970-01-01T00:00:00Z"


async def _array(batches: Iterator[list[Entry]]) -> AsyncIterator[bytes]:
    """Entries as one JSON array, without having all of them at once."""
    before = b"["
    try:
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            if batch:
                yield before + b",".join(json.dumps(_out(one), separators=(",", ":")).encode() for one in batch)
                before = b","
        yield b"[]" if before == b"[" else b"]"
    finally:
        batches.close()  # type: ignore[attr-defined]  # a generator


def _shown(path: str) -> str:
    return repr(_text(path)[:200])


def _error(status: int, message: str, headers: object = ()) -> Response:
    body = {"code": _CODES.get(status, "internal_error"), "message": message}
    return Response.json(body, status, headers)  # type: ignore[arg-type]
