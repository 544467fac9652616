"""Which sandbox a request goes to and whether it may: one pure decision per request.

    request ──► Control             (nothing names a sandbox)
            ──► Answer / bytes      (refused, or answered by the edge itself)
            ──► ToSandbox           (route, port)

`LiveRoutes` is the route table, fed by what nodes report of their sandboxes.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from atoll.edge import answers, hostname
from atoll.edge.answers import Answer
from atoll.edge.head import SANDBOX_ID_FIELD, SANDBOX_PORT_FIELD, TRAFFIC_TOKEN, RequestHead
from atoll.edge.signed import find_signed
from atoll.model.errors import InvalidRequest
from atoll.model.sandbox import ENVD_PORT, INTERPRETER_PORT
from atoll.model.seams import Route, RouteTable
from atoll.model.volume import VOLUME_PORT, is_volume_id

VOLUME_PATHS = b"/volumecontent/"

GUEST_PORTS = frozenset({ENVD_PORT, INTERPRETER_PORT, VOLUME_PORT})
"""Served by our own guest, and by what serves a volume's contents: no forwarded fields, CORS by the edge, connections
kept longer."""

INTERNAL_PATHS = frozenset({b"init", b"freeze", b"unfreeze", b"fsfreeze", b"fsthaw", b"collapse", b"upgrade"})
"""What only the node may ask of a guest."""


CONTROL_PATHS = (b"/sandboxes/", b"/v2/sandboxes/")
"""Old SDKs send a connect, which is for the control plane, with a sandbox's routing fields; envd has no such paths."""


@dataclass(frozen=True, slots=True)
class ToSandbox:
    """Send it on."""

    route: Route
    port: int


@dataclass(frozen=True, slots=True)
class ToControl:
    """Not for a sandbox."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """A browser asks whether it may; the edge knows the answer."""


Decision = ToSandbox | ToControl | Preflight | Answer

TO_CONTROL = ToControl()
PREFLIGHT = Preflight()


def decide(head: RequestHead, routes: RouteTable, domains: frozenset[str]) -> Decision:
    """Where `head` goes."""
    try:
        target = _target(head, domains)
    except InvalidRequest as error:
        return Answer(400, error.message)
    if target is None:
        if (volume := _volume(head, routes)) is not None:
            return ToSandbox(volume, VOLUME_PORT)
        if _is_header_preflight(head):
            return PREFLIGHT
        signed = find_signed(head, routes)
        return TO_CONTROL if signed is None else ToSandbox(signed, ENVD_PORT)
    route = routes.find(target.sandbox_id)
    if route is None:
        return answers.sandbox_not_found(target.sandbox_id)
    if target.port in GUEST_PORTS:
        if _is_preflight(head):
            return PREFLIGHT
        if target.port == ENVD_PORT and _is_internal(head.path):
            return Answer(404, "not found", (("sandboxId", target.sandbox_id),))
    if target.port != ENVD_PORT and route.traffic_access_token is not None:
        token = head.get(TRAFFIC_TOKEN)
        if token is None:
            return answers.traffic_token_missing(target.sandbox_id)
        if not hmac.compare_digest(token, route.traffic_access_token.encode()):
            return answers.traffic_token_invalid(target.sandbox_id)
    return ToSandbox(route, target.port)


def host_for(head: RequestHead, route: Route, port: int) -> bytes:
    """The Host that the sandbox sees: the client's, or the mask that its owner asked for."""
    if route.mask_request_host and port not in GUEST_PORTS:
        return route.mask_request_host.replace("${PORT}", str(port)).encode("latin-1", "replace")
    return head.host


def _volume(head: RequestHead, routes: RouteTable) -> Route | None:
    """Whose contents are asked for; whether that is allowed is decided there. None: no volume that is known."""
    if not head.path.startswith(VOLUME_PATHS):
        return None
    volume_id = head.path[len(VOLUME_PATHS) :].partition(b"/")[0].decode("latin-1")
    return routes.find(volume_id) if is_volume_id(volume_id) else None


def _target(head: RequestHead, domains: frozenset[str]) -> hostname.Target | None:
    sandbox_id = head.get_text(SANDBOX_ID_FIELD)
    if sandbox_id is not None:
        target = hostname.from_headers(sandbox_id, head.get_text(SANDBOX_PORT_FIELD))
        return None if target.port == ENVD_PORT and head.path.startswith(CONTROL_PATHS) else target
    if b"-" not in head.host:
        return None
    return hostname.from_host(head.host.decode("latin-1"), domains)


def _is_preflight(head: RequestHead) -> bool:
    return head.method == b"OPTIONS" and head.get(b"access-control-request-method") is not None


def _is_header_preflight(head: RequestHead) -> bool:
    """A preflight cannot carry the routing fields; it lists them among those that the real request will carry."""
    requested = head.get(b"access-control-request-headers")
    return requested is not None and _is_preflight(head) and SANDBOX_ID_FIELD in requested.lower()


def _is_internal(path: bytes) -> bool:
    segments = [part for part in unquote_to_bytes(path).lower().split(b"/") if part not in (b"", b".")]
    return bool(segments) and not INTERNAL_PATHS.isdisjoint(segments)


class LiveRoutes:
    """A RouteTable that gets every start and end. Look-ups are one dictionary access."""

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}

    def find(self, sandbox_id: str) -> Route | None:
        return self._routes.get(sandbox_id)

    def routes(self) -> Sequence[Route]:
        return list(self._routes.values())

    def add(self, route: Route) -> None:
        """Opens the way to a sandbox; replaces what was known of it."""
        self._routes[route.sandbox_id] = route

    def remove(self, sandbox_id: str) -> None:
        """Closes it. Idempotent."""
        self._routes.pop(sandbox_id, None)
