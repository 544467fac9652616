"""What the machine has once for everybody and no sandbox may use up: looked at for `atoll doctor`. Changes nothing."""

from __future__ import annotations

from pathlib import Path

from atoll.isolation.base import Finding, Verdict

_BYTES_OF_A_FILE = 256
"""An open file's, charged to the memory of the process that opened it."""
_TERMINALS_LEFT = 8
"""Sandboxes that may use up their terminals at the same time before others feel it."""


def findings(terminals_each: int | None = None, proc: Path = Path("/proc")) -> list[Finding]:
    """`terminals_each`: how many of the machine's terminals one sandbox may take, if it takes any."""
    found = [_core_pattern(proc), _open_files(proc)]
    if terminals_each is not None:
        found.append(_terminals(proc, terminals_each))
    return found


def _core_pattern(proc: Path) -> Finding:
    pattern = _text(proc / "sys/kernel/core_pattern")
    if not pattern.startswith(("|", "@")):
        return Finding("core_pattern", Verdict.OK, f"a crash leaves {pattern or 'nothing'}")
    detail = f"a crash feeds a program of the host ({pattern[:80]}); sandboxes are kept from it by their limits alone"
    return Finding("core_pattern", Verdict.WARN, detail, "sysctl kernel.core_pattern=core, or mask that service")


def _open_files(proc: Path) -> Finding:
    most = _number(proc / "sys/fs/file-max")
    memory = next(
        (line.split()[1] for line in _text(proc / "meminfo").splitlines() if line.startswith("MemTotal")), "0"
    )
    possible = int(memory) * 1024 // _BYTES_OF_A_FILE
    if most >= possible:
        return Finding("open files", Verdict.OK, "memory ends before the machine's open files do")
    detail = f"fs.file-max is {most}: sandboxes with enough memory can leave others without files"
    return Finding("open files", Verdict.WARN, detail, f"sysctl fs.file-max={possible}")


def _terminals(proc: Path, each: int) -> Finding:
    most, reserved = _number(proc / "sys/kernel/pty/max"), _number(proc / "sys/kernel/pty/reserve")
    if most - reserved >= _TERMINALS_LEFT * each:
        return Finding("terminals", Verdict.OK, f"{most - reserved} for all sandboxes, {each} for one at most")
    detail = f"{most - reserved} for all sandboxes, and one may have {each}: a few can take all"
    return Finding("terminals", Verdict.WARN, detail, f"sysctl kernel.pty.max={reserved + 16 * each}")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text.isdigit() else 0
