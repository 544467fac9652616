"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path


def facts() -> dict[str, object]:
    """Facts that explain a figure; nothing that names the machine or its owner."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in _read("/proc/cpuinfo").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_kib = int(
        next(line.split()[1] for line in _read("/proc/meminfo").splitlines() if line.startswith("MemTotal"))
    )
    system = dict(line.split("=", 1) for line in _read("/etc/os-release").splitlines() if "=" in line)
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(memory_kib / 1024 / 1024, 1),
        "kernel": platform.release(),
        "system": system.get("PRETTY_NAME", "").strip('"'),
        "cgroups": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        "python": platform.python_version(),
        "bwrap": _output("bwrap", "--version"),
        "e2b": importlib.metadata.version("e2b"),
        "e2b_code_interpreter": importlib.metadata.version("e2b-code-interpreter"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
