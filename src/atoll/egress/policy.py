"""Decides what may leave a sandbox. Pure: no I/O, no clock.

The words are E2B's: `allow_internet_access`, `network.allowOut`, `network.denyOut` (addresses, CIDR ranges and, in
allowOut, domain names with `*.` wildcards). As on E2B an allowOut entry wins over any denyOut entry; without entries
everything public is allowed. Beyond E2B: private, link-local, metadata and the host's own addresses are refused
whatever a create call says; only the server's operator can open some (`ForbiddenNetworks.private_allowed`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType

from atoll.model.addresses import Address, ForbiddenNetworks
from atoll.model.network import Network, NetworkPolicy, Rules, canonical_name, headers_for, split_targets


class Verdict(StrEnum):
    """What was decided on one connection or DNS question, and why."""

    ALLOWED = "allowed"
    DENIED_PRIVATE = "denied: private, link-local, metadata or host address"
    DENIED_RULE = "denied: by denyOut"
    DENIED_INTERNET = "denied: no internet access"
    DENIED_NAME = "denied: name not allowed"
    DENIED_MISMATCH = "denied: the address was never an answer for that name"
    DENIED_LIMIT = "denied: too many connections"
    FAILED = "failed: the other side could not be reached"

    @property
    def allowed(self) -> bool:
        return self is Verdict.ALLOWED


def matches(pattern: str, name: str) -> bool:
    """`example.com` matches itself; `*.example.com` any name below it (not itself); `*` everything."""
    if pattern == "*":
        return True
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1
    return name == pattern


def parse_address(text: str) -> Address:
    """Raises ValueError."""
    return ipaddress.ip_address(text)


@dataclass(frozen=True)
class EgressPolicy:
    """One sandbox's policy, immutable; a live update replaces it."""

    allow_internet: bool = True
    allow_networks: tuple[Network, ...] = ()
    allow_names: tuple[str, ...] = ()
    deny_networks: tuple[Network, ...] = ()
    dns_servers: tuple[str, ...] | None = None
    """The name servers to ask; None: the host's own; empty: nothing resolves."""
    rules: Rules = field(default_factory=lambda: MappingProxyType({}), repr=False)
    bytes_per_s: int | None = None
    """Both ways, all connections together; None: no limit."""
    registries: bool = False
    """Also the networks that the operator opened for registries."""

    @staticmethod
    def of(network: NetworkPolicy) -> EgressPolicy:
        """Ready to decide. Raises InvalidRequest for entries that were never checked."""
        allow_networks, allow_names = split_targets(network.allow_out, "allowOut")
        deny_networks, _ = split_targets(network.deny_out, "denyOut")
        bytes_per_s = network.mib_s << 20 if network.mib_s is not None else None
        return EgressPolicy(
            network.allow_internet,
            allow_networks,
            allow_names,
            deny_networks,
            network.dns_servers,
            network.rules,
            bytes_per_s,
            network.registries,
        )

    @staticmethod
    def parse(
        *, allow_internet: bool = True, allow_out: Iterable[str] = (), deny_out: Iterable[str] = ()
    ) -> EgressPolicy:
        """From the wire's words, checked. Raises InvalidRequest naming the entry that is wrong."""
        return EgressPolicy.of(
            NetworkPolicy.checked(allow_internet=allow_internet, allow_out=allow_out, deny_out=deny_out)
        )

    def headers_for(self, name: str, scheme: str, port: int) -> dict[str, str]:
        """What the rules add to requests for this host; it holds secrets."""
        return headers_for(self.rules, canonical_name(name), scheme, port) if self.rules else {}

    def has_rule_for(self, name: str, port: int) -> bool:
        """Whether anything is added to requests for this host on this port, encrypted or not."""
        return any(self.headers_for(name, scheme, port) for scheme in ("https", "http"))

    @cached_property
    def closed(self) -> bool:
        """True where nothing leaves but what allowOut names."""
        return not self.allow_internet or any(
            network.prefixlen == 0 and network.version == 4 for network in self.deny_networks
        )

    def allows_name(self, name: str) -> bool:
        """Whether allowOut names this host."""
        return any(matches(pattern, name) for pattern in self.allow_names)

    def may_resolve(self, name: str) -> bool:
        """DNS is egress too: in a closed policy only allowed names resolve."""
        return not self.closed or self.allows_name(canonical_name(name))


def decide_address(policy: EgressPolicy, forbidden: ForbiddenNetworks, address: Address) -> Verdict | None:
    """The verdict by the address alone; None: only the name can open it."""
    if forbidden.forbids(address):
        return Verdict.DENIED_PRIVATE
    if any(address in network for network in policy.allow_networks):
        return Verdict.ALLOWED
    denied = any(address in network for network in policy.deny_networks)
    if not denied and policy.allow_internet:
        return Verdict.ALLOWED
    if policy.allow_names:
        return None
    return Verdict.DENIED_RULE if denied and policy.allow_internet else Verdict.DENIED_INTERNET


def decide_name(policy: EgressPolicy, spoken: str | None, answered: frozenset[str], *, must_speak: bool) -> Verdict:
    """The verdict for an address that only a name can open.

    `spoken` is the name that the connection itself gives (TLS SNI, HTTP Host), None if it gives none; `answered` are
    the names for which this gateway's DNS gave out the address. With `must_speak` (ports 80 and 443, where a web server
    shares its address with strangers) silence is a denial; elsewhere the DNS answer decides.
    """
    allowed_answers = {name for name in answered if policy.allows_name(name)}
    if spoken is None:
        return Verdict.ALLOWED if allowed_answers and not must_speak else Verdict.DENIED_NAME
    name = canonical_name(spoken)
    if not policy.allows_name(name):
        return Verdict.DENIED_NAME
    return Verdict.ALLOWED if name in answered else Verdict.DENIED_MISMATCH
