"""The first page: what the team has, and how the machine is."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from atoll.console.gate import PREFIX
from atoll.console.view import caller, page, parts
from atoll.control.access.auth import DEFAULT_TEAM_ID
from atoll.control.sandboxes.listing import ListQuery
from atoll.model.lifecycle import shown_state
from atoll.model.sandbox import SandboxState

_NEWEST = 5


async def show(request: Request) -> Response:
    """Counts, the newest sandboxes and events, and the use of the last day."""
    services, who = parts(request).services, caller(request)
    found = await services.sandboxes.page(who, ListQuery(limit=100))
    events = await services.events.events(who, types=[], offset=0, limit=10, ascending=False)
    usage = await services.teams.usage(who, who.team_id, None, None)
    is_operator = who.team_id == DEFAULT_TEAM_ID
    return page(
        request,
        "overview.html",
        team=await services.teams.name(who),
        running=found.total_running,
        paused=sum(shown_state(one) is SandboxState.PAUSED for one in found.items),
        peak=max((one.concurrent for one in usage), default=0),
        most=services.policy.max_sandboxes,
        newest=found.items[:_NEWEST],
        events=events,
        nodes=parts(request).nodes.loads() if is_operator else [],
    )


ROUTES = [Route(f"{PREFIX}/", show)]
