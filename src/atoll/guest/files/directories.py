"""Directories made and trees removed, a name at a time relative to open directories.

A path that changes under us while we work is never followed. Long work lets the event loop run in between;
nothing here needs a thread.
"""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import dataclass

from atoll.guest.files.safe_open import open_path, open_place

BATCH = 128
"""Files handled between two turns of the event loop: about a millisecond."""
_OPEN_LEVELS = 32
"""Directories kept open while a tree is removed, however deep it is."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def ensure_directories(path: str, uid: int, gid: int) -> None:
    """Makes `path` and what is missing above it, mode 0755, owned by the user. What exists stays as it is.

    Raises OSError: NotADirectoryError when something on the way is a file.
    """
    missing: list[str] = []
    head = path
    while True:
        try:
            fd = open_path(head, os.O_PATH | os.O_DIRECTORY)
            break
        except FileNotFoundError:
            if head == "/":
                raise
            head, name = os.path.split(head)
            missing.append(name)
    try:
        for name in reversed(missing):
            inner = _make(fd, name, uid, gid)
            os.close(fd)
            fd = inner
    finally:
        os.close(fd)


def _make(parent: int, name: str, uid: int, gid: int) -> int:
    if name in ("", ".", ".."):
        return os.open(name or ".", _DIRECTORY, dir_fd=parent)
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    except FileExistsError:
        # Somebody was quicker; or a dangling link stands there, which the next line refuses.
        return os.open(name, _DIRECTORY, dir_fd=parent)
    fd = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        os.fchown(fd, uid, gid)
        os.fchmod(fd, 0o755)
    except BaseException:
        os.close(fd)
        raise
    return fd


async def remove(path: str) -> None:
    """Removes a file, a link or a whole tree, as `rm -rf` does: nothing there is no error. Raises OSError."""
    try:
        place = open_place(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if place.name == ".":
            raise OSError(errno.EBUSY, "cannot remove the root directory or a path that ends in `..`", path)
        await remove_at(place.directory, place.name)
    finally:
        os.close(place.directory)


async def remove_at(directory: int, name: str) -> None:
    """The same for a name in an open directory. Raises OSError."""
    if not _remove_leaf(directory, name):
        await _remove_tree(directory, name)


def _remove_leaf(directory: int, name: str) -> bool:
    """Removes what needs no descent; False for a directory with something in it."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return True
    except (IsADirectoryError, PermissionError):
        # Linux answers EISDIR, other systems (and gVisor) EPERM, for a directory.
        try:
            os.rmdir(name, dir_fd=directory)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
    return True


@dataclass(slots=True)
class _Level:
    """A directory that is being emptied. `fd` is -1 while too many deeper ones are open."""

    name: str
    fd: int
    identity: tuple[int, int]
    waiting: list[str]


async def _remove_tree(parent: int, name: str) -> None:
    levels = [await _enter(parent, name)]
    try:
        while levels:
            level = levels[-1]
            if level.waiting:
                child = level.waiting.pop()
                if not _remove_leaf(level.fd, child):
                    levels.append(await _enter(level.fd, child))
                    if len(levels) > _OPEN_LEVELS:
                        above = levels[-1 - _OPEN_LEVELS]
                        os.close(above.fd)
                        above.fd = -1
                continue
            above_fd = _parent_of(levels, parent)
            if not _remove_leaf(above_fd, level.name):
                # Somebody writes into it at the same time: once more, as long as there is something to take away.
                level.waiting = await _empty(level.fd)
                continue
            os.close(level.fd)
            level.fd = -1
            levels.pop()
    finally:
        for level in levels:
            if level.fd >= 0:
                os.close(level.fd)


def _parent_of(levels: list[_Level], parent: int) -> int:
    """The open directory above the deepest level; reopened through `..` when it had been closed."""
    if len(levels) == 1:
        return parent
    above = levels[-2]
    if above.fd < 0:
        fd = os.open("..", _DIRECTORY, dir_fd=levels[-1].fd)
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != above.identity:
            os.close(fd)
            raise OSError(errno.EBUSY, "a directory was moved while its tree was removed", above.name)
        above.fd = fd
    return above.fd


async def _enter(parent: int, name: str) -> _Level:
    fd = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        found = os.fstat(fd)
        return _Level(name, fd, (found.st_dev, found.st_ino), await _empty(fd))
    except BaseException:
        os.close(fd)
        raise


async def _empty(fd: int) -> list[str]:
    """Unlinks all that is no directory; the names of the directories."""
    inner: list[str] = []
    with os.scandir(fd) as entries:
        for count, entry in enumerate(entries, 1):
            if entry.is_dir(follow_symlinks=False):
                inner.append(entry.name)
            else:
                _remove_leaf(fd, entry.name)
            if count % BATCH == 0:
                await asyncio.sleep(0)
    await asyncio.sleep(0)
    return inner
