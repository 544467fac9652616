"""Read-only layers under sandboxes: directories, and images of disks that snapshots have kept.

An image is mounted once for each sandbox from one shared loop device, which costs a tenth of a millisecond after the
first; its file system is the same in the kernel for all of them. A process that opens many layers keeps the devices of
those that it used last (`keep`), so that the next mount need not attach a device first.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from atoll.isolation.linux.disk import mounts
from atoll.isolation.linux.disk.image import UPPER, attach

SUFFIX = ".img"
_PATH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Device(NamedTuple):
    name: str
    descriptor: int


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
        if identity not in self._devices:
            self._devices[identity] = _Device(*attach(Path(path), read_only=True))
        self._devices.move_to_end(identity)
        while len(self._devices) > self._keep:
            os.close(self._devices.popitem(last=False)[1].descriptor)
        return self._devices[identity]

    def close(self) -> None:
        """Lets go of the devices; those in use stay until their mounts are gone. Idempotent."""
        while self._devices:
            os.close(self._devices.popitem()[1].descriptor)
