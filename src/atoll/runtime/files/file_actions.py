"""read, write and edit: from a file action to its observation, in OpenHands' words."""

from __future__ import annotations

import base64
import mimetypes
import re
from pathlib import PurePosixPath
from typing import Any

from atoll.runtime.events.actions import FileEditAction, FileReadAction, FileWriteAction
from atoll.runtime.events.base import FileEditSource, FileReadSource
from atoll.runtime.events.observations import (
    ErrorObservation,
    FileEditObservation,
    FileReadObservation,
    FileWriteObservation,
)
from atoll.runtime.files.editor import Edited, Editor, EditorError, EditorFiles, unified
from atoll.runtime.files.texts import Kind, looks_binary

_DATA_URLS = {
    "image/png": (".png", ".jpg", ".jpeg", ".bmp", ".gif"),
    "application/pdf": (".pdf",),
    "video/mp4": (".mp4", ".webm", ".ogg"),
}


class FileActions:
    """File actions on one sandbox. `cwd` is where a relative path begins. Raises AgentRuntimeDisconnectedError."""

    def __init__(self, files: EditorFiles, workspace: str) -> None:
        self._files = files
        self._editor = Editor(files, workspace)

    def read(self, action: FileReadAction, cwd: str) -> FileReadObservation | ErrorObservation:
        if action.impl_source == FileReadSource.OH_ACI:
            content = self._edited("view", action.path, view_range=action.view_range).output
            return FileReadObservation(content, path=action.path, impl_source=FileReadSource.OH_ACI)
        path = str(PurePosixPath(cwd) / action.path)
        try:
            data = self._files.read(path)
        except IsADirectoryError:
            return ErrorObservation(f"Path is a directory: {path}. You can only read files")
        except FileNotFoundError:
            return ErrorObservation(f"File not found: {path}. Your current working directory is {cwd}.")
        except OSError as error:
            return ErrorObservation(f"File could not be read: {path}: {error.strerror}")
        if (mime := _data_url_type(path)) is not None:
            return FileReadObservation(f"data:{mime};base64,{base64.b64encode(data).decode()}", path=path)
        if looks_binary(data):
            return ErrorObservation("ERROR_BINARY_FILE")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            return ErrorObservation(f"File could not be decoded as utf-8: {path}.")
        return FileReadObservation("".join(read_lines(_with_ends(text), action.start, action.end)), path=path)

    def write(self, action: FileWriteAction, cwd: str) -> FileWriteObservation | ErrorObservation:
        path = str(PurePosixPath(cwd) / action.path)
        content = action.content if action.content.endswith("\n") else action.content + "\n"
        try:
            if (action.start, action.end) != (0, -1) and self._files.kind(path) is Kind.FILE:
                lines = _with_ends(self._files.read(path).decode("utf-8"))
                before = [] if action.start == 0 else lines[: action.start]
                if before and not before[-1].endswith("\n"):
                    before[-1] += "\n"
                content = "".join([*before, content, *([] if action.end == -1 else lines[action.end :])])
            self._files.write(path, content.encode())
        except UnicodeDecodeError:
            return ErrorObservation(f"File could not be decoded as utf-8: {path}")
        except IsADirectoryError:
            return ErrorObservation(f"Path is a directory: {path}. You can only write to files")
        except OSError as error:
            return ErrorObservation(f"File could not be written: {path}: {error.strerror}")
        return FileWriteObservation("", path=path)

    def edit(self, action: FileEditAction, cwd: str) -> FileEditObservation | ErrorObservation:
        if action.command == "write":
            done = self.write(FileWriteAction(action.path, action.content), cwd)
            if isinstance(done, ErrorObservation):
                return done
            return FileEditObservation("", path=done.path, prev_exist=True, new_content=action.content)
        if not action.command or action.impl_source == FileEditSource.LLM_BASED_EDIT:
            path = str(PurePosixPath(cwd) / action.path)
            try:
                edited = self._editor.replace_lines(path, action.content, action.start, action.end)
            except EditorError as error:
                return ErrorObservation(str(error))
            return _edit_observation(path, edited, FileEditSource.LLM_BASED_EDIT)
        edited = self._edited(
            action.command,
            action.path,
            file_text=action.file_text,
            old_str=action.old_str,
            new_str=action.new_str,
            insert_line=action.insert_line,
        )
        return _edit_observation(action.path, edited, FileEditSource.OH_ACI)

    def listing(self, path: str) -> list[str]:
        """Names in a directory: directories first, with a final `/`. Raises OSError."""
        entries = self._files.names(path)
        directories = sorted((f"{name}/" for name, is_dir in entries if is_dir), key=str.lower)
        return directories + sorted((name for name, is_dir in entries if not is_dir), key=str.lower)

    def _edited(self, command: str, path: str, **arguments: Any) -> Edited:
        try:
            return self._editor.run(command, path, **arguments)
        except EditorError as error:
            return Edited(f"ERROR:\n{error}")


def read_lines(lines: list[str], start: int = 0, end: int = -1) -> list[str]:
    """Lines `start` to `end` as OpenHands counts them: from 0, `end` not included, -1 for the end of the file."""
    start = min(max(start, 0), len(lines))
    if end == -1:
        return lines[start:]
    return lines[start : max(start, min(max(end, 0), len(lines)))]


def _edit_observation(path: str, done: Edited, source: FileEditSource) -> FileEditObservation:
    return FileEditObservation(
        done.output,
        path=path,
        prev_exist=done.existed,
        old_content=done.old,
        new_content=done.new,
        impl_source=source,
        diff=unified(done.old or "", done.new or "", path),
    )


def _with_ends(text: str) -> list[str]:
    """Lines with their LF."""
    return [line for line in re.split(r"(?<=\n)", text) if line]


def _data_url_type(path: str) -> str | None:
    lower = path.lower()
    for default, suffixes in _DATA_URLS.items():
        if lower.endswith(suffixes):
            return mimetypes.guess_type(lower)[0] or default
    return None
