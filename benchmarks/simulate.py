"""Placement on a large fleet, simulated: `make simulate` (`python benchmarks/simulate.py --help`). Seeded; no numpy.

What is real: `atoll.control.placement`, the very code of the server, and the time that it takes on this machine.
Simulated: nodes, sandboxes, load averages (first order, one minute, as Linux has them), their reports every second, and
the arrivals: a Poisson process whose rate jumps (bursts), with lifetimes of a Pareto distribution (heavy tail). Each
template's image starts on a few nodes; a node keeps it once it has fetched it.

    filling    sandboxes arrive until as many live as were asked for
    steady     they come and go; a third of the time arrivals come in bursts
    node loss  a share of the nodes is gone at once; what ran there is placed again
    draining   as many nodes take no more; nothing may go there
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from random import Random
from statistics import fmean, pstdev

from atoll.control.placement import NodeLoad, NodeState, Wanted, choose_node
from atoll.control.sandboxes.quota import SandboxQuota
from atoll.model.capacity import Machine, derive
from atoll.model.errors import QuotaExceeded
from atoll.model.sandbox import Limits

TAU_S = 60.0
"""Of Linux' load average of one minute."""
PARETO, SHORTEST_S = 1.3, 60.0
PROCESSORS = (16, 32, 64)
SIZES = (Limits(1, 512), Limits(2, 1024), Limits(4, 4096))
SIZE_WEIGHTS = (0.5, 0.35, 0.15)
USED_SHARE = 0.06
"""Of a processor that a sandbox keeps busy, on the average of an exponential distribution."""
MEMORY_SHARE = 0.1
"""Of its memory that it uses, likewise."""


@dataclass(slots=True)
class Node:
    """`work`: processors that are busy. `seen_…`: as of its last report."""

    node_id: str
    processors: int
    total: Limits
    state: NodeState = NodeState.READY
    images: set[int] = field(default_factory=set)
    sandboxes: dict[int, Sandbox] = field(default_factory=dict)
    work: float = 0.0
    memory_mib: float = 0.0
    load: float = 0.0
    load_at: float = 0.0
    seen_load: float = 0.0
    seen_memory: float = 0.0
    seen_at: float = -1.0

    @property
    def memory_total_mib(self) -> int:
        return self.processors * 4096

    def advance(self, now: float) -> None:
        """The load average follows the work; what control sees of both is up to a second old."""
        keep = math.exp((self.load_at - now) / TAU_S)
        self.load, self.load_at = self.work / self.processors * (1 - keep) + self.load * keep, now
        if now - self.seen_at >= 1.0:
            self.seen_load, self.seen_memory = self.load, self.memory_mib / self.memory_total_mib
            self.seen_at = now


@dataclass(slots=True)
class Sandbox:
    number: int
    template: int
    limits: Limits
    work: float
    memory_mib: float
    ends_at: float


@dataclass
class Phase:
    """What is measured of one phase. Microseconds of processor time, which other load hardly disturbs."""

    name: str
    took_us: list[float] = field(default_factory=list)
    local: int = 0
    refused: int = 0
    placed: int = 0
    moved: int = 0


class Fleet:
    def __init__(self, nodes: int, templates: int, copies: int, seed: int) -> None:
        self.random = Random(seed)
        self.draws = Random(seed + 1)
        self.nodes: dict[str, Node] = {}
        for number in range(nodes):
            processors = self.random.choice(PROCESSORS)
            machine = Machine(processors, processors * 4096, 1 << 22, processors * 40960, processors * 36000)
            node_id = f"n{number:05}"
            self.nodes[node_id] = Node(node_id, processors, derive(machine).total)
        self.ids: Sequence[str] = list(self.nodes)
        self.quota = SandboxQuota(1 << 40, node_total=lambda node_id: self.nodes[node_id].total)
        self.holders: list[set[str]] = [set() for _ in range(templates)]
        # Few templates are used by most: Zipf.
        self.weights = [1 / (rank + 1) for rank in range(templates)]
        self.all_templates = range(templates)
        for template in self.all_templates:
            for node_id in self.random.sample(self.ids, min(nodes, copies)):
                self._fetch(self.nodes[node_id], template)
        self.now = 0.0
        self.live: dict[int, str] = {}
        self.ends: list[tuple[float, int]] = []
        self.numbers = 0

    def _fetch(self, node: Node, template: int) -> None:
        node.images.add(template)
        self.holders[template].add(node.node_id)

    def new_sandbox(self) -> Sandbox:
        draw, self.numbers = self.draws, self.numbers + 1
        (template,) = draw.choices(self.all_templates, self.weights)
        (limits,) = draw.choices(SIZES, SIZE_WEIGHTS)
        busy = min(float(limits.cpu_count), draw.expovariate(1 / USED_SHARE))
        used = limits.memory_mib * min(1.0, draw.expovariate(1 / MEMORY_SHARE))
        lives_s = SHORTEST_S * draw.paretovariate(PARETO)
        return Sandbox(self.numbers, template, limits, busy, used, self.now + lives_s)

    def place(self, one: Sandbox, phase: Phase) -> bool:
        holders, quota, nodes, limits, template = (
            self.holders[one.template],
            self.quota,
            self.nodes,
            one.limits,
            one.template,
        )

        def look(node_id: str) -> NodeLoad | None:
            node = nodes.get(node_id)
            if node is None:
                return None
            return NodeLoad(
                node_id,
                template in node.images,
                quota.on_node(node_id),
                node.state,
                load=node.seen_load,
                memory=node.seen_memory,
                share=quota.share(node_id),
                lacks=quota.node_lacks(node_id, limits),
            )

        began = time.thread_time_ns()
        try:
            node_id = choose_node(self.ids, look, Wanted(holders, can_move=True), self.random)
        except QuotaExceeded:
            phase.refused += 1
            return False
        finally:
            phase.took_us.append((time.thread_time_ns() - began) / 1000)
        node = nodes[node_id]
        phase.placed += 1
        phase.local += template in node.images
        if template not in node.images:
            self._fetch(node, template)
        name = str(one.number)
        quota.take(name, "t", node_id, limits, beyond_quota=True)
        self.live[one.number] = node_id
        node.sandboxes[one.number] = one
        node.work += one.work
        node.memory_mib += one.memory_mib
        node.advance(self.now)
        heappush(self.ends, (one.ends_at, one.number))
        return True

    def end_due(self) -> None:
        while self.ends and self.ends[0][0] <= self.now:
            ends_at, number = heappop(self.ends)
            node_id = self.live.get(number)
            if node_id is not None and self.nodes[node_id].sandboxes[number].ends_at == ends_at:
                self._remove(number, node_id)

    def _remove(self, number: int, node_id: str) -> Sandbox:
        node = self.nodes[node_id]
        one = node.sandboxes.pop(number)
        node.work -= one.work
        node.memory_mib -= one.memory_mib
        node.advance(self.now)
        self.quota.release(str(number))
        del self.live[number]
        return one

    def reports(self) -> None:
        """All nodes' heartbeats."""
        for node in self.nodes.values():
            node.advance(self.now)

    def lose(self, share: float) -> list[Sandbox]:
        """These nodes are gone; what ran there is to be placed again."""
        gone = self.random.sample(self.ids, int(len(self.ids) * share))
        lost = [self._remove(number, node_id) for node_id in gone for number in list(self.nodes[node_id].sandboxes)]
        for node_id in gone:
            for template in self.nodes[node_id].images:
                self.holders[template].discard(node_id)
            del self.nodes[node_id]
        self.ids = list(self.nodes)
        return lost

    def drain(self, share: float) -> list[Node]:
        chosen = [self.nodes[node_id] for node_id in self.random.sample(self.ids, int(len(self.ids) * share))]
        for node in chosen:
            node.state = NodeState.DRAINING
        return chosen

    def balance(self) -> dict[str, float]:
        """Over the nodes that take sandboxes: how unequal they are."""
        ready = [node for node in self.nodes.values() if node.state is NodeState.READY]
        work = sorted(node.work / node.processors for node in ready)
        share = sorted(self.quota.share(node.node_id) for node in ready)
        return {
            "work_mean": round(fmean(work), 3),
            "work_deviation": round(pstdev(work), 3),
            "work_p99": round(work[int(len(work) * 0.99)], 3),
            "work_most": round(work[-1], 3),
            "promised_mean": round(fmean(share), 4),
            "promised_p99": round(share[int(len(share) * 0.99)], 4),
            "promised_most": round(share[-1], 4),
        }


def arrivals(fleet: Fleet, phase: Phase, rate: float, seconds: float, until_live: int = 0) -> None:
    """Poisson arrivals; for two of six seconds at three times the rate, so that the mean is 5/3 of `rate`."""
    end, next_report = fleet.now + seconds, fleet.now + 1.0
    while fleet.now < end and not 0 < until_live <= len(fleet.live):
        burst = 3.0 if int(fleet.now) % 6 < 2 else 1.0
        fleet.now += fleet.draws.expovariate(rate * burst)
        if fleet.now >= next_report:
            fleet.reports()
            next_report = fleet.now + 1.0
        fleet.end_due()
        fleet.place(fleet.new_sandbox(), phase)


def figures(fleet: Fleet, phase: Phase) -> dict[str, object]:
    took = sorted(phase.took_us)

    def at(share: float) -> float:
        return round(took[min(len(took) - 1, int(len(took) * share))], 1) if took else 0.0

    return {
        "phase": phase.name,
        "live": len(fleet.live),
        "placed": phase.placed,
        "refused": phase.refused,
        "placement_us": {"p50": at(0.5), "p99": at(0.99), "most": at(1.0)},
        "local": round(phase.local / max(1, phase.placed), 4),
        **fleet.balance(),
    }


def run(nodes: int, sandboxes: int, templates: int, copies: int, loss: float, seed: int) -> list[dict[str, object]]:
    """The rows of the report."""
    fleet = Fleet(nodes, templates, copies, seed)
    rows = []
    mean_life_s = SHORTEST_S * PARETO / (PARETO - 1)
    steady_rate = sandboxes / mean_life_s * 3 / 5
    filling = Phase("filling")
    gc.freeze()
    arrivals(fleet, filling, steady_rate * 4, float("inf"), sandboxes)
    rows.append(figures(fleet, filling))
    steady = Phase("steady, with bursts")
    arrivals(fleet, steady, steady_rate, 30)
    rows.append(figures(fleet, steady))
    again = Phase(f"{loss:.0%} of the nodes lost")
    for one in fleet.lose(loss):
        fleet.place(one, again)
    fleet.reports()
    rows.append(figures(fleet, again))
    draining = Phase(f"{loss:.0%} draining")
    drained = fleet.drain(loss)
    before = sum(len(node.sandboxes) for node in drained)
    arrivals(fleet, draining, steady_rate, 10)
    rows.append(figures(fleet, draining) | {"left_on_draining": sum(len(node.sandboxes) for node in drained) / before})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--sandboxes", type=int, default=1_000_000)
    parser.add_argument("--templates", type=int, default=1000)
    parser.add_argument("--copies", type=int, default=20, help="nodes that have each template's image at first")
    parser.add_argument("--loss", type=float, default=0.05, help="share of the nodes that is lost at once")
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--json", type=Path, help="where to write the rows too")
    options = parser.parse_args()
    rows = run(options.nodes, options.sandboxes, options.templates, options.copies, options.loss, options.seed)
    for row in rows:
        print(json.dumps(row))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
