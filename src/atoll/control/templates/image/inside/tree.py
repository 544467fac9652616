"""The layers of an image, each in a directory, seen as one file system. Standard library only: see `unpack`.

A path is looked up as a system that stands on the layers would: links of lower layers are followed, and never out of
the image. What a layer deletes is marked as in its archive: `.wh.NAME`, and OPAQUE where nothing below is to be seen.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

MARK = ".wh."
OPAQUE = ".wh..wh..opq"
PIECE = 1 << 20
_MAX_LINKS = 40
_MAX_DEPTH = 256

Parts = tuple[str, ...]


class LayerError(Exception):
    """The image is not what it should be; a message for the build's log."""


class Tree:
    """The layers so far as one file system, written to in the topmost one."""

    def __init__(self, layers: list[Path]) -> None:
        self.layers = layers
        self._directories: dict[Parts, list[int]] = {}

    def add_layer(self, path: Path) -> None:
        """A new topmost one."""
        path.mkdir(mode=0o755)
        self.layers.append(path)
        self._directories.clear()

    def changed(self) -> None:
        """A directory has gone or has become something else."""
        self._directories.clear()

    def own(self, parts: Parts) -> Path:
        """Where it lies in the topmost layer."""
        return self.layers[-1].joinpath(*parts)

    def holders(self, parts: Parts) -> list[int]:
        """The layers in which that directory is, from the top as far down as they are seen; [] if it is none."""
        if not parts:
            return list(range(len(self.layers) - 1, -1, -1))
        if parts not in self._directories:
            self._directories[parts] = [number for number, kind in self._seen(parts) if stat.S_ISDIR(kind.st_mode)]
        return self._directories[parts]

    def find(self, parts: Parts) -> tuple[int, os.stat_result] | None:
        """The layer that shows it, and what it is there. Its parents are no links."""
        return next(self._seen(parts), None)

    def _seen(self, parts: Parts) -> Iterator[tuple[int, os.stat_result]]:
        """What is visible under that path: one thing, or a directory of several layers."""
        *above, name = parts
        first = True
        for number in self.holders(tuple(above)):
            place = self.layers[number].joinpath(*above)
            try:
                found = os.lstat(place / name)
            except FileNotFoundError:
                if os.path.lexists(place / f"{MARK}{name}"):
                    return
                continue
            if not stat.S_ISDIR(found.st_mode):
                if first:
                    yield number, found
                return
            first = False
            yield number, found
            if os.path.lexists(place / name / OPAQUE):
                return

    def resolve(self, path: str) -> Parts:
        """Where `path` leads, all links followed but a last one that leads nowhere yet. Raises LayerError."""
        done: list[str] = []
        waiting = split(path)[::-1]
        links = 0
        while waiting:
            name = waiting.pop()
            if name == "..":
                done = done[:-1]
                continue
            found = self.find((*done, name))
            if found is not None and stat.S_ISLNK(found[1].st_mode):
                links += 1
                if links > _MAX_LINKS:
                    raise LayerError(f"{path[:200]!r} goes through too many links")
                target = os.readlink(self.layers[found[0]].joinpath(*done, name))
                if target.startswith("/"):
                    done = []
                waiting += split(target)[::-1]
                continue
            done.append(name)
        return tuple(done)

    def place(self, parts: Parts) -> Parts:
        """The same with its parents resolved, and made in the topmost layer as they look from it. Raises LayerError."""
        if len(parts) > _MAX_DEPTH:
            raise LayerError(f"a path of {len(parts)} parts")
        parent = self.resolve("/".join(parts[:-1]))
        for length in range(1, len(parent) + 1):
            self._own_directory(parent[:length])
        return (*parent, parts[-1])

    def _own_directory(self, parts: Parts) -> None:
        holders = self.holders(parts)
        if holders and holders[0] == len(self.layers) - 1:
            return
        path = self.own(parts)
        if os.path.lexists(path):
            path.unlink()  # a file where others want a directory
        path.mkdir(mode=0o755)
        with contextlib.suppress(FileNotFoundError):
            path.with_name(MARK + path.name).unlink()
            (path / OPAQUE).touch()
        if holders:
            below = os.stat(self.layers[holders[0]].joinpath(*parts))
            give(path, below.st_uid, below.st_gid, stat.S_IMODE(below.st_mode))
        self.changed()

    # What `fit` uses

    def exists(self, path: str) -> bool:
        """Whether it leads to something."""
        return self.find(self.resolve(path)) is not None if split(path) else True

    def read(self, path: str) -> str:
        """A text; "" if there is none."""
        parts = self.resolve(path)
        found = self.find(parts)
        if found is None or not stat.S_ISREG(found[1].st_mode) or found[1].st_size > PIECE:
            return ""
        return self.layers[found[0]].joinpath(*parts).read_text(errors="surrogateescape")

    def write(self, path: str, content: str | Path, mode: int = 0o644, owner: int = 0) -> None:
        """A text, or a copy of a file of the machine that unpacks; what it replaces keeps its mode and owner."""
        parts = self.place(self.resolve(path))
        target = self.own(parts)
        kept = self.find(parts)
        clear(target, self)
        if isinstance(content, Path):
            shutil.copyfile(content, target)
        else:
            target.write_text(content, errors="surrogateescape")
        if kept is not None:
            give(target, kept[1].st_uid, kept[1].st_gid, stat.S_IMODE(kept[1].st_mode))
        else:
            give(target, owner, owner, mode)

    def make_directory(self, path: str, mode: int = 0o755, owner: int = 0) -> None:
        """If there is nothing of that name."""
        if self.exists(path):
            return
        parts = self.place(self.resolve(path))
        self.own(parts).mkdir()
        give(self.own(parts), owner, owner, mode)
        self.changed()


def split(path: str) -> list[str]:
    """Its names, without those that mean nothing."""
    return [name for name in path.split("/") if name not in ("", ".")]


def give(path: Path, uid: int, gid: int, mode: int) -> None:
    """Owner and mode."""
    if os.geteuid() == 0:
        os.chown(path, uid, gid, follow_symlinks=False)
    if not path.is_symlink():
        path.chmod(mode)


def clear(path: Path, tree: Tree) -> None:
    """Nothing of that name is left in the topmost layer."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
        tree.changed()
    elif os.path.lexists(path):
        path.unlink()
