"""Process trees: who belongs to a command, and signals to all of them.

A command is its session (every command gets its own) and all descendants, also those that made sessions of their own. A
daemon that has cut both ties (`setsid` and a dead parent) belongs to the sandbox, not to the command.

A signal reaches parents before their children. Otherwise the command `sleep 100; true` could see its `sleep` die, go on
and end with 0 in the moment before the signal reaches the command itself, and a killed command would look successful.
"""

from __future__ import annotations

import os
import signal
from collections import defaultdict, deque
from collections.abc import Iterable

_ROUNDS = 256
"""An end to the sweeping, for the case that another tree keeps joining this one. See `_kill`."""


def members(root: int) -> list[int]:
    """Pids of the command that `root` leads, `root` included if it lives; parents first. Zombies are left out."""
    parents: dict[int, int] = {}
    children: dict[int, list[int]] = defaultdict(list)
    session: list[int] = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        fields = _stat(entry)
        if fields is None or fields[0] in (b"Z", b"X"):
            continue
        pid, parent = int(entry), int(fields[1])
        parents[pid] = parent
        children[parent].append(pid)
        if pid == root or int(fields[3]) == root:
            session.append(pid)
    found = _descend(session, children)
    tops = sorted((pid for pid in found if parents[pid] not in found), key=lambda pid: pid != root)
    return list(_descend([*tops, *found], children))


def _descend(starts: Iterable[int], children: dict[int, list[int]]) -> dict[int, None]:
    """`starts` and everything below them, level by level, each once."""
    seen: dict[int, None] = {}
    waiting = deque(starts)
    while waiting:
        pid = waiting.popleft()
        if pid not in seen:
            seen[pid] = None
            waiting.extend(children.get(pid, ()))
    return seen


def send_signal(root: int, number: int) -> bool:
    """Sends `number` to the whole tree. False when nobody was there to get it."""
    own = os.getpid()
    if number != signal.SIGKILL:
        return _send(_others(root, {own}), number)
    return _kill(root, own)


def _kill(root: int, own: int) -> bool:
    """Kills the tree, also one that forks as fast as it can.

    What is stopped cannot fork and keeps its place under the limit of processes, so each sweep of stopping leaves
    less room for new ones, and the sweeping comes to an end; killing at once would make room for them instead.
    """
    first = _others(root, {own})
    if not first:
        return False
    _send(first, signal.SIGKILL)
    seen = {own, *first}
    stopped: list[int] = []
    for _ in range(_ROUNDS):
        late = _others(root, seen)
        if not late:
            break
        _send(late, signal.SIGSTOP)
        seen.update(late)
        stopped += late
    _send(stopped, signal.SIGKILL)
    return True


def _others(root: int, known: set[int]) -> list[int]:
    return [pid for pid in members(root) if pid not in known]


def _send(pids: Iterable[int], number: int) -> bool:
    reached = False
    for pid in pids:
        try:
            os.kill(pid, number)
            reached = True
        except (ProcessLookupError, PermissionError):
            continue
    return reached


def parent_of(pid: int) -> int | None:
    """None when it is gone."""
    fields = _stat(str(pid))
    return int(fields[1]) if fields is not None else None


def _stat(pid: str) -> list[bytes] | None:
    """State, parent, process group, session, …"""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            data = file.read(512)
    except OSError:
        return None
    # The name in parentheses may hold anything, also parentheses: the fields begin after the last one.
    return data[data.rfind(b")") + 2 :].split()
