"""Volumes, and which of them a sandbox has mounted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "volumes",
        sa.Column("volume_id", sa.String(36), primary_key=True),
        sa.Column("team_id", sa.String(64), sa.ForeignKey("teams.team_id", ondelete="CASCADE"), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("node_id", sa.String(255), nullable=False),
        sa.Column("size_mib", sa.Integer, nullable=False),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("ready", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("team_id", "name", name="volumes_name"),
    )
    op.add_column("sandboxes", sa.Column("volumes", sa.JSON, nullable=True))


def downgrade() -> None:
    op.drop_column("sandboxes", "volumes")
    op.drop_table("volumes")
