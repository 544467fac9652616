"""What the gVisor tier promises beyond the contract: sandboxes kept ready, and nothing left of them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from atoll.isolation.base import BackendConfig
from atoll.isolation.gvisor.tier import GvisorBackend
from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.isolation.linux.run_dir import RunDir
from atoll.model.sandbox import Limits, SandboxPaths, SandboxSpec
from atoll.testing import inside
from atoll.testing.backend_contract import Asked, eventually
from support.host import TOOLS, requires

pytestmark = requires("gvisor")


def _asked(root: Path, name: str, layers: tuple[Path, ...]) -> Asked:
    (root / name).mkdir(mode=0o700)
    limits = Limits(cpu_count=1, memory_mib=256, pids=100)
    return Asked(SandboxSpec(name, "base", limits), SandboxPaths(layers, root / name))


async def test_a_waiting_sandbox_is_taken_and_none_is_left_when_the_server_stops(
    tmp_path: Path, templates_dir: Path
) -> None:
    from atoll.images.store import TemplateStore

    layers = TemplateStore(templates_dir).find_template("base").layers
    backend = GvisorBackend(BackendConfig(tmp_path / "run", tools_dir=TOOLS, environ=os.environ), ready=1)
    await backend.start()
    pool = backend._pool
    assert pool is not None
    first = await backend.create(*_asked(tmp_path, "first", layers))
    assert "launch" in first.stages, "nothing could wait yet"
    assert await eventually(lambda: pool.ready == 1, 60)
    second = await backend.create(*_asked(tmp_path, "second", layers))
    assert "launch" not in second.stages
    assert (await inside.run(second, "hostname; ls /tmp")).out.split() == ["second"]
    os.kill(int(second.record()["pid"]), signal.SIGKILL)
    assert not (await second.wait()).killed
    await first.kill()
    await backend.aclose()
    assert Cgroups.probe(RunDir(tmp_path / "run").cgroup_base).names() == set()
    assert not list((tmp_path / "run" / "waiting").glob("*"))
