"""What a gVisor sandbox is to the host: a kernel that is a process (the sentry), its stubs, and a server of files.

Its programs are the sentry's memory: from outside nobody sees them. So the host looks at these instead, found by what
the platform has written down about the sandbox.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from atoll_attacks.scene import Scene, _text


def pid_of(scene: Scene) -> int | None:
    """The sentry of the attacker's sandbox; None in another tier, or where the platform's records are out of reach."""
    known = scene.facts.get("sentry")
    if known is None and scene.sandbox is not None and scene.world.data_dir is not None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            state = json.loads(
                (scene.world.data_dir / "sandboxes" / scene.sandbox.sandbox_id / "state.json").read_bytes()
            )
            if state["tier"] == "gvisor":
                known = scene.facts["sentry"] = int(state["handle"]["pid"])
    return known


def processes(scene: Scene) -> dict[str, list[int]]:
    """Pids of the sandbox's group by what they are: "sentry" (with its stubs), "gofer", "holder" (of its way out)."""
    found: dict[str, list[int]] = {"sentry": [], "gofer": [], "holder": []}
    sentry = pid_of(scene)
    if sentry is None:
        return found
    group = group_of(sentry, "memory")
    for word in _text(f"{group}/cgroup.procs").split():
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{word}/cmdline").read_bytes()
            kind = "gofer" if line.startswith(b"runsc-gofer") else "holder" if b"infinity" in line else "sentry"
            found[kind].append(int(word))
    return found


def group_of(pid: int, controller: str) -> str:
    """The directory of its control group; "" if it has none."""
    for line in _text(f"/proc/{pid}/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return f"/sys/fs/cgroup/{controller}{path}"
        if not controllers and path != "/" and os.path.exists(f"/sys/fs/cgroup{path}/{controller}.max"):
            return f"/sys/fs/cgroup{path}"
    return ""
