"""Connections into a sandbox: to the guest over its Unix socket, to any other port by a socket born in its network.

A socket belongs to the network namespace in which it was made, whoever uses it later. One thread therefore enters the
sandbox's namespace, makes a socket and comes back (20 µs); the connect itself is ordinary work of the loop.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from atoll.isolation.base import CONTROL_PORT, PREAMBLE
from atoll.isolation.linux import guest_socket, syscalls
from atoll.isolation.linux.syscalls import CLONE_NEWNET
from atoll.model.sandbox import ENVD_PORT, INTERPRETER_PORT

GUEST_PORTS = frozenset({CONTROL_PORT, ENVD_PORT, INTERPRETER_PORT})
_CONNECT_WITHIN_S = 10.0
_REFUSED = frozenset({errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EAFNOSUPPORT, errno.ETIMEDOUT})


class NetworkThread:
    """The one thread that changes its network namespace. Others, above all the loop's, never do."""

    def __init__(self) -> None:
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._lost = threading.Event()
        self._pool = self._new_pool()

    @staticmethod
    def _new_pool() -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "atoll-netns")

    def close(self) -> None:
        """No more sockets after this."""
        self._pool.shutdown(wait=True)
        os.close(self._home)

    async def socket_in(self, pidfd: int, family: int) -> socket.socket:
        """A non-blocking TCP socket in the network of that process. Raises OSError (ESRCH: it has ended)."""
        if self._lost.is_set():  # a thread that could not come back is never used again
            self._lost.clear()
            self._pool.shutdown(wait=False)
            self._pool = self._new_pool()
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._make, pidfd, family)

    def _make(self, pidfd: int, family: int) -> socket.socket:
        if self._lost.is_set():
            raise OSError(errno.EAGAIN, "the thread for sandbox networks is being replaced")
        # The interpreter lock is held throughout: no other thread can be started with this one's namespace.
        syscalls.call_held("setns", pidfd, ctypes.c_int(CLONE_NEWNET), subject="sandbox network")
        try:
            return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        finally:
            try:
                syscalls.call_held("setns", self._home, ctypes.c_int(CLONE_NEWNET), subject="own network")
            except OSError:
                self._lost.set()
                raise


def bind_guest_socket(path: Path) -> socket.socket:
    """The listener that the guest will inherit. An older socket file is replaced. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        path.unlink(missing_ok=True)
        with guest_socket.ShortAddress(path) as address:
            listener.bind(address.text)
        os.chmod(path, 0o600)
        listener.listen(4096)
    except OSError:
        listener.close()
        raise
    return listener


async def connect_guest(path: Path, port: int) -> socket.socket:
    """A connection to the guest with the preamble sent. Raises OSError."""
    return await guest_socket.connect(path, PREAMBLE.format(port=port).encode())


async def connect_port(thread: NetworkThread, pidfd: int, port: int) -> socket.socket | None:
    """A connection to what listens on `port` inside, on IPv4 or IPv6 loopback; None if nothing does. Raises OSError."""
    loop = asyncio.get_running_loop()
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            connection = await thread.socket_in(pidfd, family)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                continue
            raise
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.wait_for(loop.sock_connect(connection, (host, port)), _CONNECT_WITHIN_S)
        except OSError as error:  # TimeoutError is one
            connection.close()
            if not isinstance(error, TimeoutError) and error.errno not in _REFUSED:
                raise
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    return None
