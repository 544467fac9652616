"""Run in a fresh interpreter, as host root: becomes the program that serves one volume's contents, and can do no more.

What it is then: root of a user namespace of its own, whose ids are nobody's on the host; its root directory is the
volume; no network, nothing of the host's files; of capabilities those over the volume's files; no new privileges; a
filter of system calls under which nothing is ever started. What gets hold of it has the volume, which is the team's.

It gets connections one by one over its only inherited descriptor, and ends with that:

    server → program   connection{} +[socket]
    program → server   ready{}   failed{error}   idle{connections}: none is open, after so many
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import json
import os
import resource
import signal
import socket
from dataclasses import asdict, dataclass
from typing import NoReturn

from atoll import packets
from atoll.http1.server import HttpConnection
from atoll.isolation.linux.disk import mounts, volume
from atoll.isolation.linux.sys import caps, oom, seccomp, syscalls
from atoll.isolation.linux.sys.caps import Cap
from atoll.isolation.linux.sys.fork import fork_into, map_ids, rewrite_command_line
from atoll.isolation.linux.sys.seccomp import Rule
from atoll.isolation.namespaces import posture, system_calls
from atoll.model.tasks import OwnedTasks
from atoll.volumes.content import VolumeContent
from atoll.volumes.tree import Tree

CAPABILITIES = frozenset({Cap.CHOWN, Cap.DAC_OVERRIDE, Cap.FOWNER, Cap.FSETID})
"""Over the volume's files; elsewhere there is nothing."""
IDLE_S = 30.0
MEMORY_MIB = 256
_IDS = 65536
_OPEN_FILES = 1024
_STAGES = ("/mnt", "/srv", "/media", "/opt")
_PRELOAD = ("encodings.idna", "encodings.latin_1", "encodings.ascii", "concurrent.futures.thread", "stringprep")
# execve, execveat, ptrace, process_vm_readv, process_vm_writev, chroot, kcmp, pidfd_getfd, mknod, mknodat.
_NEEDLESS = {
    "x86_64": (59, 322, 101, 310, 311, 161, 312, 438, 133, 259),
    "aarch64": (221, 281, 117, 270, 271, 51, 272, 438, 33),
}


@dataclass(frozen=True, slots=True)
class Job:
    """What the program needs to know. `id_base`: the first of the host ids that stand for the volume's."""

    volume_id: str
    token_digest: str
    device: str
    id_base: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main(descriptor: int, job: str) -> NoReturn:
    """Called by `servers`, with the line to the server."""
    line = socket.socket(fileno=descriptor)
    try:
        for name in _PRELOAD:  # afterwards there is nothing to import from
            importlib.import_module(name)
        todo = Job(**json.loads(job))
        _confine(todo, descriptor, caps.last_cap())
        tree = Tree(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        asyncio.run(_serve(line, VolumeContent(todo.volume_id, todo.token_digest, tree)))
    except Exception as error:
        with contextlib.suppress(OSError):
            packets.send(line, packets.encode({"op": "failed", "error": f"{type(error).__name__}: {error}"}))
        os._exit(1)
    os._exit(0)


def _confine(job: Job, line: int, last_cap: int) -> None:
    if line > 3:
        syscalls.call("close_range", 3, line - 1, 0)
    syscalls.call("close_range", line + 1, 0x7FFFFFFF, 0)
    rewrite_command_line("atoll-volume")
    syscalls.prctl(syscalls.PR_SET_NAME, b"atoll-volume")
    oom.make_ordinary()
    os.setsid()
    syscalls.keep_capabilities_on_id_change()
    user = _user_namespace(job.id_base)
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS)
    mounts.make_private()
    stage = next(path for path in _STAGES if os.path.isdir(path) and not os.path.islink(path))
    mounted = volume.mount(job.device)
    mounts.shift_owners(mounted, user)
    mounts.attach_and_close(mounted, mounts.AT_FDCWD, stage)
    root = os.open(stage, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(null, 2)  # from here on nobody reads what it says
    mounts.enter_root(root)
    os.close(root)
    os.close(null)
    syscalls.call("setns", user, syscalls.CLONE_NEWUSER)
    os.close(user)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.umask(0o022)
    syscalls.join_new_session_keyring()
    resource.setrlimit(resource.RLIMIT_CORE, (posture.CORE_LIMIT, posture.CORE_LIMIT))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_MIB << 20, MEMORY_MIB << 20))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    caps.limit_bounding(CAPABILITIES, last_cap)
    caps.limit_own(CAPABILITIES)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    rules = [*posture.seccomp_rules(), *(Rule(number, errno.EPERM) for number in _NEEDLESS[syscalls.MACHINE])]
    allowed = system_calls.numbers(system_calls.ALLOWED)
    seccomp.install(seccomp.assemble(rules, system_calls.NEWEST_SYSCALL, allowed=allowed))
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)


def _user_namespace(id_base: int) -> int:
    """Of host ids that are nobody's; held by nothing else."""
    child = fork_into(syscalls.CLONE_NEWUSER, owner=id_base)
    if child.pid == 0:
        while True:
            signal.pause()
    try:
        map_ids(child.pid, id_base, _IDS)
        return os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        syscalls.pidfd_kill(child.pidfd)
        os.waitpid(child.pid, 0)
        os.close(child.pidfd)


async def _serve(line: socket.socket, content: VolumeContent) -> None:
    await _Server(line, content).run()


class _Server:
    """Takes connections until the line is closed."""

    def __init__(self, line: socket.socket, content: VolumeContent) -> None:
        self._line = line
        self._content = content
        self._loop = asyncio.get_running_loop()
        self._open: set[_Connection] = set()
        self._taken = 0
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._idle: asyncio.TimerHandle | None = None
        self._starting = OwnedTasks()

    async def run(self) -> None:
        self._line.setblocking(False)
        self._loop.add_reader(self._line.fileno(), self._readable)
        self._send({"op": "ready"})
        self._wait_idle()
        await self._ended

    def _send(self, body: dict[str, object]) -> None:
        try:
            packets.send(self._line, packets.encode(body))
        except OSError:
            self._end()

    def _readable(self) -> None:
        try:
            body, descriptors = packets.receive(self._line)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self._end()
            return
        if body is None:
            self._end()
            return
        for descriptor in descriptors:
            self._taken += 1
            self._starting.start(self._take(socket.socket(fileno=descriptor)))

    async def _take(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        await self._loop.connect_accepted_socket(lambda: _Connection(self, self._content, self._loop), sock)

    def entered(self, connection: _Connection) -> None:
        """A connection is open."""
        self._open.add(connection)
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def left(self, connection: _Connection) -> None:
        """It is not any more."""
        self._open.discard(connection)
        if not self._open:
            self._wait_idle()

    def _wait_idle(self) -> None:
        if self._idle is None:
            self._idle = self._loop.call_later(IDLE_S, self._say_idle)

    def _say_idle(self) -> None:
        self._idle = None
        if not self._open and not self._starting:
            self._send({"op": "idle", "connections": self._taken})
            self._wait_idle()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


class _Connection(HttpConnection):
    """As http1's, counted."""

    def __init__(self, server: _Server, content: VolumeContent, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(content, loop)
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.entered(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._server.left(self)
