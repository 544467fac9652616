"""Several machines: three agents on this one, each with its own data directory, and a control plane; the real SDK."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox
from e2b.exceptions import NotFoundException
from sdk_support import eventually

from atoll.images.store import TemplateStore
from atoll.images.transfer import part_key
from atoll.tls.peers import node_identity, nodes_authority
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
        objects = f"file://{self.root}/objects"
        return {**SERVER_ENVIRON[self.tier], "ATOLL_GVISOR_READY": "0", "ATOLL_OBJECTS": objects}

    def templates_of(self, name: str) -> Path:
        """Its own, but for `base`, which is the same on each; images that sandboxes make are its own."""
        own = self.root / f"templates-{name}"
        if not own.exists():
            own.mkdir()
            (own / "base").symlink_to(self.templates_dir / "base")
        return own

    def atoll(self, *words: str) -> str:
        """One of the operator's commands."""
        command = [sys.executable, "-m", "atoll.cli.main", *words, "--data-dir", str(self.root / "control")]
        return subprocess.run(command, check=True, capture_output=True, timeout=60, text=True).stdout

    def nodes(self) -> dict[str, Any]:
        return {one["id"]: one for one in self.ask("/nodes")}

    def ask(self, path: str, method: str = "GET", body: Any = None) -> Any:
        """A request of the operator's."""
        data = json.dumps(body).encode() if body is not None else None
        headers = {"X-API-Key": self.control.api_key, "Content-Type": "application/json"}
        request = urllib.request.Request(self.control.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
            return json.loads(text) if text else None

    def add(self, name: str) -> None:
        """As `atoll nodes add`."""
        self.ask(f"/nodes/{name}", "PUT", {"host": "localhost", "port": self.agents[name].port})

    def start(self, name: str) -> None:
        """An agent: the first time at a free port, then at its place."""
        port = self.agents[name].port if name in self.agents else 0
        words = ["node", "serve", "--id", name, "--listen", f"127.0.0.1:{port}", "--isolation", self.tier]
        words += ["--certificate", str(self.root / f"{name}.pem"), "--end-sandboxes"]
        self.agents[name] = ServerProcess.start(
            self.root / name, templates_dir=self.templates_of(name), words=words, environ=self.environ
        )
        self.stack.callback(self.agents[name].stop)

    def kill(self, name: str) -> None:
        """As when its machine has lost its power, but that what ran there is still there."""
        self.agents[name].stop(signal.SIGKILL)

    def node_of(self, sandbox: Sandbox) -> str:
        """The node that has its directory."""
        (found,) = [name for name in NAMES if (self.root / name / "sandboxes" / sandbox.sandbox_id).exists()]
        return found

    def only_on(self, name: str) -> None:
        """New sandboxes go there from now on."""
        for one in NAMES:
            self.ask(f"/nodes/{one}", "POST", {"status": "ready" if one == name else "draining"})

    def on_all(self) -> None:
        for one in NAMES:
            self.ask(f"/nodes/{one}", "POST", {"status": "ready"})

    def is_ready(self, *names: str) -> bool:
        found = self.nodes()
        return all(found.get(name, {}).get("status") == "ready" for name in names)


@pytest.fixture(scope="module")
def cluster(tier: str, templates_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    skip_without("namespaces")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        made = Cluster(tmp_path_factory.mktemp("cluster"), tier, templates_dir, stack)
        # Every node has the layers of `base`, so that nobody fetches them, nor need they be packed here.
        for layer in TemplateStore(templates_dir).find_template("base").layers:
            note = made.root / "objects" / part_key(str(layer.relative_to(templates_dir)))
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text("0" * 64)
        made.control = ServerProcess.start(
            made.root / "control",
            templates_dir=templates_dir,
            options=["--isolation", tier, "--end-sandboxes"],
            environ=made.environ,
        )
        stack.callback(made.control.stop)
        for variable, value in made.control.environ.items():
            patch.setenv(variable, value)
        authority = nodes_authority(made.root / "control")
        for name in NAMES:
            (made.root / f"{name}.pem").write_text(node_identity(authority, ["localhost"], days=1))
        with ThreadPoolExecutor() as pool:
            list(pool.map(made.start, NAMES))
        for name in NAMES:
            made.add(name)
        made.ask("/nodes/local", "POST", {"status": "draining"})
        eventually(lambda: made.is_ready(*NAMES), what="all nodes are ready", within_s=30)
        yield made


def _answers(sandbox: Sandbox) -> bool:
    try:
        return bool(sandbox.commands.run("echo here").stdout == "here\n")
    except Exception:
        return False


def _plain(log: Path) -> str:
    """Without the padding of names."""
    return re.sub(r" +", " ", log.read_text())


def _listed() -> set[str]:
    return {one.sandbox_id for one in Sandbox.list().next_items()}


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
    sandboxes = [create(metadata={"atoll.spread": "apart"}) for _ in range(3)]
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
    cluster.only_on("b")
    assert cluster.node_of(create()) == "b"
    cluster.on_all()


def test_a_node_is_removed_and_added_again_while_the_server_runs(
    cluster: Cluster, create: Callable[..., Sandbox]
) -> None:
    cluster.ask("/nodes/c", "DELETE")
    assert "c" not in cluster.nodes()
    assert cluster.node_of(create()) in ("a", "b")
    cluster.atoll("nodes", "add", f"c=localhost:{cluster.agents['c'].port}")
    eventually(lambda: cluster.is_ready("c"), what="c is back")
    assert "c" in {one["id"] for one in json.loads(cluster.atoll("nodes", "list", "--json"))}
    cluster.only_on("c")
    assert cluster.node_of(create()) == "c"
    cluster.on_all()


def test_what_runs_on_a_lost_node_is_lost_and_what_asks_for_it_or_is_kept_goes_on_elsewhere(
    cluster: Cluster, create: Callable[..., Sandbox]
) -> None:
    cluster.only_on("c")
    plain, again = create(), create(metadata={"restart": "always"}, envs={"NAME": "again"})
    paused, kept = create(), create()
    for one in (plain, again, paused, kept):
        one.files.write("/home/user/made-on", "c")
    assert {cluster.node_of(one) for one in (plain, again, paused, kept)} == {"c"}
    paused.pause()
    snapshot = kept.create_snapshot()
    kept.files.write("/home/user/made-on", "c, after the snapshot")
    eventually(lambda: "sandbox.kept " in _plain(cluster.control.log), what="the paused one is kept")
    cluster.on_all()
    cluster.kill("c")

    eventually(lambda: plain.sandbox_id not in _listed(), what="what ran there is not shown as running", within_s=20)
    with pytest.raises(NotFoundException):
        Sandbox.connect(plain.sandbox_id)
    with pytest.raises(urllib.error.HTTPError) as refused:
        cluster.ask(f"/sandboxes/{plain.sandbox_id}")
    assert (refused.value.code, "it is lost" in refused.value.read().decode()) == (404, True)
    eventually(lambda: _answers(again), what="it runs again under its id", within_s=30)
    assert again.commands.run("echo $NAME; ls made-on 2> /dev/null || true").stdout == "again\n", (
        "a new one of its template"
    )
    for one in (paused, kept):
        assert Sandbox.connect(one.sandbox_id, timeout=600).sandbox_id == one.sandbox_id
        assert one.files.read("/home/user/made-on") == "c", "as it was when it was acknowledged"
    assert create(template=snapshot.snapshot_id).files.read("/home/user/made-on") == "c", (
        "its image came from the store"
    )
    (place,) = [name for name in ("a", "b") if (cluster.root / name / "sandboxes" / again.sandbox_id).exists()]

    # The node returns with both: one goes on, and of the other only the later one lives.
    assert (cluster.root / "c" / "sandboxes" / again.sandbox_id).exists()
    cluster.start("c")
    eventually(lambda: _answers(plain), what="what was lost is there again", within_s=30)
    assert plain.files.read("/home/user/made-on") == "c"
    for one in (again, paused, kept):
        earlier = cluster.root / "c" / "sandboxes" / one.sandbox_id
        eventually(lambda earlier=earlier: not earlier.exists(), what="the earlier one has ended", within_s=20)
        assert cluster.node_of(one) in ("a", "b")
        assert _answers(one)
    assert cluster.node_of(again) == place
    events = cluster.ask("/events/sandboxes?types=sandbox.lifecycle.lost,sandbox.lifecycle.returned")
    assert {(one["sandboxId"], one["type"].rpartition(".")[2]) for one in events} == {
        (plain.sandbox_id, "lost"),
        (again.sandbox_id, "lost"),
        (kept.sandbox_id, "lost"),
        (plain.sandbox_id, "returned"),
    }


def test_what_a_node_runs_stands_still_while_control_does_not_answer_it(
    cluster: Cluster, create: Callable[..., Sandbox]
) -> None:
    cluster.only_on("a")
    sandbox, front = create(), cluster.control.pid_of("front")
    cluster.on_all()

    def lines(what: str) -> int:
        log = cluster.agents["a"].log.read_text()
        return sum(what in line and sandbox.sandbox_id in line for line in log.splitlines())

    before = lines("lease.renewed")
    os.kill(front, signal.SIGSTOP)
    try:
        eventually(lambda: lines("lease.over") > 0, what="the lease is over", within_s=30)
    finally:
        os.kill(front, signal.SIGCONT)
    eventually(lambda: lines("lease.renewed") > before, what="the lease is renewed", within_s=30)
    assert _answers(sandbox)
