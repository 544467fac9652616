"""Templates, as far as they are read. Builds are in `not_offered`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from atoll.control.routes.common import FAILURES, ServicesHere, decoded, reply, reply_list
from atoll.control.sandboxes.listing import parse_offset_token, slice_page
from atoll.wire.rest import templates as rest

router = APIRouter(tags=["templates"])

_LIST = {200: {"model": list[rest.Template]}, **FAILURES}


@router.get("/templates", responses=_LIST)
async def list_templates(services: ServicesHere) -> Response:
    """All of them."""
    return reply_list([rest.template(one) for one in await services.templates.all()], keep_nulls=True)


@router.get("/default-templates", responses=_LIST)
async def list_default_templates(services: ServicesHere) -> Response:
    """Those that every team has: here all of them."""
    return reply_list([rest.template(one) for one in await services.templates.all()], keep_nulls=True)


@router.get("/v2/templates", responses=_LIST)
async def list_templates_v2(
    services: ServicesHere,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
    next_token: Annotated[str | None, Query(alias="nextToken")] = None,
) -> Response:
    """All of them, in pages by id."""
    items, token = slice_page(await services.templates.all(), limit, parse_offset_token(next_token))
    return reply_list(
        [rest.template(one) for one in items], {"X-Next-Token": token} if token else None, keep_nulls=True
    )


@router.get("/templates/aliases/{alias}", responses={200: {"model": rest.TemplateAlias}, **FAILURES})
async def find_alias(alias: str, services: ServicesHere) -> Response:
    """404: there is no template of that name."""
    template = await services.templates.find(decoded(alias))
    return reply(rest.TemplateAlias(template_id=template.template_id))


@router.get("/templates/{template_id}", responses={200: {"model": rest.TemplateWithBuilds}, **FAILURES})
async def get_template(template_id: str, services: ServicesHere) -> Response:
    """With its one build."""
    template = await services.templates.find(decoded(template_id))
    return reply(rest.template_with_builds(template), keep_nulls=True)
