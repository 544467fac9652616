"""What the node reports to control unasked: sandboxes that ended by themselves, their logs, processes killed by OOM."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import structlog

from atoll.isolation.base import SandboxHandle
from atoll.isolation.guest_client import order
from atoll.model.errors import AtollError
from atoll.model.logs import LogEntry
from atoll.model.sandbox import EndReason, OomKill
from atoll.model.seams import NodeEvents
from atoll.node.driver import Ended
from atoll.node.oom import oom_note

_log = structlog.get_logger("atoll.node")


class Reports:
    """Ends that happen before anybody has subscribed are kept until then; the rest is dropped. Failures are logged."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._events: NodeEvents | None = None
        self._unreported: list[Ended] = []

    def subscribe(self, events: NodeEvents) -> None:
        """From now on `events` gets all reports, first of the sandboxes that ended before."""
        self._events = events
        unreported, self._unreported = self._unreported, []
        for ended in unreported:
            self._tasks.create_task(self._send_ended(events, ended))

    async def ended(self, ended: Ended) -> None:
        """A sandbox ended by itself."""
        _log.warning("sandbox.died", sandbox_id=ended.sandbox_id, detail=ended.detail)
        if self._events is None:
            self._unreported.append(ended)
        else:
            await self._send_ended(self._events, ended)

    async def logged(self, sandbox_id: str, entries: Sequence[LogEntry]) -> None:
        """New entries of a sandbox's log."""
        if self._events is None:
            return
        try:
            await self._events.sandbox_logged(sandbox_id, entries)
        except Exception:
            _log.exception("node.logs_lost", sandbox_id=sandbox_id, entries=len(entries))

    def out_of_memory(self, handle: SandboxHandle, victim: OomKill) -> None:
        """The kernel killed one of its processes: reported as an event, and written into the sandbox's log."""
        _log.info("sandbox.out_of_memory", sandbox_id=handle.sandbox_id, process=victim.name, pid=victim.pid)
        self._tasks.create_task(self._send_out_of_memory(handle, victim))

    async def _send_out_of_memory(self, handle: SandboxHandle, victim: OomKill) -> None:
        if self._events is not None:
            try:
                await self._events.sandbox_out_of_memory(handle.sandbox_id, victim)
            except Exception:
                _log.exception("node.event_lost", sandbox_id=handle.sandbox_id)
        with contextlib.suppress(AtollError):  # the guest may have been the victim
            await order(handle, "/notes", oom_note(victim))

    async def _send_ended(self, events: NodeEvents, ended: Ended) -> None:
        try:
            await events.sandbox_ended(ended.sandbox_id, EndReason.DIED, ended.detail)
        except Exception:
            _log.exception("node.event_lost", sandbox_id=ended.sandbox_id)
