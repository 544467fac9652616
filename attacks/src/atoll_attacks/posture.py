"""What a process in a sandbox of the namespaces tier is, compared with an expected list, as the host sees it.

A breach is any difference, also a harmless one: whoever changes the posture changes the list here, knowingly. The
control is a process without a wall, which must differ.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from atoll_attacks.attempt import Attempt, Control, Family, Judge, Program
from atoll_attacks.scene import Scene, _text

CAPABILITIES = 0x000405FB
"""chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service sys_chroot"""

MOUNTS = {
    "/": ("overlay", {"rw", "nodev"}),
    "/dev": ("tmpfs", {"rw", "nosuid", "noexec"}),
    "/dev/full": ("devtmpfs", {"rw"}),
    "/dev/null": ("devtmpfs", {"rw"}),
    "/dev/pts": ("devpts", {"rw", "nosuid", "noexec"}),
    "/dev/random": ("devtmpfs", {"rw"}),
    "/dev/shm": ("tmpfs", {"rw", "nosuid", "nodev"}),
    "/dev/tty": ("devtmpfs", {"rw"}),
    "/dev/urandom": ("devtmpfs", {"rw"}),
    "/dev/zero": ("devtmpfs", {"rw"}),
    "/proc": ("proc", {"rw", "nosuid", "nodev", "noexec"}),
    "/proc/sys": ("proc", {"ro", "nosuid", "nodev", "noexec"}),
    "/sys": ("tmpfs", {"ro", "nosuid", "nodev", "noexec"}),
}
"""Place → file system and options."""

MASKED_FILES = {
    "kcore", "keys", "key-users", "sysrq-trigger", "timer_list", "timer_stats", "latency_stats", "sched_debug", "kmsg",
    "kallsyms", "interrupts", "softirqs", "cmdline", "partitions", "diskstats", "modules",
    "buddyinfo", "schedstat", "zoneinfo",
}  # fmt: skip
MASKED_DIRECTORIES = {"acpi", "asound", "bus", "driver", "fs", "irq", "pressure", "scsi"}
SHOWN = {"cgroups", "cpuinfo", "loadavg", "meminfo", "stat", "swaps", "vmstat"}
"""Files of /proc that the guest keeps: on a file system of the sandbox's own, that nobody inside can write to."""
DEVICES = {"fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"}
_GVISOR = (("gvisor", "its processes are the Sentry's: the host sees none of them"),)


def _check(
    name: str, goal: str, differs: Callable[[Scene, int], str | None], user: str = "root", path: str = ""
) -> Attempt:
    """`differs(scene, pid)` says how process `pid`, that of a program which only waits if none is named, is not as
    expected."""

    def judge(scene: Scene) -> str | None:
        if (scene.sandbox is not None or path) and "HOLDING" not in scene.output:
            return None  # an interpreter that still starts has its modules open
        for pid in scene.pids():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if "State:\tZ" in _text(f"/proc/{pid}/status"):
                    continue
                found = differs(scene, pid)
                scene.facts["looked"] = True
                if found:
                    return found
        if not scene.pids() and "HOLDING" in scene.output and not scene.facts.get("looked"):
            return "the process was never seen by the host"
        return None

    program = Program(f"posture/{path or 'hold'}", user)
    return Attempt(name, Family.POSTURE, goal, program, judge, Control(), _GVISOR)


def _status(pid: int) -> dict[str, str]:
    return dict(re.findall(r"^(\w+):\t(.*)$", Path(f"/proc/{pid}/status").read_text(), re.M))


def _capabilities(own: int) -> Callable[[Scene, int], str | None]:
    def differs(scene: Scene, pid: int) -> str | None:
        status = _status(pid)
        found = {name: int(status[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
        expected = {"Inh": 0, "Prm": own, "Eff": own, "Bnd": CAPABILITIES, "Amb": 0}
        return None if found == expected else f"capabilities are {found}"

    return differs


def _guest_capabilities(scene: Scene, pid: int) -> str | None:
    first = scene.first_process()
    return None if first is None else _capabilities(CAPABILITIES)(scene, first)


def _filter(scene: Scene, pid: int) -> str | None:
    status = _status(pid)
    mode, filters = status.get("Seccomp"), status.get("Seccomp_filters", "1")
    return None if mode == "2" and filters == "1" else f"seccomp mode {mode}, {filters} filters"


def _namespace(kind: str) -> Callable[[Scene, int], str | None]:
    def differs(scene: Scene, pid: int) -> str | None:
        shared = os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}")
        # (In a control everything but the mount namespace is the host's, and that one is not pid 1's of the sandbox.)
        if scene.sandbox is None and kind == "mnt":
            return "shares no mount namespace with its victim, as it should not"
        return f"shares the host's {kind} namespace" if shared else None

    return differs


def _descriptors(scene: Scene, pid: int) -> str | None:
    found = {int(name): os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
    kinds = {number: link.partition(":")[0] for number, link in found.items()}
    fine = set(kinds) == {0, 1, 2} and kinds[1] == kinds[2] == "pipe" and kinds[0] in ("pipe", "/dev/null")
    return None if fine else f"descriptors are {found}"


def mount_of(line: str) -> tuple[str, tuple[str, set[str]]]:
    """A line of mountinfo as an entry of MOUNTS."""
    left, _, right = line.partition(" - ")
    fields = left.split()
    return fields[4], (right.split()[0], set(fields[5].split(",")) - {"relatime", "noatime"})


def _mounts(scene: Scene, pid: int) -> str | None:
    found = dict(map(mount_of, Path(f"/proc/{pid}/mountinfo").read_text().splitlines()))
    masks = {path for path in found if path.startswith("/proc/") and path != "/proc/sys"}
    rest = {path: kind for path, kind in found.items() if path not in masks}
    if rest != MOUNTS:
        return f"mounts are {rest}"
    extra = masks - {f"/proc/{name}" for name in MASKED_FILES | MASKED_DIRECTORIES | SHOWN}
    if extra:
        return f"mounted over {sorted(extra)}"
    missing = {f"/proc/{name}" for name in SHOWN & set(os.listdir("/proc"))} - masks
    return f"the machine's own {sorted(missing)} are seen" if missing else None


def _shown(scene: Scene, pid: int) -> str | None:
    """Nothing that shows the machine can be written, from whatever place."""
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        _, _, root, place, options, *_ = line.split()
        if root.startswith("/shown") and "ro" not in options.split(","):
            return f"{place} can be written"
    if scene.sandbox is None:
        return "the machine's own /proc/meminfo is seen"
    size = re.search(r"^MemTotal:\s+(\d+)", _text(f"/proc/{pid}/root/proc/meminfo"), re.M)
    own = re.search(r"^MemTotal:\s+(\d+)", _text("/proc/meminfo"), re.M)
    return None if size and own and size[1] != own[1] else "it sees the machine's memory"


def _masks(scene: Scene, pid: int) -> str | None:
    """A masked file is the null device, a masked directory is empty, /proc/sys cannot be written."""
    proc = Path(f"/proc/{pid}/root/proc")
    for name in sorted(MASKED_FILES | MASKED_DIRECTORIES):
        path = proc / name
        if path.is_dir() and any(path.iterdir()):
            return f"/proc/{name} shows {next(path.iterdir()).name}"
        if path.is_file():
            return f"/proc/{name} can be read"
    return None


def _identity_map(kind: str) -> Callable[[Scene, int], str | None]:
    def differs(scene: Scene, pid: int) -> str | None:
        rows = [tuple(map(int, line.split())) for line in Path(f"/proc/{pid}/{kind}_map").read_text().splitlines()]
        fine = len(rows) == 1 and rows[0][0] == 0 and rows[0][2] == 65536 and rows[0][1] >= 524288
        return None if fine else f"{kind}s are mapped as {rows}"

    return differs


def _network(scene: Scene, pid: int) -> str | None:
    names = re.findall(r"^\s*([^:\s]+):", Path(f"/proc/{pid}/net/dev").read_text(), re.M)
    if scene.sandbox is None:
        return f"is in a network with {names}, the host's"
    return None if names == ["lo"] else f"network devices are {names}"


def _group(scene: Scene, pid: int) -> str | None:
    """Memory and processes are limited by the group that it is in, where this machine has such groups."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "pids" in controllers.split(","):
            limit = _text(f"/sys/fs/cgroup/pids{path}/pids.max").strip()
            return None if limit.isdigit() else f"its pids limit is {limit or 'none'}"
        if not controllers and (found := _text(f"/sys/fs/cgroup{path}/pids.max").strip()):
            return None if found.isdigit() else f"its pids limit is {found}"
    return "no group limits its processes"


def _core(scene: Scene, pid: int) -> str | None:
    limit = re.search(r"^Max core file size\s+(\S+)\s+(\S+)", Path(f"/proc/{pid}/limits").read_text(), re.M)
    return None if limit is not None and limit.groups() == ("1", "1") else "core dumps are on"


def _devices(scene: Scene, pid: int) -> str | None:
    found = set(os.listdir(f"/proc/{pid}/root/dev"))
    return None if found == DEVICES else f"/dev differs by {sorted(found ^ DEVICES)}"


def _sys(scene: Scene, pid: int) -> str | None:
    sys = Path(f"/proc/{pid}/root/sys")
    if (top := os.listdir(sys)) != ["devices"]:
        return f"/sys shows {sorted(top)}"
    found = [str(path.relative_to(sys)) for path in sys.rglob("*") if not path.is_dir()]
    extra = set(found) - {f"devices/system/cpu/{name}" for name in ("online", "possible", "present")}
    return f"/sys shows {sorted(extra)[:5]}" if extra else None


def _host_name(scene: Scene, pid: int) -> str | None:
    if scene.sandbox is None:
        return f"is called {os.uname().nodename}, as the host"
    found = Path(f"/proc/{pid}/root/etc/hostname").read_text().strip()
    return f"is called {found}, as the host" if found == os.uname().nodename else None


def _guest_secrets(scene: Scene, pid: int) -> str | None:
    """The first process's environment holds nothing of the server's."""
    first = scene.first_process()
    if first is None:
        return None
    words = Path(f"/proc/{first}/environ").read_bytes()
    key = os.environ.get("E2B_API_KEY", "no such key").encode()
    if key in words or scene.world.token.encode() in words:
        return "the guest's environment holds secrets of the host"
    return None


def _memory_victim(scene: Scene, pid: int) -> str | None:
    """When memory runs out, user processes go before the guest."""
    first = scene.first_process()
    own, guest = (int(_text(f"/proc/{one}/oom_score_adj") or 0) for one in (pid, first))
    return None if own > guest else f"the guest's out-of-memory score is {guest}, a user process's {own}"


def _first_visible(scene: Scene, pid: int) -> str | None:
    """Neither owner nor mode of /proc/1 lets anyone inside look into the first process."""
    first = scene.first_process()
    if first is None:
        return None
    if scene.sandbox is None:
        return "a host process of the same user is open"
    owner = os.stat(f"/proc/{first}/environ").st_uid
    return None if owner == 0 else f"/proc/1/environ belongs to host user {owner}"


ATTEMPTS: tuple[Attempt, ...] = (
    _check("capabilities-of-root", "have more than the pinned capabilities", _capabilities(CAPABILITIES)),
    _check("capabilities-of-user", "have any capability as an ordinary user", _capabilities(0), "user"),
    _check("capabilities-of-guest", "find a guest with more than the pinned capabilities", _guest_capabilities),
    _check("seccomp", "run without the filter", _filter, "user"),
    *(
        _check(f"namespace-{kind}", f"share the host's {kind} namespace", _namespace(kind))
        for kind in ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")
    ),
    _check("descriptors", "inherit a descriptor", _descriptors, "user"),
    _check("mounts", "find a mount that is not on the list", _mounts),
    _check("masks", "read a masked file of /proc", _masks),
    _check("user-ids", "have ids of the host", _identity_map("uid")),
    _check("group-ids", "have groups of the host", _identity_map("gid")),
    _check("network-devices", "find a network device", _network),
    _check("limits", "run outside the sandbox's limits", _group, "user"),
    _check("core-dumps", "have the host handle a crash", _core, "user"),
    _check("core-limit", "let a crash feed a program of the host", _core, "user", "lower_core_limit"),
    _check("devices", "find a device that is not on the list", _devices),
    _check("shown-machine", "see the machine's memory, or write what is shown instead", _shown),
    _check("sysfs", "see the host's hardware", _sys),
    _check("host-name-seen", "see the host's name", _host_name),
    _check("guest-environment", "find secrets of the server in the guest", _guest_secrets),
    _check("guest-is-last-to-go", "have the guest ended because memory ran out", _memory_victim, "user"),
    _check("guest-is-opaque", "look into the guest", _first_visible),
)


def judged(attempt: Attempt) -> Judge:
    """The judge of one of these, for tests."""
    return attempt.judge
