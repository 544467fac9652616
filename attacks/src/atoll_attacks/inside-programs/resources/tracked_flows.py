"""Have the host remember flows, as many as there are: datagrams to every address, inside and outside."""

from __future__ import annotations

import contextlib
import socket

from inside import hold

sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(20000):
    for network, port in (("198.18", 53), ("198.18", 123), ("127.1", 1 + number)):
        with contextlib.suppress(OSError):
            sender.sendto(b"x", (f"{network}.{number >> 8 & 255}.{number & 255}", port))
hold()
