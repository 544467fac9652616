"""Messages between server, zygote and newborn sandboxes: one JSON object per seqpacket, with descriptors.

    server → zygote   create{id, lower_dirs, state_dir, limits} +[listener, sealed spec]      cancel{id}
                      disk{image, size_mib} +[mount]
    zygote → server   ready{pid, no_egress, no_disk}   created{id, record, stages} +[pidfd]   failed{id, error}
                      exited{pid, status}
    zygote → child    mapped{}   boot{limits, processors, boot_s} +[root mount]
                      go{limits, processors, boot_s} +[root mount, log, listener, sealed spec]
    child  → zygote   parked{egress}   started{stages}   failed{error}

A payload too large for one packet travels in a memory file, which is then the last descriptor. What only the sandbox
may know (its part of the spec, with secrets) travels in a sealed one that the zygote hands on unread.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

_INLINE = 60_000
_MAX_PAYLOAD = 8 << 20
_MAX_DESCRIPTORS = 16
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_SIZE = array.array("i").itemsize


def seal(body: dict[str, Any]) -> int:
    """A memory file with it that nobody can change any more, for `unseal`. Raises OSError, ValueError (too large)."""
    payload = _encode(body)
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
        body: dict[str, Any] = json.loads(os.pread(memory, os.fstat(memory).st_size, 0))
        return body
    finally:
        os.close(memory)


class Received(NamedTuple):
    """One message; `None` as body means that the other side is gone."""

    body: dict[str, Any] | None
    descriptors: list[int]


def send(channel: socket.socket, body: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Raises OSError (BlockingIOError on a full non-blocking socket, BrokenPipeError when the other side is gone),
    ValueError for a body that is too large."""
    payload = _encode(body)
    passed = list(descriptors)
    if len(payload) <= _INLINE:
        _send(channel, b"i" + payload, passed)
        return
    spill = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        os.write(spill, payload)  # to memory: never short
        _send(channel, b"m", [*passed, spill])
    finally:
        os.close(spill)


def _encode(body: dict[str, Any]) -> bytes:
    payload = json.dumps(body, separators=(",", ":")).encode()
    if len(payload) > _MAX_PAYLOAD:
        raise ValueError(f"the sandbox's configuration is too large: {len(payload)} bytes, at most {_MAX_PAYLOAD}")
    return payload


def _send(channel: socket.socket, payload: bytes, descriptors: Sequence[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    channel.sendmsg([payload], ancillary, socket.MSG_NOSIGNAL)


def receive(channel: socket.socket) -> Received:
    """Raises OSError (BlockingIOError when nothing is there). The caller owns the descriptors."""
    payload, ancillary, _, _ = channel.recvmsg(
        _INLINE + 1, socket.CMSG_SPACE(_MAX_DESCRIPTORS * _SIZE), socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % _SIZE])
    passed = list(descriptors)
    if not payload:
        return Received(None, passed)
    if payload[:1] == b"m":
        spill = passed.pop()
        try:
            payload = b"i" + os.pread(spill, _MAX_PAYLOAD, 0)
        finally:
            os.close(spill)
    return Received(json.loads(payload[1:]), passed)
