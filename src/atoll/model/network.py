"""What a sandbox may reach, in the words of a create call. Pure data and its checks; who enforces it is the node's.

The words are E2B's: `allow_internet_access`, `network.allowOut`, `denyOut`, `dnsServers`, `rules`. An allowOut entry is
an address, a CIDR range or a domain name (`*.` matches any depth below, never the name itself); denyOut takes no names.
An allowOut entry wins over any denyOut entry. `rules` add headers to requests for a host; they grant no access. Its
host alone means HTTPS on port 443; what else may carry a secret is written out: `http://host`, `https://host:8443`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from atoll.model.errors import InvalidRequest

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_ENTRIES = 1000
MAX_RULE_BYTES = 64 * 1024

HIDDEN = "[hidden]"
"""What answers show instead of a rule's value."""
_ORIGIN = re.compile(r"(?:(https?)://)?([^:/]+)(?::([0-9]{1,5}))?", re.I)
_PORTS = {"http": 80, "https": 443}

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DOMAIN = re.compile(rf"(?:\*\.)?(?:{_LABEL}\.)*{_LABEL}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_UNTOUCHABLE = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "keep-alive", "expect"}
)
"""Headers that frame the request or say where it goes: a rule may not set them."""

Headers = Mapping[str, str]
Rules = Mapping[str, Sequence[Headers]]


def canonical_name(name: str) -> str:
    """Lower case, no trailing dot. Names are compared only in this form."""
    return name.rstrip(".").lower()


def canonical_origin(text: str) -> str:
    """`host` for HTTPS on 443, else `scheme://host:port`. Raises InvalidRequest: no such origin."""
    found = _ORIGIN.fullmatch(text)
    scheme = (found[1] or "https").lower() if found else ""
    port = int(found[3] or _PORTS[scheme]) if found else 0
    if found is None or not 0 < port < 65536:
        raise InvalidRequest(
            f"rules: {text[:300]!r} is not a host name",
            hint="`api.example.com` (HTTPS on 443), or what else is meant: http://api.example.com, https://host:8443",
        )
    return _origin(canonical_name(found[2]), scheme, port)


def _origin(host: str, scheme: str, port: int) -> str:
    return host if (scheme, port) == ("https", 443) else f"{scheme}://{host}:{port}"


def _host_of(origin: str) -> str:
    return origin.partition("://")[2].rpartition(":")[0] or origin


def is_domain(name: str) -> bool:
    """Whether a canonical name is a host name or `*.` and one."""
    return bool(_DOMAIN.fullmatch(name)) and len(name) <= 253 and not name.replace(".", "").isdigit()


def is_address(text: str) -> bool:
    """Whether it is an IP address of either version."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_header_value(text: str) -> bool:
    """Whether a rule may set a header to it."""
    return _VALUE.fullmatch(text) is not None


def split_targets(entries: Iterable[str], field_name: str) -> tuple[tuple[Network, ...], tuple[str, ...]]:
    """Ranges and canonical names among entries of `allowOut` or `denyOut`. Raises InvalidRequest naming the entry."""
    networks: list[Network] = []
    names: list[str] = []
    for entry in entries:
        text = entry.strip()
        try:
            networks.append(ipaddress.ip_network(text, strict=False))
            continue
        except ValueError:
            pass
        name = canonical_name(text)
        if name != "*" and not is_domain(name):
            raise InvalidRequest(f"{field_name}: {entry[:300]!r} is neither an address, a CIDR range nor a domain name")
        names.append(name)
    return tuple(networks), tuple(names)


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """One sandbox's network, checked. `dns_servers` None means the server's own choice.

    `rules`: canonical origin (of a host or `*.host`) → the header sets to add, in order. They hold secrets.
    `mib_s`: how much may pass in a second, both ways and all connections together; None: no limit. `registries`: also
    the private networks that the operator opened for registries of images; no caller's to say.
    """

    allow_internet: bool = True
    allow_out: tuple[str, ...] = ()
    deny_out: tuple[str, ...] = ()
    dns_servers: tuple[str, ...] | None = None
    rules: Rules = field(default_factory=dict, repr=False)
    mib_s: int | None = None
    registries: bool = False

    @staticmethod
    def checked(
        *,
        allow_internet: bool = True,
        allow_out: Iterable[str] = (),
        deny_out: Iterable[str] = (),
        dns_servers: Iterable[str] | None = None,
        rules: Rules | None = None,
    ) -> NetworkPolicy:
        """Raises InvalidRequest naming what is wrong."""
        policy = NetworkPolicy(
            allow_internet,
            tuple(allow_out),
            tuple(deny_out),
            tuple(dns_servers) if dns_servers is not None else None,
            {canonical_origin(origin): tuple(sets) for origin, sets in (rules or {}).items()},
        )
        _check_targets(policy)
        _check_dns_servers(policy.dns_servers or ())
        _check_rules(policy.rules)
        return policy

    def as_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return {
            "allow_internet": self.allow_internet,
            "allow_out": list(self.allow_out),
            "deny_out": list(self.deny_out),
            "dns_servers": list(self.dns_servers) if self.dns_servers is not None else None,
            "rules": {host: [dict(headers) for headers in sets] for host, sets in self.rules.items()},
            "mib_s": self.mib_s,
            "registries": self.registries,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any] | None) -> NetworkPolicy:
        """The default for None (a sandbox of an older Atoll). Raises KeyError, TypeError."""
        if value is None:
            return NetworkPolicy()
        servers = value["dns_servers"]
        return NetworkPolicy(
            bool(value["allow_internet"]),
            tuple(value["allow_out"]),
            tuple(value["deny_out"]),
            tuple(servers) if servers is not None else None,
            {host: tuple(dict(one) for one in sets) for host, sets in value["rules"].items()},
            value.get("mib_s"),
            value.get("registries", False) is True,
        )


@dataclass(frozen=True, slots=True)
class NetworkConnection:
    """One connection out of a sandbox (`protocol` "tcp"), or one question (`protocol` "dns").

    `name`: what it called itself (TLS SNI, HTTP Host), or the name that was asked or answered; "" if none. `verdict` is
    for people. Bytes without headers, as counted so far. `rewritten`: a rule added headers to it.
    """

    time: datetime
    protocol: str
    source_address: str
    source_port: int
    address: str
    port: int
    name: str
    verdict: str
    allowed: bool
    bytes_out: int
    bytes_in: int
    rewritten: bool
    closed_at: datetime | None


def _check_targets(policy: NetworkPolicy) -> None:
    for name, entries in (("allowOut", policy.allow_out), ("denyOut", policy.deny_out)):
        if len(entries) > MAX_ENTRIES:
            raise InvalidRequest(f"{name}: {len(entries)} entries, more than {MAX_ENTRIES}")
    _, allowed_names = split_targets(policy.allow_out, "allowOut")
    denied, denied_names = split_targets(policy.deny_out, "denyOut")
    if denied_names:
        raise InvalidRequest(
            f"denyOut: {denied_names[0]!r} is a domain name; denyOut takes addresses and CIDR ranges",
            hint="deny 0.0.0.0/0 and list the allowed names in allowOut",
        )
    all_denied = any(network.version == 4 and network.prefixlen == 0 for network in denied)
    if allowed_names and policy.allow_internet and not all_denied:
        raise InvalidRequest(
            f"allowOut: the domain name {allowed_names[0]!r} limits nothing while everything else is allowed",
            hint="when allowOut holds domain names, denyOut must hold 0.0.0.0/0 (all traffic)",
        )


def _check_dns_servers(servers: Sequence[str]) -> None:
    if len(servers) > 16:
        raise InvalidRequest(f"dnsServers: {len(servers)} entries, more than 16")
    for server in servers:
        try:
            ipaddress.IPv4Address(server)
        except ValueError:
            raise InvalidRequest(f"dnsServers: {server[:100]!r} is not an IPv4 address") from None


def _check_rules(rules: Rules) -> None:
    total = 0
    for origin, sets in rules.items():
        host = _host_of(origin)
        if not is_domain(host):
            raise InvalidRequest(
                f"rules: {host[:300]!r} is not a host name",
                hint="use a name, or `*.` and a name; a bare `*` is too broad",
            )
        for headers in sets:
            for name, value in headers.items():
                total += len(name) + len(value)
                if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
                    raise InvalidRequest(f"rules: {host!r}: {name[:100]!r} is not a header that can be sent")
                if value == HIDDEN:
                    raise InvalidRequest(
                        f"rules: {host!r}: {HIDDEN} stands for a value that answers do not show",
                        hint="send the value itself again, or leave the rule out",
                    )
                if name.lower() in _UNTOUCHABLE:
                    raise InvalidRequest(f"rules: {host!r}: the header {name!r} cannot be set by a rule")
    if total > MAX_RULE_BYTES:
        raise InvalidRequest(f"rules: {total} bytes in all, more than {MAX_RULE_BYTES}")


def headers_for(rules: Rules, name: str, scheme: str = "https", port: int = 443) -> dict[str, str]:
    """What to add to a request for the canonical `name`: the exact rule, else the longest wildcard; never merged."""
    sets = rules.get(_origin(name, scheme, port))
    if sets is None:
        labels = name.split(".")
        for start in range(1, len(labels)):
            sets = rules.get(_origin("*." + ".".join(labels[start:]), scheme, port))
            if sets is not None:
                break
    merged: dict[str, tuple[str, str]] = {}
    for headers in sets or ():
        merged |= {header.lower(): (header, value) for header, value in headers.items()}
    return dict(merged.values())
