"""Open raw sockets, and sockets of protocols that lie about in the kernel or would be loaded into it."""

from __future__ import annotations

import socket

from inside import attempt, hold

KINDS = ((3, 1), (3, 58), (3, 255), (1, 132), (5, 132), (5, 0), (6, 33), (2, 115), (2, 136))
"""(type, protocol): ICMP, ICMPv6 and anything by hand; SCTP twice and by its type alone; DCCP, L2TP, UDP-Lite."""

hold([attempt(socket.socket, family, *kind) for family in (socket.AF_INET, socket.AF_INET6) for kind in KINDS])
