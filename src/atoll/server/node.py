"""The node process: a Supervisor behind its socket, and the builds of templates."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from atoll.config import Settings
from atoll.images.builds import TemplateBuilds, program
from atoll.images.store import TemplateStore
from atoll.isolation.base import BackendConfig
from atoll.model.capacity import Capacity
from atoll.model.errors import InvalidRequest
from atoll.model.network import Network, is_address, split_targets
from atoll.node.supervisor import Supervisor
from atoll.server.plan import Plan
from atoll.server.watchdog import Watchdog
from atoll.wire.node.server import NodeServer
from atoll.wire.node.transport import listening_unix


async def run(plan: Plan, ready: Callable[[], None], stop: asyncio.Event) -> None:
    """Serves the front until `stop`. Raises BackendUnavailable (no tier works here), InvalidRequest, OSError."""
    async with _node(plan.settings, plan.capacity) as agent:
        server = NodeServer(agent)
        users = {os.getuid()} | ({plan.user} if plan.user is not None else set())
        async with listening_unix(plan.node_socket, server, users):
            plan.node_socket.chmod(0o666)  # who may speak is decided by the peer's id
            agent.subscribe(server)
            agent.subscribe_routes(server)
            ready()
            async with Watchdog("node"):
                await stop.wait()


@asynccontextmanager
async def _node(settings: Settings, capacity: Capacity) -> AsyncIterator[Supervisor]:
    templates = TemplateStore(settings.templates_dir, holder=settings.data_dir)
    async with (
        TemplateBuilds(program(settings.templates_dir)) as builds,
        Supervisor(
            data_dir=settings.data_dir,
            templates=templates,
            builds=builds,
            isolation=settings.isolation,
            keep_sandboxes=settings.keep_sandboxes,
            egress_allow_private=_private_networks(settings),
            name_servers=settings.name_servers or None,
            disk_reserve=capacity.disk_reserve_mib << 20,
            common=BackendConfig(
                settings.data_dir / "run",
                tools_dir=settings.tools_dir,
                environ=dict(os.environ),
                at_once=capacity.at_once,
            ),
        ) as agent,
    ):
        known = {template.template_id for template in templates.list_templates()}
        builds.prepare([name for name in settings.prepare_templates if name not in known])
        yield agent


def _private_networks(settings: Settings) -> tuple[Network, ...]:
    networks, names = split_targets(settings.egress_allow_private, "ATOLL_EGRESS_ALLOW_PRIVATE")
    if names:
        raise InvalidRequest(f"ATOLL_EGRESS_ALLOW_PRIVATE takes addresses and CIDR ranges, not {names[0]!r}")
    for server in settings.name_servers:
        if not is_address(server):
            raise InvalidRequest(f"ATOLL_NAME_SERVERS takes IP addresses, not {server!r}")
    return networks
