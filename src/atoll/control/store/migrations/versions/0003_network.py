"""What a sandbox may reach, whole: allowOut, denyOut, dnsServers and header rules besides allow_internet_access."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("network", sa.JSON, nullable=True))


def downgrade() -> None:
    op.drop_column("sandboxes", "network")
