"""Reads what of this host no sandbox may reach: every address it has, as the kernel lists them. Linux."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import time
from collections.abc import Callable
from pathlib import Path

from atoll.model.addresses import Address, ForbiddenNetworks
from atoll.model.network import Network

_FRESH_S = 5.0
_LOCAL = re.compile(r"^[ \t]+\|-- ([0-9.]+)\n[ \t]+/32 host LOCAL", re.M)


def host_addresses(proc: Path = Path("/proc/net")) -> frozenset[Address]:
    """The addresses of all interfaces in this network namespace."""
    found: set[Address] = set()
    with contextlib.suppress(OSError):
        found |= {ipaddress.ip_address(text) for text in _LOCAL.findall((proc / "fib_trie").read_text())}
    with contextlib.suppress(OSError, ValueError):  # a kernel without IPv6 has no such file
        for line in (proc / "if_inet6").read_text().splitlines():
            found.add(ipaddress.IPv6Address(int(line.split()[0], 16)))
    return frozenset(found)


class HostNetworks:
    """Calling it gives the current ForbiddenNetworks. Addresses change, so they are read again every few seconds."""

    def __init__(
        self,
        private_allowed: tuple[Network, ...] = (),
        *,
        read: Callable[[], frozenset[Address]] = host_addresses,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._private_allowed = private_allowed
        self._read = read
        self._clock = clock
        self._at = clock()
        self._forbidden = ForbiddenNetworks(read(), private_allowed)

    def __call__(self) -> ForbiddenNetworks:
        if self._clock() - self._at > _FRESH_S:
            self._at = self._clock()
            self._forbidden = ForbiddenNetworks(self._read(), self._private_allowed)
        return self._forbidden
