"""What a sandbox may reach, changed while it runs, and the connections that it made."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from atoll.control.access.auth import Caller
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.sandboxes.lookup import SandboxLookup
from atoll.control.store import Store
from atoll.model.errors import AtollError, SandboxGone, SandboxNotFound
from atoll.model.network import NetworkConnection, NetworkPolicy


class SandboxNetwork:
    """Keeps the store and the node that enforces it in agreement."""

    def __init__(self, store: Store, lookup: SandboxLookup, nodes: NodeRegistry) -> None:
        self._store = store
        self._lookup = lookup
        self._nodes = nodes
        self._turns: dict[str, asyncio.Lock] = {}
        """By node: one that does not answer keeps nobody else waiting."""

    async def set_policy(self, caller: Caller, sandbox_id: str, network: NetworkPolicy) -> None:
        """Replaces what it may reach, at once. Raises SandboxNotFound, NotOffered."""
        node_id = (await self._lookup.get(caller, sandbox_id)).node_id
        # Two at once must not leave one in the store and the other in force.
        async with self._turns.setdefault(node_id, asyncio.Lock()):
            record = await self._lookup.get(caller, sandbox_id)
            network = replace(network, mib_s=record.network.mib_s)  # the rate is the sandbox's, whatever it may reach
            # Written first: a restart in between must not bring the older, perhaps wider, policy back.
            if not await self._store.set_network(record.sandbox_id, network):
                raise SandboxNotFound(record.sandbox_id)
            try:
                await self._nodes.client(record.node_id).update_network(record.sandbox_id, network)
            except SandboxGone as error:
                raise SandboxNotFound(record.sandbox_id) from error
            except AtollError:
                await self._store.set_network(record.sandbox_id, record.network)
                raise

    async def connections(self, caller: Caller, sandbox_id: str) -> Sequence[NetworkConnection]:
        """Its connections out, made or refused, oldest first. Raises SandboxNotFound."""
        record = await self._lookup.get(caller, sandbox_id)
        try:
            return await self._nodes.client(record.node_id).connections(record.sandbox_id)
        except SandboxGone as error:
            raise SandboxNotFound(record.sandbox_id) from error
