"""The volumes of this machine, as files:

    <data_dir>/volumes/<id>/volume.json   size, and by what its token is recognised
    <data_dir>/volumes/<id>/volume.img    its file system (`isolation.linux.disk.volume`)

A volume is made beside its place and moved there whole; one that is removed leaves its place at once, and its space is
free when its last mount is gone. Nothing here looks into a volume. For any thread, one process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atoll.isolation.base import DiskUse
from atoll.isolation.linux.disk import growth, image, loops, volume
from atoll.isolation.linux.disk.volume import IMAGE, Device
from atoll.model.durable import sync
from atoll.model.errors import NotFound
from atoll.model.volume import is_volume_id

_RECORD = "volume.json"
_FORMAT = 1
_UNFINISHED = "."
"""Begins the names of what is being made or removed."""


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """What is known of a volume here. `token_digest`: SHA-256, hex."""

    volume_id: str
    size_mib: int
    token_digest: str


class VolumeStore:
    """`open` before anything else."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._lock = threading.Lock()
        self._records: dict[str, VolumeRecord] = {}

    def open(self) -> None:
        """Finds what is there; removes what was not finished. Raises OSError."""
        self.place.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in list(self.place.iterdir()):
            if path.name.startswith(_UNFINISHED):
                shutil.rmtree(path, ignore_errors=True)
            elif is_volume_id(path.name):
                self._records[path.name] = _read(path)

    def why_not(self) -> str:
        """Why no volume can be made on this machine; "" when it can."""
        if os.geteuid() != 0:
            return "they need root"
        return image.why_not(self.place)

    def all(self) -> list[VolumeRecord]:
        """In no order."""
        return list(self._records.values())

    def find(self, volume_id: str) -> VolumeRecord:
        """Raises NotFound."""
        found = self._records.get(volume_id)
        if found is None:
            raise NotFound(f"volume {volume_id!r} not found")
        return found

    def create(self, record: VolumeRecord) -> None:
        """Returns when it is on the machine's disk; one that is there already stays. Blocks. Raises OSError."""
        place, making = self.place / record.volume_id, self.place / f"{_UNFINISHED}new-{record.volume_id}"
        with self._lock:
            if record.volume_id in self._records:
                return
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(mode=0o700)
            try:
                volume.make(making / IMAGE, record.size_mib)
                (making / _RECORD).write_text(json.dumps({"format": _FORMAT, **asdict(record)}))
                sync(making / _RECORD)
                sync(making)
                making.rename(place)
                sync(self.place)
            except BaseException:
                shutil.rmtree(making, ignore_errors=True)
                raise
            self._records[record.volume_id] = record

    def remove(self, volume_id: str) -> bool:
        """False: there is none. Blocks. Raises OSError."""
        gone = self.place / f"{_UNFINISHED}gone-{volume_id}"
        with self._lock:
            if self._records.pop(volume_id, None) is None:
                return False
            (self.place / volume_id).rename(gone)
            sync(self.place)
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def attach(self, volume_id: str) -> Device:
        """Its device, for as long as the descriptor is open or it is mounted. Blocks. Raises NotFound, OSError."""
        with self._lock:
            self.find(volume_id)
            return volume.attach(self.place / volume_id / IMAGE)

    def uses(self) -> dict[str, DiskUse]:
        """Of the host's space, of those that are mounted: the others do not grow. Blocks. Raises no error."""
        found: dict[str, DiskUse] = {}
        for volume_id, device in self._devices().items():
            with contextlib.suppress(OSError), _mounted(device) as inside:
                found[volume_id] = growth.use_of(self.place / volume_id / IMAGE, os.fstatvfs(inside))
        return found

    def allow(self, volume_id: str, more: int | None) -> None:
        """See `growth.allow`; of one that is not mounted nothing is taken. Blocks. Raises no error."""
        device = self._devices().get(volume_id)
        if device is not None:
            with contextlib.suppress(OSError), _mounted(device) as inside:
                growth.allow(device, os.fstatvfs(inside), more)

    def _devices(self) -> dict[str, str]:
        """Volume → the loop device that is on it."""
        known = list(self._records)  # at once: other threads add and remove meanwhile
        by_image = {loops.identity(self.place / volume_id / IMAGE): volume_id for volume_id in known}
        return {by_image[image]: device for image, device in loops.devices().items() if image in by_image}


@contextlib.contextmanager
def _mounted(device: str) -> Iterator[int]:
    mounted = volume.mount(f"/dev/{device}")
    try:
        yield mounted
    finally:
        os.close(mounted)


def _read(path: Path) -> VolumeRecord:
    """Raises OSError for a record that is there and cannot be understood: its contents are somebody's."""
    try:
        found: dict[str, Any] = json.loads((path / _RECORD).read_text())
        if found.pop("format") != _FORMAT:
            raise ValueError("it is of another Atoll")
        return VolumeRecord(**found)
    except (ValueError, TypeError, KeyError) as error:
        raise OSError(f"the record of volume {path.name} cannot be read: {error}") from error
