"""Lifecycle events: noted as they happen, written a moment later, queued for the webhooks that ask for them.

A note costs its maker nothing but an append: no create or kill waits for the journal. What was noted is
gathered for GATHER_S and written together; a server that is killed in between loses it, a clean stop loses nothing.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy.exc import IntegrityError, OperationalError

from atoll.control.access.auth import DEFAULT_TEAM_ID
from atoll.control.clock import Clock
from atoll.control.events.dispatcher import WebhookDispatcher
from atoll.control.store import Store
from atoll.model.errors import StorageFull
from atoll.model.events import Delivery, DeliveryState, Event, EventType
from atoll.model.sandbox import SandboxRecord
from atoll.wire.rest import events as wire

GATHER_S = 0.1
"""A burst's notes cost one statement together, and none competes with the first command of a sandbox just made."""
MAX_WAITING = 5000
"""Deliveries of a team that have not ended."""
ATTEMPTS = 3
PAUSE_S = 1.0
_EXECUTIONS = uuid.UUID("6f2f8a55-6a0e-4f6b-9d0c-2f6f1c1f7a11")

_log = structlog.get_logger("atoll.control")


@dataclass(frozen=True, slots=True)
class _Note:
    type: EventType
    sandbox_id: str
    at: datetime
    more: Mapping[str, Any] = field(default_factory=dict)
    record: SandboxRecord | None = None
    node_id: str | None = None


class Journal:
    """`note` from anywhere; `run` is its task; `flush` before the store closes."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        dispatcher: WebhookDispatcher,
        build_of: Callable[[str], Awaitable[str]],
        happened: Callable[[EventType], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._dispatcher = dispatcher
        self._build_of = build_of
        self._happened = happened
        self._notes: list[_Note] = []
        self._news = asyncio.Event()
        self._turn = asyncio.Lock()
        self._closed = False

    def note(self, kind: EventType, sandbox: SandboxRecord | str, **more: Any) -> None:
        """It has just happened to this one, or to that of this id. `more` goes into the event's data."""
        record = sandbox if isinstance(sandbox, SandboxRecord) else None
        sandbox_id = sandbox if isinstance(sandbox, str) else sandbox.sandbox_id
        self._notes.append(_Note(kind, sandbox_id, self._clock.now(), more, record))
        self._happened(kind)
        self._news.set()

    def note_node(self, kind: EventType, node_id: str) -> None:
        """It has just happened to this node."""
        self._notes.append(_Note(kind, "", self._clock.now(), node_id=node_id))
        self._happened(kind)
        self._news.set()

    async def run(self) -> None:
        """Until `close`. Not to be cancelled: what it is just writing would be lost."""
        while not self._closed:
            await self._news.wait()
            if not self._closed:
                await asyncio.sleep(GATHER_S)
            self._news.clear()
            try:
                await self.flush()
            except Exception:
                _log.exception("events.not_written")

    def close(self) -> None:
        """Ends `run`. What is noted from now on needs a `flush`."""
        self._closed = True
        self._news.set()

    async def flush(self) -> None:
        """Writes what was noted so far."""
        async with self._turn:
            notes, self._notes = self._notes, []
            if not notes:
                return
            unknown = {note.sandbox_id for note in notes if note.record is None and note.node_id is None}
            found = await self._store.find_all(unknown) if unknown else {}
            pairs = [(note, note.record or found.get(note.sandbox_id)) for note in notes]
            happened = [
                _node_event(note) if note.node_id is not None else await self._event(note, record)
                for note, record in pairs
                if record is not None or note.node_id is not None
            ]
            if not happened:
                return
            bodies = [(event, wire.event_body(event)) for event in happened]
            await self._write(bodies)
            await self._queue(bodies)

    async def _write(self, bodies: Sequence[tuple[Event, Mapping[str, Any]]]) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._store.events.add(bodies)
                return
            except (OperationalError, StorageFull):
                if attempt == ATTEMPTS:
                    raise
                await asyncio.sleep(PAUSE_S)

    async def _event(self, note: _Note, record: SandboxRecord | None) -> Event:
        assert record is not None
        return Event(
            event_id=str(uuid.uuid4()),
            type=note.type,
            team_id=record.team_id,
            sandbox_id=record.sandbox_id,
            template_id=record.template_id,
            build_id=await self._build_of(record.template_id),
            execution_id=str(uuid.uuid5(_EXECUTIONS, f"{record.sandbox_id}:{record.started_at.isoformat()}")),
            at=note.at,
            data=_data(note, record),
        )

    def _may_wait(self, team_id: str, waiting: dict[str, int]) -> bool:
        """Counts one more; False: too many of the team's wait already (nobody takes them), and this one is dropped."""
        waiting[team_id] = waiting.get(team_id, 0) + 1
        if waiting[team_id] == MAX_WAITING + 1:
            _log.warning("webhooks.too_many_wait", team_id=team_id, most=MAX_WAITING)
        return waiting[team_id] <= MAX_WAITING

    async def _queue(self, bodies: Sequence[tuple[Event, Mapping[str, Any]]]) -> None:
        by_team = {event.team_id for event, _ in bodies}
        hooks = [hook for hook in await self._store.events.enabled_webhooks() if hook.team_id in by_team]
        waiting = await self._store.events.waiting({hook.team_id for hook in hooks}) if hooks else {}
        new = [
            Delivery(
                delivery_id=str(uuid.uuid4()),
                webhook_id=hook.webhook_id,
                event_id=event.event_id,
                event_type=event.type.value,
                payload="",  # the event's own body: it stands once, however many webhooks get it
                state=DeliveryState.PENDING,
                attempts=0,
                created_at=event.at,
                next_at=event.at,
            )
            for event, _ in bodies
            for hook in hooks
            if hook.team_id == event.team_id and event.type in hook.events and self._may_wait(hook.team_id, waiting)
        ]
        for one in new:
            try:
                await self._store.events.add_deliveries([one])
            except IntegrityError:
                continue  # its webhook was removed just now
        if new:
            self._dispatcher.wake()


def _node_event(note: _Note) -> Event:
    data = {"node_id": note.node_id}
    return Event(str(uuid.uuid4()), note.type, DEFAULT_TEAM_ID, "", "", "", "", note.at, data)


def _data(note: _Note, record: SandboxRecord) -> dict[str, Any]:
    data: dict[str, Any] = {"sandbox_metadata": dict(record.metadata), **note.more}
    if note.type in (EventType.KILLED, EventType.PAUSED):
        lived_ms = (note.at - record.started_at) // timedelta(milliseconds=1)
        data["execution"] = {
            "started_at": wire.moment(record.started_at),
            "vcpu_count": record.limits.cpu_count,
            "memory_mb": record.limits.memory_mib,
            "execution_time": max(0, lived_ms),
        }
        if record.end_reason is not None:
            data["reason"] = record.end_reason.value
    return data
