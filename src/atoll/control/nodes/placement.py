"""Which node runs a new sandbox: pure, from what is known about the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.model.errors import QuotaExceeded


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """What placement looks at. `sandboxes` counts those that run or are being made there."""

    node_id: str
    has_template: bool
    sandboxes: int
    accepts: bool = True


def choose_node(nodes: Sequence[NodeLoad]) -> str:
    """The id of the least loaded node that has the template; ties go to the first.

    Raises QuotaExceeded when no node can take it.
    """
    able = [node for node in nodes if node.accepts and node.has_template]
    if not able:
        raise QuotaExceeded("no node can take another sandbox with this template now", hint="try again later")
    return min(able, key=lambda node: node.sandboxes).node_id
