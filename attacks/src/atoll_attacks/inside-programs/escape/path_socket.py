"""Reach a service of the host by a socket file."""

from __future__ import annotations

import socket

from inside import TARGET, W, attempt

for place in (W["socket"], f"/proc/{TARGET}/root{W['socket']}"):
    with socket.socket(socket.AF_UNIX) as s:
        if attempt(s.connect, place) is None:
            print(attempt(s.recv, 200))
