"""Attempts to use up what the kernel counts for a user or for the whole machine, so that others go without.

While the attempt holds all that it could get, a neighbour must be able to watch a directory, open a terminal, run a
command, queue a signal and make a message queue, and the host's root must too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import sys

from atoll_attacks import sentry
from atoll_attacks.attempt import PROGRAMS, Attempt, Control, Family, Impossible, Program
from atoll_attacks.scene import Scene, _text

_TERMINALS = 300
"""More than a sandbox may have, with what the machine itself opens meanwhile."""
_USER_OF_CONTROL = 54321

_PROBE = PROGRAMS / "resources" / "probe_shared_limits.py"


def _others_go_without(scene: Scene) -> str | None:
    """Looked at once, while the attempt holds what it got."""
    if "HOLDING" not in scene.output or scene.facts.get("looked"):
        return None
    scene.facts["looked"] = True
    return _host_goes_without() or (_neighbour_goes_without(scene) if scene.other is not None else None)


def _host_goes_without(user: int = 0) -> str | None:
    words = [sys.executable, "-I", str(_PROBE), str(user)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if "CAN ALL" in done.stdout:
        return None
    return f"the host's user {user}: {(done.stdout + done.stderr)[-200:].strip()}"


def _neighbour_goes_without(scene: Scene) -> str | None:
    assert scene.other is not None
    from e2b import PtySize

    step = "run a command"
    try:
        said = scene.other.commands.run(f"python3 -I - <<'END'\n{_PROBE.read_text()}\nEND", timeout=20).stdout
        if "CAN ALL" not in said:
            return f"a neighbour: {said.strip()}"
        step = "watch a directory"
        scene.other.files.watch_dir("/tmp").stop()
        step = "open a terminal"
        scene.other.pty.create(PtySize(24, 80)).kill()
    except Exception as error:
        return f"a neighbour cannot {step}: {type(error).__name__} {error}"[:300]
    return None


def _terminals(scene: Scene) -> str | None:
    if scene.facts.get("looked"):
        return None
    now = int(_text("/proc/sys/kernel/pty/nr") or 0)
    before = scene.facts.setdefault("terminals", now)
    if now > before + _TERMINALS:
        return f"holds {now - before} of the machine's terminals"
    return _others_go_without(scene)


_MOST_FLOWS = 12000
"""Of the 40,000 that the attempt tries; what may begin in a second is a few hundred."""


def _flows(scene: Scene) -> str | None:
    """How many flows of its network the host remembers: nobody's memory is charged for them."""
    kernel = sentry.pid_of(scene)
    for pid in scene.pids() if kernel is None else [kernel]:
        words = ["nsenter", f"--net=/proc/{pid}/ns/net", "cat", "/proc/sys/net/netfilter/nf_conntrack_count"]
        counted = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
        if counted.isdigit() and int(counted) > _MOST_FLOWS:
            return f"the host remembers {counted} flows"
    return None


def _files(scene: Scene) -> str | None:
    """Nobody else may be left without files: what this sandbox has open is a part of what the machine allows."""
    now, _, most = (int(word) for word in _text("/proc/sys/fs/file-nr").split())
    before = scene.facts.setdefault("files", now)
    if now - before > most // 2:
        return f"{now - before} of {most} open files are one sandbox's"
    return _others_go_without(scene)


_NS_GET_OWNER_UID = 0xB704


def _owner(scene: Scene) -> str | None:
    """Whom the kernel counts for: the owner of the attempt's user namespace, and of each that it lies in."""
    libc = ctypes.CDLL(None, use_errno=True)
    for pid in scene.pids():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            first = re.search(r"^\s*0\s+(\d+)", _text(f"/proc/{pid}/uid_map"))
            namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
            try:
                owner = ctypes.c_uint()
                if libc.ioctl(namespace, _NS_GET_OWNER_UID, ctypes.byref(owner)) != 0:
                    return "the owner of its user namespace cannot be read"
            finally:
                os.close(namespace)
            if first is None or owner.value != int(first[1]) or owner.value == 0:
                return f"its user namespace belongs to the host's user {owner.value}"
    return None


ATTEMPTS: tuple[Attempt, ...] = (
    Attempt(
        "namespace-owner",
        Family.POSTURE,
        "be counted for the host's root",
        Program("posture/hold", "user"),
        _owner,
        Control(),
        (("gvisor", "its kernel counts for itself; the host's sees one process"),),
    ),
    Attempt(
        "counted-for-a-user",
        Family.RESOURCES,
        "leave others without watches, signals and message queues",
        Program("resources/take_shared_limits", "user"),
        _others_go_without,
        Control(judge=lambda scene: _host_goes_without(_USER_OF_CONTROL) if "HOLDING" in scene.output else None),
    ),
    Attempt(
        "terminals",
        Family.RESOURCES,
        "leave others without terminals",
        Program("resources/take_terminals", "user"),
        _terminals,
        Impossible("it would leave this machine's programs without terminals"),
    ),
    Attempt(
        "open-files",
        Family.RESOURCES,
        "leave others without open files",
        Program("resources/open_files", "user", timeout_s=30),
        _files,
        Impossible("it would leave this machine's programs without files"),
        small=True,
    ),
    Attempt(
        "tracked-flows",
        Family.RESOURCES,
        "have the host remember flows without end",
        Program("resources/tracked_flows", "user", timeout_s=30),
        _flows,
        Impossible("this machine's own network keeps no track of flows, or keeps it for everybody"),
    ),
)
