"""Small things that every SDK test needs: waiting for a fact, looking at the processes of a sandbox."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

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
