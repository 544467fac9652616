"""`atoll doctor`: what this machine can do, tier by tier, and what is missing around them."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from atoll.cli import running
from atoll.config import Settings
from atoll.images.store import TemplateStore
from atoll.isolation import registry
from atoll.isolation.base import BackendConfig, Finding, Verdict
from atoll.isolation.linux.sys import caps, oom
from atoll.isolation.linux.sys.caps import Cap
from atoll.model.capacity import derive
from atoll.model.errors import AtollError
from atoll.model.sandbox import Limits
from atoll.node.backends import automatic_order
from atoll.node.gpus import NodeGpus
from atoll.node.machine import machine_here

_ENOUGH_PIDS = 32 * Limits().pids
_MARKS = {Verdict.OK: "[green]ok  [/green]", Verdict.WARN: "[yellow]warn[/yellow]", Verdict.FAIL: "[red]FAIL[/red]"}


@dataclass(frozen=True, slots=True)
class Report:
    """Findings by section; the section of a tier is its name."""

    sections: dict[str, list[Finding]]
    tiers: dict[str, bool]

    @property
    def usable(self) -> bool:
        """True when a sandbox could run here: some tier works and nothing around it fails."""
        around = (finding for name, found in self.sections.items() if name not in self.tiers for finding in found)
        return any(self.tiers.values()) and all(finding.verdict is not Verdict.FAIL for finding in around)

    def as_json(self) -> dict[str, Any]:
        return {
            "usable": self.usable,
            "tiers": self.tiers,
            "sections": {name: [asdict(finding) for finding in found] for name, found in self.sections.items()},
        }


def examine(settings: Settings) -> Report:
    """Looks at everything, changes nothing but a directory of its own that it removes."""
    sections = {"atoll": _context(settings)}
    tiers: dict[str, bool] = {}
    with tempfile.TemporaryDirectory(prefix="atoll-doctor-") as scratch:
        for name in registry.names():
            found = asyncio.run(_tier(name, _config(settings, Path(scratch))))
            sections[name] = found
            tiers[name] = all(finding.verdict is not Verdict.FAIL for finding in found)
    return Report(sections, tiers)


def print_report(report: Report) -> None:
    """For people: one line per finding, what to do below it, a verdict at the end."""
    console = Console()
    for name, findings in report.sections.items():
        works = report.tiers.get(name)
        title = name if works is None else f"isolation tier {name}: {'works here' if works else 'does not work here'}"
        console.print(f"\n[bold]{title}[/bold]")
        for finding in findings:
            console.print(f"  {_MARKS[finding.verdict]} {finding.subject}: {finding.detail}", highlight=False)
            if finding.fix:
                console.print(f"       → {finding.fix}", highlight=False)
    verdict = "[green]Sandboxes can run here.[/green]" if report.usable else "[red]No sandbox can run here yet.[/red]"
    console.print(f"\n{verdict}{_tier_used(report)}")


def _tier_used(report: Report) -> str:
    chosen = next((name for name in automatic_order(list(report.tiers)) if report.tiers[name]), None)
    return f" `--isolation auto` uses the tier {chosen}." if chosen else ""


def mend(settings: Settings) -> list[str]:
    """Lets every tier fetch what it lacks into the tools directory; what was done, or why not, in words."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="atoll-doctor-") as scratch:
        for name in registry.names():
            try:
                backend = registry.load(name)(_config(settings, Path(scratch)))
                lines += [f"{name}: {done}" for done in asyncio.run(backend.fix())]
            except (AtollError, ImportError, AttributeError, OSError) as error:
                lines.append(f"{name}: not mended: {error}")
    return lines


def _config(settings: Settings, scratch: Path) -> BackendConfig:
    return BackendConfig(run_dir=scratch, tools_dir=settings.tools_dir, environ=dict(os.environ))


async def _tier(name: str, config: BackendConfig) -> list[Finding]:
    try:
        return await registry.load(name)(replace(config, run_dir=config.run_dir / name)).doctor()
    except (AtollError, ImportError, AttributeError, OSError) as error:
        return [Finding("load", Verdict.FAIL, str(error), "reinstall the package that brings this tier")]


def _context(settings: Settings) -> list[Finding]:
    found = [_data_dir(settings), _templates(settings.templates_dir), *_capacity(settings), _oom_killer()]
    found.append(_gpus(settings))
    server = running.find(settings.data_dir)
    detail = f"runs at {server.url}, pid {server.pid}" if server else "does not run"
    found.append(Finding("server", Verdict.OK, detail, "" if server else "start it with `atoll serve`"))
    return found


def _gpus(settings: Settings) -> Finding:
    gpus = NodeGpus(settings.cdi_dirs)
    notes, usable = gpus.refresh(), gpus.usable()
    left_out = f"; left out: {'; '.join(notes[:5])}" if notes else ""
    if not usable:
        hint = "a machine that has one: `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` (docs/gpu.md)"
        return Finding("GPU", Verdict.OK, f"none: no CDI file describes one{left_out}", hint)
    return Finding("GPU", Verdict.OK, f"{', '.join(one.qualified for one in usable)}{left_out}")


def _capacity(settings: Settings) -> list[Finding]:
    """What sandboxes may have here, and whether the kernel's process numbers are too few for many of them."""
    machine = machine_here(settings.data_dir)
    capacity = derive(machine, settings.sizes)
    most, all_, sums = capacity.maximum, capacity.at_once, capacity.total
    detail = (
        f"one sandbox at most {most.cpu_count} CPU, {most.memory_mib} MiB of memory, {most.disk_mib} MiB of disk, "
        f"{most.pids} processes; all together use at most {all_.memory_mib} MiB and {all_.pids} processes, and leave "
        f"{capacity.disk_reserve_mib} MiB of the disk free; their limits add up to at most {sums.memory_mib} MiB"
    )
    found = [Finding("capacity", Verdict.OK, detail)]
    if all_.pids < _ENOUGH_PIDS:
        words = (
            f"all sandboxes together may have {all_.pids} processes: a few that fork without end leave none to others"
        )
        found.append(Finding("processes", Verdict.WARN, words, "sysctl kernel.pid_max=4194304"))
    return found


def _oom_killer() -> Finding:
    if oom.score_of() <= oom.PROTECTED or caps.is_held(Cap.SYS_RESOURCE):
        return Finding("OOM killer", Verdict.OK, "it spares the server's processes while it finds others")
    words = "it may end the server's processes when memory runs out: they have no right to protect themselves"
    hint = f"give it CAP_SYS_RESOURCE (root has it outside containers), or OOMScoreAdjust={oom.PROTECTED} in its unit"
    return Finding("OOM killer", Verdict.WARN, words, hint)


def _data_dir(settings: Settings) -> Finding:
    path = settings.data_dir
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        return Finding("data directory", Verdict.FAIL, f"{nearest} cannot be written", "choose one with ATOLL_DATA_DIR")
    free_gib = shutil.disk_usage(nearest).free / 2**30
    stop_gib = 2 * derive(machine_here(path), settings.sizes).disk_reserve_mib / 1024
    if free_gib <= stop_gib:
        detail = f"{path}: {free_gib:.1f} GiB free; below {stop_gib:.1f} no sandbox is made (twice the reserve)"
        return Finding("data directory", Verdict.WARN, detail, "make room, or lower ATOLL_DISK_RESERVE_MIB")
    return Finding(
        "data directory", Verdict.OK, f"{path}: {free_gib:.0f} GiB free; below {stop_gib:.1f} no new sandbox"
    )


def _templates(path: Path) -> Finding:
    names = [template.template_id for template in TemplateStore(path).list_templates()]
    if "base" in names:
        return Finding("templates", Verdict.OK, ", ".join(names))
    missing = "" if shutil.which("mmdebstrap") else "apt-get install mmdebstrap, then "
    return Finding("templates", Verdict.WARN, f"no `base` in {path}", f"{missing}atoll template build base")
