"""Process trees: who belongs to a command, and signals to all of them.

A command is its session (every command gets its own) and all descendants, also those that made sessions of their own. A
daemon that has cut both ties (`setsid` and a dead parent) belongs to the sandbox, not to the command.
"""

from __future__ import annotations

import os
import signal

_ROUNDS = 256
"""An end to the sweeping, for the case that another tree keeps joining this one. See `_kill`."""


def members(root: int) -> set[int]:
    """Pids of the command that `root` leads, `root` included if it lives. Zombies are left out."""
    parents: dict[int, int] = {}
    found: set[int] = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        fields = _stat(entry)
        if fields is None or fields[0] in (b"Z", b"X"):
            continue
        pid = int(entry)
        parents[pid] = int(fields[1])
        if pid == root or int(fields[3]) == root:
            found.add(pid)
    grew = True
    while grew:
        children = {pid for pid, parent in parents.items() if parent in found and pid not in found}
        grew = bool(children)
        found |= children
    return found


def send_signal(root: int, number: int) -> bool:
    """Sends `number` to the whole tree. False when nobody was there to get it."""
    own = os.getpid()
    if number != signal.SIGKILL:
        return _send(members(root) - {own}, number)
    return _kill(root, own)


def _kill(root: int, own: int) -> bool:
    """Kills the tree, also one that forks as fast as it can.

    What is stopped cannot fork and keeps its place under the limit of processes, so each sweep of stopping leaves
    less room for new ones, and the sweeping comes to an end; killing at once would make room for them instead.
    """
    first = members(root) - {own}
    if not first:
        return False
    _send(first, signal.SIGKILL)
    late = members(root) - first - {own}
    stopped: set[int] = set()
    for _ in range(_ROUNDS):
        if not late:
            break
        _send(late, signal.SIGSTOP)
        stopped |= late
        late = members(root) - stopped - first - {own}
    _send(stopped, signal.SIGKILL)
    return True


def _send(pids: set[int], number: int) -> bool:
    reached = False
    for pid in pids:
        try:
            os.kill(pid, number)
            reached = True
        except (ProcessLookupError, PermissionError):
            continue
    return reached


def _stat(pid: str) -> list[bytes] | None:
    """State, parent, process group, session, …"""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            data = file.read(512)
    except OSError:
        return None
    # The name in parentheses may hold anything, also parentheses: the fields begin after the last one.
    return data[data.rfind(b")") + 2 :].split()
