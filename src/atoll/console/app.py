"""The console as an ASGI application in front of the control plane's: it answers what lies below `/console`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from atoll.console.gate import PREFIX, ConsoleGate
from atoll.console.guest import SandboxGuest
from atoll.console.routes import code, files, login, overview, sandbox, sandboxes, snapshots, team, templates
from atoll.console.sessions import Sessions
from atoll.console.terminals import Terminals
from atoll.console.view import Parts, failure
from atoll.control.access.audit_entries import Audit
from atoll.control.access.auth import Authenticator
from atoll.control.app import observer
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.services import Services
from atoll.model.errors import AtollError, NotFound
from atoll.model.seams import RouteTable, Spend

_STATIC = Path(__file__).parent / "static"
_AREAS = (login, overview, sandboxes, sandbox, files, code, templates, snapshots, team)
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class Console:
    """`rest` gets every request that is not for the console. `aclose` ends what follows terminals.

    Args:
        routes: the edge's: the way to the guests of sandboxes.
        spend: a sandbox's share of output, which is the edge's too.
        audit: where what is done here is noted, as for the REST interface; None: nowhere.
    """

    def __init__(
        self,
        rest: ASGIApp,
        *,
        services: Services,
        auth: Authenticator,
        nodes: NodeRegistry,
        routes: RouteTable,
        spend: Spend | None = None,
        audit: Audit | None = None,
    ) -> None:
        self._rest = rest

        def guests(sandbox_id: str) -> SandboxGuest:
            return SandboxGuest(routes, sandbox_id, spend)

        self._terminals = terminals = Terminals(guests)
        sessions = Sessions(time.monotonic)
        app = Starlette(
            routes=[
                Route(PREFIX, _to_overview),
                Route(f"{PREFIX}/static/{{name:path}}", _static_file()),
                *(route for module in _AREAS for route in module.ROUTES),
            ],
            exception_handlers={HTTPException: _on_http_error, AtollError: failure, Exception: failure},
        )
        app.router.redirect_slashes = False
        app.state.parts = Parts(services, auth, nodes, guests, sessions, terminals)
        self._gate = ConsoleGate(app, sessions, auth, failure, observer(services, audit))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and (path == PREFIX or path.startswith(PREFIX + "/")):
            await self._gate(scope, receive, send)
        elif scope["type"] == "http" and path == "/" and _is_browser(scope):
            await RedirectResponse(f"{PREFIX}/", 303)(scope, receive, send)
        else:
            await self._rest(scope, receive, send)

    async def aclose(self) -> None:
        """Idempotent."""
        await self._terminals.aclose()


def _is_browser(scope: Scope) -> bool:
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


def _on_http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        return failure(request, NotFound(f"there is no page {request.scope['path'][:200]!r}"))
    return Response(f"{status}", status, media_type="text/plain")


async def _to_overview(_request: Request) -> Response:
    return RedirectResponse(f"{PREFIX}/", 303)


def _static_file() -> Callable[[Request], Awaitable[Response]]:
    """All files, read once: half a megabyte. Not by Starlette's StaticFiles, which asks the disk at each request."""
    files: dict[str, tuple[bytes, str, str]] = {}
    for path in _STATIC.rglob("*"):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            files[path.relative_to(_STATIC).as_posix()] = (content, _TYPES[path.suffix], etag)

    async def serve(request: Request) -> Response:
        found = files.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        content, media_type, etag = found
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return serve
