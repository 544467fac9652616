"""Attempts to use more than one's share, until the guest is deaf, a neighbour starves or the host is full.

Each runs in a sandbox of its own with `LIMITS`. A breach is: a neighbour that no longer answers, the host's numbers for
this sandbox above its limits, or a sandbox that is of no use afterwards.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping

from atoll_attacks import sentry
from atoll_attacks.attempt import Attempt, Control, Deed, Family, Impossible, Judge, Program
from atoll_attacks.scene import Scene, _text

LIMITS: Mapping[str, str] = {"atoll.cpu": "1", "atoll.memory": "192", "atoll.disk": "32", "atoll.pids": "64"}
_MIB = 1 << 20
_SLACK = 1.1
_USABLE_WITHIN_S, _TURN_WITHIN_S = 120.0, 45.0
"""Among a hundred processes that want a small sandbox's one processor, and on a busy machine, a turn comes late."""

_SENTRY_TASKS, _TASKS_EACH = 1024, 4
_SENTRY_MEMORY = (96 + 2 * 256) * _MIB
"""Beside a gVisor sandbox's own: its kernel, and the two reserves while a process is chosen to end."""


def _harmed(*watched: Callable[[Scene], str | None]) -> Judge:
    """While it runs the host's numbers are watched; at the end neighbour and sandbox must answer."""

    def judge(scene: Scene) -> str | None:
        scene.facts["looks"] = scene.facts.get("looks", 0) + 1
        for watch in watched:
            with contextlib.suppress(OSError, ValueError):
                if found := watch(scene):
                    return found
        if scene.facts["looks"] % 20 == 10 or "DONE" in scene.output:
            return _neighbour_lost(scene)
        return None

    return judge


def _and_usable(judge: Judge, *, gvisor_may_end: bool = False) -> Judge:
    """`gvisor_may_end`: the attacker's own sandbox may be lost in that tier (docs/threat-model.md says why)."""

    def late(scene: Scene) -> str | None:
        if found := judge(scene):
            return found
        if "DONE" in scene.output or "[" in scene.output[-60:]:
            if found := _neighbour_lost(scene):
                return found
            if scene.facts.get("killed") or (found := _unusable(scene)) is None:
                return None
            return None if gvisor_may_end and sentry.pid_of(scene) is not None and _has_ended(scene) else found
        return None

    return late


def _has_ended(scene: Scene) -> bool:
    """Whether the platform says that the sandbox is no more."""
    assert scene.sandbox is not None
    try:
        return not scene.sandbox.is_running(request_timeout=60)
    except Exception:
        return False


def _neighbour_lost(scene: Scene) -> str | None:
    if scene.other is None:
        return None
    try:
        scene.other.commands.run("echo here", timeout=20, request_timeout=25)
    except Exception as error:
        return f"a neighbour answers no more: {type(error).__name__}"
    return None


_END_ALL = "setpriv --reuid 1000 --clear-groups sh -c 'kill -9 -1' 2>/dev/null; true"
"""What root does about a user that has run wild: it needs one process."""


def _unusable(scene: Scene) -> str | None:
    """After the attack has been killed, the sandbox must take commands again."""
    assert scene.sandbox is not None
    until = time.monotonic() + _USABLE_WITHIN_S
    failure = ""
    while time.monotonic() < until and not _has_ended(scene):
        try:
            scene.sandbox.commands.run(_END_ALL, user="root", timeout=_TURN_WITHIN_S)
            if scene.sandbox.commands.run("echo here", timeout=_TURN_WITHIN_S).stdout == "here\n":
                return None
        except Exception as error:
            failure = f"{type(error).__name__} {error}"[:200]
        time.sleep(0.5)
    return f"the sandbox is of no use any more: {failure}"


def _group(scene: Scene, controller: str) -> str:
    """The directory of the attempt's control group."""
    kernel = sentry.pid_of(scene)
    for pid in scene.pids() if kernel is None else [kernel]:
        if found := sentry.group_of(pid, controller):
            return found
    return ""


def _processes(scene: Scene) -> str | None:
    group = scene.facts.get("pids") or scene.facts.setdefault("pids", _group(scene, "pids") or None)
    count = int(_text(f"{group}/pids.current") or 0) if group else 0
    most = int(LIMITS["atoll.pids"])
    if sentry.pid_of(scene) is not None:
        most = _SENTRY_TASKS + _TASKS_EACH * most  # the host sees its kernel's threads, and stubs for its processes
    return f"{count} processes" if count > most else None


def _memory(scene: Scene) -> str | None:
    resident = 0
    for pid in scene.pids():
        found = re.search(r"^Pss_Anon:\s+(\d+)", _text(f"/proc/{pid}/smaps_rollup"), re.M)
        resident += int(found.group(1)) * 1024 if found else 0
    most = int(LIMITS["atoll.memory"]) * _MIB * _SLACK
    if (kernel := sentry.pid_of(scene)) is not None:
        resident, most = _memory_of_group(sentry.group_of(kernel, "memory")), most + _SENTRY_MEMORY
    return f"{resident // _MIB} MiB of memory" if resident > most else None


def _memory_of_group(group: str) -> int:
    """Bytes that the kernel cannot simply take back: without caches of files."""
    table = {name: int(number) for name, number in re.findall(r"^(\S+) (\d+)$", _text(f"{group}/memory.stat"), re.M)}
    shared = table.get("total_shmem", table.get("shmem", 0))
    return table.get("total_rss", table.get("anon", 0)) + shared


def _disk(scene: Scene) -> str | None:
    free = os.statvfs(scene.world.data_dir or "/var/tmp")
    now = free.f_bavail * free.f_frsize
    before = scene.facts.setdefault("free", now)
    wrote = re.search(r"WROTE (\d+)", scene.output)
    much = int(wrote.group(1)) if wrote else 0
    most = int(LIMITS["atoll.disk"]) * _MIB * _SLACK
    return f"wrote {much // _MIB} MiB ({(before - now) // _MIB} MiB of the host)" if much > most else None


def _inodes(scene: Scene) -> str | None:
    made = re.search(r"MADE (\d+)", scene.output)
    return f"made {made.group(1)} files" if made and int(made.group(1)) > 12000 else None


def _server_memory(scene: Scene) -> str | None:
    """The server's own memory stays flat."""
    pid = scene.facts.get("server") or scene.facts.setdefault("server", _server_pid(scene))
    if not pid:
        return None
    found = re.search(r"^RssAnon:\s+(\d+)", _text(f"/proc/{pid}/status"), re.M)
    now = int(found.group(1)) // 1024 if found else 0
    before = scene.facts.setdefault("server memory", now)
    return f"the server grew from {before} to {now} MiB" if now > before + 60 else None


def _server_pid(scene: Scene) -> int:
    import json

    if scene.world.data_dir is None:
        return 0
    with contextlib.suppress(OSError, ValueError, KeyError):
        return int(json.loads((scene.world.data_dir / "server.json").read_text())["pid"])
    return 0


def _count(pattern: str, most: int, what: str) -> Judge:
    def judge(scene: Scene) -> str | None:
        found = re.search(pattern, scene.output)
        return f"{what}: {found.group(1)}" if found and int(found.group(1)) > most else None

    return judge


def _resource(
    name: str,
    goal: str,
    judge: Judge,
    control: Control | Impossible,
    *,
    seconds: float = 6.0,
    gvisor_may_end: bool = False,
    spoils: bool = False,
) -> Attempt:
    program = Program(f"resources/{name.replace('-', '_')}", "user", timeout_s=seconds + 14)
    late = _and_usable(judge, gvisor_may_end=gvisor_may_end)
    return Attempt(name, Family.RESOURCES, goal, program, late, control, small=True, spoils=spoils)


_DOWN = Impossible("it would take this machine down")

ATTEMPTS: tuple[Attempt, ...] = (
    _resource("fork-bomb", "start processes without end", _harmed(_processes), _DOWN, gvisor_may_end=True, spoils=True),
    _resource(
        "thread-bomb",
        "start threads without end",
        _harmed(_processes, _count(r"THREADS (\d+)", int(LIMITS["atoll.pids"]), "threads")),
        Control(judge=_count(r"THREADS (\d+)", int(LIMITS["atoll.pids"]), "threads")),
    ),
    _resource("memory", "take all memory", _harmed(_memory), Control(judge=_memory)),
    _resource("memory-in-small-pieces", "take all memory by many processes", _harmed(_memory), Control(judge=_memory)),
    _resource(
        "memory-by-shared",
        "take all memory by shared memory",
        _harmed(_count(r"SHARED (\d+)", int(LIMITS["atoll.memory"]), "MiB of shared memory")),
        Control(judge=_count(r"SHARED (\d+)", int(LIMITS["atoll.memory"]), "MiB of shared memory")),
    ),
    _resource(
        "memory-by-mlock",
        "keep memory from being taken back",
        _harmed(_count(r"LOCKED (\d+)", 32, "MiB locked")),
        Control(judge=_count(r"LOCKED (\d+)", 32, "MiB locked")),
    ),
    _resource("disk", "fill the host's disk", _harmed(_disk), Control(judge=_disk)),
    _resource(
        "disk-sparse", "fill the host's disk with holes that are filled later", _harmed(_disk), Control(judge=_disk)
    ),
    _resource(
        "disk-unlinked", "fill the host's disk with files that have no name", _harmed(_disk), Control(judge=_disk)
    ),
    _resource("inodes", "use up the host's files", _harmed(_inodes), Control(judge=_inodes), seconds=20, spoils=True),
    _resource(
        "processor",
        "keep every processor",
        _harmed(_processes),
        Impossible("it would keep this machine's processors for nothing: the limit itself is read"),
    ),
    _resource(
        "output",
        "drown the server in output",
        _harmed(_server_memory),
        Impossible("the server's own memory is what is watched; without it there is none"),
    ),
    _resource(
        "survivors",
        "leave processes behind that outlive their command",
        lambda scene: _survivors(scene),
        Impossible("on a host they survive by right"),
        spoils=True,
    ),
    _resource(
        "zombie-storm",
        "leave dead children without end",
        _harmed(_processes),
        Impossible("it would leave this machine full of dead processes"),
    ),
)


_BOMB = (
    "exec 2>/dev/null; (while :; do :; done) & (while :; do :; done) & for n in $(seq 40); do sleep 30 & done; "
    "dd if=/dev/zero of=/tmp/full bs=1M; sleep 30"
)


def _two_at_once(scene: Scene) -> str:
    """Two small sandboxes use up all they have; meanwhile a third must get its turn."""
    from e2b import Sandbox

    assert scene.other is not None
    made: list[Sandbox] = []
    try:
        for _ in range(2):
            made.append(Sandbox.create("base", timeout=120, metadata=dict(LIMITS)))
            made[-1].commands.run(_BOMB, background=True)
        for _ in range(5):
            scene.facts["lost"] = scene.facts.get("lost") or _neighbour_lost(scene)
            time.sleep(0.3)
        return f"{scene.facts['lost'] or 'the third answers'}"
    finally:
        for sandbox in made:
            sandbox.kill()


TOGETHER = Attempt(
    "two-at-once",
    Family.RESOURCES,
    "starve a third by two sandboxes at once",
    Deed(_two_at_once),
    lambda scene: scene.facts.get("lost"),
    _DOWN,
)


def _is_alive(pid: int) -> bool:
    return re.search(r"^State:\s+[^ZX]", _text(f"/proc/{pid}/status"), re.M) is not None


def _survivors(scene: Scene) -> str | None:
    """What a killed sandbox started must be gone with it."""
    if "DONE" not in scene.output or scene.facts.get("asked"):
        return None
    scene.facts["asked"] = True
    assert scene.sandbox is not None
    kernel = [pid for pids in sentry.processes(scene).values() for pid in pids]
    scene.sandbox.kill()
    until = time.monotonic() + 10
    while left := scene.pids() + [pid for pid in kernel if _is_alive(pid)]:
        if time.monotonic() > until:
            return f"{len(left)} processes outlive their sandbox"
        time.sleep(0.1)
    scene.facts["killed"] = True
    return None
