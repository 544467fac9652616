"""The nodes that control knows, and in which state each is. Fed by the nodes themselves (`NodePresence`).

    registered ─► READY ◄──beats──► DRAINING          as each heartbeat says, or an operator
                    │ connection lost, or no beat for SILENT_AFTER_S
                    ▼
                 SILENT ──registered or a beat──► READY, DRAINING      `returned` is called
                    │ LOST_AFTER_S
                  lost: still silent, and may return                   `given_up` is called; never of LOCAL
                    │ GONE_AFTER_S
                    ▼
                  gone: forgotten                                      `gone` is called

Callers ask only nodes that are not silent, so that one silent node delays no answer of the others. The server's own
node has no lease: it may run what it has however long it is silent, and the launcher starts it again. So it is never
lost.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import structlog

from atoll.control.placement import NodeLoad, NodeState
from atoll.model.errors import NodeUnreachable
from atoll.model.node_addresses import LOCAL
from atoll.model.sandbox import Limits
from atoll.model.seams import NodeClient, NodeStatus

SILENT_AFTER_S = 5.0
LOST_AFTER_S = 9.0
"""From its last word until what runs on it is shown as lost, and may be begun anew elsewhere: more than LEASE_S, with
what its sandboxes take to stand still."""
LEASE_S = 6.0
"""How long a node may let its sandboxes run from the word that a renewal answers."""
GONE_AFTER_S = 300.0
"""From its last word until its sandboxes count as lost."""
_LOOK_EVERY_S = 1.0

_log = structlog.get_logger("atoll.control")


class NodeNews(StrEnum):
    """What becomes of a node, for logs, figures and events."""

    JOINED = "joined"
    SILENT = "silent"
    LOST = "lost"
    RETURNED = "returned"
    GONE = "gone"
    DRAINING = "draining"
    UNDRAINED = "undrained"
    REMOVED = "removed"


@dataclass(slots=True)
class CreateCounts:
    """How many creates were begun on a node by this control plane, and how they went."""

    begun: int = 0
    done: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Known:
    client: NodeClient | None
    """None: expected, because the store has sandboxes of it, but it has not registered yet."""
    status: NodeStatus
    answered_at: float
    is_connected: bool
    was_silent: bool = False
    was_lost: bool = False
    state: NodeState | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as an operator sees it."""

    node_id: str
    state: NodeState
    has_registered: bool
    silent_s: float
    """Since its last word."""
    since: datetime
    """When `state` became what it is."""
    status: NodeStatus
    creates: CreateCounts


class NodeRegistry:
    """`run` is its task. `clock`: monotonic seconds.

    `returned`, `given_up` and `gone` are set by who brings store and nodes into agreement; all get a node's id.
    `happened` gets all news of nodes. `draining`: those that an operator drains, whatever they say themselves.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._registered: tuple[str, ...] | None = None
        """Kept until it changes: a create reads it."""
        self.returned: Callable[[str], None] = lambda _: None
        self.gone: Callable[[str], None] = lambda _: None
        self.given_up: Callable[[str], None] = lambda _: None
        self.happened: Callable[[NodeNews, str], None] = lambda _, __: None
        self.draining: set[str] = set()
        self._creates: defaultdict[str, CreateCounts] = defaultdict(CreateCounts)

    # NodePresence

    def registered(self, node: NodeClient, status: NodeStatus) -> None:
        """See NodePresence."""
        is_known = node.node_id in self._known
        self._known[node.node_id] = _Known(node, status, self._clock(), is_connected=True)
        self._registered = None
        _log.info("node.registered", node=node.node_id, again=is_known, sandboxes=status.sandboxes)
        self.happened(NodeNews.RETURNED if is_known else NodeNews.JOINED, node.node_id)
        self.returned(node.node_id)

    def beat(self, node_id: str, status: NodeStatus) -> None:
        """See NodePresence."""
        known = self._known.get(node_id)
        if known is None:
            return
        if status.draining and not known.status.draining:
            _log.info("node.draining", node=node_id, sandboxes=status.sandboxes)
            self.happened(NodeNews.DRAINING, node_id)
        known.status, known.answered_at = status, self._clock()
        if known.was_silent:
            known.was_silent = known.was_lost = False
            _log.info("node.returned", node=node_id)
            self.happened(NodeNews.RETURNED, node_id)
            self.returned(node_id)

    def lost(self, node_id: str) -> None:
        """See NodePresence."""
        if (known := self._known.get(node_id)) is not None:
            known.is_connected = False

    # Look-ups

    def expect(self, node_id: str) -> None:
        """The store has sandboxes of it: it is silent until it registers, and gone if it never does."""
        self._known.setdefault(node_id, _Known(None, NodeStatus(0), self._clock(), is_connected=False))

    def client(self, node_id: str) -> NodeClient:
        """Raises NodeUnreachable: it has not registered."""
        client = self.find(node_id)
        if client is None:
            raise NodeUnreachable(f"node {node_id!r} has not registered")
        return client

    def find(self, node_id: str) -> NodeClient | None:
        """None: it has not registered."""
        known = self._known.get(node_id)
        return known.client if known is not None else None

    def state(self, node_id: str) -> NodeState:
        """SILENT for one that is not known."""
        known = self._known.get(node_id)
        if node_id in self.draining:
            return NodeState.DRAINING
        if known is None or not self._answers(known):
            # Its last word counts on: who was draining will not take more when it is back, unless it says so.
            return NodeState.DRAINING if known is not None and known.status.draining else NodeState.SILENT
        return NodeState.DRAINING if known.status.draining else NodeState.READY

    def is_silent(self, node_id: str) -> bool:
        """Whether it would have to be waited for."""
        known = self._known.get(node_id)
        return known is None or not self._answers(known)

    def is_lost(self, node_id: str) -> bool:
        """It is silent for so long that nothing is expected of it: what runs there is not shown as running."""
        known = self._known.get(node_id)
        return known is None or known.was_lost

    def worth_asking(self) -> dict[str, NodeClient]:
        """Those that are not silent; where all are, all that have registered: one may be back in a moment."""
        registered = {node_id: known.client for node_id, known in self._known.items() if known.client is not None}
        answering = {node_id: client for node_id, client in registered.items() if not self.is_silent(node_id)}
        return answering or registered

    def views(self) -> list[NodeView]:
        """All that are known, by id."""
        found = []
        for node_id, known in sorted(self._known.items()):
            state = NodeState.SILENT if not self._answers(known) else self.state(node_id)
            if state is not known.state or known.since is None:
                known.state, known.since = state, datetime.now(UTC)
            silent_s = max(0.0, self._clock() - known.answered_at)
            registered = known.client is not None
            creates = self._creates[node_id]
            found.append(NodeView(node_id, state, registered, silent_s, known.since, known.status, creates))
        return found

    def creates_of(self, node_id: str) -> CreateCounts:
        """To be counted on."""
        return self._creates[node_id]

    def drain(self, node_id: str, draining: bool) -> None:
        """An operator says so."""
        if draining != (node_id in self.draining):
            (self.draining.add if draining else self.draining.discard)(node_id)
            self.happened(NodeNews.DRAINING if draining else NodeNews.UNDRAINED, node_id)

    def forget(self, node_id: str) -> None:
        """It was removed. Idempotent."""
        self.draining.discard(node_id)
        self._registered = None
        if self._known.pop(node_id, None) is not None:
            self.happened(NodeNews.REMOVED, node_id)

    def registered_ids(self) -> Sequence[str]:
        """Of all that have registered and are not gone, silent ones too."""
        if self._registered is None:
            self._registered = tuple(name for name, known in self._known.items() if known.client is not None)
        return self._registered

    def load(self, node_id: str) -> NodeLoad | None:
        """What it reports of itself. None: it has not registered."""
        known = self._known.get(node_id)
        if known is None or known.client is None:
            return None
        status = known.status
        state = self.state(node_id)
        return NodeLoad(
            node_id, False, status.sandboxes, state, load=status.load, memory=status.memory, gpus=status.gpus
        )

    def loads(self) -> list[NodeLoad]:
        """Of all that have registered."""
        return [load for node_id in self.registered_ids() if (load := self.load(node_id)) is not None]

    def last_word(self, node_id: str) -> float:
        """When its last status was made, by its own clock (`NodeStatus.at`)."""
        known = self._known.get(node_id)
        return known.status.at if known is not None else 0.0

    def total(self, node_id: str) -> Limits | None:
        """What the limits of its sandboxes may add up to, by its own word. None: it does not report any."""
        known = self._known.get(node_id)
        return known.status.total if known is not None else None

    def _answers(self, known: _Known) -> bool:
        return known.is_connected and self._clock() - known.answered_at < SILENT_AFTER_S

    async def run(self) -> None:
        """Notices silence, until it is cancelled."""
        while True:
            began = self._clock()
            await asyncio.sleep(_LOOK_EVERY_S)
            if (stood_still := self._clock() - began - _LOOK_EVERY_S) > _LOOK_EVERY_S:
                # This process did, and what nodes have sent meanwhile is still to be read.
                for known in self._known.values():
                    known.answered_at += stood_still
            self.look()

    def look(self) -> None:
        """One look at all of them."""
        self.views()  # notes since when each is as it is
        for node_id, known in list(self._known.items()):
            if self._answers(known):
                continue
            silent_s = self._clock() - known.answered_at
            if not known.was_silent:
                known.was_silent = True
                _log.warning("node.silent", node=node_id, connected=known.is_connected)
                self.happened(NodeNews.SILENT, node_id)
            if silent_s >= LOST_AFTER_S and not known.was_lost and node_id != LOCAL:
                known.was_lost = True
                _log.error("node.lost", node=node_id, silent_s=round(silent_s))
                self.happened(NodeNews.LOST, node_id)
                self.given_up(node_id)
            if silent_s >= GONE_AFTER_S:
                del self._known[node_id]
                self._registered = None
                _log.error("node.gone", node=node_id, silent_s=round(silent_s))
                self.happened(NodeNews.GONE, node_id)
                self.gone(node_id)
