"""Webhooks and events as a team sees them. Knows neither HTTP nor how a delivery travels (`dispatcher`)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from atoll.control.access.auth import Caller
from atoll.control.clock import Clock
from atoll.control.events.outbound import Outbound
from atoll.control.store.events import Body, EventTables
from atoll.model.errors import NotFound, QuotaExceeded
from atoll.model.events import Delivery, EventType, Webhook

MAX_WEBHOOKS = 20
"""Of one team."""


@dataclass(frozen=True, slots=True)
class Change:
    """What of a webhook is to be different; None leaves it as it is."""

    name: str | None = None
    url: str | None = None
    enabled: bool | None = None
    events: tuple[EventType, ...] | None = None
    secret: str | None = None


class EventService:
    """See the module."""

    def __init__(self, tables: EventTables, clock: Clock, out: Outbound) -> None:
        self._tables = tables
        self._clock = clock
        self._out = out

    async def events(
        self,
        caller: Caller,
        *,
        sandbox_id: str | None = None,
        types: Sequence[EventType] = (),
        offset: int = 0,
        limit: int = 10,
        ascending: bool = False,
    ) -> list[Body]:
        """The team's own only; of a sandbox that is not the team's there are none."""
        return await self._tables.listed(
            caller.team_id, sandbox_id=sandbox_id, types=types, offset=offset, limit=limit, ascending=ascending
        )

    async def add(
        self, caller: Caller, *, name: str, url: str, enabled: bool, events: Sequence[EventType], secret: str
    ) -> Webhook:
        """Raises InvalidRequest, Forbidden (an address that may not be called), QuotaExceeded."""
        self._out.check(url)
        if len(await self._tables.webhooks(caller.team_id)) >= MAX_WEBHOOKS:
            raise QuotaExceeded(f"a team may have {MAX_WEBHOOKS} webhooks", hint="delete one")
        webhook = Webhook(
            webhook_id=str(uuid.uuid4()),
            team_id=caller.team_id,
            name=name,
            url=url,
            enabled=enabled,
            events=tuple(dict.fromkeys(events)),
            created_at=self._clock.now(),
            secret=secret,
        )
        await self._tables.add_webhook(webhook)
        return webhook

    async def webhooks(self, caller: Caller) -> list[Webhook]:
        """All of the team's."""
        return await self._tables.webhooks(caller.team_id)

    async def webhook(self, caller: Caller, webhook_id: str) -> Webhook:
        """Raises NotFound: unknown, or another team's."""
        found = await self._tables.webhook(webhook_id)
        if found is None or found.team_id != caller.team_id:
            raise NotFound(f"webhook {webhook_id[:100]!r} not found")
        return found

    async def change(self, caller: Caller, webhook_id: str, change: Change) -> Webhook:
        """Raises NotFound, InvalidRequest, Forbidden."""
        webhook = await self.webhook(caller, webhook_id)
        if change.url is not None:
            self._out.check(change.url)
        webhook = replace(
            webhook,
            name=webhook.name if change.name is None else change.name,
            url=webhook.url if change.url is None else change.url,
            enabled=webhook.enabled if change.enabled is None else change.enabled,
            events=webhook.events if change.events is None else tuple(dict.fromkeys(change.events)),
            secret=webhook.secret if change.secret is None else change.secret,
        )
        if not await self._tables.change_webhook(webhook):
            raise NotFound(f"webhook {webhook_id[:100]!r} not found")
        return webhook

    async def remove(self, caller: Caller, webhook_id: str) -> Webhook:
        """With all its deliveries, also those that still wait. Raises NotFound."""
        webhook = await self.webhook(caller, webhook_id)
        await self._tables.remove_webhook(webhook_id)
        return webhook

    async def deliveries(self, caller: Caller, webhook_id: str, limit: int, offset: int) -> list[Delivery]:
        """Newest first. Raises NotFound."""
        webhook = await self.webhook(caller, webhook_id)
        return await self._tables.deliveries_of(webhook.webhook_id, limit, offset)
