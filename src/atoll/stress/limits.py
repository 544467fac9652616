"""What a sandbox gets of processors and memory, and what happens to those who ask for more."""

from __future__ import annotations

import os
import re
from pathlib import Path

from atoll.runtime import E2BRuntime, FileWriteAction
from atoll.stress.measure import Outcome
from atoll.stress.work import SOFT_S, Sizes, run, timed

BUSY = 0.3
"""Processors that others use: more than that, and a figure of what the sandbox got is about them."""

INSTALL = (
    "command -v stress-ng || { sudo -n timeout 60 sh -c "
    "'apt-get update -qq && apt-get install -y -qq --no-install-recommends stress-ng' >/dev/null 2>&1; "
    "command -v stress-ng; }"
)
BEYOND = "stress-ng --verbose --vm 1 --vm-bytes {mib}M --vm-keep --timeout 10s --metrics"
REFUSED = "(ulimit -v {limit_kib}; stress-ng --vm 1 --vm-bytes {mib}M --timeout 30s --metrics)"
ABORTED = "aborted early, out of system resources"
KILLED = "assuming killed by OOM killer"
_PREFIX = re.compile(r"stress-ng: \w+: +\[\d+\] ")
NO_RESOURCE = 3
"""stress-ng's exit code when it was refused memory; a worker that the kernel kills it replaces, and ends with 0."""

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


def cpu(sizes: Sizes) -> Outcome:
    """More busy processes than processors: what the sandbox gets of them"""
    with E2BRuntime(template=sizes.template, soft_timeout_s=SOFT_S) as runtime:
        assert runtime.sandbox is not None
        count = runtime.sandbox.sandbox.get_info().cpu_count
        runtime.run_action(FileWriteAction("/tmp/burn.py", BURN))
        before = busy_s()
        found = run(runtime, f"python3 /tmp/burn.py {count * 2 + 2} {sizes.cpu_s}", 60 + sizes.cpu_s * 10)
        busy = busy_s() - before
        used, wall = (float(word) for word in found.content.split()[-2:])
        after, answer_s = timed(lambda: run(runtime, "echo alive"))
    others = max(0.0, busy - used) / wall
    figures = {
        "processors": float(count),
        "used": used / wall,
        "share": used / wall / count,
        "used_by_others": others,
        "answer_after_ms": answer_s * 1e3,
    }
    notes = [] if after.content == "alive" else ["the shell did not answer afterwards"]
    if others > BUSY:
        notes.append(
            f"other work on this machine took {others:.1f} processors meanwhile: "
            "without it the sandbox would have got more"
        )
    return Outcome(figures, notes=notes)


def busy_s(table: Path = Path("/proc/stat")) -> float:
    """Seconds that this machine's processors have spent working since it started, see proc_stat(5)."""
    user, nice, system, _, _, irq, softirq = (int(word) for word in table.read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def memory(sizes: Sizes) -> Outcome:
    """More memory than the sandbox may have: the program is stopped, the sandbox is not"""
    with E2BRuntime(template=sizes.template, soft_timeout_s=SOFT_S) as runtime:
        assert runtime.sandbox is not None
        limit = runtime.sandbox.sandbox.get_info().memory_mb
        tool = run(runtime, INSTALL, 120).exit_code == 0
        found = run(runtime, (BEYOND if tool else EAT).format(mib=limit * 2), 120)
        figures = {"limit_mib": float(limit), "exit_code": float(found.exit_code)}
        stopped = was_stopped(found.exit_code, found.content)
        notes = [f"beyond the sandbox's memory: {_last_lines(found.content)}"]
        if tool:
            refused = run(runtime, REFUSED.format(mib=limit * 6, limit_kib=limit * 1024), 120)
            figures["refused_exit_code"] = float(refused.exit_code)
            stopped &= refused.exit_code == NO_RESOURCE and ABORTED in refused.content
            notes.append(f"beyond a limit of its own: {_last_lines(refused.content)}")
        fits = run(runtime, EAT.format(mib=max(16, limit // 4)), 60)
        after = run(runtime, "echo alive").content == "alive"
    figures |= {"stopped": float(stopped), "usable_after": float(after and fits.exit_code == 0)}
    by = "stress-ng" if tool else "a program of our own (stress-ng could not be installed in the sandbox)"
    return Outcome(figures, notes=[f"memory was asked for by {by}", *notes])


def was_stopped(exit_code: int, output: str) -> bool:
    """Whether a program that asked for too much memory did not get it: refused, killed, or its workers were."""
    if exit_code == NO_RESOURCE:
        return ABORTED in output
    return exit_code in (137, 9, -9) or (exit_code == 0 and KILLED in output)


def _last_lines(output: str) -> str:
    """What it came to, without stress-ng's tables and debugging, each thing once."""
    lines = [line for line in output.splitlines() if "metrc:" not in line and "no CPUs found" not in line]
    lines_kept = [_PREFIX.sub("", line.strip()) for line in lines if "debug:" not in line or KILLED in line]
    return "; ".join(list(dict.fromkeys(lines_kept))[-3:])[-400:] or "no output"
