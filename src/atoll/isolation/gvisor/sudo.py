"""`sudo` inside a gVisor sandbox: the options that programs use, and the rest is the guest's (guest/pid1/elevate.py).

Runs as the sandbox's user on the guest's interpreter; knows and decides nothing about who may do what.

In the foreground of a terminal the command gets a terminal of its own, as sudo's `use_pty` gives it one: the guest
opens it and this program stands between the two. Only so has a root shell job control and a /dev/tty.
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import select
import signal
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NoReturn

ADDRESS = "\0atoll-sudo"
_SIZE = 8
"""Bytes of a struct winsize, as the terminal's ioctls take it."""
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_PRIVATE = ("PYTHONHOME", "PYTHONCOERCECLOCALE")
_FLAGS = "nESHAkKbP"
"""Options without a value that need nothing of us: nobody is ever asked for a password."""


class Usage(Exception):
    """The command line cannot be understood."""


@dataclass
class Order:
    """What the command line asks for."""

    argv: list[str] = field(default_factory=list)
    user: str = "root"
    keep_env: bool = False
    login: bool = False
    shell: bool = False
    nothing: bool = False
    """-v, -l, -k alone: done by asking whether it would be allowed."""
    set: dict[str, str] = field(default_factory=dict)


def parse(arguments: list[str]) -> Order:
    """Raises Usage."""
    order, rest = Order(), list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            name, separator, value = word[2:].partition("=")
            if name in ("user", "group", "chdir", "prompt", "host"):
                value = value if separator else _value(rest, word)
                order.user = value if name == "user" else order.user
            elif name in ("preserve-env", "login", "shell", "validate", "list"):
                _set(order, {"preserve-env": "E", "login": "i", "shell": "s", "validate": "v", "list": "l"}[name])
            elif name not in ("non-interactive", "set-home", "stdin", "askpass", "reset-timestamp", "background"):
                raise Usage(f"unrecognized option '{word}'")
        elif word.startswith("-") and len(word) > 1:
            _short(order, word[1:], rest)
        elif "=" in word and word.partition("=")[0].isidentifier():
            name, _, value = word.partition("=")
            order.set[name] = value
        else:
            rest.insert(0, word)
            break
    order.argv = rest
    if not rest and not (order.login or order.shell or order.nothing):
        raise Usage("a command is needed")
    return order


def _short(order: Order, letters: str, rest: list[str]) -> None:
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter in "ugpChTrtDR":
            value = letters or _value(rest, f"-{letter}")
            order.user = value if letter == "u" else order.user
            return
        _set(order, letter)


def _set(order: Order, letter: str) -> None:
    if letter == "E":
        order.keep_env = True
    elif letter == "i":
        order.login = True
    elif letter == "s":
        order.shell = True
    elif letter in "vlkK":
        order.nothing = True
    elif letter not in _FLAGS:
        raise Usage(f"invalid option -- '{letter}'")


def _value(rest: list[str], option: str) -> str:
    if not rest:
        raise Usage(f"option requires an argument -- '{option.lstrip('-')}'")
    return rest.pop(0)


def main() -> NoReturn:
    """Ends as the command does."""
    try:
        order = parse(sys.argv[1:])
    except Usage as error:
        print(f"sudo: {error}", file=sys.stderr)
        sys.exit(1)
    if order.nothing and not order.argv:
        order.argv = ["/bin/true"]
    elif order.shell:
        shell = os.environ.get("SHELL", "/bin/sh")
        order.argv = [shell, *(["-c", " ".join(order.argv)] if order.argv else [])]
    _exit_as(_ask(order))


def _ask(order: Order) -> dict[str, object]:
    env = {name: value for name, value in os.environ.items() if name not in _PRIVATE}
    message = {
        "argv": order.argv, "user": order.user.removeprefix("#"), "keep_env": order.keep_env, "login": order.login,
        "set": order.set, "env": env, "cwd": os.getcwd(), "terminal": _own_terminal(),
    }  # fmt: skip
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        try:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            line.connect(ADDRESS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
            for number in _PASSED_ON:
                signal.signal(number, lambda number, _: line.send(bytes([number])))
            line.sendmsg([json.dumps(message).encode()], [rights])
            answer, inner = _receive(line)
            if inner is not None:
                answer = _stand_between(inner, line)
        except OSError as error:
            return {"error": f"the sandbox's guest does not answer: {error}"}
    outcome = json.loads(answer) if answer else {"error": "the sandbox's guest ended"}
    return outcome if isinstance(outcome, dict) else {"error": "the sandbox's guest is confused"}


def _receive(line: socket.socket) -> tuple[bytes, int | None]:
    """What the guest says, and the terminal that may come with it, behind the credentials."""
    answer, ancillary, _, _ = line.recvmsg(1 << 16, 1 << 10)
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            return answer, int.from_bytes(value[:4], sys.byteorder)
    return answer, None


def _own_terminal() -> list[int] | None:
    """Rows and columns of the terminal, if it is all ours to use now: not in the background, nor in a pipeline."""
    try:
        if not all(os.isatty(number) for number in range(3)) or os.tcgetpgrp(0) != os.getpgrp():
            return None
        size = os.get_terminal_size(0)
    except OSError:
        return None
    return [size.lines, size.columns]


def _stand_between(inner: int, line: socket.socket) -> bytes:
    """Passes on what is typed and what is shown until the guest says how the command ended; returns what it says."""
    signal.signal(signal.SIGWINCH, lambda number, frame: _copy_size(inner, line))
    typed, shows = b"", True
    with _raw():
        while True:
            reading = [line.fileno(), *([inner] if shows else []), *([0] if len(typed) < 1 << 16 else [])]
            ready, writable, _ = select.select(reading, [inner] if typed else [], [])
            if 0 in ready:
                typed += os.read(0, 1 << 12)
            if writable:
                with suppress(OSError):
                    typed = typed[os.write(inner, typed) :]
            if inner in ready:
                shows = _show(inner)
            if line.fileno() in ready:
                while shows and select.select([inner], [], [], 0)[0]:
                    shows = _show(inner)
                return line.recv(1 << 16)


def _show(inner: int) -> bool:
    """Whether more may come. (EIO: nobody has the other end open any more.)"""
    try:
        data = os.read(inner, 1 << 16)
    except OSError as error:
        return error.errno == errno.EAGAIN
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
    return bool(data)


def _copy_size(inner: int, line: socket.socket) -> None:
    """Linux would signal the programs inside, this kernel does not."""
    with suppress(OSError):
        fcntl.ioctl(inner, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(_SIZE)))
        line.send(bytes([signal.SIGWINCH]))


@contextmanager
def _raw() -> Iterator[None]:
    """What is typed arrives as it is, ^C among it: the inner terminal handles it as its programs have set it."""
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _exit_as(outcome: dict[str, object]) -> NoReturn:
    if error := outcome.get("error"):
        print(f"sudo: {error}", file=sys.stderr)
        sys.exit(1)
    number, code = outcome.get("signal"), outcome.get("code")
    if isinstance(number, int):
        signal.signal(number, signal.SIG_DFL) if number not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), number)
    sys.exit(code if isinstance(code, int) and code >= 0 else 1)
