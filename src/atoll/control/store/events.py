"""The tables of lifecycle events, webhooks and deliveries. Decides nothing; every write is one statement."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, delete, func, insert, select, update

from atoll.control.store.database import Database
from atoll.control.store.schema import deliveries, events, webhooks
from atoll.model.events import Delivery, DeliveryState, Event, EventType, Webhook
from atoll.model.sealing import Seal

Body = Mapping[str, Any]


class EventTables:
    """Part of the Store, on its database."""

    def __init__(self, database: Database, seal: Seal) -> None:
        self._database = database
        self._seal = seal
        self._enabled: list[Webhook] | None = None
        """Kept until one of them changes: every event is compared with them."""
        self._changes = 0

    # Events

    async def add(self, happened: Sequence[tuple[Event, Body]]) -> None:
        """In this order, each with the body that the API shows."""
        rows = [
            {
                "event_id": event.event_id,
                "team_id": event.team_id,
                "sandbox_id": event.sandbox_id,
                "type": event.type.value,
                "at": event.at,
                "body": dict(body),
            }
            for event, body in happened
        ]
        await self._database.write(insert(events).values(rows), volatile=True)

    async def listed(
        self,
        team_id: str,
        *,
        sandbox_id: str | None = None,
        types: Sequence[EventType] = (),
        offset: int = 0,
        limit: int = 100,
        ascending: bool = False,
    ) -> list[Body]:
        """A team's, or one of its sandboxes', newest first unless asked."""
        statement = select(events.c.body).where(events.c.team_id == team_id)
        if sandbox_id is not None:
            statement = statement.where(events.c.sandbox_id == sandbox_id)
        if types:
            statement = statement.where(events.c.type.in_([one.value for one in types]))
        order = events.c.number.asc() if ascending else events.c.number.desc()
        rows = await self._database.read(statement.order_by(order).offset(offset).limit(limit))
        return [row["body"] for row in rows]

    async def forget(self, before: datetime, keep: int) -> None:
        """Deletes events and finished deliveries older than that, and all events but the newest `keep`.

        An event stays as long as a delivery of it waits: it is what is delivered. The newest always stays: `newest`.
        """
        waiting = select(deliveries.c.event_id).where(deliveries.c.state == DeliveryState.PENDING.value)
        free = events.c.event_id.not_in(waiting)
        newest = select(func.max(events.c.number)).scalar_subquery()
        await self._database.write(delete(events).where(events.c.at < before, events.c.number < newest, free))
        await self._database.write(delete(events).where(events.c.number <= newest - keep, free))
        await self._database.write(
            delete(deliveries).where(
                deliveries.c.state != DeliveryState.PENDING.value, deliveries.c.created_at < before
            )
        )

    async def newest(self) -> int:
        """Its number, which only grows; 0: there never was one."""
        rows = await self._database.read(select(func.max(events.c.number).label("newest")))
        return int(rows[0]["newest"] or 0)

    # Webhooks

    async def enabled_webhooks(self) -> list[Webhook]:
        """Everybody's."""
        while self._enabled is None:
            changes = self._changes
            found = [one for one in await self.webhooks() if one.enabled]
            if changes == self._changes:  # else one was changed meanwhile
                self._enabled = found
        return self._enabled

    def _webhooks_changed(self) -> None:
        self._changes += 1
        self._enabled = None

    async def add_webhook(self, webhook: Webhook) -> None:
        """A new one."""
        await self._database.write(insert(webhooks).values(webhook_id=webhook.webhook_id, **self._row(webhook)))
        self._webhooks_changed()

    async def change_webhook(self, webhook: Webhook) -> bool:
        """All but its id. False: it is gone."""
        statement = update(webhooks).where(webhooks.c.webhook_id == webhook.webhook_id)
        changed = await self._database.write(statement.values(**self._row(webhook)))
        self._webhooks_changed()
        return bool(changed)

    async def remove_webhook(self, webhook_id: str) -> bool:
        """With its deliveries. False: it is gone already."""
        removed = await self._database.write(delete(webhooks).where(webhooks.c.webhook_id == webhook_id))
        self._webhooks_changed()
        return bool(removed)

    async def webhooks(self, team_id: str | None = None) -> list[Webhook]:
        """A team's, or everybody's, oldest first."""
        statement = select(webhooks).order_by(webhooks.c.created_at, webhooks.c.webhook_id)
        if team_id is not None:
            statement = statement.where(webhooks.c.team_id == team_id)
        return [_to_webhook(row, self._seal) for row in await self._database.read(statement)]

    async def webhook(self, webhook_id: str) -> Webhook | None:
        """None: there is none."""
        rows = await self._database.read(select(webhooks).where(webhooks.c.webhook_id == webhook_id))
        return _to_webhook(rows[0], self._seal) if rows else None

    def _row(self, webhook: Webhook) -> dict[str, Any]:
        return _webhook_row(webhook) | {"secret": self._seal.close(webhook.secret)}

    # Deliveries

    async def add_deliveries(self, new: Sequence[Delivery]) -> None:
        """In one statement. Raises IntegrityError if a webhook is gone."""
        await self._database.write(insert(deliveries).values([_delivery_row(one) for one in new]), volatile=True)

    async def due(self, now: datetime, limit: int) -> list[Delivery]:
        """Those whose time has come, the longest waiting first."""
        statement = (
            _DELIVERIES.where(deliveries.c.state == DeliveryState.PENDING.value, deliveries.c.next_at <= now)
            .order_by(deliveries.c.next_at)
            .limit(limit)
        )
        return [_to_delivery(row) for row in await self._database.read(statement)]

    async def next_due(self) -> datetime | None:
        """When the next attempt is due; None: nothing waits."""
        statement = (
            select(deliveries.c.next_at)
            .where(deliveries.c.state == DeliveryState.PENDING.value)
            .order_by(deliveries.c.next_at)
            .limit(1)
        )
        rows = await self._database.read(statement)
        return rows[0]["next_at"] if rows else None

    async def change_delivery(self, delivery: Delivery) -> bool:
        """How it went. False: its webhook is gone, and so is it."""
        statement = update(deliveries).where(deliveries.c.delivery_id == delivery.delivery_id)
        row = _delivery_row(delivery)
        del row["payload"]
        return bool(await self._database.write(statement.values(**row), volatile=True))

    async def waiting(self, team_ids: Iterable[str]) -> dict[str, int]:
        """How many deliveries of each team have not ended."""
        statement = (
            select(webhooks.c.team_id, func.count().label("waiting"))
            .join(deliveries, deliveries.c.webhook_id == webhooks.c.webhook_id)
            .where(webhooks.c.team_id.in_(list(team_ids)), deliveries.c.state == DeliveryState.PENDING.value)
            .group_by(webhooks.c.team_id)
        )
        return {row["team_id"]: row["waiting"] for row in await self._database.read(statement)}

    async def deliveries_of(self, webhook_id: str, limit: int, offset: int) -> list[Delivery]:
        """The log of one webhook, newest first."""
        statement = (
            _DELIVERIES.where(deliveries.c.webhook_id == webhook_id)
            .order_by(deliveries.c.created_at.desc(), deliveries.c.delivery_id)
            .offset(offset)
            .limit(limit)
        )
        return [_to_delivery(row) for row in await self._database.read(statement)]


def _webhook_row(webhook: Webhook) -> dict[str, Any]:
    return {
        "team_id": webhook.team_id,
        "name": webhook.name,
        "url": webhook.url,
        "enabled": webhook.enabled,
        "events": [one.value for one in webhook.events],
        "created_at": webhook.created_at,
    }


def _to_webhook(row: RowMapping, seal: Seal) -> Webhook:
    return Webhook(
        webhook_id=row["webhook_id"],
        team_id=row["team_id"],
        name=row["name"],
        url=row["url"],
        enabled=row["enabled"],
        events=tuple(EventType(one) for one in row["events"]),
        created_at=row["created_at"],
        secret=seal.open_token(row["secret"]) or "",
    )


def _delivery_row(delivery: Delivery) -> dict[str, Any]:
    return {
        "delivery_id": delivery.delivery_id,
        "webhook_id": delivery.webhook_id,
        "event_id": delivery.event_id,
        "event_type": delivery.event_type,
        "payload": delivery.payload,
        "state": delivery.state.value,
        "attempts": delivery.attempts,
        "created_at": delivery.created_at,
        "next_at": delivery.next_at,
        "status_code": delivery.status_code,
        "error": delivery.error,
        "finished_at": delivery.finished_at,
    }


_DELIVERIES = select(deliveries, events.c.body).outerjoin(events, events.c.event_id == deliveries.c.event_id)


def _payload_of(body: Body | None) -> str:
    """What is sent of an event; "" of one that is not there any more."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")) if body is not None else ""


def _to_delivery(row: RowMapping) -> Delivery:
    return Delivery(
        delivery_id=row["delivery_id"],
        webhook_id=row["webhook_id"],
        event_id=row["event_id"],
        event_type=row["event_type"],
        payload=row["payload"] or _payload_of(row["body"]),
        state=DeliveryState(row["state"]),
        attempts=row["attempts"],
        created_at=row["created_at"],
        next_at=row["next_at"],
        status_code=row["status_code"],
        error=row["error"],
        finished_at=row["finished_at"],
    )
