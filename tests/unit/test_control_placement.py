"""Which node gets a sandbox: every rule, and that whoever can take one is found however many cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.control.placement import LOOK_AT_ALL, NodeLoad, NodeState, Wanted, choose_node
from atoll.control.sandboxes.quota import SandboxQuota
from atoll.model.errors import QuotaExceeded
from atoll.model.sandbox import Limits


def _choose(nodes: list[NodeLoad], seed: int = 0, **wanted: object) -> str:
    by_id = {node.node_id: node for node in nodes}
    order = Wanted(**{"holders": {node.node_id for node in nodes if node.has_template}, **wanted})
    return choose_node(list(by_id), by_id.get, order, Random(seed))


def test_the_least_loaded_node_with_the_template_is_chosen() -> None:
    nodes = [
        NodeLoad("a", True, 5, load=0.3),
        NodeLoad("b", True, 2, load=0.4),
        NodeLoad("b2", True, 2, load=0.2),
        NodeLoad("c", False, 0),
        NodeLoad("d", True, 0, NodeState.DRAINING),
        NodeLoad("e", True, 0, NodeState.SILENT),
        NodeLoad("f", True, 0, lacks="it is full"),
    ]
    assert _choose(nodes) == "b2"
    assert _choose(nodes, refused={"b2"}) == "b"
    assert _choose(nodes, only="a") == "a"
    assert _choose(nodes[3:]) == "e", "it may be back in a moment, and there is no other"
    with pytest.raises(QuotaExceeded, match="no node can take"):
        _choose(nodes[3:5])
    with pytest.raises(QuotaExceeded, match="no node can take"):
        _choose([NodeLoad("c", False, 0)])
    with pytest.raises(QuotaExceeded, match="it is full"):
        _choose([NodeLoad("c", False, 0), nodes[-1]])
    with pytest.raises(QuotaExceeded):
        _choose(nodes, only="nobody")


def test_real_load_counts_where_it_differs_and_promises_where_it_does_not() -> None:
    busy, calm = NodeLoad("busy", True, 0, load=3.0), NodeLoad("calm", True, 40, load=0.5, share=0.9)
    assert _choose([busy, calm]) == "calm"
    assert _choose([replace(busy, load=0.1, memory=0.97), calm]) == "calm", "memory that is used up is load too"
    assert _choose([replace(busy, load=0.7), calm]) == "busy", "loads that are alike decide nothing"
    large = NodeLoad("large", True, 9, share=0.1)
    assert _choose([large, NodeLoad("small", True, 3, share=0.3)]) == "large"


def test_the_image_is_where_a_sandbox_goes_unless_it_is_crowded_there_and_can_be_fetched() -> None:
    there, elsewhere = NodeLoad("there", True, 30, load=0.4), NodeLoad("elsewhere", False, 0)
    assert _choose([there, elsewhere], can_move=True) == "there"
    crowded = replace(there, load=2.0)
    assert _choose([crowded, elsewhere], can_move=True) == "elsewhere"
    assert _choose([crowded, elsewhere]) == "there"
    assert _choose([crowded, replace(elsewhere, load=1.9)], can_move=True) == "there", "not worth fetching it"
    assert _choose([replace(there, lacks="full"), elsewhere], can_move=True) == "elsewhere"
    assert _choose([replace(there, state=NodeState.SILENT), elsewhere], can_move=True) == "elsewhere"


def test_sandboxes_of_a_group_are_apart_as_long_as_there_are_nodes() -> None:
    nodes = {name: NodeLoad(name, True, 0) for name in "abc"}
    for number in range(7):
        chosen = _choose(list(nodes.values()))
        nodes[chosen] = replace(nodes[chosen], together=nodes[chosen].together + 1, sandboxes=number)
    assert sorted(node.together for node in nodes.values()) == [2, 2, 3]
    assert _choose([NodeLoad("a", True, 1, together=1), NodeLoad("b", False, 9)], can_move=True) == "b"
    assert _choose([NodeLoad("a", True, 1, together=1), NodeLoad("b", True, 9, load=5.0)]) == "b"


def test_gpus_are_counted() -> None:
    nodes = [NodeLoad("none", True, 0), NodeLoad("one", True, 50, load=0.9, gpus=1)]
    assert _choose(nodes, gpus=1) == "one"
    assert _choose(nodes) == "none"
    with pytest.raises(QuotaExceeded, match="2 free GPUs"):
        _choose(nodes, gpus=2)


@st.composite
def _fleets(draw: st.DrawFn) -> list[NodeLoad]:
    count = draw(st.integers(1, 3 * LOOK_AT_ALL))
    kinds = st.builds(
        NodeLoad,
        node_id=st.just(""),
        has_template=st.booleans(),
        sandboxes=st.integers(0, 100),
        state=st.sampled_from(NodeState),
        load=st.floats(0, 10),
        memory=st.floats(0, 1),
        share=st.floats(0, 1),
        together=st.integers(0, 2),
        gpus=st.integers(0, 2),
        lacks=st.sampled_from(["", "full"]),
    )
    made = draw(st.lists(kinds, min_size=1, max_size=5))  # few kinds, many nodes: also those that hardly anybody can be
    return [replace(draw(st.sampled_from(made)) if n % 7 == 0 else made[0], node_id=f"n{n}") for n in range(count)]


@given(_fleets(), st.booleans(), st.integers(0, 2), st.integers())
def test_a_node_that_can_take_it_is_found_or_there_is_none(
    nodes: list[NodeLoad], can_move: bool, gpus: int, seed: int
) -> None:
    able = {
        node.node_id: node
        for node in nodes
        if (node.has_template or can_move) and not node.lacks and node.gpus >= gpus and node.state != "draining"
    }
    try:
        chosen = able[_choose(nodes, seed, can_move=can_move, gpus=gpus)]
    except QuotaExceeded:
        assert not able
    else:
        is_any_ready = any(node.state is NodeState.READY for node in able.values())
        assert chosen.state is (NodeState.READY if is_any_ready else NodeState.SILENT)


def test_a_burst_on_many_nodes_spreads_without_looking_at_all_of_them() -> None:
    counts = Counter[str]()
    looks = 0

    def look(node_id: str) -> NodeLoad:
        nonlocal looks
        looks += 1
        return NodeLoad(node_id, True, counts[node_id], share=counts[node_id] / 100)

    node_ids = [f"n{number}" for number in range(1000)]
    random = Random(7)
    for _ in range(5000):
        counts[choose_node(node_ids, look, Wanted(frozenset(node_ids)), random)] += 1
    assert looks <= 5000 * 8
    assert max(counts.values()) <= 8, "five each is even; one random choice would make it twelve or more"


def test_the_simulator_loses_and_refuses_nobody_and_repeats_itself() -> None:
    command = [sys.executable, str(Path(__file__).parents[2] / "benchmarks" / "simulate.py")]
    command += ["--nodes", "100", "--sandboxes", "1000", "--templates", "10"]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True, timeout=60) for _ in range(2)]
    first, second = ([json.loads(line) for line in run.stdout.splitlines()] for run in runs)
    assert [row["refused"] for row in first] == [0, 0, 0, 0]
    assert first[2]["live"] == first[1]["live"], "all of the lost nodes' sandboxes have another"
    for row in (*first, *second):
        del row["placement_us"]
    assert first == second


def test_a_node_is_full_by_its_own_measure_and_groups_are_a_teams() -> None:
    small, large, one = Limits(4, 400, 400, 40), Limits(8, 800, 800, 80), Limits(2, 300, 100, 10)
    quota = SandboxQuota(9, node=small, node_total=lambda node_id: large if node_id == "large" else None)
    for number, (team, node) in enumerate([("t", "large"), ("t", "large"), ("u", "small")]):
        quota.take(f"s{number}", team, node, one, group="g")
    assert quota.node_lacks("small", one)
    assert not quota.node_lacks("large", replace(one, memory_mib=200))
    assert (quota.share("large"), quota.share("small"), quota.share("other")) == (0.75, 0.75, 0)
    assert [quota.in_group("t", "g", node) for node in ("large", "small")] == [2, 0]
    quota.set_aside("s0")
    quota.release("s1")
    assert quota.in_group("t", "g", "large") == 1, "one that is paused comes back there"
    assert quota.in_group("t", "", "large") == 0
