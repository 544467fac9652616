"""The node: runs sandboxes on this machine. Implements NodeClient (for control) and RouteTable (for the edge).

Owns the state directories, one driver task per sandbox, and adoption and reclaim at start. Does not know who a sandbox
belongs to, when it should end, or what a request looks like: that is control's. Knows no concrete isolation tier.

    <data_dir>/sandboxes/<id>/   one sandbox's own directory, 0700 (`isolation.directory`)
    <data_dir>/ready/            directories of sandboxes to come
    <data_dir>/trash/            directories of dead sandboxes on their way out
    <data_dir>/run/<tier>/       a backend's own directory
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from atoll.egress.budget import Budget
from atoll.egress.forbidden import HostNetworks
from atoll.egress.gateway import EgressContext
from atoll.egress.intercept import Interception, tell_guest_to_trust
from atoll.egress.registry import EgressRegistry
from atoll.images.builds import TemplateBuilds
from atoll.images.lookup import Templates
from atoll.isolation import directory, registry
from atoll.isolation.base import BackendConfig, Capability, IsolationBackend, SandboxHandle
from atoll.isolation.directory import VERSION, Newer, Recorded
from atoll.isolation.guest_client import order
from atoll.model.errors import (
    AtollError,
    BackendUnavailable,
    CallerError,
    CreateFailed,
    NotOffered,
    PlatformError,
    SandboxGone,
    TemplateNotFound,
)
from atoll.model.logs import LogEntry
from atoll.model.network import Network, NetworkConnection, NetworkPolicy
from atoll.model.sandbox import SANDBOX_ID, EndReason, OomKill, SandboxPaths, SandboxSpec, SandboxStats
from atoll.model.seams import NodeEvents, NodeSandbox, Route, RouteSink
from atoll.model.template import Template
from atoll.node.adoption import Fate, fate, look
from atoll.node.backends import ChosenBackend, Load, choose_backend, may_be_asked_for, start_backend
from atoll.node.driver import Ended, SandboxDriver
from atoll.node.log_tail import LogTail
from atoll.node.oom import oom_note
from atoll.node.ready import ReadyDirectories
from atoll.node.trash import Trash
from atoll.tls import Authority

_log = structlog.get_logger("atoll.node")

_TRASH_GRACE_S = 10.0
_LIMITS = {
    "cpu": Capability.LIMITS_CPU,
    "memory": Capability.LIMITS_MEMORY,
    "pids": Capability.LIMITS_PIDS,
    "disk": Capability.LIMITS_DISK,
}
_TEMPLATE_FRESH_S = 2.0


@dataclass(slots=True)
class _Live:
    driver: SandboxDriver
    tier: str
    layers: tuple[Path, ...] = ()
    """What it stands on; not known of one that an earlier server made."""
    handle: SandboxHandle | None = None
    route: Route | None = None
    tail: LogTail | None = None
    tailing: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class StartReport:
    """What `Supervisor.__aenter__` found from earlier servers."""

    adopted: int
    removed: int
    trash: int


class Supervisor:
    """`async with Supervisor(...) as node:` adopts and reclaims on entry; on exit detaches, or ends all it runs.

    Served to control by `wire.node.server` (see `atoll.server.node`), which hears of its events and routes:

        async with Supervisor(data_dir=..., templates=store, isolation="auto") as node:
            server = NodeServer(node)
            node.subscribe(server)
            node.subscribe_routes(server)

    Args:
        data_dir: below it `sandboxes/`, `trash/`, `run/` are made. One server at a time.
        templates: what a create may name.
        builds: makes built-in ones that are missing; None: nothing does.
        isolation: the name of a tier, or `auto`.
        node_id: stable over restarts.
        keep_sandboxes: on exit leave them running for the next server to adopt; False ends them.
        egress_allow_private: private networks that sandboxes may reach.
        name_servers: whom sandboxes' DNS questions are put to; None: the host's own.
        load_backend: how a tier's factory is found by its name.
        common: what every tier is told (its `run_dir` is set here).

    Entering raises BackendUnavailable when the tier (or for `auto` every tier) does not work here.
    """

    def __init__(
        self,
        *,
        data_dir: Path,
        templates: Templates,
        builds: TemplateBuilds | None = None,
        isolation: str = "auto",
        node_id: str = "local",
        keep_sandboxes: bool = True,
        egress_allow_private: tuple[Network, ...] = (),
        name_servers: tuple[str, ...] | None = None,
        load_backend: Load = registry.load,
        common: BackendConfig | None = None,
    ) -> None:
        self._node_id = node_id
        self._templates = templates
        self._builds = builds
        self._isolation = isolation
        self._keep = keep_sandboxes
        self._load = load_backend
        self._common = common
        self._sandboxes_dir = data_dir / "sandboxes"
        self._run_dir = data_dir / "run"
        self._trash = Trash(data_dir / "trash")
        self._ready = ReadyDirectories(data_dir / "ready")
        self._interception = Interception(lambda: Authority(data_dir / "tls", "egress"))
        self._egress = EgressRegistry(
            EgressContext(
                HostNetworks(egress_allow_private), Budget.of_this_process(), self._interception, name_servers
            )
        )
        self._stack = AsyncExitStack()
        self._tasks = asyncio.TaskGroup()
        self._backends: dict[str, IsolationBackend] = {}
        self._backend_start = asyncio.Lock()
        self._live: dict[str, _Live] = {}
        self._events: NodeEvents | None = None
        self._sink: RouteSink | None = None
        self._recent_templates: dict[str, tuple[float, Template]] = {}
        self._untold: list[Ended] = []
        self._stopping = False
        self.chosen: ChosenBackend
        self.start_report = StartReport(0, 0, 0)

    # Lifetime

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._sandboxes_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.chosen = await choose_backend(self._isolation, self._run_dir, self._load, self._common)
            stack.push_async_callback(self._close_backends)
            self._backends[self.chosen.backend.name] = self.chosen.backend
            _log.info("node.tier", tier=self.chosen.backend.name, reason=self.chosen.reason)
            left = self._trash.open()
            self._ready.open()
            stack.callback(self._ready.close)
            await stack.enter_async_context(self._tasks)
            helpers = [
                self._tasks.create_task(self._trash.run(), name="trash"),
                self._tasks.create_task(self._ready.run(), name="ready directories"),
            ]
            stack.push_async_callback(self._stop, helpers)
            self.start_report = await self._take_over(left)
            self._tasks.create_task(self._remove_unused_builds(), name="superseded builds")
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
        live = list(self._live.values())
        if self._keep:
            for one in live:
                one.driver.detach()
        else:
            await asyncio.gather(*(one.driver.kill() for one in live))
        await asyncio.gather(*(one.driver.finished.wait() for one in live))
        try:
            async with asyncio.timeout(_TRASH_GRACE_S):
                await self._trash.settled()
        except TimeoutError:
            _log.info("trash.left_for_next_start")
        for helper in helpers:
            helper.cancel()

    async def _close_backends(self) -> None:
        for backend in self._backends.values():
            try:
                await backend.aclose()
            except AtollError as error:
                _log.error("backend.close_failed", tier=backend.name, error=str(error))

    # What an earlier server left

    async def _take_over(self, left_in_trash: int) -> StartReport:
        """Adopts what still lives, frees all else. Before the first create."""
        found = look(self._sandboxes_dir)
        spare = self._left_alone(found)
        tiers = {one.state.tier for one in found.values() if isinstance(one, Recorded)} | {self.chosen.backend.name}
        unusable: set[str] = set()
        for tier in sorted(tiers):
            try:
                backend = await self._backend(tier)
            except AtollError as error:
                # Its sandboxes may live and nobody here can say; touching their files would break them.
                _log.error("node.tier_lost", tier=tier, error=str(error))
                unusable.add(tier)
                continue
            mine = [one for one in found.values() if isinstance(one, Recorded) and one.state.tier == tier]
            await asyncio.gather(*(self._adopt_or_end(backend, one) for one in mine))
            reclaimed = await backend.reclaim(spare)
            _log.info("node.reclaimed", tier=tier, processes=reclaimed.processes, cgroups=reclaimed.cgroups)
        gone = [
            name
            for name, one in found.items()
            if name not in self._live
            and fate(one) is not Fate.LEAVE
            and not (isinstance(one, Recorded) and one.state.tier in unusable)
        ]
        for name in gone:
            self._trash.put(self._sandboxes_dir / name)
        if len(gone) == len(found) and not unusable:
            self._templates.hold_nothing()
        report = StartReport(adopted=len(self._live), removed=len(gone), trash=left_in_trash)
        _log.info("node.took_over", adopted=report.adopted, removed=report.removed, trash=report.trash)
        return report

    def _left_alone(self, found: Mapping[str, Recorded | Newer | None]) -> set[str]:
        """The groups of those that this start does not touch; "" where one has none. Says which they are."""
        groups: set[str] = set()
        for name, one in found.items():
            if one is None or fate(one) is not Fate.LEAVE:
                continue
            if isinstance(one, Newer):
                _log.error(
                    "sandbox.left_alone",
                    sandbox_id=name,
                    reason=f"its record is of version {one.version}, this Atoll knows {VERSION}: start the newer one",
                )
                groups.add(one.group)
            else:
                _log.info("sandbox.left_alone", sandbox_id=name, reason=f"it is {one.state.state}")
                groups.add(str(one.state.handle.get("group", "")))
        return groups

    async def _remove_unused_builds(self) -> None:
        """What newer builds have superseded while sandboxes of an earlier server still stood on it."""
        try:
            removed = await asyncio.to_thread(self._templates.remove_unused_builds)
        except OSError as error:
            _log.warning("templates.not_removed", error=str(error))
        else:
            if removed:
                _log.info("templates.removed", builds=removed)

    async def _adopt_or_end(self, backend: IsolationBackend, found: Recorded) -> None:
        spec, what = found.spec, fate(found)
        if what not in (Fate.ADOPT, Fate.END):
            return
        state_dir = self._sandboxes_dir / spec.sandbox_id
        try:
            handle = await backend.adopt(spec, state_dir, found.state.handle)
            if what is Fate.END:
                await handle.kill()
                return
        except AtollError as error:
            _log.info("sandbox.not_adopted", sandbox_id=spec.sandbox_id, reason=str(error))
            return
        _upgrade(state_dir, found)
        driver = SandboxDriver(spec.sandbox_id, state_dir, self._ready.take, self._trash.put)
        live = _Live(driver, backend.name)
        self._live[spec.sandbox_id] = live
        self._tasks.create_task(self._see_through(live, driver.adopted(handle)), name=f"sandbox {spec.sandbox_id}")
        self._publish(live, handle, spec)
        try:
            await self._egress.attach(handle, found.network)
        except AtollError as error:  # it lives on without a way out; nothing can leave
            _log.error("egress.not_attached", sandbox_id=spec.sandbox_id, error=str(error))

    # NodeClient

    @property
    def node_id(self) -> str:
        return self._node_id

    async def create(self, request: SandboxSpec) -> NodeSandbox:
        """See NodeClient.create."""
        began = time.monotonic()
        if self._stopping:
            raise CreateFailed("the server is stopping")
        if not SANDBOX_ID.fullmatch(request.sandbox_id) or request.sandbox_id in self._live:
            raise CreateFailed(f"sandbox id {request.sandbox_id!r} cannot be used")
        layers, tier = self._layers_for(request)
        backend = await self._backend_for(request.tier or tier or self.chosen.backend.name)
        state_dir = self._sandboxes_dir / request.sandbox_id
        spec, paths = self._trusting(request), SandboxPaths(layers, state_dir)
        driver = SandboxDriver(request.sandbox_id, state_dir, self._ready.take, self._trash.put)
        live = _Live(driver, backend.name, layers)
        self._live[request.sandbox_id] = live
        self._tasks.create_task(
            self._see_through(live, driver.create(backend, spec, paths)), name=f"sandbox {request.sandbox_id}"
        )
        try:
            handle = await asyncio.shield(driver.started)
        except asyncio.CancelledError:
            # The control process is gone, or has given it up: nobody else would end it.
            self._tasks.create_task(driver.kill(), name=f"given up {request.sandbox_id}")
            raise
        try:
            attached = await self._egress.attach(handle, request.network)
            if not attached and (request.network.allow_out or request.network.rules):
                await driver.kill()
                raise _no_way_out(handle.tier)
        except CallerError:
            raise
        except AtollError as error:
            await driver.kill()
            raise CreateFailed(f"sandbox {request.sandbox_id!r} got no way out: {error}") from error
        self._publish(live, handle, spec)
        return NodeSandbox(request.sandbox_id, backend.name, _steps_ms(began, handle.stages, time.monotonic()))

    async def kill(self, sandbox_id: str, reason: EndReason) -> bool:
        """See NodeClient.kill."""
        live = self._live.get(sandbox_id)
        if live is None:
            return False
        self._unpublish(live)
        await self._egress.detach(sandbox_id)
        if live.tail is not None:
            await live.tail.drain()
        return await asyncio.shield(live.driver.kill())

    async def stats(self, sandbox_id: str) -> SandboxStats:
        """See NodeClient.stats."""
        handle = self._running(sandbox_id).handle
        if handle is None:
            raise SandboxGone(sandbox_id, "it is still being made")
        return await handle.stats()

    def unenforced(self, tier: str) -> Sequence[str]:
        """See NodeClient.unenforced. Of a tier that does not run nothing is claimed."""
        backend = self._backends.get(tier)
        kept = backend.capabilities if backend is not None else frozenset()
        return [name for name, capability in _LIMITS.items() if capability not in kept]

    async def update_network(self, sandbox_id: str, network: NetworkPolicy) -> None:
        """See NodeClient.update_network."""
        handle = self._running(sandbox_id).handle
        if handle is None:
            raise SandboxGone(sandbox_id, "it is still being made")
        if not self._egress.has(sandbox_id):
            raise _no_way_out(handle.tier)
        if network.rules:
            await tell_guest_to_trust(handle, self._interception.authority.pem)
        try:
            directory.change_network(self._sandboxes_dir / sandbox_id, network)
        except OSError as error:
            raise PlatformError(f"the network of sandbox {sandbox_id!r} stays as it is: {error}") from error
        self._egress.update(sandbox_id, network)

    async def connections(self, sandbox_id: str) -> Sequence[NetworkConnection]:
        """See NodeClient.connections."""
        self._running(sandbox_id)
        return self._egress.connections(sandbox_id)

    async def flush_logs(self, sandbox_id: str) -> None:
        """See NodeClient.flush_logs."""
        live = self._live.get(sandbox_id)
        if live is not None and live.tail is not None:
            await live.tail.drain()

    async def sandboxes(self) -> Sequence[NodeSandbox]:
        """See NodeClient.sandboxes."""
        return [NodeSandbox(name, live.tier) for name, live in self._live.items() if live.handle is not None]

    async def make_template(self, name: str, wait_s: float) -> None:
        """See NodeClient.make_template."""
        try:
            self._templates.find_template(name)
        except TemplateNotFound:
            if self._builds is None:
                raise
            await self._builds.make(name, wait_s)

    async def commit(self, sandbox_id: str, image_id: str) -> None:
        """See NodeClient.commit."""
        live = self._running(sandbox_id)
        backend = self._backends[live.tier]

        async def save(state_dir: Path) -> None:
            with self._templates.images.making(image_id, live.layers) as layer:
                await backend.copy_written(state_dir, layer)

        self._unpublish(live)
        await self._egress.detach(sandbox_id)
        try:
            await asyncio.shield(live.driver.end_saving(save))
        except (OSError, ValueError) as error:
            raise PlatformError(f"what the sandbox {sandbox_id!r} has written cannot be kept: {error}") from error

    async def has_image(self, image_id: str) -> bool:
        """See NodeClient.has_image."""
        try:
            self._templates.images.find(image_id)
        except TemplateNotFound:
            return False
        return True

    async def keep_images(self, image_ids: Sequence[str]) -> int:
        """See NodeClient.keep_images."""
        try:
            return await asyncio.to_thread(self._templates.images.keep, image_ids)
        except OSError as error:
            raise PlatformError(f"unused images cannot be removed: {error}") from error

    async def templates(self) -> Sequence[Template]:
        """See NodeClient.templates."""
        return self._templates.list_templates()

    def subscribe(self, events: NodeEvents) -> None:
        """From now on `events` hears of sandboxes that end by themselves, first of those that did before."""
        self._events = events
        untold, self._untold = self._untold, []
        for ended in untold:
            self._tasks.create_task(self._tell(ended))

    def subscribe_routes(self, sink: RouteSink) -> None:
        """From now on `sink` is told which sandboxes can be reached, beginning with those of now."""
        self._sink = sink
        for route in self.routes():
            sink.add(route)

    def tiers(self) -> dict[str, Sequence[str]]:
        """Each tier that runs, and the limits that its sandboxes do not keep."""
        return {name: self.unenforced(name) for name in self._backends}

    # RouteTable

    def find(self, sandbox_id: str) -> Route | None:
        """See RouteTable.find."""
        live = self._live.get(sandbox_id)
        return live.route if live is not None else None

    def routes(self) -> Sequence[Route]:
        """See RouteTable.routes."""
        return [live.route for live in self._live.values() if live.route is not None]

    # Inside

    def _layers_for(self, spec: SandboxSpec) -> tuple[tuple[Path, ...], str | None]:
        """The layers that it will stand on, and the tier that they need. Raises TemplateNotFound."""
        if spec.image_id is None:
            template = self._template(spec.template_id)
            return template.layers, template.tier
        layers = self._templates.images.find(spec.image_id)
        if not self._templates.hold(layers):
            raise TemplateNotFound(spec.template_id)
        return layers, None

    def _template(self, name: str) -> Template:
        """Looking a template up reads files; on the way to a sandbox a recent answer will do. Layers never change."""
        now = asyncio.get_running_loop().time()
        known = self._recent_templates.get(name)
        if known is not None and now - known[0] < _TEMPLATE_FRESH_S:
            return known[1]
        template = self._templates.find_template(name)
        if not self._templates.hold(template.layers):
            template = self._templates.find_template(name)  # superseded and taken away between the look and the hold
            self._templates.hold(template.layers)
        fresh = {key: entry for key, entry in self._recent_templates.items() if now - entry[0] < _TEMPLATE_FRESH_S}
        self._recent_templates = fresh | {name: (now, template)}
        return template

    def _trusting(self, spec: SandboxSpec) -> SandboxSpec:
        """Where a rule may need it, programs inside trust the gateway. Raises PlatformError."""
        return replace(spec, ca_certificate=self._interception.authority.pem) if spec.network.rules else spec

    def _running(self, sandbox_id: str) -> _Live:
        live = self._live.get(sandbox_id)
        if live is None:
            raise SandboxGone(sandbox_id)
        return live

    def _publish(self, live: _Live, handle: SandboxHandle, spec: SandboxSpec) -> None:
        live.handle = handle
        live.tail = LogTail(handle, self._tell_logged)
        live.tailing = self._tasks.create_task(live.tail.run(), name=f"log of {spec.sandbox_id}")
        handle.on_oom(lambda victim: self._note_oom(live, handle, victim))
        live.route = Route(
            sandbox_id=spec.sandbox_id,
            dial=handle.dial,
            envd_access_token=spec.access_token,
            traffic_access_token=spec.traffic_access_token,
            mask_request_host=spec.mask_request_host,
        )
        if self._sink is not None:
            self._sink.add(live.route)

    def _unpublish(self, live: _Live) -> None:
        if live.route is not None and self._sink is not None:
            self._sink.remove(live.route.sandbox_id)
        live.route = None

    async def _see_through(self, live: _Live, life: Coroutine[None, None, Ended | None]) -> None:
        """The body of a sandbox's task: its driver, and then the news of its end. Never raises but CancelledError."""
        ended: Ended | None = None
        try:
            ended = await life
        except Exception:
            _log.exception("sandbox.driver_failed", sandbox_id=live.driver.sandbox_id)
            ended = Ended(live.driver.sandbox_id, asked=False, detail="its supervisor failed")
        finally:
            self._unpublish(live)
            await self._egress.detach(live.driver.sandbox_id)
            if live.tailing is not None:
                live.tailing.cancel()
            self._live.pop(live.driver.sandbox_id, None)
        if ended is None or ended.asked:
            return
        _log.warning("sandbox.died", sandbox_id=ended.sandbox_id, detail=ended.detail)
        if self._events is None:
            self._untold.append(ended)
        else:
            await self._tell(ended)

    async def _tell(self, ended: Ended) -> None:
        if self._events is None:
            return
        try:
            await self._events.sandbox_ended(ended.sandbox_id, EndReason.DIED, ended.detail)
        except Exception:
            _log.exception("node.event_lost", sandbox_id=ended.sandbox_id)

    async def _tell_logged(self, sandbox_id: str, entries: Sequence[LogEntry]) -> None:
        if self._events is None:
            return
        try:
            await self._events.sandbox_logged(sandbox_id, entries)
        except Exception:
            _log.exception("node.logs_lost", sandbox_id=sandbox_id, entries=len(entries))

    def _note_oom(self, live: _Live, handle: SandboxHandle, victim: OomKill) -> None:
        _log.info("sandbox.out_of_memory", sandbox_id=handle.sandbox_id, process=victim.name, pid=victim.pid)
        self._tasks.create_task(self._tell_oom(live, handle, victim))

    async def _tell_oom(self, live: _Live, handle: SandboxHandle, victim: OomKill) -> None:
        """As an event, and through the guest into the sandbox's log, where it stands among what happened then."""
        if self._events is not None:
            try:
                await self._events.sandbox_out_of_memory(handle.sandbox_id, victim)
            except Exception:
                _log.exception("node.event_lost", sandbox_id=handle.sandbox_id)
        with contextlib.suppress(AtollError):  # the guest may have been the victim
            await order(handle, "/notes", oom_note(victim))

    async def _backend_for(self, tier: str) -> IsolationBackend:
        """The tier of a new sandbox, asked for or not. Raises NotOffered."""
        chosen = self.chosen.backend.name
        if not may_be_asked_for(tier, chosen):
            raise _not_this_tier(tier, f"it runs {chosen!r}, and no weaker wall may be asked for")
        if (backend := self._backends.get(tier)) is not None:
            return backend
        try:
            return await self._backend(tier)
        except BackendUnavailable as error:
            raise _not_this_tier(tier, str(error)) from error

    async def _backend(self, name: str) -> IsolationBackend:
        """A tier besides the chosen one is started when it is first needed. Raises BackendUnavailable."""
        async with self._backend_start:
            if name not in self._backends:
                if self._stopping:
                    raise BackendUnavailable("the server is stopping")
                self._backends[name] = await start_backend(name, self._run_dir, self._load, self._common)
            return self._backends[name]


def _upgrade(state_dir: Path, found: Recorded) -> None:
    if found.version < VERSION:
        try:
            directory.upgrade(state_dir, found)
        except OSError as error:  # it can still be read as it is
            _log.warning("sandbox.record_not_upgraded", sandbox_id=found.spec.sandbox_id, error=str(error))


def _not_this_tier(tier: str, why: str) -> NotOffered:
    return NotOffered(f"this server offers no sandbox of the tier {tier[:64]!r}: {why}", hint="see `atoll doctor`")


def _no_way_out(tier: str) -> NotOffered:
    return NotOffered(
        f"sandboxes of the tier {tier!r} reach nothing outside on this machine, so no network policy can open anything",
        hint="see `atoll doctor`",
    )


def _steps_ms(began: float, stages: Mapping[str, float], ended: float) -> dict[str, float]:
    """How long each step took until it was reached. What was reached before anybody asked took nobody's time."""
    steps: dict[str, float] = {}
    previous = began
    for name, reached in sorted(stages.items(), key=lambda stage: stage[1]):
        if reached >= began:
            steps[name] = round((reached - previous) * 1000, 3)
            previous = reached
    return {**steps, "told": round((ended - previous) * 1000, 3)}
