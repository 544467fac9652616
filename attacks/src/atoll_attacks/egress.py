"""Attempts to get out of a sandbox through or around the gateway: what reaches a canary outside has got through.

Each is a way of `inside-programs/egress/`; whatever it sends carries its tag. The control is the same program in the
server's own network, without any wall, or in a sandbox whose policy allows it; there it must arrive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atoll_attacks.attempt import Attempt, Control, Family, Impossible, Program
from atoll_attacks.load import costs
from atoll_attacks.outside import internet
from atoll_attacks.scene import Scene

POLICIES: Mapping[str, Mapping[str, Any]] = {
    "open": {},
    "closed": {"network": {"allow_out": ["good.test"], "deny_out": ["0.0.0.0/0"]}},
    "denied": {"network": {"deny_out": [f"{internet.EVIL}/32"]}},
    "offline": {"allow_internet_access": False},
}
"""What sandboxes of this family are created with, by the words of `Program.policy`."""

_WITHIN_S, _LATE_S, _CONTROL_S = 40.0, 0.5, 5.0


def _arrived(scene: Scene, late_s: float) -> str | None:
    assert scene.world.networks is not None
    return "it arrived outside" if scene.world.networks.arrived(scene.tag, 0 if scene.running else late_s) else None


def arrived(scene: Scene) -> str | None:
    """Something with the attempt's tag reached the internet or a service of the host."""
    return _arrived(scene, _LATE_S)


def _control_arrived(scene: Scene) -> str | None:
    return _arrived(scene, _CONTROL_S)


def _open(name: str, goal: str, *arguments: str, user: str = "user") -> Attempt:
    """From a sandbox with the default policy; the control has no sandbox."""
    act = Program("egress/from_open", user, arguments or (_way(name),), _WITHIN_S, "open")
    return Attempt(name, Family.EGRESS, goal, act, arrived, Control(judge=_control_arrived))


def _closed(name: str, goal: str, policy: str = "closed") -> Attempt:
    """From a sandbox that may reach good.test and nothing else; the control is one that may reach all of it."""
    act, control = (Program("egress/from_closed", "user", (_way(name),), _WITHIN_S, word) for word in (policy, "open"))
    return Attempt(name, Family.EGRESS, goal, act, arrived, Control(control, _control_arrived, walled=True))


def _bytes(name: str, goal: str, control: Control | Impossible) -> Attempt:
    """From a sandbox that may reach good.test alone: the gateway reads what it sends before anything is connected."""
    act = Program("egress/hostile_bytes", "user", (_way(name),), _WITHIN_S, "closed")
    return Attempt(name, Family.EGRESS, goal, act, costs(), control, disturbs=True)


def _naive(name: str) -> Control:
    return Control(Program("egress/naive_gateway", arguments=(_way(name),)))


_NO_NAIVE = Impossible("a gateway that reads it without bounds would have to be written for this")


def _way(name: str) -> str:
    return name.replace("-", "_")


_OPEN = {
    "metadata-address": "metadata address",
    "metadata-by-a-name": "metadata by a name",
    "metadata-on-another-port": "metadata on another port",
    "metadata-as-an-octal-literal": "metadata as an octal literal",
    "metadata-as-one-number": "metadata as one number",
    "metadata-mapped-into-ipv6": "metadata mapped into IPv6",
    "metadata-with-its-tls": "metadata with its TLS",
    "metadata-with-an-allowed-name-in-host": "metadata with an allowed name in Host",
    "private-address-mapped-into-ipv6": "private address mapped into IPv6",
    "private-address-by-a-name": "private address by a name",
    "private-address-by-tls": "private address by TLS",
    "rebinding-name": "rebinding name",
    "hosts-address": "host's address",
    "hosts-other-address": "host's other address",
    "host-by-a-name": "host by a name",
    "hosts-address-mapped-into-ipv6": "host's address mapped into IPv6",
    "hosts-loopback": "host's loopback",
    "hosts-loopback-by-127-0-0-2": "host's loopback by 127.0.0.2",
    "hosts-loopback-by-0-0-0-0": "host's loopback by 0.0.0.0",
    "hosts-loopback-by-a-name": "host's loopback by a name",
    "hosts-ipv6-loopback": "host's IPv6 loopback",
    "a-datagram-to-port-443-quic": "a datagram to port 443 (QUIC)",
    "a-datagram-to-port-123-ntp": "a datagram to port 123 (NTP)",
    "a-datagram-to-any-port": "a datagram to any port",
    "a-datagram-to-port-53-that-is-no-dns": "a datagram to port 53 that is no DNS",
    "a-datagram-to-port-53-hidden-behind-a-question": "a datagram to port 53 hidden behind a question",
    "bytes-behind-a-question": "bytes behind a question",
    "an-edns-option": "an EDNS option",
    "an-icmp-echo": "an ICMP echo",
    "metadata-by-tcp-fast-open": "metadata by TCP fast open",
    "the-redirects-own-port-asked-like-a-proxy": "the redirect's own port, asked like a proxy",
}
_OPEN_AS_ROOT = {
    "a-datagram-from-port-53": "a datagram from port 53",
    "an-icmp-echo-by-a-raw-socket": "an ICMP echo by a raw socket",
    "a-packet-made-by-hand": "a packet made by hand",
    "a-packet-made-by-hand-to-the-metadata-address": "a packet made by hand to the metadata address",
    "metadata-with-a-mark-on-the-socket": "metadata with a mark on the socket",
    "metadata-after-the-rules-were-flushed": "metadata after the rules were flushed",
}
_CLOSED = {
    "another-address": "another address",
    "another-address-by-tls": "another address by TLS",
    "another-address-on-another-port": "another address on another port",
    "host-says-an-allowed-name": "Host says an allowed name",
    "sni-says-an-allowed-name": "SNI says an allowed name",
    "a-neighbour-on-an-allowed-address": "a neighbour on an allowed address",
    "a-neighbour-on-an-allowed-address-by-sni": "a neighbour on an allowed address by SNI",
    "a-neighbour-on-another-port": "a neighbour on another port",
    "tls-without-a-name": "TLS without a name",
    "http-without-a-name": "HTTP without a name",
    "bytes-that-are-no-http-on-port-80": "bytes that are no HTTP on port 80",
    "a-second-request-for-a-neighbour": "a second request for a neighbour",
    "a-request-behind-another-in-one-piece": "a request behind another in one piece",
    "an-absolute-target": "an absolute target",
    "connect": "CONNECT",
    "two-hosts": "two Hosts",
    "a-blank-before-the-colon": "a blank before the colon",
    "a-folded-header": "a folded header",
    "a-bare-line-feed": "a bare line feed",
    "a-length-and-chunks": "a length and chunks",
    "two-lengths": "two lengths",
    "an-upgrade-that-the-server-refuses": "an upgrade that the server refuses",
    "http-2-without-tls": "HTTP/2 without TLS",
    "a-name-below-another-domain-dns-exfiltration": "a name below another domain (DNS exfiltration)",
    "dns-exfiltration-to-another-resolver": "DNS exfiltration to another resolver",
    "dns-exfiltration-over-tcp": "DNS exfiltration over TCP",
    "dns-exfiltration-by-a-long-name": "DNS exfiltration by a long name",
    "dns-exfiltration-by-txt": "DNS exfiltration by TXT",
    "dns-exfiltration-in-capitals": "DNS exfiltration in capitals",
    "dns-exfiltration-below-an-allowed-name": "DNS exfiltration below an allowed name",
    "a-name-that-only-ends-alike": "a name that only ends alike",
    "a-name-that-only-begins-alike": "a name that only begins alike",
    "the-systems-resolver": "the system's resolver",
    "dns-over-tls-by-address": "DNS over TLS by address",
    "dns-over-https-by-address": "DNS over HTTPS by address",
    "dns-over-https-with-an-allowed-sni": "DNS over HTTPS with an allowed SNI",
    "an-allowed-name-on-an-address-that-dns-never-gave": "an allowed name on an address that DNS never gave",
}
_DENIED = {
    "denied-by-denyout": "denied by denyOut",
    "denied-by-denyout-by-tls": "denied by denyOut, by TLS",
}
_OFFLINE = {
    "no-internet-access": "no internet access",
    "no-internet-access-by-tls": "no internet access, by TLS",
    "no-internet-access-dns": "no internet access, DNS",
}

ATTEMPTS: tuple[Attempt, ...] = (
    *(_open(name, goal) for name, goal in _OPEN.items()),
    *(_open(name, goal, user="root") for name, goal in _OPEN_AS_ROOT.items()),
    *(
        _open(f"private-address-{one.replace('.', '-')}", f"private address {one}", "private_address", one)
        for one in internet.PRIVATE
    ),
    *(_closed(name, goal) for name, goal in _CLOSED.items()),
    *(_closed(name, goal, "denied") for name, goal in _DENIED.items()),
    *(_closed(name, goal, "offline") for name, goal in _OFFLINE.items()),
    _bytes("blanks-behind-host", "have the gateway read blanks for ever", _naive("blanks-behind-host")),
    _bytes("blanks-in-headers", "have the gateway read headers for ever", _naive("blanks-in-headers")),
    _bytes("hello-in-pieces", "have the gateway wait for a greeting of ten thousand pieces", _NO_NAIVE),
    _bytes("questions-without-end", "have the gateway ask without end", _NO_NAIVE),
    _bytes("names-of-pointers", "have the gateway follow a name for ever", _NO_NAIVE),
)
