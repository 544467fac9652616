"""Files and trees between the host and the sandbox as one stream: tar on the way in, zip on the way out.

Owns the formats and the two scripts that run in the sandbox; the transfer itself is the SDK's. Nothing is held in
memory whole, nothing is written beside the user's files, and what arrives is complete or not there: a tree is unpacked
in a directory of its own at the target and then moved into place.
"""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO

from atoll.runtime.files.untar import Kind, Member, members

CHUNK = 256 * 1024
PROGRESS_STEP = 1024 * 1024

UNPACK = r"""
set -e
dest=$1 archive=$2 owner=$3 name=$4
trap 'rm -f -- "$archive"; [ -z "$draft" ] || rm -rf -- "$draft"' EXIT
draft= made=
missing=$dest
while [ ! -e "$missing" ] && [ ! -L "$missing" ]; do made=$missing; missing=$(dirname -- "$missing"); done
[ -d "$missing" ] || { echo "$missing is not a directory" >&2; exit 20; }
mkdir -p -- "$dest"
[ -z "$made" ] || chown -R -h -- "$owner:" "$made"
draft=$(mktemp -d -- "$dest/.atoll-copy-XXXXXXXX")
tar -x -p --no-same-owner -f "$archive" -C "$draft"
chown -R -h -- "$owner:" "$draft"
if [ -d "$draft/$name" ] && [ -d "$dest/$name" ] && [ ! -L "$draft/$name" ]; then
  # Links, not copies: each file is replaced at once, and its data is not moved again.
  cp -a -l -f -T -- "$draft/$name" "$dest/$name" 2>/dev/null || cp -a -f -T -- "$draft/$name" "$dest/$name"
else
  mv -f -T -- "$draft/$name" "$dest/$name"
fi
"""
"""bash: unpacks `archive` into `dest` (made if missing) as files of `owner`; a directory that is there is added to."""

PACK = r"""
set -e
path=$1 archive=$2
[ -e "$path" ] || { echo "no such file or directory: $path" >&2; exit 20; }
if [ -d "$path" ]; then dir=$path what=.; else dir=$(dirname -- "$path") what=./$(basename -- "$path"); fi
status=0
tar -c -f "$archive" --format=pax --hard-dereference -C "$dir" -- "$what" || status=$?
[ "$status" -le 1 ] || { rm -f -- "$archive"; exit "$status"; }
"""
"""bash: packs a file or the content of a directory; exit code 1 of tar (a file changed meanwhile) is no failure."""


def tar_stream(source: Path) -> Iterator[bytes]:
    """A tar archive of `source`, dot-files, links, empty directories and modes included, under its own name.

    Owners are left out: files belong to the user who unpacks them. Sockets and devices are left out. Raises OSError.
    """
    name = source.name
    yield from _member(source, name)
    if source.is_dir() and not source.is_symlink():
        for directory, dirs, files in os.walk(source):
            for entry in sorted(dirs + files):
                path = Path(directory) / entry
                yield from _member(path, f"{name}/{path.relative_to(source).as_posix()}")
    yield bytes(tarfile.BLOCKSIZE * 2)


def tar_size(source: Path) -> int:
    """Bytes that `tar_stream` yields, but for long names and what changes meanwhile. Raises OSError."""
    block = tarfile.BLOCKSIZE
    sizes = [source.lstat()]
    if source.is_dir() and not source.is_symlink():
        for directory, dirs, files in os.walk(source):
            sizes += [os.lstat(os.path.join(directory, name)) for name in dirs + files]
    return 2 * block + sum(
        block + (-(-facts.st_size // block) * block if stat.S_ISREG(facts.st_mode) else 0) for facts in sizes
    )


def reported(chunks: Iterator[bytes], total: int, progress: Callable[[int, int], None]) -> Iterator[bytes]:
    """The chunks; `progress(done, total)` is called after every MiB, and at the end with both the same."""
    done = shown = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        if done - shown >= PROGRESS_STEP and done < total:
            shown = done
            progress(done, total)
    progress(total, total)


def _member(path: Path, name: str) -> Iterator[bytes]:
    facts = path.lstat()
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = stat.S_IMODE(facts.st_mode), int(facts.st_mtime)
    if stat.S_ISLNK(facts.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
    elif stat.S_ISDIR(facts.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISREG(facts.st_mode):
        info.size = facts.st_size
    else:
        return
    if not info.isreg():
        yield info.tobuf(tarfile.PAX_FORMAT)
        return
    with path.open("rb") as file:
        yield info.tobuf(tarfile.PAX_FORMAT)
        yield from _exactly(file, info.size)
    if rest := info.size % tarfile.BLOCKSIZE:
        yield bytes(tarfile.BLOCKSIZE - rest)


def _exactly(file: IO[bytes], size: int) -> Iterator[bytes]:
    """`size` bytes, whatever happens to the file meanwhile: cut if it grows, filled with zeros if it shrinks."""
    left = size
    while left:
        piece = file.read(min(CHUNK, left)) or bytes(min(CHUNK, left))
        left -= len(piece)
        yield piece


MAX_COPY_BYTES = 32 * 2**30
MAX_COPY_FILES = 1_000_000


class TooMuch(Exception):
    """What is to be copied is more than was allowed."""


def zip_of_tar(chunks: Iterator[bytes], max_bytes: int = MAX_COPY_BYTES) -> Path:
    """A temporary zip file with what the tar stream holds; the caller removes it.

    The sandbox wrote the stream. Left out: names that would leave the archive's root, links that point out of it, what
    stands below a link, and a second member of a name. Raises BadArchive, TooMuch.
    """
    with tempfile.NamedTemporaryFile(prefix="atoll-", suffix=".zip", delete=False) as out:
        try:
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as target:
                _Packer(target, max_bytes).add_all(members(_Reader(chunks).read))
        except BaseException:
            with suppress(OSError):
                os.unlink(out.name)
            raise
    return Path(out.name)


class _Packer:
    def __init__(self, target: zipfile.ZipFile, max_bytes: int) -> None:
        self._target = target
        self._max_bytes = max_bytes
        self._left = max_bytes
        self._links: set[PurePosixPath] = set()
        self._seen: set[PurePosixPath] = set()

    def add_all(self, found: Iterator[Member]) -> None:
        for number, member in enumerate(found):
            self._left -= member.size
            if self._left < 0:
                raise TooMuch(f"more than {self._max_bytes} bytes")
            if number >= MAX_COPY_FILES:
                raise TooMuch(f"more than {MAX_COPY_FILES} files")
            name = PurePosixPath(member.name)
            if self._may_stand(name, member):
                self._seen.add(name)
                self._add(name, member)

    def _may_stand(self, name: PurePosixPath, member: Member) -> bool:
        if name.is_absolute() or ".." in name.parts or str(name) == "." or name in self._seen:
            return False
        if self._links and not self._links.isdisjoint(name.parents):
            return False
        return member.kind is not Kind.LINK or _stays_inside(name, member.target)

    def _add(self, name: PurePosixPath, member: Member) -> None:
        info = zipfile.ZipInfo(str(name) + ("/" if member.kind is Kind.DIRECTORY else ""))
        info.compress_type = zipfile.ZIP_DEFLATED
        if member.kind is Kind.DIRECTORY:
            info.external_attr = (stat.S_IFDIR | member.mode) << 16
            self._target.writestr(info, b"")
        elif member.kind is Kind.LINK:
            self._links.add(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            self._target.writestr(info, member.target)
        else:
            info.external_attr = (stat.S_IFREG | member.mode) << 16
            with self._target.open(info, "w", force_zip64=True) as file:
                for piece in member.content:
                    file.write(piece)


def _stays_inside(name: PurePosixPath, target: str) -> bool:
    if not target or target.startswith("/"):
        return False
    depth = len(name.parts) - 1
    for part in PurePosixPath(target).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return False
    return True


class _Reader:
    """A stream of chunks as a file that can be read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = memoryview(b"")

    def read(self, size: int) -> bytes:
        """So many bytes, fewer only at the end."""
        parts: list[memoryview] = []
        while size:
            self._chunk = self._chunk or memoryview(next(self._chunks, b""))
            if not self._chunk:
                break
            piece, self._chunk = self._chunk[:size], self._chunk[size:]
            parts.append(piece)
            size -= len(piece)
        return b"".join(parts)
