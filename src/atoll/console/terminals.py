"""Terminals that browsers look at: what a shell wrote last is kept here, so that a page that is loaded again shows it.

    guest ──output──► Terminals (a bounded buffer for each) ──long polls──► any number of pages
                            keys, sizes ◄──────────────────────────────── pages

The shells are processes of the guest like any client's: they go on without this server, and SDKs find them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing, suppress
from dataclasses import dataclass

from atoll.console.guest import Guests, Output, SandboxGuest
from atoll.model.errors import AtollError, PlatformError
from atoll.model.tasks import OwnedTasks

KEPT = 256 * 1024
"""Bytes of output that are kept of each."""
MOST = 64
"""Terminals that are followed at once; beyond that the team with the most loses what it looked at longest ago."""
WAIT_S = 20.0
"""How long a poll waits for output."""
BEGIN_S = 60.0
"""How long the guest may take to say which process it follows: one that never does would be waited for by ever more."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a page gets: bytes, the offset after them, and how the process ended, if it has."""

    data: bytes
    next: int
    end: str | None


class _Terminal:
    def __init__(self, team_id: str) -> None:
        self.team_id = team_id
        self.begins_at = 0
        self.kept = bytearray()
        self.end: str | None = None
        self.is_cut = False
        """Nothing more comes, although the process may go on: another look follows it anew."""
        self.pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def let_go(self) -> None:
        """The process goes on."""
        if self.task is not None:
            self.task.cancel()

    def take(self, output: Output) -> None:
        if output.pid is not None and not self.pid.done():
            self.pid.set_result(output.pid)
        self.kept += output.data
        if (surplus := len(self.kept) - KEPT) > 0:
            del self.kept[:surplus]
            self.begins_at += surplus
        self.end = output.end if output.end is not None else self.end
        self._changed.set()

    @property
    def _upto(self) -> int:
        return self.begins_at + len(self.kept)

    async def after(self, offset: int) -> Seen:
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                while offset == self._upto and self.end is None:
                    self._changed.clear()
                    await self._changed.wait()
        start = offset if self.begins_at <= offset <= self._upto else self.begins_at
        data = bytes(self.kept[start - self.begins_at :])
        return Seen(data, start + len(data), self.end)


class Terminals:
    """See the module. Whether a caller may see a sandbox has been checked before."""

    def __init__(self, guests: Guests) -> None:
        self._guests = guests
        self._tasks = OwnedTasks()
        self._followed: dict[tuple[str, int], _Terminal] = {}
        """By sandbox and process, the one that was looked at last at the end."""

    async def open(self, team_id: str, sandbox_id: str, cols: int, rows: int) -> int:
        """A new shell's process id. Raises AtollError."""
        terminal = _Terminal(team_id)
        guest = self._guests(sandbox_id)
        terminal.task = self._tasks.start(self._run(guest, terminal, None, (cols, rows)))
        try:
            pid = await _begun(terminal)
        except BaseException:
            # Nobody knows it: nobody would end it.
            terminal.let_go()
            raise
        self._keep((sandbox_id, pid), terminal)
        return pid

    async def after(self, team_id: str, sandbox_id: str, pid: int, offset: int) -> Seen:
        """What it wrote from `offset` on, as soon as there is any. Raises AtollError: there is no such process."""
        place = (sandbox_id, pid)
        terminal = self._followed.pop(place, None)
        if terminal is None or terminal.is_cut:
            terminal = _Terminal(team_id)
            guest = self._guests(sandbox_id)
            terminal.task = self._tasks.start(self._run(guest, terminal, pid, (0, 0)))
        self._keep(place, terminal)
        try:
            await _begun(terminal)
        except AtollError:
            if self._followed.get(place) is terminal:
                del self._followed[place]
                terminal.let_go()
            raise
        return await terminal.after(offset)

    async def aclose(self) -> None:
        """The shells go on. Idempotent."""
        await self._tasks.aclose()

    def _keep(self, place: tuple[str, int], terminal: _Terminal) -> None:
        self._followed[place] = terminal
        while len(self._followed) > MOST:
            teams = Counter(one.team_id for one in self._followed.values())
            most = max(teams.values())
            oldest = next(one for one, each in self._followed.items() if teams[each.team_id] == most)
            self._followed.pop(oldest).let_go()

    async def _run(self, guest: SandboxGuest, terminal: _Terminal, pid: int | None, size: tuple[int, int]) -> None:
        why: AtollError = PlatformError("the connection to the process has ended")
        try:
            async with guest, aclosing(guest.start_shell(*size) if pid is None else guest.follow(pid)) as outputs:
                async for output in outputs:
                    terminal.take(output)
        except AtollError as error:
            why = error
        finally:
            terminal.is_cut = terminal.end is None
            if not terminal.pid.done():
                terminal.pid.set_exception(why)
                terminal.pid.exception()  # perhaps nobody waits any more
            terminal.take(Output(end=terminal.end or str(why)))


async def _begun(terminal: _Terminal) -> int:
    """Its process id. Raises AtollError: there is no such process, or the guest does not answer in BEGIN_S."""
    try:
        async with asyncio.timeout(BEGIN_S):
            return await asyncio.shield(terminal.pid)
    except TimeoutError as error:
        raise PlatformError("the sandbox does not answer") from error
