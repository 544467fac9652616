"""Lifecycle events, webhooks and their deliveries; what of an API key may be shown again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.add_column("api_keys", sa.Column("length", sa.Integer, nullable=False, server_default="0"))
    op.add_column("api_keys", sa.Column("mask_prefix", sa.String(16), nullable=False, server_default=""))
    op.add_column("api_keys", sa.Column("mask_suffix", sa.String(16), nullable=False, server_default=""))
    op.add_column("api_keys", sa.Column("last_used_at", moment, nullable=True))
    op.create_index("api_keys_team", "api_keys", ["team_id"])
    op.create_table(
        "events",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("event_id", sa.String(36), nullable=False, unique=True),
        sa.Column("team_id", sa.String(64), nullable=False),
        sa.Column("sandbox_id", sa.String(64), nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
    )
    op.create_index("events_team", "events", ["team_id", "number"])
    op.create_index("events_sandbox", "events", ["sandbox_id", "number"])
    op.create_table(
        "webhooks",
        sa.Column("webhook_id", sa.String(36), primary_key=True),
        sa.Column("team_id", sa.String(64), sa.ForeignKey("teams.team_id", ondelete="CASCADE"), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("events", sa.JSON, nullable=False),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("created_at", moment, nullable=False),
    )
    op.create_index("webhooks_team", "webhooks", ["team_id"])
    op.create_table(
        "deliveries",
        sa.Column("delivery_id", sa.String(36), primary_key=True),
        sa.Column(
            "webhook_id", sa.String(36), sa.ForeignKey("webhooks.webhook_id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("event_id", sa.String(36), nullable=False),
        sa.Column("event_type", sa.String(64), nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", moment, nullable=True),
        sa.Column("status_code", sa.Integer, nullable=True),
        sa.Column("error", sa.Text, nullable=True),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("finished_at", moment, nullable=True),
    )
    op.create_index("deliveries_due", "deliveries", ["state", "next_at"])
    op.create_index("deliveries_webhook", "deliveries", ["webhook_id", "created_at"])


def downgrade() -> None:
    for table in ("deliveries", "webhooks", "events"):
        op.drop_table(table)
    op.drop_index("api_keys_team", "api_keys")
    for column in ("last_used_at", "mask_suffix", "mask_prefix", "length"):
        op.drop_column("api_keys", column)
