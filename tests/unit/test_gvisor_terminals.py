"""The file system behind /dev/tty in gVisor: what it answers, and to whom."""

from __future__ import annotations

import errno
import os
import pty
import signal
import struct

from atoll.isolation.gvisor import terminals
from atoll.isolation.gvisor.terminals import Question

LOOKUP, GETATTR, READLINK, WRITE = 1, 3, 5, 16


def _code(answer: bytes) -> int:
    length, code, unique = struct.unpack_from("=IiQ", answer)
    assert (length, unique) == (len(answer), 77)
    return int(code)


def _ask(opcode: int, node: int = 1, thread: int = 0, body: bytes = b"") -> bytes:
    head = struct.pack("=IIQQIIII", 40 + len(body), opcode, 77, node, 1000, 1000, thread, 0)
    return terminals.answer(terminals.parse(head + body))


def test_each_caller_is_led_to_its_own_terminal() -> None:
    child, master = pty.fork()
    if child == 0:
        os.write(1, b"!")
        signal.pause()
        os._exit(0)
    try:
        assert os.read(master, 1) == b"!", "it has its terminal"
        found = terminals.terminal_of(child)
        assert os.readlink(f"/proc/{child}/fd/0") == f"/dev/pts/{found}"
        answer = _ask(LOOKUP, thread=child, body=b"own\0")
        assert _code(answer) == 0
        node, _, remembered_s = struct.unpack_from("=QQQ", answer, 16)
        assert remembered_s == 0, "the next who asks may be somebody else"
        assert _ask(READLINK, node=node)[16:] == f"/dev/pts/{found}".encode()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(master)


def test_who_has_no_terminal_is_told_so() -> None:
    assert _code(_ask(LOOKUP, thread=1 << 29, body=b"own\0")) == -errno.ENXIO


def test_nothing_else_is_offered() -> None:
    assert _code(_ask(LOOKUP, thread=os.getpid(), body=b"other\0")) == -errno.ENOENT
    assert _code(_ask(WRITE)) == -errno.ENOSYS
    assert _code(_ask(READLINK, node=1)) == -errno.ENOSYS
    assert _code(_ask(GETATTR)) == 0


def test_a_request_is_read_as_the_kernel_writes_it() -> None:
    data = struct.pack("=IIQQIIII", 44, LOOKUP, 5, 1, 0, 0, 9, 0) + b"own\0"
    assert terminals.parse(data) == Question(LOOKUP, 5, 1, 9, b"own\0")
