"""Create until the template's server answers: cold, cached, and warm, with each tier, through the SDK and the edge.

    python benchmarks/warm.py [rounds]      prints a table and writes one JSON row per measurement to standard error

    build    the template is not there: the definition is built by `Template.build`, once
    cold     it is: a create makes a sandbox, and its start command and ready command run
    warm     a sandbox waits (`--warm`); the place is filled again between two creates
    emptied  as warm, but with no sandbox waiting: gVisor goes on from the memory of the first

The server is Python's `http.server`. Needs root, the `base` template, and for gVisor a runsc (`atoll doctor --fix`).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from e2b import Sandbox, Template, wait_for_port

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from atoll.config import Settings
from atoll.images.store import TemplateStore
from support.server import ServerProcess
from support.tiers import SERVER_ENVIRON, TIERS

READY_WITHIN_S = 120.0


def main() -> None:
    """Every tier in turn."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    templates = Settings.from_environ(os.environ).templates_dir
    TemplateStore(templates).ensure_template("base")
    print(f"{'ms, p50 and the worst':34} load {os.getloadavg()[0]:.1f}")
    for tier in TIERS:
        with tempfile.TemporaryDirectory() as place:
            options = ["--end-sandboxes", "--isolation", tier, "--warm", "answers=1"]
            server = ServerProcess.start(
                Path(place) / "data", templates_dir=templates, options=options, environ=SERVER_ENVIRON[tier]
            )
            try:
                _tier(tier, rounds, server)
            finally:
                server.stop()
    print(f"{'':34} load {os.getloadavg()[0]:.1f}")


def _tier(tier: str, rounds: int, server: ServerProcess) -> None:
    connection = {"api_key": server.api_key, "api_url": server.url, "sandbox_url": server.url}

    def build(name: str) -> None:
        program = Template().from_base_image().set_start_cmd("python3 -m http.server 8000", wait_for_port(8000))
        Template.build(program, name, **connection)

    def create(name: str) -> Callable[[], Any]:
        def step() -> Sandbox:
            sandbox = Sandbox.create(name, timeout=300, **connection)
            routed = {"e2b-sandbox-id": sandbox.sandbox_id, "e2b-sandbox-port": "8000"}
            httpx.get(server.url, headers=routed).raise_for_status()
            return sandbox

        return step

    _measure(f"{tier}: build", 1, lambda: build("cold"), lambda _: None)
    _measure(f"{tier}: cold", rounds, create("cold"), lambda one: one.kill())
    build("answers")

    def refill(sandbox: Sandbox) -> None:
        sandbox.kill()
        wait_for(waiting)

    waiting = 1

    def wait_for(count: int) -> None:
        nonlocal waiting
        deadline = time.monotonic() + READY_WITHIN_S
        while server.log.read_text().count("warm.ready") < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no sandbox waits after {READY_WITHIN_S:g} s:\n{server.log_tail()}")
            time.sleep(0.2)
        waiting = count + 1

    wait_for(1)
    _measure(f"{tier}: warm", rounds, create("answers"), refill)
    made: list[Sandbox] = [create("answers")()]
    _measure(f"{tier}: emptied", 1, create("answers"), made.append)
    for one in made:
        one.kill()


def _measure(name: str, rounds: int, step: Callable[[], Any], between: Callable[[Any], None]) -> None:
    """Prints p50 and the worst of `step` in milliseconds."""
    took = []
    for number in range(rounds):
        began = time.perf_counter()
        made = step()
        took.append((time.perf_counter() - began) * 1000)
        print(json.dumps({"name": name, "round": number, "ms": round(took[-1], 2)}), file=sys.stderr)
        between(made)
    print(f"{name:34} {statistics.median(took):9.1f} {max(took):9.1f}", flush=True)


if __name__ == "__main__":
    main()
