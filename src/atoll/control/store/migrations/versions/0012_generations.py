"""How often a sandbox was begun on another node, and which image an object store has of a paused one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("generation", sa.Integer, nullable=False, server_default="1"))
    op.add_column("sandboxes", sa.Column("kept_image", sa.String(40), nullable=True))


def downgrade() -> None:
    op.drop_column("sandboxes", "kept_image")
    op.drop_column("sandboxes", "generation")
