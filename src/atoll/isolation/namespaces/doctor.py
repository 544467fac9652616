"""What of this machine the namespaces tier needs, and whether it is there. Changes nothing that stays."""

from __future__ import annotations

import asyncio
import json
import platform
import sys

from atoll.isolation.base import Finding, Verdict
from atoll.isolation.linux import findings as shared
from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.isolation.linux.sys import caps, kernel_log, rootless, shared_limits
from atoll.isolation.namespaces import posture
from atoll.isolation.namespaces.layout import RunLayout

_TRIAL_WITHIN_S = 20.0
_BOOT = (
    "import json,sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from atoll.isolation.namespaces.trial import main; main(sys.argv[2], sys.argv[3])"
)
_OLDEST_KERNEL = (5, 19)  # idmapped layers under overlayfs


async def examine(layout: RunLayout, cgroups: Cgroups) -> list[Finding]:
    """All findings of this tier."""
    findings = [shared.machine(), _kernel(), *await asyncio.to_thread(_user)]
    if all(finding.verdict is not Verdict.FAIL for finding in findings):
        findings += await _trial(layout)
    findings += shared_limits.findings(posture.TERMINALS)
    limits = [shared.limit(cgroups, name, _fix(shared.CGROUPS_FIX)) for name in ("memory", "cpu", "pids")]
    disk = await asyncio.to_thread(shared.disk, layout.path, _fix(shared.DISK_FIX))
    return [*findings, *limits, shared.freezer(cgroups), _reserve(cgroups), _kernel_log(), disk]


def _kernel() -> Finding:
    release = platform.release()
    numbers = [int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit()]
    if tuple(numbers) >= _OLDEST_KERNEL:
        return Finding("kernel", Verdict.OK, release)
    oldest = ".".join(map(str, _OLDEST_KERNEL))
    return Finding("kernel", Verdict.FAIL, f"Linux {release} is too old", f"use Linux {oldest} or newer")


def _user() -> list[Finding]:
    if not rootless.is_needed():
        return [Finding("user", Verdict.OK, "root")]
    try:
        rootless.prefix()
    except OSError as error:
        fix = (
            "start `atoll serve` as root, or let users make namespaces: sysctl user.max_user_namespaces=16384; "
            "on Debian kernel.unprivileged_userns_clone=1; on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0"
        )
        return [Finding("user", Verdict.FAIL, f"an ordinary user, and {error}", fix)]
    lost = "no limit is enforced, and a sandbox's root is this user on the host"
    found = [Finding("user", Verdict.WARN, f"an ordinary user: {lost}", "start `atoll serve` as root for all of it")]
    if rootless.has_subordinate_ids():
        return [*found, Finding("ids", Verdict.OK, "subordinate ids: a sandbox has its users, and sudo")]
    detail = "no subordinate ids: root and user of a sandbox are one, sudo and apt-get do not work inside"
    fix = "apt-get install uidmap; usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"
    return [*found, Finding("ids", Verdict.WARN, detail, fix)]


async def _trial(layout: RunLayout) -> list[Finding]:
    """Makes the namespaces and mounts of a sandbox once, in a process of its own that ends with them."""
    near = shared.nearest(layout.path)
    prefix = await asyncio.to_thread(rootless.prefix) if rootless.is_needed() else []
    command = [*prefix, sys.executable, "-I", "-c", _BOOT, json.dumps(sys.path), str(near), "yes" if prefix else "no"]
    try:
        done = await shared.trial(command, _TRIAL_WITHIN_S)
    except TimeoutError:
        return [Finding("sandbox", Verdict.FAIL, f"a trial did not end within {_TRIAL_WITHIN_S:.0f} s")]
    try:
        return [Finding(row[0], Verdict(row[1]), row[2], row[3]) for row in json.loads(done.out)]
    except (ValueError, IndexError):
        words = done.err.splitlines()
        return [Finding("sandbox", Verdict.FAIL, f"a trial failed: {words[-1] if words else 'without a word'}")]


def _reserve(cgroups: Cgroups) -> Finding:
    """Whether the guest outlives whatever its users use up."""
    missing = []
    if "pids" not in cgroups.limited:
        missing.append("processes (no pids controller)")
    if "memory" not in cgroups.v1 and not caps.is_held(caps.Cap.SYS_RESOURCE):
        missing.append("memory (neither a version 1 memory controller nor CAP_SYS_RESOURCE)")
    if not missing:
        return Finding("guest reserve", Verdict.OK, "a sandbox's users cannot use up what its guest needs")
    return Finding(
        "guest reserve",
        Verdict.WARN,
        f"a sandbox's users can end or starve their own sandbox by using up {' and '.join(missing)}",
        _fix("in a container: add CAP_SYS_RESOURCE and a writable /sys/fs/cgroup"),
    )


def _kernel_log() -> Finding:
    if (reason := kernel_log.why_unreadable()) is None:
        return Finding("kernel log", Verdict.OK, "which process ended because memory ran out is reported")
    return Finding(
        "kernel log",
        Verdict.WARN,
        f"that processes ended because memory ran out is reported, but not which: {reason}",
        _fix("in a container: give it /dev/kmsg and CAP_SYSLOG"),
    )


def _fix(as_root: str) -> str:
    return "start `atoll serve` as root" if rootless.is_needed() else as_root
