"""Connections into a sandbox: to the guest over its Unix socket, to any other port by a socket made in its network.

A socket belongs to the network namespace in which it was made, wherever it is used. One thread therefore enters the
sandbox's namespace, makes a socket and comes back (20 µs); the connect itself is ordinary work of the loop.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

from atoll.isolation.linux.net import guest_socket
from atoll.isolation.linux.net.network_thread import NetworkThread

_CONNECT_WITHIN_S = 10.0
_REFUSED = frozenset({errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EAFNOSUPPORT, errno.ETIMEDOUT})


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
