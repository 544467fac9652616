"""What the control plane counts of itself, for Prometheus: requests, creates, events, sandboxes, nodes, stalls.

Names follow Prometheus' conventions (base units, `_total`). No label has a sandbox's, a team's or a key's name: their
number is not bounded, and an operator's dashboard is no place for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from atoll.control.placement import NodeLoad, NodeState
from atoll.model.events import EventType

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

States = Callable[[], Mapping[str, int]]
Nodes = Callable[[], Iterable[NodeLoad]]


class Figures:
    """`states` and `nodes` are asked when somebody reads. Counting costs a dictionary look-up."""

    def __init__(self, states: States, nodes: Nodes) -> None:
        self._states_now = states
        self._nodes_now = nodes
        self.registry = registry = CollectorRegistry()
        self._requests = Histogram(
            "atoll_request_seconds",
            "Requests of the REST interface, by route and status.",
            ("method", "route", "status"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._steps = Histogram(
            "atoll_create_step_seconds",
            "Where the time of a create goes: its steps in control and node.",
            ("step", "tier"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._events = Counter(
            "atoll_sandbox_events", "What happened to sandboxes, by E2B's event types.", ("type",), registry=registry
        )
        self._node_events = Counter(
            "atoll_node_events", "What became of nodes (joined, silent, …).", ("type",), registry=registry
        )
        for kind in EventType:
            (self._node_events if kind.is_of_node else self._events).labels(_short(kind))
        self._sandboxes = Gauge("atoll_sandboxes", "Sandboxes by state.", ("state",), registry=registry)
        self._node_sandboxes = Gauge(
            "atoll_node_sandboxes", "Sandboxes that run on a node.", ("node",), registry=registry
        )
        self._node_load = Gauge("atoll_node_load", "A node's load per processor.", ("node",), registry=registry)
        self._nodes = Gauge("atoll_nodes", "Nodes by state.", ("state",), registry=registry)
        self.stalls = Counter(
            "atoll_loop_stalls",
            "How often an event loop stood still for 250 ms or more.",
            ("process",),
            registry=registry,
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request was answered. `route` is a pattern of the interface, never a path that a client chose."""
        self._requests.labels(method, route, str(status)).observe(seconds)

    def created(self, tier: str, steps_ms: Mapping[str, float]) -> None:
        """A sandbox was made; its steps in milliseconds."""
        for step, value in steps_ms.items():
            self._steps.labels(step, tier).observe(value / 1000)

    def happened(self, kind: EventType) -> None:
        """A lifecycle event."""
        (self._node_events if kind.is_of_node else self._events).labels(_short(kind)).inc()

    def text(self) -> bytes:
        """All of it as it is now, in Prometheus' text format."""
        for state, count in self._states_now().items():
            self._sandboxes.labels(state).set(count)
        for gauge in (self._node_sandboxes, self._node_load):
            gauge.clear()
        found = list(self._nodes_now())
        for node in found:
            self._node_sandboxes.labels(node.node_id).set(node.sandboxes)
            self._node_load.labels(node.node_id).set(node.load)
        for each in NodeState:
            self._nodes.labels(each.value).set(sum(node.state is each for node in found))
        return generate_latest(self.registry)


def _short(kind: EventType) -> str:
    return kind.value.rpartition(".")[2]
