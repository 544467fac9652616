"""The composition root: the one place where the parts of a server are built from settings and joined.

Store ── ControlPlane ── RemoteNode ══ node.sock ══ NodeServer ── Supervisor ── isolation tier
              │ ASGI         │ routes, dial
              └──── Edge ────┘
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from atoll.cli.domain import TlsDomain
from atoll.config import Settings
from atoll.control.access.auth import Authenticator
from atoll.control.access.client_versions import ClientVersionLog
from atoll.control.app import create_app
from atoll.control.events.outbound import parse_networks
from atoll.control.plane import ControlPlane
from atoll.control.sandboxes.orders import Policy
from atoll.control.sandboxes.sizing import Maximum
from atoll.control.store import Store, default_url
from atoll.edge import Edge
from atoll.edge.routes import LiveRoutes
from atoll.images.builds import TemplateBuilds, program
from atoll.images.store import TemplateStore
from atoll.isolation.base import BackendConfig
from atoll.model.errors import InvalidRequest
from atoll.model.network import is_address, split_targets
from atoll.node.supervisor import Supervisor
from atoll.wire.node.client import Connect, RemoteNode
from atoll.wire.node.server import NodeServer
from atoll.wire.node.transport import listening_unix, unix

EDGE_GRACE_S = 3.0
"""How long running requests may go on after a stop was asked for."""


@asynccontextmanager
async def serving(agent: Supervisor, path: Path) -> AsyncIterator[Connect]:
    """The node is spoken to by messages alone, on the socket `path`, also by the control plane of its own machine."""
    server = NodeServer(agent)
    async with listening_unix(path, server, {os.getuid()}):
        agent.subscribe(server)
        agent.subscribe_routes(server)
        yield unix(path)


@asynccontextmanager
async def platform(
    settings: Settings, keys: tuple[str, ...], sock: socket.socket, tls: TlsDomain | None = None
) -> AsyncIterator[Edge]:
    """A whole server, listening on the bound `sock` (and on `tls`'s) within the block; takes over what an earlier
    server left.

    Raises BackendUnavailable (no isolation tier works here), PlatformError, OSError.
    """
    domain = tls.domain if tls else settings.domain or f"localhost:{sock.getsockname()[1]}"
    maximum = Maximum(settings.max_cpu, settings.max_memory_mib, settings.max_disk_mib, settings.max_pids)
    policy = Policy(
        max_timeout_s=settings.max_timeout_s,
        max_sandboxes=settings.max_sandboxes,
        domain=domain,
        maximum=maximum,
        template_wait_s=settings.template_wait_s,
    )
    templates = TemplateStore(settings.templates_dir, holder=settings.data_dir)
    egress_private, names = split_targets(settings.egress_allow_private, "ATOLL_EGRESS_ALLOW_PRIVATE")
    for server in settings.name_servers:
        if not is_address(server):
            raise InvalidRequest(f"ATOLL_NAME_SERVERS takes IP addresses, not {server!r}")
    if names:
        raise InvalidRequest(f"ATOLL_EGRESS_ALLOW_PRIVATE takes addresses and CIDR ranges, not {names[0]!r}")
    async with (
        Store(settings.database_url or default_url(settings.data_dir)) as store,
        TemplateBuilds(program(settings.templates_dir)) as builds,
        Supervisor(
            data_dir=settings.data_dir,
            templates=templates,
            builds=builds,
            isolation=settings.isolation,
            keep_sandboxes=settings.keep_sandboxes,
            egress_allow_private=egress_private,
            name_servers=settings.name_servers or None,
            common=BackendConfig(settings.data_dir / "run", tools_dir=settings.tools_dir, environ=dict(os.environ)),
        ) as agent,
        serving(agent, settings.data_dir / "run" / "node.sock") as connect,
        RemoteNode(connect) as node,
        ControlPlane(
            store=store,
            nodes=[node],
            policy=policy,
            logs_dir=settings.data_dir / "logs",
            metrics_dir=settings.data_dir / "metrics",
            webhook_networks=parse_networks(settings.webhook_allow_private),
            keep_sandboxes=settings.keep_sandboxes,
        ) as control,
    ):
        node.subscribe(control.services.sandboxes)
        app = create_app(control.services, Authenticator(keys, store.keys))
        output = settings.max_output_mib_s << 20 if settings.max_output_mib_s is not None else None
        routes = LiveRoutes()
        node.subscribe_routes(routes)
        edge = Edge(routes, ClientVersionLog(app), domains=[domain], output_limit=output)
        known = {template.template_id for template in templates.list_templates()}
        builds.prepare([name for name in settings.prepare_templates if name not in known])
        try:
            await edge.listen(sock)
            if tls is not None:
                await edge.listen_tls(tls.sock, tls.context)
            yield edge
        finally:
            await edge.aclose(EDGE_GRACE_S)
