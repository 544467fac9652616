"""What runsc gets, as an OCI bundle's config.json and as flags. No I/O but for the numbers of devices."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atoll.isolation.gvisor import bundle
from atoll.isolation.gvisor.boot import BOOT_CAPABILITIES, CGROUPS, SHARED
from atoll.isolation.gvisor.posture import KEPT_CAPABILITIES
from atoll.model.sandbox import Limits

HOST_IDS_PER_SANDBOX = 65536
_PERIOD_US = 100_000
_NAMESPACES = ("pid", "ipc", "uts", "mount", "user")


def config(
    *,
    root: str,
    shared: str,
    runtime: str,
    entry: str,
    limits: Limits,
    network: str,
    volumes: Mapping[str, str] | None = None,
    shown: Mapping[str, str] | None = None,
    devices: Sequence[str] = (),
) -> dict[str, Any]:
    """The container: its own root, the guest as first process, a user namespace with all ids of runsc's own.

    `network`: a file that stands for its network namespace; "": it gets an empty one. `volumes`: where each is mounted
    for runsc, by where it lies inside; `shown` likewise, read-only. `devices`: NVIDIA's nodes, which runsc's own
    driver proxy serves.
    """
    capabilities = sorted({f"CAP_{cap.name}" for cap in KEPT_CAPABILITIES} | set(BOOT_CAPABILITIES))
    ids = [{"containerID": 0, "hostID": 0, "size": HOST_IDS_PER_SANDBOX}]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": bundle.command(entry),
            "env": [f"{name}={value}" for name, value in bundle.environment().items()],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 65536, "hard": 1048576}],
        },
        "root": {"path": root},
        "hostname": "sandbox",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            {"destination": CGROUPS, "type": "cgroup", "source": "cgroup"},
            {"destination": SHARED, "type": "bind", "source": shared, "options": ["rw"]},
            {"destination": bundle.AT, "type": "bind", "source": runtime, "options": ["ro"]},
            *(
                {"destination": path, "type": "bind", "source": source, "options": ["rw", "nosuid", "nodev"]}
                for path, source in (volumes or {}).items()
            ),
            *(
                {"destination": path, "type": "bind", "source": source, "options": ["ro", "nosuid", "nodev"]}
                for path, source in (shown or {}).items()
            ),
        ],
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in _NAMESPACES),
                {"type": "network", "path": network} if network else {"type": "network"},
            ],
            "uidMappings": ids,
            "gidMappings": ids,
            **({"devices": [_device(path) for path in devices]} if devices else {}),
            "resources": {
                "cpu": {"quota": limits.cpu_count * _PERIOD_US, "period": _PERIOD_US},
                "memory": {"limit": limits.memory_mib << 20},
            },
        },
    }


def _device(path: str) -> dict[str, Any]:
    """As it is on the host. Raises OSError."""
    number = os.stat(path).st_rdev
    numbers = {"major": os.major(number), "minor": os.minor(number)}
    return {"path": path, "type": "c", **numbers, "fileMode": 0o666, "uid": 0, "gid": 0}


def flags(
    state: str, *, platform: str, network: bool, known: Sequence[str], log: Path | None = None, nvidia: bool = False
) -> list[str]:
    """runsc's global flags. `known` are the flags of this release: what it does not know is left out."""
    values: Mapping[str, str] = {
        "root": state,
        "platform": platform,
        # gVisor's own network stack, on the one device of the namespace that the launcher has made.
        "network": "sandbox" if network else "none",
        # A checkpoint cuts connections to the outside, instead of being refused because of them.
        "net-disconnect-ok": "true",
        # Limits are ours to set: runsc knows neither mixed hierarchies nor a group that is there already.
        "ignore-cgroups": "true",
        # The root is an overlay of the host's already, so that what is written can be kept and counted.
        "overlay2": "none",
        # The guest may bind its socket where the host sees it; nobody inside may connect to a socket of the host.
        "host-uds": "create",
        # With it the sentry opens host files itself: faster, but its filter must let it, and symlinks have faults.
        "directfs": "false",
        "host-fifo": "none",
        "cpu-num-from-quota": "true",
        "allow-suid": "true",
        **({"nvproxy": "true"} if nvidia else {}),
    }
    chosen = [f"--{name}={value}" for name, value in values.items() if name in known]
    return [*chosen, f"--log={log}"] if log is not None else chosen
