"""How the runtime and an interactive bash on a terminal understand each other: pure text and bytes, no I/O.

Commands go in as lines of plain ASCII, so that neither the terminal's line discipline nor bash's line editing can
change them:                __atoll_c=$'…'   …   __atoll_go 7; eval "$__atoll_c"; __atoll_end
(with their traces thrown away, for a user who has run `set -x`).
Two marks come back in the terminal's output, in the form of an operating system command that terminals do not show:

    go   ESC ]7771;TOKEN;go;ID BEL                    the command's output begins here
    end  ESC ]7771;TOKEN;end;ID US code US … BEL      and ends here; the fields say how the shell is now

`__atoll_end` is also in PROMPT_COMMAND, for the case that an interrupt makes bash drop the rest of the line. It says
nothing when no command is open, so a prompt of the user's own, or stray input, never looks like an end.
The terminal does not flush on an interrupt (`noflsh`): the kernel signals first and flushes then, and a quick bash has
printed its mark by that time. Input that nobody read is dropped before an end mark, or bash would take it for commands.
Line editing stays off, whatever the user sets: with it bash forgets PROMPT_COMMAND after an interrupt.
The last end mark is also left in a file, for a reader whose stream broke: what was in the gap never comes.
The token is random: a program does not print a mark by accident. Fooling its own shell on purpose gains it nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LINE_MAX = 1800
"""Bytes in a line; a terminal in canonical mode takes 4095."""

MARK_MAX = 32 * 1024
"""Bytes in a mark: directory, user and host name are a few kilobytes at most."""

_GO = re.compile(rb"go;(\d{1,18})\x07")
_BEGUN = re.compile(rb"|g|go|go;\d{0,18}|e|en|end")
_SAFE = frozenset(b'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _-+=/.,:;@%^()[]{}<>|&*?~#"$')


def note_path(token: str) -> str:
    """The file in which the shell leaves its last end mark: in memory, and not where users look at their own."""
    return f"/dev/shm/.atoll-end-{token}"


def setup_lines(token: str) -> bytes:
    """What makes a fresh interactive bash speak this protocol. Ends with an end mark of id 0.

    No line contains a tab (completion) and history expansion is switched off first, for line editing is still on.
    """
    fields = "\\x1f".join(["%s"] * 8)
    lines = (
        "set +H; command stty noflsh </dev/tty 2>/dev/null",
        "set +o emacs +o vi +o history; history -c; unset HISTFILE",
        "PS1= PS2= PROMPT_COMMAND= __atoll_rc=0 __atoll_id= __atoll_c=",
        "__atoll_py() { local IFS=: d n; for n in python python3; do for d in $PATH; do"
        " if [[ -f $d/$n && -x $d/$n ]]; then __atoll_p=$d/$n; return 0; fi; done; done; __atoll_p=; }",
        "__atoll_go() { __atoll_id=$1; case ${PROMPT_COMMAND-} in __atoll_end*) ;;"
        ' *) PROMPT_COMMAND="__atoll_end${PROMPT_COMMAND:+;$PROMPT_COMMAND}" ;; esac;'
        f" builtin printf '\\e]7771;{token};go;%s\\a' \"$1\" >/dev/tty;"
        ' case $- in *e*) return 0 ;; esac; return "$__atoll_rc"; }',
        "__atoll_end() { local s=$? u='\\u' h='\\h' m; [[ ${__atoll_id-} ]] || return 0; __atoll_py;"
        " if [[ -o emacs || -o vi ]]; then set +o emacs +o vi; fi;"
        " while builtin read -t 0 </dev/tty && builtin read -r -t 0.01 u </dev/tty; do :; done; u='\\u';"
        f" builtin printf -v m '\\e]7771;{token};end;{fields}\\x1f;{token}\\a'"
        ' "$__atoll_id" "$s" "${!:-}" "${PS1:+prompt}" "${u@P}" "${h@P}" "$__atoll_p" "$PWD";'
        f' builtin printf %s "$m" >/dev/tty; builtin printf %s "$m" 2>/dev/null >|{note_path(token)} || :;'
        " __atoll_rc=$s; __atoll_id=; return 0; }",
        "PROMPT_COMMAND=__atoll_end; __atoll_id=0; __atoll_end",
    )
    return "".join(f" {line}\n" for line in lines).encode()


def command_lines(command_id: int, command: str) -> bytes:
    """The lines that run `command` as if it had been typed. Raises ValueError for a command with a null byte."""
    if "\0" in command:
        raise ValueError("a shell command cannot contain a null byte")
    pieces = list(_quoted_pieces(command.encode("utf-8", "surrogateescape")))
    lines = [f" __atoll_c{'+' if number else ''}={piece}" for number, piece in enumerate(pieces)]
    lines[-1] += f"; {_run(command_id)}"
    return "".join(f"{line}\n" for line in lines).encode()


def file_lines(command_id: int, path: str) -> bytes:
    """The line that runs the text in the file `path`, for commands too long to be typed, and removes the file."""
    quoted = next(_quoted_pieces(path.encode()))
    return f" __atoll_c=$(<{quoted}); command rm -f -- {quoted}; {_run(command_id)}\n".encode()


def _run(command_id: int) -> str:
    return f'{{ __atoll_go {command_id}; }} 2>/dev/null; eval "$__atoll_c"; {{ __atoll_end; }} 2>/dev/null'


def _quoted_pieces(data: bytes) -> Iterator[str]:
    """`$'…'` strings, each short enough for a line."""
    piece: list[str] = []
    size = 0
    for byte in data:
        text = chr(byte) if byte in _SAFE else f"\\x{byte:02x}"
        if size + len(text) > LINE_MAX:
            yield f"$'{''.join(piece)}'"
            piece, size = [], 0
        piece.append(text)
        size += len(text)
    yield f"$'{''.join(piece)}'"


def key_bytes(text: str) -> bytes | None:
    """The byte of a key such as `C-c`, or None if `text` is not the name of a key."""
    text = text.strip()
    if len(text) == 3 and text.startswith("C-") and text[2].isascii() and 0x40 <= ord(text[2].upper()) <= 0x5F:
        return bytes([ord(text[2].upper()) & 0x1F])
    return None


@dataclass(frozen=True, slots=True)
class ShellState:
    """How the shell was when a command ended. `pid` is its last background process, -1 if there is none."""

    exit_code: int
    pid: int
    shows_prompt: bool
    username: str
    hostname: str
    python: str
    cwd: str


@dataclass(frozen=True, slots=True)
class Output:
    """Terminal output between marks; `command_id` is None while no command runs."""

    command_id: int | None
    data: bytes


@dataclass(frozen=True, slots=True)
class Started:
    command_id: int


@dataclass(frozen=True, slots=True)
class Ended:
    command_id: int
    state: ShellState


class MarkReader:
    """Cuts a terminal's byte stream at the marks, however the stream was chopped into pieces."""

    def __init__(self, token: str) -> None:
        self._lead = b"\x1b]7771;" + token.encode() + b";"
        self._end = b"\x1f;" + token.encode() + b"\x07"
        self._pending = b""
        self._command_id: int | None = None

    def feed(self, data: bytes) -> Iterator[Output | Started | Ended]:
        """What `data` adds, in order. A mark that has only begun is held back until the rest of it comes.

        The token can be read inside, so marks may lie: one that cannot end well, or is too long, is plain output.
        """
        text = self._pending + data
        at = 0
        while (begin := text.find(self._lead, at)) >= 0:
            inner = begin + len(self._lead)
            following = text.find(self._lead, inner)
            found, behind = self._mark(text, inner, following if following >= 0 else len(text))
            if found is None and following < 0 and self._may_become_a_mark(text, inner):
                break
            if found is None:
                yield Output(self._command_id, text[at:inner])
                at = inner
                continue
            if begin > at:
                yield Output(self._command_id, text[at:begin])
            at = behind
            self._command_id = found.command_id if isinstance(found, Started) else None
            yield found
        keep = self._held_back(text, at)
        if keep > at:
            yield Output(self._command_id, text[at:keep])
        self._pending = text[keep:]

    def _mark(self, text: bytes, inner: int, limit: int) -> tuple[Started | Ended | None, int]:
        """The mark whose lead ends at `inner`, if it is whole before `limit`, and the offset behind it."""
        if (go := _GO.match(text, inner, limit)) is not None:
            return Started(int(go[1])), go.end()
        if text.startswith(b"end;", inner):
            end = text.find(self._end, inner, min(limit, inner + MARK_MAX))
            if end >= 0:
                return _ended(text[inner + 4 : end]), end + len(self._end)
        return None, inner

    def _may_become_a_mark(self, text: bytes, inner: int) -> bool:
        begun = text[inner : inner + MARK_MAX]
        return len(begun) < MARK_MAX and (begun.startswith(b"end;") or _BEGUN.fullmatch(begun) is not None)

    def resume(self, command_id: int | None) -> None:
        """After a gap in the stream: what had begun is lost, and what comes is output of `command_id`."""
        self._pending, self._command_id = b"", command_id

    def _held_back(self, text: bytes, at: int) -> int:
        found = text.find(self._lead, at)
        if found >= 0:
            return found
        for size in range(min(len(self._lead) - 1, len(text) - at), 0, -1):
            if text.endswith(self._lead[:size]):
                return len(text) - size
        return len(text)


def _ended(fields: bytes) -> Ended:
    parts = fields.replace(b"\r\n", b"\n").split(b"\x1f", 7)
    parts += [b""] * (8 - len(parts))
    command_id, code, pid, prompt, user, host, python, cwd = (part.decode("utf-8", "replace") for part in parts)
    return Ended(
        _number(command_id, 0),
        ShellState(
            exit_code=_number(code, -1),
            pid=_number(pid, -1),
            shows_prompt=bool(prompt),
            username=user,
            hostname=host,
            python=python,
            cwd=cwd,
        ),
    )


def _number(text: str, otherwise: int) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else otherwise
