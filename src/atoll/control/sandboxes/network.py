"""What a sandbox may reach, changed while it runs, and the connections that it made."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace

import structlog

from atoll.control.access.auth import Caller
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.sandboxes.lookup import SandboxLookup
from atoll.control.secrets.placeholders import names_in
from atoll.control.secrets.service import SecretFilling
from atoll.control.store import Store
from atoll.model.errors import AtollError, SandboxGone, SandboxNotFound
from atoll.model.network import NetworkConnection, NetworkPolicy
from atoll.model.sandbox import SandboxRecord, SandboxState

_log = structlog.get_logger("atoll.control")


class SandboxNetwork:
    """Keeps the store and the node that enforces it in agreement. The store has secrets by name, the node by value."""

    def __init__(self, store: Store, lookup: SandboxLookup, nodes: NodeRegistry, filling: SecretFilling) -> None:
        self._store = store
        self._lookup = lookup
        self._nodes = nodes
        self._filling = filling
        self._turns: dict[str, asyncio.Lock] = {}
        """By node: one that does not answer keeps nobody else waiting."""

    async def set_policy(self, caller: Caller, sandbox_id: str, network: NetworkPolicy) -> None:
        """Replaces what it may reach, at once. Raises SandboxNotFound, InvalidRequest (no such secret), NotOffered."""
        node_id = (await self._lookup.get(caller, sandbox_id)).node_id
        # Two at once must not leave one in the store and the other in force.
        async with self._turns.setdefault(node_id, asyncio.Lock()):
            record = await self._lookup.get(caller, sandbox_id)
            network = replace(network, mib_s=record.network.mib_s)  # the rate is the sandbox's, whatever it may reach
            in_force = await self._filling.of_order(record.team_id, network)
            # Written first: a restart in between must not bring the older, perhaps wider, policy back.
            if not await self._store.set_network(record.sandbox_id, network):
                raise SandboxNotFound(record.sandbox_id)
            try:
                await self._nodes.client(record.node_id).update_network(record.sandbox_id, in_force)
            except SandboxGone as error:
                raise SandboxNotFound(record.sandbox_id) from error
            except AtollError:
                await self._store.set_network(record.sandbox_id, record.network)
                raise

    async def follow_secrets(
        self, team_id: str | None = None, names: Collection[str] | None = None, node_id: str | None = None
    ) -> None:
        """Running sandboxes carry what their secrets are now: of one team, of one secret, on one node, or all of them.

        A failure is logged; the next start of the server, or the node's return, does it again.
        """
        for record in await self._store.in_states([SandboxState.RUNNING], team_id):
            used = names_in(record.network)
            if (names is None or not used.isdisjoint(names)) and node_id in (None, record.node_id):
                await self.follow(record)

    async def follow(self, record: SandboxRecord) -> None:
        """As `follow_secrets`, of that sandbox alone."""
        if names_in(record.network):
            await self._follow(record.sandbox_id, record.node_id)

    async def _follow(self, sandbox_id: str, node_id: str) -> None:
        async with self._turns.setdefault(node_id, asyncio.Lock()):
            record = await self._store.find(sandbox_id)
            if record is None or record.state is not SandboxState.RUNNING:
                return
            try:
                in_force = await self._filling.as_it_is_now(record.team_id, record.network)
                await self._nodes.client(node_id).update_network(sandbox_id, in_force)
            except SandboxGone:
                return
            except AtollError as error:
                _log.error("secrets.not_in_force", sandbox_id=sandbox_id, error=str(error))

    async def connections(self, caller: Caller, sandbox_id: str) -> Sequence[NetworkConnection]:
        """Its connections out, made or refused, oldest first. Raises SandboxNotFound."""
        record = await self._lookup.get(caller, sandbox_id)
        try:
            return await self._nodes.client(record.node_id).connections(record.sandbox_id)
        except SandboxGone as error:
            raise SandboxNotFound(record.sandbox_id) from error
