"""Teams; the CLI asks for them to find a key's, dashboards for what their sandboxes came to."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from atoll.control.access.teams import Usage
from atoll.control.routes.common import FAILURES, CallerHere, ServicesHere, decoded, reply, reply_list
from atoll.model.errors import InvalidRequest
from atoll.wire.rest import teams as rest

router = APIRouter(tags=["teams"])

UnixSeconds = Annotated[int | None, Query(ge=0, le=2**40)]


@router.get("/teams", responses={200: {"model": list[rest.Team]}, **FAILURES})
async def list_teams(services: ServicesHere, caller: CallerHere) -> Response:
    """The one team of the key that asks, with that key."""
    name = await services.teams.name(caller)
    return reply_list([rest.Team(team_id=caller.team_id, name=name, api_key=caller.key)])


@router.get("/teams/{team_id}/metrics", responses={200: {"model": list[rest.TeamMetric]}, **FAILURES})
async def team_metrics(
    team_id: str, services: ServicesHere, caller: CallerHere, start: UnixSeconds = None, end: UnixSeconds = None
) -> Response:
    """How many sandboxes at once at most, and how many began a second, stretch by stretch; the last day by default."""
    found = await services.teams.usage(caller, decoded(team_id), start, end)
    return reply_list(
        [
            rest.TeamMetric(
                timestamp=one.at,
                timestamp_unix=int(one.at.timestamp()),
                concurrent_sandboxes=one.concurrent,
                sandbox_start_rate=one.start_rate,
            )
            for one in found
        ]
    )


@router.get("/teams/{team_id}/metrics/max", responses={200: {"model": rest.MaxTeamMetric}, **FAILURES})
async def max_team_metric(
    team_id: str,
    services: ServicesHere,
    caller: CallerHere,
    metric: Literal["concurrent_sandboxes", "sandbox_start_rate"],
    start: UnixSeconds = None,
    end: UnixSeconds = None,
) -> Response:
    """The highest stretch of the same figures, the first of them if several are."""
    found = await services.teams.usage(caller, decoded(team_id), start, end)
    if not found:
        raise InvalidRequest("nothing is remembered of that time", hint="ask for a time within the last seven days")

    def value(one: Usage) -> float:
        return one.concurrent if metric == "concurrent_sandboxes" else one.start_rate

    top = max(found, key=value)
    return reply(rest.MaxTeamMetric(timestamp=top.at, timestamp_unix=int(top.at.timestamp()), value=value(top)))
