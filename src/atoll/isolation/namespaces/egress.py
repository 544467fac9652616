"""The way out of a sandbox, as far as its network namespace goes: routes, redirect, and the two sockets at their end.

born: install()  lo + default route + redirect, listener and DNS socket made   (before any user code can run)
live: the server takes copies of the two sockets from the first process, which keeps them (`linux/held_sockets.py`)
"""

from __future__ import annotations

import os
import socket

from atoll.isolation.linux.net import netlink, nft
from atoll.isolation.linux.sys import syscalls
from atoll.isolation.linux.sys.fork import fork_into
from atoll.isolation.namespaces import posture

_BACKLOG = 4096
_BATCH = nft.redirect_batch(posture.EGRESS_TCP_PORT, posture.EGRESS_DNS_PORT)


def install() -> tuple[socket.socket, socket.socket]:
    """In the sandbox's own network namespace, with `lo` up. Raises OSError; then there is no way out at all."""
    nft.install(_BATCH)
    # Bound to loopback: only then are answers translated back, and it is out of reach under the sandbox's other name.
    connections = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    questions = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    connections.bind(("127.0.0.1", posture.EGRESS_TCP_PORT))
    connections.listen(_BACKLOG)
    questions.bind(("127.0.0.1", posture.EGRESS_DNS_PORT))
    # Last: without the rules a route would send packets in a circle.
    netlink.default_over_loopback(posture.LOOPBACK_ADDRESS)
    return connections, questions


def why_not() -> str:
    """Tries it once in a throw-away child: "" where it works, else the kernel's reason. Raises OSError (no fork)."""
    reading, writing = os.pipe()
    pid, pidfd = fork_into(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNET)
    if pid == 0:
        try:
            netlink.loopback_up(posture.LOOPBACK_ADDRESS)
            install()
        except BaseException as error:
            os.write(writing, str(error).encode()[:512] or b"unknown")
        finally:
            os._exit(0)
    os.close(writing)
    try:
        return os.read(reading, 512).decode(errors="replace")
    finally:
        os.close(reading)
        os.waitpid(pid, 0)
        os.close(pidfd)
