"""The host's side of an attempt: canaries that an attack would touch, and what the host sees of the attacker.

World   lives for a whole run: a secret file, a victim process, sockets, shared memory, a block device, the kernel's log
Scene   one attempt (or its control): its tag, what it printed, and how to find its processes from outside

Needs root on the host: the canaries are what only root may see or make.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from atoll_attacks.attempt import PROGRAMS, Program
from atoll_attacks.outside.network import Networks

if TYPE_CHECKING:
    from e2b import Sandbox

_LOOP_GET_FREE, _LOOP_SET_FD, _LOOP_CLEAR = 0x4C82, 0x4C00, 0x4C01
_LOOP_ATTEMPTS = 64
_IPC_CREAT, _IPC_RMID = 0o1000, 0
_LIBC = ctypes.CDLL(None, use_errno=True)


class World:
    """Every canary of one run; a context manager. Canaries that this machine cannot offer are left out."""

    def __init__(self, networks: Networks | None = None) -> None:
        self.networks = networks
        """Those around the server, where the run made them."""
        self.token = f"canary-{secrets.token_hex(16)}"
        """What no sandbox may ever see."""
        self._stack = contextlib.ExitStack()
        self._replacing = threading.Lock()
        self.directory = Path()
        self.victim: subprocess.Popen[bytes] | None = None
        self.places: dict[str, Any] = {}
        """Where the canaries are; told to every program."""
        self.data_dir: Path | None = None
        """The server's, where the run knows it."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._set_up(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _set_up(self, stack: contextlib.ExitStack) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="atoll-canary-", dir="/var/tmp"))
        stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        secret = self.directory / "secret"
        secret.write_text(self.token)
        programs = self.directory / "programs"
        programs.mkdir()
        for file in PROGRAMS.rglob("*.py"):
            shutil.copyfile(file, programs / file.name)
        drop = self.directory / "drop"
        drop.mkdir()
        script = self.directory / "agent"
        script.write_text(f"#!/bin/sh\necho $0 > {drop}/released\n")
        script.chmod(0o755)
        self.places = {"secret": str(secret), "drop": str(drop), "script": str(script), "host_pid": os.getpid()}
        if self.networks is not None:
            self.places["internet"] = self.networks.places
        stack.callback(self._end_victim)
        self.new_victim()
        for part in (self._sockets, self._shared_memory, self._dev_shm, self._kernel_log, self._loop_device):
            with contextlib.suppress(OSError):
                part(stack)
        self._file_handle(secret)

    # -- the victim ----------------------------------------------------------------------------------------------------

    def new_victim(self) -> None:
        """A host process with the token in its environment and the secret open as descriptor 9."""
        with self._replacing:
            if self.victim is None or self.victim.poll() is not None:
                self._start_victim()

    def _start_victim(self) -> None:
        descriptor = os.open(self.places["secret"], os.O_RDONLY)
        program = self.directory / "victim"
        if not program.exists():
            shutil.copy2(shutil.which("sleep") or "/bin/sleep", program)

        def give() -> None:
            os.dup2(descriptor, 9)
            os.set_inheritable(9, True)

        self.victim = subprocess.Popen(
            [str(program), "86400"], env={"SECRET": self.token}, close_fds=False, preexec_fn=give, cwd=self.directory
        )
        os.close(descriptor)
        self.places["victim"] = self.victim.pid

    def _end_victim(self) -> None:
        if self.victim is not None:
            with contextlib.suppress(ProcessLookupError):
                self.victim.kill()
            self.victim.wait()

    # -- what else a host has ------------------------------------------------------------------------------------------

    def _sockets(self, stack: contextlib.ExitStack) -> None:
        name = f"atoll-canary-{secrets.token_hex(4)}"
        path = self.directory / "socket"
        for address in (f"\0{name}", str(path)):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(address)
            listener.listen(8)
            threading.Thread(target=self._tell_everybody, args=(listener,), daemon=True).start()
        path.chmod(0o777)
        self.places |= {"abstract": name, "socket": str(path)}

    def _tell_everybody(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(self.token.encode())

    def _shared_memory(self, stack: contextlib.ExitStack) -> None:
        key = secrets.randbelow(0x7FFFFFFF)
        number = _LIBC.shmget(key, 4096, _IPC_CREAT | 0o666)
        if number < 0:
            raise OSError(ctypes.get_errno(), "shmget")
        stack.callback(_LIBC.shmctl, number, _IPC_RMID, None)
        _LIBC.shmat.restype = ctypes.c_void_p
        address = _LIBC.shmat(number, None, 0)
        ctypes.memmove(address, self.token.encode(), len(self.token))
        _LIBC.shmdt(ctypes.c_void_p(address))
        self.places |= {"shm_key": key, "shm_id": number}

    def _dev_shm(self, stack: contextlib.ExitStack) -> None:
        path = Path("/dev/shm") / f"atoll-canary-{secrets.token_hex(4)}"
        path.write_text(self.token)
        stack.callback(path.unlink, missing_ok=True)
        self.places["dev_shm"] = str(path)

    def _kernel_log(self, stack: contextlib.ExitStack) -> None:
        with open("/dev/kmsg", "w") as log:
            log.write(f"atoll: {self.token}\n")
        if self.token in kernel_log():
            self.places["kernel_log"] = True

    def _loop_device(self, stack: contextlib.ExitStack) -> None:
        image = self.directory / "disk"
        image.write_bytes(self.token.encode().ljust(65536, b"\0"))
        number, device = _attached_loop(image)
        stack.callback(os.close, device)
        stack.callback(fcntl.ioctl, device, _LOOP_CLEAR)
        found = os.fstat(device)
        self.places |= {"block": [os.major(found.st_rdev), os.minor(found.st_rdev)], "block_path": f"/dev/loop{number}"}

    def _file_handle(self, secret: Path) -> None:
        """The secret's handle, as name_to_handle_at(2) gives it: an attacker could guess it."""
        number = {"x86_64": 303, "aarch64": 264}.get(os.uname().machine)
        if number is None:
            return
        buffer = ctypes.create_string_buffer(8 + 128)
        ctypes.cast(buffer, ctypes.POINTER(ctypes.c_uint))[0] = 128
        mount = ctypes.c_int()
        if _LIBC.syscall(number, -100, os.fsencode(secret), buffer, ctypes.byref(mount), 0) == 0:
            length = ctypes.cast(buffer, ctypes.POINTER(ctypes.c_uint))[0]
            self.places["handle"] = buffer.raw[: 8 + length].hex()

    def snapshot(self) -> dict[str, object]:
        """Facts of the machine that an attack might change."""
        loaded = _text("/sys/kernel/kexec_loaded")
        return {
            "host name": os.uname().nodename,
            "domain name": _text("/proc/sys/kernel/domainname"),
            "clock": round(time.time() - time.monotonic(), 0),
            "kexec": loaded,
            "modules": _text("/proc/modules").count("\n"),
            "boot": _text("/proc/sys/kernel/random/boot_id"),
            "core pattern": _text("/proc/sys/kernel/core_pattern"),
            "swaps": _text("/proc/swaps").count("\n"),
        }


def _attached_loop(image: Path) -> tuple[int, int]:
    """(number, descriptor) of a loop device with `image`; other programs take free ones meanwhile. Raises OSError."""
    backing = os.open(image, os.O_RDWR)
    try:
        with open("/dev/loop-control") as control:
            for _ in range(_LOOP_ATTEMPTS):
                number = fcntl.ioctl(control, _LOOP_GET_FREE)
                device = os.open(f"/dev/loop{number}", os.O_RDWR)
                try:
                    fcntl.ioctl(device, _LOOP_SET_FD, backing)
                except OSError:
                    os.close(device)
                    continue
                return number, device
    finally:
        os.close(backing)
    raise OSError("no loop device is free")


def kernel_log() -> str:
    """The kernel's log as root reads it; empty where it cannot be read."""
    buffer = ctypes.create_string_buffer(1 << 20)
    length = _LIBC.klogctl(3, buffer, len(buffer))
    return buffer.raw[: max(0, length)].decode("utf-8", "replace")


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def new_tag() -> str:
    """For the scenes of one run."""
    return f"attempt-{secrets.token_hex(8)}"


@dataclass
class Scene:
    """One attempt as the host sees it. `sandbox` is None in a control."""

    world: World
    sandbox: Sandbox | None
    tag: str
    """In the command line of each of its programs, and in whatever it sends."""
    output: str = ""
    before: Mapping[str, object] = field(default_factory=dict)
    other: Sandbox | None = None
    """A neighbour, where the run has one."""
    running: bool = False
    """Whether the attempt's program still runs, as far as whoever started it knows."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What a deed remembers for its judge."""

    @property
    def arguments(self) -> list[str]:
        """What a program gets: its tag, and where the canaries are."""
        target = 1 if self.sandbox is not None else self.world.places["victim"]
        return [self.tag, json.dumps({**self.world.places, "target": target})]

    def pids(self) -> list[int]:
        """The attempt's Python processes, by host pid."""
        tag, found = self.tag.encode(), []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with contextlib.suppress(OSError), open(f"/proc/{entry}/cmdline", "rb") as source:
                    line = source.read()
                    if tag in line and b"python" in line.split(b"\0")[0]:
                        found.append(int(entry))
        return found

    def first_process(self) -> int | None:
        """The host pid of pid 1 in the attacker's pid namespace; in a control the victim's."""
        if self.sandbox is None:
            return int(self.world.places["victim"])
        for pid in self.pids():
            current = pid
            while current > 1:
                status = _text(f"/proc/{current}/status")
                fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
                inner = fields.get("NSpid", "").split()
                if len(inner) > 1 and inner[-1] == "1":
                    return current
                current = int(fields.get("PPid", "0") or 0)
        return None

    def descriptors(self) -> Iterator[tuple[int, int, str, os.stat_result, int]]:
        """(pid, number, link, stat, open flags) of every descriptor that the attempt holds."""
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for number in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError, ValueError):
                        place = f"/proc/{pid}/fd/{number}"
                        info = dict(
                            line.split(":\t", 1)
                            for line in _text(f"/proc/{pid}/fdinfo/{number}").splitlines()
                            if ":\t" in line
                        )
                        yield pid, int(number), os.readlink(place), os.stat(place), int(info.get("flags", "0"), 8)


def run_unwalled(scene: Scene, program: Program, output: int) -> subprocess.Popen[bytes]:
    """Starts a program on the host as root, in a mount namespace of its own so that its mounts stay its own."""
    place = scene.world.directory / "programs"
    networks = scene.world.networks
    there = networks.enter if networks is not None and program.policy else []
    python = [sys.executable, "-E", "-s", "-B", str(place / program.file.name)]
    return subprocess.Popen(
        [*there, "unshare", "--mount", "--propagation", "private", *python, *scene.arguments, *program.arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        cwd="/",
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a control's session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
