"""A sandbox's root file system: the template's layers, read-only, under a layer of its own, with shifted owners.

Ids on disk are 0.. in the template and in the sandbox's own layer alike. The mounts shift them into the sandbox's
range, so that a layer can become a template's, whatever range its sandbox had. (The layer lies in a directory that only
host root may enter: files in it that belong to root on disk are out of everybody's reach.)

The overlay is volatile: nothing is synced, neither while it is used nor when it goes, which would otherwise wait for
the whole disk. Its own layer is therefore only as good as the machine's uptime. What keeps it (`linux.disk.kept`) syncs
it, and leaves `work/` behind: the kernel refuses to mount that again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from atoll.isolation.linux.disk import mounts
from atoll.isolation.linux.disk.image import IMAGE, UPPER, WORK, Disk
from atoll.isolation.linux.disk.layers import Layers
from atoll.isolation.linux.sys import syscalls
from atoll.model.sandbox import Limits


def build_root(
    pid: int, id_base: int, lowers: Sequence[str], state_dir: Path, disk: Disk | None, layers_of: Layers
) -> int:
    """A detached mount for the sandbox whose first process is `pid`, its own layer on `disk` or else in `state_dir`.

    What its own layer holds already (of a sandbox that was paused) is there again. `disk` is used up: its mount is
    closed in any case. `id_base` 0: owners are as they are, for only the host's
    root may shift them. Raises OSError, ValueError (no layers).
    """
    rootless = id_base == 0
    descriptors = [disk.mount] if disk is not None else []
    try:
        if not lowers:
            raise ValueError("the template has no layers")
        userns: int | None = None
        if not rootless:
            descriptors.append(userns := os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC))
        if disk is not None and userns is not None:
            own = disk.mount
            with contextlib.suppress(FileExistsError):
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
        layers = [layers_of.open(path, userns, descriptors) for path in lowers]
        # The overlay makes its own files as the user who mounted it, who must be one that the shifted mount knows.
        with syscalls.acting_as(id_base):
            return mounts.overlay(layers, upper, work, volatile=True, rootless=rootless)
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


class PoolKey(NamedTuple):
    """What is asked for, but for the name. Pool key: requests with equal keys can use the same prewarmed child."""

    lowers: tuple[str, ...]
    identity: tuple[tuple[int, int], ...]
    """Device and inode of each layer: one may have been built anew under its old path."""
    size_mib: int | None
    limits: Limits

    @staticmethod
    def of(lowers: Sequence[str], size_mib: int | None, limits: Limits) -> PoolKey:
        """As the layers are now. Raises OSError."""
        identity = tuple((found.st_dev, found.st_ino) for found in map(os.stat, lowers))
        return PoolKey(tuple(lowers), identity, size_mib, limits)


class PreparedRoot:
    """A root made ahead of need, in a directory of the zygote's own, for a child that waits.

    Making an overlay's directories is what a creation spends most on (2 to 4 ms of disk); moving them costs a rename
    each. The overlay does not mind: it holds directories, not paths.
    """

    def __init__(self, pid: int, id_base: int, key: PoolKey, place: Path, disk: Disk | None, layers_of: Layers) -> None:
        """Raises OSError, ValueError; nothing is left then."""
        self._place = place
        self.size_mib = disk.size_mib if disk is not None else None
        self._names = (UPPER, WORK) if disk is None else (IMAGE,)
        self._mount = -1
        try:
            place.mkdir(0o700, parents=True)
            if disk is not None:
                disk.move(place)
            self._mount = build_root(pid, id_base, key.lowers, place, disk, layers_of)
        except BaseException:
            self.discard()
            raise

    def hand_over(self) -> int:
        """The mount, once. The caller closes it."""
        mount, self._mount = self._mount, -1
        return mount

    def move(self, state_dir: Path) -> None:
        """Its own layer goes where it is removed with its sandbox; what is left of it is to be discarded, at leisure.

        Raises OSError.
        """
        for name in self._names:
            os.rename(self._place / name, state_dir / name)

    def discard(self) -> None:
        """Frees what is left of it. Idempotent."""
        if self._mount >= 0:
            os.close(self._mount)
            self._mount = -1
        shutil.rmtree(self._place, ignore_errors=True)
