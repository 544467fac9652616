"""Logs of sandboxes, in the forms of v1 and v2."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from atoll.control.routes.common import FAILURES, CallerHere, ServicesHere, reply
from atoll.control.telemetry.log_query import MAX_LIMIT, LogQuery
from atoll.model.logs import LogLevel
from atoll.wire.rest import logs as rest

router = APIRouter(tags=["sandboxes"])

UnixMilliseconds = Annotated[int | None, Query(ge=0)]

_MAX_LOGS = 10_000


@router.get("/sandboxes/{sandbox_id}/logs", responses={200: {"model": rest.SandboxLogs}, **FAILURES})
async def logs_v1(
    sandbox_id: str,
    services: ServicesHere,
    caller: CallerHere,
    start: UnixMilliseconds = None,
    limit: Annotated[int, Query(ge=0, le=_MAX_LOGS)] = 1000,
) -> Response:
    """From `start` on, oldest first; each entry also as a line of JSON, which the CLI prints."""
    entries = await services.telemetry.logs(caller, sandbox_id, LogQuery(cursor_ms=start, limit=limit))
    return reply(rest.logs(entries))


@router.get("/v2/sandboxes/{sandbox_id}/logs", responses={200: {"model": rest.SandboxLogsV2}, **FAILURES})
async def logs_v2(
    sandbox_id: str,
    services: ServicesHere,
    caller: CallerHere,
    cursor: UnixMilliseconds = None,
    limit: Annotated[int, Query(ge=0, le=MAX_LIMIT)] = 1000,
    direction: Literal["forward", "backward"] = "forward",
    level: LogLevel = LogLevel.DEBUG,
    search: Annotated[str, Query(max_length=256)] = "",
) -> Response:
    """One page, either way from `cursor`; also of a sandbox that has ended, as long as it is remembered."""
    query = LogQuery(cursor, direction == "backward", level, search, limit)
    entries = await services.telemetry.logs(caller, sandbox_id, query)
    return reply(rest.SandboxLogsV2(logs=[rest.log_entry(one) for one in entries]))
