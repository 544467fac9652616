"""The guest's HTTP servers: a router by path and the access-token rule. What the paths do is in the other modules.

To add routes: `router.add("GET", "/metrics", handler)` or `router.mount(service)` for a Connect service.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from atoll.guest.state import GuestState
from atoll.http1.server import Handler, Request, Response
from atoll.wire.envd.connect import Code, ConnectError, Service

_RPC_TYPES = ("application/json", "application/proto", "application/connect+json", "application/connect+proto")


class Router:
    """Exact paths, then path prefixes. `open_routes` are (method, path) pairs that need no access token."""

    def __init__(self, state: GuestState, open_routes: Iterable[tuple[str, str]] = ()) -> None:
        self._state = state
        self._open = frozenset(open_routes)
        self._exact: dict[str, dict[str, Handler]] = {}
        self._prefixes: list[tuple[str, str, Handler]] = []

    def add(self, method: str, path: str, handler: Handler) -> None:
        """Serves `method` (or `*`) on exactly `path`."""
        self._exact.setdefault(path, {})[method] = handler

    def add_prefix(self, method: str, prefix: str, handler: Handler) -> None:
        """Serves `method` on every path that starts with `prefix` (`/contexts/`) and has no exact route."""
        self._prefixes.append((method, prefix, handler))

    def mount(self, service: Service) -> None:
        for path, handler in service.routes.items():
            self.add("*", path, handler)

    async def __call__(self, request: Request) -> Response:
        """The handler for HttpConnection."""
        if not self._is_allowed(request):
            return _refusal(request)
        methods = self._exact.get(request.path)
        if methods is not None:
            handler = methods.get(request.method) or methods.get("*")
            if handler is None and request.method == "HEAD":
                handler = methods.get("GET")
            if handler is None:
                return Response.error(405, f"use {', '.join(methods)}", (("allow", ", ".join(methods)),))
            return await handler(request)
        for method, prefix, candidate in self._prefixes:
            if request.path.startswith(prefix) and method in (request.method, "*"):
                return await candidate(request)
        return _not_found(request)

    def _is_allowed(self, request: Request) -> bool:
        token = self._state.access_token
        if token is None or (request.method, request.path) in self._open:
            return True
        given = request.headers.get("x-access-token") or ""
        return hmac.compare_digest(given.encode("latin-1", "replace"), token.encode("utf-8"))


def _is_rpc(request: Request) -> bool:
    content_type = (request.headers.get("content-type") or "").partition(";")[0].strip().lower()
    return request.method == "POST" and content_type in _RPC_TYPES


def _refusal(request: Request) -> Response:
    message = "unauthorized access, please provide a valid access token or method signing if supported"
    if _is_rpc(request):
        return ConnectError(Code.UNAUTHENTICATED, message).to_response()
    return Response.error(401, message)


def _not_found(request: Request) -> Response:
    if _is_rpc(request):
        # Connect clients take 404 for `unimplemented` when the body does not say so itself.
        return ConnectError(Code.UNIMPLEMENTED, f"no such method: {request.path[:256]}").to_response(404)
    return Response.error(404, f"no such path: {request.path[:256]}")
