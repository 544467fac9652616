"""What the sandbox logs for its owner: starts, output and ends of commands and cells, and the guest's own troubles.

A ring in memory, bounded twice: KEPT_BYTES of text altogether, and BUDGET bytes of output a second, so that a program
that prints a gigabyte neither fills the memory nor spends the guest's time. What is left out is counted and logged. The
host takes entries over the control port (`GET /logs`), as they come or all at once; by a number it knows its position.

    {"n": number, "t": Unix milliseconds, "l": level, "m": message, "f": {field: text}}    one JSON object a line
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, TextIO

from atoll.http1.server import HttpError, Request, Response
from atoll.wire.envd.process import DataEvent, EndEvent, ProcessConfig

KEPT_BYTES = 256 * 1024
BUDGET = 64 * 1024
LINE_MAX = 4096
"""Characters of a line of output, and of any message; the rest is cut off."""
GATHER_S = 0.25
"""How long a listener waits for company of an entry: one write for many lines."""

_CUT = " …"
_ENTRY_COST = 128
"""Bytes that an entry is counted for besides its text."""

Entry = tuple[int, int, str, str, dict[str, str]]


class GuestLog:
    """One per guest; see the module."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._size = 0
        self._number = 0
        self._second = 0
        self._spent = 0
        self._left_out = 0
        self._listeners: set[asyncio.Event] = set()

    def note(self, level: str, message: str) -> None:
        """An entry about the guest itself."""
        self.add(level, message, _ABOUT_SELF)

    def may_print(self, size: int) -> bool:
        """Asks whether `size` bytes of output may be kept now; what may not is counted as left out."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._spent = second, 0
            self._log_omissions()
        if self._spent + size > BUDGET:
            self._left_out += size
            return False
        self._spent += size
        return True

    def after(self, number: int) -> list[Entry]:
        """The entries above `number`, oldest first."""
        self._log_omissions()
        fresh = self._number - number
        if fresh <= 0:
            return []
        skipped = max(0, len(self._entries) - fresh)
        return [self._entries[at] for at in range(skipped, len(self._entries))]

    async def handle(self, request: Request) -> Response:
        """`GET /logs?after=NUMBER[&follow=1]`: JSON lines, to the end or as they come."""
        after = request.query.get("after", "0")
        if not (after.isascii() and after.isdigit() and len(after) <= 15):
            raise HttpError(400, "after must be a number")
        if request.query.get("follow"):
            return Response(200, (("content-type", "application/x-ndjson"),), self._follow(int(after)))
        return Response(200, (("content-type", "application/x-ndjson"),), _lines(self.after(int(after))))

    async def _follow(self, number: int) -> AsyncIterator[bytes]:
        news = asyncio.Event()
        self._listeners.add(news)
        try:
            while True:
                news.clear()
                entries = self.after(number)
                if entries:
                    number = entries[-1][0]
                    yield _lines(entries)
                await news.wait()
                await asyncio.sleep(GATHER_S)
        finally:
            self._listeners.discard(news)

    def _log_omissions(self) -> None:
        if self._left_out:
            left_out, self._left_out = self._left_out, 0
            self.add("warn", f"{left_out} bytes of output were left out of the log: too much at once", _ABOUT_SELF)

    def add(self, level: str, message: str, fields: dict[str, str]) -> None:
        """An entry; a long message is cut."""
        if len(message) > LINE_MAX:
            message = message[:LINE_MAX] + _CUT
        self._number += 1
        self._entries.append((self._number, int(time.time() * 1000), level, message, fields))
        self._size += len(message) + _ENTRY_COST
        while self._size > KEPT_BYTES and len(self._entries) > 1:
            self._size -= len(self._entries.popleft()[3]) + _ENTRY_COST
        for listener in self._listeners:
            listener.set()


_ABOUT_SELF = {"logger": "guest"}


class Tee(io.TextIOBase):
    """Stands in for `sys.stderr`: what the guest prints there (tracebacks too) is an entry as well, line by line."""

    def __init__(self, log: GuestLog, stream: TextIO) -> None:
        self._log = log
        self._stream = stream
        self._partial = ""

    def write(self, text: str) -> int:
        """To both."""
        *whole, rest = (self._partial + text).split("\n")
        self._partial = rest[:LINE_MAX]
        for line in whole:
            if line.strip() and self._log.may_print(len(line)):
                self._log.note("error", line)
        return self._stream.write(text)

    def flush(self) -> None:
        """The stream behind."""
        self._stream.flush()


class LineLog:
    """The output of one program in the log: its lines as they become whole."""

    __slots__ = ("_log", "_partial", "fields")

    def __init__(self, log: GuestLog, fields: dict[str, str]) -> None:
        self._log = log
        self.fields = fields
        self._partial: dict[str, bytes] = {}

    def take(self, stream: str, data: bytes) -> None:
        """A piece of `stdout` or `stderr`."""
        if not self._log.may_print(len(data)):
            self._partial.pop(stream, None)
            return
        *whole, rest = (self._partial.pop(stream, b"") + data).split(b"\n")
        for line in whole:
            self._print(stream, line)
        if len(rest) > LINE_MAX:
            self._print(stream, rest)
        elif rest:
            self._partial[stream] = rest

    def flush(self) -> None:
        """What was printed without a line's end."""
        for stream, rest in self._partial.items():
            self._print(stream, rest)
        self._partial.clear()

    def _print(self, stream: str, line: bytes) -> None:
        text = line[: 4 * LINE_MAX].decode("utf-8", "replace").rstrip("\r")
        if text:
            level = "info" if stream == "stdout" else "warn"
            self._log.add(level, text, {**self.fields, "event_type": stream})


class CommandLog:
    """One command's part in the log: its start, its output, its end."""

    __slots__ = ("_lines", "_log")

    def __init__(self, log: GuestLog, pid: int, config: ProcessConfig, tag: str | None) -> None:
        self._log = log
        self._lines = LineLog(log, {"logger": "process", "pid": str(pid)} | ({"tag": tag} if tag else {}))
        words = [config.cmd, *config.args]
        # Commands come as `/bin/bash -l -c COMMAND`; the command is what its owner looks for.
        shown = words[-1] if words[:3] == ["/bin/bash", "-l", "-c"] else " ".join(words)
        log.add("info", shown, {**self._lines.fields, "event_type": "start"})

    def output(self, data: DataEvent) -> None:
        """A piece of output. A terminal's is not logged: it is a picture, not lines, and shows what was typed."""
        if data.stdout:
            self._lines.take("stdout", data.stdout)
        elif data.stderr:
            self._lines.take("stderr", data.stderr)

    def ended(self, end: EndEvent) -> None:
        """The last entry."""
        self._lines.flush()
        fields = {**self._lines.fields, "event_type": "end", "exit_code": str(end.exit_code)}
        self._log.add("info" if end.exit_code == 0 else "warn", end.status, fields)


class CellLog:
    """One cell's part in the log: the code, what it printed, what it failed with. Its results are the client's."""

    __slots__ = ("_failure", "_lines", "_log")

    def __init__(self, log: GuestLog, context_id: str, language: str, code: str) -> None:
        self._log = log
        self._lines = LineLog(log, {"logger": "interpreter", "context_id": context_id, "language": language})
        self._failure = ""
        # As for the output: a client that runs a megabyte of code over and over does not push all else out.
        if log.may_print(min(len(code), LINE_MAX)):
            log.add("info", code, {**self._lines.fields, "event_type": "start"})

    def line(self, line: Mapping[str, Any]) -> None:
        """A line of the interpreter's stream (`jupyter.line_of`)."""
        kind = line["type"]
        if kind in ("stdout", "stderr"):
            self._lines.take(kind, str(line["text"]).encode("utf-8", "replace"))
        elif kind == "error":
            self._failure = f"{line['name']}: {line['value']}"

    def ended(self) -> None:
        """The last entry."""
        self._lines.flush()
        fields = {**self._lines.fields, "event_type": "end"}
        self._log.add("warn" if self._failure else "info", self._failure or "done", fields)


def _lines(entries: list[Entry]) -> bytes:
    keys = ("n", "t", "l", "m", "f")
    texts = [json.dumps(dict(zip(keys, entry, strict=True)), ensure_ascii=False) for entry in entries]
    return ("\n".join(texts) + "\n").encode("utf-8", "replace") if texts else b""
