"""The machine as programs of a sandbox see it: files over /proc and /sys and the answer to sysinfo(2), of its size.

The tier has mounted files of a private directory over those of /proc, read-only for everybody inside, and gives that
directory here (`show`). Figures are fresh within a second while programs work, and looked at ever more seldom while
they do not; where nothing of a user runs nobody looks at all. Totals and the processors' list are always exact.

    request, program started ──► touch ──► look: read the figures, write the files ──► again in 1 s … 64 s, or never
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from atoll.guest import metrics
from atoll.guest.machine import files, sysinfo
from atoll.guest.machine.files import Figures
from atoll.guest.process.spawn import StartIn
from atoll.guest.state import GuestState
from atoll.http1.server import Handler, HttpError, Request, Response
from atoll.model.sandbox import Limits

PROCESSOR_LIST = "sys/devices/system/cpu/online"
"""Of which `possible` and `present` are other names. The rest are over those of /proc with the same names."""

_SOON_S = 0.003
_EVERY_S = 1.0
_SELDOM_S = 64.0
_IDLE_SHARE = 0.01
"""Of one processor. Who uses less is not watched closely."""
_LOAD_MINUTES = (1, 5, 15)
_PAGE = resource.getpagesize()
_BODY_MAX = 65536
LIMITS_ROUTE = ("POST", "/limits")


class Hardware(Protocol):
    """What the tier knows of the machine."""

    def take(self, count: int) -> tuple[int, ...]:
        """So many processors, or all that there are, by their numbers."""

    def describe(self, chosen: Iterable[int]) -> Mapping[int, str]:
        """Each with its part of /proc/cpuinfo."""


@dataclass(frozen=True, slots=True)
class Readings:
    """Where figures come from."""

    memory: Callable[[], Figures]
    cpu: Callable[[], Figures]


class Machine:
    """One per guest. Owns `directory`; never follows a link there (nobody else can write to it)."""

    def __init__(
        self,
        directory: int,
        hardware: Hardware,
        readings: Readings,
        boot_s: int,
        asked: int,
        start_in: StartIn | None = None,
    ) -> None:
        self._directory = directory
        self._hardware = hardware
        self._boot_s = boot_s
        self._asked = asked
        self._start_in: StartIn = start_in or _do
        self._read = _with_what_is_seen(readings)
        self._limits = Limits()
        self._processors: tuple[int, ...] = ()
        self._last = (time.monotonic(), 0)
        self._loads = [0.0 for _ in _LOAD_MINUTES]
        self._written: dict[str, str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pause = _EVERY_S

    # -- what there is -------------------------------------------------------------------------------------------------

    def resize(self, limits: Limits, processors: Sequence[int] = ()) -> None:
        """Other limits. `processors`: those that programs run on from now on; none: any. Raises OSError."""
        self._limits, self._processors = limits, tuple(processors) or self._hardware.take(limits.cpu_count)
        self._start_in(lambda: os.sched_setaffinity(0, self._processors))
        self._write("cpuinfo", files.cpuinfo(self._hardware.describe(self._processors)))
        self._write("swaps", files.swaps())
        self._write(PROCESSOR_LIST, files.number_list(self._processors))
        self.look()

    # -- when it is looked at ------------------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """The sandbox begins now."""
        self._loop = loop
        self._last = (time.monotonic(), self._cpu_us())
        if self._asked >= 0:
            sysinfo.Answers(self._asked, self._figures).start(loop)

    def watched(self, handler: Handler) -> Handler:
        """The same handler; who asks for anything is about to make programs work."""

        async def handle(request: Request) -> Response:
            self.touch()
            return await handler(request)

        return handle

    def touch(self) -> None:
        """Programs may work now: look soon, and often again. Takes no time of the caller's."""
        self._pause = _EVERY_S
        if self._loop is None:
            return
        due = max(self._loop.time() + _SOON_S, self._last[0] + _EVERY_S)
        if self._timer is None or self._timer.when() > due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        assert self._loop is not None
        self._timer = None
        share, processes = self.look()
        if processes <= 1:
            return  # the guest is alone: `touch` goes on when somebody is there
        self._pause = _EVERY_S if share > _IDLE_SHARE else min(_SELDOM_S, 2 * self._pause)
        self._timer = self._loop.call_later(self._pause, self._tick)

    def look(self) -> tuple[float, int]:
        """Reads and writes all. Returns how many processors were busy since the last look, and the processes."""
        now, cpu = time.monotonic(), self._read.cpu()
        used, elapsed = sum(cpu.values()), now - self._last[0]
        busy = max(0.0, (used - self._last[1]) / 1e6 / elapsed) if elapsed > 0 else 0.0
        self._last = (now, used)
        for place, minutes in enumerate(_LOAD_MINUTES):
            kept = math.exp(-elapsed / 60 / minutes)
            self._loads[place] = self._loads[place] * kept + busy * (1 - kept)
        processes, newest = _processes() if self._loop is not None else (1, 1)  # before, it may not be our /proc
        total, memory = self._limits.memory_mib << 20, self._read.memory()
        self._write("meminfo", files.meminfo(total, memory))
        self._write("vmstat", files.vmstat(total, memory, _PAGE))
        self._write("loadavg", files.loadavg(self._loads, processes, newest))
        up_s = self._up_s()
        self._write("stat", files.stat(self._processors, cpu, up_s, time.time() - up_s, newest))
        return busy, processes

    def _up_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self._boot_s

    def _figures(self) -> bytes:
        """For sysinfo(2), as of now."""
        memory, total = self._read.memory(), self._limits.memory_mib << 20
        one, five, fifteen = self._loads
        return sysinfo.packed(
            up_s=int(self._up_s()),
            loads=(one, five, fifteen),
            total=total,
            free=files.available(total, memory)[0],
            shared=memory.get("shared", 0),
            cache=0,
            processes=_processes()[0],
        )

    def _cpu_us(self) -> int:
        return sum(self._read.cpu().values())

    def _write(self, name: str, text: str) -> None:
        if self._written.get(name) == text:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o444, dir_fd=self._directory)
        try:
            os.pwrite(descriptor, text.encode(), 0)
            if len(self._written.get(name, "")) != len(text):
                os.ftruncate(descriptor, len(text))
        finally:
            os.close(descriptor)
        self._written[name] = text


def _do(work: Callable[[], object]) -> None:
    work()


def _with_what_is_seen(readings: Readings) -> Readings:
    """Where no controller counts: what the visible processes have."""

    def memory() -> Figures:
        if counted := readings.memory():
            return counted
        used, cache = metrics.memory_of_processes()
        return {"usage": used + cache, "anonymous": used, "active_anonymous": used}

    def cpu() -> Figures:
        return readings.cpu() or {"user_us": int(metrics.cpu_of_processes() * 1_000_000)}

    return Readings(memory, cpu)


def _processes() -> tuple[int, int]:
    """How many there are, and the number of the newest that lives."""
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return len(numbers), max(numbers)


class _NoHardware:
    def take(self, count: int) -> tuple[int, ...]:
        return tuple(os.sched_getaffinity(0))

    def describe(self, chosen: Iterable[int]) -> Mapping[int, str]:
        return {number: f"processor\t: {number}\ncore id\t\t: 0\n" for number in chosen}


def exercise(scratch: str, rounds: int) -> None:
    """For the zygote, as the guest's warm-up is: in a directory that is thrown away. Raises OSError."""
    os.makedirs(os.path.join(scratch, os.path.dirname(PROCESSOR_LIST)), exist_ok=True)
    directory = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for turn in range(rounds):
            figures = Readings(lambda: {"usage": 1 << 20}, lambda: {"user_us": 1})
            Machine(directory, _NoHardware(), figures, 0, -1).resize(Limits(memory_mib=64 + turn))
    finally:
        os.close(directory)


def limits_handler(state: GuestState) -> Handler:
    """`POST /limits` (control port): the host has given this sandbox other limits; 204.

    A body `{"limits", "processors"}`: the numbers of those that programs run on; none: any.
    """

    async def handle(request: Request) -> Response:
        try:
            given = json.loads(await request.body.read(_BODY_MAX))
            limits = Limits(**given["limits"])
            processors = [int(number) for number in given["processors"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HttpError(400, f"malformed limits: {error}") from error
        state.limits = limits
        if (machine := state.tier.machine) is not None:
            machine.resize(limits, processors)
        return Response(204)

    return handle
