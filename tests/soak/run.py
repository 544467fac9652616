"""Many sandboxes one after another: nothing is left, and the server's processes do not grow.

.venv/bin/python tests/soak/run.py --tier namespaces --cycles 10000 --pauses 2000      (`make soak`)
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "integration")]

from e2b import Sandbox

from atoll.testing import footprint
from chaos.world import SIZE, World, grown
from support.tiers import TIERS

_RESTS_WITHIN_S = 60.0


def sizes(world: World) -> dict[str, dict[str, float]]:
    """Private memory (MiB) and open files of each process of the server."""
    found = {}
    for role in ("launcher", "front", "node", "egress", "zygote"):
        for pid in world.pids_of(role):
            files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            found[role] = {"mib": round(footprint.private_bytes(pid) / (1 << 20), 1), "files": files}
    return found


def soak(world: World, cycles: int, pauses: int) -> dict[str, Any]:
    """`left`: what there is more of than before; empty where nothing was left."""
    world.at_rest()
    for _ in range(min(50, cycles)):  # what is loaded and kept at the first use is no growth
        _one(world)
    before, small = world.at_rest(), sizes(world)
    began = time.monotonic()
    for _ in range(cycles):
        _one(world)
    with Sandbox.create(timeout=86400, metadata=SIZE, **world.options) as sandbox:
        for number in range(pauses):
            sandbox.files.write("number", str(number))
            assert Sandbox.pause(sandbox.sandbox_id, mode="filesystem" if number % 2 else "full", **world.options)
            sandbox.connect(timeout=86400)
            assert sandbox.files.read("number") == str(number)
    took = round(time.monotonic() - began, 1)
    world.at_rest()
    deadline = time.monotonic() + _RESTS_WITHIN_S
    while (more := grown(before, world.footprint())) and time.monotonic() < deadline:
        time.sleep(0.5)
    figures = {"tier": world.tier, "cycles": cycles, "pauses": pauses, "took_s": took, "load": os.getloadavg()[0]}
    return {**figures, "before": small, "after": sizes(world), "left": more}


def _one(world: World) -> None:
    with Sandbox.create(timeout=300, metadata=SIZE, **world.options) as sandbox:
        assert sandbox.commands.run("echo hi").stdout == "hi\n"


def main() -> int:
    """0: nothing is left."""
    parser = argparse.ArgumentParser(description="Makes, uses, pauses and ends very many sandboxes.")
    parser.add_argument("--tier", choices=TIERS, action="append")
    parser.add_argument("--cycles", type=int, default=10_000)
    parser.add_argument("--pauses", type=int, default=2_000)
    given = parser.parse_args()
    from atoll.config import Settings
    from atoll.images.store import TemplateStore

    templates_dir = Settings.from_environ(os.environ).templates_dir
    TemplateStore(templates_dir).ensure_template("base")
    failed = False
    for tier in given.tier or TIERS:
        with (
            tempfile.TemporaryDirectory(prefix="atoll-soak-", ignore_cleanup_errors=True) as scratch,
            World(tier, Path(scratch), templates_dir) as world,
        ):
            report = soak(world, given.cycles, given.pauses)
        print(json.dumps(report, indent=1), flush=True)
        failed |= bool(report["left"])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
