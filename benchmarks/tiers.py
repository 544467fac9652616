"""Create and exec latency of each tier beside raw `bwrap` and raw `runsc run`, in the same run.

    python benchmarks/tiers.py [rounds]      prints a table and writes one JSON row per measurement to standard error

Needs root, the `base` template, and for gVisor a runsc (`atoll doctor --fix`).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from atoll.config import Settings
from atoll.images.store import TemplateStore
from atoll.isolation.base import BackendConfig, IsolationBackend
from atoll.isolation.registry import load
from atoll.model.errors import AtollError
from atoll.model.sandbox import SandboxPaths, SandboxSpec
from atoll.testing import inside

SETTLE_S = 2.5
"""Between creates, so that a pool may refill: the case of a server that is not flooded."""


async def measure(name: str, rounds: int, step: Callable[[], Awaitable[object]], settle_s: float = 0.0) -> None:
    """Prints p50 and p95 of `step` in milliseconds."""
    took = []
    for number in range(rounds):
        began = time.perf_counter()
        await step()
        took.append((time.perf_counter() - began) * 1000)
        print(json.dumps({"name": name, "round": number, "ms": round(took[-1], 2)}), file=sys.stderr)
        await asyncio.sleep(settle_s)
    p95 = sorted(took)[max(0, round(0.95 * len(took)) - 1)]
    print(f"{name:34} {statistics.median(took):9.1f} {p95:9.1f}", flush=True)


def raw(*command: str) -> Callable[[], Awaitable[object]]:
    """A step that runs a program to its end."""

    async def step() -> None:
        await asyncio.to_thread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)

    return step


async def tier(
    name: str, label: str, rounds: int, config: BackendConfig, layers: tuple[Path, ...], place: Path
) -> None:
    """Create with the first health answer, and a command that does nothing."""
    backend: IsolationBackend = load(name)(config)
    await backend.start()
    count = 0

    async def create() -> None:
        nonlocal count
        count += 1
        sandbox_id = f"bench{label.replace(' ', '')}{count}"
        (place / sandbox_id).mkdir(mode=0o700)
        handle = await backend.create(SandboxSpec(sandbox_id, "base"), SandboxPaths(layers, place / sandbox_id))
        await inside.health(handle)
        handles.append(handle)

    handles: list[object] = []
    try:
        await create()
        await asyncio.sleep(SETTLE_S)
        await measure(f"{label}: create, first answer", rounds, create, SETTLE_S)
        first = handles[0]
        await measure(f"{label}: exec true", rounds * 3, lambda: inside.run(first, "true"))  # type: ignore[arg-type]
    finally:
        for handle in handles:
            await handle.kill()  # type: ignore[attr-defined]
        await backend.aclose()


async def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    settings = Settings.from_environ(os.environ)
    layers = TemplateStore(settings.templates_dir).find_template("base").layers
    print(f"load {os.getloadavg()}, {os.cpu_count()} processors")
    print(f"{'ms':34} {'p50':>9} {'p95':>9}")
    with tempfile.TemporaryDirectory(prefix="atoll-tiers-", dir=settings.data_dir) as scratch:
        place = Path(scratch)
        if bwrap := shutil.which("bwrap"):
            root = ["--ro-bind", str(layers[-1]), "/", "--proc", "/proc", "--dev", "/dev"]
            await measure("raw bwrap --unshare-all true", rounds, raw(bwrap, "--unshare-all", *root, "/bin/true"))
        for name, label, environ in (
            ("namespaces", "namespaces", {}),
            ("gvisor", "gvisor cold", {"ATOLL_GVISOR_READY": "0"}),
            ("gvisor", "gvisor ready", {"ATOLL_GVISOR_READY": "2"}),
        ):
            tools = settings.tools_dir
            config = BackendConfig(place / label, tools_dir=tools, environ={**os.environ, **environ})
            try:
                await tier(name, label, rounds, config, layers, place)
            except AtollError as error:
                print(f"{label:34} {error}")
        if settings.tools_dir and (runsc := settings.tools_dir / "runsc/usr/bin/runsc").exists():
            command = [str(runsc), "--network=none", "--ignore-cgroups", "--overlay2=none", "--host-uds=none"]
            await measure("raw runsc do true", rounds, raw(*command, "do", "/bin/true"))


if __name__ == "__main__":
    asyncio.run(main())
