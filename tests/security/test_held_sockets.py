"""What the gateway takes from a sandbox's first process is the very socket that was made for it, or nothing."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from atoll.isolation.linux.net import held_sockets
from atoll.isolation.linux.sys import syscalls
from support.host import requires

pytestmark = requires("root")


@pytest.fixture
def holder() -> Iterator[int]:
    """A pidfd of the process that holds them: this one."""
    pidfd = os.pidfd_open(os.getpid())
    yield pidfd
    os.close(pidfd)


def _listener() -> socket.socket:
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    made.listen()
    return made


def _receiver() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", 0))
    return made


def _elsewhere(make: Callable[[], socket.socket]) -> socket.socket:
    """The same, made in another network."""
    made: list[socket.socket] = []

    def work() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        from atoll.isolation.linux.net.netlink import loopback_up

        loopback_up("10.0.2.15")
        made.append(make())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0]


def _fetch(holder: int, first: socket.socket, second: socket.socket, ports: tuple[int, int] | None = None) -> None:
    tcp, dns = ports or (first.getsockname()[1], second.getsockname()[1])
    taken = held_sockets.fetch(holder, [first.fileno(), second.fileno()], tcp, dns)
    assert taken.connections.getsockname() == first.getsockname()
    taken.connections.close()
    taken.questions.close()


def test_the_two_sockets_are_taken_and_nothing_else_in_their_place(holder: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with _listener() as listener, _receiver() as receiver:
        _fetch(holder, listener, receiver)
        with pytest.raises(ValueError, match="bound to"):
            _fetch(holder, listener, receiver, (1, receiver.getsockname()[1]))
        with pytest.raises(ValueError, match="type 2"):
            _fetch(holder, receiver, receiver)
        with pytest.raises(ValueError, match="type 1"):
            _fetch(holder, listener, listener)
        with socket.create_connection(listener.getsockname()) as made, pytest.raises(ValueError, match="bound to"):
            _fetch(holder, made, receiver, (listener.getsockname()[1], receiver.getsockname()[1]))
        accepted, _ = listener.accept()
        with accepted, pytest.raises(ValueError, match="a connection"):
            _fetch(holder, accepted, receiver)
        with _elsewhere(_listener) as foreign, pytest.raises(ValueError, match="another network"):
            _fetch(holder, foreign, receiver)
        with _elsewhere(_receiver) as foreign, pytest.raises(ValueError, match="another network"):
            _fetch(holder, listener, foreign)
        with socket.socket(socket.AF_UNIX) as unix, pytest.raises(ValueError, match="family 1"):
            _fetch(holder, unix, receiver, (1, 2))
        reading, writing = os.pipe()
        with pytest.raises(OSError, match="socket"):
            held_sockets.fetch(holder, [reading, writing], 1, 2)
        os.close(reading)
        os.close(writing)
    assert len(os.listdir("/proc/self/fd")) == before, "what was refused is closed"
