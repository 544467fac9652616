"""A team's own templates in the bodies of the interface. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from atoll.control.store.templates import BuildRow, TemplateRow
from atoll.control.templates.build_log import BuildLogEntry
from atoll.wire.rest import template_builds as wire
from atoll.wire.rest import templates as rest


def own_template(row: TemplateRow, builds: Sequence[BuildRow], namespace: str) -> rest.Template:
    """One of a list. `builds`: newest first, at least one."""
    newest = builds[0]
    return rest.Template(
        template_id=row.template_id,
        build_id=newest.build_id,
        cpu_count=newest.limits.cpu_count,
        memory_mb=newest.limits.memory_mib,
        disk_size_mb=newest.limits.disk_mib,
        public=row.public,
        aliases=[row.name],
        names=[f"{namespace}/{row.name}"],
        created_at=row.created_at,
        updated_at=max(row.updated_at, newest.updated_at),
        build_count=len(builds),
        build_status=newest.status.value,
    )


def own_template_with_builds(row: TemplateRow, builds: Sequence[BuildRow], namespace: str) -> rest.TemplateWithBuilds:
    """One, with everything that is remembered of it."""
    return rest.TemplateWithBuilds(
        template_id=row.template_id,
        public=row.public,
        aliases=[row.name],
        names=[f"{namespace}/{row.name}"],
        created_at=row.created_at,
        updated_at=row.updated_at,
        builds=[_build(build) for build in builds],
    )


def _build(build: BuildRow) -> rest.TemplateBuild:
    return rest.TemplateBuild(
        build_id=build.build_id,
        status=build.status.value,
        created_at=build.created_at,
        updated_at=build.updated_at,
        finished_at=build.finished_at,
        cpu_count=build.limits.cpu_count,
        memory_mb=build.limits.memory_mib,
        disk_size_mb=build.limits.disk_mib,
    )


def log_entry(entry: BuildLogEntry) -> wire.BuildLogEntry:
    """One line."""
    return wire.BuildLogEntry(timestamp=entry.at, level=entry.level, message=entry.message, step=entry.step or None)
