"""Read-only layers under sandboxes: directories, and images of disks that snapshots have kept.

An image is mounted once for each sandbox from one shared loop device, which costs a tenth of a millisecond after the
first; its file system is the same in the kernel for all of them. A process that opens many layers keeps the devices of
those that it used last (`keep`) for a moment, so that the next mount need not attach a device first. Not longer: what
is attached takes its place on the machine's disk, also when nobody knows it any more.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from atoll.isolation.linux.disk import mounts
from atoll.isolation.linux.disk.image import UPPER, attach

SUFFIX = ".img"
KEPT_S = 10.0
_PATH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Device(NamedTuple):
    name: str
    descriptor: int
    used_at: float


class Layers:
    """Opens layers. One process, one of these. `keep`: how many devices stay attached between two uses."""

    def __init__(self, keep: int = 16) -> None:
        self._keep = keep
        self._devices: OrderedDict[tuple[int, int], _Device] = OrderedDict()

    def open(self, path: str, userns: int | None, opened: list[int]) -> int:
        """A directory to stand on, with owners shifted by that namespace's map.

        It and what it needs are added to `opened`: for the caller to close once it stands. Raises OSError.
        """
        if not path.endswith(SUFFIX):
            opened.append(tree := mounts.clone(path, userns=userns))
            return tree
        device = self._device(path)
        opened.append(mount := mounts.new("ext4", [("source", device.name), ("ro", None)], attributes=mounts.NODEV))
        if userns is not None:
            mounts.shift_owners(mount, userns)
        opened.append(layer := os.open(UPPER, _PATH, dir_fd=mount))
        return layer

    def _device(self, path: str) -> _Device:
        found = os.stat(path)
        identity = found.st_dev, found.st_ino
        known = self._devices.pop(identity, None)
        name, descriptor = known[:2] if known is not None else attach(Path(path), read_only=True)
        self._devices[identity] = device = _Device(name, descriptor, time.monotonic())
        while len(self._devices) > self._keep:
            self._let_go_oldest()
        return device

    def next_unused_s(self) -> float | None:
        """In how many seconds `let_go_unused` will have something to do; None: not before the next `open`."""
        for device in self._devices.values():
            return max(0.0, device.used_at + KEPT_S - time.monotonic())
        return None

    def let_go_unused(self) -> None:
        """Lets go of the devices that were not used for `KEPT_S`."""
        while self.next_unused_s() == 0:
            self._let_go_oldest()

    def _let_go_oldest(self) -> None:
        os.close(self._devices.popitem(last=False)[1].descriptor)

    def close(self) -> None:
        """Lets go of the devices; those in use stay until their mounts are gone. Idempotent."""
        while self._devices:
            self._let_go_oldest()
