"""`sudo` inside a gVisor sandbox: the options that programs use, and the rest is the guest's (guest/pid1/elevate.py).

Runs as the sandbox's user on the guest's interpreter; knows and decides nothing about who may do what.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
from dataclasses import dataclass, field
from typing import NoReturn

ADDRESS = "\0atoll-sudo"
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
        "set": order.set, "env": env, "cwd": os.getcwd(),
    }  # fmt: skip
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        try:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            line.connect(ADDRESS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
            for number in _PASSED_ON:
                signal.signal(number, lambda number, _: line.send(bytes([number])))
            line.sendmsg([json.dumps(message).encode()], [rights])
            answer = line.recv(1 << 16)
        except OSError as error:
            return {"error": f"the sandbox's guest does not answer: {error}"}
    told = json.loads(answer) if answer else {"error": "the sandbox's guest ended"}
    return told if isinstance(told, dict) else {"error": "the sandbox's guest is confused"}


def _exit_as(told: dict[str, object]) -> NoReturn:
    if error := told.get("error"):
        print(f"sudo: {error}", file=sys.stderr)
        sys.exit(1)
    number, code = told.get("signal"), told.get("code")
    if isinstance(number, int):
        signal.signal(number, signal.SIG_DFL) if number not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), number)
    sys.exit(code if isinstance(code, int) and code >= 0 else 1)
