"""The agent-skills functions, as they run in the sandbox's kernel: looking through files, and the editor.

Names, arguments and texts are those of OpenHands' plugin, because agents are trained on them. All print, but
`file_editor`, which returns. Runs inside: the standard library only, shipped as source by `skills.py`.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from typing import Any

from atoll.runtime.files.editor import Edited, Editor, EditorError
from atoll.runtime.files.texts import Kind
from atoll.runtime.kernel import readers as kernel_readers
from atoll.runtime.kernel.readers import *  # noqa: F403

__all__ = [
    *kernel_readers.__all__,
    "file_editor",
    "find_file",
    "goto_line",
    "open_file",
    "scroll_down",
    "scroll_up",
    "search_dir",
    "search_file",
]

WINDOW = 100
MAX_FILES = 100


class _Open:
    """The file that is open, and the line that is looked at."""

    path: str | None = None
    line = 1


class _LocalFiles:
    """Files where this runs, as the editor needs them."""

    def kind(self, path: str) -> Kind:
        if os.path.isdir(path):
            return Kind.DIRECTORY
        return Kind.FILE if os.path.exists(path) else Kind.NOTHING

    def size(self, path: str) -> int:
        return os.stat(path).st_size

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def write(self, path: str, data: bytes) -> None:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)

    def names(self, path: str) -> list[tuple[str, bool]]:
        with os.scandir(path) as entries:
            return [(entry.name, entry.is_dir()) for entry in entries]


_editor = Editor(_LocalFiles(), os.getcwd())


def file_editor(
    command: str,
    path: str,
    file_text: str | None = None,
    view_range: Sequence[int] | None = None,
    old_str: str | None = None,
    new_str: str | None = None,
    insert_line: int | None = None,
    enable_linting: bool = False,
) -> str:
    """One command of the editor. Returns JSON between two marks: output or error, and the file before and after."""
    result: dict[str, Any] = {"output": None, "error": None}
    try:
        done: Edited = _editor.run(
            command,
            path,
            file_text=file_text,
            view_range=view_range,
            old_str=old_str,
            new_str=new_str,
            insert_line=insert_line,
        )
        result["output"] = done.output
        result.update(path=path, prev_exist=done.existed, old_content=done.old, new_content=done.new)
    except EditorError as error:
        result["error"] = str(error)
    shown = f"ERROR:\n{result['error']}" if result["error"] else result["output"]
    mark = uuid.uuid4().hex
    text = json.dumps({**result, "formatted_output_and_error": shown})
    return f"<oh_aci_output_{mark}>\n{text}\n</oh_aci_output_{mark}>"


def open_file(path: str, line_number: int | None = 1, context_lines: int | None = WINDOW) -> None:
    """Opens a file and shows up to `context_lines` lines around `line_number`."""
    if not os.path.isfile(path):
        return _error(f"File {path} not found.")
    lines = _lines(path)
    if not isinstance(line_number, int) or not 1 <= line_number <= len(lines):
        return _error(f"Line number must be between 1 and {len(lines)}")
    _Open.path = os.path.abspath(path)
    shown = _window(lines, line_number, max(1, min(context_lines or WINDOW, WINDOW)))
    if shown.endswith("more lines below)"):
        shown += "\n[Use `scroll_down` to view the next 100 lines of the file!]"
    print(shown)
    return None


def goto_line(line_number: int) -> None:
    """Moves the window to a line of the open file."""
    if (lines := _opened()) is None:
        return None
    if not isinstance(line_number, int) or not 1 <= line_number <= len(lines):
        return _error(f"Line number must be between 1 and {len(lines)}.")
    print(_window(lines, line_number, WINDOW))
    return None


def scroll_down() -> None:
    """Moves the window down by 100 lines."""
    _scroll(WINDOW)


def scroll_up() -> None:
    """Moves the window up by 100 lines."""
    _scroll(-WINDOW)


def search_dir(search_term: str, dir_path: str = "./") -> None:
    """Searches all files of a directory tree for a text; files whose names begin with a dot are left out."""
    if not os.path.isdir(dir_path):
        return _error(f"Directory {dir_path} not found")
    matches = []
    for root, _, files in os.walk(dir_path):
        for name in files:
            path = os.path.join(root, name)
            if not name.startswith(".") and os.path.isfile(path):
                matches += [(path, number, line) for number, line in _matches(path, search_term)]
    if not matches:
        print(f'No matches found for "{search_term}" in {dir_path}')
        return None
    if (count := len({path for path, _, _ in matches})) > MAX_FILES:
        print(f'More than {count} files matched for "{search_term}" in {dir_path}. Please narrow your search.')
        return None
    print(f'[Found {len(matches)} matches for "{search_term}" in {dir_path}]')
    for path, number, line in matches:
        print(f"{path} (Line {number}): {line}")
    print(f'[End of matches for "{search_term}" in {dir_path}]')
    return None


def search_file(search_term: str, file_path: str | None = None) -> None:
    """Searches one file, by default the open one, for a text."""
    path = file_path if file_path is not None else _Open.path
    if path is None:
        return _error("No file specified or open. Use the open_file function first.")
    if not os.path.isfile(path):
        return _error(f"File {path} not found.")
    if not (matches := _matches(path, search_term)):
        print(f'[No matches found for "{search_term}" in {path}]')
        return None
    print(f'[Found {len(matches)} matches for "{search_term}" in {path}]')
    for number, line in matches:
        print(f"Line {number}: {line}")
    print(f'[End of matches for "{search_term}" in {path}]')
    return None


def find_file(file_name: str, dir_path: str = "./") -> None:
    """Finds files whose names contain a text."""
    if not os.path.isdir(dir_path):
        return _error(f"Directory {dir_path} not found")
    found = [os.path.join(root, name) for root, _, files in os.walk(dir_path) for name in files if file_name in name]
    if not found:
        print(f'[No matches found for "{file_name}" in {dir_path}]')
        return None
    print(f'[Found {len(found)} matches for "{file_name}" in {dir_path}]')
    for path in found:
        print(path)
    print(f'[End of matches for "{file_name}" in {dir_path}]')
    return None


def _error(text: str) -> None:
    print(f"ERROR: {text}")


def _lines(path: str) -> list[str]:
    with open(path, errors="replace") as file:
        return file.read().splitlines() or [""]


def _matches(path: str, term: str) -> list[tuple[int, str]]:
    try:
        with open(path, errors="ignore") as file:
            return [(number, line.strip()) for number, line in enumerate(file, 1) if term in line]
    except OSError:
        return []


def _opened() -> list[str] | None:
    if _Open.path is None or not os.path.isfile(_Open.path):
        _error("No file open. Use the open_file function first.")
        return None
    return _lines(_Open.path)


def _scroll(by: int) -> None:
    if (lines := _opened()) is not None:
        print(_window(lines, min(max(_Open.line + by, 1), len(lines)), WINDOW, below=True))


def _window(lines: list[str], line: int, size: int, *, below: bool = False) -> str:
    """Up to `size` numbered lines around `line`, or from it on, with what is above and below counted."""
    _Open.line, total = line, len(lines)
    start = line if below else max(1, line - max(1, size // 2))
    end = min(total, line + (size if below else max(1, size // 2)))
    if start == 1:
        end = min(total, size)
    if end == total:
        start = max(1, end - size + 1)
    above = f"({start - 1} more lines above)" if start > 1 else "(this is the beginning of the file)"
    after = f"({total - end} more lines below)" if end < total else "(this is the end of the file)"
    shown = [f"{number}|{lines[number - 1]}" for number in range(start, end + 1)]
    return "\n".join([f"[File: {_Open.path} ({total} lines total)]", above, *shown, after])
