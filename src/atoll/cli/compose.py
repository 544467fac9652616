"""The composition root: the one place where the parts of a server are built from settings and joined.

Store ── ControlPlane ── NodeClient ── Supervisor ── isolation tier
              │ ASGI                       │ RouteTable
              └────────── Edge ────────────┘
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from atoll.config import Settings
from atoll.control.app import create_app
from atoll.control.auth import Authenticator
from atoll.control.orders import Policy
from atoll.control.outbound import parse_networks
from atoll.control.plane import ControlPlane
from atoll.control.store import Store, default_url
from atoll.edge import Edge
from atoll.node.images import TemplateStore
from atoll.node.supervisor import Supervisor

EDGE_GRACE_S = 3.0
"""How long running requests may go on after a stop was asked for."""


@asynccontextmanager
async def platform(settings: Settings, keys: tuple[str, ...], sock: socket.socket) -> AsyncIterator[Edge]:
    """A whole server, listening on the bound `sock` within the block; takes over what an earlier server left.

    Raises BackendUnavailable (no isolation tier works here), PlatformError, OSError.
    """
    domain = settings.domain or f"localhost:{sock.getsockname()[1]}"
    policy = Policy(max_timeout_s=settings.max_timeout_s, max_sandboxes=settings.max_sandboxes, domain=domain)
    async with (
        Store(settings.database_url or default_url(settings.data_dir)) as store,
        Supervisor(
            data_dir=settings.data_dir,
            templates=TemplateStore(settings.templates_dir),
            isolation=settings.isolation,
            keep_sandboxes=settings.keep_sandboxes,
        ) as node,
        ControlPlane(
            store=store,
            nodes=[node],
            policy=policy,
            logs_dir=settings.data_dir / "logs",
            webhook_networks=parse_networks(settings.webhook_allow_private),
            keep_sandboxes=settings.keep_sandboxes,
        ) as control,
    ):
        node.subscribe(control.services.sandboxes)
        edge = Edge(node, create_app(control.services, Authenticator(keys, store.keys)), domains=[domain])
        await edge.listen(sock)
        try:
            yield edge
        finally:
            await edge.aclose(EDGE_GRACE_S)
