"""Messages between server, zygote and new sandboxes: one JSON object per seqpacket, with descriptors.

    server → zygote   create{id, lower_dirs, state_dir, limits, resumes, …} +[listener, sealed spec, kept disk?]
                      cancel{id}
                      disk{image, size_mib} +[mount]   no_disk{size_mib, error}
    zygote → server   ready{pid, no_egress}   created{id, record, stages} +[pidfd]   failed{id, error}
                      exited{pid, status}   disk_needed{size_mib}
    zygote → child    mapped{}   boot{limits, processors, boot_s} +[root mount]
                      go{limits, processors, boot_s, mounts} +[root mount, those mounts, log, listener, sealed spec]
    child  → zygote   parked{egress}   started{stages}   failed{error}

Framed by `atoll.packets`. What only the sandbox may know (its part of the spec, with secrets) travels in a sealed
memory file that the zygote hands on unread.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Sequence
from typing import Any

from atoll import packets
from atoll.packets import Packet

_MAX_PAYLOAD = 8 << 20
MOST_DESCRIPTORS = 16
MOST_WITH_MOUNTS = 253
"""What the kernel passes at once: a sandbox with devices has a mount for each of their libraries."""
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def seal(body: dict[str, Any]) -> int:
    """A memory file with it that nobody can change any more, for `unseal`. Raises OSError, ValueError (too large)."""
    payload = packets.encode(body, _MAX_PAYLOAD)
    memory = os.memfd_create("spec", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(memory, payload)  # to memory: never short
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(memory)
        raise
    return memory


def unseal(memory: int) -> dict[str, Any]:
    """What `seal` was given. Closes the file. Raises OSError, ValueError."""
    try:
        return packets.decode(os.pread(memory, os.fstat(memory).st_size, 0))
    finally:
        os.close(memory)


def send(channel: socket.socket, body: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Raises OSError (BlockingIOError on a full non-blocking socket, BrokenPipeError when the other side is gone),
    ValueError for a body that is too large."""
    packets.send(channel, packets.encode(body, _MAX_PAYLOAD), descriptors)


def receive(channel: socket.socket, descriptors: int = MOST_DESCRIPTORS) -> Packet:
    """Raises OSError (BlockingIOError when nothing is there), ValueError. The caller owns the descriptors."""
    return packets.receive(channel, _MAX_PAYLOAD, descriptors)
