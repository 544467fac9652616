"""What lay in clear is sealed: webhooks' secrets, sandboxes' tokens and environments, and those of templates."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from atoll.model.sealing import Seal, is_sealed

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

webhooks = sa.table("webhooks", sa.column("webhook_id"), sa.column("secret"))
sandboxes = sa.table(
    "sandboxes",
    sa.column("sandbox_id"),
    sa.column("env_vars", sa.JSON),
    sa.column("envd_access_token"),
    sa.column("traffic_access_token"),
)
builds = sa.table("template_builds", sa.column("build_id"), sa.column("settings", sa.JSON))


def upgrade() -> None:
    context = op.get_context()
    assert context.config is not None
    seal: Seal = context.config.attributes["seal"]
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        op.execute("PRAGMA secure_delete=ON")  # what was in clear is overwritten, not only let go
    for row in connection.execute(sa.select(webhooks)).all():
        if not is_sealed(row.secret):
            mine = webhooks.c.webhook_id == row.webhook_id
            connection.execute(sa.update(webhooks).where(mine).values(secret=seal.close(row.secret)))
    for row in connection.execute(sa.select(sandboxes)).all():
        tokens = {name: getattr(row, name) for name in ("envd_access_token", "traffic_access_token")}
        closed = {
            name: token if token is None or is_sealed(token) else seal.close(token) for name, token in tokens.items()
        }
        env = row.env_vars if isinstance(row.env_vars, str) else seal.close_map(row.env_vars)
        mine = sandboxes.c.sandbox_id == row.sandbox_id
        connection.execute(sa.update(sandboxes).where(mine).values(env_vars=env, **closed))
    for row in connection.execute(sa.select(builds)).all():
        env = (row.settings or {}).get("env")
        if isinstance(env, dict):
            settings = {**row.settings, "env": seal.close_map(env)}
            connection.execute(sa.update(builds).where(builds.c.build_id == row.build_id).values(settings=settings))


def downgrade() -> None:
    """Nothing to undo: what an older Atoll cannot read it must not get in clear either."""
