"""Snapshots and forks. Deleting a snapshot is deleting a template (`templates`)."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from atoll.control.routes.common import FAILURES, CallerHere, ServicesHere, decoded, note_made, reply, reply_list
from atoll.control.sandboxes.listing import parse_offset_token, slice_page
from atoll.model.errors import AtollError
from atoll.model.sandbox import PauseMode
from atoll.wire.rest import sandboxes as sandbox_bodies
from atoll.wire.rest import snapshots as rest
from atoll.wire.rest.errors import error_reply

router = APIRouter(tags=["snapshots"])


@router.post(
    "/sandboxes/{sandbox_id}/snapshots", status_code=201, responses={201: {"model": rest.Snapshot}, **FAILURES}
)
async def create_snapshot(
    request: Request,
    sandbox_id: str,
    services: ServicesHere,
    caller: CallerHere,
    body: rest.NewSnapshot | None = None,
) -> Response:
    """`memory` left out: with memory where the tier can."""
    asked = body or rest.NewSnapshot()
    mode = None if asked.memory is None else PauseMode.MEMORY if asked.memory else PauseMode.FILESYSTEM
    made = await services.snapshots.create(caller, sandbox_id, asked.name or None, mode)
    note_made(request, snapshot_id=made.snapshot_id)
    return reply(rest.Snapshot(snapshot_id=made.snapshot_id, names=list(made.names)), 201)


@router.get("/snapshots", responses={200: {"model": list[rest.Snapshot]}, **FAILURES})
async def list_snapshots(
    services: ServicesHere,
    caller: CallerHere,
    sandbox_id: Annotated[str | None, Query(alias="sandboxID", max_length=64)] = None,
    name: Annotated[str | None, Query(max_length=400)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
    next_token: Annotated[str | None, Query(alias="nextToken")] = None,
) -> Response:
    """The team's, newest first, in pages."""
    found = await services.snapshots.page(caller, sandbox_id, name)
    items, token = slice_page(found, limit, parse_offset_token(next_token))
    shown = [rest.Snapshot(snapshot_id=one.snapshot_id, names=list(one.names)) for one in items]
    return reply_list(shown, {"X-Next-Token": token} if token else None)


@router.post("/sandboxes/{sandbox_id}/fork", status_code=201, responses={201: {"model": list[rest.Fork]}, **FAILURES})
async def fork(
    request: Request, sandbox_id: str, services: ServicesHere, caller: CallerHere, body: rest.NewFork | None = None
) -> Response:
    """Sandboxes with what this one has now; each outcome by itself."""
    asked = body or rest.NewFork()
    outcomes = await services.snapshots.fork(caller, decoded(sandbox_id), asked.timeout, asked.count)
    made = [one.sandbox_id for one in outcomes if not isinstance(one, AtollError)]
    note_made(request, **{f"made_{number}": one for number, one in enumerate(made, 1)})
    forks = []
    for outcome in outcomes:
        if isinstance(outcome, AtollError):
            refused = error_reply(outcome)
            forks.append(rest.Fork(error=rest.ForkError(code=refused.status, message=str(outcome))))
        else:
            unenforced = services.sandboxes.unenforced(outcome)
            forks.append(rest.Fork(sandbox=sandbox_bodies.sandbox(outcome, services.policy.domain, unenforced)))
    return reply_list(forks, status=201)
