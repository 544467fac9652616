"""What a gVisor sandbox is, compared with expected lists: its kernel's processes as the host sees them, and what that
kernel shows to a program inside.

As in `posture.py` a breach is any difference, also a harmless one. The first half is the wall; the second is what
stands before the guest. A control is a process without a wall, which must differ.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from atoll_attacks import sentry
from atoll_attacks.attempt import Attempt, Control, Family, Impossible, Program
from atoll_attacks.posture import _identity_map, _namespace, _status
from atoll_attacks.scene import Scene, _text

_ELSEWHERE = (("namespaces", "there is no gVisor in it; its own posture is compared with a list of its own"),)
_Differs = Callable[[Scene, int], str | None]

GOFER_CAPABILITIES = 0x4001F
"""chown dac_override dac_read_search fowner fsetid sys_chroot: over its own ids, to serve files as their owners."""

INSIDE_CAPABILITIES = "00000000000405fb"
"""chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service sys_chroot"""

INSIDE_MOUNTS = {
    "/": "9p", "/dev": "tmpfs", "/dev/.tty": "fuse", "/dev/pts": "devpts", "/dev/shm": "tmpfs", "/proc": "proc",
    "/sys": "sysfs",
    "/.atoll/guest": "9p", "/.atoll/io": "tmpfs",
    **{f"/proc/{name}": "tmpfs" for name in ("cpuinfo", "loadavg", "meminfo", "stat")},
    **{f"/sys/devices/system/cpu/{name}": "tmpfs" for name in ("online", "possible", "present")},
}  # fmt: skip
"""`/.atoll/io` is covered by an empty one; `/.atoll/guest` is read-only, and so are the files that the guest keeps over
gVisor's own. 9p: served by the gofer."""

INSIDE_DEVICES = {
    ".tty", "fd", "full", "fuse", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom",
    "zero",
}  # fmt: skip
"""`fuse` is gVisor's own, and needs a mount to be of use. `.tty` is the guest's: it has one name,
which leads its caller to the caller's own terminal (`isolation/gvisor/terminals.py`)."""

INSIDE_NETWORK = "eth0 lo eth0:0E02000A:00000000 eth0:00000000:0E02000A"
"""gVisor's own stack; the one neighbour, 10.0.2.14, is where the way out begins."""


# -- the wall ----------------------------------------------------------------------------------------------------------


def _kernel(name: str, goal: str, kinds: tuple[str, ...], differs: _Differs) -> Attempt:
    """Looks at the sentry or the gofer while a program runs inside; in a control at that program."""

    def judge(scene: Scene) -> str | None:
        if scene.sandbox is not None and "HOLDING" not in scene.output:
            return None
        if scene.sandbox is None:
            found = scene.pids()
        else:
            by_kind = sentry.processes(scene)
            found = [pid for kind in kinds for pid in by_kind[kind]]
            if not found and not scene.facts.get("looked"):
                return "its kernel was never seen by the host"
        for pid in found:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                difference = differs(scene, pid)
                scene.facts["looked"] = True
                if difference:
                    return difference
        return None

    return Attempt(name, Family.POSTURE, goal, Program("posture/hold"), judge, Control(), _ELSEWHERE)


def _without_capabilities(scene: Scene, pid: int) -> str | None:
    """What would bound them counts for nothing: it has no new privileges, and may start nothing."""
    status = _status(pid)
    found = {name: int(status[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Amb")}
    return f"capabilities are {found}" if any(found.values()) else None


def _knows_itself_only(scene: Scene, pid: int) -> str | None:
    rows = [tuple(map(int, line.split())) for line in Path(f"/proc/{pid}/uid_map").read_text().splitlines()]
    fine = len(rows) == 1 and rows[0][2] == 1 and rows[0][1] >= 524288
    return None if fine else f"uids are mapped as {rows}"


def _capabilities(most: int) -> _Differs:
    def differs(scene: Scene, pid: int) -> str | None:
        status = _status(pid)
        found = {name: int(status[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
        fine = found["Inh"] == found["Amb"] == 0 and not any(found[name] & ~most for name in ("Prm", "Eff", "Bnd"))
        return None if fine else f"capabilities are {found}"

    return differs


def _filtered(scene: Scene, pid: int) -> str | None:
    status = _status(pid)
    fine = status.get("Seccomp") == "2" and status.get("NoNewPrivs") == "1"
    return None if fine else f"seccomp mode {status.get('Seccomp')}, no_new_privs {status.get('NoNewPrivs')}"


def _owner(scene: Scene, pid: int) -> str | None:
    ids = {int(word) for name in ("Uid", "Gid") for word in _status(pid)[name].split()}
    return None if len(ids) == 1 and min(ids) >= 524288 else f"runs as {sorted(ids)} of the host"


def _empty_root(scene: Scene, pid: int) -> str | None:
    found = sorted(os.listdir(f"/proc/{pid}/root"))
    files = [name for name in found if not os.path.isdir(f"/proc/{pid}/root/{name}")]
    fine = set(found) <= {"proc", "etc"} and not files
    return None if fine else f"sees {found[:8]}"


def _only_its_mounts(scene: Scene, pid: int) -> str | None:
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    found = {line.split()[4] for line in lines}
    return None if found <= {"/", "/.atoll/io", "/.atoll/guest"} else f"mounts are {sorted(found)[:8]}"


def _limited(scene: Scene, pid: int) -> str | None:
    limit = _text(f"{sentry.group_of(pid, 'pids')}/pids.max").strip()
    return None if limit.isdigit() else f"its pids limit is {limit or 'none'}"


def _holder(scene: Scene, pid: int) -> str | None:
    """It has the way out and nothing else."""
    links = [os.readlink(f"/proc/{pid}/fd/{name}").partition(":")[0] for name in os.listdir(f"/proc/{pid}/fd")]
    fine = sorted(links) == ["/dev/null"] * 3 + ["socket"] * 2
    return (None if fine else f"holds {sorted(links)}") or _owner(scene, pid) or _capabilities(0)(scene, pid)


def _core(scene: Scene, pid: int) -> str | None:
    """A crash feeds no program of the host."""
    limit = re.search(r"^Max core file size\s+(\S+)\s+(\S+)", Path(f"/proc/{pid}/limits").read_text(), re.M)
    return None if limit is not None and limit.groups() == ("1", "1") else "core dumps are on"


# -- inside ------------------------------------------------------------------------------------------------------------


def _inside(
    name: str,
    goal: str,
    differs: Callable[[str], str | None],
    user: str = "root",
    control: Impossible | None = None,
    status: tuple[str, ...] = (),
) -> Attempt:
    """A program tells what it is; the comparison is made here, once it has ended.

    `status`: fields of its /proc/self/status; without it the program is called as the attempt.
    """

    def judge(scene: Scene) -> str | None:
        told = re.search(r"^TOLD (.*)$", scene.output, re.M)
        if told is None:
            return None if scene.running else "the program told nothing"
        return differs(told.group(1).strip())

    path = "posture/inside_status" if status else f"posture/{name.replace('-', '_')}"
    act = Program(path, user, status)
    return Attempt(name, Family.POSTURE, goal, act, judge, control or Control(), _ELSEWHERE)


def _equal(expected: str) -> Callable[[str], str | None]:
    return lambda told: None if told == expected else f"it is {told}, not {expected}"


def _same(expected: set[str], what: str) -> Callable[[str], str | None]:
    def differs(told: str) -> str | None:
        found = set(told.split())
        return None if found == expected else f"{what} differ by {sorted(found ^ expected)[:12]}"

    return differs


_CAPS = ("CapInh", "CapPrm", "CapEff", "CapBnd")
_NOTHING = "0" * 16

ATTEMPTS: tuple[Attempt, ...] = (
    _kernel(
        "sentry-capabilities",
        "have a kernel with a capability",
        ("sentry",),
        _without_capabilities,
    ),
    _kernel(
        "gofer-capabilities",
        "have a file server with more than the pinned capabilities",
        ("gofer",),
        _capabilities(GOFER_CAPABILITIES),
    ),
    _kernel("sentry-filter", "have a kernel that runs without a filter of the host's", ("sentry", "gofer"), _filtered),
    _kernel("sentry-owner", "have a kernel with an id of the host's", ("sentry", "gofer"), _owner),
    _kernel("sentry-ids", "have a kernel that knows another id than its own", ("sentry",), _knows_itself_only),
    _kernel("gofer-ids", "have a file server that knows ids of the host", ("gofer",), _identity_map("uid")),
    *(
        _kernel(
            f"sentry-{kind}",
            f"have a kernel that shares the host's {kind} namespace",
            ("sentry", "gofer"),
            _namespace(kind),
        )
        for kind in ("user", "mnt", "net", "ipc", "uts")
    ),
    _kernel("sentry-root", "have a kernel that sees files of the host", ("sentry",), _empty_root),
    _kernel("gofer-mounts", "have a file server that sees more than the sandbox's files", ("gofer",), _only_its_mounts),
    _kernel("sentry-limits", "have a kernel outside the sandbox's limits", ("sentry", "gofer"), _limited),
    _kernel("kernel-core-dumps", "have the host handle a crash of its kernel", ("sentry", "gofer", "holder"), _core),
    _kernel("holder-descriptors", "have the way out held by somebody who has more", ("holder",), _holder),
    _inside(
        "inside-capabilities-of-root",
        "have more than the pinned capabilities",
        _equal(f"{_NOTHING} {INSIDE_CAPABILITIES} {INSIDE_CAPABILITIES} {INSIDE_CAPABILITIES}"),
        status=_CAPS,
    ),
    _inside(
        "inside-capabilities-of-user",
        "have any capability as an ordinary user",
        _equal(f"{_NOTHING} {_NOTHING} {_NOTHING} {INSIDE_CAPABILITIES}"),
        "user",
        status=_CAPS,
    ),
    _inside("inside-filter", "run without the filter that guards the guest", _equal("2"), "user", status=("Seccomp",)),
    _inside(
        "inside-mounts",
        "find a mount that is not on the list",
        _same({f"{place}={kind}" for place, kind in INSIDE_MOUNTS.items()}, "mounts"),
    ),
    _inside(
        "inside-shared-directory",
        "reach the directory in which the guest's socket was made",
        _equal("nothing closed"),
        control=Impossible("there is no such directory without a sandbox"),
    ),
    _inside(
        "inside-shown-machine",
        "write what is shown of the machine",
        _equal("nothing"),
        control=Impossible("gVisor shows its own there without a sandbox"),
    ),
    _inside("inside-devices", "find a device that is not on the list", _same(INSIDE_DEVICES, "devices")),
    _inside(
        "inside-descriptors",
        "inherit a descriptor",
        lambda told: None if told in ("0 /dev/null pipe pipe", "0 pipe pipe pipe") else f"descriptors are {told}",
        "user",
    ),
    _inside("inside-network", "find a network device, or a route, that is not on the list", _equal(INSIDE_NETWORK)),
    _inside(
        "inside-kernel",
        "see the host's kernel",
        lambda told: f"sees {told}, the host's kernel" if told == os.uname().release else None,
    ),
    _inside(
        "inside-host-name",
        "see the host's name",
        lambda told: f"is called {told}, as the host" if told == os.uname().nodename else None,
    ),
)
