"""`atoll serve --cluster ray://…`: two machines of a real Ray cluster, both on this one, each with an agent."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox
from sdk_support import eventually

from atoll.cluster.agent_process import AgentProcess
from support.server import ServerProcess
from support.tiers import SERVER_ENVIRON, one_tier

pytestmark = [
    one_tier("Ray knows machines and agents, and nothing of what is in their sandboxes"),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'atoll[ray]'"
    ),
    pytest.mark.timeout(300),
]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class RayCluster:
    """A head and one more machine; each raylet's environment says where its agent's data lies."""

    def __init__(self, root: Path, environ: dict[str, str], stack: ExitStack) -> None:
        self._root, self._environ, self._stack = root, environ, stack
        self.port, self.client_port = _free_port(), _free_port()
        self.machines: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """`head` first."""
        words = ["--head", f"--port={self.port}", f"--ray-client-server-port={self.client_port}"]
        words += ["--include-dashboard=false", f"--temp-dir={self._root / 'ray'}"]
        more = words if name == "head" else [f"--address=127.0.0.1:{self.port}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", *more]
        command += ["--node-ip-address=127.0.0.1", "--object-store-memory=80000000", "--disable-usage-stats"]
        environ = {**self._environ, "ATOLL_AGENT_DATA_DIR": str(self._root / name)}
        with (self._root / f"ray-{name}.log").open("wb") as log:
            self.machines[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, start_new_session=True
            )
        self._stack.callback(self.stop, name)

    def stop(self, name: str) -> None:
        """With all of its processes, at once."""
        machine = self.machines.pop(name, None)
        if machine is not None:
            with suppress(ProcessLookupError):
                os.killpg(machine.pid, signal.SIGKILL)
            machine.wait(20)


@pytest.fixture
def ray(tier: str, templates_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    root = Path("/tmp") / f"atoll-ray-{os.getpid()}"  # Ray's sockets must have short names
    root.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ATOLL_", "E2B_"))}
    environ = {**clean, **SERVER_ENVIRON[tier], "ATOLL_TEMPLATES_DIR": str(templates_dir), "ATOLL_GVISOR_READY": "0"}
    environ |= {"ATOLL_PREPARE_TEMPLATES": "", "RAY_kill_child_processes_on_worker_exit": "true"}
    with ExitStack() as stack:
        stack.callback(lambda: subprocess.run(["rm", "-rf", str(root)], check=True))
        for name in ("head", "other"):
            stack.callback(_end_agent, root / name)
        made = RayCluster(root, environ, stack)
        made.start("head")
        made.start("other")
        yield made


def _end_agent(data_dir: Path) -> None:
    if (data_dir / "agent.json").exists():
        AgentProcess(data_dir).stop()
        for path in (data_dir / "sandboxes").glob("*"):
            raise AssertionError(f"{path} was left")


def test_each_machine_of_ray_is_a_node_whose_agent_outlives_ray(
    tier: str, ray: RayCluster, make_server: Callable[..., ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(
        options=["--isolation", tier, "--end-sandboxes", "--cluster", f"ray://127.0.0.1:{ray.client_port}"],
        environ=SERVER_ENVIRON[tier],
    )
    for variable, value in server.environ.items():
        monkeypatch.setenv(variable, value)

    def ask(path: str, method: str = "GET", body: Any = None) -> Any:
        data = json.dumps(body).encode() if body else None
        headers = {"X-API-Key": server.api_key, "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(server.url + path, data, headers, method=method)) as answer:
            return json.loads(answer.read() or b"null")

    def ready() -> set[str]:
        return {one["id"] for one in ask("/nodes") if one["status"] == "ready"} - {"local"}

    eventually(lambda: len(ready()) == 2, what="both machines are nodes", within_s=120)
    ask("/nodes/local", "POST", {"status": "draining"})
    agents = {name: json.loads((ray._root / name / "agent.json").read_bytes()) for name in ("head", "other")}
    assert {one["node_id"] for one in agents.values()} == ready()
    sandboxes = [Sandbox.create(timeout=600) for _ in range(2)]
    try:
        for sandbox in sandboxes:
            assert sandbox.commands.run("echo through no Ray").stdout == "through no Ray\n"

        # The agent is killed: its actor starts it again at its place, and what ran there goes on.
        os.kill(agents["other"]["pid"], signal.SIGKILL)
        eventually(
            lambda: json.loads((ray._root / "other" / "agent.json").read_bytes())["pid"] != agents["other"]["pid"],
            what="the agent is started again",
            within_s=60,
        )
        again = json.loads((ray._root / "other" / "agent.json").read_bytes())
        assert (again["node_id"], again["port"]) == (agents["other"]["node_id"], agents["other"]["port"])
        eventually(lambda: all(_answers(one) for one in sandboxes), what="both answer", within_s=60)

        # Ray is gone altogether: nothing of it is needed for what there is, or for more.
        for name in ("other", "head"):
            ray.stop(name)
        assert all(_answers(one) for one in sandboxes)
        sandboxes.append(Sandbox.create(timeout=600))
        assert _answers(sandboxes[-1])
        for name, one in (("head", agents["head"]), ("other", again)):
            assert json.loads((ray._root / name / "agent.json").read_bytes())["pid"] == one["pid"], "it has not noticed"
    finally:
        for sandbox in sandboxes:
            sandbox.kill()


def _answers(sandbox: Sandbox) -> bool:
    try:
        return bool(sandbox.commands.run("echo here").stdout == "here\n")
    except Exception:
        return False
