"""The running control plane: opens with recovery, closes with its tasks ended. Owns the services and their tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from atoll.control.access.keys import KeyService
from atoll.control.access.teams import TeamService
from atoll.control.background import Background
from atoll.control.clock import Clock, SystemClock
from atoll.control.events.dispatcher import WebhookDispatcher
from atoll.control.events.journal import Journal
from atoll.control.events.outbound import Outbound
from atoll.control.events.webhooks import EventService
from atoll.control.nodes.leases import NodeLeases
from atoll.control.nodes.registry import NodeNews, NodeRegistry
from atoll.control.nodes.service import NodeService
from atoll.control.retention import Retention
from atoll.control.sandboxes.creation import SandboxCreation
from atoll.control.sandboxes.ending import SandboxEnding
from atoll.control.sandboxes.expiry import Expiry
from atoll.control.sandboxes.failover import SandboxFailover
from atoll.control.sandboxes.ids import new_sandbox_id
from atoll.control.sandboxes.lookup import SandboxLookup
from atoll.control.sandboxes.network import SandboxNetwork
from atoll.control.sandboxes.node_events import NodeReports
from atoll.control.sandboxes.orders import Policy
from atoll.control.sandboxes.pausing import SandboxPausing
from atoll.control.sandboxes.placing import Placing
from atoll.control.sandboxes.quota import SandboxQuota
from atoll.control.sandboxes.reconciliation import Reconciliation
from atoll.control.sandboxes.sizing import limits_for
from atoll.control.sandboxes.sleeping import Routes, SleepingRoutes
from atoll.control.sandboxes.snapshots import SandboxSnapshots
from atoll.control.sandboxes.telemetry import SandboxTelemetry
from atoll.control.sandboxes.timeouts import SandboxTimeouts
from atoll.control.sandboxes.warm import WarmPool
from atoll.control.secrets.service import SecretFilling, SecretService
from atoll.control.services import Services
from atoll.control.state_mark import StateMark
from atoll.control.store import Store
from atoll.control.telemetry.figures import Figures
from atoll.control.telemetry.logbook import Logbook
from atoll.control.telemetry.readings import ReadingFiles
from atoll.control.telemetry.tracing import NoTracing, Tracing
from atoll.control.templates.base_images import BaseImages
from atoll.control.templates.build_log import BuildLogs
from atoll.control.templates.builder import TemplateBuilder
from atoll.control.templates.builds import BuildLimits, TemplateBuildService
from atoll.control.templates.catalog import TemplateService
from atoll.control.templates.image.importer import ImageImporter
from atoll.control.templates.kept import TeamImages
from atoll.control.templates.ready import StartCommands
from atoll.control.templates.sandboxes import BuildSandboxes
from atoll.control.templates.uploads import Uploads
from atoll.control.volumes.service import VolumeService
from atoll.model.addresses import ForbiddenNetworks
from atoll.model.events import EventType
from atoll.model.network import NetworkPolicy
from atoll.model.node_addresses import LOCAL
from atoll.model.seams import NodeEvents, NodeLinks


class ControlPlane:
    """`async with ControlPlane(...) as control:` first settles what an earlier server left half-done.

        Entering raises StateLost: see `reconciliation` and `state_mark`.

        async with (
            Store(url) as store,
            RemoteNode(connect, presence=nodes) as node,
            ControlPlane(store=store, nodes=nodes, policy=..., logs_dir=..., metrics_dir=...) as control,
        ):
            node.subscribe(control.node_events)
            app = create_app(control.services, Authenticator(keys, store.keys))
            ...  # serve; see `atoll.server.front`

    Args:
        nodes: those that are there, and those that come later.
        links: connects to nodes that an operator adds; None: none can be added.
        logs_dir, metrics_dir: where the logs and the readings of sandboxes are kept; made when needed.
        templates_dir: where uploads and logs of template builds are kept.
        mark: see `state_mark`; None: a store that was put back is not noticed.
        routes: the edge's: the way to the sandboxes that build templates, and where traffic wakes paused ones.
        webhook_forbidden: what webhooks may not reach, now.
        tracing: where traces of creates go; None: nowhere.
        keep_sandboxes: on exit leave them running for the next server; False ends them, in the store too.
    """

    def __init__(
        self,
        *,
        store: Store,
        nodes: NodeRegistry,
        links: NodeLinks | None = None,
        policy: Policy | None = None,
        logs_dir: Path,
        metrics_dir: Path,
        templates_dir: Path,
        mark: Path | None = None,
        routes: Routes,
        webhook_forbidden: Callable[[], ForbiddenNetworks] = ForbiddenNetworks,
        clock: Clock | None = None,
        keep_sandboxes: bool = True,
        tracing: Tracing | None = None,
    ) -> None:
        clock, traced = clock or SystemClock(), tracing or NoTracing()
        policy = policy or Policy()
        self._outbound = outbound = Outbound(webhook_forbidden)
        self._keep = keep_sandboxes
        self._nodes = nodes
        self._background = background = Background()
        self._stack = AsyncExitStack()
        templates = TemplateService(nodes, store.templates, store.keys)
        uploads = Uploads(templates_dir / "uploads")
        build_logs = BuildLogs(templates_dir / "builds", clock.now)
        quota = SandboxQuota(policy.max_sandboxes, policy.team, policy.node, nodes.total)
        sandboxes_of_builds = BuildSandboxes(routes, new_sandbox_id, quota)
        importer = ImageImporter(sandboxes_of_builds, store.layers, policy.insecure_registries)
        self._dispatcher = WebhookDispatcher(store.events, clock, outbound)
        figures = Figures(quota.counts, nodes.loads)

        def created(tier: str, steps_ms: Mapping[str, float]) -> None:
            figures.created(tier, steps_ms)
            traced.created(tier, steps_ms)

        self._journal = journal = Journal(store, clock, self._dispatcher, templates.build_of, figures.happened)
        self._expiry = expiry = Expiry(clock, lambda sandbox_id: pausing.expire(sandbox_id))
        logbook = Logbook(logs_dir)
        lookup = SandboxLookup(store, nodes)
        filling = SecretFilling(store.secrets)
        network = SandboxNetwork(store, lookup, nodes, filling)
        telemetry = SandboxTelemetry(
            lookup=lookup,
            nodes=nodes,
            live=quota.all,
            node_of=quota.node_of,
            clock=clock,
            logbook=logbook,
            readings=ReadingFiles(metrics_dir),
        )
        start_commands, placing = StartCommands(routes), Placing(nodes, templates, quota)
        self._warm = warm = WarmPool(
            policy.warm,
            nodes=nodes,
            templates=templates,
            quota=quota,
            start_commands=start_commands,
            limits_of=lambda template: limits_for(template.limits, {}, policy.maximum),
            placing=placing,
            network=NetworkPolicy(mib_s=policy.network_mib_s),
            disk_mib_s=policy.disk_mib_s,
            forget_logs=telemetry.forget,
        )
        images = TeamImages(store.templates, nodes, policy.team_images_mib, quota.kept_of)
        self._builds = TemplateBuildService(
            tables=store.templates,
            layers=store.layers,
            catalog=templates,
            nodes=nodes,
            bases=BaseImages(templates, importer, uploads, clock),
            builder=TemplateBuilder(sandboxes_of_builds, uploads, store.layers),
            images=images,
            uploads=uploads,
            logs=build_logs,
            clock=clock,
            background=background,
            limits=BuildLimits(policy.build_timeout_s, policy.team_builds, policy.maximum, policy.has_objects),
            also_kept=warm.images,
        )
        sleeping = SleepingRoutes(routes)
        ending = SandboxEnding(
            store=store,
            nodes=nodes,
            lookup=lookup,
            clock=clock,
            background=background,
            quota=quota,
            expiry=expiry,
            journal=journal,
            telemetry=telemetry,
            sleeping=sleeping,
        )
        timeouts = SandboxTimeouts(
            store=store, lookup=lookup, policy=policy, clock=clock, expiry=expiry, journal=journal
        )
        self._failover = SandboxFailover(
            store=store,
            nodes=nodes,
            templates=templates,
            placing=placing,
            policy=policy,
            clock=clock,
            background=background,
            quota=quota,
            expiry=expiry,
            journal=journal,
            filling=filling,
            sleeping=sleeping,
        )
        pausing = SandboxPausing(
            store=store,
            nodes=nodes,
            lookup=lookup,
            timeouts=timeouts,
            policy=policy,
            clock=clock,
            background=background,
            quota=quota,
            expiry=expiry,
            journal=journal,
            ending=ending,
            sleeping=sleeping,
            network=network,
            filling=filling,
            failover=self._failover,
            images=images,
        )
        self._leases = NodeLeases(nodes)
        self.reconciliation = Reconciliation(
            store=store,
            nodes=nodes,
            clock=clock,
            background=background,
            quota=quota,
            expiry=expiry,
            journal=journal,
            ending=ending,
            pausing=pausing,
            sleeping=sleeping,
            warm=warm,
            failover=self._failover,
            leases=self._leases,
        )
        self.node_of = quota.node_of
        self._mark = StateMark(mark, store, clock) if mark is not None else None
        self._retention = Retention(store, logbook, clock)
        self.node_events: NodeEvents = NodeReports(ending, telemetry, journal, warm)
        volumes = VolumeService(store.volumes, nodes, policy, clock, background)
        creation = SandboxCreation(
            store=store,
            nodes=nodes,
            templates=templates,
            policy=policy,
            clock=clock,
            background=background,
            quota=quota,
            expiry=expiry,
            journal=journal,
            ending=ending,
            filling=filling,
            volumes=volumes,
            placing=placing,
            warm=warm,
            wait_until_ready=start_commands.wait_until_ready,
            created=created,
        )
        self.services = Services(
            policy=policy,
            figures=figures,
            sandboxes=lookup,
            creation=creation,
            snapshots=SandboxSnapshots(
                tables=store.templates,
                catalog=templates,
                lookup=lookup,
                nodes=nodes,
                creation=creation,
                images=images,
                clock=clock,
                has_objects=policy.has_objects,
            ),
            ending=ending,
            pausing=pausing,
            timeouts=timeouts,
            network=network,
            telemetry=telemetry,
            templates=templates,
            builds=self._builds,
            build_logs=build_logs,
            uploads=uploads,
            teams=TeamService(store, clock),
            keys=KeyService(store.keys, clock),
            secrets=SecretService(
                store.secrets, clock, lambda team, one: network.follow_secrets(team, {one.name, one.secret_id})
            ),
            volumes=volumes,
            events=EventService(store.events, clock, outbound),
            nodes=NodeService(store.nodes, nodes, links, quota, clock),
        )

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.callback(self._outbound.close)
            stack.push_async_callback(self._journal.flush)
            await stack.enter_async_context(self._background)
            trusted = self._mark is None or await self._mark.check()
            await self.reconciliation.recover(trusted=trusted)
            if self._mark is not None:
                self._mark.begin()
            await self.services.network.follow_secrets()
            await self._builds.recover()
            await self.services.volumes.recover()
            self._nodes.happened = self._node_news
            await self.services.nodes.recover()
            self._nodes.returned = self._node_returned
            self._nodes.gone = self.reconciliation.node_gone
            self._nodes.given_up = self._failover.node_given_up
            self.reconciliation.catch_up()
            self._background.keep_running(self._journal.run())
            services = self.services
            owners = (
                self._expiry,
                services.ending,
                self._retention,
                self._builds,
                services.telemetry,
                self._dispatcher,
                self._nodes,
                self._leases,
                self._warm,
            )
            housekeeping = [self._background.keep_running(owner.run()) for owner in owners]
            if self._mark is not None:
                housekeeping.append(self._background.keep_running(self._mark.run()))
            stack.push_async_callback(self._stop, housekeeping)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """What leaving the context does. Idempotent."""
        await self._stack.aclose()

    def _node_returned(self, node_id: str) -> None:
        self.reconciliation.node_returned(node_id)
        self._background.begin(self.services.network.follow_secrets(node_id=node_id))

    def _node_news(self, news: NodeNews, node_id: str) -> None:
        if not (node_id == LOCAL and news in (NodeNews.JOINED, NodeNews.RETURNED)):  # each start of the server
            self._journal.note_node(EventType(f"node.lifecycle.{news.value}"), node_id)

    async def _stop(self, housekeeping: Sequence[asyncio.Task[None]]) -> None:
        for task in housekeeping:
            task.cancel()
        self._failover.stop()
        await self._builds.stop()
        if not self._keep:
            await self.services.ending.kill_all()
        self._journal.close()
