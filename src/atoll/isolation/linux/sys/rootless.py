"""What an ordinary user may do without root: a user namespace around the zygote, in which it is root.

    host: user 1000 ──unshare──► outer namespace: 0 = 1000 [, 1.. = the user's subordinate ids] ──► sandboxes within it

With subordinate ids (`newuidmap`, /etc/subuid) a sandbox has its users and its root as usual, all sandboxes the same
host ids. Without them there is one id for all: root and user inside are one, and programs that change their owner or
their user (apt-get, sudo, su) fail. There are no cgroups, no idmapped mounts and no loop devices either way.
"""

from __future__ import annotations

import os
import subprocess

_TRY_WITHIN_S = 10.0
_UNSHARE = ("unshare", "--user", "--map-root-user")


def is_needed() -> bool:
    """Whether this process is no root."""
    return os.geteuid() != 0


def prefix() -> list[str]:
    """Put before a command that is to run as root of the outer namespaces. Raises OSError where none can be made."""
    wide, _ = _try(*_UNSHARE, "--map-auto")
    narrow, reason = (True, "") if wide else _try(*_UNSHARE)
    if not narrow:
        raise OSError(f"no user namespace can be made: {reason}")
    return [*_UNSHARE, *(["--map-auto"] if wide else []), "--mount", "--propagation", "private", "--"]


def has_subordinate_ids() -> bool:
    """Whether a namespace of ours has more than one id."""
    return _try(*_UNSHARE, "--map-auto")[0]


def ids_here() -> int:
    """How many ids this process's user namespace knows, from 0 upwards."""
    with open("/proc/self/uid_map") as table:
        rows = sorted(tuple(map(int, line.split())) for line in table)
    known = 0
    for inside, _, count in rows:
        if inside > known:
            break
        known = inside + count
    return known


def map_within(pid: int) -> None:
    """Ids of a child in a new user namespace within ours are ours, as far as they go. Raises OSError."""
    # Two lines: one that spans two extents of our own map is refused.
    lines = "0 0 1\n" if ids_here() < 65536 else "0 0 1\n1 1 65535\n"
    for name in ("uid_map", "gid_map"):
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, lines.encode())
        finally:
            os.close(descriptor)


def _try(*command: str) -> tuple[bool, str]:
    try:
        done = subprocess.run(
            [*command, "--", "true"], capture_output=True, text=True, check=False, timeout=_TRY_WITHIN_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return done.returncode == 0, done.stderr.strip()[-200:]
