"""Snapshots: templates that were taken of a sandbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("templates", sa.Column("sandbox_id", sa.String(64), nullable=True))


def downgrade() -> None:
    op.drop_column("templates", "sandbox_id")
