"""What happens to sandboxes, and who is notified: lifecycle events, webhooks, deliveries. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any


class EventType(StrEnum):
    """E2B's names, and one of ours."""

    CREATED = "sandbox.lifecycle.created"
    UPDATED = "sandbox.lifecycle.updated"
    PAUSED = "sandbox.lifecycle.paused"
    RESUMED = "sandbox.lifecycle.resumed"
    KILLED = "sandbox.lifecycle.killed"
    OUT_OF_MEMORY = "sandbox.lifecycle.out_of_memory"
    """Ours: the kernel ended a process of it because memory ran out; the sandbox lives on."""

    LOST = "sandbox.lifecycle.lost"
    """Ours: its node does not answer; nobody can say what has become of it."""
    RETURNED = "sandbox.lifecycle.returned"
    """Ours: its node is back, and it runs on."""
    RESTARTED = "sandbox.lifecycle.restarted"
    """Ours: it was begun anew on another node, under its id."""

    # Ours, of nodes: events of the operator's team that name no sandbox.
    NODE_JOINED = "node.lifecycle.joined"
    NODE_SILENT = "node.lifecycle.silent"
    NODE_RETURNED = "node.lifecycle.returned"
    NODE_LOST = "node.lifecycle.lost"
    NODE_GONE = "node.lifecycle.gone"
    NODE_DRAINING = "node.lifecycle.draining"
    NODE_UNDRAINED = "node.lifecycle.undrained"
    NODE_REMOVED = "node.lifecycle.removed"

    @property
    def is_of_node(self) -> bool:
        """Else of a sandbox."""
        return self.value.startswith("node.")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `data` is E2B's `eventData`; `build_id` is "" where the template is gone."""

    event_id: str
    type: EventType
    team_id: str
    sandbox_id: str
    template_id: str
    build_id: str
    execution_id: str
    at: datetime
    data: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where a team's events are to be sent. The secret signs them; it is never shown again."""

    webhook_id: str
    team_id: str
    name: str
    url: str
    enabled: bool
    events: tuple[EventType, ...]
    created_at: datetime
    secret: str = field(repr=False)


class DeliveryState(StrEnum):
    """PENDING: it will be tried (again) at `next_at`."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one webhook, and how that went so far."""

    delivery_id: str
    webhook_id: str
    event_id: str
    event_type: str
    payload: str = field(repr=False)
    state: DeliveryState
    attempts: int
    created_at: datetime
    next_at: datetime | None = None
    status_code: int | None = None
    error: str | None = None
    finished_at: datetime | None = None
