"""Renews the leases on which nodes of other machines run their sandboxes (`NodeClient.renew`), every second.

Only of nodes that are not silent, and that the store agrees with since they came: what was begun anew elsewhere has
ended there by then.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

import structlog

from atoll.control.nodes.registry import LEASE_S, NodeRegistry
from atoll.model.errors import AtollError
from atoll.model.node_addresses import LOCAL
from atoll.model.seams import NodeClient

_EVERY_S = 1.0

_log = structlog.get_logger("atoll.control")


class NodeLeases:
    """`run` is its task."""

    def __init__(self, nodes: NodeRegistry) -> None:
        self._nodes = nodes
        self._turns: defaultdict[str, int] = defaultdict(int)
        self._granted: set[str] = set()

    def suspend(self, node_id: str) -> int:
        """Both may know different things: no renewal until `grant` with what this returns."""
        self._granted.discard(node_id)
        self._turns[node_id] += 1
        return self._turns[node_id]

    def grant(self, node_id: str, turn: int) -> None:
        """Both know the same, unless it was suspended again meanwhile."""
        if self._turns[node_id] == turn:
            self._granted.add(node_id)

    async def run(self) -> None:
        """Until it is cancelled."""
        under_way: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                under_way = {node_id: task for node_id, task in under_way.items() if not task.done()}
                for node_id, node in self._nodes.worth_asking().items():
                    is_due = node_id in self._granted and not self._nodes.is_silent(node_id)
                    if node_id != LOCAL and is_due and node_id not in under_way:
                        under_way[node_id] = tasks.create_task(self._renew(node))
                await asyncio.sleep(_EVERY_S)

    async def _renew(self, node: NodeClient) -> None:
        try:
            await node.renew(LEASE_S, self._nodes.last_word(node.node_id))
        except AtollError as error:
            _log.debug("lease.not_renewed", node=node.node_id, error=str(error))
        except Exception:  # the other nodes are renewed all the same
            _log.exception("lease.not_renewed", node=node.node_id)
