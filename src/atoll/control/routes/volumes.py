"""A team's volumes. Requests for the contents of one do not come here: the edge leads them to its node."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request, Response

from atoll.control.routes.common import (
    FAILURES,
    CallerHere,
    ServicesHere,
    decoded,
    no_content,
    note_made,
    reply,
    reply_list,
)
from atoll.control.store.volumes import Volume
from atoll.wire.rest import volumes as wire

router = APIRouter(tags=["volumes"])

_CONTENT = "/volumecontent/{volume_id}/{kind}"


@router.get("/volumes", responses={200: {"model": list[wire.VolumeOut]}, **FAILURES})
async def list_volumes(services: ServicesHere, caller: CallerHere) -> Response:
    """By name."""
    found = await services.volumes.all(caller)
    return reply_list([wire.VolumeOut(volume_id=one.volume_id, name=one.name) for one in found])


@router.post("/volumes", status_code=201, responses={201: {"model": wire.VolumeAndToken}, **FAILURES})
async def add_volume(request: Request, body: wire.NewVolume, services: ServicesHere, caller: CallerHere) -> Response:
    """An empty one."""
    made = await services.volumes.create(caller, body.name)
    note_made(request, volume_id=made.volume_id)
    return reply(_out(made), 201)


@router.get("/volumes/{volume_id}", responses={200: {"model": wire.VolumeAndToken}, **FAILURES})
async def get_volume(volume_id: str, services: ServicesHere, caller: CallerHere) -> Response:
    """With the token for its contents."""
    return reply(_out(await services.volumes.get(caller, decoded(volume_id))))


@router.delete("/volumes/{volume_id}", status_code=204, responses=FAILURES)
async def remove_volume(volume_id: str, services: ServicesHere, caller: CallerHere) -> Response:
    """409 while a sandbox, a paused one too, has it mounted."""
    await services.volumes.remove(caller, decoded(volume_id))
    return no_content()


@router.api_route(_CONTENT, methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
async def no_content_here(volume_id: str, kind: str) -> Response:
    """Of a volume that no node has."""
    message = f"volume {decoded(volume_id)[:100]!r} not found"
    return Response(json.dumps({"code": "not_found", "message": message}), 404, media_type="application/json")


def _out(volume: Volume) -> wire.VolumeAndToken:
    return wire.VolumeAndToken(
        volume_id=volume.volume_id, name=volume.name, token=volume.token or "", size_mb=volume.size_mib
    )
