"""One file being written: nothing of it is seen under its name until all of it is there.

    Upload.begin ──► temporary file beside the target ──► write, write, … ──► commit: takes the target's name
                                                                        └──► abort: the temporary file is removed

What holds: the target is the old file or the new one, never half of either, whatever happens to the client or the disk.
The file belongs to the user of the call afterwards (as in E2B: its `username` is "for setting file ownership"), an
existing file keeps its permission bits and foreign attributes, links are followed to the file that they lead to.

Where a rename would do harm or is impossible the finished content is copied into the existing file: it has other hard
links, or it is a mount point (/etc/hosts). Files that live where none can be made (/proc/sys) are written directly.

The temporary name shows the watcher (`watch.py`) whether the target is new: the SDK's users see CREATE, CHMOD
and WRITE of the file they wrote and not the ways of this module.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from atoll.guest.files import metadata
from atoll.guest.files.copying import copy_content
from atoll.guest.files.directories import ensure_directories
from atoll.guest.files.paths import shown
from atoll.guest.files.safe_open import Place, exchange, open_path, open_place
from atoll.guest.files.space import FULL, shortage
from atoll.guest.process.users import User
from atoll.http1.server import HttpError

TEMPORARY = ".atoll-upload-"
"""Names with this prefix are ours; listings and watchers do not show them."""
TEMPORARY_NEW = TEMPORARY + "n-"
TEMPORARY_OLD = TEMPORARY + "o-"

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OVERWRITE = _WRITE | os.O_TRUNC
_NO_ROOM_FOR_OTHERS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EOPNOTSUPP)


def failure(error: OSError, what: str, path: str) -> HttpError:
    """The HTTP error for a failed system call: 507 for a full disk, the caller's fault where it is one, else 500."""
    what = f"{what} '{shown(path)}'"
    if error.errno in FULL:
        return HttpError(507, f"{what}: {shortage(error, path)}")
    status = {
        errno.ENOENT: 404,
        errno.EACCES: 403,
        errno.EPERM: 403,
        errno.EROFS: 403,
        errno.ENOTDIR: 400,
        errno.EISDIR: 400,
        errno.ENAMETOOLONG: 400,
        errno.ELOOP: 400,
        errno.EINVAL: 400,
    }.get(error.errno or 0, 500)
    return HttpError(status, f"{what}: {(error.strerror or str(error)).lower()}")


@dataclass(slots=True)
class Upload:
    """A write in progress, ended by one `commit` or by `abort`; `abort` after `commit` does nothing."""

    path: str
    _user: User
    _metadata: Mapping[str, str]
    _directory: int
    _name: str
    _existing: os.stat_result | None
    _temporary: str
    """Empty when the target itself is written."""
    fd: int
    _kept: metadata.Kept
    size: int = 0
    expected: int | None = None
    """How many bytes the file will have, where the client says so."""
    request_size: int | None = None
    """How many bytes the request has that the file is a part of, where the client says so."""

    @staticmethod
    def begin(path: str, user: User, given: Mapping[str, str], kept: metadata.Kept) -> Upload:
        """Makes missing directories and the temporary file. Raises HttpError."""
        directory, name = _place_of(path, user)
        real = path
        try:
            existing = _status(directory, name)
            if existing is not None and stat.S_ISLNK(existing.st_mode):
                os.close(directory)
                directory = -1
                real = os.path.realpath(path)
                directory, name = _place_of(real, user)
                existing = _status(directory, name)
            _check_type(existing, path)
            temporary, fd = _open_target(directory, name, real, existing)
        except BaseException as error:
            if directory >= 0:
                os.close(directory)
            if isinstance(error, OSError):
                raise failure(error, "error opening file", path) from error
            raise
        return Upload(path, user, given, directory, name, existing, temporary, fd, kept)

    def write(self, data: bytes) -> None:
        """Appends. Raises HttpError, 507 when the disk is full."""
        try:
            written = os.write(self.fd, data)
            while written < len(data):
                written += os.write(self.fd, memoryview(data)[written:])
        except OSError as error:
            raise self.failure(error, len(data)) from error
        self.size += len(data)

    async def commit(self) -> dict[str, object]:
        """Puts the file in its place; what is answered for it. Raises HttpError, and the target is as it was."""
        try:
            if self._temporary:
                await self._publish()
        except OSError as error:
            raise self.failure(error) from error
        finally:
            self.abort()
        info: dict[str, object] = {"path": shown(self.path), "name": shown(os.path.basename(self.path)), "type": "file"}
        if self._metadata:
            info["metadata"] = dict(self._metadata)
        return info

    def abort(self) -> None:
        """Removes what is unfinished and closes everything. Never raises."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._directory >= 0:
            if self._temporary:
                with contextlib.suppress(OSError):
                    os.unlink(self._temporary, dir_fd=self._directory)
            os.close(self._directory)
            self._directory = -1

    async def _publish(self) -> None:
        os.fchown(self.fd, self._user.uid, self._user.gid)
        os.fchmod(self.fd, 0o644 if self._existing is None else stat.S_IMODE(self._existing.st_mode) & 0o777)
        self._store_attributes()
        if self._existing is not None and self._existing.st_nlink > 1:
            await self._copy_over()
            return
        try:
            if self._existing is None or not self._exchange():
                os.rename(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
                self._temporary = ""
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EXDEV):
                raise
            await self._copy_over()

    def _exchange(self) -> bool:
        """Swaps the new file with the old one, which `abort` then removes; False where that cannot be done.

        As atomic as a rename over the old file, and much faster on ext4, which writes the new file's blocks to the disk
        before it lets it replace another by a rename (0.06 against 0.25 ms, and 3 ms when the disk is busy).
        """
        try:
            exchange(self._directory, self._temporary, self._name)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOSYS, errno.EPERM):
                return False
            raise
        if stat.S_ISDIR(os.stat(self._temporary, dir_fd=self._directory, follow_symlinks=False).st_mode):
            # Somebody has put a directory there in the meantime: it is not ours to take away.
            exchange(self._directory, self._temporary, self._name)
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return True

    def _store_attributes(self) -> None:
        if self._existing is not None:
            self._keep_attributes()
        if not self._metadata:
            return
        try:
            metadata.replace(self.fd, self._metadata, self._kept)
        except OSError as error:
            what = "error storing metadata on"
            if error.errno in FULL:
                raise failure(error, what, self.path) from error
            reason = (error.strerror or "").lower()
            raise HttpError(500, f"{what} '{shown(self.path)}': {reason}") from error

    def _keep_attributes(self) -> None:
        """ACLs and foreign attributes of the file that is replaced; the user's metadata is replaced as a whole."""
        with contextlib.suppress(OSError):
            names = os.listxattr(f"/proc/self/fd/{self._directory}/{self._name}", follow_symlinks=False)
            if not names:
                return
            old = os.open(
                self._name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._directory
            )
            try:
                for name in names:
                    if not name.startswith(metadata.PREFIX):
                        with contextlib.suppress(OSError):
                            os.setxattr(self.fd, name, os.getxattr(old, name))
            finally:
                os.close(old)

    def _reserve(self, target: int) -> None:
        """Room for the new content, before the old is touched: a full disk must not cost what is there."""
        before = os.fstat(target).st_size
        try:
            os.posix_fallocate(target, 0, max(self.size, 1))
        except OSError as error:
            os.ftruncate(target, before)
            if error.errno in FULL:
                raise

    async def _copy_over(self) -> None:
        target = os.open(self._name, _WRITE, dir_fd=self._directory)
        try:
            self._reserve(target)
            await copy_content(self.fd, target)
            os.ftruncate(target, self.size)
            os.fchown(target, self._user.uid, self._user.gid)
            with contextlib.suppress(OSError):
                metadata.replace(target, self._metadata, self._kept)
        finally:
            os.close(target)

    def failure(self, error: OSError, more: int = 0) -> HttpError:
        """The HTTP error for a failed write of `more` bytes, or of what follows the last one."""
        if error.errno not in FULL:
            return failure(error, "error writing file", self.path)
        held = os.fstat(self.fd).st_blocks * 512 if more and self._temporary else 0
        reason = shortage(error, self.path, self._needed(self.size + more, known=not more), held)
        return HttpError(507, f"error writing file '{shown(self.path)}': {reason}")

    def _needed(self, size: int, *, known: bool) -> str:
        if known or self.expected is not None:
            return f"{max(size, self.expected or 0)} bytes"
        of = "" if self.request_size is None else f" (of a request of {self.request_size})"
        return f"at least {size} bytes{of}"


def _place_of(path: str, user: User) -> Place:
    """Where the file will stand; directories that are missing are made. Raises HttpError."""
    try:
        try:
            return open_place(path)
        except FileNotFoundError:
            ensure_directories(os.path.dirname(path), user.uid, user.gid)
            return open_place(path)
    except NotADirectoryError as error:
        raise HttpError(400, f"a part of the path is not a directory: {shown(path)}") from error
    except OSError as error:
        raise failure(error, "error ensuring directories of", path) from error


def _status(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _check_type(existing: os.stat_result | None, path: str) -> None:
    """Raises HttpError when what stands there is no file."""
    if existing is None or stat.S_ISREG(existing.st_mode):
        return
    if stat.S_ISDIR(existing.st_mode):
        raise HttpError(400, f"path is a directory: {shown(path)}")
    raise HttpError(400, f"path '{shown(path)}' is not a regular file")


def _open_target(directory: int, name: str, real: str, existing: os.stat_result | None) -> tuple[str, int]:
    """Name and descriptor of the temporary file; an empty name and the file itself where no other can be made."""
    temporary = (TEMPORARY_NEW if existing is None else TEMPORARY_OLD) + secrets.token_hex(8)
    try:
        return temporary, os.open(temporary, _CREATE, 0o600, dir_fd=directory)
    except OSError as error:
        if existing is None or error.errno not in _NO_ROOM_FOR_OTHERS:
            raise
        return "", open_path(real, _OVERWRITE)
