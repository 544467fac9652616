"""Several layers become one that means the same on what lies below them.

    shown    overlay of all layers, read only          what a sandbox on them would see
    made     overlay of those below, with an empty     is made to look like `shown`; its own directory is the new layer
             directory on top

So the kernel writes whiteouts and opaque directories, by the rules by which it will read them. What has the same inode
and change time in both comes from below and was never touched. Both trees are nobody else's, and do not change.

A program of its own (`run`): it looks at every file of a template, and others are not to wait for that. Needs root.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from atoll.isolation.linux.disk import kept, mounts
from atoll.isolation.linux.disk.layers import Layers
from atoll.isolation.linux.sys import syscalls

WITHIN_S = 600.0
_LAYER, _WORK = "layer", "work"
_INODE = 0xFFFFFFFF
"""An overlay may put the number of the layer into the higher bits, and it is another one in the other overlay."""
_BOOT = "import json,sys; sys.path[:] = json.loads(sys.argv[1]); "
_BOOT += "from atoll.isolation.linux.disk.fold import main; main()"


async def run(layers: Sequence[Path], below: Sequence[Path], target: Path) -> Path:
    """The layer, in `target`, which is empty; on the machine's disk. Both sequences are top first. Raises OSError."""
    chains = {"layers": [str(one) for one in layers], "below": [str(one) for one in below]}
    order = {**chains, "target": str(target), "parent": os.getpid()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", _BOOT, json.dumps(sys.path),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.defpath},
    )  # fmt: skip
    try:
        _, words = await asyncio.wait_for(process.communicate(json.dumps(order).encode()), WITHIN_S)
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if process.returncode != 0:
        raise OSError(errno.EIO, f"layers cannot be folded: {words.decode(errors='replace').strip()[-300:]}")
    return target / _LAYER


def main() -> None:
    """Reads the order from standard input; errors go to standard error."""
    os.nice(10)
    order = json.load(sys.stdin)
    syscalls.end_with_parent(order["parent"])  # nobody would use what it makes
    try:
        fold([str(one) for one in order["layers"]], [str(one) for one in order["below"]], Path(order["target"]))
    except (OSError, RecursionError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


def fold(layers: Sequence[str], below: Sequence[str], target: Path) -> Path:
    """See `run`. Blocks."""
    opened: list[int] = []
    opener = Layers(keep=len(layers) + len(below))
    try:
        for name in (_LAYER, _WORK):
            (target / name).mkdir(mode=0o755)
        upper, work = (os.open(target / name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for name in (_LAYER, _WORK))
        opened += [upper, work]
        parts = [opener.open(path, None, opened) for path in (*layers, *below)]
        shown = mounts.overlay_shown(parts)
        opened.append(shown)
        made = mounts.overlay(parts[len(layers) :], upper, work, volatile=True)
        opened.append(made)
        _Likeness(Path(f"/proc/self/fd/{shown}"), Path(f"/proc/self/fd/{made}")).make()
    finally:
        for descriptor in reversed(opened):
            os.close(descriptor)
        opener.close()
    shutil.rmtree(target / _WORK)
    kept.sync_tree(target)
    return target / _LAYER


class _Likeness:
    """Makes one tree like another."""

    def __init__(self, shown: Path, made: Path) -> None:
        self._shown = shown
        self._made = made
        self._linked: dict[tuple[int, int], Path] = {}
        """Files with several names, by what they are in `shown`: where the first one is in `made`."""

    def make(self) -> None:
        pending, seen = [Path()], []
        while pending:
            place = pending.pop()
            seen.append(place)
            pending += self._enter(place)
        for place in reversed(seen):  # what is in a directory changes its times
            self._dress(place)

    def _enter(self, place: Path) -> list[Path]:
        """Makes what is right in a directory alike; its directories are still to be entered."""
        wanted, found = _entries(self._shown / place), _entries(self._made / place)
        for name in found.keys() - wanted.keys():
            _remove(self._made / place / name, found[name])
        directories = []
        for name, status in wanted.items():
            path, there = place / name, found.get(name)
            if stat.S_ISDIR(status.st_mode):
                directories.append(path)
                if there is not None and stat.S_ISDIR(there.st_mode):
                    continue
            elif there is not None and _is_same(status, there):
                if status.st_nlink > 1:
                    self._linked.setdefault((status.st_dev, status.st_ino), self._made / path)
                continue
            if there is not None:
                _remove(self._made / path, there)
            self._create(path, status)
        return directories

    def _create(self, path: Path, status: os.stat_result) -> None:
        shown, made, mode = self._shown / path, self._made / path, status.st_mode
        if stat.S_ISDIR(mode):
            made.mkdir(mode=0o700)
            return
        if status.st_nlink > 1:
            first = self._linked.setdefault((status.st_dev, status.st_ino), made)
            if first != made:
                os.link(first, made, follow_symlinks=False)
                return
        if stat.S_ISREG(mode):
            with shown.open("rb", buffering=0) as given, made.open("xb", buffering=0) as new:
                kept.copy_written(given.fileno(), new.fileno())
        elif stat.S_ISLNK(mode):
            made.symlink_to(os.readlink(shown))
        else:
            os.mknod(made, stat.S_IFMT(mode) | 0o600, status.st_rdev)
        _dress(shown, made, status)

    def _dress(self, place: Path) -> None:
        shown, made = self._shown / place, self._made / place
        status = os.lstat(shown)
        if not _is_same(status, os.lstat(made)):
            _dress(shown, made, status)


def _entries(directory: Path) -> dict[str, os.stat_result]:
    with os.scandir(directory) as entries:
        return {entry.name: entry.stat(follow_symlinks=False) for entry in entries}


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    return _identity(one) == _identity(other)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (
        *(status.st_ino & _INODE, status.st_ctime_ns, status.st_mtime_ns, status.st_mode),
        *(status.st_size, status.st_uid, status.st_gid),
    )


def _dress(shown: Path, made: Path, status: os.stat_result) -> None:
    """Owner, attributes, mode, times; in this order, for each may take away what comes later."""
    os.chown(made, status.st_uid, status.st_gid, follow_symlinks=False)
    wanted = {name: os.getxattr(shown, name, follow_symlinks=False) for name in _attributes(shown)}
    for name in _attributes(made) - wanted.keys():
        os.removexattr(made, name, follow_symlinks=False)
    for name, value in wanted.items():
        os.setxattr(made, name, value, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(made, stat.S_IMODE(status.st_mode))
    os.utime(made, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _attributes(path: Path) -> set[str]:
    try:
        return set(os.listxattr(path, follow_symlinks=False))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return set()
        raise


def _remove(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
