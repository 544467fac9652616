"""Which node gets a new sandbox: pure, from what is known of the nodes. The simulator (`make simulate`) runs this code.

    nodes that are ready and have room
      └► those that have its template or snapshot; others where it can be fetched and these are crowded
           └► fewest sandboxes of its group ─► little real load ─► least of its size promised away

Up to LOOK_AT_ALL nodes are compared all; of more, BEST_OF random ones that can take it, so that the cost of a choice
does not grow with their number and creates that come at once do not all meet on one node. Only where a random sample
finds none are all looked at: a create is refused only if nobody can take it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from atoll.model.errors import QuotaExceeded

BEST_OF = 8
DRAWS = 8 * BEST_OF
"""Random nodes that are looked at for BEST_OF that can take it."""
LOOK_AT_ALL = 64
CROWDED = 0.5
"""The pressure from which a node that would have to fetch the image first may be better."""
_ALIKE, _ALIKE_SHARE = 0.25, 0.25
"""Pressures that differ by less than that, and that share of the lower one, are alike: they lag and they waver."""

_RANDOM = Random()


class NodeState(StrEnum):
    """By a node's last heartbeat, or the lack of one."""

    READY = "ready"
    DRAINING = "draining"
    """What runs there goes on; nothing new begins."""
    SILENT = "silent"
    """Its connection is lost, or its heartbeats are missing. It may be back in a moment."""


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """A node as placement sees it, for one sandbox. `sandboxes` run or are being made there.

    Args:
        has_template: what the sandbox stands on is on its disk.
        load: its load average per processor.
        memory: the share of its memory that is in use, 0 to 1.
        share: what its sandboxes' limits add up to, of what they may: of the scarcest kind, 0 to 1.
        together: how many there are of the sandbox's group (metadata `atoll.spread`).
        gpus: how many are free, by its last word.
        lacks: why it has no room for the sandbox; "" when it has.
    """

    node_id: str
    has_template: bool
    sandboxes: int
    state: NodeState = NodeState.READY
    load: float = 0.0
    memory: float = 0.0
    share: float = 0.0
    together: int = 0
    gpus: int = 0
    lacks: str = ""

    @property
    def pressure(self) -> float:
        """How busy it really is: 1 is as much as it can do."""
        return max(self.load, self.memory)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be placed.

    Args:
        holders: the nodes that have what it stands on.
        can_move: whether others can fetch that.
        only: that node or none.
        refused: nodes that would not take it.
        gpus: how many it needs.
    """

    holders: Collection[str]
    can_move: bool = False
    only: str | None = None
    refused: Collection[str] = ()
    gpus: int = 0


Look = Callable[[str], NodeLoad | None]
"""Node id → how it is now; None: it is not there."""


def choose_node(node_ids: Sequence[str], look: Look, wanted: Wanted, random: Random = _RANDOM) -> str:
    """The id of the best node for it.

    A silent one, which would be waited for, only where no other can take it. Raises QuotaExceeded when none can.
    """
    if wanted.only is not None:
        node_ids = [wanted.only]
    holders = wanted.holders
    # Few holders are drawn from themselves; many are met among all nodes.
    pool = node_ids if wanted.only is not None or len(holders) * 4 > len(node_ids) else sorted(holders)
    best = _best(_ready(pool, look, wanted, random, lambda node_id: node_id in holders))
    if wanted.can_move and (best is None or best.pressure >= CROWDED or best.together > 0):
        other = _best(_ready(node_ids, look, wanted, random, lambda node_id: node_id not in holders))
        if other is not None and (best is None or _is_worth_moving(other, best)):
            best = other
    if best is None:
        best = _last_resort(node_ids, look, wanted)
    return best.node_id


def _ready(
    pool: Sequence[str], look: Look, wanted: Wanted, random: Random, admits: Callable[[str], bool]
) -> list[NodeLoad]:
    """Those to compare: BEST_OF random ones, or all that can take it."""
    if len(pool) > LOOK_AT_ALL:
        found: list[NodeLoad] = []
        for node_id in random.choices(pool, k=DRAWS):
            if admits(node_id) and (node := look(node_id)) is not None and _can_take(node, wanted, NodeState.READY):
                found.append(node)
                if len(found) == BEST_OF:
                    break
        if found:
            return found
    nodes = (look(node_id) for node_id in pool if admits(node_id))
    return [node for node in nodes if node is not None and _can_take(node, wanted, NodeState.READY)]


def _can_take(node: NodeLoad, wanted: Wanted, state: NodeState) -> bool:
    return node.state is state and not node.lacks and node.gpus >= wanted.gpus and node.node_id not in wanted.refused


def _best(nodes: Sequence[NodeLoad]) -> NodeLoad | None:
    """None: there is none."""
    if not nodes:
        return None
    together = min(node.together for node in nodes)
    apart = [node for node in nodes if node.together == together]
    most = _alike(min(node.pressure for node in apart))
    return min(
        (node for node in apart if node.pressure <= most), key=lambda node: (node.share, node.sandboxes, node.pressure)
    )


def _alike(pressure: float) -> float:
    return pressure * (1 + _ALIKE_SHARE) + _ALIKE


def _is_worth_moving(other: NodeLoad, local: NodeLoad) -> bool:
    if other.together != local.together:
        return other.together < local.together
    return _alike(other.pressure) < local.pressure


def _last_resort(node_ids: Iterable[str], look: Look, wanted: Wanted) -> NodeLoad:
    """A silent node, or why there is none."""
    there = [
        node
        for node in map(look, node_ids)
        if node is not None
        and (node.has_template or wanted.can_move)
        and node.state is not NodeState.DRAINING
        and node.node_id not in wanted.refused
    ]
    silent = _best([node for node in there if _can_take(node, wanted, NodeState.SILENT)])
    if silent is not None:
        return silent
    if lacks := next((node.lacks for node in there if node.lacks), ""):
        raise QuotaExceeded(lacks, hint="kill some sandboxes, or try again later")
    if there and wanted.gpus:
        raise QuotaExceeded(f"no node has {wanted.gpus} free GPUs now", hint="try again later")
    raise QuotaExceeded("no node can take another sandbox with this template now", hint="try again later")
