"""Metrics and logs of a sandbox, as a caller asks for them and as nodes report them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from atoll.control.access.auth import Caller
from atoll.control.clock import Clock
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.sandboxes.lookup import VISIBLE, SandboxLookup
from atoll.control.telemetry.log_query import LogQuery, select
from atoll.control.telemetry.logbook import Logbook
from atoll.control.telemetry.metering import Meter
from atoll.control.telemetry.readings import ReadingFiles, Series
from atoll.model.errors import NodeUnreachable, SandboxGone, SandboxNotFound
from atoll.model.logs import LogEntry
from atoll.model.sandbox import SandboxRecord, SandboxState, SandboxStats


class SandboxTelemetry:
    """`run` takes the readings.

    Args:
        live: the ids of the sandboxes that are to be measured.
        node_of: the id of the node that runs a sandbox; None if there is no such sandbox.
    """

    def __init__(
        self,
        *,
        lookup: SandboxLookup,
        nodes: NodeRegistry,
        live: Callable[[], Iterable[str]],
        node_of: Callable[[str], str | None],
        clock: Clock,
        logbook: Logbook,
        readings: ReadingFiles,
    ) -> None:
        self._lookup = lookup
        self._nodes = nodes
        self._node_of = node_of
        self._logbook = logbook
        self._meter = Meter(clock, live, self._read_stats, readings)

    async def run(self) -> None:
        """Until it is cancelled."""
        await self._meter.run()

    async def metrics(self, caller: Caller, sandbox_id: str) -> tuple[SandboxRecord, Series]:
        """Readings since it began, the last one of now. Raises SandboxNotFound."""
        record = await self._lookup.get(caller, sandbox_id)
        try:
            return record, await self._meter.history(record.sandbox_id)
        except SandboxGone as error:
            raise SandboxNotFound(record.sandbox_id) from error

    async def logs(self, caller: Caller, sandbox_id: str, query: LogQuery) -> list[LogEntry]:
        """Of a sandbox that runs, up to now; of one that has ended, as long as it is remembered.

        Raises SandboxNotFound.
        """
        record = await self._lookup.get_any(caller, sandbox_id)
        if record.state is SandboxState.CREATING:
            raise SandboxNotFound(sandbox_id[:100])
        if record.state in VISIBLE:
            await self._nodes.client(record.node_id).flush_logs(record.sandbox_id)
        return select(await self._logbook.read(record.sandbox_id), query)

    def append_logs(self, sandbox_id: str, entries: Sequence[LogEntry]) -> None:
        """Entries that were appended before (by number) are skipped. Raises OSError."""
        self._logbook.append(sandbox_id, entries)

    def forget(self, sandbox_id: str) -> None:
        """It has ended: nothing of it stays in memory. Its logs stay on disk. Idempotent."""
        self._meter.forget(sandbox_id)
        self._logbook.close(sandbox_id)

    async def _read_stats(self, sandbox_id: str) -> SandboxStats:
        node_id = self._node_of(sandbox_id)
        if node_id is None:
            raise SandboxGone(sandbox_id)
        if self._nodes.is_silent(node_id):
            raise NodeUnreachable(f"node {node_id!r} does not answer")
        return await self._nodes.client(node_id).stats(sandbox_id)
