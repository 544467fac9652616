"""What is in a volume, by paths of the interface. Works below one open directory, and never leaves it.

Sandboxes write into a volume what they like, at any time: links that lead out, pipes, trees without an end, names that
are no text. So every path is opened by `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`, whose look-up takes the
volume for the root whatever changes meanwhile; the last name is never followed but for reading; nothing but regular
files is read or written; and trees are walked without recursion. All of it blocks. Raises OSError.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from atoll.isolation.linux.sys.syscalls import call

MAX_PATH = 4095
_NR_NAME = "openat2"
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_DEPTH = 64
"""Directories that are open at a time while a tree is removed; what is deeper is first moved up."""
_MOST_PENDING = 100_000
"""Directories that a listing may have seen and not yet looked into."""
_REMOVE_WITHIN_S = 50.0
"""A sandbox may fill a directory as fast as it is emptied."""
_BATCH = 4096
"""Entries of a directory that are sorted and sent at a time."""
UPLOAD = ".atoll-upload-"
"""Begins the name of a file that is still coming."""
_LOOKS = 100

_TYPES = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class Entry(NamedTuple):
    """Something in the volume: its path there, what `lstat` says, and where a link leads."""

    path: str
    found: os.stat_result
    target: str | None

    @property
    def kind(self) -> str:
        """`file`, `directory`, `symlink` or `unknown`."""
        return _TYPES.get(stat.S_IFMT(self.found.st_mode), "unknown")


class Owner(NamedTuple):
    """What is to be set; None: as it is, or the default of a new one."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None

    def apply(self, descriptor: int) -> None:
        """To what is open. (A change of the owner takes set-uid bits away: the mode comes last.)"""
        if self.uid is not None or self.gid is not None:
            os.fchown(descriptor, -1 if self.uid is None else self.uid, -1 if self.gid is None else self.gid)
        if self.mode is not None:
            os.fchmod(descriptor, self.mode)

    def or_else(self, uid: int, gid: int, mode: int) -> Owner:
        """With these where nothing is set."""
        return Owner(
            uid if self.uid is None else self.uid,
            gid if self.gid is None else self.gid,
            mode if self.mode is None else self.mode,
        )


class Tree:
    """The volume whose top is open as `root`."""

    def __init__(self, root: int) -> None:
        self._root = root

    # -- looking -------------------------------------------------------------------------------------------------------

    def entry(self, path: str) -> Entry:
        """Links are not followed."""
        with self._place(path) as (directory, name):
            return _entry(directory, name, path)

    def open_directory(self, path: str) -> int:
        """For `listing`; links are followed. Raises NotADirectoryError."""
        return self._open(path, _DIRECTORY)

    def listing(self, descriptor: int, path: str, depth: int) -> Iterator[list[Entry]]:
        """What is below an open directory, which is closed; links are not followed.

        In batches that are sorted by name. What goes away meanwhile is left out.
        """
        pending = [(path, descriptor, 1)]
        try:
            while pending:
                path, descriptor, level = pending.pop()
                descriptor = self._reopen(path) if descriptor < 0 else descriptor
                if descriptor < 0:
                    continue
                try:
                    for batch in _batches(descriptor, path):
                        if level < depth:
                            below = [one for one in batch if one.kind == "directory"]
                            pending += [(one.path, -1, level + 1) for one in reversed(below)]
                            if len(pending) > _MOST_PENDING:
                                raise OSError(errno.E2BIG, "too many directories", path)
                        yield batch
                finally:
                    os.close(descriptor)
        finally:
            for _, unused, _ in pending:
                if unused >= 0:
                    os.close(unused)

    def _reopen(self, path: str) -> int:
        try:
            return self._open(path, _DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            return -1

    def open_file(self, path: str) -> int:
        """A regular file for reading; links are followed, within the volume."""
        descriptor = self._open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return descriptor
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a directory", path)
        raise OSError(errno.EINVAL, "it is no regular file", path)

    # -- changing ------------------------------------------------------------------------------------------------------

    def make_directory(self, path: str, owner: Owner, *, parents: bool) -> Entry:
        """`parents`: those that are missing are made too, and one that is there already is fine."""
        if parents:
            self.make_parents(path, owner)
        with self._place(path) as (directory, name):
            made = name != "." and _make_directory(directory, name, owner)
            entry = _entry(directory, name, path)
            if not made and not (parents and entry.kind == "directory"):
                raise FileExistsError(errno.EEXIST, "it is there already", path)
            return entry

    def make_parents(self, path: str, owner: Owner) -> None:
        """Every directory above it that is missing."""
        parts = path.strip("/").split("/")[:-1]
        for count in range(1, len(parts) + 1):
            with self._place("/" + "/".join(parts[:count])) as (directory, name), suppress(FileExistsError):
                _make_directory(directory, name, owner._replace(mode=None))

    def change(self, path: str, owner: Owner) -> Entry:
        """Links are not followed: they have an owner, and no mode."""
        with self._place(path) as (directory, name):
            if owner.uid is not None or owner.gid is not None:
                uid = -1 if owner.uid is None else owner.uid
                gid = -1 if owner.gid is None else owner.gid
                os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
            if owner.mode is not None:
                descriptor = os.open(
                    name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=directory
                )
                try:
                    os.fchmod(descriptor, owner.mode)
                finally:
                    os.close(descriptor)
            return _entry(directory, name, path)

    def remove(self, path: str) -> None:
        """With all that is below it. Raises PermissionError for the volume itself."""
        with self._place(path) as (directory, name):
            if name == ".":
                raise PermissionError(errno.EPERM, "the top of a volume cannot be removed", path)
            if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=directory)
                return
            top = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            try:
                deadline = time.monotonic() + _REMOVE_WITHIN_S
                while not _emptied(top, deadline):
                    pass
            finally:
                os.close(top)
            os.rmdir(name, dir_fd=directory)

    def upload(self, path: str, owner: Owner, *, parents: bool) -> Upload:
        """A file that is to come to `path`."""
        if parents:
            self.make_parents(path, owner)
        with self._place(path) as (directory, name):
            if name == ".":
                raise IsADirectoryError(errno.EISDIR, "it is a directory", path)
            return Upload(os.dup(directory), name, path, owner)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _open(self, path: str, flags: int) -> int:
        how = _OpenHow(flags, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
        name = os.fsencode(path.strip("/") or ".")
        for _ in range(_LOOKS):
            with suppress(BlockingIOError):  # something on the way was renamed meanwhile: the kernel looked at it half
                return self._look_up(name, how, path)
        raise OSError(errno.EBUSY, "it is being renamed all the time", path)

    def _look_up(self, name: bytes, how: _OpenHow, path: str) -> int:
        return call(_NR_NAME, self._root, name, ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)), subject=path)

    @contextmanager
    def _place(self, path: str) -> Iterator[tuple[int, str]]:
        """The directory in which the last name of `path` stands, and that name; `.` for the top."""
        above, _, name = path.strip("/").rpartition("/")
        directory = self._open(above, _PLACE)
        try:
            yield directory, name or "."
        finally:
            os.close(directory)


class Upload:
    """A file under way: whole under its name, or not there."""

    def __init__(self, directory: int, name: str, path: str, owner: Owner) -> None:
        """Takes over `directory`. Raises OSError; nothing is left then."""
        self._directory, self._name, self._path = directory, name, path
        self._temporary = f"{UPLOAD}{secrets.token_hex(8)}"
        self._descriptor = -1
        try:
            before = self._before()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self._temporary, flags, 0o600, dir_fd=directory)
            owner.or_else(*before).apply(self._descriptor)
        except BaseException:
            self.close()
            raise

    def _before(self) -> tuple[int, int, int]:
        """Owner and mode of the file that it replaces, else those of a new one."""
        try:
            found = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return DEFAULT_OWNER, DEFAULT_OWNER, 0o644
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a directory", self._path)
        if not stat.S_ISREG(found.st_mode):
            return DEFAULT_OWNER, DEFAULT_OWNER, 0o644
        return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode) & 0o777

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def commit(self) -> Entry:
        """It is there, and on the machine's disk."""
        os.fsync(self._descriptor)
        os.rename(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._temporary = ""
        above = os.open(".", _DIRECTORY, dir_fd=self._directory)
        try:
            os.fsync(above)
        finally:
            os.close(above)
        return _entry(self._directory, self._name, self._path)

    def close(self) -> None:
        """What was not committed is gone. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if self._temporary:
                with suppress(OSError):
                    os.unlink(self._temporary, dir_fd=self._directory)
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1


DEFAULT_OWNER = 1000
"""Of what is made by the interface: the user of E2B's templates."""


def _entry(directory: int, name: str, path: str) -> Entry:
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    target = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(found.st_mode) else None
    return Entry("/" + path.strip("/"), found, target)


def _make_directory(directory: int, name: str, owner: Owner) -> bool:
    """False: something of that name is there."""
    try:
        os.mkdir(name, 0o700, dir_fd=directory)
    except FileExistsError:
        return False
    made = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
    try:
        owner.or_else(DEFAULT_OWNER, DEFAULT_OWNER, 0o755).apply(made)
    finally:
        os.close(made)
    return True


def _batches(descriptor: int, path: str) -> Iterator[list[Entry]]:
    prefix = path.rstrip("/")
    names: list[str] = []

    def batch() -> list[Entry]:
        entries = []
        for name in sorted(names):
            with suppress(OSError):
                entries.append(_entry(descriptor, name, f"{prefix}/{name}"))
        return entries

    with os.scandir(descriptor) as found:
        for one in found:
            names.append(one.name)
            if len(names) == _BATCH:
                yield batch()
                names.clear()
    yield batch()


def _emptied(top: int, deadline: float) -> bool:
    """Removes what is in a directory. False: more has come, or was moved up from below."""
    moved = False
    stack: list[tuple[int, str, Any]] = [(top, "", os.scandir(top))]
    try:
        while stack:
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, "it could not be emptied in time; remove it again")
            directory, name, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                entries.close()
                stack.pop()
                if stack:
                    os.close(directory)
                    with suppress(FileNotFoundError):
                        os.rmdir(name, dir_fd=stack[-1][0])
            elif not entry.is_dir(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    os.unlink(entry.name, dir_fd=directory)
            elif len(stack) >= _DEPTH:
                with suppress(FileNotFoundError):
                    os.rename(entry.name, f"{UPLOAD}{secrets.token_hex(8)}", src_dir_fd=directory, dst_dir_fd=top)
                    moved = True
            else:
                with suppress(FileNotFoundError):
                    below = os.open(entry.name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                    stack.append((below, entry.name, os.scandir(below)))
    finally:
        for directory, _, entries in stack:
            entries.close()
            if directory != top:
                os.close(directory)
    return not moved
