"""E2BFileStore: OpenHands' FileStore over a sandbox's file system. Paths are the sandbox's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from e2b import FileType

from atoll.runtime.files.sandbox_files import file_faults


@runtime_checkable
class SupportsFilesystemOperations(Protocol):
    """What the store needs: the SDK's `sandbox.files` has it."""

    def write(self, path: str, data: Any, /) -> Any: ...
    def read(self, path: str, /, format: Any = ...) -> Any: ...
    def list(self, path: str, /) -> Sequence[Any]: ...
    def remove(self, path: str, /) -> None: ...


class E2BFileStore:
    """write, read, list, delete with OpenHands' types. Raises FileNotFoundError, PermissionError, IsADirectoryError."""

    def __init__(self, filesystem: SupportsFilesystemOperations) -> None:
        self.filesystem = filesystem

    def write(self, path: str, contents: str | bytes) -> None:
        """Writes the file whole, exactly as given; missing directories are made."""
        with file_faults(path):
            self.filesystem.write(path, contents)

    def read(self, path: str) -> str:
        """The file's text. Raises UnicodeDecodeError if it is not UTF-8."""
        with file_faults(path):
            return bytes(self.filesystem.read(path, format="bytes")).decode("utf-8")

    def list(self, path: str) -> list[str]:
        """What is in the directory, each as `path/name`, directories with a final `/`."""
        with file_faults(path):
            entries = self.filesystem.list(path)
        base = path.rstrip("/")
        return [f"{base}/{entry.name}" + ("/" if entry.type == FileType.DIR else "") for entry in entries]

    def delete(self, path: str) -> None:
        """Removes a file, or a directory with all that is in it. Nothing happens if it is not there."""
        try:
            with file_faults(path):
                self.filesystem.remove(path)
        except FileNotFoundError:
            return
