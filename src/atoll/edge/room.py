"""Room for clients' connections: how many there may be, of one address and of all, and which goes when it is full.

    enter ──► (no room: the longest idle goes; none idle: refused) ──► rests ◄──► works ──► leave

Strangers go before those who have shown a key that was good. Streams of HTTP/2 count like connections.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Protocol

MAX_CONNECTIONS = 8192
MAX_OF_ADDRESS = MAX_CONNECTIONS * 3 // 4
"""Of one address, which may be a proxy that everybody comes through; the rest is for others."""


class Guest(Protocol):
    """A client's connection as the room sees it."""

    known: bool
    """It has shown a key that was good."""

    @property
    def peername(self) -> object: ...
    def expire(self) -> None: ...


@dataclass(slots=True)
class _Address:
    open: int = 0
    idle: dict[Guest, None] = field(default_factory=dict)
    """Longest idle first."""


class Room:
    """Costs a request a few dictionary entries."""

    def __init__(self) -> None:
        self.connections: dict[Guest, None] = {}
        self._addresses: dict[str, _Address] = {}
        self._address_of: dict[Guest, _Address] = {}
        self._strangers: dict[Guest, None] = {}
        self._known: dict[Guest, None] = {}

    def enter(self, guest: Guest) -> bool:
        """Takes it in, resting. False: all places are taken by connections at work."""
        key = address_key(guest.peername)
        address = self._addresses.setdefault(key, _Address())
        if address.open >= MAX_OF_ADDRESS and not self._make_room(address.idle):
            return False
        if len(self.connections) >= MAX_CONNECTIONS and not self._make_room(self._strangers or self._known):
            if not address.open:
                del self._addresses[key]
            return False
        address.open += 1
        self.connections[guest] = None
        self._address_of[guest] = address
        self.rests(guest)
        return True

    def leave(self, guest: Guest) -> None:
        """It is closed. Idempotent."""
        if guest not in self.connections:
            return
        self.works(guest)
        del self.connections[guest]
        address = self._address_of.pop(guest)
        address.open -= 1
        if not address.open:
            self._addresses.pop(address_key(guest.peername), None)

    def rests(self, guest: Guest) -> None:
        """Nothing is asked of it now: it may be closed when others come."""
        address = self._address_of.get(guest)
        if address is not None:
            address.idle[guest] = None
            (self._known if guest.known else self._strangers)[guest] = None

    def works(self, guest: Guest) -> None:
        """It has a request."""
        address = self._address_of.get(guest)
        if address is not None:
            address.idle.pop(guest, None)
            self._strangers.pop(guest, None)
            self._known.pop(guest, None)

    def _make_room(self, idle: dict[Guest, None]) -> bool:
        longest = next(iter(idle), None)
        if longest is None:
            return False
        self.works(longest)
        longest.expire()
        return True


def address_key(peername: object) -> str:
    """What counts as one address: of IPv6 the half that a provider gives to one customer."""
    host = str(peername[0]) if isinstance(peername, tuple) and peername else ""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    return str(address.ipv4_mapped or address.packed[:8].hex())
