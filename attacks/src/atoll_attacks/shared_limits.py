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

from atoll_attacks.attempt import Attempt, Control, Family, Impossible, Program
from atoll_attacks.scene import Scene, _text

_TERMINALS = 300
"""More than a sandbox may have, with what the machine itself opens meanwhile."""
_USER_OF_CONTROL = 54321

_PROBE = """
import ctypes, os, platform, struct, sys
if sys.argv[1:] not in ([], ["0"]):
    os.setgroups([]); os.setresgid(*[int(sys.argv[1])] * 3); os.setresuid(*[int(sys.argv[1])] * 3)
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
failed = []
if libc.inotify_init1(0) < 0:
    failed.append("watch")
mq_open, mq_unlink, sigqueue = (240, 241, 129) if platform.machine() == "x86_64" else (180, 181, 138)
name = b"probe-%d" % os.getpid()
if libc.syscall(mq_open, name, os.O_CREAT | os.O_RDWR, 0o600, struct.pack("8q", 0, 2, 64, 0, 0, 0, 0, 0)) < 0:
    failed.append("make a message queue")
libc.syscall(mq_unlink, name)
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {40})
for _ in range(4):
    if libc.syscall(sigqueue, os.getpid(), 40, struct.pack("iii", 40, 0, -1) + bytes(116)) < 0:
        failed.append("queue a signal")
        break
print("CANNOT", *failed, sep=", ") if failed else print("CAN ALL")
"""

_TAKE = """
kept = []
def take(most, act):
    got = 0
    try:
        while got < most:
            kept.append(act(got))
            got += 1
    except OSError as error:
        print(error, flush=True)
    return got
if TARGET != 1:
    os.setresgid(54321, 54321, 54321); os.setresuid(54321, 54321, 54321)
def inotify(_):
    number = libc.inotify_init1(0)
    if number < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    return number
def queue(n):
    shape = struct.pack("8q", 0, 10, 8192, 0, 0, 0, 0, 0)
    return call("mq_open", b"%s-%d" % (TAG.encode(), n), os.O_CREAT | os.O_RDWR, 0o600, shape)
signal.pthread_sigmask(signal.SIG_BLOCK, {40})
note = struct.pack("iii", 40, 0, -1) + bytes(116)
def pending(_):
    return call("rt_sigqueueinfo", os.getpid(), 40, note)
print("HOLDING", take(5000, inotify), "instances", take(250, queue), "queues", take(200000, pending), "signals",
      flush=True)
time.sleep(5)
"""

_TAKE_TERMINALS = """
kept = []
try:
    while len(kept) < 4000:
        kept.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
except OSError as error:
    print(error)
print("HOLDING", len(kept), "terminals", flush=True)
time.sleep(5)
"""


def _others_go_without(scene: Scene) -> str | None:
    """Looked at once, while the attempt holds what it got."""
    if "HOLDING" not in scene.output or scene.facts.get("looked"):
        return None
    scene.facts["looked"] = True
    return _host_goes_without() or (_neighbour_goes_without(scene) if scene.other is not None else None)


def _host_goes_without(user: int = 0) -> str | None:
    words = [sys.executable, "-I", "-c", _PROBE, str(user)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if "CAN ALL" in done.stdout:
        return None
    return f"the host's user {user}: {(done.stdout + done.stderr)[-200:].strip()}"


def _neighbour_goes_without(scene: Scene) -> str | None:
    assert scene.other is not None
    from e2b import PtySize

    step = "run a command"
    try:
        said = scene.other.commands.run(f"python3 -I - <<'END'\n{_PROBE}\nEND", timeout=20).stdout
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
        Program("hold(seconds=0.5)", "user"),
        _owner,
        Control(),
        (("gvisor", "its kernel counts for itself; the host's sees one process"),),
    ),
    Attempt(
        "counted-for-a-user",
        Family.RESOURCES,
        "leave others without watches, signals and message queues",
        Program(_TAKE, "user"),
        _others_go_without,
        Control(judge=lambda scene: _host_goes_without(_USER_OF_CONTROL) if "HOLDING" in scene.output else None),
    ),
    Attempt(
        "terminals",
        Family.RESOURCES,
        "leave others without terminals",
        Program(_TAKE_TERMINALS, "user"),
        _terminals,
        Impossible("it would leave this machine's programs without terminals"),
    ),
)
