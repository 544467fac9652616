"""filesystem.Filesystem: Stat, MakeDir, Move, ListDir, Remove. Watching is `watch.py`, contents are `files.py`.

**Whose rights?** The guest acts as the sandbox's root and gives what it creates to the user of the call, as E2B's envd
does: `files.read("/etc/shadow")` and `files.list("/root")` work there for the default user, and programs rely on it. It
crosses no wall: that user has passwordless sudo, and the wall is around the sandbox, not inside it. What root could
reach and no user of the sandbox should (the guest's own memory and open files) is kept shut by `safe_open.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Mapping

from atoll.guest.files import directories
from atoll.guest.files.copying import TEMPORARY_MOVE, copy_entry
from atoll.guest.files.entries import CachedNames, Names, describe
from atoll.guest.files.metadata import Kept
from atoll.guest.files.paths import shown
from atoll.guest.files.safe_open import Place, open_directory, open_place
from atoll.guest.files.space import FULL, shortage
from atoll.guest.files.uploads import TEMPORARY
from atoll.guest.process.users import User
from atoll.guest.state import GuestState
from atoll.wire.envd.connect import Call, Code, ConnectError, Service
from atoll.wire.envd.filesystem import (
    EntryInfo,
    ListDirRequest,
    ListDirResponse,
    MakeDirRequest,
    MakeDirResponse,
    MoveRequest,
    MoveResponse,
    RemoveRequest,
    RemoveResponse,
    StatRequest,
    StatResponse,
)

MAX_ENTRIES = 200_000
"""Entries of one ListDir answer (about 60 MB of JSON); more is refused with a hint."""

_OURS = (TEMPORARY, TEMPORARY_MOVE)
_CODES: Mapping[int, Code] = {
    errno.ENOENT: Code.NOT_FOUND,
    errno.ENOTDIR: Code.NOT_FOUND,
    errno.EEXIST: Code.ALREADY_EXISTS,
    errno.ENOTEMPTY: Code.ALREADY_EXISTS,
    errno.EACCES: Code.PERMISSION_DENIED,
    errno.EPERM: Code.PERMISSION_DENIED,
    errno.EROFS: Code.PERMISSION_DENIED,
    errno.ENAMETOOLONG: Code.INVALID_ARGUMENT,
    errno.ELOOP: Code.INVALID_ARGUMENT,
    errno.EINVAL: Code.INVALID_ARGUMENT,
    errno.EISDIR: Code.INVALID_ARGUMENT,
    errno.EBUSY: Code.FAILED_PRECONDITION,
}


def failure(error: OSError, what: str, where: str = "") -> ConnectError:
    """The RPC error for a failed system call; `what` was attempted on which path, `where` something was to be made."""
    if error.errno in FULL and where:
        return ConnectError(Code.FAILED_PRECONDITION, f"{what}: {shortage(error, where)}")
    code = _CODES.get(error.errno or 0, Code.INTERNAL)
    return ConnectError(code, f"{what}: {(error.strerror or str(error)).lower()}")


class Filesystem:
    """The service's methods. `mount` registers them; the watch methods join the same service."""

    def __init__(self, state: GuestState) -> None:
        self._state = state

    def register(self, service: Service) -> None:
        service.unary("Stat", StatRequest, self.stat)
        service.unary("MakeDir", MakeDirRequest, self.make_dir)
        service.unary("Move", MoveRequest, self.move)
        service.unary("ListDir", ListDirRequest, self.list_dir)
        service.unary("Remove", RemoveRequest, self.remove)

    async def stat(self, request: StatRequest, call: Call) -> StatResponse:
        _, path = self._where(request.path, call)
        return StatResponse(entry=self._entry(path))

    async def make_dir(self, request: MakeDirRequest, call: Call) -> MakeDirResponse:
        user, path = self._where(request.path, call)
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise failure(error, f"error getting file info of '{shown(path)}'") from error
        else:
            if stat.S_ISDIR(mode):
                raise ConnectError(Code.ALREADY_EXISTS, f"directory already exists: {shown(path)}")
            raise ConnectError(Code.INVALID_ARGUMENT, f"path already exists but it is not a directory: {shown(path)}")
        _ensure(path, user)
        return MakeDirResponse(entry=self._entry(path))

    async def move(self, request: MoveRequest, call: Call) -> MoveResponse:
        user, source = self._where(_named(request.source, "source"), call)
        _, destination = self._where(_named(request.destination, "destination"), call)
        try:
            origin = open_place(source)
        except OSError as error:
            raise failure(error, f"source file not found: '{shown(source)}'") from error
        try:
            try:
                os.stat(origin.name, dir_fd=origin.directory, follow_symlinks=False)
            except OSError as error:
                raise failure(error, f"source file not found: '{shown(source)}'") from error
            _ensure(os.path.dirname(destination), user)
            target = open_place(destination)
            try:
                await _move(origin, target, self._state.tier.metadata)
            finally:
                os.close(target.directory)
        except OSError as error:
            what = f"error renaming '{shown(source)}' to '{shown(destination)}'"
            raise failure(error, what, destination) from error
        finally:
            os.close(origin.directory)
        return MoveResponse(entry=self._entry(destination))

    async def list_dir(self, request: ListDirRequest, call: Call) -> ListDirResponse:
        _, path = self._where(request.path, call)
        try:
            fd = open_directory(path)
        except FileNotFoundError as error:
            raise ConnectError(Code.NOT_FOUND, f"directory not found: {shown(path)}") from error
        except NotADirectoryError as error:
            raise _not_a_directory(path) from error
        except OSError as error:
            raise failure(error, f"error reading directory '{shown(path)}'") from error
        names, kept = CachedNames(self._state.users), self._state.tier.metadata
        return ListDirResponse(entries=await _walk(fd, path, max(request.depth, 1), names, kept))

    async def remove(self, request: RemoveRequest, call: Call) -> RemoveResponse:
        _, path = self._where(_named(request.path, "path"), call)
        try:
            await directories.remove(path)
        except OSError as error:
            raise failure(error, f"error removing file or directory '{shown(path)}'") from error
        return RemoveResponse()

    def _where(self, path: str, call: Call) -> tuple[User, str]:
        user = self._state.user_of(call.headers)
        return user, self._state.resolve(path, user)

    def _entry(self, path: str) -> EntryInfo:
        return entry_at(path, self._state.users, self._state.tier.metadata)


def _named(path: str, field: str) -> str:
    """Elsewhere no path means the home directory; nobody means to remove or move that by saying nothing."""
    if not path:
        raise ConnectError(Code.INVALID_ARGUMENT, f"{field} is empty: name the file or directory")
    return path


def entry_at(path: str, names: Names, kept: Kept) -> EntryInfo:
    """What stands at `path`. Raises ConnectError, not_found when there is nothing."""
    try:
        place = open_place(path)
        try:
            return describe(place.directory, place.name, path, names, kept)
        finally:
            os.close(place.directory)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConnectError(Code.NOT_FOUND, f"file not found: {shown(path)}") from error
    except OSError as error:
        raise failure(error, f"error getting file info of '{shown(path)}'") from error


def _not_a_directory(path: str) -> ConnectError:
    if os.path.exists(path):
        return ConnectError(Code.INVALID_ARGUMENT, f"path is not a directory: {shown(path)}")
    return ConnectError(Code.NOT_FOUND, f"directory not found: {shown(path)}")


def _ensure(path: str, user: User) -> None:
    try:
        directories.ensure_directories(path, user.uid, user.gid)
    except NotADirectoryError as error:
        raise ConnectError(Code.INVALID_ARGUMENT, f"a part of the path is not a directory: {shown(path)}") from error
    except OSError as error:
        raise failure(error, f"error creating directory '{shown(path)}'", path) from error


async def _walk(fd: int, path: str, depth: int, names: CachedNames, kept: Kept) -> list[EntryInfo]:
    """Entries below the open directory `fd` (closed here) in lexical order, each directory before its content.

    What vanishes or may not be read in the meantime is left out: a listing of a living tree is a best effort.
    """
    entries: list[EntryInfo] = []
    waiting = [(1, inner, info) for inner, info in await _children(fd, path, names, kept)]
    while waiting:
        level, inner, info = waiting.pop()
        entries.append(info)
        if level < depth and info.permissions.startswith("d"):
            try:
                fd = open_directory(inner, follow=False)
            except OSError:
                continue
            waiting += [(level + 1, *child) for child in await _children(fd, inner, names, kept)]
        if len(entries) + len(waiting) > MAX_ENTRIES:
            raise ConnectError(
                Code.OUT_OF_RANGE, f"more than {MAX_ENTRIES} entries; list with a smaller depth or a subdirectory"
            )
    return entries


async def _children(fd: int, path: str, names: CachedNames, kept: Kept) -> list[tuple[str, EntryInfo]]:
    """Paths and entries of one open directory (closed here), last first."""
    found: list[tuple[str, EntryInfo]] = []
    above = path.rstrip("/")
    try:
        with os.scandir(fd) as entries:
            listed = sorted((e.name for e in entries if not e.name.startswith(_OURS)), reverse=True)
        for count, name in enumerate(listed, 1):
            inner = f"{above}/{name}"
            with contextlib.suppress(OSError):
                found.append((inner, describe(fd, name, inner, names, kept)))
            if count % directories.BATCH == 0:
                await asyncio.sleep(0)
    finally:
        os.close(fd)
    return found


async def _move(source: Place, target: Place, kept: Kept) -> None:
    try:
        os.rename(source.name, target.name, src_dir_fd=source.directory, dst_dir_fd=target.directory)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        await _move_by_copy(source, target, kept)


async def _move_by_copy(source: Place, target: Place, kept: Kept) -> None:
    """Across file systems (/tmp is one of its own), as `mv` does: copy beside the target, rename, remove the source.

    The copy becomes visible whole or not at all; the source goes only after that.
    """
    temporary = TEMPORARY_MOVE + secrets.token_hex(8)
    try:
        await copy_entry(source.directory, source.name, target.directory, temporary, kept)
        os.rename(temporary, target.name, src_dir_fd=target.directory, dst_dir_fd=target.directory)
    except BaseException:
        await directories.remove_at(target.directory, temporary)
        raise
    await directories.remove_at(source.directory, source.name)
