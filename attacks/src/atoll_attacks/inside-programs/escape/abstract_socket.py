"""Reach a service of the host by an abstract name."""

from __future__ import annotations

import socket

from inside import W

with socket.socket(socket.AF_UNIX) as s:
    s.connect("\0" + W["abstract"])
    print(s.recv(200))
