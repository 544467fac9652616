"""Metrics of sandboxes. Routed before `sandboxes`, whose `/sandboxes/{sandbox_id}` would take `/sandboxes/metrics`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from atoll.control.routes.common import FAILURES, CallerHere, ServicesHere, reply, reply_list
from atoll.model.errors import InvalidRequest, SandboxNotFound
from atoll.wire.rest import metrics as rest

router = APIRouter(tags=["sandboxes"])

UnixSeconds = Annotated[int | None, Query(ge=0)]

_MAX_BATCH = 100


@router.get("/sandboxes/metrics", responses={200: {"model": rest.SandboxesWithMetrics}, **FAILURES})
async def metrics_of_many(
    services: ServicesHere, caller: CallerHere, sandbox_ids: Annotated[list[str], Query()]
) -> Response:
    """A reading of each that runs; the others are left out."""
    ids = list(dict.fromkeys(one for part in sandbox_ids for one in part.split(",") if one))
    if len(ids) > _MAX_BATCH:
        raise InvalidRequest(f"sandbox_ids: {len(ids)} ids, more than {_MAX_BATCH}")
    readings = {}
    for sandbox_id in ids:
        try:
            record, series = await services.telemetry.metrics(caller, sandbox_id)
        except SandboxNotFound:
            continue
        if series.last is not None:
            readings[sandbox_id] = rest.metric(series.last.stats, record.limits.cpu_count, series.last.at)
    return reply(rest.SandboxesWithMetrics(sandboxes=readings))


@router.get("/sandboxes/{sandbox_id}/metrics", responses={200: {"model": list[rest.SandboxMetric]}, **FAILURES})
async def metrics_of_one(
    sandbox_id: str, services: ServicesHere, caller: CallerHere, start: UnixSeconds = None, end: UnixSeconds = None
) -> Response:
    """Readings taken every few seconds since it began, and one of now; `start` and `end` are Unix seconds."""
    record, series = await services.telemetry.metrics(caller, sandbox_id)
    readings = series.between(start, end)
    return reply_list([rest.metric(one.stats, record.limits.cpu_count, one.at) for one in readings])
