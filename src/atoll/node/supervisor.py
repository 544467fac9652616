"""The node: runs sandboxes on this machine. Implements NodeClient (for control) and RouteTable (for the edge).

Owns the node's lifetime and the order of a create and a kill; the parts that it is made of own the rest (see `tiers`,
`templates`, `directories`, `disk_space`, `egress`, `live`, `takeover`, `reports`). Does not know who a sandbox belongs
to, when it should end, or what a request looks like: that is control's. Knows no concrete isolation tier.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from atoll.isolation.guest_client import order
from atoll.model.errors import Conflict, CreateFailed, PlatformError, PortClosed, SandboxGone
from atoll.model.network import NetworkConnection, NetworkPolicy
from atoll.model.sandbox import SANDBOX_ID, EndReason, Limits, PauseMode, SandboxPaths, SandboxSpec, SandboxStats
from atoll.model.seams import NodeEvents, NodeImage, NodePause, NodeSandbox, NodeSnapshot, NodeStatus, Route, RouteSink
from atoll.model.template import Template
from atoll.model.volume import VOLUME_PORT, is_volume_id
from atoll.node.blocking import in_thread
from atoll.node.directories import SandboxDirectories
from atoll.node.disk_space import DiskSpace
from atoll.node.driver import Making
from atoll.node.egress import NodeEgress
from atoll.node.folding import Folding
from atoll.node.gpus import NodeGpus
from atoll.node.lease import Lease, now
from atoll.node.live import LiveSandbox, LiveSandboxes
from atoll.node.machine import MachineReading, memory_in_use
from atoll.node.pausing import NodePausing, describe, size_of
from atoll.node.reports import Reports
from atoll.node.takeover import StartReport, TakeOver
from atoll.node.templates import NodeTemplates
from atoll.node.tiers import Tiers
from atoll.node.volumes import NodeVolumes, NoVolumes


class Supervisor:
    """`async with Supervisor(...) as node:` adopts and reclaims on entry; on exit detaches, or ends all it runs.

    Served to control by `wire.node.server`, which gets its events and routes; `server.node` builds it:

        async with supervisor(data_dir=..., templates=store, isolation="auto") as node:
            server = NodeServer(node)
            node.subscribe(server)
            node.subscribe_routes(server)

    Args:
        node_id: stable over restarts.
        is_leased: what it runs stands still while control does not renew its lease (`node.lease`).
        keep_sandboxes: on exit leave them running for the next server to adopt; False ends them.

    Entering raises BackendUnavailable when the tier (or for `auto` every tier) does not work here.
    """

    def __init__(
        self,
        *,
        directories: SandboxDirectories,
        tiers: Tiers,
        templates: NodeTemplates,
        egress: NodeEgress,
        disk: DiskSpace,
        volumes: NodeVolumes | None = None,
        gpus: NodeGpus | None = None,
        node_id: str = "local",
        keep_sandboxes: bool = True,
        total: Limits | None = None,
        is_leased: bool = False,
    ) -> None:
        self._node_id = node_id
        self._total = total
        self._keep = keep_sandboxes
        self.directories = directories
        self._tiers = tiers
        self._templates = templates
        self._egress = egress
        self._disk = disk
        self._volumes = volumes or NoVolumes()
        self._gpus = gpus or NodeGpus()
        self._sink: RouteSink | None = None
        self._tasks = asyncio.TaskGroup()
        self._reports = Reports(self._tasks)
        self.live = LiveSandboxes(self._tasks, directories, egress, self._reports)
        self._folding = Folding(templates.images)
        self._pausing = NodePausing(self._tasks, self.live, egress, templates.images, self._folding)
        self._lease = Lease(self.live, is_leased=is_leased)
        self._reading = MachineReading(directories.root)
        self._stack = AsyncExitStack()
        self._stopping = self._draining = False
        self.start_report = StartReport(0, 0, 0)

    # Lifetime

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._tiers.aclose)
            await self._tiers.open()
            left = self.directories.open()
            self._volumes.open()
            stack.push_async_callback(self._volumes.aclose)
            stack.callback(self.directories.close)
            await stack.enter_async_context(self._tasks)
            helpers = [self._tasks.create_task(work, name=name) for name, work in self.directories.tasks().items()]
            helpers.append(self._tasks.create_task(self._disk.run(self.live.handles, self._volumes), name="disk space"))
            stack.push_async_callback(self._stop, helpers)
            parts = (self._egress, self._templates, self._volumes, self._gpus)
            take_over = TakeOver(self.directories, self._tiers, self.live, *parts)
            self.start_report = await take_over.run(left)
            helpers.append(self._tasks.create_task(self._lease.run(), name="lease"))
            helpers.append(self._tasks.create_task(self._gpus.run(), name="gpus"))
            self._tasks.create_task(self._templates.remove_unused_builds(), name="superseded builds")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """What leaving the context does. Idempotent."""
        await self._stack.aclose()

    async def _stop(self, helpers: Sequence[asyncio.Task[None]]) -> None:
        self._stopping = True
        self._tiers.start_no_more()
        await self._folding.aclose()
        drivers = [live.driver for _, live in self.live]
        if self._keep:
            for driver in drivers:
                driver.detach()
        else:
            await asyncio.gather(*(driver.kill() for driver in drivers))
        await asyncio.gather(*(driver.finished.wait() for driver in drivers))
        await self.directories.settle()
        for helper in helpers:
            helper.cancel()

    def drain(self) -> None:
        """Asks control for no new sandboxes from now on, until the node is started again. What runs goes on."""
        self._draining = True

    def status(self) -> NodeStatus:
        """What control gets with each heartbeat."""
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        drains, memory, machine = self._draining or self._stopping, memory_in_use(), self._reading.now()
        count = sum(1 for _ in self.live)
        return NodeStatus(
            count,
            drains,
            round(load, 2),
            round(memory, 2),
            self._total,
            machine,
            at=now(),
            gpus=self._gpus.free(live.spec for _, live in self.live),
        )

    # NodeClient

    @property
    def node_id(self) -> str:
        return self._node_id

    async def create(self, request: SandboxSpec) -> NodeSandbox:
        """See NodeClient.create."""
        began = time.monotonic()
        if self._stopping:
            raise CreateFailed("the server is stopping")
        sandbox_id = request.sandbox_id
        if not SANDBOX_ID.fullmatch(sandbox_id) or sandbox_id in self.live:
            raise CreateFailed(f"sandbox id {sandbox_id!r} cannot be used")
        self._disk.check_room()
        await self._templates.fetch(request)
        base = self._templates.base_of(request)
        backend = await self._tiers.for_create(base.tier if base.memory else request.tier or base.tier)
        spec = self._egress.prepared(request)
        paths = SandboxPaths(base.layers, self.directories.of(sandbox_id), base.memory)
        spec = await self._gpus.prepared(spec, (live.spec for _, live in self.live))
        # Nothing is awaited from the choice of devices until they are this sandbox's.
        making = Making(backend, spec, paths, self._volumes, self._gpus)
        live = self.live.begin(making, lambda driver: driver.create(making))
        try:
            handle = await asyncio.shield(live.driver.started)
            await self._egress.attach(handle, request.network)
        except asyncio.CancelledError:
            # The control process is gone, or has given it up: nobody else would end it.
            self._tasks.create_task(live.driver.kill(), name=f"given up {sandbox_id}")
            raise
        except Exception:
            await live.driver.kill()
            raise
        self.live.publish(live, handle)
        return NodeSandbox(sandbox_id, backend.name, _steps_ms(began, handle.stages, time.monotonic()))

    async def assign(self, spec: SandboxSpec) -> NodeSandbox:
        """See NodeClient.assign."""
        began = time.monotonic()
        live = self.live.get(spec.sandbox_id)
        if live is None:
            raise SandboxGone(spec.sandbox_id)
        async with live.turn:
            handle, before = self.live.handle(spec.sandbox_id), live.spec
            if before.devices:  # with what their use needs in the environment
                spec = replace(spec, devices=before.devices, env_vars={**before.env_vars, **spec.env_vars})
            prepared = self._egress.prepared(spec)
            word = {"envVars": dict(spec.env_vars), "accessToken": spec.access_token or ""}
            await order(handle, "/init", word)
            await live.driver.become(prepared)
            if prepared.network != before.network:
                await self._egress.update(handle, spec.network)
            self.live.become(live, prepared)
        return NodeSandbox(spec.sandbox_id, live.tier, {"assigned": round((time.monotonic() - began) * 1000, 3)})

    async def kill(self, sandbox_id: str, reason: EndReason) -> bool:
        """See NodeClient.kill."""
        live = self.live.get(sandbox_id)
        if live is None:
            return False
        await self.live.close(live)
        return await asyncio.shield(live.driver.kill())

    async def pause(self, sandbox_id: str, mode: PauseMode, need_answer: bool) -> NodePause:
        """See NodeClient.pause."""
        await self._lease.in_force()
        return await self._pausing.pause(sandbox_id, mode, need_answer=need_answer)

    async def resume(self, sandbox_id: str, mode: PauseMode, network: NetworkPolicy) -> NodeSandbox:
        """See NodeClient.resume."""
        began = time.monotonic()
        handle = await self._pausing.resume(sandbox_id, mode, network)
        return NodeSandbox(sandbox_id, handle.tier, _steps_ms(began, handle.stages, time.monotonic()))

    async def renew(self, lease_s: float, since: float) -> None:
        """See NodeClient.renew."""
        await self._lease.renew(lease_s, since)

    async def stats(self, sandbox_id: str) -> SandboxStats:
        """See NodeClient.stats."""
        stats = await self.live.handle(sandbox_id).stats()
        live = self.live.get(sandbox_id)
        if live is None or not live.spec.devices:
            return stats
        return replace(stats, gpus=await self._gpus.use_of(live.spec.devices))

    def unenforced(self, tier: str) -> Sequence[str]:
        """See NodeClient.unenforced."""
        return self._tiers.unenforced(tier)

    async def update_network(self, sandbox_id: str, network: NetworkPolicy) -> None:
        """See NodeClient.update_network."""
        await self._egress.update(self.live.handle(sandbox_id), network)

    async def connections(self, sandbox_id: str) -> Sequence[NetworkConnection]:
        """See NodeClient.connections."""
        self.live.handle(sandbox_id)
        return await self._egress.connections(sandbox_id)

    async def flush_logs(self, sandbox_id: str) -> None:
        """See NodeClient.flush_logs."""
        live = self.live.get(sandbox_id)
        if live is not None and live.tail is not None:
            await live.tail.drain()

    async def sandboxes(self) -> Sequence[NodeSandbox]:
        """See NodeClient.sandboxes."""
        paused = {name: live.making.paths.state_dir for name, live in self.live if live.driver.paused is not None}
        sizes = await asyncio.to_thread(lambda: {name: size_of(place) for name, place in paused.items()})
        return [
            NodeSandbox(
                name,
                live.tier,
                paused=describe(live, sizes.get(name, 0)) if live.driver.paused is not None else None,
                generation=live.spec.generation,
            )
            for name, live in self.live
            if live.made and not live.driver.has_stopped
        ]

    async def make_template(self, name: str, wait_s: float) -> None:
        """See NodeClient.make_template."""
        await self._templates.make(name, wait_s)

    async def commit(self, sandbox_id: str, image_id: str) -> None:
        """See NodeClient.commit."""
        live = self._alive(sandbox_id)
        backend, layers = await self._tiers.get(live.tier), live.layers

        async def save(state_dir: Path) -> None:
            async with in_thread(self._templates.images.capturing(image_id, layers, live.tier)) as capture:
                capture.put(await backend.keep_written(state_dir, capture.target))

        await self._end_saving(live, save)
        self._folding.soon(image_id, backend)

    async def commit_layers(
        self, sandbox_id: str, directory: str, first: int, below: str | None, image_ids: Sequence[str]
    ) -> None:
        """See NodeClient.commit_layers."""
        live = self._alive(sandbox_id)
        backend, images = await self._tiers.get(live.tier), self._templates.images
        layers = images.find(below) if below is not None else ()

        async def save(state_dir: Path) -> None:
            with images.unfinished() as place:
                await backend.copy_written(state_dir, place)
                await asyncio.to_thread(images.make_of, place, directory, first, image_ids, layers)

        await self._end_saving(live, save)

    def _alive(self, sandbox_id: str) -> LiveSandbox:
        live = self.live.get(sandbox_id)
        if live is None:
            raise SandboxGone(sandbox_id)
        return live

    async def _end_saving(self, live: LiveSandbox, save: Callable[[Path], Awaitable[None]]) -> None:
        sandbox_id = live.driver.sandbox_id
        await self.live.close(live)
        try:
            await asyncio.shield(live.driver.end_saving(save))
        except (OSError, ValueError) as error:
            raise PlatformError(f"what the sandbox {sandbox_id!r} has written cannot be kept: {error}") from error

    async def snapshot(self, sandbox_id: str, image_id: str, mode: PauseMode | None, *, durable: bool) -> NodeSnapshot:
        """See NodeClient.snapshot."""
        self._disk.check_room()
        await self._lease.in_force()
        return await self._pausing.snapshot(sandbox_id, mode, image_id, durable=durable)

    async def has_image(self, image_id: str) -> bool:
        """See NodeClient.has_image."""
        return self._templates.images.has(image_id)

    async def share_image(self, image_id: str) -> None:
        """See NodeClient.share_image."""
        await self._templates.share(image_id)

    async def images(self) -> Sequence[NodeImage]:
        """See NodeClient.images."""
        return await asyncio.to_thread(self._templates.images.listed)

    async def keep_images(self, image_ids: Sequence[str]) -> int:
        """See NodeClient.keep_images."""
        try:
            in_use = {layer for _, live in self.live for layer in live.layers}
            return await asyncio.to_thread(self._templates.images.keep, image_ids, in_use)
        except OSError as error:
            raise PlatformError(f"unused images cannot be removed: {error}") from error

    async def create_volume(self, volume_id: str, size_mib: int, token_digest: str) -> None:
        """See NodeClient.create_volume."""
        self._disk.check_room()
        await self._volumes.create(volume_id, size_mib, token_digest)
        if self._sink is not None:
            self._sink.add(self._volume_route(volume_id))

    async def remove_volume(self, volume_id: str) -> None:
        """See NodeClient.remove_volume."""
        users = [
            name
            for name, live in self.live
            if not live.driver.has_stopped and any(one.volume_id == volume_id for one in live.spec.volumes)
        ]
        if users:
            raise Conflict(f"the volume is mounted in sandbox {users[0]!r}", hint="kill it first")
        await self._volumes.remove(volume_id)
        if self._sink is not None:
            self._sink.remove(volume_id)

    def _volume_route(self, volume_id: str) -> Route:
        async def dial(port: int) -> socket.socket:
            if port != VOLUME_PORT:
                raise PortClosed(volume_id, port)
            return await self._volumes.dial(volume_id)

        return Route(sandbox_id=volume_id, dial=dial)

    async def templates(self) -> Sequence[Template]:
        """See NodeClient.templates."""
        return self._templates.list()

    def subscribe(self, events: NodeEvents) -> None:
        """See Reports.subscribe."""
        self._reports.subscribe(events)

    def subscribe_routes(self, sink: RouteSink) -> None:
        """See LiveSandboxes.subscribe_routes."""
        self._sink = sink
        self.live.subscribe_routes(sink)
        for volume_id in self._volumes.ids():
            sink.add(self._volume_route(volume_id))

    def tiers(self) -> dict[str, Sequence[str]]:
        """Each tier that runs, and the limits that its sandboxes do not keep."""
        return self._tiers.running()

    # RouteTable

    def find(self, sandbox_id: str) -> Route | None:
        """See RouteTable.find."""
        if is_volume_id(sandbox_id):
            return self._volume_route(sandbox_id) if sandbox_id in self._volumes.ids() else None
        return self.live.find(sandbox_id)

    def routes(self) -> Sequence[Route]:
        """See RouteTable.routes."""
        return [*self.live.routes(), *(self._volume_route(one) for one in self._volumes.ids())]


def _steps_ms(began: float, stages: Mapping[str, float], ended: float) -> dict[str, float]:
    """How long each step took until it was reached. What was reached before the create was asked for took no time."""
    steps: dict[str, float] = {}
    previous = began
    for name, reached in sorted(stages.items(), key=lambda stage: stage[1]):
        if reached >= began:
            steps[name] = round((reached - previous) * 1000, 3)
            previous = reached
    return {**steps, "attached": round((ended - previous) * 1000, 3)}
