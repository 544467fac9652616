"""Open a socket of a family, kind and protocol that the sandbox should not have."""

from __future__ import annotations

import socket

from inside import ARGUMENTS, hold

kept = socket.socket(*map(int, ARGUMENTS))
hold()
