"""What the console asks of a sandbox's guest: envd's services, as an SDK would, with the sandbox's own token.

Nothing that a sandbox sends chooses more than an error's text and its kind by the status. Answers are bounded.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar
from urllib.parse import urlencode

import httpcore

from atoll.control.guest_http import ENVELOPE, LAST, NO_TIMEOUT, guest_headers, guest_pool, guest_url, messages
from atoll.model.errors import AtollError, InvalidRequest, NotFound, PlatformError, SandboxNotFound
from atoll.model.sandbox import INTERPRETER_PORT
from atoll.model.seams import RouteTable, Spend

MAX_ANSWER = 4 << 20
"""Bytes of a list of files or processes."""
MAX_LISTED = 30_000
"""Entries of one: more than a guest of ours can say in MAX_ANSWER."""
_MAX_OUTPUT = 1 << 20
"""Bytes of one message of a followed process; a guest of ours sends 64 KiB at once. Parsing holds the event loop."""
_CALL_S = 30.0
"""Of a call of one answer, from its beginning to its end."""
_FILE_S = {"timeout": {"connect": 10.0, "read": 60.0, "write": 60.0}}
"""Of a file that is read: a guest that stands still for so long gives it to nobody."""
_UPLOAD_S = {"timeout": {"connect": 10.0, "read": 600.0, "write": 600.0}}
"""Of one that is written: a disk with a rate may have much to catch up with."""
_CUT = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError, ValueError)
_WRONG = (*_CUT, TypeError, AttributeError, KeyError, RecursionError, OverflowError)
"""What an answer that is none leads to."""

_MAX_PATH = 4096
"""Characters, as Linux has them."""

SHELL = ("/bin/bash", "-i", "-l")
"""What the SDKs' `pty.create` starts."""


T = TypeVar("T")


Guests = Callable[[str], "SandboxGuest"]
"""By a sandbox's id. Raises SandboxNotFound: there is no way to it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One of a directory. `kind`: file, directory or other."""

    name: str
    path: str
    kind: str
    size: int
    permissions: str
    owner: str
    modified: str
    target: str


@dataclass(frozen=True, slots=True)
class Process:
    """One that was started by a client, not by another process."""

    pid: int
    command: str
    cwd: str
    tag: str
    is_shell: bool


@dataclass(frozen=True, slots=True)
class Output:
    """What a followed process wrote, or (`end` set) how it ended. `pid` stands in the first alone."""

    data: bytes = b""
    pid: int | None = None
    end: str | None = None


class SandboxGuest:
    """`async with SandboxGuest(routes, sandbox_id) as guest`. Raises SandboxNotFound at once where there is no route.

    `spend`: how fast what it sends may be read; None: as it comes.

    Every method raises NotFound, InvalidRequest (in the guest's words), PlatformError (it does not answer).
    """

    def __init__(self, routes: RouteTable, sandbox_id: str, spend: Spend | None = None) -> None:
        route = routes.find(sandbox_id)
        if route is None:
            raise SandboxNotFound(sandbox_id)
        self._route = route
        self._pool = guest_pool(route, spend)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.aclose()

    # Files

    async def list_directory(self, path: str) -> list[Entry]:
        """In order of names, directories first."""
        found = await self._call("filesystem.Filesystem/ListDir", {"path": path, "depth": 1}, _entries)
        return sorted(found, key=lambda one: (one.kind != "directory", one.name))

    async def make_directory(self, path: str) -> None:
        """With its parents."""
        await self._call("filesystem.Filesystem/MakeDir", {"path": path}, _nothing)

    async def remove(self, path: str) -> None:
        """A file, or a directory with all that is in it."""
        await self._call("filesystem.Filesystem/Remove", {"path": path}, _nothing)

    @asynccontextmanager
    async def read(self, path: str) -> AsyncIterator[tuple[int | None, AsyncIterator[bytes]]]:
        """A file's size, where it is known, and its pieces."""
        url = guest_url("/files?" + urlencode({"path": path}))
        headers = guest_headers(self._route, "", "application/octet-stream")
        async with self._stream("GET", url, headers, timeouts=_FILE_S) as answer:
            length = {name.lower(): value for name, value in answer.headers}.get(b"content-length")
            yield int(length) if length is not None else None, answer.aiter_stream()

    @asynccontextmanager
    async def execute(self, code: str, language: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """What the code interpreter answers to a cell: lines of JSON."""
        content = json.dumps({"code": code, "language": language or None}).encode()
        headers = [*guest_headers(self._route, "", "application/json"), ("Content-Length", str(len(content)))]
        url = guest_url("/execute", INTERPRETER_PORT)
        async with self._stream("POST", url, headers, content, timeouts=NO_TIMEOUT) as answer:
            yield answer.aiter_stream()

    @asynccontextmanager
    async def _stream(
        self,
        method: str,
        url: httpcore.URL,
        headers: list[tuple[str, str]],
        content: bytes | None = None,
        *,
        timeouts: dict[str, Any],
    ) -> AsyncIterator[httpcore.Response]:
        try:
            async with self._pool.stream(method, url, headers=headers, content=content, extensions=timeouts) as answer:
                if answer.status != 200:
                    raise _refused(answer.status, await _bounded(answer))
                yield answer
        except _CUT as error:
            raise _unreachable(error) from error

    async def write(self, path: str, pieces: AsyncIterator[bytes], length: int | None) -> None:
        """Replaces a file; its directories are made where they are missing."""
        headers = guest_headers(self._route, "", "application/octet-stream")
        headers.append(("Content-Length", str(length)) if length is not None else ("Transfer-Encoding", "chunked"))
        url = guest_url("/files?" + urlencode({"path": path}))
        try:
            async with self._pool.stream("POST", url, headers=headers, content=pieces, extensions=_UPLOAD_S) as answer:
                if answer.status >= 300:
                    raise _refused(answer.status, await _bounded(answer))
        except _CUT as error:
            raise _unreachable(error) from error

    # Processes

    async def processes(self) -> list[Process]:
        """In order of their ids."""
        return sorted(await self._call("process.Process/List", {}, _processes), key=lambda one: one.pid)

    async def kill(self, pid: int) -> None:
        """SIGKILL."""
        await self._call("process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"}, _nothing)

    async def send(self, pid: int, data: bytes) -> None:
        """Keys for a terminal."""
        given = {"pty": base64.b64encode(data).decode()}
        await self._call("process.Process/SendInput", {"process": {"pid": pid}, "input": given}, _nothing)

    async def resize(self, pid: int, cols: int, rows: int) -> None:
        """Of a terminal."""
        size = {"cols": cols, "rows": rows}
        await self._call("process.Process/Update", {"process": {"pid": pid}, "pty": {"size": size}}, _nothing)

    def start_shell(self, cols: int, rows: int) -> AsyncGenerator[Output, None]:
        """A login shell of the template's user in a terminal; it goes on when nobody follows it any more."""
        process = {"cmd": SHELL[0], "args": list(SHELL[1:]), "envs": {"TERM": "xterm-256color", "LANG": "C.UTF-8"}}
        message = {"process": process, "pty": {"size": {"cols": cols, "rows": rows}}}
        return self._follow("process.Process/Start", message)

    def follow(self, pid: int) -> AsyncGenerator[Output, None]:
        """What a process writes from now on."""
        return self._follow("process.Process/Connect", {"process": {"pid": pid}})

    async def _follow(self, method: str, message: dict[str, Any]) -> AsyncGenerator[Output, None]:
        body = json.dumps(message).encode()
        headers = guest_headers(self._route, "", "application/connect+json")
        content = ENVELOPE.pack(0, len(body)) + body
        try:
            async with self._pool.stream(
                "POST", guest_url(f"/{method}"), headers=headers, content=content, extensions=NO_TIMEOUT
            ) as answer:
                if answer.status != 200:
                    raise _refused(answer.status, await _bounded(answer))
                async for flags, piece in messages(answer.aiter_stream(), _MAX_OUTPUT):
                    if flags & LAST:
                        if error := json.loads(piece or b"{}").get("error"):
                            raise _refused(404 if error.get("code") == "not_found" else 400, json.dumps(error).encode())
                    elif (output := _output(json.loads(piece).get("event", {}))) is not None:
                        yield output
        except _WRONG as error:
            raise _unreachable(error) from error

    async def _call(self, method: str, message: dict[str, Any], read: Callable[[Any], T]) -> T:
        """`read` makes what is returned of the answer's JSON."""
        headers = guest_headers(self._route, "", "application/json")
        content = json.dumps(message).encode()
        url = guest_url(f"/{method}")
        try:
            async with (
                asyncio.timeout(_CALL_S),
                self._pool.stream("POST", url, headers=headers, content=content, extensions=NO_TIMEOUT) as answer,
            ):
                body = await _bounded(answer)
                if answer.status != 200:
                    raise _refused(answer.status, body)
                return read(json.loads(body))
        except _WRONG as error:
            raise _unreachable(error) from error


async def _bounded(answer: httpcore.Response) -> bytes:
    body = bytearray()
    async for piece in answer.aiter_stream():
        body += piece
        if len(body) > MAX_ANSWER:
            raise InvalidRequest("the answer is too long for a page", hint="use the terminal")
    return bytes(body)


def _refused(status: int, body: bytes) -> AtollError:
    try:
        text = _text(json.loads(body).get("message", ""), 500)
    except (ValueError, AttributeError, RecursionError):
        text = body[:500].decode(errors="replace")
    return NotFound(text or "not found") if status == 404 else InvalidRequest(text or f"the sandbox answered {status}")


def _unreachable(error: Exception) -> AtollError:
    return PlatformError(f"the sandbox does not answer as it should: {str(error) or type(error).__name__}")


def _output(event: dict[str, Any]) -> Output | None:
    if "start" in event:
        return Output(pid=int(event["start"].get("pid", 0)))
    if "data" in event:
        data = event["data"]
        if "pty" in data:
            return Output(base64.b64decode(data["pty"]))
        # A pipe's lines, as a terminal would show them.
        return Output(base64.b64decode(data.get("stdout") or data.get("stderr") or "").replace(b"\n", b"\r\n"))
    if "end" in event:
        return Output(end=_text(event["end"].get("status", ""), 100) or "ended")
    return None


def _nothing(_answer: Any) -> None:
    """Of an answer that is empty."""


def _entries(answer: Any) -> list[Entry]:
    return [_entry(one) for one in _listed(answer.get("entries", ()))]


def _processes(answer: Any) -> list[Process]:
    return [_process(one) for one in _listed(answer.get("processes", ()))]


def _listed(found: Any) -> Any:
    """Raises InvalidRequest before much is made of a list that is long and says nothing."""
    if len(found) > MAX_LISTED:
        raise InvalidRequest("the answer is too long for a page", hint="use the terminal")
    return found


def _text(value: Any, most: int) -> str:
    """What can be sent on: JSON's lone surrogates cannot."""
    return str(value)[:most].encode("utf-8", "replace").decode()


def _entry(given: dict[str, Any]) -> Entry:
    kinds = {"FILE_TYPE_FILE": "file", "FILE_TYPE_DIRECTORY": "directory"}
    return Entry(
        name=_text(given.get("name", ""), _MAX_PATH),
        path=_text(given.get("path", ""), _MAX_PATH),
        kind=kinds.get(str(given.get("type")), "other"),
        size=min(max(int(given.get("size", 0)), 0), 2**63),
        permissions=_text(given.get("permissions", ""), 100),
        owner=_text(given.get("owner", ""), 100),
        modified=_text(given.get("modifiedTime", ""), 19).replace("T", " "),
        target=_text(given.get("symlinkTarget") or "", _MAX_PATH),
    )


def _process(given: dict[str, Any]) -> Process:
    config = given.get("config", {})
    words = (str(config.get("cmd", "")), *map(str, config.get("args", ())))
    return Process(
        pid=int(given.get("pid", 0)),
        command=_text(" ".join(words), 500),
        cwd=_text(config.get("cwd") or "", _MAX_PATH),
        tag=_text(given.get("tag") or "", 500),
        is_shell=words == SHELL,
    )
