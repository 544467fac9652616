"""What nodes report unasked, handed to the part of the control plane that it concerns."""

from __future__ import annotations

from collections.abc import Sequence

from atoll.control.events.journal import Journal
from atoll.control.sandboxes.ending import SandboxEnding
from atoll.control.sandboxes.telemetry import SandboxTelemetry
from atoll.control.sandboxes.warm import WarmPool
from atoll.model.events import EventType
from atoll.model.logs import LogEntry
from atoll.model.sandbox import EndReason, OomKill


class NodeReports:
    """`model.seams.NodeEvents`."""

    def __init__(self, ending: SandboxEnding, telemetry: SandboxTelemetry, journal: Journal, warm: WarmPool) -> None:
        self._ending = ending
        self._telemetry = telemetry
        self._journal = journal
        self._warm = warm

    async def sandbox_ended(self, sandbox_id: str, reason: EndReason, detail: str) -> None:
        """See `NodeEvents`."""
        self._warm.ended(sandbox_id)
        await self._ending.ended_by_itself(sandbox_id, reason, detail)

    async def sandbox_out_of_memory(self, sandbox_id: str, victim: OomKill) -> None:
        """See `NodeEvents`."""
        memory_mb = None if victim.memory_bytes is None else victim.memory_bytes >> 20
        process = {"name": victim.name, "pid": victim.pid, "memory_mb": memory_mb}
        self._journal.note(EventType.OUT_OF_MEMORY, sandbox_id, process=process, others=victim.others)

    async def sandbox_logged(self, sandbox_id: str, entries: Sequence[LogEntry]) -> None:
        """See `NodeEvents`."""
        self._telemetry.append_logs(sandbox_id, entries)
