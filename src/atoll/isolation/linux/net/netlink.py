"""Loopback with an extra address and a way out over it, by rtnetlink messages (no `ip` binary, no fork)."""

from __future__ import annotations

import os
import socket
import struct

_RTM_NEWLINK, _RTM_NEWADDR, _RTM_NEWROUTE = 16, 20, 24
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE = 1, 4, 0x400
_IFF_UP = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_OIF, _RTA_PREFSRC = 4, 7
_MAIN_TABLE, _PROTOCOL_STATIC, _SCOPE_LINK, _UNICAST = 254, 4, 253, 1
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
    _ask(_message(_RTM_NEWLINK, 0, 1, up) + _message(_RTM_NEWADDR, _NLM_F_CREATE, 2, add), 2, address)


def default_over_loopback(source: str) -> None:
    """Every address that is not this namespace's own is reached over `lo`, with `source` as sender. Raises OSError.

    Nothing leaves by that: it is what lets a redirect catch connections to anywhere.
    """
    route = struct.pack("=8BI", socket.AF_INET, 0, 0, 0, _MAIN_TABLE, _PROTOCOL_STATIC, _SCOPE_LINK, _UNICAST, 0)
    route += _attribute(_RTA_OIF, struct.pack("=I", _LOOPBACK_INDEX))
    route += _attribute(_RTA_PREFSRC, socket.inet_aton(source))
    _ask(_message(_RTM_NEWROUTE, _NLM_F_CREATE, 1, route), 1, "default route over lo")


def _ask(messages: bytes, answers: int, subject: str) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        link.send(messages)
        answered = 0
        while answered < answers:
            reply = link.recv(8192)
            while len(reply) >= 20:
                length, kind = struct.unpack_from("=IH", reply)
                error = struct.unpack_from("=i", reply, 16)[0] if kind == _NLMSG_ERROR else 0
                if error:
                    raise OSError(-error, os.strerror(-error), subject)
                answered += 1
                reply = reply[(length + 3) & ~3 :]
