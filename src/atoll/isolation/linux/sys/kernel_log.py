"""The kernel's log, read as it is written: which process was ended because a control group's memory was used up.

    Memory cgroup out of memory: Killed process 27836 (python3) total-vm:118956kB, anon-rss:30336kB, file-rss:6648kB,
    shmem-rss:0kB, UID:100000 pgtables:120kB oom_score_adj:500

This line is written for every such end and is not rate limited (the report before it is). The UID is the host's, and
names the sandbox, which has a range of its own. The name is the program's own choice, 15 bytes at most: too short to
imitate the rest of the line. Process ids are those of the first pid namespace: in a container they are not ours.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

PATH = "/dev/kmsg"
_RECORD_MAX = 8192
_RECORDS_IN_A_TURN = 256
_LINE = re.compile(
    r"Memory cgroup out of memory: Killed process (\d+) \((.*)\) total-vm:\d+kB, anon-rss:(\d+)kB, "
    r"file-rss:\d+kB, shmem-rss:(\d+)kB, UID:(\d+) pgtables:\d+kB oom_score_adj:-?\d+\s*\Z",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class KilledForMemory:
    """One such line. `memory_bytes`: what its end set free (anonymous and shared memory)."""

    pid: int
    uid: int
    name: str
    memory_bytes: int


def parse(record: bytes) -> KilledForMemory | None:
    """A record of /dev/kmsg (`priority,number,time,flags;text`, then lines that belong to it). None: another one."""
    text = record.partition(b";")[2].split(b"\n", 1)[0].decode("utf-8", "replace")
    found = _LINE.match(text)
    if found is None:
        return None
    pid, name, anonymous, shared, uid = found.groups()
    return KilledForMemory(int(pid), int(uid), name, (int(anonymous) + int(shared)) << 10)


class KernelLog:
    """Calls `callback` on the loop for each such line from now on. Raises OSError where it cannot be read."""

    def __init__(self, callback: Callable[[KilledForMemory], None]) -> None:
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._descriptor = os.open(PATH, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.lseek(self._descriptor, 0, os.SEEK_END)
            self._loop.add_reader(self._descriptor, self._read)
        except BaseException:
            os.close(self._descriptor)
            raise

    def close(self) -> None:
        """No more. Idempotent."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self) -> None:
        for _ in range(_RECORDS_IN_A_TURN):
            try:
                record = os.read(self._descriptor, _RECORD_MAX)
            except BrokenPipeError:
                continue  # records were overwritten before we read them; the next read goes on with the oldest
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            if (killed := parse(record)) is not None:
                self._callback(killed)


def why_unreadable() -> str | None:
    """None: it can be read here."""
    try:
        os.close(os.open(PATH, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return f"{PATH}: {error.strerror}"
    return None


def pid_inside(pid: int, uid: int) -> int | None:
    """What a process of that user is called in its innermost pid namespace; None when it has gone already."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            fields = dict(line.split(b":", 1) for line in status.read().splitlines() if b":" in line)
        if int(fields[b"Uid"].split()[0]) != uid:
            return None
        return int(fields[b"NSpid"].split()[-1])
    except (OSError, KeyError, ValueError, IndexError):
        return None
