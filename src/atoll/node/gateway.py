"""The egress gateway, as a node asks for it. The gateway itself is another process (`wire.egress`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from atoll.isolation.base import SandboxHandle
from atoll.model.errors import SandboxGone
from atoll.model.network import NetworkConnection, NetworkPolicy


class EgressGateway(Protocol):
    """Its sandboxes and their policies. Nothing leaves a sandbox that is not attached."""

    async def attach(self, handle: SandboxHandle, network: NetworkPolicy) -> bool:
        """Opens the way out, at once or as soon as the gateway is there. False where the tier has none.

        Raises InvalidRequest (entries that were never checked), SandboxGone, PlatformError.
        """
        ...

    async def detach(self, sandbox_id: str) -> None:
        """Cuts what is open. Idempotent; waits for no gateway; never raises but CancelledError."""
        ...

    def has(self, sandbox_id: str) -> bool:
        """Whether it has a way out."""
        ...

    async def update(self, sandbox_id: str, network: NetworkPolicy) -> None:
        """In force when this returns. Raises SandboxGone (it has no way out), PlatformError (no gateway answers)."""
        ...

    async def connections(self, sandbox_id: str) -> Sequence[NetworkConnection]:
        """Oldest first; none for a sandbox without a way out. Raises PlatformError."""
        ...

    def certificate(self) -> str:
        """Of the authority that sandboxes with header rules are to trust (PEM). Raises PlatformError."""
        ...


class NoGateway:
    """For a node without one: sandboxes reach nothing."""

    async def attach(self, handle: SandboxHandle, network: NetworkPolicy) -> bool:
        """See EgressGateway."""
        return False

    async def detach(self, sandbox_id: str) -> None:
        """See EgressGateway."""

    def has(self, sandbox_id: str) -> bool:
        """See EgressGateway."""
        return False

    async def update(self, sandbox_id: str, network: NetworkPolicy) -> None:
        """See EgressGateway."""
        raise SandboxGone(sandbox_id)

    async def connections(self, sandbox_id: str) -> Sequence[NetworkConnection]:
        """See EgressGateway."""
        return []

    def certificate(self) -> str:
        """See EgressGateway."""
        return ""
