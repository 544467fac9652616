"""The process that forks the zygote's children: it does nothing else, so that a fork leaves it nothing to copy.

    zygote ── {owner, …} +[line, files of groups and meter] ──► fork server ── clone3(CLONE_PARENT) ──► child
           ◄── pid or error +[pidfd] ──┘        the child is the zygote's own: reaped there, and ended with its line

After a fork parent and child share all pages, and whoever writes to one first copies it. The zygote goes on to work
between two forks and had to copy 600 pages for each; this one waits for the next. It is forked from the zygote before
that has served anybody, and ends with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Callable, Sequence
from typing import NoReturn

from atoll.isolation.linux.cgroups.meter import Meter
from atoll.isolation.linux.sys import syscalls
from atoll.isolation.linux.sys.fork import Forked, fork_into, rewrite_command_line
from atoll.isolation.namespaces import messages, posture
from atoll.isolation.namespaces.closing import close_all_but

_REPLY = struct.Struct("=ii")
"""The child's pid, or 0 and an errno."""

BeginChild = Callable[[socket.socket, Sequence[int], Sequence[int], Meter], NoReturn]
"""(line to the zygote, its groups' files, its users' groups' files, its meter): what a child does, in the child."""


class ForkServerLost(Exception):
    """It has ended. So has the zygote's use."""


class ForkServer:
    """The zygote's end. Starts the process; `fileno` becomes readable when that is gone."""

    def __init__(self, begin_child: BeginChild) -> None:
        """Raises OSError."""
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _serve(theirs, begin_child)
            finally:
                os._exit(1)
        theirs.close()

    def fileno(self) -> int:
        return self._line.fileno()

    def fork(
        self, line: socket.socket, joins: Sequence[int], users: Sequence[int], meter: Meter, owner: int | None
    ) -> Forked:
        """A new child of the calling process, in new namespaces that belong to the host's id `owner` (None: its own).
        What is handed over stays the caller's too. Raises OSError (no fork), ForkServerLost."""
        asked = {"owner": owner, "joins": len(joins), "users": len(users), "meter": meter.names}
        try:
            messages.send(self._line, asked, (line.fileno(), *joins, *users, *meter.descriptors))
            reply, descriptors, *_ = socket.recv_fds(self._line, _REPLY.size, 1)
        except OSError as error:
            raise ForkServerLost from error
        if len(reply) != _REPLY.size:
            raise ForkServerLost
        pid, number = _REPLY.unpack(reply)
        if number:
            raise OSError(number, os.strerror(number))
        os.set_inheritable(descriptors[0], False)
        return Forked(pid, descriptors[0])

    def close(self) -> None:
        """Ends it."""
        self._line.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _serve(line: socket.socket, begin_child: BeginChild) -> NoReturn:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    close_all_but({0, 1, 2, line.fileno()})
    rewrite_command_line("atoll-zygote: forks")
    while True:
        body, descriptors = messages.receive(line)
        if body is None:
            os._exit(0)
        try:
            forked = fork_into(posture.NAMESPACES, owner=body["owner"], siblings=True)
        except OSError as error:
            line.send(_REPLY.pack(0, error.errno or 1))
        else:
            if forked.pid == 0:
                first, last = 1 + body["joins"], 1 + body["joins"] + body["users"]
                meter = Meter(dict(zip(body["meter"], descriptors[last:], strict=True)))
                joins, users = descriptors[1:first], descriptors[first:last]
                begin_child(socket.socket(fileno=descriptors[0]), joins, users, meter)
            socket.send_fds(line, [_REPLY.pack(forked.pid, 0)], [forked.pidfd])
            os.close(forked.pidfd)
        for descriptor in descriptors:
            os.close(descriptor)
