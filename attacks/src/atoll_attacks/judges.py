"""How the host tells that an attempt worked: by its canaries, or by the attacker's processes seen from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import stat
from collections.abc import Callable

from atoll_attacks.attempt import Judge
from atoll_attacks.scene import Scene, _text, kernel_log

_HARMLESS = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)}
"""null, zero, full, random, urandom, tty, ptmx; and every pseudo terminal (major 136 on)."""


def leaked(scene: Scene) -> str | None:
    """The host's secret was printed."""
    return "the host's secret was read" if scene.world.token in scene.output else None


def dropped(scene: Scene) -> str | None:
    """A file appeared in the host's drop directory."""
    found = os.listdir(scene.world.places["drop"])
    for name in found:
        os.unlink(os.path.join(scene.world.places["drop"], name))
    return f"made {', '.join(found)} on the host" if found else None


def killed(scene: Scene) -> str | None:
    """The victim on the host is dead or stopped."""
    victim = scene.world.victim
    if victim is None:
        return None
    if victim.poll() is not None:
        return f"a host process was ended by signal {-victim.returncode}"
    state = re.search(r"^State:\s+(\w)", _text(f"/proc/{victim.pid}/status"), re.M)
    if state is not None and state.group(1) in "Tt":
        victim.send_signal(signal.SIGCONT)
        return "a host process was stopped"
    return None


def holds(pattern: str) -> Judge:
    """The attempt holds a kernel object: the link of one of its descriptors matches, and not by its program's name."""

    def judge(scene: Scene) -> str | None:
        for _, _, link, _, _ in scene.descriptors():
            if re.search(pattern, link) and not link.endswith(".py"):
                return f"holds {link}"
        return None

    return judge


def may_write(path: str) -> Judge:
    """The attempt has this file of the kernel open for writing, and it is no mask."""

    def judge(scene: Scene) -> str | None:
        for _, _, link, found, flags in scene.descriptors():
            if link.endswith(path) and flags & os.O_ACCMODE and stat.S_ISREG(found.st_mode):
                return f"holds {link} open for writing"
        return None

    return judge


def may_read(path: str) -> Judge:
    """The attempt has this file of the kernel open, and it is no mask."""

    def judge(scene: Scene) -> str | None:
        for _, _, link, found, flags in scene.descriptors():
            if link.endswith(path) and not flags & os.O_PATH and stat.S_ISREG(found.st_mode):
                return f"holds {link}"
        return None

    return judge


def holds_device(scene: Scene) -> str | None:
    """The attempt has a device open that is not one of the harmless ones."""
    for _, _, link, found, flags in scene.descriptors():
        if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
            major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
            if (major, minor) not in _HARMLESS and not 136 <= major <= 143 and not flags & os.O_PATH:
                return f"holds the device {major}:{minor} ({link})"
    return None


def holds_socket(*families: int, protocol: int | None = None) -> Judge:
    """The attempt has a socket of one of these families (and protocol)."""

    def judge(scene: Scene) -> str | None:
        for pid, number, link, _, _ in scene.descriptors():
            if not link.startswith("socket:"):
                continue
            with contextlib.suppress(OSError), _stolen(pid, number) as found:
                family = found.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
                spoken = found.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
                if family in families and (protocol is None or spoken == protocol):
                    return f"holds a socket of family {family}, protocol {spoken}"
        return None

    return judge


def holds_option(level: int, option: int, value: int) -> Judge:
    """The attempt has a socket on which this option has this value."""

    def judge(scene: Scene) -> str | None:
        for pid, number, link, _, _ in scene.descriptors():
            if link.startswith("socket:"):
                with contextlib.suppress(OSError), _stolen(pid, number) as found:
                    if found.getsockopt(level, option) == value:
                        return f"set the socket's option {option} of {level} to {value}"
        return None

    return judge


def _stolen(pid: int, number: int) -> socket.socket:
    """A duplicate of another process's socket."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        descriptor = libc.syscall(438, pidfd, number, 0)  # pidfd_getfd
    finally:
        os.close(pidfd)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return socket.socket(fileno=descriptor)


def holds_what_target_holds(scene: Scene) -> str | None:
    """The attempt shares an open socket or file of the target (pid 1; in a control the victim)."""
    first = scene.first_process()
    if first is None:
        return None
    theirs = set()
    for name in os.listdir(f"/proc/{first}/fd"):
        with contextlib.suppress(OSError):
            seen = os.stat(f"/proc/{first}/fd/{name}")
            if not stat.S_ISCHR(seen.st_mode):
                theirs.add((seen.st_dev, seen.st_ino))
    for _, number, link, found, _ in scene.descriptors():
        if number > 2 and (found.st_dev, found.st_ino) in theirs:
            return f"holds {link} of its target"
    return None


def holds_program_of_target(scene: Scene) -> str | None:
    """The attempt has the target's program, a file of the host, open for writing."""
    first = scene.first_process()
    if first is None:
        return None
    program = os.stat(f"/proc/{first}/exe")
    for _, _, link, found, flags in scene.descriptors():
        if (found.st_dev, found.st_ino) == (program.st_dev, program.st_ino) and flags & os.O_ACCMODE:
            return f"holds {link} open for writing"
    return None


def new_namespace(kind: str) -> Judge:
    """The attempt's processes are in more than one namespace of this kind."""

    def judge(scene: Scene) -> str | None:
        found = set()
        for pid in scene.pids():
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
        return f"made a {kind} namespace" if len(found) > 1 else None

    return judge


def host_identity(scene: Scene) -> str | None:
    """A process of the attempt has an id that belongs to the host."""
    for pid in scene.pids():
        for line in re.findall(r"^[UG]id:\t(.*)$", _text(f"/proc/{pid}/status"), re.M):
            low = [int(one) for one in line.split() if int(one) < 65536]
            if low:
                return f"runs with the host's id {low[0]}"
    return None


def mounted(scene: Scene) -> str | None:
    """A mount of the attempt's own is in its table, or one of its masks is gone."""
    for pid in scene.pids():
        if scene.tag in _text(f"/proc/{pid}/mountinfo"):
            return "mounted a file system"
    return None


def traced(scene: Scene) -> str | None:
    """The target has a tracer."""
    first = scene.first_process()
    found = re.search(r"^TracerPid:\s+(\d+)", _text(f"/proc/{first}/status"), re.M)
    return "traces its target" if found is not None and found.group(1) != "0" else None


def memory_open(scene: Scene) -> str | None:
    """The target's memory is open in the attempt."""
    for _, _, link, _, flags in scene.descriptors():
        if re.search(r"/mem$", link) and not flags & os.O_PATH:
            return f"holds {link}"
    return None


def wrote_kernel_log(scene: Scene) -> str | None:
    """The attempt's tag is in the kernel's log."""
    return "wrote into the host's kernel log" if scene.tag in kernel_log() else None


def changed(*names: str) -> Judge:
    """A fact of the machine is another than before."""

    def judge(scene: Scene) -> str | None:
        now = scene.world.snapshot()
        for name in names:
            before = scene.before.get(name)
            late = name == "clock" and isinstance(before, float) and abs(float(str(now[name])) - before) < 3
            if now[name] != before and not late:
                return f"changed the host's {name}"
        return None

    return judge


def printed(words: Callable[[Scene], str]) -> Judge:
    """The attempt printed something that only the host knows."""

    def judge(scene: Scene) -> str | None:
        found = words(scene).strip()
        return f"learnt {found[:40]!r}" if found and found in scene.output else None

    return judge


def guest_lost(scene: Scene) -> str | None:
    """The sandbox takes no command any more. (In a control: the victim is dead or stopped.)"""
    if scene.sandbox is None:
        return killed(scene)
    try:
        done = scene.sandbox.commands.run("echo here", user="root", timeout=20, request_timeout=25)
    except Exception as error:
        return f"the sandbox answers no more: {type(error).__name__} {error}"[:200]
    return None if done.stdout == "here\n" else "the sandbox answers wrongly"
