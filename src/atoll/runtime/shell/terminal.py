"""What a person would see of a terminal's byte stream: pure, no I/O.

Owns carriage returns, backspaces, cursor movement, erasing and the alternate screen, so that a progress bar becomes its
last state and colours vanish. Scrollback is unlimited and lines do not wrap; the screen is the last `rows` lines.
The bytes are a program's in the sandbox: `_Screen._afford` is where what they may cost is bounded.
"""

from __future__ import annotations

import re

_SGR_AND_OSC = re.compile(
    r"\x1b\[[0-9;:]*m|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()*+][0-9A-Za-z]|\x1b[=>]|\x1b\[\?2004[hl]"
)
_LINE_END = re.compile(r"(?<!\r)\r++\n")
_NEEDS_SCREEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_TOKEN = re.compile(
    r"(?P<text>[^\x00-\x1f\x7f]+)"
    r"|\x1b\[(?P<args>[0-?]*)[ -/]*(?P<csi>[@-~])"
    r"|\x1b[PX^_](?s:.*?)\x1b\\"
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"
    r"|\x1b[()*+].|\x1b(?P<esc>[^\[\]PX^_])"
    r"|(?P<control>[\x00-\x1a\x1c-\x1f\x7f])"
    r"|\x1b(?s:.*)"
)
_TAB = 8
_COLUMNS = 1000
"""How far to the right the cursor can be moved; text itself may go on for ever."""
_CELLS = 4_000_000
_CELLS_PER_CHARACTER = 4
"""What all movements of one stream may fill or shift together: those beyond it do nothing."""


def render(raw: str, *, rows: int = 50) -> str:
    """The text that `raw` leaves on a terminal of `rows` lines, scrollback included."""
    text = _LINE_END.sub("\n", _SGR_AND_OSC.sub("", raw))
    if _NEEDS_SCREEN.search(text) is None:
        return text
    screen = _Screen(rows, _CELLS + _CELLS_PER_CHARACTER * len(text))
    at = 0
    while (match := _TOKEN.match(text, at)) is not None:  # the last of its alternatives takes whatever is left
        screen.feed(match)
        at = match.end()
    return screen.text()


class _Screen:
    """The lines on the screen as lists of characters; those above it are text already. `cells`: see `_afford`."""

    def __init__(self, rows: int, cells: int) -> None:
        self._rows = rows
        self._cells = cells
        self._above: list[str] = []
        self._lines: list[list[str]] = [[]]
        self._row = 0
        self._col = 0
        self._saved = (0, 0)
        self._behind: tuple[list[str], list[list[str]], int, int] | None = None

    def text(self) -> str:
        return "\n".join([*self._above, *map(_text_of, self._lines)])

    def _afford(self, cells: int) -> bool:
        """Whether so many cells may still be filled or shifted without a character of text for each."""
        if cells > self._cells:
            return False
        self._cells -= cells
        return True

    def feed(self, match: re.Match[str]) -> None:
        kind = match.lastgroup
        if kind == "text":
            self._write(match["text"])
        elif kind == "control":
            self._control(match["control"])
        elif kind == "csi":
            self._csi(match["args"], match["csi"])
        elif kind == "esc":
            self._escape(match["esc"])

    def _write(self, text: str) -> None:
        line = self._lines[self._row]
        gap = self._col - len(line)
        if gap > 0 and self._afford(gap):
            line.extend(" " * gap)
        self._col = min(self._col, len(line))
        line[self._col : self._col + len(text)] = text
        self._col += len(text)

    def _control(self, char: str) -> None:
        if char == "\n":
            # The tty has already turned a program's newline into CR LF; a bare LF (a program in raw mode) starts a new
            # line as well, or its output would slide to the right for ever.
            self._move_to(self._row + 1, 0)
        elif char == "\r":
            self._col = 0
        elif char == "\b":
            self._col = max(0, self._col - 1)
        elif char == "\t":
            self._move_to(self._row, self._col + _TAB - self._col % _TAB)

    def _escape(self, char: str) -> None:
        if char == "7":
            self._saved = (self._row, self._col)
        elif char == "8":
            self._move_to(*self._saved)
        elif char == "M":
            self._move_to(max(0, self._row - 1), self._col)
        elif char == "c":
            self._erase_screen(2)
            self._move_to(0, 0)

    def _move_to(self, row: int, col: int) -> None:
        """The cursor stays on the screen; below its last line the screen scrolls. Text may have gone further right."""
        row = min(max(row, 0), 2 * self._rows)
        while row >= len(self._lines):
            self._lines.append([])
        while len(self._lines) > self._rows:
            self._above.append(_text_of(self._lines.pop(0)))
            row -= 1
        row = max(row, 0)
        self._row, self._col = row, max(0, min(col, max(_COLUMNS, len(self._lines[row]))))

    def _csi(self, args: str, final: str) -> None:
        if args.startswith("?"):
            self._private(args[1:], final)
            return
        numbers = [min(int(part[:5]), _COLUMNS) if part.isdigit() else 0 for part in args.split(";", 2)]
        first = numbers[0]
        count = max(first, 1)
        match final:
            case "A" | "F":
                self._move_to(self._row - count, 0 if final == "F" else self._col)
            case "B" | "E":
                self._move_to(min(self._rows - 1, self._row + count), 0 if final == "E" else self._col)
            case "C":
                self._move_to(self._row, self._col + count)
            case "D":
                self._move_to(self._row, self._col - count)
            case "G" | "`":
                self._move_to(self._row, count - 1)
            case "d":
                self._move_to(min(count, self._rows) - 1, self._col)
            case "H" | "f":
                column = numbers[1] if len(numbers) > 1 else 1
                self._move_to(min(count, self._rows) - 1, max(column, 1) - 1)
            case "J":
                self._erase_screen(first)
            case "K":
                self._erase_line(first)
            case "P" | "@" | "X":
                self._shift(final, count)
            case "L":
                self._lines[self._row : self._row] = [[] for _ in range(min(count, self._rows - self._row))]
                del self._lines[self._rows :]
            case "M":
                del self._lines[self._row : self._row + count]
                self._move_to(self._row, self._col)
            case "s":
                self._saved = (self._row, self._col)
            case "u":
                self._move_to(*self._saved)
            case _:
                pass  # colours, modes, scroll regions: nothing of it is text

    def _shift(self, final: str, count: int) -> None:
        """Takes characters out of the line, puts blanks in, or blanks some."""
        line, col = self._lines[self._row], self._col
        if col >= len(line) or not self._afford(count + len(line) - col):
            return
        if final == "P":
            del line[col : col + count]
        elif final == "@":
            line[col:col] = " " * count
        else:
            end = min(len(line), col + count)
            line[col:end] = " " * (end - col)

    def _private(self, args: str, final: str) -> None:
        if final not in "hl" or not {"47", "1047", "1049"} & set(args.split(";")):
            return
        if final == "h" and self._behind is None:
            self._behind = (self._above, self._lines, self._row, self._col)
            self._above, self._lines, self._row, self._col = [], [[]], 0, 0
        elif final == "l" and self._behind is not None:
            self._above, self._lines, self._row, self._col = self._behind
            self._behind = None

    def _erase_line(self, mode: int) -> None:
        line = self._lines[self._row]
        if mode == 0:
            del line[self._col :]
        elif mode == 1:
            end = min(len(line), self._col + 1)
            if self._afford(end):
                line[:end] = " " * end
        else:
            line.clear()

    def _erase_screen(self, mode: int) -> None:
        if mode == 0:
            self._erase_line(0)
            del self._lines[self._row + 1 :]
        elif mode == 1:
            for line in self._lines[: self._row]:
                line.clear()
            self._erase_line(1)
        elif mode == 3:
            self._above.clear()
        else:
            for line in self._lines:
                line.clear()


def _text_of(line: list[str]) -> str:
    return "".join(line).rstrip()
