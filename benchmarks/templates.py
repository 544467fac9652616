"""A template build beside the same commands by hand in a sandbox: cold, and again without a change.

    python benchmarks/templates.py [--rounds 3] [--tier namespaces] [--steps 6]

The commands are those of a template of the code interpreter's size: its tree is copied a package at a time, so that no
index on the network decides the figures (2.3 GB of small and large files in six steps). "by hand" runs them one after
the other in one sandbox of `code-interpreter-v1`, "cold" is `Template.build` of them with the cache skipped, "cached"
the same build again; in turns. `--steps`: only the first ones, for a busy machine. Raw rows go to
`results/templates.csv`, a table to standard output.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from e2b import Sandbox, Template

from atoll.config import Settings
from support.server import ServerProcess
from support.tiers import SERVER_ENVIRON

FROM = "code-interpreter-v1"
COMMANDS = (
    "mkdir -p /opt/own && python3 -m venv --without-pip /opt/own",
    "cp -a /usr/local/lib/python3*/dist-packages/[a-f]* /opt/own/",
    "cp -a /usr/local/lib/python3*/dist-packages/[g-o]* /opt/own/",
    "cp -a /usr/local/lib/python3*/dist-packages/[p-r]* /opt/own/",
    "cp -a /usr/local/lib/python3*/dist-packages/[s-z]* /opt/own/",
    "python3 -m compileall -q -f -j 0 /opt/own/pandas /opt/own/scipy /opt/own/sympy /opt/own/sklearn",
)


def by_hand(commands: Sequence[str]) -> float:
    """Seconds for the commands in one sandbox, its create included."""
    began = time.perf_counter()
    sandbox = Sandbox.create(FROM, timeout=900)
    try:
        for command in commands:
            sandbox.commands.run(command, user="root", timeout=600)
        return time.perf_counter() - began
    finally:
        sandbox.kill()


def build(name: str, commands: Sequence[str], *, skip_cache: bool) -> float:
    """Seconds for a build of them."""
    template = Template().from_template(FROM)
    for command in commands:
        template = template.run_cmd(command, user="root")
    began = time.perf_counter()
    Template.build(template, name, skip_cache=skip_cache)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=len(COMMANDS))
    parser.add_argument("--tier", default="namespaces")
    asked = parser.parse_args()
    rows: list[tuple[str, float, float]] = []
    with tempfile.TemporaryDirectory(prefix="atoll-bench-") as place:
        templates = Settings.from_environ(os.environ).templates_dir
        options = ["--end-sandboxes", "--isolation", asked.tier]
        server = ServerProcess.start(
            Path(place) / "data", templates_dir=templates, options=options, environ=SERVER_ENVIRON[asked.tier]
        )
        os.environ.update(server.environ)
        try:
            for number in range(asked.rounds):
                for kind in ("by hand", "cold", "cached"):
                    load = os.getloadavg()[0]
                    name = f"bench-{number}"
                    commands = COMMANDS[: asked.steps]
                    if kind == "by hand":
                        seconds = by_hand(commands)
                    else:
                        seconds = build(name, commands, skip_cache=kind == "cold")
                    rows.append((kind, seconds, load))
                    print(f"{kind}: {seconds:.2f} s (load {load:.1f})", file=sys.stderr)
        finally:
            server.stop()
    target = Path(__file__).parent / "results" / "templates.csv"
    with target.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("kind", "seconds", "load"), *((k, f"{s:.3f}", f"{one:.2f}") for k, s, one in rows)]
        )
    middle = {kind: statistics.median(s for k, s, _ in rows if k == kind) for kind, *_ in rows}
    print("| | p50 | beside the commands by hand |\n|---|---|---|")
    for kind, seconds in middle.items():
        print(f"| {kind} | {seconds:.2f} s | {seconds / middle['by hand']:.2f}× |")


if __name__ == "__main__":
    main()
