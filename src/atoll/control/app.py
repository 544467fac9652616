"""The control plane's REST interface as an ASGI application, made by `create_app`; nothing here is module-level state.

Owns routing, and that every error leaves in E2B's form. What a request means is the services'.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import atoll
from atoll.control.access.audit_entries import Audit
from atoll.control.access.auth import Authenticator
from atoll.control.access.gate import Answered, Gate
from atoll.control.routes import (
    documents,
    events,
    figures,
    health,
    keys,
    logs,
    metrics,
    network,
    nodes,
    not_offered,
    pausing,
    sandboxes,
    secrets,
    snapshots,
    teams,
    template_builds,
    templates,
    volumes,
)
from atoll.control.services import Services
from atoll.control.telemetry.tracing import NoTracing, Tracing
from atoll.model.errors import AtollError, InvalidRequest, NotOffered
from atoll.wire.rest.errors import ErrorReply, error_reply, plain_error

_NEWER = re.compile(r"/(v\d+|sandboxes/[^/]+)/")
"""What an SDK that is newer than this server may call."""


def create_app(
    services: Services, auth: Authenticator, audit: Audit | None = None, tracing: Tracing | None = None
) -> Gate:
    """The whole control plane as one ASGI application (HTTP only; its lifespan does nothing).

    `audit`: where what keys do is noted, `tracing`: where traces go; None: nowhere.

    The server that runs it must pass `raw_path`: an encoded slash in a template's name stays inside its segment.
    The document of the interface is at /openapi.json, the documents for people at /docs; they need no key.
    """
    return Gate(api(services), auth, observer(services, audit), tracing or NoTracing())


def observer(services: Services, audit: Audit | None) -> Callable[[Answered], None]:
    """What is called with every request that was answered: figures, and the audit log if there is one."""

    def answered(one: Answered) -> None:
        services.figures.request(one.method, one.route, one.status, one.seconds)
        if audit is not None:
            audit.answered(one)

    return answered


def prepare(app: Gate) -> None:
    """Builds what the framework builds when a request first passes by: 0.25 s of processor time. Blocks."""
    scope = {"type": "http", "method": "GET", "path": "/-", "root_path": "", "headers": []}
    for route in getattr(app.inner, "routes", ()):
        route.matches(scope)


def api(services: Services) -> FastAPI:
    """The routes behind the gate; a server uses `create_app`."""
    app = _routes()
    app.state.services = services
    return app


def document() -> dict[str, Any]:
    """The OpenAPI document of the interface."""
    return _document(_routes())


def _routes() -> FastAPI:
    app = FastAPI(
        title="Atoll",
        version=atoll.__version__,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    of_sandboxes = (metrics, logs, sandboxes, snapshots, pausing, network)
    of_teams = (teams, keys, secrets, volumes, events)
    of_templates = (template_builds, templates)
    for module in (health, documents, figures, *of_sandboxes, *of_templates, *of_teams, nodes, not_offered):
        app.include_router(module.router)
    app.add_exception_handler(AtollError, _on_atoll_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def respond(reply: ErrorReply) -> Response:
    """An error as a response."""
    return Response(reply.body, reply.status, headers=dict(reply.headers), media_type="application/json")


async def _on_atoll_error(_request: Request, error: Exception) -> Response:
    return respond(error_reply(error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and _NEWER.match(request.url.path):
        # A 404 of these the SDKs show as "sandbox not found", without our message.
        call = f"{request.method} {request.url.path[:200]}"
        return respond(error_reply(NotOffered(f"{call}: not supported by this server (Atoll {atoll.__version__})")))
    return respond(plain_error(error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail}"))


async def _on_invalid(_request: Request, error: Exception) -> Response:
    """Names the first field that is wrong. The value is left out: it may be a secret, or a megabyte."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")[:200]
    return respond(error_reply(InvalidRequest(f"{where}: {first['msg']}" if where else str(first["msg"]))))


def _document(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["ApiKeyAuth"] = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
        document["security"] = [{"ApiKeyAuth": []}]
        app.openapi_schema = document
    return app.openapi_schema
