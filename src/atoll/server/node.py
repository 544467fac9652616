"""The node process: a Supervisor behind its socket, and the builds of templates."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from atoll.images.builds import TemplateBuilds, program
from atoll.images.lookup import Templates
from atoll.images.store import TemplateStore
from atoll.isolation import registry
from atoll.isolation.base import BackendConfig
from atoll.model.node_addresses import LOCAL
from atoll.model.sandbox import Limits
from atoll.model.sealing import Seal
from atoll.node.backends import Load
from atoll.node.directories import SandboxDirectories
from atoll.node.disk_space import DiskSpace
from atoll.node.egress import NodeEgress
from atoll.node.gateway import EgressGateway, NoGateway
from atoll.node.gpus import NodeGpus
from atoll.node.supervisor import Supervisor
from atoll.node.templates import NodeTemplates
from atoll.node.tiers import Tiers
from atoll.node.volumes import NodeVolumes
from atoll.objects import open_objects
from atoll.server.plan import Plan
from atoll.server.watchdog import Watchdog
from atoll.tls import Authority
from atoll.tls.peers import peer_context
from atoll.volumes.machine import MachineVolumes
from atoll.wire.egress.client import RemoteGateway
from atoll.wire.node.server import NodeServer
from atoll.wire.node.transport import listening_tls, listening_unix
from atoll.wire.unix import connect


async def run(plan: Plan, ready: Callable[[], None], stop: asyncio.Event) -> None:
    """Serves the front until `stop`. Raises BackendUnavailable (no tier works here), OSError."""
    gateway = RemoteGateway(
        functools.partial(connect, plan.gateway_socket),
        lambda: Authority.kept_in(plan.settings.data_dir / "tls", "egress"),
    )
    async with _node(plan, gateway) as agent, gateway.connected():
        server = NodeServer(agent)
        async with _listening(plan, server):
            agent.subscribe(server)
            agent.subscribe_routes(server)
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, agent.drain)
            ready()
            async with Watchdog("node"):
                await stop.wait()


@asynccontextmanager
async def _listening(plan: Plan, server: NodeServer) -> AsyncIterator[None]:
    if plan.agent_id is not None:
        async with listening_tls(plan.sock, server, peer_context(plan.identity, server=True)):
            yield
        return
    users = {os.getuid()} | ({plan.user} if plan.user is not None else set())
    async with listening_unix(plan.node_socket, server, users):
        plan.node_socket.chmod(0o666)  # who may speak is decided by the peer's id
        yield


def supervisor(
    *,
    data_dir: Path,
    templates: Templates,
    builds: TemplateBuilds | None = None,
    isolation: str = "auto",
    node_id: str = LOCAL,
    keep_sandboxes: bool = True,
    is_leased: bool = False,
    gateway: EgressGateway | None = None,
    seal: Seal | None = None,
    disk_reserve: int = 0,
    volumes: NodeVolumes | None = None,
    gpus: NodeGpus | None = None,
    load_backend: Load = registry.load,
    common: BackendConfig | None = None,
    total: Limits | None = None,
) -> Supervisor:
    """The node with all its parts.

    Args:
        data_dir: below it `sandboxes/`, `ready/`, `trash/`, `run/` are made. One server at a time.
        templates: what a create may name.
        builds: makes built-in templates that are missing; None: nothing does.
        isolation: the name of a tier, or `auto`.
        node_id, keep_sandboxes, is_leased: see Supervisor.
        gateway: the way out of sandboxes; None: they reach nothing.
        seal: in which tokens, environments and the values of egress rules are kept on disk; None: as they are.
        disk_reserve: bytes of the data directory's file system that sandboxes never get; 0: it is not watched.
        volumes: those of the machine; None: it has none.
        gpus: likewise.
        load_backend, common: see Tiers.
        total: what the limits of all sandboxes may add up to; None: whatever control goes by.
    """
    directories = SandboxDirectories(data_dir, seal)
    return Supervisor(
        directories=directories,
        tiers=Tiers(isolation, data_dir / "run", load_backend, common),
        templates=NodeTemplates(templates, builds),
        egress=NodeEgress(gateway or NoGateway(), directories),
        disk=DiskSpace(data_dir, disk_reserve),
        volumes=volumes,
        gpus=gpus,
        node_id=node_id,
        keep_sandboxes=keep_sandboxes,
        is_leased=is_leased,
        total=total,
    )


@asynccontextmanager
async def _node(plan: Plan, gateway: EgressGateway) -> AsyncIterator[Supervisor]:
    settings, capacity = plan.settings, plan.capacity
    objects = open_objects(settings.objects) if settings.objects else None
    templates = TemplateStore(settings.templates_dir, holder=settings.data_dir, objects=objects)
    async with (
        TemplateBuilds(program(settings.templates_dir)) as builds,
        supervisor(
            data_dir=settings.data_dir,
            templates=templates,
            builds=builds,
            isolation=settings.isolation,
            node_id=plan.agent_id or LOCAL,
            keep_sandboxes=settings.keep_sandboxes,
            is_leased=plan.agent_id is not None,
            gateway=gateway,
            seal=Seal(plan.seal_key),
            disk_reserve=capacity.disk_reserve_mib << 20,
            volumes=MachineVolumes(settings.data_dir),
            gpus=NodeGpus(settings.cdi_dirs, settings.gpu_share),
            common=BackendConfig(
                settings.data_dir / "run",
                tools_dir=settings.tools_dir,
                environ=dict(os.environ),
                at_once=capacity.at_once,
            ),
            total=capacity.total,
        ) as agent,
    ):
        known = {template.template_id for template in templates.list_templates()}
        builds.prepare([name for name in settings.prepare_templates if name not in known])
        yield agent
