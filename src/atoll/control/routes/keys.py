"""A team's API keys. Any key of the team may manage them, as any member may in E2B's dashboard."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from atoll.control.access.keys import PREFIX
from atoll.control.routes.common import FAILURES, CallerHere, ServicesHere, no_content, note_made, reply, reply_list
from atoll.control.store import ApiKey
from atoll.wire.rest import keys as rest

router = APIRouter(tags=["api-keys"])


@router.get("/api-keys", responses={200: {"model": list[rest.TeamKey]}, **FAILURES})
async def list_keys(services: ServicesHere, caller: CallerHere) -> Response:
    """Those that were made here, by their masks; the server's configured keys are not among them."""
    keys = await services.keys.all(caller)
    return reply_list([rest.TeamKey(**_facts(key)) for key in keys], keep_nulls=True)


@router.post("/api-keys", status_code=201, responses={201: {"model": rest.CreatedTeamKey}, **FAILURES})
async def add_key(request: Request, body: rest.NewKey, services: ServicesHere, caller: CallerHere) -> Response:
    """A new key of the caller's team, shown this once."""
    made = await services.keys.add(caller.team_id, body.name)
    note_made(request, key_id=made.facts.key_id)
    return reply(rest.CreatedTeamKey(key=made.key, **_facts(made.facts)), 201, keep_nulls=True)


@router.patch("/api-keys/{key_id}", responses=FAILURES)
async def rename_key(key_id: str, body: rest.NewKey, services: ServicesHere, caller: CallerHere) -> Response:
    """A new name for it."""
    await services.keys.rename(caller, key_id, body.name)
    return Response(status_code=200)


@router.delete("/api-keys/{key_id}", status_code=204, responses=FAILURES)
async def revoke_key(key_id: str, services: ServicesHere, caller: CallerHere) -> Response:
    """It is refused from now on."""
    await services.keys.revoke(caller, key_id)
    return no_content()


def _facts(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.key_id,
        "name": key.name,
        "created_at": key.created_at,
        "last_used": key.last_used_at,
        "mask": rest.KeyMask(
            prefix=PREFIX,
            value_length=key.length,
            masked_value_prefix=key.mask_prefix,
            masked_value_suffix=key.mask_suffix,
        ),
    }
