"""A sandbox's root file system: the template's layers, read-only, under a layer of its own, with shifted owners.

Ids on disk are 0.. in the template and in the sandbox's own layer alike. The mounts shift them into the sandbox's
range, so that a layer can become a template's, whatever range its sandbox had. (The layer lies in a directory that only
host root may enter: files in it that belong to root on disk are out of everybody's reach.)

The overlay is volatile: nothing is synced, neither while it is used nor when it goes, which would otherwise wait for
the whole disk. Its own layer is therefore only as good as the machine's uptime. Whoever keeps it (a snapshot) syncs it,
and leaves `work/` behind: the kernel refuses to mount that again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from atoll.isolation.linux import mounts, syscalls
from atoll.isolation.linux.disk_image import IMAGE, Disk

UPPER = "upper"
WORK = "work"


def build_root(pid: int, id_base: int, lowers: Sequence[str], state_dir: Path, disk: Disk | None = None) -> int:
    """A detached mount for the sandbox whose first process is `pid`, its own layer on `disk` or else in `state_dir`.

    `disk` is used up: its mount is closed in any case. Raises OSError, ValueError (no layers).
    """
    descriptors = [disk.mount] if disk is not None else []
    try:
        if not lowers:
            raise ValueError("the template has no layers")
        descriptors.append(userns := os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC))
        if disk is not None:
            own = disk.mount
            os.mkdir(UPPER, 0o755, dir_fd=own)
            os.mkdir(WORK, 0o700, dir_fd=own)
            mounts.shift_owners(own, userns)
        else:
            _make_directories(state_dir)
            own = mounts.clone(str(state_dir), userns=userns)
            descriptors.append(own)
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        for name in (UPPER, WORK):
            descriptors.append(os.open(name, flags, dir_fd=own))  # noqa: PERF401 (closed even if the second fails)
        upper, work = descriptors[-2:]
        layers = []
        for path in lowers:
            layers.append(mounts.clone(path, userns=userns))
            descriptors.append(layers[-1])
        # The overlay makes its own files as whoever mounted it: that has to be somebody whom the shifted mount knows.
        with syscalls.acting_as(id_base):
            return mounts.overlay(layers, upper, work, volatile=True)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _make_directories(state_dir: Path) -> None:
    (state_dir / UPPER).mkdir(0o755, exist_ok=True)
    try:
        (state_dir / WORK).mkdir(0o700)
    except FileExistsError:  # of an attempt that failed: the kernel would not take it again
        shutil.rmtree(state_dir / WORK)
        (state_dir / WORK).mkdir(0o700)


class PreparedRoot:
    """A root made ahead of need, for the template that was asked for last, in a directory of the zygote's own.

    Making an overlay's directories is what a creation spends most on (2 to 4 ms of disk); moving them costs a rename
    each. The overlay does not mind: it holds directories, not paths.
    """

    def __init__(self, pid: int, id_base: int, lowers: Sequence[str], place: Path, disk: Disk | None = None) -> None:
        """Raises OSError, ValueError; nothing is left then."""
        self.place = place
        self._lowers = tuple(lowers)
        self._size_mib = disk.size_mib if disk is not None else None
        self._mount = -1
        try:
            self._identity = _identity(lowers)
            place.mkdir(0o700, parents=True)
            if disk is not None:
                disk.move(place)
            self._mount = build_root(pid, id_base, lowers, place, disk)
        except BaseException:
            self.discard()
            raise

    def take(self, lowers: Sequence[str], state_dir: Path, size_mib: int | None = None) -> int | None:
        """The mount, its layer now in `state_dir`; None if this is not the root that is wanted (discard it)."""
        if tuple(lowers) != self._lowers or size_mib != self._size_mib or _identity(lowers) != self._identity:
            return None
        try:
            for name in (UPPER, WORK) if size_mib is None else (IMAGE,):
                os.rename(self.place / name, state_dir / name)
        except OSError:  # another file system, or a directory that is used again: made on the spot then
            return None
        mount, self._mount = self._mount, -1
        with contextlib.suppress(OSError):
            self.place.rmdir()
        return mount

    def discard(self) -> None:
        """Frees what is left of it. Idempotent."""
        if self._mount >= 0:
            os.close(self._mount)
            self._mount = -1
        shutil.rmtree(self.place, ignore_errors=True)


def _identity(lowers: Sequence[str]) -> list[tuple[int, int]]:
    """A layer may have been built anew under its old path."""
    return [(found.st_dev, found.st_ino) for found in map(os.stat, lowers)]
