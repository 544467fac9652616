"""Servers on the tier without a wall: for tests of the server process itself, which need no template and no root."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.server import ServerProcess

FAKE_TIER = Path(__file__).parent / "fake_tier"

_TEMPLATE = {
    "format": 1,
    "build_id": "b1",
    "names": ["base"],
    "layers": ["base/builds/b1"],
    "limits": {"cpu_count": 2, "memory_mib": 512, "disk_mib": 1024, "pids": 512},
    "created_at": "2026-01-01T00:00:00+00:00",
    "env_vars": {},
    "default_user": "user",
    "default_workdir": None,
    "start_cmd": None,
    "interpreter": False,
}


def empty_template(templates_dir: Path) -> Path:
    """A templates directory whose `base` is an empty layer: the fake tier looks into none."""
    (templates_dir / "base" / "builds" / "b1").mkdir(parents=True, exist_ok=True)
    (templates_dir / "base" / "template.json").write_text(json.dumps(_TEMPLATE))
    return templates_dir


def environ() -> dict[str, str]:
    """What makes `--isolation fake` known to a process."""
    return {"PYTHONPATH": str(FAKE_TIER)}


def start(data_dir: Path, *, options: tuple[str, ...] = (), **more: Any) -> ServerProcess:
    """`ServerProcess.start` on the fake tier."""
    more["environ"] = {**environ(), **more.get("environ", {})}
    return ServerProcess.start(
        data_dir,
        templates_dir=empty_template(data_dir.parent / "templates"),
        options=("--isolation", "fake", *options),
        **more,
    )
