"""Jupyter's messages: requests as frames, and what a kernel publishes as lines of the interpreter's stream. Pure.

Format: https://jupyter-client.readthedocs.io/en/stable/messaging.html; the lines are E2B's
(`e2b_code_interpreter/models.py`).

    frames of a request    [<IDS|MSG>, signature, header, parent header, metadata, content]
    frames published       [topic, <IDS|MSG>, signature, header, parent header, metadata, content, buffers…]

Signatures are made (kernels check them) but not checked: who can forge a kernel's message controls it anyway.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

DELIMITER = b"<IDS|MSG>"
_VERSION = "5.3"

_FIELDS = {
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "e2b/data": "data",
    "e2b/chart": "chart",
}
"""Media types → the field of a result line; every other type goes to `extra` under its own name."""

END_OF_EXECUTION = {"type": "end_of_execution"}
KEEPALIVE = {"type": "keepalive"}


@dataclass(frozen=True, slots=True)
class Published:
    """A message of a kernel, as far as anybody here looks."""

    kind: str
    parent_id: str
    content: Mapping[str, Any]
    truncated: bool
    """The content was too large and has been thrown away."""


class Session:
    """Makes requests to one kernel, signed with its key."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._id = uuid.uuid4().hex
        self._count = 0

    def request(self, kind: str, content: Mapping[str, Any]) -> tuple[str, list[bytes]]:
        """(message id, frames)."""
        self._count += 1
        message_id = f"{self._id}_{self._count}"
        header = {
            "msg_id": message_id,
            "session": self._id,
            "username": "user",
            "date": datetime.now(UTC).isoformat(),
            "msg_type": kind,
            "version": _VERSION,
        }
        parts = [json.dumps(header).encode(), b"{}", b"{}", json.dumps(content).encode()]
        digest = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in parts:
            digest.update(part)
        return message_id, [DELIMITER, digest.hexdigest().encode(), *parts]


def execute_request(code: str, *, silent: bool) -> dict[str, Any]:
    """The content of an `execute_request`."""
    return {
        "code": code,
        "silent": silent,
        "store_history": not silent,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": False,
    }


def parse(frames: list[bytes | None]) -> Published | None:
    """A message of a kernel; None if it is not one (the peer is in the sandbox: anything may come)."""
    try:
        start = frames.index(DELIMITER)
        header, parent, content = frames[start + 2], frames[start + 3], frames[start + 5]
        if header is None or parent is None:
            return None
        parsed = _content(content) if content is not None else {}
        kind, parent_id = json.loads(header)["msg_type"], json.loads(parent).get("msg_id", "")
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not (isinstance(kind, str) and isinstance(parent_id, str) and isinstance(parsed, dict)):
        return None
    return Published(kind, parent_id, parsed, content is None)


def _content(data: bytes) -> Any:
    """What a program printed that is no text (half a character, a file's name) arrives as bytes that are no UTF-8."""
    try:
        return json.loads(data)
    except UnicodeDecodeError:
        return json.loads(data.decode("utf-8", "replace"))


def line_of(message: Published) -> dict[str, Any] | None:
    """The line that the client sees for a published message; None if it sees none."""
    content = message.content
    if message.truncated:
        return stream_line("stderr", f"[output of type {message.kind!r} was dropped: it is too large to be sent]\n")
    match message.kind:
        case "stream":
            return stream_line("stderr" if content.get("name") == "stderr" else "stdout", str(content.get("text", "")))
        case "execute_input":
            return {"type": "number_of_executions", "execution_count": content.get("execution_count")}
        case "execute_result" | "display_data":
            data = content.get("data")
            return result_line(data if isinstance(data, dict) else {}, message.kind == "execute_result")
        case "error":
            traceback = _plain("\n".join(str(part) for part in content.get("traceback") or ()))
            return error_line(*_name_and_value(content, traceback), traceback)
    return None


def result_line(data: Mapping[str, Any], is_main_result: bool) -> dict[str, Any]:
    """A result line of a mime bundle."""
    line: dict[str, Any] = {"type": "result", "is_main_result": is_main_result}
    extra: dict[str, Any] = {}
    for kind, value in data.items():
        if kind == "text/plain":
            line["text"] = _unquoted(value)
        elif kind in _FIELDS:
            # An empty chart or data means: there was nothing to extract.
            if value not in ({}, None):
                line[_FIELDS[kind]] = value
        else:
            extra[kind] = value
    if extra:
        line["extra"] = extra
    return line


def stream_line(kind: str, text: str) -> dict[str, Any]:
    """A line of output; `kind` is stdout or stderr."""
    # The SDK documents the time as nanoseconds since the epoch.
    return {"type": kind, "text": text, "timestamp": time.time_ns()}


def error_line(name: str, value: str, traceback: str) -> dict[str, Any]:
    """An error line."""
    return {"type": "error", "name": name, "value": value, "traceback": traceback}


def encode_line(line: Mapping[str, Any]) -> bytes:
    """One line of the stream. Lone surrogates, which a kernel may print, are replaced: a line is always UTF-8."""
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def _name_and_value(content: Mapping[str, Any], traceback: str) -> tuple[str, str]:
    """As people know it: Java's kernel names a class that it wraps others in, and shows no reason in the value."""
    name, value = str(content.get("ename", "")), _plain(str(content.get("evalue", "")))
    if name == "CompilationException":
        return name, "\n".join(line for line in traceback.splitlines() if not line.startswith("|")).strip() or value
    inner, comma, reason = value.partition(", ")
    if name == "RuntimeException" and comma and "." in inner and inner.replace(".", "").replace("$", "").isidentifier():
        return inner.rpartition(".")[2], reason
    return name, value


_COLOURS = re.compile("\x1b\\[[0-9;]*m")


def _plain(text: str) -> str:
    """Nobody looks at these in a terminal."""
    return _COLOURS.sub("", text) if "\x1b" in text else text


def _unquoted(text: Any) -> Any:
    """E2B shows the value of a string, not its repr."""
    if isinstance(text, str) and len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text
