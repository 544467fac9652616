"""Which names a sandbox was given which address for: what ties a name to an address. Pure but for the clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from atoll.model.addresses import Address

_KEPT = 10_000
_KEPT_PER_ADDRESS = 64
"""A client of more names at one address uses them within an hour; each connection looks at all of them."""
_GRACE_S = 3600.0
"""Programs use addresses longer than their TTL; an hour is what resolvers and keep-alive pools really do."""


class AnsweredNames:
    """Address → names, each with an end. The clock is monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ends: OrderedDict[tuple[Address, str], float] = OrderedDict()
        self._names: dict[Address, dict[str, None]] = {}
        """Oldest first."""

    def learn(self, name: str, addresses: tuple[Address, ...], ttl_s: int) -> None:
        """Remembers that `addresses` were given out for `name`."""
        end = self._clock() + max(ttl_s, 0) + _GRACE_S
        for address in addresses:
            self._ends.pop((address, name), None)
            self._ends[address, name] = end
            names = self._names.setdefault(address, {})
            names.pop(name, None)
            names[name] = None
            if len(names) > _KEPT_PER_ADDRESS:
                self._forget((address, next(iter(names))))
        while len(self._ends) > _KEPT:
            self._forget(next(iter(self._ends)))

    def names(self, address: Address) -> frozenset[str]:
        """The names that the address was given out for and that have not ended."""
        now = self._clock()
        for name in list(self._names.get(address, ())):
            if self._ends[address, name] < now:
                self._forget((address, name))
        return frozenset(self._names.get(address, ()))

    def _forget(self, key: tuple[Address, str]) -> None:
        del self._ends[key]
        address, name = key
        del self._names[address][name]
        if not self._names[address]:
            del self._names[address]
