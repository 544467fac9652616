"""Which node runs a new sandbox: pure, from what is known about the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from atoll.model.errors import QuotaExceeded


class NodeState(StrEnum):
    """By a node's last heartbeat, or the lack of one."""

    READY = "ready"
    DRAINING = "draining"
    """What runs there goes on; nothing new begins."""
    SILENT = "silent"
    """Its connection is lost, or its heartbeats are missing. It may be back in a moment."""


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """What placement looks at. `sandboxes` run or are being made there; `load` is its load average per processor.

    `lacks`: why it has no room for the sandbox in question; "" when it has.
    """

    node_id: str
    has_template: bool
    sandboxes: int
    state: NodeState = NodeState.READY
    load: float = 0.0
    lacks: str = ""


def choose_node(nodes: Sequence[NodeLoad]) -> str:
    """The id of the node with the fewest sandboxes among those that have the template; the less busy of equals.

    A silent one, which would be waited for, only where no other can take it. Raises QuotaExceeded when none can.
    """
    there = [node for node in nodes if node.has_template and node.state is not NodeState.DRAINING]
    for state in (NodeState.READY, NodeState.SILENT):
        able = [node for node in there if node.state is state and not node.lacks]
        if able:
            return min(able, key=lambda node: (node.sandboxes, node.load)).node_id
    if there:
        raise QuotaExceeded(there[0].lacks, hint="kill some sandboxes, or try again later")
    raise QuotaExceeded("no node can take another sandbox with this template now", hint="try again later")
