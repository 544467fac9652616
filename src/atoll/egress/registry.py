"""The egress of all sandboxes of a server: attached when a sandbox begins or is adopted, detached when it ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import structlog

from atoll.egress.gateway import EgressContext, SandboxEgress
from atoll.egress.policy import EgressPolicy
from atoll.egress.records import EgressRecord
from atoll.isolation.base import EgressSockets
from atoll.model.errors import AtollError
from atoll.model.network import NetworkConnection, NetworkPolicy

_log = structlog.get_logger("atoll.gateway")


class EgressRegistry:
    """See `wire.egress.server.ServedGateway`. `context` is shared by all."""

    def __init__(self, context: EgressContext) -> None:
        self._context = context
        self._attached: dict[str, SandboxEgress] = {}

    def attach(self, sandbox_id: str, sockets: EgressSockets | None, network: NetworkPolicy) -> None:
        """Takes over the sockets; one that is attached keeps its own. Raises InvalidRequest: never checked entries."""
        policy = EgressPolicy.of(network)
        known = self._attached.get(sandbox_id)
        if known is not None:
            if sockets is not None:
                sockets.connections.close()
                sockets.questions.close()
            known.replace_policy(policy)
        elif sockets is not None:
            self._attached[sandbox_id] = SandboxEgress(sockets, policy, self._context)
        else:
            _log.warning("egress.no_sockets", sandbox_id=sandbox_id)

    async def detach(self, sandbox_id: str) -> None:
        """Cuts what is open. Idempotent; never raises but CancelledError."""
        egress = self._attached.pop(sandbox_id, None)
        if egress is None:
            return
        try:
            await egress.aclose()
        except (AtollError, OSError) as error:
            _log.error("egress.close_failed", sandbox_id=sandbox_id, error=str(error))

    async def keep_only(self, sandbox_ids: Collection[str]) -> None:
        """Detaches those that ended while no node was there to say so."""
        for sandbox_id in self._attached.keys() - set(sandbox_ids):
            await self.detach(sandbox_id)

    async def aclose(self) -> None:
        """Detaches all; the sandboxes' own ends of it stay for the next gateway."""
        await self.keep_only(())

    def update(self, sandbox_id: str, network: NetworkPolicy) -> bool:
        """At once. False: it is not attached. Raises InvalidRequest."""
        policy = EgressPolicy.of(network)
        egress = self._attached.get(sandbox_id)
        if egress is not None:
            egress.replace_policy(policy)
        return egress is not None

    def connections(self, sandbox_id: str) -> Sequence[NetworkConnection]:
        """Oldest first; none for a sandbox without a way out."""
        egress = self._attached.get(sandbox_id)
        return [_shown(record) for record in egress.records()] if egress is not None else []

    def trust(self, certificate: str, key: str) -> None:
        """Of the authority for HTTPS under a rule, as PEM. Raises ValueError."""
        self._context.tls.use(certificate, key)


def _shown(record: EgressRecord) -> NetworkConnection:
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
