"""A sandbox's root file system: the template's layers, read-only, under a layer of its own, with shifted owners.

Ids on disk are 0.. in the template and in the sandbox's own layer alike. The mounts shift them into the sandbox's
range, so that a layer can become a template's, whatever range its sandbox had. (The layer lies in a directory that only
host root may enter: files in it that belong to root on disk are out of everybody's reach.)

The overlay is volatile: nothing is synced, neither while it is used nor when it goes, which would otherwise wait for
the whole disk. Its own layer is therefore only as good as the machine's uptime. Whoever keeps it (a snapshot) syncs it,
and leaves `work/` behind: the kernel refuses to mount that again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from atoll.isolation.linux import mounts, syscalls

UPPER = "upper"
WORK = "work"


def build_root(pid: int, id_base: int, lowers: Sequence[str], state_dir: Path) -> int:
    """A detached mount for the sandbox whose first process is `pid`. Raises OSError, ValueError (no layers)."""
    if not lowers:
        raise ValueError("the template has no layers")
    descriptors = [os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)]
    userns = descriptors[0]
    try:
        for name, mode in ((UPPER, 0o755), (WORK, 0o700)):
            (state_dir / name).mkdir(mode, exist_ok=True)
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
