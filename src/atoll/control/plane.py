"""The running control plane: opens with recovery, closes with its tasks ended. Owns the services and their tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
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
from atoll.control.sandboxes.service import Policy, SandboxService, Services, TemplateService
from atoll.control.store import Store
from atoll.control.telemetry.logbook import Logbook
from atoll.control.telemetry.readings import ReadingFiles
from atoll.model.addresses import ForbiddenNetworks
from atoll.model.seams import NodeClient


class ControlPlane:
    """`async with ControlPlane(...) as control:` first settles what an earlier server left half-done.

        async with (
            Store(url) as store,
            RemoteNode(connect) as node,
            ControlPlane(store=store, nodes=[node], policy=..., logs_dir=..., metrics_dir=...) as control,
        ):
            node.subscribe(control.services.sandboxes)
            app = create_app(control.services, Authenticator(keys, store.keys))
            ...  # serve; see `atoll.server.front`

    Args:
        logs_dir, metrics_dir: where the logs and the readings of sandboxes are kept; made when needed.
        webhook_forbidden: what webhooks may not reach, now.
        keep_sandboxes: on exit leave them running for the next server; False ends them, in the store too.
    """

    def __init__(
        self,
        *,
        store: Store,
        nodes: Sequence[NodeClient],
        policy: Policy | None = None,
        logs_dir: Path,
        metrics_dir: Path,
        webhook_forbidden: Callable[[], ForbiddenNetworks] = ForbiddenNetworks,
        clock: Clock | None = None,
        keep_sandboxes: bool = True,
    ) -> None:
        clock = clock or SystemClock()
        self._outbound = outbound = Outbound(webhook_forbidden)
        self._keep = keep_sandboxes
        self._background = Background()
        self._stack = AsyncExitStack()
        templates = TemplateService(nodes)
        self._dispatcher = WebhookDispatcher(store.events, clock, outbound)
        self._journal = Journal(store, clock, self._dispatcher, templates.build_of)
        sandboxes = SandboxService(
            store=store,
            nodes=nodes,
            templates=templates,
            policy=policy or Policy(),
            clock=clock,
            background=self._background,
            journal=self._journal,
            logbook=Logbook(logs_dir),
            readings=ReadingFiles(metrics_dir),
        )
        self.services = Services(
            sandboxes=sandboxes,
            templates=templates,
            teams=TeamService(store, clock),
            keys=KeyService(store.keys, clock),
            events=EventService(store.events, clock, outbound),
        )

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.callback(self._outbound.close)
            stack.push_async_callback(self._journal.flush)
            await stack.enter_async_context(self._background)
            await self.services.sandboxes.recover()
            self._background.keep_running(self._journal.run())
            lives = [*self.services.sandboxes.housekeeping(), self._dispatcher.run()]
            housekeeping = [self._background.keep_running(life) for life in lives]
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

    async def _stop(self, housekeeping: Sequence[asyncio.Task[None]]) -> None:
        for task in housekeeping:
            task.cancel()
        if not self._keep:
            await self.services.sandboxes.end_all()
        self._journal.close()
