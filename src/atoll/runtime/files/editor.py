"""The editor's commands on files of a sandbox: view, create, str_replace, insert, undo_edit, and edits of line ranges.

Texts are those of openhands-aci 0.3, because agents are trained on them. Owns the history for `undo_edit`, ten versions
of a file, for as long as the runtime lives. Also runs in the sandbox's kernel, shipped by `skills.py`: the standard
library only.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from atoll.runtime.files.texts import Kind, Text, decode, looks_binary

COMMANDS = ("view", "create", "str_replace", "insert", "undo_edit")
MAX_RESPONSE_LEN_CHAR = 16000
SNIPPET_CONTEXT_WINDOW = 4
MAX_FILE_BYTES = 10 * 1024 * 1024
MAX_HISTORY = 10
CONVERTED = frozenset({".docx", ".xlsx", ".pptx", ".pdf", ".mp3", ".wav", ".m4a", ".flac"})
"""Formats that the published editor turns into Markdown; here they are only refused with its texts."""

_FILE_CLIPPED = (
    "<response clipped><NOTE>Due to the max output limit, only part of this file has been shown to you. You should "
    "retry this tool after you have searched inside the file with `grep -n` in order to find the line numbers of what "
    "you are looking for.</NOTE>"
)
_DIRECTORY_CLIPPED = (
    "<response clipped><NOTE>Due to the max output limit, only part of this directory has been shown to you. You "
    "should use `ls -la` instead to view large directories incrementally.</NOTE>"
)
_REVIEW = "Review the changes and make sure they are as expected"


class EditorFiles(Protocol):
    """What the editor needs of the file system."""

    def kind(self, path: str) -> Kind: ...
    def size(self, path: str) -> int: ...
    def read(self, path: str) -> bytes: ...
    def write(self, path: str, data: bytes) -> None: ...
    def names(self, path: str) -> list[tuple[str, bool]]: ...


class EditorError(Exception):
    """The command cannot be carried out; the text is for the agent."""


@dataclass(frozen=True, slots=True)
class Edited:
    """What a command answers. `old` and `new` are the whole file, None where the command changed nothing."""

    output: str
    existed: bool = True
    old: str | None = None
    new: str | None = None


def unified(old: str, new: str, path: str) -> str:
    """The change as a unified diff without context."""
    lines = difflib.unified_diff(old.split("\n"), new.split("\n"), fromfile=path, tofile=path, n=0)
    return "\n".join(line.rstrip() for line in lines)


class Editor:
    """See the module. `workspace` is where a relative path is looked for to suggest the absolute one."""

    def __init__(self, files: EditorFiles, workspace: str) -> None:
        self._files = files
        self._workspace = PurePosixPath(workspace)
        self._history: defaultdict[str, deque[str]] = defaultdict(lambda: deque(maxlen=MAX_HISTORY))

    def run(
        self,
        command: str,
        path: str,
        *,
        file_text: str | None = None,
        view_range: Sequence[int] | None = None,
        old_str: str | None = None,
        new_str: str | None = None,
        insert_line: int | str | None = None,
    ) -> Edited:
        """Carries out one command. Raises EditorError, and AgentRuntimeDisconnectedError for a lost sandbox."""
        where = PurePosixPath(path)
        kind = self._checked(command, where)
        name = str(where)
        if command == "view":
            return self._view_directory(name, view_range) if kind is Kind.DIRECTORY else self._view(name, view_range)
        if command == "create":
            return self._create(name, file_text)
        if command == "str_replace":
            return self._str_replace(name, old_str, new_str)
        if command == "insert":
            return self._insert(name, insert_line, new_str)
        if command == "undo_edit":
            return self._undo(name)
        allowed = ", ".join(COMMANDS)
        raise EditorError(f"Unrecognized command {command}. The allowed commands for the oh_editor tool are: {allowed}")

    def replace_lines(self, path: str, content: str, start: int, end: int) -> Edited:
        """Lines `start` to `end` (from 1, both included; end -1: the last; start -1: append) become `content`.

        Raises EditorError.
        """
        kind = self._files.kind(path)
        if kind is Kind.DIRECTORY:
            raise EditorError(f"The path {path} is a directory and only the `view` command can be used on directories.")
        stored = self._read(path) if kind is Kind.FILE else Text("")
        lines = stored.text.split("\n")
        ends_with_newline = len(lines) > 1 and lines[-1] == ""
        if ends_with_newline or stored.text == "":
            lines.pop()
        new_lines = content.removesuffix("\n").split("\n") if content else []
        if start == -1:
            start, end = len(lines) + 1, len(lines)
        last = len(lines) if end == -1 else end
        if start < 1 or start > len(lines) + 1 or last < start - 1 or last > len(lines):
            raise EditorError(
                f"Invalid range: lines {start} to {end}. {path} has {len(lines)} lines; "
                "lines count from 1, and -1 as the end means the last one."
            )
        lines[start - 1 : last] = new_lines
        new = "\n".join(lines)
        if lines and (ends_with_newline or kind is Kind.NOTHING or content.endswith("\n")):
            new += "\n"
        self._write(path, new, stored)
        self._history[path].append(stored.text)
        return Edited(unified(stored.text, new, path), kind is Kind.FILE, stored.text, new)

    def _checked(self, command: str, where: PurePosixPath) -> Kind:
        if not where.is_absolute():
            hint = "The path should be an absolute path, starting with `/`."
            suggested = self._workspace / where
            if self._files.kind(str(suggested)) is not Kind.NOTHING:
                hint += f" Maybe you meant {suggested}?"
            raise _invalid("path", where, hint)
        kind = self._files.kind(str(where))
        if command == "create" and kind is not Kind.NOTHING:
            hint = f"File already exists at: {where}. Cannot overwrite files using command `create`."
            raise _invalid("path", where, hint)
        if command != "create" and kind is Kind.NOTHING:
            raise _invalid("path", where, f"The path {where} does not exist. Please provide a valid path.")
        if command != "view":
            only = "only the `view` command can be used on"
            if kind is Kind.DIRECTORY:
                raise _invalid("path", where, f"The path {where} is a directory and {only} directories.")
            if where.suffix.lower() in CONVERTED:
                hint = f"The path {where} points to a binary file ({where.suffix}) and {only} supported binary files."
                raise _invalid("path", where, hint)
        return kind

    def _view_directory(self, path: str, view_range: Sequence[int] | None) -> Edited:
        if view_range:
            hint = "The `view_range` parameter is not allowed when `path` points to a directory."
            raise _invalid("view_range", list(view_range), hint)
        found: list[str] = [path.rstrip("/") + "/"]
        hidden = 0
        for name, is_dir in self._names(path):
            if name.startswith("."):
                hidden += 1
                continue
            child = f"{path.rstrip('/')}/{name}"
            found.append(f"{child}/" if is_dir else child)
            if is_dir:
                inner = [entry for entry in self._names(child) if not entry[0].startswith(".")]
                found += [f"{child}/{inner_name}" + ("/" if inner_dir else "") for inner_name, inner_dir in inner]
        listing = _clipped("\n".join(sorted(found, key=lambda entry: entry.rstrip("/"))), _DIRECTORY_CLIPPED)
        text = f"Here's the files and directories up to 2 levels deep in {path}, excluding hidden items:\n{listing}"
        if hidden:
            text += (
                f"\n\n{hidden} hidden files/directories in this directory are excluded. "
                f"You can use 'ls -la {path}' to see them."
            )
        return Edited(text)

    def _names(self, path: str) -> list[tuple[str, bool]]:
        try:
            return self._files.names(path)
        except OSError:
            return []

    def _view(self, path: str, view_range: Sequence[int] | None) -> Edited:
        text = self._read(path).text
        if not view_range:
            return Edited(_numbered(text, path))
        if len(view_range) != 2 or not all(isinstance(number, int) for number in view_range):
            raise _invalid("view_range", list(view_range), "It should be a list of two integers.")
        lines = _lines(text)
        start, end = view_range
        asked = list(view_range)
        if start < 1 or start > len(lines):
            hint = f"Its first element `{start}` should be within the range of lines of the file: {[1, len(lines)]}."
            raise _invalid("view_range", asked, hint)
        note = ""
        if end == -1:
            end = len(lines)
        elif end > len(lines):
            note = f"NOTE: We only show up to {len(lines)} since there're only {len(lines)} lines in this file.\n"
            end = len(lines)
        if end < start:
            hint = f"Its second element `{end}` should be greater than or equal to the first element `{start}`."
            raise _invalid("view_range", asked, hint)
        shown = "\n".join("".join(lines[start - 1 : end]).splitlines())
        return Edited(note + _numbered(shown, path, start))

    def _create(self, path: str, file_text: str | None) -> Edited:
        if file_text is None:
            raise _missing("create", "file_text")
        self._write(path, file_text, Text(""))
        self._history[path].append(file_text)
        return Edited(f"File created successfully at: {path}", existed=False, new=file_text)

    def _str_replace(self, path: str, old_str: str | None, new_str: str | None) -> Edited:
        if old_str is None:
            raise _missing("str_replace", "old_str")
        if new_str == old_str:
            hint = "No replacement was performed. `new_str` and `old_str` must be different."
            raise _invalid("new_str", new_str, hint)
        stored = self._read(path)
        text, new_str = stored.text, new_str or ""
        places = _places(text, old_str)
        if not places:
            old_str, new_str = old_str.strip(), new_str.strip()
            places = _places(text, old_str) if old_str else []
        if not places:
            raise EditorError(f"No replacement was performed, old_str `{old_str}` did not appear verbatim in {path}.")
        if len(places) > 1:
            numbers = sorted({text.count("\n", 0, place) + 1 for place in places})
            raise EditorError(
                f"No replacement was performed. Multiple occurrences of old_str `{old_str}` in lines {numbers}. "
                "Please ensure it is unique."
            )
        at = places[0]
        new = text[:at] + new_str + text[at + len(old_str) :]
        self._write(path, new, stored)
        self._history[path].append(text)
        line = text.count("\n", 0, at) + 1
        first = max(0, line - SNIPPET_CONTEXT_WINDOW)
        last = line + SNIPPET_CONTEXT_WINDOW + new_str.count("\n")
        snippet = "".join(_lines(new)[first:last])
        shown = _numbered(snippet, f"a snippet of {path}", first + 1)
        done = f"The file {path} has been edited. {shown}{_REVIEW}. Edit the file again if necessary."
        return Edited(done, True, text, new)

    def _insert(self, path: str, insert_line: int | str | None, new_str: str | None) -> Edited:
        if insert_line is None:
            raise _missing("insert", "insert_line")
        if new_str is None:
            raise _missing("insert", "new_str")
        try:
            at = int(insert_line)
        except ValueError:
            raise EditorError(f"Invalid insert_line value: '{insert_line}'. Expected an integer.") from None
        stored = self._read(path)
        lines = _lines(stored.text)
        if at < 0 or at > len(lines):
            hint = f"It should be within the range of allowed values: {[0, len(lines)]}"
            raise _invalid("insert_line", at, hint)
        added = [f"{line}\n" for line in new_str.split("\n")]
        before = lines[:at]
        if before and not before[-1].endswith("\n"):
            before[-1] += "\n"  # else the new text would be glued to a last line without an end
        new = "".join(before + added + lines[at:])
        self._write(path, new, stored)
        self._history[path].append(stored.text)
        first = max(0, at - SNIPPET_CONTEXT_WINDOW)
        last = min(len(lines) + len(added), at + SNIPPET_CONTEXT_WINDOW + len(added))
        snippet = "".join(_lines(new)[first:last])
        shown = _numbered(snippet, "a snippet of the edited file", max(1, at - SNIPPET_CONTEXT_WINDOW + 1))
        done = (
            f"The file {path} has been edited. {shown}{_REVIEW} (correct indentation, no duplicate lines, etc). "
            "Edit the file again if necessary."
        )
        return Edited(done, True, stored.text, new)

    def _undo(self, path: str) -> Edited:
        stored = self._read(path)
        if not self._history[path]:
            raise EditorError(f"No edit history found for {path}.")
        old = self._history[path].pop()
        self._write(path, old, stored)
        return Edited(f"Last edit to {path} undone successfully. {_numbered(old, path)}", True, stored.text, old)

    def _read(self, path: str) -> Text:
        try:
            size = self._files.size(path)
            if size > MAX_FILE_BYTES:
                limit = MAX_FILE_BYTES // (1024 * 1024)
                raise _unfit(
                    path, f"File is too large ({size / 1024 / 1024:.1f}MB). Maximum allowed size is {limit}MB."
                )
            data = self._files.read(path)
        except OSError as error:
            raise EditorError(f"Ran into {_os_text(error)} while trying to read {path}") from error
        if looks_binary(data) or PurePosixPath(path).suffix.lower() in CONVERTED:
            raise _unfit(path, "File appears to be binary and this file type cannot be read or edited by this tool.")
        return decode(data)

    def _write(self, path: str, text: str, like: Text) -> None:
        try:
            self._files.write(path, like.encode(text))
        except OSError as error:
            raise EditorError(f"Ran into {_os_text(error)} while trying to write to {path}") from error


def _os_text(error: OSError) -> str:
    return f"[Errno {error.errno}] {error.strerror}: {error.filename!r}"


def _invalid(parameter: str, value: object, hint: str) -> EditorError:
    return EditorError(f"Invalid `{parameter}` parameter: {value}. {hint}")


def _missing(command: str, parameter: str) -> EditorError:
    return EditorError(f"Parameter `{parameter}` is required for command: {command}.")


def _unfit(path: str, reason: str) -> EditorError:
    return EditorError(f"File validation failed for {path}: {reason}")


def _places(text: str, piece: str) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(piece), text)] if piece else []


def _lines(text: str) -> list[str]:
    """Lines with their ends, split at LF only."""
    lines = [f"{line}\n" for line in text.split("\n")]
    last = lines.pop().removesuffix("\n")
    return [*lines, last] if last else lines


def _clipped(text: str, notice: str) -> str:
    return text if len(text) <= MAX_RESPONSE_LEN_CHAR else text[:MAX_RESPONSE_LEN_CHAR] + notice


def _numbered(text: str, what: str, start: int = 1) -> str:
    lines = enumerate(_clipped(text, _FILE_CLIPPED).split("\n"), start)
    body = "\n".join(f"{number:6}\t{line}" for number, line in lines)
    return f"Here's the result of running `cat -n` on {what}:\n{body}\n"
