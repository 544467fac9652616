"""Carries deliveries to webhooks: takes from the store what is due, tries it, writes down how it went.

    PENDING ──attempt: 2xx──► DELIVERED
       │ ▲
       │ └── `retries` says when again
       └── no attempt left, or the target may not be reached at all ──► FAILED

At least once, in no promised order: a server that dies between an attempt and its record tries it again.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Protocol

import structlog

from atoll.control.clock import Clock
from atoll.control.events.outbound import NoAnswer
from atoll.control.events.retries import delay_after
from atoll.control.store.events import EventTables
from atoll.model.errors import CallerError
from atoll.model.events import Delivery, DeliveryState, Webhook
from atoll.wire.rest import events as wire

AT_ONCE = 32
AT_ONCE_PER_WEBHOOK = 4
"""So that one receiver that is slow does not hold up the others."""
_LONGEST_NAP_S = 60.0
_BUSY_NAP_S = 0.5

_log = structlog.get_logger("atoll.control")


class Post(Protocol):
    """`Outbound.post`."""

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> int: ...


class WebhookDispatcher:
    """`run` is its task; `wake` makes it look for new deliveries."""

    def __init__(self, tables: EventTables, clock: Clock, out: Post) -> None:
        self._tables = tables
        self._clock = clock
        self._out = out
        self._news = asyncio.Event()
        self._under_way: dict[str, str] = {}

    def wake(self) -> None:
        """Something may be due."""
        self._news.set()

    async def run(self) -> None:
        """Until it is cancelled; then attempts under way are given up and tried again by the next server."""
        async with asyncio.TaskGroup() as attempts:
            while True:
                self._news.clear()
                nap = await self._begin_due(attempts)
                await self._wait(nap)

    async def _begin_due(self, attempts: asyncio.TaskGroup) -> float:
        """Begins what may begin now; returns for how long there is nothing more to do."""
        try:
            now = self._clock.now()
            due = [one for one in await self._tables.due(now, 4 * AT_ONCE) if one.delivery_id not in self._under_way]
            busy = Counter(self._under_way.values())
            for delivery in due:
                if len(self._under_way) >= AT_ONCE:
                    break
                if busy[delivery.webhook_id] < AT_ONCE_PER_WEBHOOK:
                    busy[delivery.webhook_id] += 1
                    self._under_way[delivery.delivery_id] = delivery.webhook_id
                    attempts.create_task(self._attempt(delivery))
            if self._under_way:
                return _BUSY_NAP_S  # an attempt that ends wakes us earlier
            next_at = await self._tables.next_due()
        except Exception:
            _log.exception("webhooks.not_read")
            return _LONGEST_NAP_S
        if next_at is None:
            return _LONGEST_NAP_S
        return min(_LONGEST_NAP_S, max(0.0, (next_at - now) / timedelta(seconds=1)))

    async def _wait(self, seconds: float) -> None:
        nap = asyncio.ensure_future(self._clock.sleep(seconds))
        news = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait((nap, news), return_when=asyncio.FIRST_COMPLETED)
        finally:
            nap.cancel()
            news.cancel()

    async def _attempt(self, delivery: Delivery) -> None:
        try:
            webhook = await self._tables.webhook(delivery.webhook_id)
            if webhook is not None:
                await self._tables.change_delivery(await self._outcome(webhook, delivery))
        except Exception:
            _log.exception("webhooks.not_recorded", delivery_id=delivery.delivery_id)
            # Not at once again: what failed is our own store.
            await self._clock.sleep(_LONGEST_NAP_S)
        finally:
            self._under_way.pop(delivery.delivery_id, None)
            self._news.set()

    async def _outcome(self, webhook: Webhook, delivery: Delivery) -> Delivery:
        if not webhook.enabled:
            return replace(self._finished(delivery, DeliveryState.FAILED), error="the webhook was disabled")
        if not delivery.payload:
            return replace(self._finished(delivery, DeliveryState.FAILED), error="its event is not kept any more")
        status: int | None = None
        error: str | None = None
        final = False
        headers = dict(wire.delivery_headers(webhook, delivery))
        try:
            status = await self._out.post(webhook.url, headers, delivery.payload.encode())
            if not 200 <= status < 300:
                error = f"answered {status}"
        except NoAnswer as reason:
            error = str(reason)[:500]
        except CallerError as refusal:
            error, final = str(refusal)[:500], True
        tried = replace(delivery, attempts=delivery.attempts + 1, status_code=status, error=error)
        if error is None:
            return self._finished(tried, DeliveryState.DELIVERED)
        delay = None if final else delay_after(tried.attempts, random.random())
        _log.info(
            "webhook.failed", webhook_id=webhook.webhook_id, error=error, attempts=tried.attempts, again=bool(delay)
        )
        if delay is None:
            return self._finished(tried, DeliveryState.FAILED)
        return replace(tried, next_at=self._clock.now() + delay)

    def _finished(self, delivery: Delivery, state: DeliveryState) -> Delivery:
        return replace(delivery, state=state, next_at=None, finished_at=self._clock.now())
