"""The sandbox's files as the editor and the file actions need them, through the public SDK.

Owns telling apart what is there (file, directory, nothing) and OSError's kinds for what goes wrong.
"""

from __future__ import annotations

from e2b import FileType, NotFoundException, Sandbox, SandboxException

from atoll.runtime.errors import LOST, AgentRuntimeDisconnectedError, lost_sandbox_raises
from atoll.runtime.files.texts import Kind


class SandboxFiles:
    """Files of one sandbox as one user. Raises OSError's kinds for the file's own faults, AgentRuntimeDisconnectedError
    for a lost sandbox.
    """

    def __init__(self, sandbox: Sandbox, user: str | None = None) -> None:
        self._sandbox = sandbox
        self._user = user

    def kind(self, path: str) -> Kind:
        with lost_sandbox_raises():
            try:
                info = self._sandbox.files.get_info(path, user=self._user)
            except LOST:
                raise
            except NotFoundException:
                return Kind.NOTHING
            except SandboxException:
                return Kind.NOTHING  # a file where the path needs a directory
        if info.symlink_target and info.type not in (FileType.FILE, FileType.DIR):
            return self._kind_behind_link(path)
        return Kind.DIRECTORY if info.type == FileType.DIR else Kind.FILE

    def _kind_behind_link(self, path: str) -> Kind:
        try:
            self._sandbox.files.list(path, depth=1, user=self._user)
        except NotFoundException:
            return Kind.NOTHING
        except SandboxException:
            return Kind.FILE
        return Kind.DIRECTORY

    def size(self, path: str) -> int:
        """Bytes."""
        with file_faults(path):
            return self._sandbox.files.get_info(path, user=self._user).size

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError, IsADirectoryError, PermissionError, OSError."""
        with file_faults(path):
            return bytes(self._sandbox.files.read(path, format="bytes", user=self._user))

    def write(self, path: str, data: bytes) -> None:
        """Creates missing directories. Raises IsADirectoryError, PermissionError, OSError."""
        with file_faults(path):
            self._sandbox.files.write(path, data, user=self._user)

    def names(self, path: str) -> list[tuple[str, bool]]:
        """(name, is a directory) of what is in the directory. Raises FileNotFoundError, NotADirectoryError, OSError."""
        with file_faults(path):
            entries = self._sandbox.files.list(path, depth=1, user=self._user)
        found = []
        for entry in entries:
            is_dir = entry.type == FileType.DIR
            if entry.symlink_target and entry.type not in (FileType.FILE, FileType.DIR):
                is_dir = self._kind_behind_link(entry.path) is Kind.DIRECTORY
            found.append((entry.name, is_dir))
        return found


class file_faults:
    """Turns the SDK's exceptions about a file into OSError's kinds, as a local file would raise them."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, LOST):
            raise AgentRuntimeDisconnectedError(f"the sandbox is lost: {error}") from error
        if isinstance(error, NotFoundException):
            raise FileNotFoundError(2, "No such file or directory", self._path) from error
        if isinstance(error, SandboxException):
            text = str(error).lower()
            if "not a directory" in text:
                raise NotADirectoryError(20, "Not a directory", self._path) from error
            if "is a directory" in text:
                raise IsADirectoryError(21, "Is a directory", self._path) from error
            if "permission" in text or "denied" in text:
                raise PermissionError(13, "Permission denied", self._path) from error
            raise OSError(5, str(error), self._path) from error
