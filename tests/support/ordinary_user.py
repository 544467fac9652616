"""An ordinary user, made for a test by root: an id of its own, a directory, and a way to run programs.

What it has to read (Python, the packages, the source) may lie in a closed home directory, root's for example. So it
runs in a mount namespace of its own in which such a directory is replaced by an empty one that shows these paths alone.
There it has an account too, if it is to have subordinate ids. The machine's own files stay as they are.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

UID = 61234
SUBORDINATE = 1_879_100_000
"""The first of its 65,536 subordinate ids, where it has some: beyond those that systemd and others give away."""


@dataclass(frozen=True)
class OrdinaryUser:
    """`place` is its own directory; `wrap` goes before a command that it is to run."""

    place: Path
    wrap: tuple[str, ...]
    has_subordinate_ids: bool = False

    def run(self, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """To its end, with its output as text."""
        return subprocess.run(
            [*self.wrap, *command], capture_output=True, text=True, check=False, timeout=timeout, cwd=self.place
        )

    def take(self, tree: Path, name: str) -> Path:
        """A copy of a tree that belongs to it; what is not root's there belongs to its subordinate ids."""
        target = self.place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", "--reflink=auto", "--", str(tree), str(target)], check=True)
        for directory, names, files in os.walk(target):
            for name in (".", *names, *files):
                self._give(os.path.join(directory, name))
        return target

    def _give(self, path: str) -> None:
        found = os.lstat(path)
        if UID in (found.st_uid, found.st_gid) or found.st_uid >= SUBORDINATE:
            return  # a directory comes up twice
        os.chown(path, self._id(found.st_uid), self._id(found.st_gid), follow_symlinks=False)
        if stat.S_ISREG(found.st_mode) and found.st_mode & 0o6000:  # a change of owner takes these away
            os.chmod(path, stat.S_IMODE(found.st_mode))

    def _id(self, number: int) -> int:
        return SUBORDINATE + number - 1 if number and self.has_subordinate_ids else UID


@contextmanager
def ordinary_user(*, subordinate_ids: bool = False) -> Iterator[OrdinaryUser]:
    """Gone afterwards with all that it owned."""
    place = Path(tempfile.mkdtemp(prefix="atoll-ordinary-"))
    try:
        (place / "home").mkdir()
        place.chmod(0o755)
        for path in (place, place / "home"):
            os.chown(path, UID, UID)
        source = Path(__file__).parents[2] / "src"
        needed = [Path(sys.base_prefix), Path(sys.prefix), source, Path(sys.executable).resolve().parents[1]]
        script = _script(needed, place, subordinate_ids=subordinate_ids)
        wrap = ("unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh")
        yield OrdinaryUser(place, wrap, subordinate_ids)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _script(needed: Sequence[Path], place: Path, *, subordinate_ids: bool) -> str:
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
    if subordinate_ids:
        accounts = {"passwd": f"ordinary:x:{UID}:{UID}::{place}/home:/bin/sh", "group": f"ordinary:x:{UID}:"}
        accounts |= dict.fromkeys(("subuid", "subgid"), f"ordinary:{SUBORDINATE}:65536")
        for name, line in accounts.items():
            copy = shlex.quote(f"{place}/{name}")
            lines += [f"cat /etc/{name} > {copy}", f"echo {shlex.quote(line)} >> {copy}"]
            lines.append(f"mount --bind {copy} /etc/{name}")
    become = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", f"HOME={place}/home"]
    lines.append(f'exec {shlex.join(become)} "$@"')
    return "\n".join(lines)


def _closed(path: Path) -> Path | None:
    """The topmost directory on the way to `path` that others may not enter."""
    for directory in reversed([path, *path.parents]):
        if not directory.stat().st_mode & 0o001:
            return directory
    return None
