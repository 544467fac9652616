"""What is reported about a file: EntryInfo from a directory and a name.

As E2B's envd does it: a symlink is reported with the *type and mode of what it leads to* and with `symlink_target`; the
newest SDKs also read `is_symlink`. A dangling link is a SYMLINK in every SDK, so that a listing does not hide it.
`permissions` is Go's rendering of the entry's own mode (`-rw-r--r--`, `drwxr-xr-x`, `Lrwxrwxrwx`, `dtrwxrwxrwx`).
"""

from __future__ import annotations

import os
import stat
from typing import Protocol

from atoll.guest.files import metadata
from atoll.guest.files.paths import shown
from atoll.guest.files.safe_open import open_path
from atoll.wire.envd.filesystem import EntryInfo, FileType
from atoll.wire.envd.messages import Timestamp

_GO_TYPES = {
    stat.S_IFREG: "",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "L",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "S",
    stat.S_IFBLK: "D",
    stat.S_IFCHR: "Dc",
}


class Names(Protocol):
    """Numbers to names; `guest.users.Users` is one."""

    def name_of(self, uid: int) -> str: ...

    def group_name_of(self, gid: int) -> str: ...


class CachedNames:
    """The same for one answer: each number is looked up once, however long the listing."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}

    def name_of(self, uid: int) -> str:
        if uid not in self._users:
            self._users[uid] = self._names.name_of(uid)
        return self._users[uid]

    def group_name_of(self, gid: int) -> str:
        if gid not in self._groups:
            self._groups[gid] = self._names.group_name_of(gid)
        return self._groups[gid]


def permissions(mode: int) -> str:
    """`mode` as Go's `FileMode.String` writes it: type letters (or `-`), then `rwxrwxrwx`."""
    kind = _GO_TYPES.get(stat.S_IFMT(mode), "?")
    letters = kind[:1]
    letters += "u" if mode & stat.S_ISUID else ""
    letters += "g" if mode & stat.S_ISGID else ""
    letters += kind[1:]
    letters += "t" if mode & stat.S_ISVTX else ""
    return (letters or "-") + stat.filemode(mode & 0o777)[1:]


def type_of(mode: int) -> FileType:
    """Regular files, directories and links; everything else (devices, FIFOs, sockets) is unspecified, as in E2B."""
    if stat.S_ISREG(mode):
        return FileType.FILE_TYPE_FILE
    if stat.S_ISDIR(mode):
        return FileType.FILE_TYPE_DIRECTORY
    if stat.S_ISLNK(mode):
        return FileType.FILE_TYPE_SYMLINK
    return FileType.FILE_TYPE_UNSPECIFIED


def describe(directory: int, name: str, path: str, names: Names, kept: metadata.Kept) -> EntryInfo:
    """The entry `name` in the open directory; `path` is what the caller knows it by. Raises OSError."""
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    mode = found.st_mode
    kind = type_of(mode)
    target: str | None = None
    is_link = stat.S_ISLNK(mode)
    shown_mode = mode
    if is_link:
        target, kind, shown_mode = _link(directory, name, path)
    return EntryInfo(
        name=shown(os.path.basename(path) or "/"),
        type=kind,
        path=shown(path),
        size=found.st_size,
        mode=shown_mode & 0o777,
        permissions=permissions(mode),
        owner=names.name_of(found.st_uid),
        group=names.group_name_of(found.st_gid),
        modified_time=Timestamp.from_ns(found.st_mtime_ns),
        symlink_target=target,
        metadata={} if is_link else metadata.read(path, found, kept),
        is_symlink=is_link,
    )


def _link(directory: int, name: str, path: str) -> tuple[str, FileType, int]:
    """Target as text, type and mode of what the link leads to; of the link itself where it leads nowhere."""
    text = os.readlink(name, dir_fd=directory)
    try:
        fd = open_path(path, os.O_PATH)
    except OSError:
        return shown(text), FileType.FILE_TYPE_SYMLINK, 0o777
    try:
        mode = os.fstat(fd).st_mode
        return shown(os.readlink(f"/proc/self/fd/{fd}")), type_of(mode), mode
    finally:
        os.close(fd)
