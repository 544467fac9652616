"""Which node runs a new sandbox: pure, from what is known about the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.model.errors import QuotaExceeded


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """What placement looks at. `sandboxes` counts those that run or are being made there.

    `lacks`: why it has no room for the sandbox in question; "" when it has.
    """

    node_id: str
    has_template: bool
    sandboxes: int
    lacks: str = ""


def choose_node(nodes: Sequence[NodeLoad]) -> str:
    """The id of the least loaded node that has the template; ties go to the first.

    Raises QuotaExceeded when no node can take it.
    """
    holders = [node for node in nodes if node.has_template]
    able = [node for node in holders if not node.lacks]
    if not able and holders:
        raise QuotaExceeded(holders[0].lacks, hint="kill some sandboxes, or try again later")
    if not able:
        raise QuotaExceeded("no node can take another sandbox with this template now", hint="try again later")
    return min(able, key=lambda node: node.sandboxes).node_id
