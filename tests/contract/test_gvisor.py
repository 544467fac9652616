"""What the gVisor tier promises beyond the contract.

Sandboxes kept ready, and nothing left of them; what cannot be saved goes on, and what cannot be read is refused.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.isolation.base import BackendConfig, SandboxHandle
from atoll.isolation.gvisor import saved
from atoll.isolation.gvisor.tier import GvisorBackend
from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.isolation.linux.run_dir import RunDir
from atoll.model.errors import MemoryLost, PlatformError
from atoll.model.sandbox import Limits, PauseMode, SandboxPaths, SandboxSpec
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
    # Its directory was moved since runsc made its notes there.
    captured = await second.snapshot(PauseMode.MEMORY, tmp_path / "run")
    assert captured.memory is not None
    os.kill(int(second.record()["pid"]), signal.SIGKILL)
    assert not (await second.wait()).killed
    await first.kill()
    await backend.aclose()
    assert Cgroups.probe(RunDir(tmp_path / "run").cgroup_base).names() == set()
    assert not list((tmp_path / "run" / "waiting").glob("*"))


_COUNT = "i=0; while :; do i=$((i+1)); echo $i > ~/count.new; mv ~/count.new ~/count; sleep 0.02; done"
_DELETED = (
    "import os, time; f = open('/root/gone', 'w'); os.unlink('/root/gone'); open('/root/ready', 'w'); time.sleep(1000)"
)


async def _output(handle: SandboxHandle, script: str) -> str:
    done = await inside.run(handle, script)
    assert done.code == 0, done
    return done.out


async def _counts(handle: SandboxHandle) -> bool:
    first = await _output(handle, "until test -s ~/count; do sleep 0.01; done; cat ~/count")
    return int(await _output(handle, "sleep 0.3; cat ~/count")) > int(first)


@asynccontextmanager
async def _started(root: Path) -> AsyncIterator[GvisorBackend]:
    backend = GvisorBackend(BackendConfig(root / "run", tools_dir=TOOLS, environ=os.environ), ready=0)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.aclose()


@pytest.fixture
def little(tmp_path: Path) -> Iterator[Path]:
    """A directory with room for a megabyte."""
    place = tmp_path / "little"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


async def test_what_cannot_be_saved_goes_on_and_an_image_that_cannot_be_read_is_refused(
    tmp_path: Path, templates_dir: Path, little: Path
) -> None:
    from atoll.images.store import TemplateStore

    asked = _asked(tmp_path, "one", TemplateStore(templates_dir).find_template("base").layers)
    async with _started(tmp_path) as backend:
        handle = await backend.create(*asked)
        await _output(handle, f"nohup bash -c '{_COUNT}' >/dev/null 2>&1 &")
        await _output(
            handle,
            f'nohup python3 -c "{_DELETED}" >/dev/null 2>&1 & echo $! > ~/pid; until test -e ~/ready; do :; done',
        )
        with pytest.raises(PlatformError, match="/root/gone"):
            await handle.pause(PauseMode.MEMORY)
        assert await _counts(handle)
        assert not (asked.state_dir / saved.MEMORY).exists()
        await _output(handle, "kill -KILL $(cat ~/pid)")
        with pytest.raises(PlatformError, match="no space left"):
            await handle.snapshot(PauseMode.MEMORY, little)
        assert await _counts(handle)
        assert not (little / saved.MEMORY).exists()

        # A server that ends while it has the sandbox stand still.
        standstill = handle._standstill()  # type: ignore[attr-defined]
        await standstill.shut()
        await standstill.stop()
        record = dict(handle.record())
    async with _started(tmp_path) as backend:
        handle = await backend.adopt(asked.spec, asked.state_dir, record)
        assert await _counts(handle)

        record = dict(await handle.pause(PauseMode.MEMORY))
        assert backend._context is not None
        ours, backend._context = (
            backend._context,
            replace(backend._context, runsc=replace(backend._context.runsc, version="20991231")),
        )
        with pytest.raises(MemoryLost, match="20991231"):
            await backend.resume(asked.spec, asked.paths, record, PauseMode.MEMORY)
        backend._context = ours
        assert backend.kept(asked.state_dir, record) is PauseMode.MEMORY
        pages = asked.state_dir / saved.MEMORY / "pages.img"
        os.truncate(pages, pages.stat().st_size - 1)
        with pytest.raises(MemoryLost, match="damaged"):
            await backend.resume(asked.spec, asked.paths, record, PauseMode.MEMORY)
        handle = await backend.resume(asked.spec, asked.paths, record, PauseMode.FILESYSTEM)
        assert int(await _output(handle, "cat ~/count")) > 0
        assert not (asked.state_dir / saved.MEMORY).exists()
        await handle.kill()
