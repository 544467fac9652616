"""How a sandbox fares while its neighbour misbehaves: latency of a small command, quiet and under each kind of abuse;
and how soon the guest of the misbehaving one itself answers.

    python benchmarks/neighbour.py [--samples 60] [--out FILE.json]

Talks to the server that the SDK's variables name (`eval "$(atoll env)"`). The floor is the same sandbox with a quiet
neighbour, measured before and after, so that a machine that is busy with other things shows. Raw rows are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from e2b import Sandbox

ABUSES = {
    "quiet": "",
    "processor": "for i in $(seq 16); do (while :; do :; done) & done; wait",
    "memory": "while :; do python3 -c 'x = [bytearray(10 << 20) for _ in range(500)]'; done",
    "disk": "while :; do head -c 40m /dev/urandom > /var/tmp/big; done",
    "forks": "while :; do for i in $(seq 50); do /bin/true & done; wait; done",
    "quiet again": "",
}
NEIGHBOUR = {"atoll.cpu": "1", "atoll.memory": "256", "atoll.disk": "256", "atoll.pids": "128"}
_SETTLE_S = 1.0


def percentile(values: list[float], share: float) -> float:
    """By nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(victim: Sandbox, samples: int) -> list[float]:
    """Milliseconds of `commands.run("true")`, one after another."""
    rows = []
    for _ in range(samples):
        began = time.perf_counter()
        victim.commands.run("true", timeout=60)
        rows.append(round((time.perf_counter() - began) * 1000, 2))
    return rows


def measure_guest(abused: Sandbox, samples: int) -> list[float]:
    """Milliseconds until the guest of the misbehaving sandbox has answered a small call that starts nothing."""
    rows = []
    for _ in range(samples):
        began = time.perf_counter()
        abused.files.exists("/")
        rows.append(round((time.perf_counter() - began) * 1000, 2))
    return rows


def main() -> None:
    """Measures every abuse in turn and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rows: dict[str, list[float]] = {}
    own: dict[str, list[float]] = {}
    load: dict[str, float] = {}
    with Sandbox.create("base", timeout=900) as victim:
        measure(victim, 5)
        for name, script in ABUSES.items():
            with Sandbox.create("base", timeout=900, metadata=NEIGHBOUR) as neighbour:
                if script:
                    neighbour.commands.run(script, background=True, timeout=0)
                    time.sleep(_SETTLE_S)
                rows[name] = measure(victim, chosen.samples)
                own[name] = measure_guest(neighbour, chosen.samples)
                load[name] = os.getloadavg()[0]
    print("| neighbour | p50 ms | p99 ms | its own guest p50 ms | p99 ms | load of the machine |\n" + "|---" * 6 + "|")
    for name, values in rows.items():
        told = [f"{statistics.median(each):.1f} | {percentile(each, 0.99):.1f}" for each in (values, own[name])]
        print(f"| {name} | {told[0]} | {told[1]} | {load[name]:.1f} |")
    if chosen.out is not None:
        result: dict[str, Any] = {
            "processors": os.cpu_count(),
            "kernel": os.uname().release,
            "load": load,
            "rows": rows,
            "own_guest_rows": own,
        }
        chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
