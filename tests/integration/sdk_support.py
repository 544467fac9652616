"""Small things that every SDK test needs: waiting for a fact, looking at the processes of a sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from e2b import Sandbox

T = TypeVar("T")

WAIT_S = 20.0
"""How long a fact may take to become true. Generous: it bounds a hang, it measures nothing."""


def eventually(probe: Callable[[], T], *, what: str, within_s: float = WAIT_S) -> T:
    """Calls `probe` until it returns something true, and returns that. Fails the test by name if it never does."""
    deadline = time.monotonic() + within_s
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"never happened: {what} (last seen: {value!r})")
        time.sleep(0.05)


CONVERGES_S = 5.0
"""In which a server is as it should be again, from when what was killed is back."""


def convergence_s() -> float:
    """CONVERGES_S on a machine that has a processor for each process that wants one, else as many times more."""
    return CONVERGES_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


async def eventually_async(probe: Callable[[], T | Awaitable[T]], *, what: str, within_s: float = WAIT_S) -> T:
    """`eventually` for a running loop; `probe` may be plain or async."""
    deadline = time.monotonic() + within_s
    while True:
        value = probe()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"never happened: {what} (last seen: {value!r})")
        await asyncio.sleep(0.05)


PROCESSES = r"""for f in /proc/[0-9]*/cmdline; do { tr '\0' ' ' <"$f"; echo; } 2>/dev/null; done"""
"""Prints one command line per process; needs nothing but bash and coreutils."""


def command_lines(sandbox: Sandbox) -> list[str]:
    """The command lines of all processes in the sandbox, as root sees them."""
    return [line.strip() for line in sandbox.commands.run(PROCESSES, user="root").stdout.splitlines() if line.strip()]


def is_alive(sandbox: Sandbox, command_line: str) -> bool:
    """Is there a process whose whole command line is this?"""
    return command_line in command_lines(sandbox)


LEAVE_AFTER_S = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.2)
"""When clients of a create go away: before, while and after the sandbox is made."""


def address_of(server: Any) -> tuple[str, int]:
    """Where a server listens."""
    url = urllib.parse.urlsplit(server.url)
    return str(url.hostname), int(url.port or 80)


def create_request(server: Any) -> bytes:
    """A whole request for a sandbox that lives for an hour."""
    body = b'{"templateID":"base","timeout":3600}'
    head = (
        f"POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nX-API-Key: {server.api_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def ask_and_leave(server: Any, after_s: float) -> str | None:
    """Asks for a sandbox and leaves; its id if the answer came before. It reads on, so that none is missed."""
    with socket.create_connection(address_of(server), timeout=60) as sock:
        sock.sendall(create_request(server))
        time.sleep(after_s)
        sock.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    return json.loads(answer.partition(b"\r\n\r\n")[2])["sandboxID"] if answer else None


@contextlib.contextmanager
def creates_held_up(server: Any) -> Iterator[None]:
    """Whatever the server would start a sandbox by stands still within the block."""
    node = server.pid_of("node")
    children = Path(f"/proc/{node}/task/{node}/children").read_text().split()
    assert children, "nothing to hold up"
    for pid in children:
        os.kill(int(pid), signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in children:
            os.kill(int(pid), signal.SIGCONT)
