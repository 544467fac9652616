"""Several machines: three agents on this one, each with its own data directory, and a control plane; the real SDK."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox
from sdk_support import eventually

from support.host import skip_without
from support.server import ServerProcess
from support.tiers import SERVER_ENVIRON, one_tier

pytestmark = one_tier(
    "which node runs a sandbox, and what becomes of it when one is lost, is control's: alike in each tier"
)

NAMES = ("a", "b", "c")


@dataclass
class Cluster:
    """The control plane has a node of its own, `local`, which drains: sandboxes go to the three agents."""

    root: Path
    tier: str
    templates_dir: Path
    stack: ExitStack
    control: ServerProcess = field(init=False)
    agents: dict[str, ServerProcess] = field(default_factory=dict)

    @property
    def environ(self) -> Mapping[str, str]:
        return {**SERVER_ENVIRON[self.tier], "ATOLL_GVISOR_READY": "0"}

    def atoll(self, *words: str) -> str:
        """One of the operator's commands."""
        command = [sys.executable, "-m", "atoll.cli.main", *words, "--data-dir", str(self.root / "control")]
        return subprocess.run(command, check=True, capture_output=True, timeout=60, text=True).stdout

    def nodes(self) -> dict[str, Any]:
        return {one["id"]: one for one in json.loads(self.atoll("nodes", "list", "--json"))}

    def start(self, name: str) -> None:
        """An agent: the first time at a free port, then at its place."""
        port = self.agents[name].port if name in self.agents else 0
        words = ["node", "serve", "--id", name, "--listen", f"127.0.0.1:{port}", "--isolation", self.tier]
        words += ["--certificate", str(self.root / f"{name}.pem"), "--end-sandboxes"]
        self.agents[name] = ServerProcess.start(
            self.root / name, templates_dir=self.templates_dir, words=words, environ=self.environ
        )
        self.stack.callback(self.agents[name].stop)

    def kill(self, name: str) -> None:
        """As when its machine has lost its power, but that what ran there is still there."""
        self.agents[name].stop(signal.SIGKILL)

    def node_of(self, sandbox: Sandbox) -> str:
        """The node that has its directory."""
        (found,) = [name for name in NAMES if (self.root / name / "sandboxes" / sandbox.sandbox_id).exists()]
        return found

    def is_ready(self, *names: str) -> bool:
        found = self.nodes()
        return all(found.get(name, {}).get("status") == "ready" for name in names)


@pytest.fixture(scope="module")
def cluster(tier: str, templates_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    skip_without("namespaces")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        made = Cluster(tmp_path_factory.mktemp("cluster"), tier, templates_dir, stack)
        made.control = ServerProcess.start(
            made.root / "control",
            templates_dir=templates_dir,
            options=["--isolation", tier, "--end-sandboxes"],
            environ=made.environ,
        )
        stack.callback(made.control.stop)
        for variable, value in made.control.environ.items():
            patch.setenv(variable, value)
        for name in NAMES:
            made.atoll("node", "certificate", "localhost", "--to", str(made.root / f"{name}.pem"))
            made.start(name)
            made.atoll("nodes", "add", f"{name}=localhost:{made.agents[name].port}")
        made.atoll("nodes", "drain", "local")
        eventually(lambda: made.is_ready(*NAMES), what="all nodes are ready", within_s=30)
        yield made


@pytest.fixture
def create(cluster: Cluster) -> Iterator[Callable[..., Sandbox]]:
    made: list[Sandbox] = []

    def _create(**more: Any) -> Sandbox:
        made.append(Sandbox.create(timeout=600, **more))
        return made[-1]

    yield _create
    for sandbox in made:
        sandbox.kill()


def test_nodes_that_were_added_take_sandboxes_and_one_that_drains_takes_no_more(
    cluster: Cluster, create: Callable[..., Sandbox]
) -> None:
    sandboxes = [create() for _ in range(3)]
    assert {cluster.node_of(one) for one in sandboxes} == set(NAMES)
    (on_b,) = [one for one in sandboxes if cluster.node_of(one) == "b"]
    cluster.atoll("nodes", "drain", "b")
    more = [create() for _ in range(2)]
    assert {cluster.node_of(one) for one in more} <= {"a", "c"}
    assert on_b.commands.run("echo goes on").stdout == "goes on\n"
    nodes = cluster.nodes()
    assert nodes["b"]["status"] == "draining"
    assert (nodes["a"]["metrics"]["allocatedCPU"], nodes["a"]["createFails"]) == (4, 0)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        cluster.atoll("nodes", "remove", "b")
    assert "has 1 sandboxes" in refused.value.stderr
    cluster.atoll("nodes", "undrain", "b")
    assert cluster.node_of(create()) == "b", "it has fewest"


def test_a_node_is_removed_and_added_again_while_the_server_runs(
    cluster: Cluster, create: Callable[..., Sandbox]
) -> None:
    cluster.atoll("nodes", "remove", "c")
    assert "c" not in cluster.nodes()
    assert {cluster.node_of(create()) for _ in range(2)} == {"a", "b"}
    cluster.atoll("nodes", "add", f"c=localhost:{cluster.agents['c'].port}")
    eventually(lambda: cluster.is_ready("c"), what="c is back")
    assert cluster.node_of(create()) == "c"
