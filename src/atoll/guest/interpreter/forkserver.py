"""Python kernels forked from a process that has imported all they need. Owns that process; knows nothing of cells.

    fork ─► the fork server (`kernel_forkserver.py`, as the kernels' user) ─► a kernel, a child of the guest

A forked kernel costs a fraction of one that is started: it shares what both have imported. The fork server belongs to
the sandbox's user, who may do anything with it: a process is taken for a kernel when the operating system says that it
has that user and is our child, and every wait has an end. Who cannot have a fork starts a kernel the usual way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from atoll.guest.errors import GuestError
from atoll.guest.interpreter.kernelspecs import KernelSpec
from atoll.guest.pid1.reaper import Exit, Reaper
from atoll.guest.process import tree
from atoll.guest.process.spawn import CwdMissing, StartIn, spawn
from atoll.guest.process.users import User

_ANSWERS_WITHIN_S = 60.0
"""Its first answer comes when it has imported everything, on a machine with a hundred others."""
_LONGEST_ANSWER = 4096
_CREDENTIALS = struct.Struct("3i")
_READY, _GO = b"ready", b"go"
_LAUNCHER = ("-m", "ipykernel_launcher", "-f", "{connection_file}")

Begun = Callable[[int], bool]
"""Called with the pid of a kernel that waits to begin; False: it is not wanted any more."""


class NotForked(GuestError):
    """There is no such kernel, for whatever reason; nothing of it is left."""


class NotWanted(NotForked):
    """Nobody waits for it any more: no reason to try again."""


def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


_PROGRAM = (
    f"{_text('kernel_forkserver.py')}\nbegin({_text('kernel_libraries.py')!r}, {_text('kernel_startup.py')!r})\n"
).encode()


def can_fork(spec: KernelSpec) -> bool:
    """Whether it is a Python kernel that is started as ipykernel installs it."""
    return spec.argv[-len(_LAUNCHER) :] == _LAUNCHER


class ForkServer:
    """Forks kernels of one user and environment. The first fork starts its process, and the first after it is gone."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._channel: socket.socket | None = None
        self._pid = 0
        self._made_for: tuple[object, ...] = ()

    @property
    def is_running(self) -> bool:
        return self._channel is not None

    async def fork(
        self,
        spec: KernelSpec,
        connection_file: str,
        stderr: int,
        begun: Begun,
        *,
        user: User,
        env: Mapping[str, str],
        cwd: str,
        start_in: StartIn | None = None,
    ) -> None:
        """A new kernel of `spec` (`can_fork`); the rest is as in `spawn`. `begun` is called with its pid while it waits
        to begin: in that call the reaper can begin to watch it. Raises CwdMissing, NotForked."""
        async with self._turn:
            made_for = (spec.argv, user, dict(env))
            if made_for != self._made_for:
                self.end()
            while True:
                fresh = self._channel is None
                try:
                    if fresh:
                        self._start(spec, user, env, start_in)
                        self._made_for = made_for
                    request = json.dumps({"file": connection_file, "cwd": cwd}).encode()
                    return await self._ask(request, stderr, user, begun)
                except (NotWanted, asyncio.CancelledError):
                    self.end()
                    raise
                except (NotForked, OSError, TimeoutError) as error:
                    self.end()
                    if fresh:  # one that had served before may have ended in order
                        raise NotForked(str(error)) from error

    def end(self) -> None:
        """Ends its process; the kernels go on. Idempotent."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._pid:
            with contextlib.suppress(OSError):
                os.kill(self._pid, signal.SIGKILL)

    def _start(self, spec: KernelSpec, user: User, env: Mapping[str, str], start_in: StartIn | None) -> None:
        program, writing = os.pipe2(os.O_CLOEXEC)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            os.set_blocking(writing, False)  # it is shorter than a pipe
            os.write(writing, _PROGRAM)
            fds = (theirs.fileno(),)
            # The last word is for people who look for kernels.
            begin = ("-c", "exec(open(0, closefd=False).read())", str(fds[0]), "ipykernel_launcher")
            argv = [*spec.argv[: -len(_LAUNCHER)], *begin]
            pid = spawn(argv, user=user, env=env, cwd="/", stdin=program, pass_fds=fds, start_in=start_in)
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(program)
            os.close(writing)
            theirs.close()
        ours.setblocking(False)
        self._channel, self._pid = ours, pid

        def ended(_: Exit) -> None:
            if self._pid == pid:
                self._pid = 0
            if self._channel is ours:
                self.end()

        self._reaper.watch(pid, ended)

    async def _ask(self, request: bytes, stderr: int, user: User, begun: Begun) -> None:
        link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with link:
            link.setblocking(False)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            with theirs:
                assert self._channel is not None
                socket.send_fds(self._channel, [request], [stderr, theirs.fileno()])
            answered: asyncio.Future[None] = self._loop.create_future()

            def receive() -> None:
                self._loop.remove_reader(link)
                if answered.done():
                    return
                try:
                    _let_begin(link, user, begun)
                except (GuestError, OSError) as error:
                    answered.set_exception(error)
                else:
                    answered.set_result(None)

            self._loop.add_reader(link, receive)
            try:
                async with asyncio.timeout(_ANSWERS_WITHIN_S):
                    await answered
            finally:
                self._loop.remove_reader(link)


def _let_begin(link: socket.socket, user: User, begun: Begun) -> None:
    answer, ancillary, _, _ = link.recvmsg(_LONGEST_ANSWER, socket.CMSG_SPACE(_CREDENTIALS.size))
    if answer != _READY:
        raise CwdMissing(answer.decode("utf-8", "replace")) if answer else NotForked("the fork server has ended")
    credentials = [
        data for level, kind, data in ancillary if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
    ]
    if len(credentials) != 1 or len(credentials[0]) != _CREDENTIALS.size:
        raise NotForked("the kernel did not show who it is")
    pid, uid, _ = _CREDENTIALS.unpack(credentials[0])
    if uid != user.uid or tree.parent_of(pid) != os.getpid():
        raise NotForked("the kernel is not a child of the guest")
    if not begun(pid):
        raise NotWanted("nobody wants the kernel any more")
    with contextlib.suppress(OSError):  # it has died already, which the reaper reports
        link.send(_GO)
