"""The documents at /docs, as `make docs` has put them into the package. They need no key and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import mimetypes
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from atoll.model.errors import NotFound

router = APIRouter(include_in_schema=False)

_ARCHIVE = Path(__file__).parents[1] / "documents.zip"
# The theme has a few scripts in its pages, which are named by their hashes; all else is files of the package.
_POLICY = (
    "default-src 'none'; script-src 'self'{hashes}; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; worker-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str | None
    headers: Mapping[str, str]


@router.get("/openapi.json")
def openapi(request: Request) -> Response:
    """The interface as OpenAPI has it. Made once, in half a second: in a thread."""
    return JSONResponse(request.app.openapi())


@router.get("/docs")
async def docs() -> Response:
    """To the first page; links in it are relative."""
    return RedirectResponse("/docs/index.html")


@router.get("/docs/{path:path}")
def page(path: str, request: Request) -> Response:
    """A file of the site; 304 where the client has it. Raises NotFound."""
    found = _site().get(path or "index.html")
    if found is None:
        raise NotFound(f"there is no such document: {path[:200]}")
    if found.headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=found.headers)
    return Response(found.content, headers=found.headers, media_type=found.media_type)


def _site() -> Mapping[str, _File]:
    """Raises NotFound: it was not built."""
    try:
        return _unpacked(_ARCHIVE.stat().st_mtime_ns)
    except FileNotFoundError:
        why = "this server has no documents: `make docs` builds them into the package, a wheel has them"
        raise NotFound(why) from None


@lru_cache(1)
def _unpacked(_changed_at: int) -> Mapping[str, _File]:
    """All files, kept: 5 MiB."""
    with zipfile.ZipFile(_ARCHIVE) as packed:
        return {name: _file(name, packed.read(name)) for name in packed.namelist()}


def _file(name: str, content: bytes) -> _File:
    begun = content.split(b"<script>")[1:] if name.endswith(".html") else ()
    scripts = dict.fromkeys(one.partition(b"</script>")[0] for one in begun)
    hashes = "".join(f" 'sha256-{base64.b64encode(hashlib.sha256(one).digest()).decode()}'" for one in scripts)
    headers = {
        **_HEADERS,
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        "Content-Security-Policy": _POLICY.format(hashes=hashes),
    }
    return _File(content, mimetypes.guess_type(name)[0], headers)
