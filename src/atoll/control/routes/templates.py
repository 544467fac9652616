"""Templates: lists and look-ups, deleting, making public. Builds and tags are in `template_builds`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from atoll.control.routes.common import FAILURES, CallerHere, ServicesHere, decoded, no_content, reply, reply_list
from atoll.control.routes.template_shapes import own_template, own_template_with_builds
from atoll.control.sandboxes.listing import parse_offset_token, slice_page
from atoll.model.errors import InvalidRequest
from atoll.wire.rest import templates as rest
from atoll.wire.rest.template_builds import PatchedTemplate, TemplatePatch

router = APIRouter(tags=["templates"])

_LIST = {200: {"model": list[rest.Template]}, **FAILURES}


async def _all(services: ServicesHere, caller: CallerHere) -> list[rest.Template]:
    built_in = [rest.template(one) for one in await services.templates.built_in()]
    namespace = await services.templates.namespace(caller.team_id)
    own = [own_template(row, builds, namespace) for row, builds in await services.builds.own(caller) if builds]
    return built_in + own


@router.get("/templates", responses=_LIST)
async def list_templates(services: ServicesHere, caller: CallerHere) -> Response:
    """The built-in ones, and those that the team has built."""
    return reply_list(await _all(services, caller), keep_nulls=True)


@router.get("/default-templates", responses=_LIST)
async def list_default_templates(services: ServicesHere) -> Response:
    """Those that every team has."""
    return reply_list([rest.template(one) for one in await services.templates.built_in()], keep_nulls=True)


@router.get("/v2/templates", responses=_LIST)
async def list_templates_v2(
    services: ServicesHere,
    caller: CallerHere,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
    next_token: Annotated[str | None, Query(alias="nextToken")] = None,
) -> Response:
    """The same, in pages."""
    items, token = slice_page(await _all(services, caller), limit, parse_offset_token(next_token))
    return reply_list(list(items), {"X-Next-Token": token} if token else None, keep_nulls=True)


@router.get("/templates/aliases/{alias}", responses={200: {"model": rest.TemplateAlias}, **FAILURES})
async def find_alias(alias: str, services: ServicesHere, caller: CallerHere) -> Response:
    """404: there is no template of that name."""
    own = await services.builds.own_with_builds(caller, decoded(alias))
    if own is not None:
        return reply(rest.TemplateAlias(template_id=own[0].template_id, public=own[0].public))
    template = await services.templates.find(decoded(alias), caller.team_id)
    return reply(rest.TemplateAlias(template_id=template.template_id, public=template.public))


@router.get("/templates/{template_id}", responses={200: {"model": rest.TemplateWithBuilds}, **FAILURES})
async def get_template(template_id: str, services: ServicesHere, caller: CallerHere) -> Response:
    """With its builds, newest first."""
    own = await services.builds.own_with_builds(caller, decoded(template_id))
    if own is not None:
        return reply(
            own_template_with_builds(*own, await services.templates.namespace(caller.team_id)), keep_nulls=True
        )
    template = await services.templates.find(decoded(template_id), caller.team_id)
    return reply(rest.template_with_builds(template), keep_nulls=True)


@router.delete("/templates/{template_id}", status_code=204, responses=FAILURES)
async def delete_template(template_id: str, services: ServicesHere, caller: CallerHere) -> Response:
    """With its builds and tags; sandboxes that were made of it live on."""
    await services.builds.remove(caller, decoded(template_id))
    return no_content()


@router.patch("/templates/{template_id}", responses=FAILURES)
@router.patch("/v2/templates/{template_id}", responses={200: {"model": PatchedTemplate}, **FAILURES})
async def change_template(
    template_id: str, body: TemplatePatch, services: ServicesHere, caller: CallerHere
) -> Response:
    """Makes it public, or its team's alone again."""
    if body.public is None:
        raise InvalidRequest("say `public`")
    row = await services.builds.publish(caller, decoded(template_id), body.public)
    return reply(PatchedTemplate(names=[f"{await services.templates.namespace(caller.team_id)}/{row.name}"]))
