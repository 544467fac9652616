"""Sandboxes: create, look, time, end (connect is in `pausing`). v1 (older SDKs, the CLI) and v2 forms side by side."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request, Response

from atoll.control.access.auth import Caller
from atoll.control.routes import ordering
from atoll.control.routes.common import FAILURES, CallerHere, ServicesHere, no_content, note_made, reply, reply_list
from atoll.control.routes.leaving import Owed, cancelled_with
from atoll.control.sandboxes.listing import ListQuery, parse_metadata, parse_page_token
from atoll.control.sandboxes.orders import CreateOrder
from atoll.control.services import Services
from atoll.model.sandbox import SandboxState
from atoll.wire.rest import sandboxes as rest

router = APIRouter(tags=["sandboxes"])

IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", pattern=r"^[A-Za-z0-9_.:-]{1,255}$")]

_MADE = {201: {"model": rest.Sandbox}, **FAILURES}
_LIST = {200: {"model": list[rest.ListedSandbox]}, **FAILURES}
_ALL = 1_000_000


# Create


@router.post("/v2/sandboxes", status_code=201, responses=_MADE)
async def create_v2(
    request: Request, body: rest.NewSandboxV2, services: ServicesHere, caller: CallerHere, key: IdempotencyKey = None
) -> Response:
    """A secure sandbox; lives 300 s by default."""
    order = ordering.order_from(body, rest.V2_TIMEOUT_S, secure=True, idempotency_key=key)
    return await _create(request, services, caller, order)


@router.post("/sandboxes", status_code=201, responses=_MADE)
async def create_v1(
    request: Request, body: rest.NewSandbox, services: ServicesHere, caller: CallerHere, key: IdempotencyKey = None
) -> Response:
    """Secure only when asked; lives 15 s by default."""
    order = ordering.order_from(body, rest.V1_TIMEOUT_S, secure=bool(body.secure), idempotency_key=key)
    return await _create(request, services, caller, order)


# Lists


@router.get("/sandboxes", responses=_LIST)
async def list_v1(services: ServicesHere, caller: CallerHere, metadata: str | None = None) -> Response:
    """The running ones, all in one answer."""
    query = ListQuery(states=frozenset({SandboxState.RUNNING}), metadata=parse_metadata(metadata), limit=_ALL)
    page = await services.sandboxes.page(caller, query)
    return reply_list([rest.listed(record) for record in page.items])


@router.get("/v2/sandboxes", responses=_LIST)
async def list_v2(
    services: ServicesHere,
    caller: CallerHere,
    metadata: str | None = None,
    state: Annotated[list[str] | None, Query()] = None,
    order: Literal["asc", "desc"] = "desc",
    started_after: Annotated[datetime | None, Query(alias="startedAfter")] = None,
    template: Annotated[str | None, Query(max_length=512)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
    next_token: Annotated[str | None, Query(alias="nextToken")] = None,
) -> Response:
    """One page, newest first unless asked; the next one's token is in X-Next-Token."""
    query = ListQuery(
        states=ordering.states_from(state),
        metadata=parse_metadata(metadata),
        template=template,
        started_after=ordering.aware(started_after),
        ascending=order == "asc",
        limit=limit,
        after=parse_page_token(next_token) if next_token else None,
    )
    page = await services.sandboxes.page(caller, query)
    headers = {"X-Total-Running": str(page.total_running)} | (
        {"X-Next-Token": page.next_token} if page.next_token else {}
    )
    return reply_list([rest.listed(record) for record in page.items], headers)


# One sandbox


@router.get("/sandboxes/{sandbox_id}", responses={200: {"model": rest.SandboxDetail}, **FAILURES})
async def get_sandbox(sandbox_id: str, services: ServicesHere, caller: CallerHere) -> Response:
    """All about it."""
    record = await services.sandboxes.get(caller, sandbox_id)
    return reply(rest.detail(record, services.policy.domain, services.sandboxes.unenforced(record)))


@router.delete("/sandboxes/{sandbox_id}", status_code=204, responses=FAILURES)
async def kill_sandbox(sandbox_id: str, services: ServicesHere, caller: CallerHere) -> Response:
    """Returns when nothing of it is left."""
    await services.ending.kill(caller, sandbox_id)
    return no_content()


@router.post("/sandboxes/{sandbox_id}/timeout", status_code=204, responses=FAILURES)
async def set_timeout(
    sandbox_id: str, body: rest.TimeoutRequest, services: ServicesHere, caller: CallerHere
) -> Response:
    """From now; may shorten its life."""
    await services.timeouts.set_timeout(caller, sandbox_id, body.timeout)
    return no_content()


@router.post("/sandboxes/{sandbox_id}/refreshes", status_code=204, responses=FAILURES)
async def refresh(
    sandbox_id: str, services: ServicesHere, caller: CallerHere, body: rest.RefreshRequest | None = None
) -> Response:
    """Keeps it alive for so long from now; never shortens its life."""
    duration = body.duration if body is not None and body.duration is not None else rest.V1_TIMEOUT_S
    await services.timeouts.prolong(caller, sandbox_id, duration)
    return no_content()


async def _create(request: Request, services: Services, caller: Caller, order: CreateOrder) -> Response:
    """A client that leaves before it has the answer never learns the id: nobody could use the sandbox or end it."""
    async with cancelled_with(request):
        record = await services.creation.create(caller, order)
    note_made(request, sandbox_id=record.sandbox_id)
    body = rest.sandbox(record, services.policy.domain, services.sandboxes.unenforced(record))
    answer = reply(body, 201)
    if order.idempotency_key is not None:
        return answer  # a retry with the key gets it
    return Owed(answer, lambda: services.ending.abandon(record.sandbox_id))
