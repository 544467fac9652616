"""Files of a sandbox: lists, downloads, uploads, text that is edited, directories made, entries removed.

A file's bytes leave here as a download alone: an attachment of no known type, never a page of this origin.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import accumulate
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from atoll.console.gate import PREFIX
from atoll.console.guest import Entry, SandboxGuest
from atoll.console.routes.sandboxes import running
from atoll.console.view import Streamed, field, page, parts, to, unless_left
from atoll.model.errors import InvalidRequest
from atoll.model.sandbox import SandboxRecord

_SHOWN = 2000
"""Entries of one directory on a page."""
MAX_TEXT = 1 << 20
"""Bytes of a file that is edited in the browser."""
_MAX_PATHS = 1 << 18
"""Characters of their paths together: each stands in the page several times, and a page is made on the event loop."""
_PATH = 4096


async def show(request: Request) -> Response:
    """A directory."""
    record, path = await running(request), _path(request) or "/home/user"
    async with parts(request).guests(record.sandbox_id) as guest:
        entries = await guest.list_directory(path)
    shown = _that_fit(entries)
    return page(
        request,
        "files.html",
        one=record,
        path_inside=path,
        above=posixpath.dirname(path.rstrip("/")) or "/",
        entries=shown,
        more=len(entries) - len(shown),
    )


async def download(request: Request) -> Response:
    """A file, streamed."""
    record, path = await running(request), _path(request)
    name = posixpath.basename(path) or "file"
    stack = AsyncExitStack()
    try:
        guest = await stack.enter_async_context(parts(request).guests(record.sandbox_id))
        length, stream = await unless_left(request.receive, stack.enter_async_context(guest.read(path)))
    except BaseException:
        await stack.aclose()
        raise
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"}
    if length is not None:
        headers["Content-Length"] = str(length)
    return Streamed(stream, stack, headers, "application/octet-stream")


async def upload(request: Request) -> Response:
    """The request's body becomes the file `path`."""
    record, path = await running(request), _path(request)
    if not path or path.endswith("/"):
        raise InvalidRequest("path: name the file")
    length = request.headers.get("content-length", "")
    async with parts(request).guests(record.sandbox_id) as guest:
        await guest.write(path, request.stream(), int(length) if length.isdigit() else None)
    return Response(status_code=204)


async def edit(request: Request) -> Response:
    """A text file in a form. What is not UTF-8 text, or too large, is offered as a download instead."""
    record, path = await running(request), _path(request)
    async with parts(request).guests(record.sandbox_id) as guest:
        text, why = _editable(await unless_left(request.receive, _beginning(guest, path)))
    return page(
        request,
        "edit.html",
        one=record,
        path_inside=path,
        above=posixpath.dirname(path) or "/",
        text=text,
        why=why,
    )


async def _beginning(guest: SandboxGuest, path: str) -> bytes:
    """More than MAX_TEXT only where the file is larger."""
    body = bytearray()
    async with guest.read(path) as (_, stream):
        async for piece in stream:
            body += piece
            if len(body) > MAX_TEXT:
                break
    return bytes(body)


def _editable(body: bytes) -> tuple[str, str]:
    """The text, or "" and why it cannot be edited."""
    if len(body) > MAX_TEXT:
        return "", f"it is larger than {MAX_TEXT >> 20} MiB"
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return "", "it is no UTF-8 text"
    if "\0" in text or "\r" in text:
        # A browser's text field knows neither: saving would change the file where nothing was edited.
        return "", "it has NUL or carriage return (CR) characters, which a browser would change"
    return text, ""


async def make_directory(request: Request) -> Response:
    """Below the directory that is shown."""
    record, above, name = await running(request), _path(request), field(request, "name", 255)
    async with parts(request).guests(record.sandbox_id) as guest:
        await guest.make_directory(posixpath.join(above, name))
    return _to_directory(record, above)


async def remove(request: Request) -> Response:
    """A file, or a directory with all that is in it."""
    record, path = await running(request), _path(request)
    if not path.startswith("/"):
        raise InvalidRequest("path: what is removed is named in full")
    async with parts(request).guests(record.sandbox_id) as guest:
        await guest.remove(path)
    return _to_directory(record, posixpath.dirname(path.rstrip("/")) or "/")


def _that_fit(entries: Sequence[Entry]) -> list[Entry]:
    """The first ones, as many as a page has room for."""
    sums = accumulate(len(one.path) + len(one.name) + len(one.target) for one in entries[:_SHOWN])
    return [one for one, so_far in zip(entries, sums, strict=False) if so_far <= _MAX_PATHS]


def _path(request: Request) -> str:
    """Of the query, never of a form: a browser changes line breaks there, and it would be another file's name."""
    path = request.query_params.get("path", "")
    if len(path) > _PATH or "\0" in path:
        raise InvalidRequest("path: no path of a file")
    return path


def _to_directory(record: SandboxRecord, path: str) -> Response:
    return to(f"/sandboxes/{record.sandbox_id}/files?path={quote(path)}")


_FILES = f"{PREFIX}/sandboxes/{{id}}/files"
ROUTES = [
    Route(_FILES, show),
    Route(f"{_FILES}/download", download),
    Route(f"{_FILES}/upload", upload, methods=["POST"]),
    Route(f"{_FILES}/edit", edit),
    Route(f"{_FILES}/directory", make_directory, methods=["POST"]),
    Route(f"{_FILES}/remove", remove, methods=["POST"]),
]
