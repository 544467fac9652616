"""`sudo` where the kernel ignores set-uid programs (gVisor up to 2024): the guest, which is root, runs the command.

    sudo (client, isolation/gvisor/sudo.py) ──abstract socket──► guest
        one message: JSON, its own three descriptors, and its credentials as the kernel states them
        then: client → guest: one byte per signal to pass on      guest → client: one JSON line with the exit
    before, where it asks for a terminal for the command:     guest → client: an empty line with the terminal's end

Who may do it is read from the template's sudoers: a user or group with `NOPASSWD: ALL` for everybody. That is all of
sudoers that is understood; whatever else it says counts as no. When the client goes, its command's whole tree goes.
"""

from __future__ import annotations

import array
import asyncio
import glob
import json
import os
import re
import signal
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from atoll.guest.parts import Guest
from atoll.guest.process import tree
from atoll.guest.process.pty import open_terminal
from atoll.guest.process.spawn import CwdMissing, spawn
from atoll.guest.process.users import User
from atoll.model.tasks import OwnedTasks
from atoll.wire.envd.connect import ConnectError

ADDRESS = "\0atoll-sudo"
_MESSAGE_MAX = 1 << 20
_AT_ONCE = 256
_ASK_WITHIN_S = 10.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT = ("TERM", "LANG", "LANGUAGE", "DISPLAY", "COLORTERM", "DEBIAN_FRONTEND")
_RULE = re.compile(r"^\s*(%?[A-Za-z0-9_.-]+)\s+ALL\s*=\s*\(\s*(?:ALL|root)(?:\s*:\s*ALL)?\s*\)\s*NOPASSWD:\s*ALL\s*$")


def listen() -> socket.socket:
    """Takes the address before any user code can. Before the guest starts. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    listener.bind(ADDRESS)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    listener.listen(128)
    return listener


def allowed(user: User, groups: Iterable[str], rules: Iterable[str]) -> bool:
    """Whether lines of sudoers let `user`, who is in `groups`, do everything without a password. Pure."""
    names = {"ALL", user.name, *(f"%{name}" for name in groups)}
    matches = (_RULE.match(line) for line in rules)
    return user.uid == 0 or any(match is not None and match[1] in names for match in matches)


def environment(asked: dict[str, str], keep: bool, caller: User, target: User, command: str) -> dict[str, str]:
    """What the command gets: sudo's own rules of `env_reset`, or all of it with `-E`. Pure."""
    base = dict(asked) if keep else {n: v for n, v in asked.items() if n in _KEPT or n.startswith("LC_")}
    sudo = {
        "SUDO_USER": caller.name,
        "SUDO_UID": str(caller.uid),
        "SUDO_GID": str(caller.gid),
        "SUDO_COMMAND": command,
    }
    own = {"HOME": target.home, "USER": target.name, "LOGNAME": target.name, "SHELL": target.shell, "PATH": _PATH}
    return {**base, **own, **sudo}


class Elevation:
    """Answers `sudo` for as long as the guest lives."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._clients = OwnedTasks()
        self._commands = OwnedTasks()

    def start(self, listener: socket.socket) -> None:
        """`listener`: what `listen` returned."""
        self._guest.loop.add_reader(listener.fileno(), self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            client, _ = listener.accept()
            client.setblocking(False)
            if len(self._clients) >= _AT_ONCE:
                client.close()
                return
            client.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._clients.start(self._serve(client))

    async def _serve(self, client: socket.socket) -> None:
        with client:
            descriptors: list[int] = []
            try:
                async with asyncio.timeout(_ASK_WITHIN_S):
                    asked, uid, descriptors = await self._receive(client)
                pid = self._run(asked, uid, descriptors, client)
            except (OSError, ValueError, KeyError, TypeError, ConnectError, CwdMissing) as error:
                await self._print_error(client, {"error": getattr(error, "message", None) or str(error) or "malformed"})
                return
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            ended = self._commands.start(self._guest.reaper.wait(pid))
            await asyncio.sleep(0)  # the reaper knows of it before this turn of the loop is over
            passing = self._commands.start(self._pass_signals(client, pid))
            ended.add_done_callback(lambda _: passing.cancel())
            with suppress(asyncio.CancelledError):
                await passing
            if not ended.done():  # the client has gone
                tree.send_signal(pid, signal.SIGKILL)
            how = await ended
            await self._print_error(client, {"code": how.code, "signal": how.signal})

    async def _receive(self, client: socket.socket) -> tuple[dict[str, Any], int, list[int]]:
        """The order, the sender's uid as the kernel says, and exactly three descriptors. Raises OSError, ValueError."""
        await self._readable(client)
        data, ancillary, _, _ = client.recvmsg(_MESSAGE_MAX, 4096, socket.MSG_CMSG_CLOEXEC)
        uid: int | None = None
        descriptors = array.array("i")
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(value[: len(value) - len(value) % descriptors.itemsize])
            elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                uid = struct.unpack("3i", value[:12])[1]
        try:
            if uid is None or len(descriptors) != 3:
                raise ValueError("not a message of sudo's")
            asked = json.loads(data)
            if not isinstance(asked, dict):
                raise ValueError("not a message of sudo's")
        except ValueError:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        return asked, uid, list(descriptors)

    def _run(self, asked: dict[str, Any], uid: int, descriptors: list[int], client: socket.socket) -> int:
        users = self._guest.state.users
        caller, target = users.find(str(uid)), users.find(str(asked["user"]))
        groups = [users.group_name_of(gid) for gid in caller.groups]
        if not allowed(caller, groups, _sudoers()):
            raise ValueError(f"{caller.name} is not in the sudoers file")
        argv = [str(word) for word in asked["argv"]] or [target.shell]
        env = environment(
            {str(name): str(value) for name, value in asked["env"].items()},
            bool(asked["keep_env"]), caller, target, " ".join(argv)[:4096],
        )  # fmt: skip
        env.update({str(name): str(value) for name, value in asked["set"].items()})
        if asked["login"]:
            shell = os.path.basename(target.shell)
            argv = [target.shell, "-l", *(["-c", " ".join(argv)] if asked["argv"] else [])]
            env["SHELL"] = target.shell or shell
        cwd = target.home if asked["login"] else str(asked["cwd"])
        start_in = self._guest.state.tier.start_in
        if (size := asked.get("terminal")) is None:
            stdin, stdout, stderr = descriptors
            return spawn(
                argv, user=target, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, start_in=start_in
            )
        rows, cols = (max(0, int(side)) for side in size)
        terminal = open_terminal(target, cols, rows)
        try:
            pid = spawn(argv, user=target, env=env, cwd=cwd, tty=terminal.path, start_in=start_in)
            with suppress(OSError):  # it has gone: so will the command
                socket.send_fds(client, [b"{}"], [terminal.master])
        finally:
            os.close(terminal.master)
        return pid

    async def _pass_signals(self, client: socket.socket, pid: int) -> None:
        while True:
            await self._readable(client)
            try:
                data = client.recv(64)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not data:
                return
            for number in data:
                if number in set(signal.Signals):
                    tree.send_signal(pid, number)

    async def _readable(self, client: socket.socket) -> None:
        ready: asyncio.Future[None] = self._guest.loop.create_future()
        self._guest.loop.add_reader(client.fileno(), lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            self._guest.loop.remove_reader(client.fileno())

    async def _print_error(self, client: socket.socket, answer: dict[str, Any]) -> None:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_ASK_WITHIN_S):
                await self._guest.loop.sock_sendall(client, json.dumps(answer).encode())


def _sudoers() -> list[str]:
    """Every line of the template's sudoers; comments are no rules by their form."""
    lines: list[str] = []
    for path in ("/etc/sudoers", *sorted(glob.glob("/etc/sudoers.d/*"))):
        with suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as file:
            lines += file.read(_MESSAGE_MAX).splitlines()
    return lines
