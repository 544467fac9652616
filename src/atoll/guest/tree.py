"""Process trees: who belongs to a command, and signals to all of them.

A command is its session (every command gets its own) and all descendants, also those that made sessions of their own. A
daemon that has cut both ties (`setsid` and a dead parent) belongs to the sandbox, not to the command.
"""

from __future__ import annotations

import os
import signal

_KILL_ROUNDS = 8
"""A tree that forks while it is being killed is swept again; each round leaves only what was forked during the last."""


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
    hit: set[int] = set()
    for _ in range(_KILL_ROUNDS):
        left = members(root) - hit - {own}
        if not left:
            break
        _send(left, number)
        hit |= left
    return bool(hit)


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
