"""`atoll service`: the server as a unit of systemd. Says what it does; with `--dry-run` it says it and does nothing.

As root a unit of the system, else one of the user's own manager. Its settings (`ATOLL_…`, `OTEL_…`) lie in a file of
their own with mode 0600, because keys are among them; it is written once and never again, so edits stay.

What the unit cannot take away: sandboxes are made by its processes and inherit what systemd puts on them. Filters of
system calls and address families would hold inside sandboxes too, `NoNewPrivileges` would end `sudo` in them, and a
mount namespace of the unit's own would end with it, while sandboxes outlive a restart. The processes that strangers
speak to confine themselves (`server/rights.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atoll.cli import running
from atoll.config import Settings
from atoll.isolation.linux.sys import oom
from atoll.model.errors import PlatformError

SYSTEM_DATA_DIR = Path("/var/lib/atoll")
"""Where a unit of the system keeps its data, unless another place is named."""

_DROPPED = (
    "CAP_SYS_MODULE CAP_SYS_BOOT CAP_SYS_RAWIO CAP_SYS_PACCT CAP_SYS_TTY_CONFIG CAP_MAC_ADMIN CAP_MAC_OVERRIDE "
    "CAP_AUDIT_CONTROL CAP_AUDIT_READ CAP_AUDIT_WRITE CAP_BLOCK_SUSPEND CAP_WAKE_ALARM CAP_LEASE CAP_LINUX_IMMUTABLE"
)
_FILE_HEADER = "# Settings of Atoll's service, one NAME=value a line; `systemctl restart atoll` takes them.\n"
_PATHS = frozenset(
    {
        "ATOLL_TEMPLATES_DIR",
        "ATOLL_TOOLS_DIR",
        "ATOLL_AGENT_DATA_DIR",
        "ATOLL_TLS_CERT",
        "ATOLL_TLS_KEY",
        "ATOLL_CLOCK_OFFSET_FILE",
    }
)
_LISTS_OF_PATHS = frozenset({"ATOLL_CDI_DIRS"})
_PROGRAMS = frozenset({"ATOLL_RUNSC"})
"""A name is looked up in PATH."""
_STOP_WITHIN_S = 60
_WITHIN_S = 120


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service of that name lies."""

    name: str
    unit: Path
    settings: Path
    is_system: bool

    @staticmethod
    def of(name: str, environ: Mapping[str, str], *, as_root: bool) -> Place:
        """For root the system's, else the user's own."""
        if as_root:
            return Place(name, Path(f"/etc/systemd/system/{name}.service"), Path(f"/etc/atoll/{name}.env"), True)
        home = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/")) / ".config")
        return Place(name, home / f"systemd/user/{name}.service", home / f"atoll/{name}.env", False)

    def systemctl(self, *words: str) -> list[str]:
        """The command line."""
        return ["systemctl", *([] if self.is_system else ["--user"]), *words]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is done. `text` is written to `path`, or `command` runs, or `path` is removed."""

    what: str
    path: Path | None = None
    text: str | None = None
    mode: int = 0o644
    command: tuple[str, ...] = ()
    may_fail: bool = False


def unit_text(place: Place, data_dir: Path, python: str = sys.executable) -> str:
    """The unit. It does not end sandboxes with the server: they are in groups of their own, and are adopted later."""
    command = " ".join(map(quoted, [python, "-m", "atoll", "serve", "--data-dir", str(data_dir), "--keep-sandboxes"]))
    lines = [
        "[Unit]",
        "Description=Atoll, sandboxes for AI agents",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart={command}",
        f"EnvironmentFile=-{str(place.settings).replace('%', '%%')}",
        "Restart=on-failure",
        "RestartSec=1",
        "# The server ends its own processes; sandboxes stay for the next one to adopt.",
        "KillMode=process",
        f"TimeoutStopSec={_STOP_WITHIN_S}",
        "LimitNOFILE=1048576",
        "TasksMax=infinity",
    ]
    if place.is_system:
        lines += [
            f"OOMScoreAdjust={oom.PROTECTED}",
            "# What no part of it needs. Why not more: `atoll service --help`.",
            f"CapabilityBoundingSet=~{_DROPPED}",
            "KeyringMode=private",
            "SystemCallArchitectures=native",
        ]
    target = "multi-user.target" if place.is_system else "default.target"
    return "\n".join([*lines, "", "[Install]", f"WantedBy={target}", ""])


def quoted(word: str) -> str:
    """A word of ExecStart, in which systemd expands `%` and `$`."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if any(letter in word for letter in " \t\"'\\;") else escaped


def settings_text(environ: Mapping[str, str]) -> str:
    """Those that are set where the service is installed, and hold for `/`; its data directory is in the unit."""
    kept = {
        name: _absolute(name, value)
        for name, value in sorted(environ.items())
        if name.startswith(("ATOLL_", "OTEL_")) and name != "ATOLL_DATA_DIR" and value.isprintable()
    }
    lines = [f'{name}="{_in_file(value)}"\n' for name, value in kept.items()]
    return _FILE_HEADER + "".join(lines)


def _absolute(name: str, value: str) -> str:
    """With the paths as they are in the directory of this shell."""
    if name in _LISTS_OF_PATHS:
        return ",".join(str(Path(one.strip()).absolute()) for one in value.split(",") if one.strip())
    if name in _PATHS or (name in _PROGRAMS and "/" in value):
        return str(Path(value).absolute()) if value else value
    return value


def _in_file(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("`", "\\`")


def install_steps(place: Place, data_dir: Path, environ: Mapping[str, str]) -> list[Step]:
    """In their order. A file of settings that is there stays."""
    steps = [Step(f"write {place.unit}", place.unit, unit_text(place, data_dir))]
    if not place.settings.exists():
        what = f"write {place.settings} (settings of this shell; mode 0600)"
        steps.append(Step(what, place.settings, settings_text(environ), 0o600))
    for words in (("daemon-reload",), ("enable", f"{place.name}.service"), ("restart", f"{place.name}.service")):
        command = tuple(place.systemctl(*words))
        steps.append(Step(f"run {' '.join(command)}", command=command))
    return steps


def uninstall_steps(place: Place) -> list[Step]:
    """In their order. Data, settings and running sandboxes stay."""
    disable, reload = (
        tuple(place.systemctl(*words)) for words in (("disable", "--now", f"{place.name}.service"), ("daemon-reload",))
    )
    return [
        Step(f"run {' '.join(disable)}", command=disable, may_fail=True),
        Step(f"remove {place.unit}", place.unit),
        Step(f"run {' '.join(reload)}", command=reload, may_fail=True),
    ]


def carry_out(step: Step) -> None:
    """Raises OSError, PlatformError with what the command printed."""
    if step.command:
        _run(step)
    elif step.path is not None and step.text is not None:
        step.path.parent.mkdir(parents=True, exist_ok=True)
        draft = step.path.with_name(f".{step.path.name}.{os.getpid()}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, step.mode), "w") as file:
            file.write(step.text)
        draft.rename(step.path)
    elif step.path is not None:
        step.path.unlink(missing_ok=True)


def _run(step: Step) -> None:
    try:
        done = subprocess.run(step.command, capture_output=True, text=True, timeout=_WITHIN_S, check=False)
    except FileNotFoundError as error:
        if step.may_fail:
            return
        raise PlatformError(
            "this machine has no systemd (no systemctl)", hint="start `atoll serve` otherwise"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise PlatformError(
            f"{' '.join(step.command)}: no end within {_WITHIN_S} s", hint="journalctl -u atoll"
        ) from error
    if done.returncode != 0 and not step.may_fail:
        text = (done.stderr or done.stdout).strip()[-500:]
        raise PlatformError(
            f"{' '.join(step.command)} ended with {done.returncode}: {text}", hint="journalctl -u atoll"
        )


def status(place: Place, settings: Settings) -> dict[str, str]:
    """What is installed, what systemd says of it, and whether a server answers for the data directory."""
    server = running.find(settings.data_dir)
    return {
        "unit": str(place.unit) if place.unit.exists() else "not installed",
        "enabled": _word(place, "is-enabled"),
        "active": _word(place, "is-active"),
        "server": f"runs at {server.url}, pid {server.pid}" if server else "does not run",
        "data directory": str(settings.data_dir),
    }


def _word(place: Place, question: str) -> str:
    try:
        done = subprocess.run(
            place.systemctl(question, f"{place.name}.service"), capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown: systemctl does not answer"
    return (done.stdout.strip() or done.stderr.strip() or "unknown").splitlines()[0][:200]
