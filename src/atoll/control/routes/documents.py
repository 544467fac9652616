"""The documents at /docs, as `make docs` has put them into the package. They need no key and nothing from elsewhere."""

from __future__ import annotations

import mimetypes
import zipfile
from importlib import resources

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from atoll.model.errors import NotFound

router = APIRouter(include_in_schema=False)

_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # The theme has a few scripts and styles of its own in its pages; all of it is the package's.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'",
}


@router.get("/openapi.json")
def openapi(request: Request) -> Response:
    """The interface as OpenAPI has it. Made once, in half a second: in a thread, like all here."""
    return JSONResponse(request.app.openapi())


@router.get("/docs")
def docs() -> Response:
    """To the first page; links in it are relative."""
    return RedirectResponse("/docs/index.html")


@router.get("/docs/{path:path}")
def page(path: str) -> Response:
    """A file of the site. Raises NotFound."""
    site = resources.files("atoll.control") / "documents.zip"
    if not site.is_file():
        raise NotFound("this server has no documents: `make docs` builds them into the package, a wheel has them")
    with site.open("rb") as file, zipfile.ZipFile(file) as packed:
        try:
            data = packed.read(path or "index.html")
        except KeyError:
            raise NotFound(f"there is no such document: {path[:200]}") from None
    return Response(data, media_type=mimetypes.guess_type(path or "index.html")[0], headers=_HEADERS)
