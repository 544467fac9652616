"""Processor time of a create, a command and a kill, by process: `python benchmarks/processor_time.py [--rounds 200]`.

Milliseconds on the clock depend on what else the machine does; processor time hardly does. Clients speak raw HTTP, so
that nothing but the server is measured. `sandboxes` is everything below the zygote: guests and what they run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from server import ENVD, BenchServer, Wire, serving

from atoll.testing import footprint


def spent(server: BenchServer) -> Counter[str]:
    """Nanoseconds that each kind of process has used, with the threads that have ended."""
    total: Counter[str] = Counter()
    for pid in footprint.processes_of(server.mark):
        try:
            threads = list(Path(f"/proc/{pid}/task").iterdir())
            name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
            used = sum(int((one / "schedstat").read_text().split()[0]) for one in threads)
        except OSError:
            continue
        total[name.rsplit("/", 1)[-1][:24]] += used
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--isolation", default="namespaces")
    arguments = parser.parse_args()
    with serving(arguments.isolation) as server:
        control = Wire.to_server(server)
        key = {"X-API-Key": server.api_key, "Content-Type": "application/json"}

        def create() -> dict[str, str]:
            made: dict[str, str] = json.loads(
                control.call("POST", "/v2/sandboxes", key, b'{"templateID":"base","timeout":600}')
            )
            return made

        def command(made: dict[str, str]) -> None:
            body = json.dumps({"process": {"cmd": "/bin/true", "args": []}, "stdin": False}).encode()
            fields = {
                "e2b-sandbox-id": made["sandboxID"],
                "e2b-sandbox-port": str(ENVD),
                "x-access-token": made["envdAccessToken"],
                "content-type": "application/connect+json",
                "connect-protocol-version": "1",
            }
            envelope = b"\0" + len(body).to_bytes(4, "big") + body
            answer = control.call("POST", "/process.Process/Start", fields, envelope)
            assert b'"exited":true' in answer.replace(b" ", b""), answer

        def kill(made: dict[str, str]) -> None:
            control.call("DELETE", f"/sandboxes/{made['sandboxID']}", key)

        def measured(what: str, work: Callable[[], None], rounds: int) -> None:
            time.sleep(1.5)
            before = spent(server)
            began = time.perf_counter()
            work()
            took = time.perf_counter() - began
            time.sleep(1.5)
            after = spent(server)
            after.subtract(before)
            lines = ", ".join(f"{name} {used / rounds / 1e6:.2f}" for name, used in after.most_common() if used > 0)
            print(f"{what}: {lines} ms (wall {took / rounds * 1000:.2f})", flush=True)

        for _ in range(20):
            kill(create())
        made = create()
        measured("command", lambda: [command(made) for _ in range(arguments.rounds)] and None, arguments.rounds)
        measured("create + kill", lambda: [kill(create()) for _ in range(arguments.rounds)] and None, arguments.rounds)
        some: list[dict[str, str]] = []
        size = min(arguments.rounds, 40)
        measured("create", lambda: some.extend(create() for _ in range(size)), size)
        measured("kill", lambda: [kill(one) for one in some] and None, size)


if __name__ == "__main__":
    main()
