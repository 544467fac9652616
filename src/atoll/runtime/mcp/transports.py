"""How messages reach an MCP server: a program inside the sandbox, streamable HTTP, or HTTP with server-sent events.

Owns the bytes of the three transports of the Model Context Protocol (2025-06-18 and before). The meaning of messages is
`mcp_session.py`. A transport is used by one thread at a time.
"""

from __future__ import annotations

import codecs
import json
import queue
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

import httpx
from e2b import CommandExitException, SandboxException

from atoll.runtime.errors import LOST, AgentRuntimeDisconnectedError
from atoll.runtime.sandbox.box import E2BBox

MAX_MESSAGE = 64 * 2**20
"""Bytes of one message; a server that sends more is taken for broken."""
_STDERR_TAIL = 2000

MAX_HELD = 2 * MAX_MESSAGE
"""Bytes that wait for a reader; a sender waits until some are taken."""

Message = dict[str, Any]
Received = Message | str | None


class MCPUnreachable(Exception):
    """The server is not there, ended, or does not speak the protocol."""


class MCPTimeout(Exception):
    """The server did not answer in time."""


class Inbox:
    """What a thread has received: messages, texts on what went wrong, and None at the end (which stays)."""

    def __init__(self, max_bytes: int = MAX_HELD) -> None:
        self._max_bytes = max_bytes
        self._held: deque[tuple[Received, int]] = deque()
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, received: Received, size: int = 0) -> None:
        """Waits while there is no room for it, unless it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not size or self._bytes < self._max_bytes)
            if self._closed and received is not None:
                return
            self._held.append((received, size))
            self._bytes += size
            self._changed.notify_all()

    def get(self, timeout: float) -> Received:
        """The oldest. Raises queue.Empty: nothing came within `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._held, timeout):
                raise queue.Empty
            received, size = self._held.popleft()
            self._bytes -= size
            self._changed.notify_all()
            return received

    def close(self) -> None:
        """Nobody reads any more: what comes is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Lines:
    """Cuts text at line feeds, however it was chopped; each character is looked at once."""

    def __init__(self, max_length: int = MAX_MESSAGE) -> None:
        self._max_length = max_length
        self._begun: list[str] = []
        self._length = 0

    def feed(self, text: str) -> Iterator[str]:
        """The lines that `text` completes, without their ends. Raises MCPUnreachable: one is too long."""
        *whole, rest = text.split("\n")
        for line in whole:
            self._begun.append(line)
            yield "".join(self._begun).removesuffix("\r")
            self._begun, self._length = [], 0
        self._length += len(rest)
        if self._length > self._max_length:
            raise MCPUnreachable(f"it sends a line of more than {self._max_length} characters")
        if rest:
            self._begun.append(rest)


class Transport(Protocol):
    """`exchange` sends a message; with an id it yields what comes until the answer to it (included)."""

    def exchange(self, message: Message, timeout_s: float) -> Iterator[Message]: ...

    def close(self) -> None: ...


class StdioTransport:
    """A server program in the sandbox, JSON lines on its standard input and output.

    Raises MCPUnreachable if it does not start, AgentRuntimeDisconnectedError if the sandbox is lost.
    """

    def __init__(self, box: E2BBox, line: str, *, envs: Mapping[str, str], cwd: str) -> None:
        self._sandbox = box.sandbox
        self._received = Inbox()
        self._stderr = ""
        try:
            self._handle = self._sandbox.commands.run(
                line, background=True, stdin=True, timeout=0, envs=dict(envs), cwd=cwd, user=box.user
            )
        except LOST as error:
            raise AgentRuntimeDisconnectedError(f"the sandbox is lost: {error}") from error
        except SandboxException as error:
            raise MCPUnreachable(f"`{line}` did not start: {error}") from error
        self._pid = self._handle.pid
        threading.Thread(target=self._follow, name="atoll-mcp", daemon=True).start()

    def _follow(self) -> None:
        lines = Lines()
        try:
            for out, err, _ in self._handle:
                self._stderr = (self._stderr + (err or "")[-_STDERR_TAIL:])[-_STDERR_TAIL:]
                for text in lines.feed(out or ""):
                    for message in _messages(text):
                        self._received.put(message, len(text))
            self._handle.wait()
        except CommandExitException as ended:
            self._stderr = self._stderr or f"it ended with exit code {ended.exit_code}"
        except Exception as error:
            self._stderr = self._stderr or str(error)
        finally:
            self._received.put(None)

    def _ended(self, otherwise: object) -> str:
        return f"the server has ended: {self._stderr.strip() or otherwise}"

    def exchange(self, message: Message, timeout_s: float) -> Iterator[Message]:
        try:
            self._sandbox.commands.send_stdin(self._pid, json.dumps(message) + "\n")
        except LOST as error:
            raise AgentRuntimeDisconnectedError(f"the sandbox is lost: {error}") from error
        except SandboxException as error:
            raise MCPUnreachable(self._ended(error)) from error
        yield from _until_answer(
            self._received,
            message,
            timeout_s,
            lambda: f"the server has ended: {self._stderr.strip() or 'it printed nothing'}",
        )

    def close(self) -> None:
        self._received.close()
        with suppress(Exception):
            self._sandbox.commands.kill(self._pid)


class StreamableHTTPTransport:
    """A server elsewhere: every message is a POST, the answer JSON or a stream of events."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._url = url
        self._client = httpx.Client(headers=dict(headers), follow_redirects=False, timeout=30)
        self._session: dict[str, str] = {}

    def exchange(self, message: Message, timeout_s: float) -> Iterator[Message]:
        headers = {"Accept": "application/json, text/event-stream", **self._session}
        limits = httpx.Timeout(30, read=timeout_s)
        try:
            with self._client.stream("POST", self._url, json=message, headers=headers, timeout=limits) as answer:
                _check(self._url, answer)
                if found := answer.headers.get("mcp-session-id"):
                    self._session["Mcp-Session-Id"] = found
                if not _is_request(message):
                    return
                if answer.headers.get("content-type", "").startswith("text/event-stream"):
                    received: Iterable[Message] = (m for _, data in _events(answer) for m in _messages(data))
                else:
                    received = _messages(b"".join(_limited(answer)).decode("utf-8", "replace"))
                for one in received:
                    if one.get("id") == message["id"] and message["method"] == "initialize" and "result" in one:
                        self._session["MCP-Protocol-Version"] = str(one["result"].get("protocolVersion", ""))
                    yield one
                    if _answers(one, message):
                        return
        except httpx.TimeoutException:
            raise MCPTimeout from None
        except httpx.HTTPError as error:
            raise MCPUnreachable(f"{self._url} cannot be reached: {error}") from error
        raise MCPUnreachable(f"{self._url} did not answer")

    def close(self) -> None:
        if "Mcp-Session-Id" in self._session:
            with suppress(httpx.HTTPError):
                self._client.delete(self._url, headers=self._session, timeout=5)
        self._client.close()


class SSETransport:
    """A server elsewhere of the older kind: one stream of events, which names where messages are posted."""

    def __init__(self, url: str, headers: Mapping[str, str], connect_s: float = 30.0) -> None:
        self._url = url
        self._client = httpx.Client(headers=dict(headers), follow_redirects=False, timeout=30)
        self._received = Inbox()
        self._post = ""
        threading.Thread(target=self._follow, name="atoll-mcp", daemon=True).start()
        try:
            first = self._received.get(timeout=connect_s)
        except queue.Empty:
            first = None
        if not isinstance(first, str) or not first.startswith("/post "):
            self.close()
            raise MCPUnreachable(f"{url}: {first if isinstance(first, str) else 'no `endpoint` event came'}")
        self._post = first.removeprefix("/post ")

    def _follow(self) -> None:
        try:
            limits = httpx.Timeout(30, read=None)
            with self._client.stream(
                "GET", self._url, headers={"Accept": "text/event-stream"}, timeout=limits
            ) as answer:
                if answer.status_code >= 300:
                    self._received.put(f"it answers {answer.status_code} {answer.reason_phrase}")
                    return
                for kind, data in _events(answer):
                    if kind == "endpoint":
                        target = urljoin(self._url, data)
                        if urlsplit(target)[:2] != urlsplit(self._url)[:2]:
                            self._received.put("it names another origin for messages")
                            return
                        self._received.put(f"/post {target}")
                    else:
                        for message in _messages(data):
                            self._received.put(message, len(data))
        except Exception as error:
            self._received.put(f"it cannot be reached: {error}")
        finally:
            self._received.put(None)

    def exchange(self, message: Message, timeout_s: float) -> Iterator[Message]:
        try:
            answer = self._client.post(self._post, json=message)
        except httpx.HTTPError as error:
            raise MCPUnreachable(f"{self._url} cannot be reached: {error}") from error
        _check(self._url, answer)
        yield from _until_answer(self._received, message, timeout_s, lambda: f"{self._url} ended the connection")

    def close(self) -> None:
        self._received.close()
        self._client.close()


def stdio_line(command: str, args: Iterable[str]) -> str:
    """The shell line that becomes the server."""
    return "exec " + shlex.join([command, *args])


def _check(url: str, answer: httpx.Response) -> None:
    if answer.status_code >= 300:
        raise MCPUnreachable(f"{url} answers {answer.status_code} {answer.reason_phrase}")


def _until_answer(inbox: Inbox, message: Message, timeout_s: float, ended: Callable[[], str]) -> Iterator[Message]:
    """What comes up to the answer to `message`; nothing where none is due. `ended` says it of a server that is gone."""
    if not _is_request(message):
        return
    end = time.monotonic() + timeout_s
    while True:
        try:
            received = inbox.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise MCPTimeout from None
        if received is None:
            inbox.put(None)
            raise MCPUnreachable(ended())
        if isinstance(received, str):
            continue
        yield received
        if _answers(received, message):
            return


def _is_request(message: Message) -> bool:
    return "id" in message and "method" in message


def _answers(received: Message, message: Message) -> bool:
    return received.get("id") == message["id"] and "method" not in received


def _messages(text: str) -> Iterator[Message]:
    """The messages of a line or body; what is no message (a greeting on standard output) is passed over."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return
    for one in found if isinstance(found, list) else [found]:
        if isinstance(one, dict):
            yield one


def _limited(answer: httpx.Response) -> Iterator[bytes]:
    size = 0
    for piece in answer.iter_bytes():
        size += len(piece)
        if size > MAX_MESSAGE:
            raise MCPUnreachable(f"the answer is longer than {MAX_MESSAGE} bytes")
        yield piece


def _lines(answer: httpx.Response) -> Iterator[str]:
    lines, decoder = Lines(), codecs.getincrementaldecoder("utf-8")("replace")
    for piece in answer.iter_bytes():
        yield from lines.feed(decoder.decode(piece))


def _events(answer: httpx.Response) -> Iterator[tuple[str, str]]:
    """(kind, data) of a stream of server-sent events."""
    kind, size = "message", 0
    data: list[str] = []
    for line in _lines(answer):
        size += len(line)
        if size > MAX_MESSAGE:
            raise MCPUnreachable(f"an event is longer than {MAX_MESSAGE} bytes")
        if not line:
            if data:
                yield kind, "\n".join(data)
            data = []
            kind, size = "message", 0
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data.append(value)
