"""The user's metadata of files: extended attributes, and where a file system has none, the guest's memory.

gVisor serves files through a helper that stores no attributes. There metadata is kept by inode number, with a watch on
the inode: however a file is renamed, replaced or removed, and by whomever, its metadata goes where an attribute would
go. The kernel reports a file's end before its number can be given to another, and reports are read before anything is
looked up. One difference is left: the watch is on the name a file had when it was written, so of several hard links
that one must live.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from atoll.guest.files.paths import shown
from atoll.guest.watch.inotify import DELETE_SELF, IGNORED, Q_OVERFLOW, Inotify

PREFIX = "user.e2b."
"""Extended attributes below this name are the user's metadata (E2B's choice)."""

MAX_KEPT = 16 << 20
"""Bytes of all metadata that is kept in memory; more is "no space left", as it would be on a disk."""
_EACH = 1024
"""What an entry costs beside its text."""

_File = tuple[int, int]


def read(file: str | int, found: os.stat_result, kept: Kept) -> dict[str, str]:
    """That of what stands at a path or is open as a descriptor, with the status `found`; {} where there is none.

    Regular files and directories have some. Never raises.
    """
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return {}
    for follow in (False, True) if isinstance(file, str) else (True,):
        try:
            return _stored(file, follow=follow) or dict(kept.get(found))
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # in gVisor the filter refuses the calls that do not follow links
                break
    return dict(kept.get(found))


def _stored(file: str | int, *, follow: bool) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for name in os.listxattr(file, follow_symlinks=follow):
        if name.startswith(PREFIX):
            try:
                value = os.getxattr(file, name, follow_symlinks=follow)
            except OSError as error:
                if error.errno in (errno.ENODATA, errno.ENOENT):
                    continue
                return metadata
            metadata[shown(name.removeprefix(PREFIX))] = value.decode("utf-8", "replace")
    return metadata


def replace(file: int, metadata: Mapping[str, str], kept: Kept) -> None:
    """Gives an open file this metadata in place of what it had. Raises OSError (ENOSPC: too much of it)."""
    try:
        for name in os.listxattr(file):
            if name.startswith(PREFIX):
                os.removexattr(file, name)
        for key, value in metadata.items():
            os.setxattr(file, PREFIX + key, value.encode())
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        kept.put(file, metadata)
    else:
        kept.put(file, {})  # gVisor refuses to set an attribute, but not to list those that it does not have


def copy_attributes(source: int, target: int, kept: Kept) -> None:
    """Every extended attribute and the metadata of an open file, as far as the target's file system takes them."""
    with contextlib.suppress(OSError):
        for name in os.listxattr(source):
            if not name.startswith(PREFIX):
                with contextlib.suppress(OSError):
                    os.setxattr(target, name, os.getxattr(source, name))
    with contextlib.suppress(OSError):
        if metadata := read(source, os.fstat(source), kept):
            replace(target, metadata, kept)


@dataclass(frozen=True, slots=True)
class _Entry:
    watch: int
    metadata: Mapping[str, str]

    @property
    def size(self) -> int:
        return _EACH + sum(len(key) + len(value) for key, value in self.metadata.items())


class Kept:
    """Metadata by file, for as long as the file lives."""

    def __init__(self) -> None:
        self._inotify: Inotify | None = None
        self._entries: dict[_File, _Entry] = {}
        self._files: dict[int, _File] = {}
        self._size = 0

    def get(self, found: os.stat_result) -> Mapping[str, str]:
        """What was put for the file with this status."""
        self._forget_ended()
        entry = self._entries.get((found.st_dev, found.st_ino))
        return entry.metadata if entry is not None else {}

    def put(self, file: int, metadata: Mapping[str, str]) -> None:
        """In place of what the open file had. Raises OSError; ENOSPC when there is no room for more."""
        self._forget_ended()
        found = os.fstat(file)
        key = (found.st_dev, found.st_ino)
        if (old := self._forget(key)) is not None and self._inotify is not None:
            self._inotify.remove(old.watch)
        if not metadata:
            return
        if self._inotify is None:
            self._inotify = Inotify()
        if self._size + _Entry(0, metadata).size > MAX_KEPT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        entry = _Entry(self._inotify.add(file, DELETE_SELF), dict(metadata))
        self._entries[key], self._files[entry.watch] = entry, key
        self._size += entry.size

    def close(self) -> None:
        """Forgets everything."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
        self._clear()

    def _clear(self) -> None:
        self._entries.clear()
        self._files.clear()
        self._size = 0

    def _forget_ended(self) -> None:
        """Reads every report that waits. One that was lost may have been of any file."""
        while self._inotify is not None and (events := self._inotify.read()):
            for event in events:
                if event.mask & Q_OVERFLOW:
                    self._clear()
                if event.mask & (DELETE_SELF | IGNORED) and (key := self._files.get(event.watch)) is not None:
                    self._forget(key)

    def _forget(self, key: _File) -> _Entry | None:
        if (entry := self._entries.pop(key, None)) is not None:
            del self._files[entry.watch]
            self._size -= entry.size
        return entry
