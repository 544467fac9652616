"""Mounts through the descriptor-based API (Linux 5.12 and newer): nothing is looked up by a path that could be a trick.

A detached mount is a file descriptor until `attach` gives it a place.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

from atoll.isolation.linux.sys.syscalls import call

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_MNT_DETACH = 2
_LONGEST_VALUE = 256
_MS_PRIVATE = 1 << 18

RDONLY = 0x01
NOSUID = 0x02
NODEV = 0x04
NOEXEC = 0x08
IDMAP = 0x00100000


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def _set_attributes(
    directory: int, path: str, flags: int, *, add: int = 0, propagation: int = 0, userns: int = 0
) -> None:
    attributes = _MountAttr(attr_set=add, propagation=propagation, userns_fd=userns)
    call(
        "mount_setattr",
        directory,
        path.encode(),
        flags,
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
        subject=path,
    )


def make_private(path: str = "/") -> None:
    """Cuts the whole tree off from mount propagation, both ways."""
    _set_attributes(AT_FDCWD, path, AT_RECURSIVE, propagation=_MS_PRIVATE)


def clone(path: str, *, attributes: int = 0, userns: int | None = None, directory: int = AT_FDCWD) -> int:
    """A detached bind mount of `path`, not recursive; with `userns` owners appear shifted by that namespace's map."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (AT_EMPTY_PATH if not path else 0)
    tree = call("open_tree", directory, path.encode(), flags, subject=path)
    try:
        if userns is not None:
            _set_attributes(tree, "", AT_EMPTY_PATH, add=attributes | IDMAP, userns=userns)
        elif attributes:
            _set_attributes(tree, "", AT_EMPTY_PATH, add=attributes)
    except OSError:
        os.close(tree)
        raise
    return tree


def new(filesystem: str, options: Sequence[tuple[str, str | None]] = (), *, attributes: int = 0) -> int:
    """A detached mount of a new file system instance. An option without a value is a flag. Raises OSError."""
    context = call("fsopen", filesystem.encode(), _FSOPEN_CLOEXEC, subject=filesystem)
    try:
        for key, value in options:
            if value is None:
                call("fsconfig", context, _FSCONFIG_SET_FLAG, key.encode(), None, 0, subject=f"{filesystem} {key}")
            else:
                text = value.encode()
                call("fsconfig", context, _FSCONFIG_SET_STRING, key.encode(), text, 0, subject=f"{filesystem} {key}")
        call("fsconfig", context, _FSCONFIG_CMD_CREATE, None, None, 0, subject=_reason(context, filesystem))
        return call("fsmount", context, _FSMOUNT_CLOEXEC, attributes, subject=filesystem)
    except OSError as error:
        raise OSError(error.errno, error.strerror, _reason(context, filesystem)) from error
    finally:
        os.close(context)


def _reason(context: int, filesystem: str) -> str:
    """The kernel's own words about the last failure, which it keeps in the context."""
    lines = []
    while True:
        try:
            lines.append(os.read(context, 4096).decode(errors="replace").strip())
        except OSError:
            return f"{filesystem}: {'; '.join(lines)}" if lines else filesystem


def shift_owners(mount: int, userns: int) -> None:
    """Owners appear shifted by that namespace's map in this mount, which has no place yet. Raises OSError."""
    _set_attributes(mount, "", AT_EMPTY_PATH, add=IDMAP, userns=userns)


def attach(mount: int, directory: int, path: str = "") -> None:
    """Gives a detached mount its place at `path` below `directory` (a trailing symlink is not followed)."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | (0 if path else _MOVE_MOUNT_T_EMPTY_PATH)
    call("move_mount", mount, b"", directory, path.encode(), flags, subject=path)


def move(source: int, source_path: str, directory: int, path: str) -> None:
    """Moves an attached mount with everything below it."""
    call("move_mount", source, source_path.encode(), directory, path.encode(), 0, subject=path)


def attach_and_close(mount: int, directory: int, path: str = "") -> None:
    """`attach`, and the descriptor is closed either way."""
    try:
        attach(mount, directory, path)
    finally:
        os.close(mount)


def enter_root(directory: int) -> None:
    """Makes `directory` (the root of a mount) the root and the working directory, and lets go of the old root."""
    os.fchdir(directory)
    call("pivot_root", b".", b".", subject="new root")
    call("umount2", b".", _MNT_DETACH, subject="old root")
    os.chdir("/")


def overlay_shown(lowers: Sequence[int]) -> int:
    """A detached overlay of at least two descriptors, top first, that shows them and takes nothing."""
    paths = [f"/proc/self/fd/{lower}" for lower in lowers]
    options: list[tuple[str, str | None]] = [("source", "overlay"), *_lowers(paths), ("redirect_dir", "follow")]
    return new("overlay", [*options, ("metacopy", "off")], attributes=RDONLY | NODEV | NOSUID)


def _lowers(paths: Sequence[str]) -> list[tuple[str, str | None]]:
    joined = ":".join(paths)
    # Longer values the kernel does not take; one by one it takes them since 6.7.
    return [("lowerdir", joined)] if len(joined) < _LONGEST_VALUE else [("lowerdir+", path) for path in paths]


def overlay(lowers: Sequence[int], upper: int, work: int, *, volatile: bool, rootless: bool = False) -> int:
    """A detached overlay of descriptors, `lowers` top first.

    Named by /proc/self/fd: the strings land in the sandbox's own mount table, where a path would reveal the host's.
    `volatile` leaves out all syncing; the upper directory is then worthless after a crash of the machine. `rootless`:
    the caller is root of its own user namespace only, and the overlay's notes are attributes that it may set; renaming
    a directory of a lower layer says EXDEV then.
    """
    paths = [f"/proc/self/fd/{lower}" for lower in lowers]
    options: list[tuple[str, str | None]] = [
        ("source", "overlay"),
        *_lowers(paths),
        ("upperdir", f"/proc/self/fd/{upper}"),
        ("workdir", f"/proc/self/fd/{work}"),
        # Renaming a directory of the template must work: without redirects it fails with EXDEV, which dpkg, pip and
        # git do not all survive. The redirect is kept in a trusted.* attribute that nobody inside can set.
        ("userxattr", None) if rootless else ("redirect_dir", "on"),
        ("metacopy", "off"),
        ("index", "off"),
    ]
    if volatile:
        options.append(("volatile", None))
    return new("overlay", options, attributes=NODEV)
