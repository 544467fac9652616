"""Alembic's entry: runs on the connection that `migrate` hands over, inside its transaction."""

from __future__ import annotations

from alembic import context

from atoll.control.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
