"""What an attack costs the server, as the host sees it: its memory and its time on a processor."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from atoll_attacks.attempt import Judge
from atoll_attacks.calls import request
from atoll_attacks.scene import Scene, _text

_MOST_S, _MOST_MIB = 4.0, 192
_ANSWER_WITHIN_S = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")


def processes(scene: Scene) -> Mapping[int, tuple[float, int]]:
    """Pid → (seconds, MiB), of the server's own (launcher, front, node, gateway); in a control of the attempt's."""
    found = {}
    for pid in _servers(scene) if scene.sandbox is not None else scene.pids():
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            memory = re.search(r"^RssAnon:\s+(\d+)", _text(f"/proc/{pid}/status"), re.M)
            found[pid] = (int(fields[11]) + int(fields[12])) / _TICKS, int(memory[1]) // 1024 if memory else 0
    return found


def _servers(scene: Scene) -> list[int]:
    if scene.world.data_dir is None:
        return []
    with contextlib.suppress(OSError, ValueError, KeyError):
        launcher = int(json.loads((scene.world.data_dir / "server.json").read_text())["pid"])
        return [launcher, *map(int, _text(f"/proc/{launcher}/task/{launcher}/children").split())]
    return []


def costs(most_s: float = _MOST_S, most_mib: int = _MOST_MIB) -> Judge:
    """A breach: one of the server's processes worked for more than that, grew by more, or is gone; or it is deaf.

    Looked at before, meanwhile and afterwards. Without a sandbox: the attempt's own processes, from nothing on.
    """

    def judge(scene: Scene) -> str | None:
        now = processes(scene)
        before = scene.facts.setdefault("costs before", now if scene.sandbox is not None else {})
        for pid, (seconds, memory) in now.items():
            earlier = before.get(pid, (0.0, 0))
            if seconds - earlier[0] > most_s:
                return f"it kept a process of the server busy for {seconds - earlier[0]:.1f} s"
            if memory - earlier[1] > most_mib:
                return f"a process of the server grew from {earlier[1]} to {memory} MiB"
        if gone := before.keys() - now.keys() if scene.sandbox is not None else set():
            return f"process {min(gone)} of the server is gone"
        return None if scene.running or scene.sandbox is None else _deaf()

    return judge


def _deaf() -> str | None:
    status, _ = request("GET", "/health", timeout_s=_ANSWER_WITHIN_S)
    return None if status in (200, 204) else f"the server does not answer: {status}"
