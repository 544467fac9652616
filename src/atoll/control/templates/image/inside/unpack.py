"""Unpacks the layers of a fetched image, each into a directory of its own, and adds one that makes it fit for use.

    unpack ORDER.json      ORDER: blobs, diff_ids, from (a directory), into (a directory), user, limits

    into/0 … into/n-1   the image's layers, lowest first, see `tree`
    into/n              what every sandbox needs and the image lacks, see `fit`

Runs inside the sandbox of an import. The last line of standard output is the answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from atoll.control.templates.image.inside.fit import fit
from atoll.control.templates.image.inside.tree import MARK, OPAQUE, PIECE, LayerError, Parts, Tree, clear, give, split

_NOBODY = 65534


class Unpacking:
    """One image's archives, within limits: `bytes`, `entries`."""

    def __init__(self, tree: Tree, limits: dict[str, int]) -> None:
        self._tree = tree
        self._limits = limits
        self._bytes = 0
        self._entries = 0
        self.left_out: dict[str, int] = {}

    def layer(self, archive: Path, diff_id: str, into: Path) -> None:
        """Fills a new layer. Raises LayerError, OSError."""
        self._tree.add_layer(into)
        seen = hashlib.sha256()
        with _plain(archive) as content:
            counted = _Counted(content, seen.update, self._count_bytes)
            try:
                with tarfile.open(fileobj=counted, mode="r|", errorlevel=2) as members:  # type: ignore[call-overload]
                    for member in members:
                        members.members = []  # it would remember all of them
                        self._count_entry()
                        self._entry(members, member)
            except tarfile.TarError as error:
                raise LayerError(f"the archive is broken: {error}") from error
            counted.drain()
        if seen.hexdigest() != diff_id:
            raise LayerError(
                f"its content has the digest {seen.hexdigest()[:12]}…, and not {diff_id[:12]}… as promised"
            )

    def _count_bytes(self, more: int) -> None:
        self._bytes += more
        if self._bytes > self._limits["bytes"]:
            raise LayerError(f"the image is larger than {self._limits['bytes'] >> 20} MiB when it is unpacked")

    def _count_entry(self) -> None:
        self._entries += 1
        if self._entries > self._limits["entries"]:
            raise LayerError(f"the image has more than {self._limits['entries']} files")

    def _entry(self, members: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = tuple(split(member.name))
        if ".." in parts or any(len(part.encode(errors="surrogateescape")) > 255 for part in parts):
            raise LayerError(f"the path {member.name[:200]!r} leaves the image, or has a part that is too long")
        if not parts:
            return
        name = parts[-1]
        parts = self._tree.place(parts)
        target = self._tree.own(parts)
        if name.startswith(MARK):
            self._mark(parts)
            return
        if member.isdir():
            self._directory(target)
        elif member.isreg():
            clear(target, self._tree)
            self._file(members, member, target)
        elif member.issym():
            clear(target, self._tree)
            os.symlink(member.linkname, target)
        elif member.islnk():
            self._hard_link(member.linkname, target)
            return
        elif member.isfifo():
            clear(target, self._tree)
            os.mkfifo(target)
        else:
            kind = "devices" if member.isdev() else "entries of an unknown kind"
            self.left_out[kind] = self.left_out.get(kind, 0) + 1
            return
        uid, gid = (one if 0 <= one < _NOBODY + 2 else _NOBODY for one in (member.uid, member.gid))
        give(target, uid, gid, member.mode & 0o7777)
        if not member.isdir():
            with contextlib.suppress(OSError, OverflowError):
                os.utime(target, (member.mtime, member.mtime), follow_symlinks=False)

    def _directory(self, target: Path) -> None:
        if target.is_dir() and not target.is_symlink():
            return
        clear(target, self._tree)
        target.mkdir()
        whiteout = target.with_name(MARK + target.name)
        if os.path.lexists(whiteout):  # deleted and made anew: nothing of the old one shows
            whiteout.unlink()
            (target / OPAQUE).touch()
        self._tree.changed()

    def _file(self, members: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
        content = members.extractfile(member)
        assert content is not None
        with target.open("xb") as file:
            shutil.copyfileobj(content, file, PIECE)

    def _mark(self, parts: Parts) -> None:
        name = parts[-1]
        hidden = name[len(MARK) :]
        if name != OPAQUE and (hidden in ("", ".", "..") or hidden.startswith(MARK)):
            return  # other marks are notes of those who made the layer
        if name != OPAQUE and os.path.lexists(self._tree.own((*parts[:-1], hidden))):
            if not self._tree.own((*parts[:-1], hidden)).is_dir():
                return  # the layer has another one itself
            parts = (*parts[:-1], hidden, OPAQUE)
        self._tree.own(parts).touch()
        self._tree.changed()

    def _hard_link(self, linkname: str, target: Path) -> None:
        if ".." in (names := split(linkname)) or not names:
            raise LayerError(f"the link to {linkname[:200]!r} leaves the image")
        parts = (*self._tree.resolve("/".join(names[:-1])), names[-1])
        found = self._tree.find(parts)
        if found is None or stat.S_ISDIR(found[1].st_mode):
            raise LayerError(f"a link leads to {linkname[:200]!r}, which is no file of the image")
        source = self._tree.layers[found[0]].joinpath(*parts)
        if os.path.lexists(target) and os.path.samefile(source, target):
            return
        clear(target, self._tree)
        if found[0] == len(self._tree.layers) - 1:
            os.link(source, target, follow_symlinks=False)
        else:
            self._count_bytes(found[1].st_size)
            shutil.copyfile(source, target, follow_symlinks=False)
            give(target, found[1].st_uid, found[1].st_gid, stat.S_IMODE(found[1].st_mode))


class _Counted:
    """A stream that is counted and digested while it is read."""

    def __init__(self, source: IO[bytes], digest: Callable[[bytes], None], count: Callable[[int], None]) -> None:
        self._source, self._digest, self._count = source, digest, count

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size if size > 0 else PIECE)
        self._digest(data)
        self._count(len(data))
        return data

    def drain(self) -> None:
        """What follows the archive's end belongs to the digest too."""
        while self.read(PIECE):
            pass


@contextmanager
def _plain(archive: Path) -> Iterator[IO[bytes]]:
    """The archive's content; gzip and zstd are known by how they begin."""
    with archive.open("rb") as file:
        head = file.read(4)
    program = {b"\x1f\x8b": ["gzip", "-dc"], b"\x28\xb5": ["zstd", "-dcq", "--memory=256MB"]}.get(head[:2])
    if program is None:
        with archive.open("rb") as file:
            yield file
        return
    with (
        archive.open("rb") as file,
        subprocess.Popen(program, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield process.stdout
        except BaseException:
            process.kill()
            raise
        why = process.stderr.read(500).decode(errors="replace").strip()
        if process.wait() != 0:
            raise LayerError(f"the archive is broken: {why}")


def main(path: str) -> int:
    """The exit status is 0 in any case that has an answer."""
    order: dict[str, Any] = json.loads(Path(path).read_bytes())
    into, come_from = Path(order["into"]), Path(order["from"])
    into.mkdir()
    tree = Tree([])
    unpacking = Unpacking(tree, order["limits"])
    number = -1
    try:
        for number, (blob, diff_id) in enumerate(zip(order["blobs"], order["diff_ids"], strict=True)):
            unpacking.layer(come_from / blob, diff_id, into / str(number))
            if blob not in order["blobs"][number + 1 :]:
                (come_from / blob).unlink()
            print(f"layer {number + 1}/{len(order['blobs'])}: unpacked", file=sys.stderr, flush=True)
        for what, count in unpacking.left_out.items():
            print(f"{count} {what} of the image were left out", file=sys.stderr)
        number = -1
        tree.add_layer(into / str(len(order["blobs"])))
        answer: dict[str, Any] = {"user": fit(tree, order["user"])}
    except (LayerError, OSError, RecursionError) as error:
        where = f"layer {number + 1} of {len(order['blobs'])}: " if number >= 0 else ""
        full = isinstance(error, OSError) and error.errno == 28
        why = "it does not fit on the disk of the build's sandbox" if full else str(error)
        answer = {"error": {"kind": "bad", "message": where + why}}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
