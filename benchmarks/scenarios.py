"""What is measured, and beside which floor. Each scenario returns raw rows; goals live with the rendering."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from e2b import AsyncSandbox, Sandbox
from e2b_code_interpreter import Sandbox as Interpreter
from floors import Bwrap, PlainBash, RawJupyter
from measure import Row, in_turns, timed
from server import ENVD, INTERPRETER, BenchServer, Wire, find_template, serving

from atoll.testing import footprint

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Bench:
    """What the scenarios need: the server, the floors, and how long to go on."""

    server: BenchServer
    isolation: str
    work: Path
    bwrap: Bwrap
    bash: PlainBash
    floor_files: Sandbox
    answers_only: dict[str, str]
    """Options of SDK calls that reach a server which only answers."""
    floor_jupyter: RawJupyter | None
    rounds: Callable[[int], int]
    """The number of rounds for a full count: fewer when the run is a quick one."""


def create(bench: Bench) -> list[Row]:
    """`Sandbox.create()` until its first command has answered; the kill is not counted."""

    def sdk(**where: str) -> float:
        began = time.perf_counter()
        sandbox = Sandbox.create(timeout=120, **where)
        sandbox.commands.run("true")
        took = (time.perf_counter() - began) * 1000
        sandbox.kill()
        return took

    subjects = {
        "atoll": sdk,
        "bwrap + bash": lambda: timed(bench.bwrap.once),
        "the SDK alone": lambda: sdk(**bench.answers_only),
    }
    return in_turns("create → first command", subjects, bench.rounds(100), "ms")


def create_steps(bench: Bench) -> list[Row]:
    """The same create, peeled: the SDK's call, the bare request, the first command."""
    api, run = Wire.to_server(bench.server), Wire.to_server(bench.server)
    key = {"X-API-Key": bench.server.api_key, "Content-Type": "application/json"}
    rows: list[Row] = []
    name = "steps: create → first command"
    for n in range(bench.rounds(60) + 3):
        began = time.perf_counter()
        sandbox = Sandbox.create(timeout=120)
        created = time.perf_counter()
        sandbox.commands.run("true")
        answered = time.perf_counter()
        sandbox.kill()
        raw_began = time.perf_counter()
        body = api.call("POST", "/v2/sandboxes", key, b'{"templateID":"base","timeout":120}')
        raw_created = time.perf_counter()
        made = json.loads(body)
        _run_true(run, made["sandboxID"], made.get("envdAccessToken") or "")
        raw_answered = time.perf_counter()
        api.call("DELETE", f"/sandboxes/{made['sandboxID']}", key)
        raw_killed = time.perf_counter()
        if n < 3:
            continue
        for subject, seconds in (
            ("SDK: create", created - began),
            ("SDK: first command", answered - created),
            ("plain HTTP: create", raw_created - raw_began),
            ("plain HTTP: first command", raw_answered - raw_created),
            ("plain HTTP: kill", raw_killed - raw_answered),
        ):
            rows.append(Row(name, subject, n, seconds * 1000, "ms"))
    for n, event in enumerate(bench.server.created_events()[-bench.rounds(60) :]):
        for stage, value in event.items():
            if stage.endswith("_ms") and isinstance(value, int | float):
                rows.append(Row(name, f"server: {stage.removesuffix('_ms')}", n, float(value), "ms"))
    return rows


def run_command(bench: Bench) -> list[Row]:
    """`commands.run("true")` in a warm sandbox, and the same peeled layer by layer."""
    with _sandbox() as sandbox:
        token = sandbox._envd_access_token or ""
        edge = Wire.to_server(bench.server)
        guest = Wire.to_guest(bench.server, sandbox.sandbox_id, ENVD)
        health = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(ENVD)}
        nowhere = Sandbox.create(**bench.answers_only)
        subjects = {
            "atoll": lambda: timed(lambda: sandbox.commands.run("true")),
            "the SDK alone": lambda: timed(lambda: nowhere.commands.run("true")),
            "plain bash": lambda: timed(bench.bash.once),
            "plain HTTP through the edge": lambda: timed(lambda: _run_true(edge, sandbox.sandbox_id, token)),
            "plain HTTP to the guest": lambda: timed(lambda: _run_true(guest, sandbox.sandbox_id, token)),
            "an empty request through the edge": lambda: timed(lambda: edge.call("GET", "/health", health)),
        }
        return in_turns('commands.run("true")', subjects, bench.rounds(200), "ms")


def run_code(bench: Bench) -> list[Row]:
    """`run_code("1+1")` in a warm context beside `jupyter_client` alone in the same template."""
    if bench.floor_jupyter is None:
        return []
    floor = bench.floor_jupyter
    sandbox = Interpreter.create(timeout=600)
    try:
        sandbox.run_code("1+1")
        edge = Wire.to_server(bench.server)
        guest = Wire.to_guest(bench.server, sandbox.sandbox_id, INTERPRETER)
        headers = {
            "E2b-Sandbox-Id": sandbox.sandbox_id,
            "E2b-Sandbox-Port": str(INTERPRETER),
            "X-Access-Token": sandbox._envd_access_token or "",
            "Content-Type": "application/json",
        }
        cell = b'{"code":"1+1","context_id":null,"language":null,"env_vars":null}'
        subjects = {
            "atoll": lambda: timed(lambda: sandbox.run_code("1+1")),
            "raw jupyter_client": lambda: floor.run("1+1"),
            "plain HTTP through the edge": lambda: timed(lambda: edge.call("POST", "/execute", headers, cell)),
            "plain HTTP to the guest": lambda: timed(lambda: guest.call("POST", "/execute", headers, cell)),
        }
        return in_turns('run_code("1+1")', subjects, bench.rounds(100), "ms", warm_up=5)
    finally:
        sandbox.kill()


LOADED_S = 6.0
"""In which the libraries of a kernel that waits are loaded, on a machine that does nothing else."""


def _until_warm(server: BenchServer, count: int) -> None:
    """So many have been made ready in the life of the server."""
    deadline = time.monotonic() + 120
    while server.log.read_text().count("warm.ready") < count:
        if time.monotonic() > deadline:
            raise TimeoutError("the pool was not filled")
        time.sleep(0.2)
    time.sleep(LOADED_S)


FIRST_CELL = "create → first cell"
WARM = 4


def first_cell(bench: Bench) -> list[Row]:
    """A sandbox out of the pool (`--warm`) until its first cell has answered, one without a pool, and a bare kernel.

    In the pool for so long that its libraries are loaded; the second cell imports them.
    """
    if find_template(Interpreter.default_template) is None:
        return []

    def once(n: int, server: BenchServer, subject: str) -> list[Row]:
        where = {"api_key": server.api_key, "api_url": server.url, "sandbox_url": server.url}
        began = time.perf_counter()
        sandbox = Interpreter.create(timeout=120, **where)
        sandbox.run_code("1+1")
        first = time.perf_counter()
        sandbox.run_code("import numpy, pandas, matplotlib.pyplot")
        imported = time.perf_counter()
        sandbox.kill()
        steps = ((FIRST_CELL, first - began), ("import numpy, pandas, matplotlib", imported - first))
        return [Row(name, subject, n, seconds * 1000, "ms") for name, seconds in steps]

    rows: list[Row] = []
    for n in range(bench.rounds(12)):
        rows += once(n, bench.server, "without a pool")
    with serving(bench.isolation, "--warm", f"{Interpreter.default_template}={WARM}") as server:
        for n in range(bench.rounds(12)):
            _until_warm(server, n + WARM)
            rows += once(n, server, "atoll")
    return rows


def small_files(bench: Bench) -> list[Row]:
    """4 KiB there and back with the same SDK code against the sandbox and the bare file server."""
    data = os.urandom(4096)
    floor = bench.floor_files.files
    with _sandbox() as sandbox:
        files = sandbox.files
        files.write("small", data)
        floor.write("small", data)
        write = {
            "atoll": lambda: timed(lambda: files.write("small", data)),
            "bare file server": lambda: timed(lambda: floor.write("small", data)),
        }
        read = {
            "atoll": lambda: timed(lambda: files.read("small", format="bytes")),
            "bare file server": lambda: timed(lambda: floor.read("small", format="bytes")),
        }
        rows = in_turns("write 4 KiB", write, bench.rounds(200), "ms")
        return rows + in_turns("read 4 KiB", read, bench.rounds(200), "ms")


def large_files(bench: Bench) -> list[Row]:
    """100 MB there and back: streamed from and to a file's worth of pieces, and from one buffer."""
    data = os.urandom(MIB) * 100
    floor = bench.floor_files.files
    rounds = bench.rounds(10)

    def rate(action: Callable[[], object]) -> float:
        return 100 * 1000 / timed(action)

    def drain(sandbox: Sandbox) -> None:
        for _ in sandbox.files.read("large", format="stream"):
            pass

    with _sandbox() as sandbox:
        files = sandbox.files
        write = {
            "atoll": lambda: rate(lambda: files.write("large", data)),
            "bare file server": lambda: rate(lambda: floor.write("large", data)),
        }
        rows = in_turns("write 100 MB", write, rounds, "MB/s", warm_up=1)
        read = {
            "atoll": lambda: rate(lambda: drain(sandbox)),
            "bare file server": lambda: rate(lambda: drain(bench.floor_files)),
        }
        return rows + in_turns("read 100 MB", read, rounds, "MB/s", warm_up=1)


def concurrent_creates(bench: Bench) -> list[Row]:
    """Creates per second with ten under way at any moment: by the SDK, by plain HTTP, and bwrap as the floor."""
    total = bench.rounds(100)

    def by_sdk() -> float:
        async def all_of_them() -> float:
            gate, made = asyncio.Semaphore(10), []

            async def one() -> None:
                async with gate:
                    made.append(await AsyncSandbox.create(timeout=120))

            began = time.perf_counter()
            await asyncio.gather(*(one() for _ in range(total)))
            took = time.perf_counter() - began
            await asyncio.gather(*(sandbox.kill() for sandbox in made))
            return total / took

        return asyncio.run(all_of_them())

    key = {"X-API-Key": bench.server.api_key, "Content-Type": "application/json"}
    wires = [Wire.to_server(bench.server) for _ in range(10)]

    def by_http() -> float:
        def some(wire: Wire) -> list[str]:
            body = b'{"templateID":"base","timeout":120}'
            return [json.loads(wire.call("POST", "/v2/sandboxes", key, body))["sandboxID"] for _ in range(total // 10)]

        with ThreadPoolExecutor(10) as pool:
            began = time.perf_counter()
            made = [sandbox_id for ids in pool.map(some, wires) for sandbox_id in ids]
            took = time.perf_counter() - began
        for sandbox_id in made:
            wires[0].call("DELETE", f"/sandboxes/{sandbox_id}", key)
        return len(made) / took

    def by_bwrap() -> float:
        with ThreadPoolExecutor(10) as pool:
            began = time.perf_counter()
            list(pool.map(lambda _: bench.bwrap.once(), range(total)))
            return total / (time.perf_counter() - began)

    subjects = {"atoll": by_http, "atoll through the SDK": by_sdk, "bwrap + bash": by_bwrap}
    return in_turns("10 creates at once", subjects, bench.rounds(5), "/s", warm_up=1)


def idle_memory(bench: Bench) -> list[Row]:
    """Private memory of one idle sandbox while a hundred live; what the server itself grew by is counted in."""
    count = 100
    helpers = {pid: footprint.private_bytes(pid) for pid in footprint.helpers_of(bench.server.mark)}
    before = set(footprint.processes_of(bench.server.mark))
    sandboxes = [Sandbox.create(timeout=600) for _ in range(count)]
    try:
        sandboxes[-1].commands.run("true")
        time.sleep(3)
        inside = [pid for pid in footprint.processes_of(bench.server.mark) if pid not in before]
        each = [footprint.private_bytes(pid) / MIB for pid in inside if pid not in helpers]
        grown = sum(footprint.private_bytes(pid) - size for pid, size in helpers.items()) / MIB
    finally:
        for sandbox in sandboxes:
            sandbox.kill()
    idle = [bench.bwrap.idle() for _ in range(count)]
    try:
        time.sleep(2)
        floor = [sum(footprint.private_bytes(pid) for pid in _tree(process.pid)) / MIB for process in idle]
    finally:
        for process in idle:
            process.kill()
        for process in idle:
            process.wait()
    name = "private memory per idle sandbox, 100 live"
    rows = [Row(name, "atoll", n, value, "MB") for n, value in enumerate(each)]
    rows += [Row(name, "bwrap + sleep", n, value, "MB") for n, value in enumerate(floor)]
    rows.append(Row(name, "growth of the server per sandbox", 0, grown / count, "MB"))
    return rows


def _tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [pid, *(found for child in children.read_text().split() for found in _tree(int(child)))]
    except OSError:
        return [pid]


@contextlib.contextmanager
def _sandbox():  # type: ignore[no-untyped-def]
    sandbox = Sandbox.create(timeout=600)
    try:
        sandbox.commands.run("true")
        yield sandbox
    finally:
        sandbox.kill()


_TRUE = json.dumps({"process": {"cmd": "/bin/bash", "args": ["-l", "-c", "true"]}, "stdin": False}).encode()


def _run_true(wire: Wire, sandbox_id: str, token: str) -> None:
    """What the SDK sends for `commands.run("true")`, without the SDK."""
    headers = {
        "E2b-Sandbox-Id": sandbox_id,
        "E2b-Sandbox-Port": str(ENVD),
        "X-Access-Token": token,
        "Content-Type": "application/connect+json",
        "Connect-Protocol-Version": "1",
        "Authorization": "Basic " + base64.b64encode(b"user:").decode(),
    }
    answer = wire.call("POST", "/process.Process/Start", headers, struct.pack(">BI", 0, len(_TRUE)) + _TRUE)
    if b'"end"' not in answer:
        raise RuntimeError(f"the command did not end: {answer!r}")


SCENARIOS: dict[str, Callable[[Bench], list[Row]]] = {
    "create": create,
    "run": run_command,
    "code": run_code,
    "first": first_cell,
    "small": small_files,
    "large": large_files,
    "concurrent": concurrent_creates,
    "memory": idle_memory,
    "steps": create_steps,
}
