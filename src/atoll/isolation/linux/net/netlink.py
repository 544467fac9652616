"""Loopback with an extra address and a way out over it, by rtnetlink messages (no `ip` binary, no fork)."""

from __future__ import annotations

import os
import socket
import struct

_RTM_NEWLINK, _RTM_NEWADDR, _RTM_NEWROUTE = 16, 20, 24
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE, _NLM_F_EXCL = 1, 4, 0x400, 0x200
_IFF_UP = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 4, 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC = 4, 5, 7
_MAIN_TABLE, _PROTOCOL_STATIC, _SCOPE_LINK, _UNICAST = 254, 4, 253, 1
_NLMSG_ERROR = 2
_LOOPBACK_INDEX = 1


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags | _NLM_F_REQUEST | _NLM_F_ACK, sequence, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


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


def veth_pair(name: str, peer: str, peer_namespace: int, mtu: int) -> None:
    """Two connected interfaces, both down: `name` in this network namespace, `peer` in that of the descriptor.

    Raises OSError. What an end is called is the same in every sandbox: nobody but its own namespace sees it.
    """
    far = _link(0, 0) + _attribute(_IFLA_IFNAME, peer.encode() + b"\0")
    far += _attribute(_IFLA_MTU, struct.pack("=I", mtu)) + _attribute(
        _IFLA_NET_NS_FD, struct.pack("=I", peer_namespace)
    )
    data = _attribute(_IFLA_INFO_DATA, _attribute(_VETH_INFO_PEER, far))
    near = _link(0, 0) + _attribute(_IFLA_IFNAME, name.encode() + b"\0")
    near += _attribute(_IFLA_MTU, struct.pack("=I", mtu))
    near += _attribute(_IFLA_LINKINFO, _attribute(_IFLA_INFO_KIND, b"veth\0") + data)
    _ask(_message(_RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, 1, near), 1, name)


def address(interface: str, own: str, prefix: int) -> None:
    """Gives the interface an address and sets it up. Raises OSError."""
    index, packed = socket.if_nametoindex(interface), socket.inet_aton(own)
    add = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, 0, index)
    add += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    _ask(_message(_RTM_NEWADDR, _NLM_F_CREATE, 1, add), 1, own)
    up(interface)


def up(interface: str) -> None:
    """Sets the interface up; `lo` then has 127.0.0.1 by itself. Raises OSError."""
    _ask(_message(_RTM_NEWLINK, 0, 1, _link(socket.if_nametoindex(interface), _IFF_UP)), 1, interface)


def default_via(gateway: str, interface: str) -> None:
    """Everything that no other route knows goes to `gateway`, which is reached over `interface`. Raises OSError."""
    route = struct.pack("=8BI", socket.AF_INET, 0, 0, 0, _MAIN_TABLE, _PROTOCOL_STATIC, 0, _UNICAST, 0)
    route += _attribute(_RTA_OIF, struct.pack("=I", socket.if_nametoindex(interface)))
    route += _attribute(_RTA_GATEWAY, socket.inet_aton(gateway))
    _ask(_message(_RTM_NEWROUTE, _NLM_F_CREATE, 1, route), 1, f"default route over {interface}")


def _link(index: int, flags: int) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


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
