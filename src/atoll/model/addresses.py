"""Which addresses this machine connects to for nobody, be it a sandbox or a team's webhook. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from atoll.model.network import Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Not Python's `is_private`: that includes the documentation ranges, which some networks really use.
NEVER_PUBLIC: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2001::/32",
        "2002::/16",
        "fc00::/7",
        "fe80::/10",
        "ff00::/8",
    )
)


@dataclass(frozen=True, slots=True)
class ForbiddenNetworks:
    """What nobody may make this machine connect to: inner networks and itself, less what its operator opened."""

    host_addresses: frozenset[Address] = frozenset()
    private_allowed: tuple[Network, ...] = ()

    def forbids(self, address: Address) -> bool:
        """True for addresses that no policy may open. IPv4 in IPv6 clothes is judged as IPv4.

        A range that the operator opened never opens the host itself: that takes the host's very address. Loopback
        cannot be opened at all: a sandbox's own never comes here, and the host's is nobody's business.
        """
        mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
        if mapped is not None:
            return self.forbids(mapped)
        if address.is_loopback:
            return True
        opened = [network for network in self.private_allowed if address in network]
        if address in self.host_addresses:
            return not any(network.num_addresses == 1 for network in opened)
        return not opened and any(address in network for network in NEVER_PUBLIC)

    def touches(self, network: Network) -> bool:
        """True if it forbids an address of the network; of a wide one, as far as the ranges show."""
        if network.num_addresses == 1:
            return self.forbids(network.network_address)
        inner = any(network.version == one.version and network.overlaps(one) for one in NEVER_PUBLIC)
        opened = (one for one in self.private_allowed if one.version == network.version)
        return network.prefixlen > 0 and inner and not any(network.subnet_of(one) for one in opened)  # type: ignore[arg-type]
