"""How two processes of one machine exchange JSON objects with descriptors: each is a packet of a SOCK_SEQPACKET socket.

    i + JSON    the whole message
    m           a message too large for a packet: its JSON is in a memory file, which is the last descriptor

Blocking and non-blocking sockets alike: nothing here waits or remembers. Neither side knows what messages mean.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MAX_MESSAGE = 16 << 20
"""Bytes. The largest are pages of logs and records of connections."""

_INLINE = 60_000
_MAX_DESCRIPTORS = 16
_SIZE = array.array("i").itemsize
_IN_MEMORY_FILE, _IN_PACKET = b"m", b"i"


class Packet(NamedTuple):
    """One message; None as body: the other side is gone. Who receives it owns the descriptors."""

    body: dict[str, Any] | None
    descriptors: list[int]


def encode(body: Mapping[str, Any], at_most: int = MAX_MESSAGE) -> bytes:
    """Raises ValueError for a body of more than `at_most` bytes."""
    payload = json.dumps(body, separators=(",", ":")).encode()
    if len(payload) > at_most:
        raise ValueError(f"a message of {len(payload)} bytes is too large: at most {at_most}")
    return payload


def decode(payload: bytes) -> dict[str, Any]:
    """Raises ValueError for anything but a JSON object."""
    body = json.loads(payload)
    if not isinstance(body, dict):
        raise ValueError("a message is a JSON object")
    return body


def send(sock: socket.socket, payload: bytes, descriptors: Sequence[int] = ()) -> None:
    """Sends what `encode` made; the descriptors stay the caller's. Raises OSError: BlockingIOError on a full
    non-blocking socket, BrokenPipeError when the other side is gone."""
    if len(payload) <= _INLINE:
        _send_packet(sock, (_IN_PACKET, payload), descriptors)
        return
    spill = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        os.write(spill, payload)  # to memory: never short
        _send_packet(sock, (_IN_MEMORY_FILE,), [*descriptors, spill])
    finally:
        os.close(spill)


def _send_packet(sock: socket.socket, parts: Sequence[bytes], descriptors: Sequence[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sock.sendmsg(parts, ancillary, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket, at_most: int = MAX_MESSAGE, descriptors: int = _MAX_DESCRIPTORS) -> Packet:
    """Raises OSError (BlockingIOError when nothing is there), ValueError for what is no message, or one too large."""
    packet, ancillary, flags, _ = sock.recvmsg(
        _INLINE + 1, socket.CMSG_SPACE(descriptors * _SIZE), socket.MSG_CMSG_CLOEXEC
    )
    passed = _descriptors(ancillary)
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("a packet larger than any that is sent")
        if not packet:
            return Packet(None, passed)
        payload = _take_spilled(passed, at_most) if packet[:1] == _IN_MEMORY_FILE else packet[1:]
        if len(payload) > at_most:
            raise ValueError(f"a message of {len(payload)} bytes is too large: at most {at_most}")
        return Packet(decode(payload), passed)
    except BaseException:
        for descriptor in passed:
            os.close(descriptor)
        raise


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % _SIZE])
    return list(found)


def _take_spilled(passed: list[int], at_most: int) -> bytes:
    if not passed:
        raise ValueError("a large message without its memory file")
    spill = passed.pop()
    try:
        if os.fstat(spill).st_size > at_most:
            raise ValueError(f"a message of {os.fstat(spill).st_size} bytes is too large: at most {at_most}")
        return os.pread(spill, at_most, 0)
    finally:
        os.close(spill)
