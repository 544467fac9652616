"""The node process: a Supervisor behind its socket, and the builds of templates."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from atoll.config import Settings
from atoll.egress.budget import Budget
from atoll.egress.forbidden import HostNetworks
from atoll.egress.gateway import EgressContext
from atoll.egress.intercept import Interception
from atoll.egress.registry import EgressRegistry
from atoll.images.builds import TemplateBuilds, program
from atoll.images.lookup import Templates
from atoll.images.store import TemplateStore
from atoll.isolation import registry
from atoll.isolation.base import BackendConfig
from atoll.model.errors import InvalidRequest
from atoll.model.network import Network, is_address, split_targets
from atoll.model.sealing import Seal
from atoll.node.backends import Load
from atoll.node.directories import SandboxDirectories
from atoll.node.disk_space import DiskSpace
from atoll.node.egress import NodeEgress
from atoll.node.supervisor import Supervisor
from atoll.node.templates import NodeTemplates
from atoll.node.tiers import Tiers
from atoll.server.plan import Plan
from atoll.server.watchdog import Watchdog
from atoll.tls import Authority
from atoll.wire.node.server import NodeServer
from atoll.wire.node.transport import listening_unix


async def run(plan: Plan, ready: Callable[[], None], stop: asyncio.Event) -> None:
    """Serves the front until `stop`. Raises BackendUnavailable (no tier works here), InvalidRequest, OSError."""
    async with _node(plan) as agent:
        server = NodeServer(agent)
        users = {os.getuid()} | ({plan.user} if plan.user is not None else set())
        async with listening_unix(plan.node_socket, server, users):
            plan.node_socket.chmod(0o666)  # who may speak is decided by the peer's id
            agent.subscribe(server)
            agent.subscribe_routes(server)
            ready()
            async with Watchdog("node"):
                await stop.wait()


def supervisor(
    *,
    data_dir: Path,
    templates: Templates,
    builds: TemplateBuilds | None = None,
    isolation: str = "auto",
    keep_sandboxes: bool = True,
    egress_allow_private: tuple[Network, ...] = (),
    name_servers: tuple[str, ...] | None = None,
    seal: Seal | None = None,
    disk_reserve: int = 0,
    load_backend: Load = registry.load,
    common: BackendConfig | None = None,
) -> Supervisor:
    """The node with all its parts.

    Args:
        data_dir: below it `sandboxes/`, `ready/`, `trash/`, `run/`, `tls/` are made. One server at a time.
        templates: what a create may name.
        builds: makes built-in templates that are missing; None: nothing does.
        isolation: the name of a tier, or `auto`.
        keep_sandboxes: see Supervisor.
        egress_allow_private: private networks that sandboxes may reach.
        name_servers: where sandboxes' DNS questions are sent; None: the host's own name servers.
        seal: in which the values of egress rules are kept on disk; None: as they are.
        disk_reserve: bytes of the data directory's file system that sandboxes never get; 0: it is not watched.
        load_backend, common: see Tiers.
    """
    directories = SandboxDirectories(data_dir)
    interception = Interception(lambda: Authority(data_dir / "tls", "egress"))
    gateway = EgressRegistry(
        EgressContext(HostNetworks(egress_allow_private), Budget.of_this_process(), interception, name_servers)
    )
    return Supervisor(
        directories=directories,
        tiers=Tiers(isolation, data_dir / "run", load_backend, common),
        templates=NodeTemplates(templates, builds),
        egress=NodeEgress(gateway, interception, directories, seal or Seal()),
        disk=DiskSpace(data_dir, disk_reserve),
        keep_sandboxes=keep_sandboxes,
    )


@asynccontextmanager
async def _node(plan: Plan) -> AsyncIterator[Supervisor]:
    settings, capacity = plan.settings, plan.capacity
    templates = TemplateStore(settings.templates_dir, holder=settings.data_dir)
    async with (
        TemplateBuilds(program(settings.templates_dir)) as builds,
        supervisor(
            data_dir=settings.data_dir,
            templates=templates,
            builds=builds,
            isolation=settings.isolation,
            keep_sandboxes=settings.keep_sandboxes,
            egress_allow_private=_private_networks(settings),
            name_servers=settings.name_servers or None,
            seal=Seal(plan.seal_key),
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
