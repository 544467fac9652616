"""A control plane on a node with the fake tier, in this process: all is real but the wall, and no port is opened.

async with plane(tmp_path) as world:
    response = await world.client.post("/v2/sandboxes", json={"templateID": "base"})
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
from fastapi import FastAPI
from starlette.types import ASGIApp

from atoll.control.access.auth import Authenticator
from atoll.control.access.gate import Gate
from atoll.control.app import api, observer
from atoll.control.clock import Clock
from atoll.control.events.outbound import parse_networks
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.plane import ControlPlane
from atoll.control.sandboxes.orders import Policy
from atoll.control.services import Services
from atoll.control.store import Store
from atoll.control.telemetry.tracing import NoTracing
from atoll.edge.routes import LiveRoutes
from atoll.images.layers import ImageLayers
from atoll.images.transfer import ImageTransfer
from atoll.isolation.registry import BackendFactory
from atoll.model.addresses import ForbiddenNetworks
from atoll.model.errors import TemplateNotFound
from atoll.model.sandbox import Limits
from atoll.model.template import Template
from atoll.node.backends import Load
from atoll.node.gpus import NodeGpus
from atoll.node.supervisor import Supervisor
from atoll.server import node as node_process
from atoll.testing import fake
from support.databases import migrated_sqlite

API_KEY = "e2b_" + "0" * 40


@dataclass(frozen=True)
class World:
    """What a test may reach for."""

    client: httpx.AsyncClient
    app: ASGIApp
    services: Services
    node: Supervisor
    store: Store
    data_dir: Path

    async def create(self, **body: object) -> str:
        """The id of a new sandbox."""
        response = await self.client.post("/v2/sandboxes", json={"templateID": "base", **body})
        assert response.status_code == 201, response.text
        sandbox_id: str = response.json()["sandboxID"]
        return sandbox_id


class MemoryTemplates:
    """Templates that need no disk: the fake tier looks at no layer. `gpu`: what those of these names ask for."""

    def __init__(self, names: Sequence[str] = ("base", "team/other"), gpu: Mapping[str, str] | None = None) -> None:
        self._templates = [
            Template(
                template_id=f"tid{number}",
                names=(name,),
                build_id=f"00000000-0000-4000-8000-00000000000{number}",
                layers=(Path("/"),),
                limits=Limits(),
                created_at=datetime(2030, 1, 1, tzinfo=UTC),
                env_vars={"FROM_TEMPLATE": "t"},
                gpu=(gpu or {}).get(name),
            )
            for number, name in enumerate(names)
        ]

    @property
    def images(self) -> ImageLayers:
        """None, and none can be made: the fake tier keeps nothing."""
        return ImageLayers(Path("/nonexistent"))

    @property
    def transfer(self) -> ImageTransfer:
        """There is no other machine."""
        return ImageTransfer(Path("/nonexistent"), self.images, None)

    def list_templates(self) -> list[Template]:
        return list(self._templates)

    def find_template(self, name: str) -> Template:
        for template in self._templates:
            if name == template.template_id or name in template.names:
                return template
        raise TemplateNotFound(name)

    def hold(self, layers: Collection[Path]) -> bool:
        return True

    def hold_nothing(self) -> None:
        """Nothing is ever taken away here."""

    def remove_unused_builds(self) -> int:
        return 0


def load_fake(name: str) -> BackendFactory:
    """The registry for tests: every name is the fake tier."""
    return fake.backend


def supervisor(
    data_dir: Path,
    *,
    node_id: str = "local",
    keep: bool = False,
    templates: MemoryTemplates | None = None,
    gpus: NodeGpus | None = None,
    load: Load = load_fake,
) -> Supervisor:
    """A node with the fake tier."""
    return node_process.supervisor(
        data_dir=data_dir,
        templates=templates or MemoryTemplates(),
        isolation="fake",
        node_id=node_id,
        keep_sandboxes=keep,
        gpus=gpus,
        load_backend=load,
    )


@asynccontextmanager
async def _present(nodes: NodeRegistry, node: Supervisor) -> AsyncIterator[None]:
    """Registered, with a heartbeat, as over `wire.node`."""
    nodes.registered(node, node.status())

    async def beat() -> None:
        while True:
            await asyncio.sleep(1)
            nodes.beat(node.node_id, node.status())

    beating = asyncio.create_task(beat())
    yield
    beating.cancel()
    await asyncio.wait([beating])


_idle: list[FastAPI] = []
"""The routes of planes that have ended: the framework takes longer to build them than most tests take."""


@contextmanager
def application(services: Services, store: Store) -> Iterator[Gate]:
    """What `create_app` makes."""
    routes = _idle.pop() if _idle else api(services)
    routes.state.services = services
    yield Gate(routes, Authenticator([API_KEY], store.keys), observer(services, None), NoTracing())
    _idle.append(routes)


@asynccontextmanager
async def plane(
    data_dir: Path,
    *,
    policy: Policy | None = None,
    clock: Clock | None = None,
    keep: bool = False,
    webhook_networks: Sequence[str] = (),
    database_url: str | None = None,
    templates: MemoryTemplates | None = None,
    gpus: NodeGpus | None = None,
) -> AsyncIterator[World]:
    """See the module. `database_url` None: SQLite in the data directory."""
    nodes, routes = NodeRegistry(), LiveRoutes()
    async with (
        Store(database_url or migrated_sqlite(data_dir)) as store,
        supervisor(data_dir, keep=keep, templates=templates, gpus=gpus) as node,
        _present(nodes, node),
        ControlPlane(
            store=store,
            nodes=nodes,
            policy=policy,
            clock=clock,
            keep_sandboxes=keep,
            logs_dir=data_dir / "logs",
            metrics_dir=data_dir / "metrics",
            templates_dir=data_dir / "template-builds",
            mark=data_dir / "state-mark",
            routes=routes,
            webhook_forbidden=lambda: ForbiddenNetworks(private_allowed=parse_networks(webhook_networks)),
        ) as control,
    ):
        node.subscribe(control.node_events)
        node.subscribe_routes(routes)
        with application(control.services, store) as app:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://control", headers={"X-API-Key": API_KEY}
            ) as client:
                yield World(client, app, control.services, node, store, data_dir)
