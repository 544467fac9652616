"""What is kept of a sandbox: pause, resume, snapshot, fork, beside raw `runsc checkpoint`/`restore` and `cp -a`.

    python benchmarks/state.py [--quick] [--no-readme]

One server for each tier that works here, through the published SDK; the floors in the same run. Rows go to
`results/state.csv`, the table to this directory's README. Needs root, the `base` template, and for gVisor a runsc
(`atoll doctor --fix`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx
import machine
import render
from e2b import Sandbox, SandboxException
from measure import Row, timed
from server import BenchServer, find_template, serving, templates_dir, tools_dir

from atoll.config import Settings
from atoll.testing import footprint

README = Path(__file__).parent / "README.md"
MEMORY_MB, FILES, FORKS = (0, 64, 512), (0, 100, 1000), (1, 10, 100)
TOUCH = "import os, time; held = os.urandom({mb} << 20); open('/home/user/ready', 'w').close(); time.sleep(1e6)"
GOALS = {
    ("namespaces", "snapshot, 0 changed files"): "≤ 15 ms",
    ("namespaces", "create from it, 0 changed files"): "≤ 30 ms",
    ("namespaces", "fork ×100, 64 MB of files"): "≤ 1 s",
    ("gvisor", "pause, 64 MB touched"): "≤ 1.2× raw",
    ("gvisor", "resume, 64 MB touched"): "≤ 1.2× raw",
}


T = TypeVar("T")


class Rows:
    def __init__(self) -> None:
        self.all: list[Row] = []

    def timed(self, what: str, subject: str, action: Callable[[], T]) -> T:
        began = time.perf_counter()
        done = action()
        self.note(what, subject, (time.perf_counter() - began) * 1000)
        return done

    def note(self, what: str, subject: str, value: float, unit: str = "ms") -> None:
        count = sum(row.benchmark == what and row.subject == subject for row in self.all)
        self.all.append(Row(what, subject, count, value, unit))
        print(f"{subject:14} {what:40} {value:10.1f} {unit}", flush=True)


def wait_for(probe: Callable[[], object], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not probe():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.02)


@contextlib.contextmanager
def a_sandbox(template: str = "base") -> Iterator[Sandbox]:
    sandbox = Sandbox.create(template, timeout=900)
    try:
        yield sandbox
    finally:
        sandbox.kill()


def touch(sandbox: Sandbox, megabytes: int) -> None:
    if megabytes:
        sandbox.commands.run(f'python3 -c "{TOUCH.format(mb=megabytes)}"', background=True, timeout=0)
        wait_for(lambda: sandbox.files.exists("/home/user/ready"))


def pausing(rows: Rows, tier: str, rounds: int, sizes: tuple[int, ...]) -> None:
    for megabytes in sizes:
        with a_sandbox() as sandbox:
            touch(sandbox, megabytes)
            for _ in range(rounds):
                rows.note(f"pause, {megabytes} MB touched", tier, timed(sandbox.pause))
                rows.note(f"resume, {megabytes} MB touched", tier, timed(lambda: sandbox.connect(timeout=900)))
            if tier == "gvisor":
                taken = []
                for _ in range(rounds):
                    what = f"snapshot with memory, {megabytes} MB touched"
                    taken.append(rows.timed(what, tier, lambda: sandbox.create_snapshot(mode="full")))
                for one in taken:
                    Sandbox.delete_snapshot(one.snapshot_id)


def snapshots(rows: Rows, tier: str, rounds: int, counts: tuple[int, ...], scratch: Path) -> None:
    for count in counts:
        name = f"{count} changed files"
        with a_sandbox() as sandbox:
            if count:
                sandbox.commands.run(
                    f"mkdir d; for i in $(seq {count}); do head -c 4096 /dev/urandom > d/$i; done", timeout=300
                )
            for _ in range(rounds):
                taken = rows.timed(f"snapshot, {name}", tier, lambda: sandbox.create_snapshot(mode="filesystem"))
                time.sleep(0.2)
                create = partial(Sandbox.create, taken.snapshot_id, timeout=900)
                rows.timed(f"create from it, {name}", tier, create).kill()
                Sandbox.delete_snapshot(taken.snapshot_id)
        if count:
            tree = scratch / f"tree-{count}"
            tree.mkdir()
            for number in range(count):
                (tree / str(number)).write_bytes(os.urandom(4096))
            for number in range(rounds):
                copied = ["cp", "-a", str(tree), str(scratch / f"copy-{count}-{tier}-{number}")]
                rows.note(f"snapshot, {name}", f"cp -a ({tier})", timed(lambda c=copied: subprocess.run(c, check=True)))
            shutil.rmtree(tree)


def forks(rows: Rows, tier: str, counts: tuple[int, ...], server: BenchServer) -> None:
    with a_sandbox() as sandbox:
        sandbox.commands.run("head -c 64M /dev/urandom > big", timeout=60)
        for count in counts:
            os.sync()
            before = _taken(server)
            # Not by the SDK: it asks for 20 at most.
            fork = partial(
                httpx.post,
                f"{server.url}/sandboxes/{sandbox.sandbox_id}/fork",
                json={"count": count, "timeout": 900},
                headers={"X-API-Key": server.api_key},
                timeout=600,
            )
            answers = rows.timed(f"fork ×{count}, 64 MB of files", tier, fork).raise_for_status().json()
            os.sync()
            made = [one["sandbox"]["sandboxID"] for one in answers if "sandbox" in one]
            if len(made) < count:
                print(f"{count - len(made)} of {count}: {next(one for one in answers if 'sandbox' not in one)}")
            rows.note(f"disk per fork, ×{count}", tier, (_taken(server) - before) / max(1, len(made)) / 1e6, "MB")
            for one in made:
                Sandbox.kill(one)


def _taken(server: BenchServer) -> int:
    """Bytes of the host that sandboxes' disks and images take."""
    found = [*server.data_dir.glob("sandboxes/*/disk.img"), *(templates_dir() / ".images").glob("*/parts/*.img")]
    total = 0
    for path in found:
        with contextlib.suppress(OSError):
            total += path.stat().st_blocks * 512
    return total


def paused_memory(rows: Rows, tier: str, count: int, server: BenchServer) -> None:
    """All of the server's processes together, by proportional share, before and after."""
    before = _pss_mb(server.mark)
    sandboxes = [Sandbox.create("base", timeout=900) for _ in range(count)]
    rows.note(f"memory of one that runs, {count} of them", tier, (_pss_mb(server.mark) - before) / count, "MB")
    for one in sandboxes:
        one.pause()
    rows.note(f"memory of a paused one, {count} of them", tier, (_pss_mb(server.mark) - before) / count, "MB")
    for one in sandboxes:
        one.kill()


def _pss_mb(mark: str) -> float:
    total = 0
    for pid in footprint.processes_of(mark):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024


def adopting(rows: Rows, tier: str, count: int) -> None:
    """From the start of the next server to its readiness, with so many sandboxes left by one that was killed."""
    with serving(tier) as server:
        _use(server)
        made = [Sandbox.create("base", timeout=900) for _ in range(count)]
        os.kill(server.pid, signal.SIGKILL)
        command = [sys.executable, "-m", "atoll.cli.main", "serve", "--port", "0", "--data-dir", str(server.data_dir)]
        ready_in, ready_out = os.pipe()
        environ = {**os.environ, "ATOLL_TEMPLATES_DIR": str(templates_dir()), footprint.MARKER: server.mark}
        began = time.perf_counter()
        with (server.data_dir / "second.log").open("wb") as log:
            second = subprocess.Popen(
                [*command, "--isolation", tier, "--end-sandboxes", "--ready-fd", str(ready_out)],
                env=environ, stdout=log, stderr=log, pass_fds=[ready_out],
            )  # fmt: skip
        os.close(ready_out)
        try:
            with os.fdopen(ready_in) as ready:
                facts = json.loads(ready.readline())
            rows.note(f"adopting {count}", tier, (time.perf_counter() - began) * 1000)
            os.environ.update(E2B_API_URL=facts["url"], E2B_SANDBOX_URL=facts["url"], E2B_API_KEY=facts["api_key"])
            for one in (made[0], made[-1]):
                assert Sandbox.connect(one.sandbox_id).commands.run("echo alive").stdout == "alive\n"
        finally:
            second.send_signal(signal.SIGTERM)
            second.wait(60)


def raw_checkpoints(rows: Rows, rounds: int, sizes: tuple[int, ...], scratch: Path) -> None:
    """A container of the base template without network and without us."""
    runsc = shutil.which("runsc") or str((tools_dir() or Path("/")) / "runsc/usr/bin/runsc")
    base = find_template("base")
    if base is None or not Path(runsc).exists():
        return
    flags = [runsc, "--network=none", "--ignore-cgroups", "--overlay2=none", f"--root={scratch / 'runsc'}"]

    def run(*command: str) -> None:
        subprocess.run([*flags, *command], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    for megabytes in sizes:
        bundle = scratch / f"bundle-{megabytes}"
        (bundle / "upper").mkdir(parents=True)
        (bundle / "work").mkdir()
        (bundle / "root").mkdir()
        lower = ":".join(map(str, base.layers))
        options = f"lowerdir={lower},upperdir={bundle / 'upper'},workdir={bundle / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(bundle / "root")], check=True)
        ready = "/ready"
        code = TOUCH.format(mb=megabytes).replace("/home/user/ready", ready)
        config = {
            "ociVersion": "1.0.0",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["python3", "-c", code], "cwd": "/",
                        "env": ["PATH=/usr/bin:/bin"]},
            "root": {"path": "root"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]},
        }  # fmt: skip
        (bundle / "config.json").write_text(json.dumps(config))
        name, number = f"raw{megabytes}", 0
        try:
            run("run", "--detach", f"--bundle={bundle}", name)
            wait_for((bundle / "upper" / "ready").exists)
            for number in range(rounds):
                image = bundle / f"image{number}"
                how = ("--compression=none", "--direct", "--leave-running", f"--image-path={image}")
                took = timed(lambda n=name, h=how: run("checkpoint", *h, n))
                rows.note(f"pause, {megabytes} MB touched", "raw runsc", took)
                run("delete", "--force", name)
                name = f"raw{megabytes}-{number}"
                restore = ("restore", "--detach", f"--image-path={image}", f"--bundle={bundle}", name)
                rows.note(f"resume, {megabytes} MB touched", "raw runsc", timed(lambda r=restore: run(*r)))
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                run("delete", "--force", name)
            subprocess.run(["umount", str(bundle / "root")], check=False)


def _use(server: BenchServer) -> None:
    os.environ.update(E2B_API_KEY=server.api_key, E2B_API_URL=server.url, E2B_SANDBOX_URL=server.url)


def table(facts: dict[str, object], rows: list[Row], note: str) -> str:
    """Least and median: the least says most on a machine that does other work too."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.benchmark, row.subject), []).append(row)
    lines = [
        f"Measured on {facts['cores']} cores, kernel {facts['kernel']}, load {facts['load_before']} before and "
        f"{facts['load_after']} after{note}; least / p50 (`benchmarks/state.py`).",
        "",
        "| | namespaces | gVisor | floor | goal |",
        "|---|---|---|---|---|",
    ]
    for what in dict.fromkeys(row.benchmark for row in rows):
        floors = [name for name in ("raw runsc", "cp -a (namespaces)") if (what, name) in found]
        floor = f"{_figure(found[what, floors[0]])} ({floors[0].split(' (')[0]})" if floors else ""
        goal = next((text for (_, benchmark), text in GOALS.items() if benchmark == what), "")
        figures = (_figure(found.get((what, tier), [])) for tier in ("namespaces", "gvisor"))
        lines.append(f"| {what} | {' | '.join(figures)} | {floor} | {goal} |")
    return "\n".join(lines)


def _figure(rows: list[Row]) -> str:
    if not rows:
        return "–"
    values = [row.value for row in rows]
    shown = [f"{value:.0f}" if value >= 10 else f"{value:.1f}" for value in (min(values), statistics.median(values))]
    return f"{' / '.join(shown if len(values) > 1 else shown[:1])} {rows[0].unit}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sizes: a few minutes beside other work")
    parser.add_argument("--tier", nargs="+", default=["namespaces", "gvisor"])
    parser.add_argument("--no-readme", action="store_true")
    parser.add_argument("--note", default="", help="what else ran on the machine, for the table")
    asked = parser.parse_args()
    rounds, many = (3, 10) if asked.quick else (10, 100)
    rows, facts = Rows(), machine.facts()
    with tempfile.TemporaryDirectory(prefix="atoll-state-", dir=Settings.from_environ(os.environ).data_dir) as place:
        scratch = Path(place)
        raw_checkpoints(rows, rounds, MEMORY_MB, scratch)
        for tier in asked.tier:
            few = 4 if tier == "gvisor" and asked.quick else many
            try:
                with serving(tier) as server:
                    _use(server)
                    pausing(rows, tier, rounds, MEMORY_MB)
                    snapshots(rows, tier, rounds, FILES, scratch)
                    forks(rows, tier, (1, 10) if asked.quick else FORKS, server)
                    paused_memory(rows, tier, few, server)
                adopting(rows, tier, few)
            except (RuntimeError, SandboxException) as error:  # the rest is worth having all the same
                print(f"{tier}: {error}", flush=True)
    facts["load_after"] = round(os.getloadavg()[0], 2)
    render.write(Path(__file__).parent / "results", facts, rows.all, "state")
    shown = table(facts, rows.all, f"; {asked.note}" if asked.note else "")
    print(shown)
    if not asked.no_readme:
        render.into_readme(README, shown, mark="state")


if __name__ == "__main__":
    main()
