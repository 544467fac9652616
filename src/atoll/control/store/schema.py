"""The tables, as SQLAlchemy sees them. Types work on SQLite and PostgreSQL alike.

To change the schema: change it here, add a migration in `migrations/versions`, set REVISION to its id. A test compares
the tables that the migrations make with these, and REVISION with the newest migration.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

REVISION = "0012"
"""The newest migration. Known here so that a start on an up-to-date database need not load Alembic."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC on every database; SQLite itself forgets the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


metadata = MetaData()

teams = Table(
    "teams",
    metadata,
    Column("team_id", String(64), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", String(64), primary_key=True),
    Column("team_id", String(64), ForeignKey("teams.team_id", ondelete="CASCADE"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),  # SHA-256 hex; the key itself is kept nowhere
    Column("created_at", UtcDateTime, nullable=False),
    # All of a key that may be shown again: its length, its first and its last characters.
    Column("length", Integer, nullable=False, server_default="0"),
    Column("mask_prefix", String(16), nullable=False, server_default=""),
    Column("mask_suffix", String(16), nullable=False, server_default=""),
    Column("last_used_at", UtcDateTime, nullable=True),
    Index("api_keys_team", "team_id"),
)

secrets = Table(
    "secrets",
    metadata,
    Column("secret_id", String(64), primary_key=True),
    Column("team_id", String(64), ForeignKey("teams.team_id", ondelete="CASCADE"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("version", Integer, nullable=False),
    Column("value", Text, nullable=False),  # sealed (`model.sealing`)
    Column("metadata", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    UniqueConstraint("team_id", "name", name="secrets_name"),
)

volumes = Table(
    "volumes",
    metadata,
    Column("volume_id", String(36), primary_key=True),
    Column("team_id", String(64), ForeignKey("teams.team_id", ondelete="CASCADE"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("node_id", String(255), nullable=False),
    Column("size_mib", Integer, nullable=False),
    Column("token", Text, nullable=False),  # sealed (`model.sealing`)
    Column("ready", Boolean, nullable=False),  # false while its node makes or removes it
    Column("created_at", UtcDateTime, nullable=False),
    UniqueConstraint("team_id", "name", name="volumes_name"),
)

nodes = Table(
    "nodes",
    metadata,
    Column("node_id", String(255), primary_key=True),
    Column("host", String(255), nullable=True),  # of one that was added while a server ran
    Column("port", Integer, nullable=True),
    Column("draining", Boolean, nullable=False),
    Column("added_at", UtcDateTime, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),  # the order in which they happened
    Column("event_id", String(36), nullable=False, unique=True),
    Column("team_id", String(64), nullable=False),
    Column("sandbox_id", String(64), nullable=False),
    Column("type", String(64), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("body", JSON, nullable=False),  # as the API shows it and webhooks carry it
    Index("events_team", "team_id", "number"),
    Index("events_sandbox", "sandbox_id", "number"),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("webhook_id", String(36), primary_key=True),
    Column("team_id", String(64), ForeignKey("teams.team_id", ondelete="CASCADE"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("url", Text, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("events", JSON, nullable=False),
    Column("secret", Text, nullable=False),  # sealed; signs what is sent, so that it cannot be kept as a digest
    Column("created_at", UtcDateTime, nullable=False),
    Index("webhooks_team", "team_id"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("delivery_id", String(36), primary_key=True),
    Column("webhook_id", String(36), ForeignKey("webhooks.webhook_id", ondelete="CASCADE"), nullable=False),
    Column("event_id", String(36), nullable=False),
    Column("event_type", String(64), nullable=False),
    Column("payload", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", UtcDateTime, nullable=True),
    Column("status_code", Integer, nullable=True),
    Column("error", Text, nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime, nullable=True),
    Index("deliveries_due", "state", "next_at"),
    Index("deliveries_webhook", "webhook_id", "created_at"),
)

templates = Table(
    "templates",
    metadata,
    Column("template_id", String(64), primary_key=True),
    Column("team_id", String(64), ForeignKey("teams.team_id", ondelete="CASCADE"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("public", Boolean, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("sandbox_id", String(64), nullable=True),  # of a snapshot: the sandbox that it was taken of
    Index("templates_name", "team_id", "name", unique=True),
)

template_builds = Table(
    "template_builds",
    metadata,
    Column("build_id", String(36), primary_key=True),
    Column("template_id", String(64), ForeignKey("templates.template_id", ondelete="CASCADE"), nullable=False),
    Column("status", String(16), nullable=False),
    Column("tags", JSON, nullable=False),  # those it gets once it is ready
    Column("cpu_count", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_mib", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime, nullable=True),
    Column("error", Text, nullable=True),
    Column("error_step", String(16), nullable=True),
    Column("node_id", String(255), nullable=True),
    Column("images", JSON, nullable=False),  # one per step, the last is the template
    Column("settings", JSON, nullable=True),  # what its sandboxes start with: user, workdir, env (sealed), commands
    Index("template_builds_template", "template_id", "created_at"),
)

template_tags = Table(
    "template_tags",
    metadata,
    Column("template_id", String(64), ForeignKey("templates.template_id", ondelete="CASCADE"), primary_key=True),
    Column("tag", String(128), primary_key=True),
    Column("build_id", String(36), ForeignKey("template_builds.build_id", ondelete="CASCADE"), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

template_layers = Table(
    "template_layers",
    metadata,
    Column("key", String(40), primary_key=True),  # `templates.steps.layer_key`
    Column("image_id", String(40), nullable=False),
)

template_images = Table(
    "template_images",
    metadata,
    Column("key", String(40), primary_key=True),  # `templates.image.importer`
    Column("image_id", String(40), nullable=False),
    Column("settings", JSON, nullable=False),
)

sandboxes = Table(
    "sandboxes",
    metadata,
    Column("sandbox_id", String(64), primary_key=True),
    Column("team_id", String(64), ForeignKey("teams.team_id"), nullable=False),
    Column("template_id", String(255), nullable=False),
    Column("template_alias", String(255), nullable=True),
    Column("node_id", String(255), nullable=False),
    Column("tier", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("end_at", UtcDateTime, nullable=False),
    Column("cpu_count", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_mib", Integer, nullable=False),
    Column("pids", Integer, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("env_vars", JSON, nullable=False),  # sealed, where there are any
    Column("envd_access_token", Text, nullable=True),  # sealed
    Column("traffic_access_token", Text, nullable=True),  # sealed
    Column("allow_internet_access", Boolean, nullable=False),
    Column("auto_pause", Boolean, nullable=False),
    Column("ended_at", UtcDateTime, nullable=True),
    Column("end_reason", String(32), nullable=True),
    # Idempotency-Key: at most one live use per team; emptied when the create fails, so that it may be tried again.
    Column("idempotency_key", String(255), nullable=True),
    Column("request_digest", String(64), nullable=True),
    Column("network", JSON, nullable=True),  # NetworkPolicy; null: of an Atoll that knew allow_internet_access only
    Column("auto_pause_memory", Boolean, nullable=False, server_default="1"),
    Column("auto_resume", Boolean, nullable=False, server_default="0"),
    Column("pause_mode", String(16), nullable=True),
    Column("guest_answered", Boolean, nullable=False, server_default="1"),
    Column("mask_request_host", Text, nullable=True),
    Column("volumes", JSON(none_as_null=True), nullable=True),  # VolumeMount, those that it has mounted
    Column("generation", Integer, nullable=False, server_default="1"),  # grows with each move to another node
    Column("kept_image", String(40), nullable=True),  # of a paused one, or one that is to be: in the object store
    Index("sandboxes_idempotency", "team_id", "idempotency_key", unique=True),
    Index("sandboxes_state", "state", "team_id"),
)
