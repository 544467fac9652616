"""What of this machine the namespaces tier needs, and whether it is there. Changes nothing that stays."""

from __future__ import annotations

import asyncio
import json
import platform
import sys

from atoll.isolation.base import Finding, Verdict
from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.isolation.linux.disk import image as disk_image
from atoll.isolation.linux.disk import kept
from atoll.isolation.linux.sys import caps, kernel_log, rootless, shared_limits, syscalls
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
    findings = [_machine(), _kernel(), *await asyncio.to_thread(_user)]
    if all(finding.verdict is not Verdict.FAIL for finding in findings):
        findings += await _trial(layout)
    findings += shared_limits.findings(posture.TERMINALS)
    return [*findings, *_cgroups(cgroups), _reserve(cgroups), _kernel_log(), await asyncio.to_thread(_disk, layout)]


def _machine() -> Finding:
    if syscalls.MACHINE in syscalls.SUPPORTED_MACHINES:
        return Finding("machine", Verdict.OK, syscalls.MACHINE)
    known = ", ".join(sorted(syscalls.SUPPORTED_MACHINES))
    return Finding("machine", Verdict.FAIL, f"{syscalls.MACHINE} is not known", f"use one of: {known}")


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
    near = next(path for path in (layout.path, *layout.path.parents) if path.is_dir())
    prefix = await asyncio.to_thread(rootless.prefix) if rootless.is_needed() else []
    process = await asyncio.create_subprocess_exec(
        *prefix, sys.executable, "-I", "-c", _BOOT, json.dumps(sys.path), str(near), "yes" if prefix else "no",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(process.communicate(), _TRIAL_WITHIN_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return [Finding("sandbox", Verdict.FAIL, f"a trial did not end within {_TRIAL_WITHIN_S:.0f} s")]
    try:
        return [Finding(row[0], Verdict(row[1]), row[2], row[3]) for row in json.loads(out)]
    except (ValueError, IndexError):
        words = err.decode(errors="replace").strip().splitlines()
        return [Finding("sandbox", Verdict.FAIL, f"a trial failed: {words[-1] if words else 'without a word'}")]


def _cgroups(cgroups: Cgroups) -> list[Finding]:
    findings = []
    for controller in ("memory", "cpu", "pids"):
        if controller in cgroups.v1:
            detail = f"version 1 at {cgroups.v1[controller]}"
        elif controller in cgroups.v2_controllers:
            detail = f"version 2 at {cgroups.v2}"
        else:
            findings.append(
                Finding(
                    f"limit {controller}",
                    Verdict.WARN,
                    "no writable cgroup controller: this limit is NOT enforced",
                    _fix("in a container: run it with a writable /sys/fs/cgroup (privileged, own cgroup namespace)"),
                )
            )
            continue
        findings.append(Finding(f"limit {controller}", Verdict.OK, detail))
    if cgroups.can_freeze:
        findings.append(Finding("freeze", Verdict.OK, "cgroup freezer"))
    else:
        findings.append(Finding("freeze", Verdict.WARN, "no freezer: sandboxes cannot be paused"))
    return findings


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


def _disk(layout: RunLayout) -> Finding:
    near = next(path for path in (layout.path, *layout.path.parents) if path.is_dir())
    reason = disk_image.why_not(near)
    if not reason:
        return Finding("limit disk", Verdict.OK, f"each sandbox has a disk of its own size; {kept.how_copied(near)}")
    return Finding(
        "limit disk",
        Verdict.WARN,
        f"a sandbox may fill the data directory, this limit is NOT enforced: {reason}",
        _fix("apt-get install e2fsprogs; in a container: give it /dev/loop-control and loop devices"),
    )


def _fix(as_root: str) -> str:
    return "start `atoll serve` as root" if rootless.is_needed() else as_root
