"""All exits of a node, by sandbox: attached when a sandbox begins or is adopted, detached when it ends."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from atoll.egress.gateway import EgressContext, SandboxEgress
from atoll.egress.policy import EgressPolicy
from atoll.egress.records import EgressRecord
from atoll.isolation.base import SandboxHandle
from atoll.model.errors import AtollError, SandboxGone
from atoll.model.network import NetworkConnection, NetworkPolicy

_log = structlog.get_logger("atoll.gateway")


class EgressRegistry:
    """`around` is shared by all."""

    def __init__(self, context: EgressContext) -> None:
        self._context = context
        self._exits: dict[str, SandboxEgress] = {}

    async def attach(self, handle: SandboxHandle, network: NetworkPolicy) -> bool:
        """Opens the way out. False where the tier has none: then nothing leaves. Raises SandboxGone, PlatformError."""
        policy = EgressPolicy.of(network)
        sockets = await handle.egress_sockets()
        if sockets is None:
            return False
        self._exits[handle.sandbox_id] = SandboxEgress(sockets, policy, self._context)
        return True

    async def detach(self, sandbox_id: str) -> None:
        """Cuts what is open. Idempotent; never raises but CancelledError."""
        exit_ = self._exits.pop(sandbox_id, None)
        if exit_ is None:
            return
        try:
            await exit_.aclose()
        except (AtollError, OSError) as error:
            _log.error("egress.close_failed", sandbox_id=sandbox_id, error=str(error))

    async def aclose(self) -> None:
        """Detaches all; the sandboxes' own ends of it stay for the next server."""
        for sandbox_id in list(self._exits):
            await self.detach(sandbox_id)

    def update(self, sandbox_id: str, network: NetworkPolicy) -> None:
        """At once. Raises SandboxGone: it has no exit."""
        self._of(sandbox_id).replace_policy(EgressPolicy.of(network))

    def connections(self, sandbox_id: str) -> Sequence[NetworkConnection]:
        """Oldest first; none for a sandbox without a way out."""
        exit_ = self._exits.get(sandbox_id)
        return [_told(record) for record in exit_.records()] if exit_ is not None else []

    def has(self, sandbox_id: str) -> bool:
        """Whether it has a way out."""
        return sandbox_id in self._exits

    def _of(self, sandbox_id: str) -> SandboxEgress:
        exit_ = self._exits.get(sandbox_id)
        if exit_ is None:
            raise SandboxGone(sandbox_id)
        return exit_


def _told(record: EgressRecord) -> NetworkConnection:
    return NetworkConnection(
        time=record.time,
        protocol=record.protocol,
        source_address=record.source_address,
        source_port=record.source_port,
        address=record.address,
        port=record.port,
        name=record.name,
        verdict=record.verdict.value,
        allowed=record.verdict.allowed,
        bytes_out=record.bytes_out,
        bytes_in=record.bytes_in,
        rewritten=record.rewritten,
        closed_at=record.closed_at,
    )
