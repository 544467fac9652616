"""What every tier on Linux looks for on a machine, in the words of `atoll doctor`. Changes nothing that stays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from atoll.isolation.base import Finding, Verdict
from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.isolation.linux.disk import image as disk_image
from atoll.isolation.linux.disk import kept
from atoll.isolation.linux.sys import syscalls

CGROUPS_FIX = "in a container: run it with a writable /sys/fs/cgroup (privileged, own cgroup namespace)"
DISK_FIX = "apt-get install e2fsprogs; in a container: give it /dev/loop-control and loop devices"


def machine() -> Finding:
    """The processor's kind."""
    if syscalls.MACHINE in syscalls.SUPPORTED_MACHINES:
        return Finding("machine", Verdict.OK, syscalls.MACHINE)
    known = ", ".join(sorted(syscalls.SUPPORTED_MACHINES))
    return Finding("machine", Verdict.FAIL, f"{syscalls.MACHINE} is not known", f"use one of: {known}")


def limit(cgroups: Cgroups, controller: str, fix: str = "", more: str = "") -> Finding:
    """Whether a controller keeps the limit. `more`: what there is to add of one that does."""
    name = f"limit {controller}"
    if controller in cgroups.v1:
        return Finding(name, Verdict.OK, f"cgroup version 1 at {cgroups.v1[controller]}{more}")
    if controller in cgroups.v2_controllers:
        return Finding(name, Verdict.OK, f"cgroup version 2 at {cgroups.v2}{more}")
    return Finding(name, Verdict.WARN, "no writable cgroup controller: this limit is NOT enforced", fix)


def freezer(cgroups: Cgroups) -> Finding:
    """Whether sandboxes can stand still."""
    if cgroups.can_freeze:
        return Finding("freeze", Verdict.OK, "cgroup freezer")
    return Finding("freeze", Verdict.WARN, "no freezer: sandboxes cannot be paused")


def disk(place: Path, fix: str = DISK_FIX) -> Finding:
    """Whether a sandbox gets a disk of its own below `place`. Blocking."""
    if not (reason := disk_image.why_not(nearest(place))):
        copied = kept.how_copied(nearest(place))
        return Finding(
            "limit disk", Verdict.OK, f"each sandbox has a disk of its own size (loop device, ext4); {copied}"
        )
    detail = f"a sandbox may fill the data directory, this limit is NOT enforced: {reason}"
    return Finding("limit disk", Verdict.WARN, detail, fix)


def nearest(place: Path) -> Path:
    """It, or the directory closest above it that is there."""
    return next(path for path in (place, *place.parents) if path.is_dir())


class Outcome(NamedTuple):
    """Of a trial in a process of its own."""

    status: int
    out: str
    err: str


async def trial(command: Sequence[str], within_s: float) -> Outcome:
    """Runs it to its end. Raises TimeoutError, with the process ended."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(within_s):
            out, err = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    return Outcome(process.returncode or 0, out.decode(errors="replace").strip(), err.decode(errors="replace").strip())
