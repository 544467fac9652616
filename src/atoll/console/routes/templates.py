"""Templates, their builds, and a build's log as it is written."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from atoll.console.gate import PREFIX
from atoll.console.view import caller, number, page, parts, to
from atoll.control.store.templates import BuildStatus
from atoll.model.errors import TemplateNotFound

_SHOWN = 500
_CHUNK = 300
"""Entries of a log that are added to the page at once."""


async def show(request: Request) -> Response:
    """The built-in ones, and the team's."""
    services, who = parts(request).services, caller(request)
    own = [(row, builds) for row, builds in await services.builds.own(who) if builds]
    return page(
        request,
        "templates.html",
        built_in=await services.templates.built_in(),
        own=own[:_SHOWN],
        namespace=await services.templates.namespace(who.team_id),
        more=max(0, len(own) - _SHOWN),
    )


async def show_one(request: Request) -> Response:
    """Its builds, newest first."""
    services, name = parts(request).services, request.path_params["template"]
    found = await services.builds.own_with_builds(caller(request), name)
    if found is None:
        raise TemplateNotFound(name[:200])
    row, builds = found
    return page(request, "template.html", row=row, builds=builds[:_SHOWN])


async def remove(request: Request) -> Response:
    """With its builds; sandboxes made of it live on."""
    await parts(request).services.builds.remove(caller(request), request.path_params["template"])
    return to("/templates")


async def show_build(request: Request) -> Response:
    """The page that the log is added to."""
    build = await parts(request).services.builds.find_build(
        caller(request), request.path_params["template"], request.path_params["build"]
    )
    return page(request, "build.html", build=build, is_under_way=_is_under_way(build.status))


async def build_log(request: Request) -> Response:
    """Entries from number `from` on, as rows, and what asks for those after them."""
    services = parts(request).services
    build = await services.builds.find_build(
        caller(request), request.path_params["template"], request.path_params["build"]
    )
    start = number(request.query_params.get("from", "0"), "from", most=10**6)
    entries = await asyncio.to_thread(services.build_logs.read, build.build_id, start, _CHUNK)
    return page(
        request,
        "build_rows.html",
        build=build,
        entries=entries,
        next=start + len(entries),
        is_full=len(entries) == _CHUNK,
        is_under_way=_is_under_way(build.status),
    )


def _is_under_way(status: BuildStatus) -> bool:
    return status not in (BuildStatus.READY, BuildStatus.ERROR)


_ONE = f"{PREFIX}/templates/{{template}}"
ROUTES = [
    Route(f"{PREFIX}/templates", show),
    Route(_ONE, show_one),
    Route(f"{_ONE}/remove", remove, methods=["POST"]),
    Route(f"{_ONE}/builds/{{build}}", show_build),
    Route(f"{_ONE}/builds/{{build}}/log", build_log),
]
