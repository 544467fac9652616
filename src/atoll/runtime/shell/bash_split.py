"""Splits a text into the shell commands that its lines are: pure, a small scanner of bash's grammar.

    "cd /x && make"                → one command
    "a=1\\necho $a"                 → two
    "for f in *; do\\n  cat $f\\ndone" → one
    "cat <<EOF\\nhello\\nEOF"        → one

Only a newline at the outermost level ends a command: `;`, `&&` and `|` join. Nothing is interpreted; whatever the
scanner does not understand is handed on as one command, for bash itself to judge.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_WORD_END = frozenset(" \t\n;&|()<>")
_CLOSERS = {"if": "fi", "while": "done", "until": "done", "for": "done", "select": "done", "case": "esac", "{": "}"}
_COMMAND_FOLLOWS = frozenset({"then", "elif", "else", "do", "if", "while", "until", "!", "{", "time", "coproc"})
_HEREDOC = re.compile(r"<<(-?)[ \t]*")
_CASE_END = re.compile(r";;&|;;|;&")


class _Unsure(Exception):
    """The text is not what the scanner knows as bash."""


def split_commands(text: str) -> list[str]:
    """The commands of `text` in order, each with its own lines (comments and blank lines belong to a neighbour).

    [] for an empty text, [text] for one that is incomplete or not understood.
    """
    if not text.strip():
        return []
    try:
        ends = _Scanner(text).top_level()
    except (_Unsure, RecursionError):
        return [text]
    starts = [0, *ends]
    pieces = [text[start:end].strip() for start, end in zip(starts, [*ends, len(text)], strict=True)]
    commands: list[str] = []
    for piece in pieces:
        if not piece:
            continue
        if (commands and _only_comments(commands[-1])) or (commands and _only_comments(piece)):
            commands[-1] += "\n" + piece
        else:
            commands.append(piece)
    return commands


def _only_comments(piece: str) -> bool:
    return all(not line.strip() or line.lstrip().startswith("#") for line in piece.split("\n"))


@dataclass
class _Scanner:
    text: str
    at: int = 0
    heredocs: list[tuple[str, bool]] = field(default_factory=list)

    def top_level(self) -> list[int]:
        """Offsets behind the newlines that end a command."""
        ends: list[int] = []
        self._commands(None, ends)
        if self.heredocs:
            raise _Unsure
        return ends

    def _peek(self, count: int = 1) -> str:
        return self.text[self.at : self.at + count]

    def _commands(self, closer: str | None, ends: list[int] | None = None) -> None:
        """Scans a list of commands up to and including `closer` (")" or "`"), or to the end of the text."""
        open_words: list[str] = []
        command_position, joined, saw_word = True, False, False
        for_header = 0
        while self.at < len(self.text):
            char = self._peek()
            if char in " \t\r":
                self.at += 1
            elif self._peek(2) == "\\\n":
                self.at += 2
            elif char == "\n":
                self.at += 1
                self._heredoc_bodies()
                if ends is not None and not open_words and not joined and saw_word:
                    ends.append(self.at)
                    saw_word = False
                command_position = True
            elif char == "#":
                self._comment()
            elif open_words and open_words[-1] == "esac" and (end := _CASE_END.match(self.text, self.at)):
                self.at = end.end()
                command_position = not self._case_pattern(open_words)
            elif char in ";&|":
                joined = self._operator()
                command_position, saw_word = True, True
            elif char == ")":
                if closer != ")" or open_words:
                    raise _Unsure
                self.at += 1
                return
            elif char == "`" and closer == "`":
                if open_words:
                    raise _Unsure
                self.at += 1
                return
            elif char == "(":
                saw_word = True
                if self._peek(2) == "((" and (command_position or for_header):
                    self.at += 2
                    self._arithmetic()
                    joined, command_position = for_header > 0, for_header > 0
                    for_header = 0
                elif command_position:
                    self.at += 1
                    self._commands(")")
                    joined, command_position = False, False
                else:
                    raise _Unsure
            elif char in "<>":
                self._redirection()
                saw_word = True
            else:
                word = self._word()
                saw_word, was_joined, joined = True, joined, False
                if for_header:
                    for_header = for_header + 1 if word not in {"in", "do"} else 0
                    if for_header == 0 and word == "do":
                        command_position = True
                    elif for_header > 2:
                        raise _Unsure
                    joined = for_header == 2
                elif not command_position:
                    if self._peek() == "(":
                        raise _Unsure
                elif word == "[[":
                    self._conditional()
                    command_position = False
                elif word == "function":
                    self._spaces()
                    self._word()
                    self._spaces()
                    if self._peek(2) == "()":
                        self.at += 2
                    joined = True
                elif word in {"}", "fi", "done", "esac"}:
                    if not open_words or open_words.pop() != word:
                        raise _Unsure
                    command_position = False
                elif word in _CLOSERS:
                    open_words.append(_CLOSERS[word])
                    if word in {"for", "select"}:
                        for_header, command_position = 1, False
                    elif word == "case":
                        self._case_head()
                        command_position = not self._case_pattern(open_words)
                elif word in _COMMAND_FOLLOWS:
                    joined = was_joined or word == "!"
                elif self._function_parens():
                    joined = True
                elif not re.fullmatch(r"[A-Za-z_]\w*(\[[^]]*\])?\+?=.*", word, re.DOTALL):
                    command_position = False
        if closer is not None or open_words or joined or for_header:
            raise _Unsure

    def _spaces(self) -> None:
        while self._peek() and self._peek() in " \t":
            self.at += 1

    def _comment(self) -> None:
        end = self.text.find("\n", self.at)
        self.at = len(self.text) if end < 0 else end

    def _operator(self) -> bool:
        """Passes one of ; & && | || |& ; True if a command must follow."""
        for operator in ("&&", "||", "|&"):
            if self.text.startswith(operator, self.at):
                self.at += 2
                return True
        if self._peek(2) in {"&>", ";;"}:
            if self._peek(2) == ";;":
                raise _Unsure
            self.at += 2
            return False
        self.at += 1
        return self.text[self.at - 1] == "|"

    def _function_parens(self) -> bool:
        mark = self.at
        self._spaces()
        if self._peek() == "(":
            self.at += 1
            self._spaces()
            if self._peek() == ")":
                self.at += 1
                return True
            raise _Unsure
        self.at = mark
        return False

    def _case_head(self) -> None:
        self._blank()
        self._word()
        self._blank()
        if self._word() != "in":
            raise _Unsure

    def _blank(self) -> None:
        while self._peek() and (self._peek() in " \t\n" or self._peek(2) == "\\\n"):
            self.at += 2 if self._peek() == "\\" else 1

    def _case_pattern(self, open_words: list[str]) -> bool:
        """Passes `pattern)` of a case, or its `esac`. True if the case is closed."""
        while True:
            self._blank()
            if self._peek() != "#":
                break
            self._comment()
        if re.match(r"esac(?![^\s;&|)<>])", self.text[self.at :]):
            self.at += 4
            open_words.pop()
            return True
        if self._peek() == "(":
            self.at += 1
        while self._peek() != ")":
            char = self._peek()
            if not char or char in ";&\n":
                raise _Unsure
            if char in " \t|":
                self.at += 1
            else:
                self._word()
        self.at += 1
        return False

    def _redirection(self) -> None:
        if self.text.startswith("<<<", self.at):
            self.at += 3
        elif (match := _HEREDOC.match(self.text, self.at)) is not None:
            self.at = match.end()
            start = self.at
            self._word()
            delimiter = re.sub(r"\\(.)|['\"]", r"\1", self.text[start : self.at])
            if not delimiter:
                raise _Unsure
            self.heredocs.append((delimiter, match[1] == "-"))
        elif self._peek(2) in {"<(", ">("}:
            self.at += 2
            self._commands(")")
        else:
            self.at += 2 if self._peek(2) in {">>", ">&", "<&", "<>", ">|"} else 1

    def _heredoc_bodies(self) -> None:
        for delimiter, strip_tabs in self.heredocs:
            while True:
                if self.at >= len(self.text):
                    raise _Unsure
                end = self.text.find("\n", self.at)
                end = len(self.text) if end < 0 else end
                line = self.text[self.at : end]
                self.at = min(end + 1, len(self.text))
                if (line.lstrip("\t") if strip_tabs else line) == delimiter:
                    break
        self.heredocs.clear()

    def _word(self) -> str:
        """Passes one word with all its quotes and substitutions."""
        start = self.at
        while self.at < len(self.text):
            char = self._peek()
            if char == "\\":
                self.at += 2
            elif char in "'\"`$":
                self._quoted(char)
            elif char == "(" and self.at > start and self.text[self.at - 1] in "@?*+!=":
                self.at += 1
                self._parenthesis()  # an extended glob or an array
            elif char in _WORD_END:
                break
            else:
                self.at += 1
        if self.at == start or self.at > len(self.text):
            raise _Unsure
        return self.text[start : self.at]

    def _quoted(self, char: str) -> None:
        self.at += 1
        if char == "'":
            end = self.text.find("'", self.at)
            if end < 0:
                raise _Unsure
            self.at = end + 1
        elif char == '"':
            self._double_quotes()
        elif char == "`":
            self._backquotes()
        else:
            self._dollar()

    def _double_quotes(self) -> None:
        while True:
            char = self._peek()
            if not char:
                raise _Unsure
            if char == "\\":
                self.at += 2
            elif char == '"':
                self.at += 1
                return
            elif char == "`":
                self.at += 1
                self._backquotes()
            elif char == "$" and self._peek(2) in {"$(", "${"}:
                self.at += 1
                self._dollar()
            else:
                self.at += 1

    def _backquotes(self) -> None:
        while True:
            char = self._peek()
            if not char:
                raise _Unsure
            self.at += 2 if char == "\\" else 1
            if char == "`":
                return

    def _dollar(self) -> None:
        """Passes what follows a `$`."""
        if self._peek(2) == "((":
            self.at += 2
            self._arithmetic()
        elif self._peek() == "(":
            self.at += 1
            inner = _Scanner(self.text, self.at)
            inner._commands(")")
            self.at = inner.at
        elif self._peek() == "{":
            self.at += 1
            self._braces()
        elif self._peek() == "'":
            self.at += 1
            while self._peek() != "'":
                if not self._peek():
                    raise _Unsure
                self.at += 2 if self._peek() == "\\" else 1
            self.at += 1

    def _braces(self) -> None:
        """Passes `…}` of a parameter expansion."""
        while self._peek() != "}":
            char = self._peek()
            if not char:
                raise _Unsure
            if char == "\\":
                self.at += 2
            elif char in "'\"`$":
                self._quoted(char)
            else:
                self.at += 1
        self.at += 1

    def _arithmetic(self) -> None:
        """Passes `…))`."""
        depth = 2
        while depth:
            char = self._peek()
            if not char:
                raise _Unsure
            if char in "'\"`$":
                self._quoted(char)
                continue
            depth += {"(": 1, ")": -1}.get(char, 0)
            self.at += 1

    def _parenthesis(self) -> None:
        """Passes `…)` of an array or an extended glob; newlines and comments are allowed in it."""
        depth = 1
        while depth:
            char = self._peek()
            if not char:
                raise _Unsure
            if char == "\\":
                self.at += 2
            elif char in "'\"`$":
                self._quoted(char)
            elif char == "#" and self.text[self.at - 1] in " \t\n(":
                self._comment()
            else:
                depth += {"(": 1, ")": -1}.get(char, 0)
                self.at += 1

    def _conditional(self) -> None:
        """Passes `… ]]`."""
        while True:
            self._blank()
            char = self._peek()
            if not char:
                raise _Unsure
            if char in "()<>&|;":
                self.at += 1
            elif self._word() == "]]":
                return
