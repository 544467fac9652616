"""One forked process as the zygote sees it, from its fork to its end; and what such a process may report.

    PREPARING ──parked──► PARKED ──boot──► BOOTING ──booted──► PARKED (for one key)
                            └────────go────────► STARTING ──started──► LIVE
    each but LIVE ──► ENDING

A report is checked before it is believed: a child runs nothing of a user's before it is LIVE, and has no right to be
wrong before that either.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from atoll import packets
from atoll.isolation.linux.cgroups.groups import Group
from atoll.isolation.linux.sys import syscalls
from atoll.isolation.namespaces import posture
from atoll.isolation.namespaces.requests import Request
from atoll.isolation.namespaces.root import PoolKey, PreparedRoot

_MAX_REPORT = 64 << 10
_MOST_STAGES = 32
_WAYS_OUT = 2


class ChildState(Enum):
    """See the module."""

    PREPARING = "preparing"
    PARKED = "parked"
    BOOTING = "booting"
    STARTING = "starting"
    LIVE = "live"
    ENDING = "ending"


COMING = frozenset({ChildState.PREPARING, ChildState.BOOTING})

_NEXT = {
    ChildState.PREPARING: {ChildState.PARKED, ChildState.ENDING},
    ChildState.PARKED: {ChildState.BOOTING, ChildState.STARTING, ChildState.ENDING},
    ChildState.BOOTING: {ChildState.PARKED, ChildState.ENDING},
    ChildState.STARTING: {ChildState.LIVE, ChildState.ENDING},
    ChildState.LIVE: set[ChildState](),
    ChildState.ENDING: set[ChildState](),
}
_REPORTED_IN = {
    "parked": ChildState.PREPARING,
    "booted": ChildState.BOOTING,
    "started": ChildState.STARTING,
}


class Report(NamedTuple):
    """A child's report, checked."""

    op: str
    """`parked`, `booted`, `started` or `failed`."""
    egress: list[int]
    """The numbers, in the child, of the descriptors that are its way out; none, or two."""
    stages: dict[str, float]
    error: str


class MalformedReport(Exception):
    """A report that no child sends in its state."""


class Child:
    """One forked process. Owns its descriptors, not its end: the zygote reaps it."""

    def __init__(self, pid: int, pidfd: int, control: socket.socket, group: Group, id_base: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.control = control
        self.group = group
        self.id_base = id_base
        self.state = ChildState.PREPARING
        self.request: Request | None = None
        self.root: PreparedRoot | None = None
        self.key: PoolKey | None = None
        """What its root is made from, once it is being booted."""
        self.started_ticks = syscalls.start_time(pid)
        self.boot_s = 0
        """CLOCK_BOOTTIME of the machine when that of its programs began."""
        self.processors: tuple[int, ...] = ()
        self.egress: list[int] = []
        self.ways_out: list[int] = []
        """Our own descriptors of its way out, for a server that cannot take them (rootless)."""

    @property
    def is_ready(self) -> bool:
        """Whether it waits for what comes next."""
        return self.state is ChildState.PARKED

    @property
    def is_free(self) -> bool:
        """Whether it waits, or will, for the next create."""
        return self.request is None and (self.state is ChildState.PARKED or self.state in COMING)

    def move(self, state: ChildState) -> None:
        """The next state. Raises AssertionError for one that cannot follow: a bug of the zygote."""
        assert state in _NEXT[self.state], f"{self.state} -> {state}"
        self.state = state

    def is_gone(self) -> bool:
        """Whether it has ended, or is about to: its end of the line closes before all of its namespace is dead."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        poller.register(self.control, 0)  # a hang-up is always reported
        return bool(poller.poll(0))

    def receive(self) -> Report | None:
        """Its next report; None: it has hung up. Raises MalformedReport; OSError."""
        try:
            body, descriptors = packets.receive(self.control, _MAX_REPORT)
        except ValueError as error:
            raise MalformedReport(str(error)) from error
        if body is None:
            return None
        self.ways_out += descriptors
        report = read_report(body, self.state)
        if len(descriptors) not in (0, _WAYS_OUT if report.op == "parked" else 0):
            raise MalformedReport(f"{report.op} with {len(descriptors)} descriptors")
        return report

    def close_ways_out(self) -> None:
        """Idempotent."""
        while self.ways_out:
            os.close(self.ways_out.pop())

    def begin_clock(self) -> None:
        """Time since boot, for its programs, is that since it was made; where that cannot be, it is the machine's.

        Set from here: the first process has become root of a user namespace that does not own its own files in /proc.
        """
        began = self.started_ticks // os.sysconf("SC_CLK_TCK")
        try:
            starter = next(name for name in os.listdir(f"/proc/{self.pid}/task") if name != str(self.pid))
            offsets = os.open(f"/proc/{starter}/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
        except (OSError, StopIteration):
            return
        try:
            os.write(offsets, f"boottime -{began} 0".encode())
        except OSError:  # it is in no namespace of its own
            return
        finally:
            os.close(offsets)
        self.boot_s = began

    def score(self) -> None:
        """The guest's place when memory ends, and the bound for all that it will ever start. Needs CAP_SYS_RESOURCE."""
        adjustment = Path(f"/proc/{self.pid}/oom_score_adj")
        with contextlib.suppress(OSError):
            adjustment.write_text(str(posture.OOM_SCORE_ADJ))
            try:
                Path(f"/proc/{self.pid}/oom_adj").write_text(str(posture.OOM_ADJ))
            except OSError:  # a kernel without the older file: no bound then
                adjustment.write_text(str(posture.OOM_SCORE_WITHOUT_BOUND))


def read_report(body: dict[str, Any], state: ChildState) -> Report:
    """The report of a child in that state. Raises MalformedReport."""
    op, egress, stages, error = body.get("op"), body.get("egress", []), body.get("stages", {}), body.get("error", "")
    if op != "failed" and (not isinstance(op, str) or _REPORTED_IN.get(op) is not state):
        raise MalformedReport(f"{op!r} while it is {state.value}")
    if not isinstance(egress, list) or len(egress) not in (0, _WAYS_OUT) or not all(map(_is_descriptor, egress)):
        raise MalformedReport("a way out that is none")
    if not isinstance(stages, dict) or len(stages) > _MOST_STAGES or not all(map(_is_time, stages.values())):
        raise MalformedReport("stages that are no times")
    if not isinstance(error, str):
        raise MalformedReport("an error that is no text")
    return Report(op, egress, stages, error)


def _is_descriptor(value: object) -> bool:
    return type(value) is int and 2 < value < 1 << 20


def _is_time(value: object) -> bool:
    return type(value) in (int, float)
