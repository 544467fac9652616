"""An ordinary user, made for a test by root: no account, an id of its own, a directory, and a way to run programs.

What it has to read (Python, the packages, the source) may lie in a closed home directory, root's for example. So it
runs in a mount namespace of its own in which such a directory is replaced by an empty one that shows these paths alone.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

UID = 61234


@dataclass(frozen=True)
class OrdinaryUser:
    """`place` is its own directory; `wrap` goes before a command that it is to run."""

    place: Path
    wrap: tuple[str, ...]

    def run(self, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """To its end, with its output as text."""
        return subprocess.run(
            [*self.wrap, *command], capture_output=True, text=True, check=False, timeout=timeout, cwd=self.place
        )

    def take(self, tree: Path, name: str) -> Path:
        """A copy of a tree that belongs to it."""
        target = self.place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", "--reflink=auto", "--", str(tree), str(target)], check=True)
        subprocess.run(["chown", "-hR", f"{UID}:{UID}", "--", str(target)], check=True)
        return target


@contextmanager
def ordinary_user() -> Iterator[OrdinaryUser]:
    """Gone afterwards with all that it owned."""
    place = Path(tempfile.mkdtemp(prefix="atoll-ordinary-"))
    try:
        (place / "home").mkdir()
        place.chmod(0o755)
        for path in (place, place / "home"):
            os.chown(path, UID, UID)
        source = Path(__file__).parents[2] / "src"
        needed = [Path(sys.base_prefix), Path(sys.prefix), source, Path(sys.executable).resolve().parents[1]]
        script = _script(needed, place)
        wrap = ("unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh")
        yield OrdinaryUser(place, wrap)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _script(needed: Sequence[Path], place: Path) -> str:
    """Shell: shows what is needed, becomes the user, runs its arguments."""
    hidden = {path: top for path in dict.fromkeys(needed) if (top := _closed(path)) is not None}
    lines = [f"mkdir -p {shlex.quote(str(place))}/hold"]
    for number, path in enumerate(hidden):
        hold = shlex.quote(f"{place}/hold/{number}")
        lines += [f"mkdir -p {hold}", f"mount --bind {shlex.quote(str(path))} {hold}"]
    lines += [f"mount -t tmpfs -o mode=0755 none {shlex.quote(str(top))}" for top in dict.fromkeys(hidden.values())]
    for number, path in enumerate(hidden):
        there = shlex.quote(str(path))
        lines += [f"mkdir -p {there}", f"mount --bind {shlex.quote(f'{place}/hold/{number}')} {there}"]
    become = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", f"HOME={place}/home"]
    lines.append(f'exec {shlex.join(become)} "$@"')
    return "\n".join(lines)


def _closed(path: Path) -> Path | None:
    """The topmost directory on the way to `path` that others may not enter."""
    for directory in reversed([path, *path.parents]):
        if not directory.stat().st_mode & 0o001:
            return directory
    return None
