"""`GET /metrics`: Prometheus' text format, for the operator alone."""

from __future__ import annotations

from fastapi import APIRouter, Response

from atoll.control.access.auth import DEFAULT_TEAM_ID
from atoll.control.routes.common import FAILURES, CallerHere, ServicesHere
from atoll.control.telemetry.figures import CONTENT_TYPE
from atoll.model.errors import Forbidden

router = APIRouter(tags=["operation"])


@router.get("/metrics", responses={200: {"content": {"text/plain": {}}}, **FAILURES}, response_class=Response)
async def figures(services: ServicesHere, caller: CallerHere) -> Response:
    """The whole machine's: only with a key of the operator's team (the configured or generated one)."""
    if caller.team_id != DEFAULT_TEAM_ID:
        raise Forbidden("these figures are of all teams", hint="use a key of ATOLL_API_KEYS or DATA_DIR/api-key")
    return Response(services.figures.text(), media_type=CONTENT_TYPE)
