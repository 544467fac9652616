"""Nodes for operators: which there are and how they are; added, drained and removed while the server runs.

An operator's drain is control's own: it holds whatever the node says, also over restarts of either.
"""

from __future__ import annotations

from collections.abc import Sequence

from atoll.control.access.auth import DEFAULT_TEAM_ID, Caller
from atoll.control.clock import Clock
from atoll.control.nodes.registry import NodeRegistry, NodeView
from atoll.control.sandboxes.quota import SandboxQuota
from atoll.control.store.nodes import NodeTables
from atoll.model.errors import Conflict, Forbidden, InvalidRequest, NotFound
from atoll.model.node_addresses import LOCAL, NodeAddress, check_node_id
from atoll.model.sandbox import Limits
from atoll.model.seams import NodeImage, NodeLinks


class NodeService:
    """Every call raises Forbidden for a caller of another team than the operator's."""

    def __init__(
        self, tables: NodeTables, nodes: NodeRegistry, links: NodeLinks | None, quota: SandboxQuota, clock: Clock
    ) -> None:
        self._tables = tables
        self._nodes = nodes
        self._links = links
        self._quota = quota
        self._clock = clock

    async def recover(self) -> None:
        """What the store says of nodes. Once, at start."""
        for row in await self._tables.all():
            if row.draining:
                self._nodes.draining.add(row.node_id)
            if row.address is not None and self._links is not None:
                await self._links.connect(row.address)

    def all(self, caller: Caller) -> list[NodeView]:
        """By id."""
        _check_operator(caller)
        return self._nodes.views()

    def get(self, caller: Caller, node_id: str) -> NodeView:
        """Raises NotFound."""
        for view in self.all(caller):
            if view.node_id == node_id:
                return view
        raise NotFound(f"node {node_id[:100]!r} not found", hint="`atoll nodes list` shows those that there are")

    def allocated(self, node_id: str) -> Limits:
        """What the limits of its sandboxes add up to."""
        return self._quota.limits_on(node_id)

    async def set_draining(self, caller: Caller, node_id: str, draining: bool) -> None:
        """Raises NotFound, Conflict (it drains by its own decision)."""
        view = self.get(caller, node_id)
        await self._tables.set_draining(node_id, draining, self._clock.now())
        self._nodes.drain(node_id, draining)
        if not draining and view.status.draining:
            raise Conflict(
                f"node {node_id!r} drains by itself: it was asked to on its machine, or is being stopped",
                hint="start it again there",
            )

    async def put(self, caller: Caller, node_id: str, host: str, port: int) -> None:
        """Connects to a node from now on, also after a restart. Raises InvalidRequest, Conflict (it cannot)."""
        _check_operator(caller)
        check_node_id(node_id)
        if self._links is None:
            raise Conflict("this server connects to no other machines")
        if not host or not 0 < port < 65536:
            raise InvalidRequest("a node is added with the host and the port of its agent")
        address = NodeAddress(node_id, host, port)
        row = next((one for one in await self._tables.all() if one.node_id == node_id), None)
        if row is not None and row.address == address:
            return
        if (row is None or row.address is None) and self._nodes.find(node_id) is not None:
            raise Conflict(f"node {node_id!r} is there by setting", hint="choose another id")
        await self._tables.put_address(address, self._clock.now())
        await self._links.connect(address)

    async def remove(self, caller: Caller, node_id: str) -> None:
        """It is not connected to any more. Raises NotFound, Conflict (by setting; it has sandboxes)."""
        _check_operator(caller)
        row = next((one for one in await self._tables.all() if one.node_id == node_id), None)
        if row is None or row.address is None or self._links is None:
            if row is None and self._nodes.find(node_id) is None:
                raise NotFound(f"node {node_id[:100]!r} not found")
            hint = "" if node_id == LOCAL else "take it out of --node or ATOLL_NODES, and start the server again"
            raise Conflict(f"node {node_id!r} is there by setting", hint=hint)
        if count := self._quota.held_on(node_id):
            raise Conflict(
                f"node {node_id!r} has {count} sandboxes", hint="drain it, and wait until they have ended or kill them"
            )
        await self._links.disconnect(node_id)
        await self._tables.remove(node_id)
        self._nodes.forget(node_id)

    async def images(self, caller: Caller, node_id: str) -> Sequence[NodeImage]:
        """Those that it has. Raises NotFound, NodeUnreachable."""
        self.get(caller, node_id)
        return await self._nodes.client(node_id).images()


def _check_operator(caller: Caller) -> None:
    if caller.team_id != DEFAULT_TEAM_ID:
        raise Forbidden("nodes are the operator's", hint="use a key of ATOLL_API_KEYS or DATA_DIR/api-key")
