"""Is the server up."""

from __future__ import annotations

from fastapi import APIRouter, Response

from atoll.control.routes.common import no_content

router = APIRouter()


@router.get("/health", status_code=204)
async def health() -> Response:
    """204 as soon as requests are answered. Needs no key."""
    return no_content()
