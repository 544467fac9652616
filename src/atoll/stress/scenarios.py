"""What is done to the runtime: the stress checks of OpenHands' pages, made real, and the cost of each kind of action.

Each scenario makes its own sandboxes, ends them, and says what it found; it judges nothing (`thresholds.py`).
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

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
from atoll.runtime.events.base import Action
from atoll.stress.measure import Outcome, Series, percentile, spread
from atoll.stress.work import SOFT_S, Sizes, run, timed

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
    with E2BRuntime(template=sizes.template, soft_timeout_s=SOFT_S) as runtime:
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
    with E2BRuntime(template=sizes.template, soft_timeout_s=SOFT_S) as runtime:
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
    with E2BRuntime(template=sizes.template, soft_timeout_s=SOFT_S) as runtime:
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
