"""The sandboxes that this node makes or runs: one task and one driver each, with its route and the tail of its log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from atoll.isolation.base import SandboxHandle
from atoll.model.errors import SandboxGone
from atoll.model.sandbox import SandboxSpec
from atoll.model.seams import Route, RouteSink
from atoll.node.directories import SandboxDirectories
from atoll.node.driver import Ended, Making, SandboxDriver
from atoll.node.egress import NodeEgress
from atoll.node.log_tail import LogTail
from atoll.node.reports import Reports

_log = structlog.get_logger("atoll.node")


@dataclass(slots=True)
class LiveSandbox:
    """`handle` is None until it is made and while it is paused; `route` is None while it cannot be reached."""

    driver: SandboxDriver
    making: Making
    made: bool = False
    """From when it first ran, or was adopted. A pause or a resume under way does not change that."""
    guest_answered: bool = True
    """Before it was paused."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by who pauses or resumes it."""
    handle: SandboxHandle | None = None
    route: Route | None = None
    tail: LogTail | None = None
    tailing: asyncio.Task[None] | None = None

    @property
    def tier(self) -> str:
        """The name of its isolation tier."""
        return self.making.backend.name

    @property
    def layers(self) -> tuple[Path, ...]:
        """What it stands on; none: not known of one that an earlier Atoll made."""
        return self.making.paths.lower_dirs

    @property
    def spec(self) -> SandboxSpec:
        """What it was asked to be."""
        return self.making.spec


class LiveSandboxes:
    """Also RouteTable. Everything of a sandbox that ends is taken down here, however it ended."""

    def __init__(
        self, tasks: asyncio.TaskGroup, directories: SandboxDirectories, egress: NodeEgress, reports: Reports
    ) -> None:
        self._tasks = tasks
        self._directories = directories
        self._egress = egress
        self._reports = reports
        self._live: dict[str, LiveSandbox] = {}
        self._sink: RouteSink | None = None

    def __contains__(self, sandbox_id: str) -> bool:
        return sandbox_id in self._live

    def __iter__(self) -> Iterator[tuple[str, LiveSandbox]]:
        return iter(list(self._live.items()))

    def __len__(self) -> int:
        return len(self._live)

    def get(self, sandbox_id: str) -> LiveSandbox | None:
        """None: there is none of that id."""
        return self._live.get(sandbox_id)

    def handle(self, sandbox_id: str) -> SandboxHandle:
        """Raises SandboxGone: unknown, ended, or still being made."""
        live = self._live.get(sandbox_id)
        if live is None:
            raise SandboxGone(sandbox_id)
        if live.handle is None:
            raise SandboxGone(sandbox_id, "it is paused" if live.driver.paused else "it is still being made")
        return live.handle

    def handles(self) -> dict[str, SandboxHandle]:
        """Of those that run, by their ids."""
        return {name: live.handle for name, live in self if live.handle is not None}

    def begin(
        self, making: Making, life: Callable[[SandboxDriver], Coroutine[None, None, Ended | None]]
    ) -> LiveSandbox:
        """Starts its task: `life` on a new driver, then the end of all that it had here."""
        place, sandbox_id = self._directories, making.spec.sandbox_id
        live = LiveSandbox(SandboxDriver(sandbox_id, place), making)
        self._live[sandbox_id] = live
        self._tasks.create_task(self._see_through(live, life(live.driver)), name=f"sandbox {sandbox_id}")
        return live

    def publish(self, live: LiveSandbox, handle: SandboxHandle) -> None:
        """It runs: from now on it can be reached, its log is read, its OOM kills are reported."""
        spec = live.spec
        live.handle, live.made = handle, True
        live.tail = LogTail(handle, self._reports.logged, live.driver.log_base)
        live.tailing = self._tasks.create_task(live.tail.run(), name=f"log of {spec.sandbox_id}")
        handle.on_oom(lambda victim: self._reports.out_of_memory(handle, victim))
        self._open(live, handle)

    def become(self, live: LiveSandbox, spec: SandboxSpec) -> None:
        """What it was asked to be is `spec` from now on, and how it is reached."""
        live.making = replace(live.making, spec=spec)
        if live.handle is not None:
            self._open(live, live.handle)

    async def close(self, live: LiveSandbox) -> None:
        """Before its end: no new connection reaches it or leaves it, and its log is read to the end."""
        self._unpublish(live)
        await self._egress.detach(live.driver.sandbox_id)
        if live.tail is not None:
            await live.tail.drain()

    async def hide(self, live: LiveSandbox) -> None:
        """Before a pause: no new connection reaches it, and its log is read to the end. `publish` takes it back."""
        self._unpublish(live)
        if live.tail is not None:
            await live.tail.drain()
        if live.tailing is not None:
            live.tailing.cancel()

    async def put_away(self, live: LiveSandbox) -> None:
        """It is paused: nothing of it runs, and nothing leaves it."""
        live.handle = live.tail = live.tailing = None
        await self._egress.detach(live.driver.sandbox_id)

    def subscribe_routes(self, sink: RouteSink) -> None:
        """From now on `sink` gets every route that opens or closes, beginning with those of now."""
        self._sink = sink
        for route in self.routes():
            sink.add(route)

    def find(self, sandbox_id: str) -> Route | None:
        """See RouteTable.find."""
        live = self._live.get(sandbox_id)
        return live.route if live is not None else None

    def routes(self) -> Sequence[Route]:
        """See RouteTable.routes."""
        return [live.route for live in self._live.values() if live.route is not None]

    def _open(self, live: LiveSandbox, handle: SandboxHandle) -> None:
        spec = live.spec
        live.route = Route(
            sandbox_id=spec.sandbox_id,
            dial=handle.dial,
            envd_access_token=spec.access_token,
            traffic_access_token=spec.traffic_access_token,
            mask_request_host=spec.mask_request_host,
        )
        if self._sink is not None:
            self._sink.add(live.route)

    def _unpublish(self, live: LiveSandbox) -> None:
        if live.route is not None and self._sink is not None:
            self._sink.remove(live.route.sandbox_id)
        live.route = None

    async def _see_through(self, live: LiveSandbox, life: Coroutine[None, None, Ended | None]) -> None:
        """The body of a sandbox's task. Never raises but CancelledError."""
        sandbox_id = live.driver.sandbox_id
        ended: Ended | None = None
        try:
            ended = await life
        except Exception:
            _log.exception("sandbox.driver_failed", sandbox_id=sandbox_id)
            ended = Ended(sandbox_id, asked=False, detail="its driver failed")
        finally:
            self._unpublish(live)
            await self._egress.detach(sandbox_id)
            if live.tailing is not None:
                live.tailing.cancel()
            self._live.pop(sandbox_id, None)
        if ended is not None and not ended.asked:
            await self._reports.ended(ended)
