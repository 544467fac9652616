"""What is kept of a paused sandbox, and what its timeout and traffic to it do."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_COLUMNS = (
    ("auto_pause_memory", sa.Boolean, False, "1"),
    ("auto_resume", sa.Boolean, False, "0"),
    ("pause_mode", sa.String(16), True, None),
    ("guest_answered", sa.Boolean, False, "1"),
    ("mask_request_host", sa.Text, True, None),
)


def upgrade() -> None:
    for name, kind, nullable, default in _COLUMNS:
        op.add_column("sandboxes", sa.Column(name, kind, nullable=nullable, server_default=default))


def downgrade() -> None:
    for name, *_ in _COLUMNS:
        op.drop_column("sandboxes", name)
