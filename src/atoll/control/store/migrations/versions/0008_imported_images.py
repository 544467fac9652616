"""Images of registries that were imported, and what their configuration says."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "template_images",
        sa.Column("key", sa.String(40), primary_key=True),
        sa.Column("image_id", sa.String(40), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("template_images")
