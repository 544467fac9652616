"""Sockets that a process of the sandbox holds for whichever server runs: taken as copies, by pidfd.

Who holds them never uses them. So a port of the redirect can never be taken by user code, and what connects while no
server runs waits for the next one instead of being refused.

The holder may be the sandbox's own first process. What it has under a number is therefore looked at, before the gateway
accepts or receives on it: family, kind, the address that it is bound to, and the network that it was made in.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import socket
from collections.abc import Sequence

from atoll.isolation.base import EgressSockets
from atoll.isolation.linux.sys import syscalls

_SIOCGSKNS = 0x894C
"""ioctl: a descriptor of a socket's network namespace (linux/sockios.h)."""


def fetch(
    pidfd: int, descriptors: Sequence[int], tcp_port: int, dns_port: int, address: str = "127.0.0.1"
) -> EgressSockets:
    """Copies of what the process holds under these numbers: the listener and the DNS socket, on those ports.

    Raises OSError (ESRCH: it has ended), ValueError for what is not the socket that was made for it.
    """
    connections = _copy(pidfd, descriptors[0])
    try:
        _check(connections, pidfd, socket.SOCK_STREAM, (address, tcp_port))
        questions = _copy(pidfd, descriptors[1])
    except BaseException:
        connections.close()
        raise
    try:
        _check(questions, pidfd, socket.SOCK_DGRAM, (address, dns_port))
    except BaseException:
        connections.close()
        questions.close()
        raise
    return EgressSockets(connections, questions)


def _copy(pidfd: int, number: int) -> socket.socket:
    copied = syscalls.call("pidfd_getfd", pidfd, number, ctypes.c_uint(0), subject=f"descriptor {number} of its holder")
    try:
        return socket.socket(fileno=copied)
    except OSError:  # no socket at all
        os.close(copied)
        raise


def _check(held: socket.socket, pidfd: int, kind: int, place: tuple[str, int]) -> None:
    domain = held.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
    found = (domain, held.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE))
    if found != (socket.AF_INET, kind):
        raise ValueError(f"its holder has a socket of family {found[0]}, type {found[1]} in the place of the gateway's")
    if (bound := held.getsockname()) != place:
        raise ValueError(f"its holder has a socket bound to {bound} in the place of the gateway's")
    if kind == socket.SOCK_STREAM and not held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError("its holder has a connection in the place of the gateway's listener")
    if _network_of(held) != os.stat(f"/proc/{_pid_of(pidfd)}/ns/net").st_ino:
        raise ValueError("its holder has a socket of another network in the place of the gateway's")


def _network_of(held: socket.socket) -> int:
    namespace = fcntl.ioctl(held, _SIOCGSKNS)
    try:
        return os.fstat(namespace).st_ino
    finally:
        os.close(namespace)


def _pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}") as facts:
        found = re.search(r"^Pid:\t(\d+)$", facts.read(), re.M)
    if found is None:
        raise ProcessLookupError("its holder has ended")
    return int(found[1])
