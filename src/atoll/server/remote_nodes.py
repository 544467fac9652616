"""The front's connections to nodes on other machines: those by setting, and those that come and go meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from atoll.model.logs import LogEntry
from atoll.model.node_addresses import NodeAddress
from atoll.model.sandbox import EndReason, OomKill
from atoll.model.seams import NodeEvents, NodePresence, Route, RouteSink
from atoll.tls.peers import peer_context
from atoll.wire.node.client import RemoteNode
from atoll.wire.node.transport import TlsNode

NodeOf = Callable[[str], str | None]
"""Sandbox id → the node that has it; None: of no sandbox that is known."""


class _RoutesOfNode:
    """A RouteSink for one node: what it says of a sandbox that another one has changes nothing."""

    def __init__(self, node_id: str, routes: RouteSink, node_of: NodeOf) -> None:
        self._node_id = node_id
        self._routes = routes
        self._node_of = node_of

    def add(self, route: Route) -> None:
        if self._node_of(route.sandbox_id) in (None, self._node_id):
            self._routes.add(route)

    def remove(self, sandbox_id: str) -> None:
        if self._node_of(sandbox_id) in (None, self._node_id):
            self._routes.remove(sandbox_id)


class _EventsOfNode:
    """NodeEvents of one node. What it reports of a sandbox that was begun anew elsewhere was of the earlier one."""

    def __init__(self, node_id: str, events: NodeEvents, node_of: NodeOf) -> None:
        self._node_id = node_id
        self._events = events
        self._node_of = node_of

    async def sandbox_ended(self, sandbox_id: str, reason: EndReason, detail: str) -> None:
        """See NodeEvents."""
        if self._node_of(sandbox_id) in (None, self._node_id):
            await self._events.sandbox_ended(sandbox_id, reason, detail)

    async def sandbox_out_of_memory(self, sandbox_id: str, victim: OomKill) -> None:
        """See NodeEvents."""
        if self._node_of(sandbox_id) in (None, self._node_id):
            await self._events.sandbox_out_of_memory(sandbox_id, victim)

    async def sandbox_logged(self, sandbox_id: str, entries: Sequence[LogEntry]) -> None:
        """See NodeEvents."""
        if self._node_of(sandbox_id) in (None, self._node_id):
            await self._events.sandbox_logged(sandbox_id, entries)


class RemoteNodes:
    """`model.seams.NodeLinks`. `async with` closes all. Nobody waits for a node: it registers whenever it is there.

    `identity`: how the control plane proves itself to them (`tls.peers`).
    """

    def __init__(self, identity: str, presence: NodePresence, routes: RouteSink) -> None:
        self._identity = identity
        self._presence = presence
        self._routes = routes
        self._events: NodeEvents | None = None
        self._node_of: NodeOf = lambda _: None
        self._open: dict[str, tuple[RemoteNode, AsyncExitStack]] = {}
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node_id in list(self._open):
            await self.disconnect(node_id)

    def subscribe(self, events: NodeEvents, node_of: NodeOf) -> None:
        """What happens on all of them goes there from now on, and where their sandboxes are to the routes.

        `node_of`: where a sandbox is by what control knows, so that one that was begun anew elsewhere is reached there.
        """
        self._events, self._node_of = events, node_of
        for node_id, (node, _) in self._open.items():
            node.subscribe(_EventsOfNode(node_id, events, node_of))
            node.subscribe_routes(_RoutesOfNode(node_id, self._routes, node_of))

    async def connect(self, address: NodeAddress) -> None:
        """See NodeLinks."""
        async with self._turn:
            await self._close(address.node_id)
            async with AsyncExitStack() as stack:
                peer = TlsNode(address.host, address.port, peer_context(self._identity, server=False))
                stack.push_async_callback(peer.aclose)
                node = RemoteNode(
                    peer.connect,
                    dial=peer.dial,
                    presence=self._presence,
                    is_waited_for=False,
                    expected_id=address.node_id,
                )
                await stack.enter_async_context(node)
                if self._events is not None:
                    node.subscribe(_EventsOfNode(address.node_id, self._events, self._node_of))
                    node.subscribe_routes(_RoutesOfNode(address.node_id, self._routes, self._node_of))
                self._open[address.node_id] = node, stack.pop_all()

    async def disconnect(self, node_id: str) -> None:
        """See NodeLinks."""
        async with self._turn:
            await self._close(node_id)

    async def _close(self, node_id: str) -> None:
        found = self._open.pop(node_id, None)
        if found is not None:
            node, stack = found
            await stack.aclose()
            node.remove_routes()
