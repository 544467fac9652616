"""How a neighbour and the control plane fare while each family of the attack suite runs: p50 and p99 of a small command
in a sandbox of somebody else, and of `GET /health`.

    python benchmarks/neighbours.py [--family NAME ...] [--tier NAME] [--out FILE.json]

As root, against a platform of its own (`atoll doctor --attack` makes the same). The floor is the same while nothing is
attacked, before and after, so that a machine that is busy with other things shows. Egress has a server in networks of
its own and is left to `atoll doctor --attack --family egress`. Raw rows are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e2b import Sandbox

from atoll.runtime.sandbox.embedded import EmbeddedPlatform
from atoll_attacks import Family, Range, attempts

QUIET, QUIET_AGAIN = "quiet", "quiet again"
_QUIET_S = 8.0
_PAUSE_S = 0.05


class Sampler:
    """Asks again and again from a thread of its own while the block runs; milliseconds in `rows`."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.rows: list[float] = []
        self.failed = 0
        self._act = act
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_PAUSE_S):
            began = time.perf_counter()
            try:
                self._act()
            except Exception:
                self.failed += 1
            else:
                self.rows.append(round((time.perf_counter() - began) * 1000, 2))


def percentile(values: list[float], share: float) -> float:
    """By nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def family(name: str, data_dir: Path | None, tier: str) -> str:
    """Runs it; says how many attempts were blocked."""
    chosen = [one for one in attempts() if one.family == name and tier not in dict(one.not_in)]
    with Range(data_dir=data_dir) as place:
        outcomes = place.attack_all(chosen)
    return f"{sum(one.breach is None for one, _ in outcomes.values())} of {len(chosen)}"


def main() -> None:
    """Measures every family in turn and prints a table in Markdown."""
    every = [name for name in Family if name is not Family.EGRESS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", nargs="*", choices=every, default=every)
    parser.add_argument("--tier", choices=("namespaces", "gvisor"), default="namespaces")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    result: dict[str, Any] = {"processors": os.cpu_count(), "kernel": os.uname().release, "tier": chosen.tier}
    print(
        "| while | blocked | command p50 ms | p99 ms | /health p50 ms | p99 ms | no answer | load |\n"
        + "|---" * 8
        + "|"
    )
    with EmbeddedPlatform({**os.environ, "ATOLL_ISOLATION": chosen.tier}) as platform:
        os.environ.update(platform.environ)

        def health() -> None:
            urllib.request.urlopen(f"{platform.url}/health", timeout=60).read()

        with Sandbox.create("base", timeout=3600) as victim:

            def command() -> None:
                victim.commands.run("true", timeout=60)

            for name in (QUIET, *chosen.family, QUIET_AGAIN):
                with Sampler(command) as commands, Sampler(health) as checks:
                    blocked = ""
                    if name in (QUIET, QUIET_AGAIN):
                        time.sleep(_QUIET_S)
                    else:
                        blocked = family(name, platform.home, chosen.tier)
                load, failed = os.getloadavg()[0], commands.failed + checks.failed
                told = [
                    f"{statistics.median(each):.1f} | {percentile(each, 0.99):.1f}" if each else "- | -"
                    for each in (commands.rows, checks.rows)
                ]
                print(f"| {name} | {blocked} | {told[0]} | {told[1]} | {failed} | {load:.1f} |", flush=True)
                result[name] = {"command": commands.rows, "health": checks.rows, "failed": failed, "load": load}
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
