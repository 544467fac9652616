"""Building templates: a build asked for, its files uploaded, begun, followed; and the tags of builds."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from atoll.control.routes.common import (
    FAILURES,
    CallerHere,
    ServicesHere,
    decoded,
    no_content,
    note_made,
    reply,
    reply_list,
)
from atoll.control.routes.template_shapes import log_entry
from atoll.control.store.templates import BuildStatus
from atoll.control.templates.build_log import PAGE
from atoll.control.templates.builds import Instructions, Sizes
from atoll.control.templates.names import check_tag
from atoll.control.templates.steps import Step
from atoll.control.templates.uploads import PREFIX
from atoll.model.errors import InvalidRequest
from atoll.wire.rest import template_builds as wire

router = APIRouter(tags=["templates"])

Offset = Annotated[int, Query(alias="logsOffset", ge=0)]
Limit = Annotated[int, Query(ge=0, le=PAGE)]


@router.post("/v3/templates", status_code=202, responses={202: {"model": wire.NewBuildOut}, **FAILURES})
async def request_build(request: Request, body: wire.NewBuild, services: ServicesHere, caller: CallerHere) -> Response:
    """A build that waits for its files and its start."""
    name = body.name or body.alias
    if name is None:
        raise InvalidRequest("say the template's name")
    sizes = Sizes(body.cpu_count or None, body.memory_mb or None, body.min_free_disk_mb or None)
    made = await services.builds.request(caller, name, body.tags or [], sizes)
    note_made(request, template_id=made.template.template_id, build_id=made.build.build_id)
    answer = wire.NewBuildOut(
        template_id=made.template.template_id,
        build_id=made.build.build_id,
        public=made.template.public,
        names=[f"{await services.templates.namespace(caller.team_id)}/{made.template.name}"],
        tags=list(made.build.tags),
        aliases=[made.template.name],
    )
    return reply(answer, 202)


@router.get(
    "/templates/{template_id}/files/{files_hash}",
    status_code=201,
    responses={201: {"model": wire.FileUpload}, **FAILURES},
)
async def upload_link(
    template_id: str, files_hash: str, request: Request, services: ServicesHere, caller: CallerHere
) -> Response:
    """Where the archive of a COPY goes, and whether it is there already."""
    present, path = await services.builds.upload_link(caller, decoded(template_id), decoded(files_hash))
    host = request.headers.get("host", "")
    return reply(wire.FileUpload(present=present, url=f"{request.url.scheme}://{host}{path}"), 201)


@router.put(PREFIX + "{link:path}", status_code=204, responses=FAILURES)
async def upload(request: Request, services: ServicesHere) -> Response:
    """The archive itself; the path is the permission."""
    await services.uploads.receive(request.scope["path"], request.stream())
    return no_content()


@router.post("/v2/templates/{template_id}/builds/{build_id}", status_code=202, responses=FAILURES)
async def start_build(
    template_id: str, build_id: str, body: wire.BuildStart, services: ServicesHere, caller: CallerHere
) -> Response:
    """Begins it; `status` follows it."""
    instructions = Instructions(
        from_image=body.from_image,
        from_template=body.from_template,
        steps=[Step(one.type, tuple(one.args), bool(one.force), one.files_hash or "") for one in body.steps],
        start_cmd=body.start_cmd,
        ready_cmd=body.ready_cmd,
        force=bool(body.force),
        registry=body.from_image_registry.as_order() if body.from_image_registry is not None else None,
    )
    await services.builds.start(caller, decoded(template_id), decoded(build_id), instructions)
    return Response(status_code=202)


@router.get("/templates/{template_id}/builds/{build_id}/status", responses={200: {"model": wire.BuildInfo}, **FAILURES})
async def build_status(
    template_id: str,
    build_id: str,
    services: ServicesHere,
    caller: CallerHere,
    offset: Offset = 0,
    limit: Limit = PAGE,
    level: wire.LogLevel = "info",
) -> Response:
    """How far it is, and its log from the entry `logsOffset` on, no more than `limit` entries."""
    build = await services.builds.find_build(caller, decoded(template_id), decoded(build_id))
    entries = await asyncio.to_thread(services.build_logs.read, build.build_id, offset, limit, level)
    reason = None
    if build.status is BuildStatus.ERROR:
        reason = wire.BuildReason(message=build.error, step=build.error_step or None)
    answer = wire.BuildInfo(
        template_id=build.template_id,
        build_id=build.build_id,
        status=build.status.value,
        log_entries=[log_entry(entry) for entry in entries],
        reason=reason,
    )
    return reply(answer)


@router.get("/templates/{template_id}/builds/{build_id}/logs", responses={200: {"model": wire.BuildLogs}, **FAILURES})
async def build_logs(
    template_id: str,
    build_id: str,
    services: ServicesHere,
    caller: CallerHere,
    cursor: Annotated[int | None, Query(ge=0)] = None,
    limit: Limit = PAGE,
    level: wire.LogLevel = "info",
) -> Response:
    """Its log from the moment `cursor` (milliseconds since 1970) on, oldest first."""
    build = await services.builds.find_build(caller, decoded(template_id), decoded(build_id))
    entries = await asyncio.to_thread(services.build_logs.read, build.build_id, 0, 1 << 20, level)
    later = [entry for entry in entries if cursor is None or entry.at.timestamp() * 1000 >= cursor]
    return reply(wire.BuildLogs(logs=[log_entry(entry) for entry in later[:limit]]))


@router.post("/templates/tags", status_code=201, responses={201: {"model": wire.AssignedTags}, **FAILURES})
async def assign_tags(body: wire.AssignTags, services: ServicesHere, caller: CallerHere) -> Response:
    """They name the build that `target` names."""
    build_id, tags = await services.builds.assign_tags(caller, body.target, body.tags)
    return reply(wire.AssignedTags(tags=list(tags), build_id=build_id), 201)


@router.delete("/templates/tags", status_code=204, responses=FAILURES)
async def remove_tags(body: wire.RemoveTags, services: ServicesHere, caller: CallerHere) -> Response:
    """The builds stay."""
    await services.builds.remove_tags(caller, body.name, body.tags)
    return no_content()


@router.get("/templates/{template_id}/tags", responses={200: {"model": list[wire.Tag]}, **FAILURES})
async def list_tags(template_id: str, services: ServicesHere, caller: CallerHere) -> Response:
    """By name."""
    tags = await services.builds.tags(caller, decoded(template_id))
    return reply_list([wire.Tag(tag=one.tag, build_id=one.build_id, created_at=one.created_at) for one in tags])


@router.get("/templates/{template_id}/tags/count", responses={200: {"model": wire.TagCount}, **FAILURES})
async def count_tags(template_id: str, services: ServicesHere, caller: CallerHere) -> Response:
    """How many."""
    return reply(wire.TagCount(total=len(await services.builds.tags(caller, decoded(template_id)))))


@router.get("/templates/{template_id}/tags/exists", responses={200: {"model": wire.TagExists}, **FAILURES})
async def tag_exists(template_id: str, tag: str, services: ServicesHere, caller: CallerHere) -> Response:
    """Whether one names a build."""
    normal = check_tag(tag)
    found = await services.builds.tags(caller, decoded(template_id))
    return reply(wire.TagExists(exists=any(one.tag == normal for one in found), normalized_tag=normal))
