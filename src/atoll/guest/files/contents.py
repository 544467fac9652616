"""`GET /files`, `POST /files`, `POST /files/compose`: contents in and out, never whole in memory.

Down: `downloads` makes the answer.
Up: multipart (field `file`; the name is the path unless the query has one) or octet-stream, either of them gzipped if
`Content-Encoding` says so; `X-Metadata-*` headers become attributes of the file. `arrivals` unpacks, `uploads` makes
each file appear whole. Everything is done with root's rights for the user's benefit; the reason is in `filesystem.py`.

Access: the token in `X-Access-Token`, or a signature in the query (`signing.py`). The routes are open for the router,
the check is made here.
"""

from __future__ import annotations

import hmac
import json
import os
import time
from collections.abc import AsyncIterator, Callable

from atoll.guest.files import downloads, negotiation, signing
from atoll.guest.files import upload_body as arrivals
from atoll.guest.files.copying import copy_content
from atoll.guest.files.multipart import MultipartError, MultipartParser, PartBegin, boundary_of
from atoll.guest.files.paths import shown
from atoll.guest.files.uploads import Upload, failure
from atoll.guest.process.users import User
from atoll.guest.server import Router
from atoll.guest.state import GuestState
from atoll.http1.server import HttpError, Request, Response
from atoll.wire.envd.connect import HTTP_STATUS, ConnectError

OPEN_ROUTES = (("GET", "/files"), ("HEAD", "/files"), ("POST", "/files"))
"""For the router: these need no access token there, because a signature will do."""

MAX_COMPOSE = 1024 * 1024
MAX_SOURCES = 10_000


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
        fd, found = downloads.open_regular(path)
        try:
            if coding == "gzip" and request.method == "GET" and not downloads.is_partial(headers):
                answer, keeps = downloads.gzipped(fd, found, path)
            else:
                answer, keeps = downloads.plain(fd, found, path, headers)
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
        metadata = arrivals.metadata_of(request.headers)
        kind = (request.headers.get("content-type") or "").partition(";")[0].strip().lower()
        chunks = arrivals.decoded(request)
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
        upload = Upload.begin(self._resolve(path, user), user, metadata, self._state.tier.metadata)
        upload.expected = _announced(request) if arrivals.is_plain(request) else None
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
        upload = Upload.begin(path, user, metadata, self._state.tier.metadata)
        upload.request_size = _announced(request)
        return upload

    # -- compose ----------------------------------------------------------------------------------------------------

    async def compose(self, request: Request) -> Response:
        """Several files become one, copied inside the kernel; the sources are removed when all of it is there."""
        sources, destination, username = _compose_order(await request.body.read(MAX_COMPOSE))
        try:
            user = self._state.user_named(username or request.query.get("username"))
        except ConnectError as error:
            raise HttpError(HTTP_STATUS[error.code], error.message) from error
        paths = [self._resolve(source, user) for source in sources]
        upload = Upload.begin(self._resolve(destination, user), user, {}, self._state.tier.metadata)
        try:
            for path in paths:
                fd, found = downloads.open_regular(path)
                try:
                    upload.size += await copy_content(fd, upload.fd)
                except OSError as error:
                    raise upload.failure(error, found.st_size) from error
                finally:
                    os.close(fd)
            info = await upload.commit()
        finally:
            upload.abort()
        _remove_sources(paths, upload.path)
        return Response.json(info)


def _announced(request: Request) -> int | None:
    """Bytes of the body, where the request says it."""
    length = request.headers.get("content-length")
    return None if length is None else int(length)


def _remove_sources(paths: list[str], destination: str) -> None:
    kept = os.path.realpath(destination)
    for path in dict.fromkeys(paths):
        if os.path.realpath(path) != kept:
            try:
                os.unlink(path)
            except OSError as error:
                raise failure(error, "the file is composed, but this source of it cannot be removed:", path) from error


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
