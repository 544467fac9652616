"""A team's secrets. No answer carries a value."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

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
from atoll.control.secrets.service import MAX_PAGE
from atoll.control.store.secrets import Secret
from atoll.wire.rest import secrets as wire

router = APIRouter(tags=["secrets"])

_ONE = {200: {"model": wire.SecretOut}, **FAILURES}


@router.get("/secrets", responses={200: {"model": list[wire.SecretOut]}, **FAILURES})
async def list_secrets(
    services: ServicesHere,
    caller: CallerHere,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    next_token: Annotated[str | None, Query(alias="nextToken", max_length=1024)] = None,
) -> Response:
    """By name, a page at a time."""
    page = await services.secrets.page(caller, limit, next_token)
    headers = {"X-Next-Token": page.next_token} if page.next_token is not None else None
    return reply_list([_out(one) for one in page.secrets], headers)


@router.post("/secrets", status_code=201, responses={201: {"model": wire.SecretOut}, **FAILURES})
async def add_secret(request: Request, body: wire.NewSecret, services: ServicesHere, caller: CallerHere) -> Response:
    """Egress rules may name it from now on: `${e2b.secrets.NAME}` in a header's value."""
    made = await services.secrets.add(caller, body.name, body.value, body.metadata or {})
    note_made(request, secret_id=made.secret_id)
    return reply(_out(made), 201)


@router.get("/secrets/{secret_id}", responses=_ONE)
async def get_secret(secret_id: str, services: ServicesHere, caller: CallerHere) -> Response:
    """By its id or its name."""
    return reply(_out(await services.secrets.get(caller, decoded(secret_id))))


@router.post("/secrets/{secret_id}", responses=_ONE)
async def change_secret(
    secret_id: str, body: wire.SecretUpdate, services: ServicesHere, caller: CallerHere
) -> Response:
    """A new value. Sandboxes that use it carry it from their next request on."""
    return reply(_out(await services.secrets.change(caller, decoded(secret_id), body.value, body.metadata)))


@router.delete("/secrets/{secret_id}", status_code=204, responses=FAILURES)
async def remove_secret(secret_id: str, services: ServicesHere, caller: CallerHere) -> Response:
    """No request carries it from now on."""
    await services.secrets.remove(caller, decoded(secret_id))
    return no_content()


def _out(secret: Secret) -> wire.SecretOut:
    return wire.SecretOut(
        secret_id=secret.secret_id,
        name=secret.name,
        current_version=secret.version,
        metadata=dict(secret.metadata),
        created_at=secret.created_at,
        updated_at=secret.updated_at,
    )
