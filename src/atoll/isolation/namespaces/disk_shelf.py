"""The zygote's disks: made and mounted by the server (`disk_stock`), few of few sizes. The zygote itself makes none."""

from __future__ import annotations

from collections import OrderedDict

from atoll.isolation.linux.disk.image import Disk

DISKS_OF_A_SIZE = 8
SIZES = 3


class DiskShelf:
    """Empty disks by size. Of more than SIZES sizes the one that was used least recently goes."""

    def __init__(self) -> None:
        self._by_size: OrderedDict[int, list[Disk]] = OrderedDict()

    def count(self, size_mib: int) -> int:
        """How many of that size there are."""
        return len(self._by_size.get(size_mib, ()))

    def put(self, disk: Disk, used_elsewhere: int = 0) -> None:
        """Keeps it, unless there are enough: a burst must not leave its peak behind.

        `used_elsewhere`: how many waiting children have one of their own already.
        """
        stock = self._by_size.setdefault(disk.size_mib, [])
        self._by_size.move_to_end(disk.size_mib)
        if len(stock) + used_elsewhere >= DISKS_OF_A_SIZE:
            disk.discard()
            return
        stock.append(disk)
        while len(self._by_size) > SIZES:
            _, old = self._by_size.popitem(last=False)
            for one in old:
                one.discard()

    def take(self, size_mib: int) -> Disk | None:
        """One of that size, which is the caller's then."""
        stock = self._by_size.get(size_mib)
        if not stock:
            return None
        self._by_size.move_to_end(size_mib)
        return stock.pop()

    def close(self) -> None:
        """Frees them all."""
        for stock in self._by_size.values():
            for disk in stock:
                disk.discard()
        self._by_size.clear()
