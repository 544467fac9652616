"""Sockets that a process of the sandbox holds for whichever server runs: taken as copies, by pidfd.

Who holds them never uses them. So a port of the redirect can never be taken by user code, and what connects while no
server runs waits for the next one instead of being refused.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Sequence

from atoll.isolation.base import EgressSockets
from atoll.isolation.linux.sys import syscalls


def fetch(pidfd: int, descriptors: Sequence[int]) -> EgressSockets:
    """Copies of what the process holds under these numbers. Raises OSError (ESRCH: it has ended)."""
    connections = _copy(pidfd, descriptors[0])
    try:
        return EgressSockets(connections, _copy(pidfd, descriptors[1]))
    except BaseException:
        connections.close()
        raise


def _copy(pidfd: int, number: int) -> socket.socket:
    copied = syscalls.call("pidfd_getfd", pidfd, number, ctypes.c_uint(0), subject=f"descriptor {number} of its holder")
    return socket.socket(fileno=copied)
