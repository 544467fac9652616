"""Set an option of a socket that only an administrator of the network may set: level, option and value."""

from __future__ import annotations

import socket

from inside import ARGUMENTS, hold

level, option, value = map(int, ARGUMENTS)
kept = socket.socket()
kept.setsockopt(level, option, value)
hold()
