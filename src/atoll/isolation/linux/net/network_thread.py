"""Sockets made in another process's network namespace, without ever moving the server itself there.

A socket belongs to the network namespace in which it was made, wherever it is used. One thread therefore enters the
namespace, makes a socket and comes back (20 µs).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

from atoll.isolation.linux.sys import syscalls
from atoll.isolation.linux.sys.syscalls import CLONE_NEWNET


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

    async def socket_in(self, pidfd: int, family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A non-blocking socket in the network of that process. Raises OSError (ESRCH: it has ended)."""
        if self._lost.is_set():  # a thread that could not come back is never used again
            self._lost.clear()
            self._pool.shutdown(wait=False)
            self._pool = self._new_pool()
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._make, pidfd, family, kind)

    def _make(self, pidfd: int, family: int, kind: int) -> socket.socket:
        if self._lost.is_set():
            raise OSError(errno.EAGAIN, "the thread for sandbox networks is being replaced")
        # The interpreter lock is held throughout: no other thread can be started with this one's namespace.
        syscalls.call_held("setns", pidfd, ctypes.c_int(CLONE_NEWNET), subject="sandbox network")
        try:
            return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        finally:
            try:
                syscalls.call_held("setns", self._home, ctypes.c_int(CLONE_NEWNET), subject="own network")
            except OSError:
                self._lost.set()
                raise
