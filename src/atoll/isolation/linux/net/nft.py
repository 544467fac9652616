"""The redirect that makes a sandbox's way out lead to the gateway: nftables rules as one netlink batch.

Owns the rule set and its encoding; knows nothing of policy. In the sandbox's network namespace there is only `lo` with
a default route over it, so every connection to anywhere is delivered locally; these rules turn

    tcp to anywhere else   → the gateway's TCP listener  (REDIRECT; the original destination stays readable)
    udp/53 to anywhere     → the gateway's DNS socket
    anything else          → rejected at once with ICMP "administratively prohibited" (no time-outs for QUIC, NTP, ping)

as `nft` would write them:

    table ip atoll {
      chain raw    { type filter hook output priority -300; policy accept;
        ip saddr 127.0.0.1 tcp sport :TCP accept
        ip saddr 127.0.0.1 udp sport :DNS accept
        fib daddr type local notrack accept
        tcp flags & (syn | ack) == syn limit rate over 500/second burst 2000 drop
        meta l4proto tcp accept
        udp dport 53 limit rate over 300/second burst 1000 drop
        udp dport 53 accept
        notrack }
      chain out    { type nat hook output priority -100; policy accept;
        fib daddr type local return
        meta l4proto tcp redirect to :TCP
        udp dport 53 redirect to :DNS }
      chain filter { type filter hook output priority 0; policy drop;
        fib daddr type local accept
        ct status dnat accept
        reject with icmp type admin-prohibited }
    }

The chain `raw` bounds what the kernel remembers of flows: those entries are nobody's memory, and a sandbox could have
262144 of them. Only flows that are redirected have any, and of those only so many begin in a second (a SYN too many is
sent again by its sender, as on a busy line); `SHORT_MEMORY` has them forgotten soon after their end.

The batch is built once and replayed in 0.1 ms per sandbox; the `nft` program is not needed. Numbers are those of
linux/netfilter/nf_tables.h. IPv6 has no address but ::1 in the sandbox, so it needs no rules: it fails at once.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Sequence

NETLINK_NETFILTER = 12
_NFNL_SUBSYS_NFTABLES = 10
_MSG_BATCH_BEGIN, _MSG_BATCH_END = 0x10, 0x11
_NEWTABLE, _NEWCHAIN, _NEWRULE = 0, 3, 6
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_NLMSG_ERROR = 2
_NESTED = 0x8000

_HOOK_PREROUTING, _HOOK_INPUT, _HOOK_FORWARD, _HOOK_OUTPUT = 0, 1, 2, 3
_ACCEPT, _DROP, _RETURN = 1, 0, -5 & 0xFFFFFFFF
_REG_VERDICT, _REG_1 = 0, 1
_RTN_LOCAL = 2
_IPS_DST_NAT = 0x20


SHORT_MEMORY = {
    "nf_conntrack_udp_timeout": 10, "nf_conntrack_udp_timeout_stream": 15, "nf_conntrack_tcp_timeout_syn_sent": 15,
    "nf_conntrack_tcp_timeout_syn_recv": 15, "nf_conntrack_tcp_timeout_fin_wait": 15,
    "nf_conntrack_tcp_timeout_last_ack": 10, "nf_conntrack_tcp_timeout_time_wait": 10,
    "nf_conntrack_tcp_timeout_close_wait": 60,
}  # fmt: skip
"""Files of /proc/sys/net/netfilter in the sandbox's network namespace, and seconds. All ends of a flow are on this
machine: nothing of it is on its way for longer."""

_NEW_CONNECTIONS, _QUESTIONS = (500, 2000), (300, 1000)
"""A second, and at once: what the gateway takes of one sandbox. (Old entries go when the kernel comes to them, which
may be a minute after their time: 60,000 in the worst case, 20 MiB.)"""
_TCP_SYN, _TCP_ACK = 0x02, 0x10


def _attr(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + b"\0" * (-length % 4)


def _nest(kind: int, *children: bytes) -> bytes:
    return _attr(kind | _NESTED, b"".join(children))


def _be32(kind: int, value: int) -> bytes:
    return _attr(kind, struct.pack(">I", value))


def _text(kind: int, value: str) -> bytes:
    return _attr(kind, value.encode() + b"\0")


def _expression(name: str, *data: bytes) -> bytes:
    return _nest(1, _text(1, name), _nest(2, *data))


def _value(kind: int, raw: bytes) -> bytes:
    return _nest(kind, _attr(1, raw))


def _fib_local() -> bytes:
    """fib daddr type → reg 1, compared with "local"."""
    load = _expression("fib", _be32(1, _REG_1), _be32(2, 3), _be32(3, 2))  # dreg, result=ADDRTYPE, flags=DADDR
    return load + _equals(struct.pack("=I", _RTN_LOCAL))


def _equals(raw: bytes, operator: int = 0) -> bytes:
    return _expression("cmp", _be32(1, _REG_1), _be32(2, operator), _value(3, raw))


def _l4proto(number: int) -> bytes:
    return _expression("meta", _be32(1, _REG_1), _be32(2, 16)) + _equals(bytes([number]))


def _dport(port: int) -> bytes:
    load = _expression("payload", _be32(1, _REG_1), _be32(2, 2), _be32(3, 2), _be32(4, 2))  # transport header + 2
    return load + _equals(struct.pack(">H", port))


def _from_loopback(sport: int) -> bytes:
    address = _expression("payload", _be32(1, _REG_1), _be32(2, 1), _be32(3, 12), _be32(4, 4))  # network header + 12
    port = _expression("payload", _be32(1, _REG_1), _be32(2, 2), _be32(3, 0), _be32(4, 2))
    return address + _equals(socket.inet_aton("127.0.0.1")) + port + _equals(struct.pack(">H", sport))


def _first_of_a_connection() -> bytes:
    flags = _expression("payload", _be32(1, _REG_1), _be32(2, 2), _be32(3, 13), _be32(4, 1))
    mask = _expression(
        "bitwise",
        _be32(1, _REG_1),
        _be32(2, _REG_1),
        _be32(3, 1),
        _value(4, bytes([_TCP_SYN | _TCP_ACK])),
        _value(5, bytes([0])),
    )
    return flags + mask + _equals(bytes([_TCP_SYN]))


def _over(rate: tuple[int, int]) -> bytes:
    per_second, burst = rate
    limits = [_attr(1, struct.pack(">Q", per_second)), _attr(2, struct.pack(">Q", 1)), _be32(3, burst), _be32(4, 0)]
    return _expression("limit", *limits, _be32(5, 1))  # flag 1: matches what is over


def _notrack() -> bytes:
    return _nest(1, _text(1, "notrack"))


def _verdict(code: int) -> bytes:
    return _expression("immediate", _be32(1, _REG_VERDICT), _nest(2, _nest(2, _be32(1, code))))


def _redirect(port: int) -> bytes:
    load = _expression("immediate", _be32(1, _REG_1), _value(2, struct.pack(">H", port)))
    return load + _expression("redir", _be32(1, _REG_1), _be32(2, _REG_1), _be32(3, 2))


def _redirect_home() -> bytes:
    return _expression("redir", _be32(3, 0))


def _is_redirected() -> bytes:
    load = _expression("ct", _be32(1, _REG_1), _be32(2, 2))  # key: status
    mask = _expression(
        "bitwise",
        _be32(1, _REG_1),
        _be32(2, _REG_1),
        _be32(3, 4),
        _value(4, struct.pack("=I", _IPS_DST_NAT)),
        _value(5, struct.pack("=I", 0)),
    )
    return load + mask + _equals(struct.pack("=I", 0), operator=1)


def _reject() -> bytes:
    return _expression("reject", _be32(1, 0), _attr(2, bytes([13])))  # ICMP unreachable, admin-prohibited


class _Batch:
    def __init__(self, family: int) -> None:
        self._family = family
        self._sequence = 0
        self._messages: list[bytes] = []
        self.acks = 0

    def add(self, kind: int, payload: bytes, flags: int, *, family: int | None = None, resource: int = 0) -> None:
        body = struct.pack(">BBH", self._family if family is None else family, 0, resource) + payload
        header = struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | flags, self._sequence, 0)
        self._messages.append(header + body)
        self._sequence += 1
        self.acks += bool(flags & _ACK)

    def table_message(self, kind: int, payload: bytes, flags: int) -> None:
        self.add(_NFNL_SUBSYS_NFTABLES << 8 | kind, payload, flags | _ACK)

    def encode(self) -> bytes:
        return b"".join(self._messages)


def _chain(name: str, kind: str, priority: int, policy: int, hook_number: int = _HOOK_OUTPUT) -> bytes:
    hook = _nest(4, _be32(1, hook_number), _be32(2, priority & 0xFFFFFFFF))
    return _text(1, "atoll") + _text(3, name) + hook + _be32(5, policy) + _text(7, kind)


def _rule(chain: str, *expressions: bytes) -> bytes:
    return _text(1, "atoll") + _text(2, chain) + _nest(4, *expressions)


def redirect_batch(tcp_port: int, dns_port: int) -> tuple[bytes, int]:
    """The whole rule set as (netlink bytes, number of acknowledgements to expect)."""
    chains = [
        _chain("raw", "filter", -300, _ACCEPT),
        _chain("out", "nat", -100, _ACCEPT),
        _chain("filter", "filter", 0, _DROP),
    ]
    tcp, udp = _l4proto(socket.IPPROTO_TCP), _l4proto(socket.IPPROTO_UDP)
    rules = [
        ("raw", tcp + _from_loopback(tcp_port) + _verdict(_ACCEPT)),
        ("raw", udp + _from_loopback(dns_port) + _verdict(_ACCEPT)),
        ("raw", _fib_local() + _notrack() + _verdict(_ACCEPT)),
        ("raw", tcp + _first_of_a_connection() + _over(_NEW_CONNECTIONS) + _verdict(_DROP)),
        ("raw", tcp + _verdict(_ACCEPT)),
        ("raw", udp + _dport(53) + _over(_QUESTIONS) + _verdict(_DROP)),
        ("raw", udp + _dport(53) + _verdict(_ACCEPT)),
        ("raw", _notrack()),
        ("out", _fib_local() + _verdict(_RETURN)),
        ("out", tcp + _redirect(tcp_port)),
        ("out", udp + _dport(53) + _redirect(dns_port)),
        ("filter", _fib_local() + _verdict(_ACCEPT)),
        ("filter", _is_redirected() + _verdict(_ACCEPT)),
        ("filter", _reject()),
    ]
    return _encoded(chains, rules)


def gateway_batch(tcp_port: int, dns_port: int) -> tuple[bytes, int]:
    """The same for a namespace beside the sandbox's own, which is the next hop of all that the sandbox sends.

    chain raw     { type filter hook prerouting priority -300; policy accept;
      ...                                    # as above, of what the sandbox begins
      notrack }
    chain in      { type nat hook prerouting priority -100; policy accept;
      meta l4proto tcp redirect to :TCP
      udp dport 53 redirect to :DNS }
    chain filter  { type filter hook input priority 0; policy drop;
      tcp dport TCP accept
      udp dport DNS accept
      reject with icmp type admin-prohibited }
    chain through { type filter hook forward priority 0; policy drop;
      reject with icmp type admin-prohibited }
    """
    chains = [
        _chain("raw", "filter", -300, _ACCEPT, _HOOK_PREROUTING),
        _chain("in", "nat", -100, _ACCEPT, _HOOK_PREROUTING),
        _chain("filter", "filter", 0, _DROP, _HOOK_INPUT),
        _chain("through", "filter", 0, _DROP, _HOOK_FORWARD),
    ]
    tcp, udp = _l4proto(socket.IPPROTO_TCP), _l4proto(socket.IPPROTO_UDP)
    rules = [
        ("raw", tcp + _first_of_a_connection() + _over(_NEW_CONNECTIONS) + _verdict(_DROP)),
        ("raw", tcp + _verdict(_ACCEPT)),
        ("raw", _over(_QUESTIONS) + _verdict(_DROP)),
        ("in", tcp + _redirect(tcp_port)),
        ("in", udp + _dport(53) + _redirect(dns_port)),
        ("in", _redirect_home()),
        ("filter", tcp + _dport(tcp_port) + _verdict(_ACCEPT)),
        ("filter", udp + _dport(dns_port) + _verdict(_ACCEPT)),
        ("filter", _reject()),
    ]
    return _encoded(chains, rules)


def _encoded(chains: Sequence[bytes], rules: Sequence[tuple[str, bytes]]) -> tuple[bytes, int]:
    batch = _Batch(socket.AF_INET)
    batch.add(_MSG_BATCH_BEGIN, b"", 0, family=socket.AF_UNSPEC, resource=_NFNL_SUBSYS_NFTABLES)
    batch.table_message(_NEWTABLE, _text(1, "atoll") + _be32(2, 0), _CREATE)
    for chain in chains:
        batch.table_message(_NEWCHAIN, chain, _CREATE)
    for name, expressions in rules:
        batch.table_message(_NEWRULE, _rule(name, expressions), _CREATE | _APPEND)
    batch.add(_MSG_BATCH_END, b"", 0, family=socket.AF_UNSPEC, resource=_NFNL_SUBSYS_NFTABLES)
    return batch.encode(), batch.acks


def forget_soon(directory: int) -> None:
    """Sets SHORT_MEMORY for the calling process's network namespace. `directory`: its /proc/sys/net/netfilter, open;
    it is closed. What this kernel does not let be set stays as it is."""
    try:
        for name, seconds in SHORT_MEMORY.items():
            with contextlib.suppress(OSError):
                setting = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
                with os.fdopen(setting, "wb", buffering=0) as file:
                    file.write(b"%d" % seconds)
    finally:
        os.close(directory)


def install(batch: tuple[bytes, int]) -> None:
    """Sends a batch in the calling process's network namespace. Raises OSError with the kernel's own reason."""
    payload, expected = batch
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as netlink:
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        netlink.settimeout(5)
        netlink.bind((0, 0))
        netlink.send(payload)
        while expected > 0:
            answer = netlink.recv(1 << 16)
            offset = 0
            while offset + 16 <= len(answer):
                length, kind = struct.unpack_from("=IH", answer, offset)
                if kind == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", answer, offset + 16)
                    if code:
                        raise OSError(-code, f"nftables refused the redirect: {os.strerror(-code)}")
                    expected -= 1
                offset += (length + 3) & ~3
