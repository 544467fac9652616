"""Teams; the CLI asks for them to find a key's."""

from __future__ import annotations

from fastapi import APIRouter, Response

from atoll.control.routes.common import FAILURES, CallerHere, ServicesHere, reply_list
from atoll.wire import rest

router = APIRouter(tags=["teams"])


@router.get("/teams", responses={200: {"model": list[rest.Team]}, **FAILURES})
async def list_teams(services: ServicesHere, caller: CallerHere) -> Response:
    """The one team of the key that asks, with that key."""
    name = await services.teams.name(caller)
    return reply_list([rest.Team(team_id=caller.team_id, name=name, api_key=caller.key)])
