"""Every path of E2B's interface that this Atoll does not serve yet: routed, so that the answer says so.

For a path below a sandbox or a template that object is looked up first: 404 stays 404 for the SDKs.
"""

from __future__ import annotations

from enum import Enum, auto

from fastapi import APIRouter, Request, Response

from atoll.control.routes.common import FAILURES, CallerHere, ServicesHere, decoded
from atoll.model.errors import NotOffered

router = APIRouter(responses=FAILURES)


class Subject(Enum):
    """What must exist for the path to mean anything."""

    NOTHING = auto()
    SANDBOX = auto()
    TEMPLATE = auto()


BUILDS = "template builds"
_INSTEAD = {
    BUILDS: "this is the old way; SDKs from 2.0 on build templates here",
}
"""What to do instead."""

N, S, T = Subject.NOTHING, Subject.SANDBOX, Subject.TEMPLATE

PATHS: tuple[tuple[Subject, str, str, str], ...] = (
    (N, BUILDS, "POST", "/templates"),
    (N, BUILDS, "POST", "/v2/templates"),
    (T, BUILDS, "POST", "/templates/{template_id}"),
    (T, BUILDS, "POST", "/templates/{template_id}/builds/{build_id}"),
    (T, "template tags", "GET", "/templates/{template_id}/tags/groups"),
    (T, "template tags", "GET", "/templates/{template_id}/tags/{tag}/assignments"),
    (N, "access tokens", "POST", "/access-tokens"),
    (N, "access tokens", "DELETE", "/access-tokens/{token_id}"),
    (N, "the operator's interface over the network", "GET", "/admin/sandboxes/running-counts"),
    (N, "the operator's interface over the network", "POST", "/admin/teams/{any_team}/sandboxes/kill"),
    (N, "the operator's interface over the network", "POST", "/admin/teams/{any_team}/builds/cancel"),
    (N, "the operator's interface over the network", "POST", "/admin/teams/{any_team}/api-keys"),
    (N, "the operator's interface over the network", "DELETE", "/admin/teams/{any_team}/api-keys/{any_key}"),
)


async def _refuse(request: Request, services: ServicesHere, caller: CallerHere) -> Response:
    subject, feature = _FEATURES[request.method, request.scope["route"].path]
    if subject is Subject.SANDBOX:
        await services.sandboxes.get(caller, request.path_params["sandbox_id"])
    elif subject is Subject.TEMPLATE:
        await services.templates.find(decoded(request.path_params["template_id"]), caller.team_id)
    raise NotOffered(f"{feature}: not supported by this server yet", hint=_INSTEAD.get(feature, ""))


_FEATURES = {
    (method, path): (subject, feature) for subject, feature, methods, path in PATHS for method in methods.split()
}

for (_method, _path), (_subject, _feature) in _FEATURES.items():
    router.add_api_route(_path, _refuse, methods=[_method], summary=f"Not supported yet: {_feature}")
