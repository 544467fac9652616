"""The team's keys, the nodes (for the operator), and how clients connect."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from atoll.console.gate import PREFIX
from atoll.console.view import caller, field, page, parts, to
from atoll.control.access.auth import DEFAULT_TEAM_ID
from atoll.model.errors import Forbidden, InvalidRequest


async def show_keys(request: Request) -> Response:
    """By their masks."""
    return await _keys(request, "")


async def add_key(request: Request) -> Response:
    """Shows the new key, this once."""
    name = field(request, "name", 255)
    if not name:
        raise InvalidRequest("name: give the key a name")
    made = await parts(request).services.keys.add(caller(request).team_id, name)
    request.state.made = {"key_id": made.facts.key_id}
    return await _keys(request, made.key)


async def revoke_key(request: Request) -> Response:
    """It is refused from now on, in sessions of the console too."""
    await parts(request).services.keys.revoke(caller(request), request.path_params["key"])
    return to("/keys")


async def _keys(request: Request, new: str) -> Response:
    services, who = parts(request).services, caller(request)
    return page(
        request, "keys.html", keys=await services.keys.all(who), team=await services.teams.name(who), who=who, new=new
    )


async def show_nodes(request: Request) -> Response:
    """The machines that run sandboxes. Raises Forbidden: they are the operator's."""
    if caller(request).team_id != DEFAULT_TEAM_ID:
        raise Forbidden("nodes are the operator's", hint="log in with a key of ATOLL_API_KEYS or DATA_DIR/api-key")
    services, nodes = parts(request).services, parts(request).nodes
    return page(
        request,
        "nodes.html",
        nodes=[(one, nodes.total(one.node_id)) for one in nodes.loads()],
        limits=[
            ("One sandbox", services.policy.maximum),
            ("One team", services.policy.team),
        ],
    )


async def connect(request: Request) -> Response:
    """Snippets for this address."""
    return page(request, "connect.html", url=f"{request.url.scheme}://{request.headers.get('host', '')}")


ROUTES = [
    Route(f"{PREFIX}/keys", show_keys),
    Route(f"{PREFIX}/keys", add_key, methods=["POST"]),
    Route(f"{PREFIX}/keys/{{key}}/revoke", revoke_key, methods=["POST"]),
    Route(f"{PREFIX}/nodes", show_nodes),
    Route(f"{PREFIX}/connect", connect),
]
