"""Bringing up loopback with an extra address, by two rtnetlink messages in one datagram (no `ip` binary, no fork)."""

from __future__ import annotations

import socket
import struct

_RTM_NEWLINK, _RTM_NEWADDR = 16, 20
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE = 1, 4, 0x400
_IFF_UP = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NLMSG_ERROR = 2
_LOOPBACK_INDEX = 1


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags | _NLM_F_REQUEST | _NLM_F_ACK, sequence, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value


def loopback_up(address: str) -> None:
    """Sets `lo` up in this network namespace and adds `address`/32 to it. Raises OSError.

    /32 and not a whole subnet: a subnet's other addresses would count as local and be answered by the sandbox itself.
    """
    packed = socket.inet_aton(address)
    up = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, _LOOPBACK_INDEX, _IFF_UP, _IFF_UP)
    add = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, _LOOPBACK_INDEX)
    add += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        link.send(_message(_RTM_NEWLINK, 0, 1, up) + _message(_RTM_NEWADDR, _NLM_F_CREATE, 2, add))
        answered = 0
        while answered < 2:
            reply = link.recv(8192)
            while len(reply) >= 20:
                length, kind = struct.unpack_from("=IH", reply)
                error = struct.unpack_from("=i", reply, 16)[0] if kind == _NLMSG_ERROR else 0
                if error:
                    raise OSError(-error, "setting up loopback", address)
                answered += 1
                reply = reply[(length + 3) & ~3 :]
