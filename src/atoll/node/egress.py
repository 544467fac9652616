"""The node's side of egress: a sandbox's sockets handed to the gateway, and its policy changed while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import structlog

from atoll.isolation.base import SandboxHandle
from atoll.isolation.guest_client import order
from atoll.model.errors import AtollError, CallerError, CreateFailed, NotOffered, PlatformError
from atoll.model.network import NetworkConnection, NetworkPolicy
from atoll.model.sandbox import SandboxSpec
from atoll.node.directories import SandboxDirectories
from atoll.node.gateway import EgressGateway

_TRUST_WITHIN_S = 5.0

_log = structlog.get_logger("atoll.node")


class NodeEgress:
    """One per node, over its gateway."""

    def __init__(self, gateway: EgressGateway, directories: SandboxDirectories) -> None:
        self._gateway = gateway
        self._directories = directories
        self._seal = directories.seal

    def prepared(self, spec: SandboxSpec) -> SandboxSpec:
        """As it is kept and handed to its tier: what rules add is sealed, and programs inside trust the gateway where a
        rule needs it. Raises PlatformError.
        """
        if not spec.network.rules:
            return spec
        return replace(spec, network=self._seal.close_rules(spec.network), ca_certificate=self._gateway.certificate())

    async def attach(self, handle: SandboxHandle, network: NetworkPolicy) -> None:
        """For a new sandbox. Raises NotOffered: its tier has no egress and the policy opens something; CreateFailed."""
        try:
            attached = await self._gateway.attach(handle, self._seal.open_rules(network))
        except CallerError:
            raise
        except AtollError as error:
            raise CreateFailed(f"sandbox {handle.sandbox_id!r} got no egress: {error}") from error
        if not attached and (network.allow_out or network.rules):
            raise _no_egress(handle.tier)

    async def attach_adopted(self, handle: SandboxHandle, network: NetworkPolicy) -> None:
        """A failure is logged: the sandbox lives on, and nothing can leave it."""
        try:
            await self._gateway.attach(handle, self._seal.open_rules(network))
        except AtollError as error:
            _log.error("egress.not_attached", sandbox_id=handle.sandbox_id, error=str(error))

    async def detach(self, sandbox_id: str) -> None:
        """Cuts what is open. Idempotent."""
        await self._gateway.detach(sandbox_id)

    async def update(self, handle: SandboxHandle, network: NetworkPolicy) -> None:
        """See NodeClient.update_network."""
        sandbox_id = handle.sandbox_id
        if not self._gateway.has(sandbox_id):
            raise _no_egress(handle.tier)
        if network.rules:
            certificate = self._gateway.certificate()
            await order(handle, "/init", {"caCertificate": certificate}, within_s=_TRUST_WITHIN_S)
        self._keep(sandbox_id, network)
        await self._gateway.update(sandbox_id, network)

    def set_aside(self, spec: SandboxSpec, network: NetworkPolicy) -> None:
        """For one that is paused: what it may reach once it runs. Raises PlatformError."""
        if self._seal.open_rules(self._directories.network_of(spec)) != network:
            self._keep(spec.sandbox_id, network)

    def _keep(self, sandbox_id: str, network: NetworkPolicy) -> None:
        try:
            self._directories.change_network(sandbox_id, network)
        except OSError as error:
            raise PlatformError(f"the network of sandbox {sandbox_id!r} stays as it is: {error}") from error

    async def connections(self, sandbox_id: str) -> Sequence[NetworkConnection]:
        """Oldest first; none for a sandbox without egress. Raises PlatformError: no gateway answers."""
        return await self._gateway.connections(sandbox_id)


def _no_egress(tier: str) -> NotOffered:
    return NotOffered(
        f"sandboxes of the tier {tier!r} reach nothing outside on this machine, so no network policy can open anything",
        hint="see `atoll doctor`",
    )
