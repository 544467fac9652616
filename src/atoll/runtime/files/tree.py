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
from typing import IO, Any

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

    Owners are left out: files belong to whoever unpacks them. Sockets and devices are left out. Raises OSError.
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


def told(chunks: Iterator[bytes], total: int, progress: Callable[[int, int], None]) -> Iterator[bytes]:
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


def zip_of_tar(chunks: Iterator[bytes]) -> Path:
    """A temporary zip file with what the tar stream holds; the caller removes it.

    Names that would leave the archive's root (the sandbox wrote them) are left out. Links are kept as links.
    """
    stream: Any = _Reader(chunks)
    with tempfile.NamedTemporaryFile(prefix="atoll-", suffix=".zip", delete=False) as out:
        try:
            with (
                tarfile.open(fileobj=stream, mode="r|") as archive,
                zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as target,
            ):
                for member in archive:
                    _add(archive, member, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(out.name)
            raise
    return Path(out.name)


def _add(archive: tarfile.TarFile, member: tarfile.TarInfo, target: zipfile.ZipFile) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or str(name) == ".":
        return
    info = zipfile.ZipInfo(str(name) + ("/" if member.isdir() else ""))
    info.compress_type = zipfile.ZIP_DEFLATED
    if member.isdir():
        info.external_attr = (stat.S_IFDIR | member.mode) << 16
        target.writestr(info, b"")
    elif member.issym():
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        target.writestr(info, member.linkname)
    elif (source := archive.extractfile(member)) is not None:
        info.external_attr = (stat.S_IFREG | member.mode) << 16
        with target.open(info, "w", force_zip64=True) as file:
            while piece := source.read(CHUNK):
                file.write(piece)


class _Reader:
    """A stream of chunks as a file that tarfile can read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        parts, have = [self._rest], len(self._rest)
        while have < size or size < 0:
            piece = next(self._chunks, b"")
            if not piece:
                break
            parts.append(piece)
            have += len(piece)
        data = b"".join(parts)
        if size < 0:
            size = len(data)
        self._rest = data[size:]
        return data[:size]
