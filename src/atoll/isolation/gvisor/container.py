"""runsc's commands about one running sandbox: stop its kernel, write its memory to files, let it go on.

A refused checkpoint ends the sandbox unless it was to be left running; so it always is, with its kernel stopped before:
nothing runs between the moment that is saved and the word to go on, or the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from atoll.model.errors import PlatformError

_WITHIN_S = 20.0
_CHECKPOINT_WITHIN_S = 300.0
_OUTPUT_MAX = 65536
_DELETED = re.compile(r'gofer\.dentry\("([^"]{0,4096})"\)\.beforeSave: deleted')


class Refused(PlatformError):
    """runsc did not do it; the sandbox is as it was."""


class Container:
    """One sandbox, by the name under which runsc has it. Every method raises Refused."""

    def __init__(self, runsc: Path, flags: Sequence[str], name: str) -> None:
        self._command = [str(runsc), *flags]
        self._name = name

    async def stop(self) -> None:
        """Its kernel runs no task from now on."""
        await self._do(_WITHIN_S, "pause")

    async def go_on(self) -> None:
        """After `stop`."""
        await self._do(_WITHIN_S, "resume")

    async def checkpoint(self, place: Path, *, direct: bool = True) -> None:
        """Writes its memory into `place`, which it makes; it stays stopped."""
        try:
            await asyncio.to_thread(place.mkdir, 0o700)
        except OSError as error:
            raise Refused(f"no place for its memory: {error}") from error
        how = ["--compression=none", "--leave-running", *(["--direct"] if direct else [])]
        try:
            await self._do(_CHECKPOINT_WITHIN_S, "checkpoint", *how, f"--image-path={place}")
        except Refused as error:
            if os.statvfs(place).f_bavail == 0:  # runsc has other words for it
                raise Refused("no space left on the disk for its memory") from error
            raise

    async def _do(self, within_s: float, command: str, *options: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *self._command, command, *options, self._name,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.defpath},
        )  # fmt: skip
        try:
            _, output = await asyncio.wait_for(process.communicate(), within_s)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            if isinstance(error, TimeoutError):
                raise Refused(f"runsc {command} did not end within {within_s:.0f} s") from error
            raise
        if process.returncode != 0:
            raise Refused(f"runsc {command}: {reason(output[:_OUTPUT_MAX].decode(errors='replace'))}")


def reason(output: str) -> str:
    """The one line of runsc's output that is for people: it adds the state of its kernel. Pure."""
    if found := _DELETED.search(output):
        return f"a program has a file open that was deleted (/{found[1]}), and such a file cannot be saved"
    return next((line.strip()[:300] for line in output.splitlines() if line.strip()), "without a word")
