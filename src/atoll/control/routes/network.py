"""What a sandbox may reach, changed while it runs, and what it reached."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from atoll.control.routes import ordering
from atoll.control.routes.common import FAILURES, CallerHere, ServicesHere, no_content, reply_list
from atoll.wire.rest import network as rest

router = APIRouter(tags=["network"])

_CONNECTIONS = {200: {"model": list[rest.Connection]}, **FAILURES}


@router.put("/sandboxes/{sandbox_id}/network", status_code=204, responses=FAILURES)
async def update_network(
    sandbox_id: str, services: ServicesHere, caller: CallerHere, body: rest.NetworkUpdate | None = None
) -> Response:
    """Replaces all of it: what is left out is cleared. Connections that it forbids are cut."""
    given = body or rest.NetworkUpdate()
    ordering.refuse_create_only_fields(given)
    policy = ordering.network_from(given.allow_internet_access, given)
    await services.network.set_policy(caller, sandbox_id, policy)
    return no_content()


@router.get("/sandboxes/{sandbox_id}/network/connections", responses=_CONNECTIONS)
async def list_connections(
    sandbox_id: str,
    services: ServicesHere,
    caller: CallerHere,
    limit: Annotated[int, Query(ge=1, le=2000)] = 1000,
    allowed: bool | None = None,
) -> Response:
    """The newest `limit` connections and DNS questions of this server's time, oldest first. Atoll's own."""
    found = await services.network.connections(caller, sandbox_id)
    chosen = [one for one in found if allowed is None or one.allowed is allowed]
    return reply_list([rest.connection(one) for one in chosen[-limit:]])
