"""The runsc program: where it is, which release, which flags it knows. Never trusted to answer quickly."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atoll.model.errors import BackendUnavailable

SETTING = "ATOLL_RUNSC"
UNPACKED = Path("runsc") / "usr" / "bin" / "runsc"
"""Where `atoll doctor --fix` leaves it, below a tools directory."""

DEFAULT_PLATFORM = "systrap"
"""Works on any machine. kvm is faster where it works and may hang where it does not: only by setting."""

PLATFORM_SETTING = "ATOLL_RUNSC_PLATFORM"
_ANSWER_WITHIN_S = 10.0
_RELEASE = re.compile(r"release-(\d{8})|0\.0~(\d{8})|(\d{8})")


@dataclass(frozen=True, slots=True)
class Runsc:
    """One program. `flags` are the names of its global flags; `release` its date as YYYYMMDD, 0 if it has none."""

    path: Path
    version: str
    release: int
    flags: frozenset[str]
    how: str
    """Why it is this one, in words."""

    @property
    def honours_setuid(self) -> bool:
        """Whether set-uid programs such as sudo work inside."""
        return "allow-suid" in self.flags


def candidates(environ: Mapping[str, str], tools_dir: Path | None) -> list[tuple[Path, str]]:
    """Where to look, best first, and in words why there. A setting is the only candidate."""
    if chosen := environ.get(SETTING):
        return [(Path(chosen).absolute(), f"{SETTING} says so")]
    found: list[tuple[Path, str]] = []
    if on_path := shutil.which("runsc", path=environ.get("PATH", os.defpath)):
        found.append((Path(on_path).absolute(), "found on the PATH"))
    if tools_dir is not None and os.access(tools_dir / UNPACKED, os.X_OK):
        found.append((tools_dir / UNPACKED, "unpacked by `atoll doctor --fix`"))
    return found


async def find(environ: Mapping[str, str], tools_dir: Path | None) -> Runsc:
    """The newest usable candidate. Raises BackendUnavailable: there is none, with what to do."""
    faults: list[str] = []
    usable: list[Runsc] = []
    for path, how in candidates(environ, tools_dir):
        try:
            usable.append(await _ask(path, how))
        except (OSError, TimeoutError, ValueError) as error:
            faults.append(f"{path}: {error or type(error).__name__}")
    if usable:
        return max(usable, key=lambda one: one.release)  # the first of equals
    if faults:
        raise BackendUnavailable(f"runsc does not work: {'; '.join(faults)}", hint="reinstall it, or unset it")
    raise BackendUnavailable(
        "runsc (gVisor) is not installed",
        hint=f"`atoll doctor --fix` unpacks Debian's into the data directory; or name one with {SETTING}",
    )


async def _ask(path: Path, how: str) -> Runsc:
    version = (await _output(path, "--version")).splitlines()[0].removeprefix("runsc version ").strip()
    flags = frozenset(re.findall(r"^[ \t]+-([A-Za-z0-9_-]+)", await _output(path, "flags"), re.MULTILINE))
    if "host-uds" not in flags:
        raise ValueError(f"release {version} is too old: it knows no --host-uds (2023 and newer do)")
    found = _RELEASE.search(version)
    release = int(next(filter(None, found.groups()))) if found else 0
    return Runsc(path, version, release, flags, how)


async def _output(path: Path, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        str(path), *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(process.communicate(), _ANSWER_WITHIN_S)
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    text = out.decode(errors="replace")
    if not text.strip():
        raise ValueError(f"`{path.name} {' '.join(arguments)}` printed nothing (exit status {process.returncode})")
    return text
