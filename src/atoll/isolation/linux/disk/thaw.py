"""Disks that a server which was killed has left frozen go on. For servers: the zygote has no log."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterable
from pathlib import Path

import structlog

from atoll.isolation.linux.disk import loops
from atoll.isolation.linux.disk.kept import FITHAW, file_system_on

_log = structlog.get_logger("atoll.node")


def thaw_all(images: Iterable[Path]) -> None:
    """Those of them that are mounted go on, should a process that was killed in `copy` have left them frozen."""
    devices = loops.devices()
    for image in images:
        device = devices.get(identity) if (identity := loops.identity(image)) is not None else None
        if device is None:
            continue
        try:
            with file_system_on(device) as mounted:
                fcntl.ioctl(mounted, FITHAW, 0)
        except OSError as error:
            if error.errno != errno.EINVAL:  # it is not frozen
                _log.warning("disk.not_thawed", image=str(image), error=str(error))
        else:
            _log.warning("disk.thawed", image=str(image))
