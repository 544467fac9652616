"""Templates that teams build, their builds and tags."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "templates",
        sa.Column("template_id", sa.String(64), primary_key=True),
        sa.Column("team_id", sa.String(64), sa.ForeignKey("teams.team_id", ondelete="CASCADE"), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("public", sa.Boolean, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
    )
    op.create_index("templates_name", "templates", ["team_id", "name"], unique=True)
    template = sa.ForeignKey("templates.template_id", ondelete="CASCADE")
    op.create_table(
        "template_builds",
        sa.Column("build_id", sa.String(36), primary_key=True),
        sa.Column("template_id", sa.String(64), template, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("cpu_count", sa.Integer, nullable=False),
        sa.Column("memory_mib", sa.Integer, nullable=False),
        sa.Column("disk_mib", sa.Integer, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
        sa.Column("finished_at", moment, nullable=True),
        sa.Column("error", sa.Text, nullable=True),
        sa.Column("error_step", sa.String(16), nullable=True),
        sa.Column("node_id", sa.String(255), nullable=True),
        sa.Column("images", sa.JSON, nullable=False),
        sa.Column("settings", sa.JSON, nullable=True),
    )
    op.create_index("template_builds_template", "template_builds", ["template_id", "created_at"])
    op.create_table(
        "template_tags",
        sa.Column(
            "template_id", sa.String(64), sa.ForeignKey("templates.template_id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("tag", sa.String(128), primary_key=True),
        sa.Column(
            "build_id", sa.String(36), sa.ForeignKey("template_builds.build_id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("created_at", moment, nullable=False),
    )
    op.create_table(
        "template_layers",
        sa.Column("key", sa.String(40), primary_key=True),
        sa.Column("image_id", sa.String(40), nullable=False),
    )


def downgrade() -> None:
    for table in ("template_layers", "template_tags", "template_builds", "templates"):
        op.drop_table(table)
