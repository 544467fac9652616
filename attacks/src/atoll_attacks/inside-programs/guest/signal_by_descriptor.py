"""End the guest by making it the owner of a descriptor."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import time

from inside import TARGET, attempt

ours, theirs = socket.socketpair()
fcntl.fcntl(ours, 10, signal.SIGKILL)  # F_SETSIG
attempt(fcntl.fcntl, ours, 8, TARGET)  # F_SETOWN
attempt(fcntl.fcntl, ours, 15, struct.pack("ii", 1, TARGET))  # F_SETOWN_EX, a process
fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
theirs.send(b"x")
attempt(fcntl.fcntl, ours, 8, -TARGET)
theirs.send(b"x")
time.sleep(0.5)
