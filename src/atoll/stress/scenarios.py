"""What is done to the runtime: the stress checks of OpenHands' pages, made real, and the cost of each kind of action.

Each scenario makes its own sandboxes, ends them, and says what it found; it judges nothing (`thresholds.py`).
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

from atoll.runtime import (
    CmdOutputObservation,
    CmdRunAction,
    E2BRuntime,
    ErrorObservation,
    FileEditAction,
    FileReadAction,
    FileReadSource,
    FileWriteAction,
    IPythonRunCellAction,
    JupyterRequirement,
    Observation,
)
from atoll.runtime.events import Action
from atoll.stress.measure import Outcome, Series, percentile, spread

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    edits: int = 1000
    requests: int = 1000
    iterations: int = 10
    cpu_s: float = 10.0
    at_once: int = 64
    jobs: int = 300
    actions: int = 200
    hard_timeout_s: float = 2.0


FULL = Sizes()
QUICK = Sizes(edits=200, requests=200, iterations=3, cpu_s=3.0, at_once=16, jobs=32, actions=40, hard_timeout_s=1.0)
"""Under three minutes on two cores."""

Scenario = Callable[[Sizes], Outcome]
SOFT_S = 1.0
STRESS_NG = "stress-ng --vm 1 --vm-bytes {mib}M --vm-keep --timeout 30s --metrics"
ABORTED = ("aborted early, out of system resources", "out of memory", "OOM")
EAT = (
    "python3 -c 'import sys; held = []\n"
    'for _ in range({mib} // 16): held.append(bytearray(b"x") * (16 << 20))\n'
    "sys.exit(0)'"
)
BURN = """
import os, sys, time
count, seconds = int(sys.argv[1]), float(sys.argv[2])
begin = time.monotonic()
children = []
for _ in range(count):
    pid = os.fork()
    if pid == 0:
        while time.monotonic() - begin < seconds:
            pass
        os._exit(0)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
used = os.times()
print(used.children_user + used.children_system, time.monotonic() - begin)
"""


def run(
    runtime: E2BRuntime, command: str, timeout_s: float = 120.0, *, blocking: bool = True, is_input: bool = False
) -> CmdOutputObservation:
    """A command's observation. Raises RuntimeError where it is refused."""
    action = CmdRunAction(command, is_input=is_input).with_hard_timeout(timeout_s, blocking=blocking)
    found = runtime.run_action(action)
    if not isinstance(found, CmdOutputObservation):
        raise RuntimeError(found.content)
    return found


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """(what it returned, seconds)."""
    begin = time.perf_counter()
    found = work()
    return found, time.perf_counter() - begin


# ---------------------------------------------------------------------------------------------------------- actions


def actions(sizes: Sizes) -> Outcome:
    """Each kind of action, and the SDK's bare call beside it"""
    figures: dict[str, float] = {}
    notes: list[str] = []
    failed = total = 0
    with E2BRuntime(plugins=[JupyterRequirement()], soft_timeout_s=SOFT_S) as runtime:
        assert runtime.sandbox is not None
        sdk = runtime.sandbox.sandbox
        path, text = "/workspace/measured", "line\n" * 200
        runtime.run_action(FileWriteAction(path, text))
        swap = iter(range(1 << 30))
        kinds: dict[str, tuple[Callable[[], Action], Callable[[], object]]] = {
            "run": (lambda: CmdRunAction("true"), lambda: sdk.commands.run("true")),
            "run_static": (lambda: CmdRunAction("true", is_static=True), lambda: sdk.commands.run("true")),
            "read": (lambda: FileReadAction(path), lambda: sdk.files.read(path)),
            "write": (lambda: FileWriteAction(path, text), lambda: sdk.files.write(path, text)),
            "edit": (lambda: _swap(path, next(swap)), lambda: sdk.files.write(path, sdk.files.read(path))),
            "view": (lambda: FileReadAction(path, impl_source=FileReadSource.OH_ACI), lambda: sdk.files.read(path)),
            "run_ipython": (lambda: IPythonRunCellAction("1"), lambda: sdk.run_code("1")),
        }
        for name, (make, bare) in kinds.items():
            runtime.run_action(FileWriteAction(path, f"0\n{text}"))
            swap = iter(range(1 << 30))
            runtime.run_action(make())
            ours = []
            for _ in range(sizes.actions):
                observation, seconds = timed(lambda make=make: runtime.run_action(make()))  # type: ignore[misc]
                ours.append(seconds)
                total += 1
                failed += _failed(observation)
            theirs = [timed(bare)[1] for _ in range(sizes.actions)]
            figures[f"{name}_ms_p50"] = percentile(ours, 50) * 1e3
            figures[f"{name}_ms_p99"] = percentile(ours, 99) * 1e3
            figures[f"{name}_sdk_ms_p50"] = percentile(theirs, 50) * 1e3
    figures["success_rate"] = 1 - failed / total
    figures["per_second"] = 1e3 / (sum(figures[f"{name}_ms_p50"] for name in kinds) / len(kinds))
    over = [figures[f"{name}_ms_p50"] - figures[f"{name}_sdk_ms_p50"] for name in kinds]
    notes.append("over the SDK's bare call at the median: " + _pairs(kinds, over))
    return Outcome(figures, notes=notes)


def _pairs(names: object, values: list[float]) -> str:
    return ", ".join(f"{name} {value:+.1f} ms" for name, value in zip(names, values, strict=True))  # type: ignore[call-overload]


def _swap(path: str, number: int) -> FileEditAction:
    return FileEditAction(path, command="str_replace", old_str=f"{number}\nline", new_str=f"{number + 1}\nline")


def _failed(observation: Observation) -> bool:
    if isinstance(observation, CmdOutputObservation):
        return observation.exit_code != 0
    return isinstance(observation, ErrorObservation) or observation.content.startswith("ERROR:")


# ---------------------------------------------------------------------------------------------------------- files


def files(sizes: Sizes) -> Outcome:
    """Edits of a file of a thousand lines, one after the other"""
    path = "/tmp/edited.txt"
    with E2BRuntime(soft_timeout_s=SOFT_S) as runtime:
        lines = "\n".join(f"-content_{number:03d}" for number in range(1000))
        runtime.run_action(FileWriteAction(path, lines))
        seconds = []
        correct = True
        for number in range(sizes.edits):
            line, marks = f"-content_{number % 1000:03d}", "*" * (number // 1000)
            action = FileEditAction(path, command="str_replace", old_str=marks + line, new_str="*" + marks + line)
            found, took = timed(lambda action=action: runtime.run_action(action))  # type: ignore[misc]
            seconds.append(took)
            correct &= "has been edited" in found.content
        last = runtime.run_action(FileReadAction(path)).content.splitlines()
        correct &= len(last) == 1000 and last[0].startswith("*") and last[999].endswith("-content_999")
    figures = {
        "correct": float(correct),
        "edits_per_s": sizes.edits / sum(seconds),
        **spread("edit_ms", [value * 1e3 for value in seconds]),
    }
    return Outcome(figures, [Series("time of an edit", "ms", [value * 1e3 for value in seconds], "edit")])


# ---------------------------------------------------------------------------------------------------------- network


def network(sizes: Sizes) -> Outcome:
    """Requests from outside to a server in the sandbox, through the edge"""
    with E2BRuntime(soft_timeout_s=SOFT_S) as runtime:
        run(runtime, "mkdir -p /tmp/site && echo hello > /tmp/site/index.html && cd /tmp/site")
        run(
            runtime,
            "(python3 -m http.server 8000 >/dev/null 2>&1 &) && for i in $(seq 100); do "
            "(echo > /dev/tcp/127.0.0.1/8000) 2>/dev/null && break; sleep 0.05; done",
        )
        assert runtime.sandbox is not None
        sdk = runtime.sandbox.sandbox
        direct = str(sdk.connection_config.get_sandbox_url(sdk.sandbox_id, sdk.sandbox_domain))
        host = sdk.get_host(8000)
        own_host = host.split(":")[0] in direct or "49983-" in direct
        base = direct if not own_host else f"{direct.partition('://')[0]}://{host}"
        headers = {"Host": host, "E2b-Sandbox-Id": runtime.sandbox_id, "E2b-Sandbox-Port": "8000"}
        good, seconds = 0, []
        with httpx.Client(base_url=base, headers={} if own_host else headers, timeout=30) as client:
            for _ in range(sizes.requests):
                answer, took = timed(lambda: client.get("/"))
                seconds.append(took * 1e3)
                good += answer.status_code == 200 and answer.text == "hello\n"
    figures = {"success_rate": good / sizes.requests, **spread("request_ms", seconds)}
    return Outcome(figures, [Series("time of a request", "ms", seconds, "request")])


# ---------------------------------------------------------------------------------------------------------- output


def long_output(sizes: Sizes) -> Outcome:
    """Long output with soft and hard time limits, again and again, with memory readings"""
    correct, inside, outside, seconds = True, [], [], []
    with E2BRuntime(soft_timeout_s=SOFT_S) as runtime:
        for number in range(sizes.iterations):
            begin = time.monotonic()
            correct &= _one_round(runtime, number, sizes.hard_timeout_s)
            seconds.append(time.monotonic() - begin)
            used = run(runtime, "ps -eo rss= 2>/dev/null | awk '{s+=$1} END {print s}'").content.strip()
            inside.append(int(used or 0) / 1024)
            outside.append(_client_mib())
    figures = {
        "correct": float(correct),
        "sandbox_growth_mib": inside[-1] - inside[0],
        "client_growth_mib": outside[-1] - outside[0],
        "round_s_max": max(seconds),
    }
    return Outcome(
        figures,
        [
            Series("memory of all processes in the sandbox", "MiB", inside, "round"),
            Series("memory of the runtime's process", "MiB", outside, "round"),
            Series("time of a round", "s", seconds, "round"),
        ],
    )


def _one_round(runtime: E2BRuntime, number: int, hard_s: float) -> bool:
    asked = run(runtime, 'read -p "Do you want to continue? [Y/n] " answer && echo got $answer', blocking=False)
    good = asked.exit_code == -1 and "Do you want to continue?" in asked.content
    answered = run(runtime, "Y", is_input=True)
    good &= answered.exit_code == 0 and "got Y" in answered.content
    loop = f'i=0; while true; do i=$((i+1)); echo "Line $i - Iteration {number} {"x" * 1000}"; sleep 0.005; done'
    found = run(runtime, loop, hard_s)
    good &= found.exit_code == -1 and f"Line 1 - Iteration {number}" in found.content
    refused = run(runtime, "ls")
    good &= refused.exit_code == -1 and "The previous command is still running" in refused.metadata.suffix
    good &= run(runtime, "C-c", is_input=True).exit_code == 130
    return good and run(runtime, "ls").exit_code == 0


def _client_mib() -> float:
    """Our own resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


# ---------------------------------------------------------------------------------------------------------- limits


def cpu(sizes: Sizes) -> Outcome:
    """More busy processes than processors: what the sandbox gets of them"""
    with E2BRuntime(soft_timeout_s=SOFT_S) as runtime:
        assert runtime.sandbox is not None
        count = runtime.sandbox.sandbox.get_info().cpu_count
        runtime.run_action(FileWriteAction("/tmp/burn.py", BURN))
        found = run(runtime, f"python3 /tmp/burn.py {count * 2 + 2} {sizes.cpu_s}", 60 + sizes.cpu_s * 10)
        used, wall = (float(word) for word in found.content.split()[-2:])
        after, answer_s = timed(lambda: run(runtime, "echo alive"))
    figures = {
        "processors": float(count),
        "used": used / wall,
        "share": used / wall / count,
        "answer_after_ms": answer_s * 1e3,
    }
    return Outcome(figures, notes=[] if after.content == "alive" else ["the shell did not answer afterwards"])


def memory(sizes: Sizes) -> Outcome:
    """More memory than the sandbox may have: the program is stopped, the sandbox is not"""
    with E2BRuntime(soft_timeout_s=SOFT_S) as runtime:
        assert runtime.sandbox is not None
        limit = runtime.sandbox.sandbox.get_info().memory_mb
        tool = (
            run(
                runtime,
                "command -v stress-ng || (sudo apt-get install -y -qq stress-ng >/dev/null 2>&1; command -v stress-ng)",
                90,
            ).exit_code
            == 0
        )
        command = (STRESS_NG if tool else EAT).format(mib=limit * 2)
        found = run(runtime, command, 120)
        stopped = found.exit_code == 3 or found.exit_code in (137, 9, -9)
        if tool and found.exit_code == 0:  # it restarts workers that were killed; its own report says so
            stopped = any(word in found.content for word in ABORTED)
        fits = run(runtime, EAT.format(mib=max(16, limit // 4)), 60)
        after = run(runtime, "echo alive").content == "alive"
    figures = {
        "limit_mib": float(limit),
        "exit_code": float(found.exit_code),
        "stopped": float(stopped),
        "usable_after": float(after and fits.exit_code == 0),
    }
    by = "stress-ng" if tool else "a program of our own (stress-ng could not be installed in the sandbox)"
    return Outcome(figures, notes=[f"memory was asked for by {by}", found.content[-300:]])


# ---------------------------------------------------------------------------------------------------------- many


def concurrent(sizes: Sizes) -> Outcome:
    """Many runtimes at once, each with a small job from beginning to end"""
    with tempfile.NamedTemporaryFile("w", prefix="atoll-stress-", suffix=".txt") as sent:
        sent.write("dummy\n" * 100)
        sent.flush()
        begin = time.monotonic()
        with ThreadPoolExecutor(sizes.at_once) as pool:
            jobs = list(pool.map(lambda number: _job(number, sent.name, begin), range(sizes.jobs)))
        wall = time.monotonic() - begin
    good = [job for job in jobs if not job.error]
    errors = sorted({job.error for job in jobs if job.error})
    figures = {
        "at_once": float(sizes.at_once),
        "jobs": float(sizes.jobs),
        "success_rate": len(good) / sizes.jobs,
        "jobs_per_s": sizes.jobs / wall,
        **spread("job_s", [job.seconds for job in good]),
        **spread("connect_s", [job.connect_s for job in good]),
        **spread("action_ms", [ms for job in good for ms in job.actions_ms]),
    }
    ended = sorted(job.ended for job in jobs)
    return Outcome(
        figures,
        [
            Series("time of a job", "s", [job.seconds for job in jobs], "job"),
            Series("jobs that are done", "jobs", list(range(1, len(ended) + 1)), "seconds", ended),
        ],
        [f"{len(jobs) - len(good)} jobs failed: {error}" for error in errors[:5]],
    )


@dataclass(frozen=True, slots=True)
class _Job:
    seconds: float
    connect_s: float
    actions_ms: list[float]
    ended: float
    error: str = ""


def _job(number: int, file: str, began: float) -> _Job:
    begin = time.monotonic()
    connect_s, took = 0.0, []
    error = ""
    try:
        with E2BRuntime(sid=f"stress-{number}", soft_timeout_s=30) as runtime:
            connect_s = time.monotonic() - begin
            run(runtime, "export USER=$(whoami); echo USER=${USER}")
            run(runtime, "sudo mkdir -p /dummy_dir")
            runtime.copy_to(file, "/dummy_dir/")
            for _ in range(10):
                found, seconds = timed(lambda: run(runtime, "ls -lah /dummy_dir"))
                took.append(seconds * 1e3)
                if found.exit_code != 0 or Path(file).name not in found.content:
                    raise RuntimeError(f"ls: exit code {found.exit_code}: {found.content[:200]}")
    except Exception as failure:
        error = f"{type(failure).__name__}: {str(failure)[:300]}"
    end = time.monotonic()
    return _Job(end - begin, connect_s, took, end - began, error)
