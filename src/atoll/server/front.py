"""The front process: the control plane and the edge, which reach the node by messages alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from atoll.console import Console
from atoll.control.access.audit import DIRECTORY, AuditLog
from atoll.control.access.audit_entries import Audit, Audited
from atoll.control.access.auth import Authenticator
from atoll.control.access.client_versions import ClientVersionLog
from atoll.control.app import create_app, prepare
from atoll.control.clock import SystemClock
from atoll.control.events.outbound import parse_networks
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.plane import ControlPlane
from atoll.control.sandboxes.orders import Policy
from atoll.control.store import Store
from atoll.control.telemetry.tracing import Tracing, tracing_of
from atoll.edge import Edge
from atoll.edge.output_rate import OutputRates
from atoll.edge.routes import LiveRoutes
from atoll.egress.forbidden import HostNetworks
from atoll.model.node_addresses import LOCAL, NodeAddress
from atoll.model.sealing import Seal
from atoll.server.plan import Plan, control_dir
from atoll.server.remote_nodes import RemoteNodes
from atoll.server.watchdog import Watchdog
from atoll.wire.node.client import RemoteNode
from atoll.wire.node.transport import unix

EDGE_GRACE_S = 3.0
"""How long running requests may go on after a stop was asked for."""


async def run(plan: Plan, ready: Callable[[], None], stop: asyncio.Event) -> None:
    """Serves the bound sockets until `stop`. Raises PlatformError, OSError."""
    settings = plan.settings
    kept = control_dir(settings.data_dir)
    routes = LiveRoutes()
    nodes = NodeRegistry()
    tracing = tracing_of(os.environ)
    audit_log = AuditLog(kept / DIRECTORY, settings.audit_mib)
    async with (
        _open(audit_log, tracing),
        Store(plan.database_url, Seal(plan.seal_key), alone=True) as store,
        RemoteNode(unix(plan.node_socket), presence=nodes, expected_id=LOCAL) as node,
        RemoteNodes(plan.identity, nodes, routes) as remotes,
        _connected(remotes, plan.nodes),
        ControlPlane(
            store=store,
            nodes=nodes,
            links=remotes,
            policy=_policy(plan),
            logs_dir=kept / "logs",
            metrics_dir=kept / "metrics",
            templates_dir=kept / "templates",
            mark=kept / "state-mark",
            routes=routes,
            webhook_forbidden=HostNetworks(parse_networks(settings.webhook_allow_private)),
            clock=SystemClock(settings.clock_offset_file),
            keep_sandboxes=settings.keep_sandboxes,
            tracing=tracing,
        ) as control,
    ):
        node.subscribe(control.node_events)
        node.subscribe_routes(routes)
        remotes.subscribe(control.node_events, control.node_of)
        auth = Authenticator(plan.keys, store.keys)
        audit = Audit(audit_log, Audited(settings.audit))
        rest = create_app(control.services, auth, audit, tracing)
        output = settings.max_output_mib_s << 20 if settings.max_output_mib_s is not None else None
        rates = OutputRates(output, time.monotonic)
        app = Console(
            rest,
            services=control.services,
            auth=auth,
            nodes=nodes,
            routes=routes,
            spend=rates.spend if rates.limited else None,
            audit=audit,
        )
        watchdog = Watchdog("front", control.services.figures.stalls.labels("front").inc)
        edge = Edge(routes, watchdog.shown_by(ClientVersionLog(app)), domains=[plan.domain], rates=rates)
        try:
            await edge.listen(plan.sock)
            if plan.tls is not None:
                await edge.listen_tls(plan.tls.sock, plan.tls.context)
            ready()
            async with watchdog:
                await asyncio.to_thread(prepare, rest)
                await stop.wait()
        finally:
            await edge.aclose(EDGE_GRACE_S)
            await app.aclose()
            audit.flush()


@asynccontextmanager
async def _open(log: AuditLog, tracing: Tracing) -> AsyncIterator[None]:
    with log, contextlib.closing(tracing):
        yield


@asynccontextmanager
async def _connected(remotes: RemoteNodes, addresses: Sequence[NodeAddress]) -> AsyncIterator[None]:
    for address in addresses:
        await remotes.connect(address)
    yield


def _policy(plan: Plan) -> Policy:
    settings = plan.settings
    return Policy(
        max_timeout_s=settings.max_timeout_s,
        max_sandboxes=settings.max_sandboxes,
        domain=plan.domain,
        maximum=plan.capacity.maximum,
        volume_mib=plan.capacity.volume_mib,
        volumes_mib=plan.capacity.volumes_mib,
        team_images_mib=plan.capacity.team_images_mib,
        team=plan.capacity.team,
        node=plan.capacity.total,
        network_mib_s=settings.max_network_mib_s,
        disk_mib_s=settings.max_disk_mib_s,
        template_wait_s=settings.template_wait_s,
        build_timeout_s=settings.build_timeout_s,
        team_builds=settings.team_builds,
        has_objects=bool(settings.objects),
        insecure_registries=settings.insecure_registries,
        warm=settings.warm,
    )
