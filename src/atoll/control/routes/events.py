"""Lifecycle events of a team's sandboxes, and the webhooks that they are sent to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from atoll.control.events.webhooks import Change
from atoll.control.routes.common import FAILURES, CallerHere, ServicesHere, note_made, reply, reply_list
from atoll.control.sandboxes.ids import plain_id
from atoll.model.errors import InvalidRequest
from atoll.model.events import EventType
from atoll.wire.rest import events as wire

router = APIRouter(tags=["events"])

Offset = Annotated[int, Query(ge=0, le=10**9)]
Limit = Annotated[int, Query(ge=1, le=100)]
OrderAscending = Annotated[bool, Query(alias="orderAsc")]
Types = Annotated[list[str] | None, Query(max_length=32)]

_EVENTS = {200: {"model": list[wire.EventOut]}, **FAILURES}
_WEBHOOK: dict[int | str, dict[str, Any]] = {200: {"model": wire.WebhookOut}, **FAILURES}


@router.get("/events/sandboxes", responses=_EVENTS)
async def list_events(
    services: ServicesHere,
    caller: CallerHere,
    offset: Offset = 0,
    limit: Limit = 10,
    ascending: OrderAscending = False,
    types: Types = None,
) -> Response:
    """Of all of the team's sandboxes, newest first unless asked."""
    found = await services.events.events(caller, types=_types(types), offset=offset, limit=limit, ascending=ascending)
    return _bodies(found)


@router.get("/events/sandboxes/{sandbox_id}", responses=_EVENTS)
async def list_events_of_one(
    sandbox_id: str,
    services: ServicesHere,
    caller: CallerHere,
    offset: Offset = 0,
    limit: Limit = 10,
    ascending: OrderAscending = False,
    types: Types = None,
) -> Response:
    """Of one, also when it has ended; empty for one that the team never had."""
    plain = plain_id(sandbox_id)
    if plain is None:
        return _bodies([])
    found = await services.events.events(
        caller, sandbox_id=plain, types=_types(types), offset=offset, limit=limit, ascending=ascending
    )
    return _bodies(found)


@router.get("/events/webhooks", responses={200: {"model": list[wire.WebhookOut]}, **FAILURES})
async def list_webhooks(services: ServicesHere, caller: CallerHere) -> Response:
    """All of the team's."""
    return reply_list([wire.webhook(one) for one in await services.events.webhooks(caller)])


@router.post("/events/webhooks", status_code=201, responses={201: {"model": wire.WebhookOut}, **FAILURES})
async def add_webhook(request: Request, body: wire.NewWebhook, services: ServicesHere, caller: CallerHere) -> Response:
    """From now on the events that it names are sent to it."""
    webhook = await services.events.add(
        caller,
        name=body.name,
        url=body.url,
        enabled=body.enabled,
        events=body.events,
        secret=body.signature_secret,
    )
    note_made(request, webhook_id=webhook.webhook_id)
    return reply(wire.webhook(webhook), 201)


@router.get("/events/webhooks/{webhook_id}", responses=_WEBHOOK)
async def get_webhook(webhook_id: str, services: ServicesHere, caller: CallerHere) -> Response:
    """One."""
    return reply(wire.webhook(await services.events.webhook(caller, webhook_id)))


@router.patch("/events/webhooks/{webhook_id}", responses=_WEBHOOK)
async def change_webhook(
    webhook_id: str, body: wire.WebhookPatch, services: ServicesHere, caller: CallerHere
) -> Response:
    """What the body names; the rest stays."""
    change = Change(
        name=body.name,
        url=body.url,
        enabled=body.enabled,
        events=tuple(body.events) if body.events is not None else None,
        secret=body.signature_secret,
    )
    return reply(wire.webhook(await services.events.change(caller, webhook_id, change)))


@router.delete("/events/webhooks/{webhook_id}", responses=_WEBHOOK)
async def remove_webhook(webhook_id: str, services: ServicesHere, caller: CallerHere) -> Response:
    """With its deliveries; answers what it was (E2B's status is 200)."""
    return reply(wire.webhook(await services.events.remove(caller, webhook_id)))


@router.get("/events/webhooks/{webhook_id}/deliveries", responses={200: {"model": list[wire.DeliveryOut]}, **FAILURES})
async def list_deliveries(
    webhook_id: str, services: ServicesHere, caller: CallerHere, offset: Offset = 0, limit: Limit = 10
) -> Response:
    """What was sent or is still to be sent, and how that went; newest first."""
    found = await services.events.deliveries(caller, webhook_id, limit, offset)
    return reply_list([wire.delivery(one) for one in found], keep_nulls=True)


def _types(given: Sequence[str] | None) -> list[EventType]:
    """`a,b`, or the parameter repeated."""
    names = [name for part in given or () for name in part.split(",") if name]
    try:
        return [EventType(name) for name in names]
    except ValueError as error:
        raise InvalidRequest(f"types: one of {', '.join(EventType)}") from error


def _bodies(events: Sequence[Mapping[str, Any]]) -> Response:
    return Response(json.dumps(list(events), ensure_ascii=False), media_type="application/json")
