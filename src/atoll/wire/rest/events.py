"""Lifecycle events and webhooks in the form of E2B's documentation, and the signature of a delivery.

e2b-signature: base64url(sha256(secret + payload)), without padding
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from atoll.model.events import Delivery, Event, EventType, Webhook

VERSION = "v1"
SIGNATURE_VERSION = "v1"
USER_AGENT = "atoll-webhooks/1"

Name = Annotated[str, Field(min_length=1, max_length=255)]
Url = Annotated[str, Field(min_length=1, max_length=2048)]
Secret = Annotated[str, Field(min_length=1, max_length=512)]
Types = Annotated[list[EventType], Field(min_length=1, max_length=32)]


class NewWebhook(BaseModel):
    """POST /events/webhooks."""

    model_config = ConfigDict(extra="ignore")

    name: Name
    url: Url
    enabled: bool = True
    events: Types
    signature_secret: Secret = Field(validation_alias="signatureSecret")


class WebhookPatch(BaseModel):
    """PATCH /events/webhooks/{id}: what is absent or null stays."""

    model_config = ConfigDict(extra="ignore")

    name: Name | None = None
    url: Url | None = None
    enabled: bool | None = None
    events: Types | None = None
    signature_secret: Secret | None = Field(default=None, validation_alias="signatureSecret")


class WebhookOut(BaseModel):
    """A webhook as it is shown: without its secret."""

    webhook_id: str = Field(serialization_alias="id")
    team_id: str = Field(serialization_alias="teamId")
    name: str
    url: str
    enabled: bool
    events: list[EventType]
    created_at: datetime = Field(serialization_alias="createdAt")


class DeliveryOut(BaseModel):
    """GET /events/webhooks/{id}/deliveries: ours, E2B shows this in its dashboard only."""

    delivery_id: str = Field(serialization_alias="id")
    event_id: str = Field(serialization_alias="eventId")
    event_type: str = Field(serialization_alias="eventType")
    state: str
    attempts: int
    status_code: int | None = Field(serialization_alias="statusCode")
    error: str | None
    created_at: datetime = Field(serialization_alias="createdAt")
    next_at: datetime | None = Field(serialization_alias="nextAttemptAt")
    finished_at: datetime | None = Field(serialization_alias="finishedAt")


class EventOut(BaseModel):
    """An event as the interface's document describes it; what is sent is `event_body`."""

    version: str
    id: str
    type: EventType
    timestamp: datetime
    eventData: dict[str, Any] | None
    sandboxId: str
    sandboxTeamId: str
    sandboxTemplateId: str
    sandboxBuildId: str
    sandboxExecutionId: str


def event_body(event: Event) -> dict[str, Any]:
    """As the API lists it and webhooks carry it."""
    return {
        "version": VERSION,
        "id": event.event_id,
        "type": event.type.value,
        "timestamp": moment(event.at),
        "eventData": dict(event.data) or None,
        "sandboxId": event.sandbox_id,
        "sandboxTeamId": event.team_id,
        "sandboxTemplateId": event.template_id,
        "sandboxBuildId": event.build_id,
        "sandboxExecutionId": event.execution_id,
    }


def moment(at: datetime) -> str:
    """RFC 3339 in UTC, with microseconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def signature(secret: str, payload: bytes) -> str:
    """What the receiver computes from its own copy of the secret and the body as it came."""
    digest = hashlib.sha256(secret.encode("utf-8", "surrogatepass") + payload).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def delivery_headers(webhook: Webhook, delivery: Delivery) -> Mapping[str, str]:
    """The header fields of a delivery."""
    return {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        "e2b-webhook-id": webhook.webhook_id,
        "e2b-delivery-id": delivery.delivery_id,
        "e2b-signature-version": SIGNATURE_VERSION,
        "e2b-signature": signature(webhook.secret, delivery.payload.encode()),
    }


def webhook(one: Webhook) -> WebhookOut:
    """For showing."""
    return WebhookOut(
        webhook_id=one.webhook_id,
        team_id=one.team_id,
        name=one.name,
        url=one.url,
        enabled=one.enabled,
        events=list(one.events),
        created_at=one.created_at,
    )


def delivery(one: Delivery) -> DeliveryOut:
    """For showing."""
    return DeliveryOut(
        delivery_id=one.delivery_id,
        event_id=one.event_id,
        event_type=one.event_type,
        state=one.state.value,
        attempts=one.attempts,
        status_code=one.status_code,
        error=one.error,
        created_at=one.created_at,
        next_at=one.next_at,
        finished_at=one.finished_at,
    )
