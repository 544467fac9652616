"""Starting programs as the sandbox's users: one `posix_spawn`, never a fork of the guest.

A fork copies the guest's page tables (1 to 2 ms, and pages stop being shared); `posix_spawn` borrows them (0.3 ms), but
cannot change the user. So the guest takes on the user's credentials itself for the length of the call, keeping uid 0 as
its saved id, and the child starts with them:

    setgroups, setresgid(gid, gid, 0), setresuid(uid, uid, 0)  →  chdir, posix_spawn  →  back

Nothing can use that moment: /proc/1 stays closed (the saved id differs, the process is not dumpable after the change),
pid 1 ignores KILL and STOP from its own namespace. `chdir` and `exec` are thereby checked with the user's rights.

Where the tier has made a thread for it (`start_in`) all this happens there, while the guest waits: programs
are then born in the users' control group. When that is full the guest starts them itself, out of its reserve.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from atoll.guest.errors import GuestError
from atoll.guest.process import credentials
from atoll.guest.process.users import User

OOM_SCORE_ADJ = b"500"
"""Children are chosen by the out-of-memory killer long before the guest; a tier may see to it that they stay so."""

_IGNORED_BY_PYTHON = [signal.SIGPIPE, signal.SIGXFSZ]


_OUT_OF_ROOM = frozenset({errno.EAGAIN, errno.ENOMEM})

StartIn = Callable[[Callable[[], Any]], Any]
"""Calls its argument where programs are to be started, and gives back or raises what that does."""


class CwdMissing(GuestError):
    """The working directory does not exist, is no directory, or is closed to the user."""


def spawn(
    argv: Sequence[str],
    *,
    user: User,
    env: Mapping[str, str],
    cwd: str,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    tty: str | None = None,
    pass_fds: Sequence[int] = (),
    start_in: StartIn | None = None,
) -> int:
    """Starts a program in a session of its own; returns its pid at once, already running the program.

    Descriptors that are None become /dev/null; with `tty` (a path such as /dev/pts/3) all three are that terminal, and
    it is the controlling one. No other descriptor is inherited but `pass_fds`. The caller learns of the end from the
    Reaper. `start_in`: the tier's (`tier_parts`).

    Raises CwdMissing, OSError (program not found, not executable, no more processes).
    """
    program = _find_program(argv[0], env)
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
    if tty is not None:
        # The first terminal that a session leader opens becomes its controlling terminal.
        actions.append((os.POSIX_SPAWN_OPEN, 0, tty, os.O_RDWR, 0))
        actions += [(os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
    else:
        for target, source in enumerate((stdin, stdout, stderr)):
            if source is None:
                flags = os.O_RDONLY if target == 0 else os.O_WRONLY
                actions.append((os.POSIX_SPAWN_OPEN, target, "/dev/null", flags, 0))
            else:
                actions.append((os.POSIX_SPAWN_DUP2, source, target))

    def start() -> int:
        with _inheritable(pass_fds), _as_user(user), _in_directory(cwd):
            return os.posix_spawn(
                program,
                list(argv),
                dict(env),
                file_actions=actions,
                setsid=True,
                setsigmask=[],
                setsigdef=_IGNORED_BY_PYTHON,
            )

    pid = _start(start, start_in)
    _offer_to_oom_killer(pid)
    return pid


def _start(start: Callable[[], int], start_in: StartIn | None) -> int:
    if start_in is None:
        return start()
    try:
        return int(start_in(start))
    except OSError as error:
        if error.errno not in _OUT_OF_ROOM:
            raise
        return start()  # the users have used up all of theirs: out of the guest's reserve


def _find_program(name: str, env: Mapping[str, str]) -> str:
    if "/" in name:
        return name
    for directory in env.get("PATH", os.defpath).split(":"):
        candidate = os.path.join(directory or ".", name)
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    raise FileNotFoundError(errno.ENOENT, "executable file not found in $PATH", name)


@contextmanager
def _inheritable(fds: Sequence[int]) -> Iterator[None]:
    for fd in fds:
        os.set_inheritable(fd, True)
    try:
        yield
    finally:
        for fd in fds:
            os.set_inheritable(fd, False)


@contextmanager
def _as_user(user: User) -> Iterator[None]:
    if os.geteuid() != 0:
        # No wall and no root (tests on a developer's machine): there is only one user to be.
        yield
        return
    groups = os.getgroups()
    try:
        credentials.set_groups(user.groups)
        credentials.set_group(user.gid, user.gid, 0)
        credentials.set_users(user.uid, user.uid, 0)
        yield
    finally:
        try:
            credentials.set_users(0, 0, 0)
            credentials.set_group(0, 0, 0)
            credentials.set_groups(groups)
        except OSError:
            os._exit(70)  # a guest that is stuck as somebody else must not go on


@contextmanager
def _in_directory(path: str) -> Iterator[None]:
    try:
        os.chdir(path)
    except OSError as error:
        raise CwdMissing(str(error)) from error
    try:
        yield
    finally:
        os.chdir("/")


def _offer_to_oom_killer(pid: int) -> None:
    try:
        fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY)
    except OSError:
        return  # already gone, or no /proc
    try:
        os.write(fd, OOM_SCORE_ADJ)
    except OSError:
        pass
    finally:
        os.close(fd)
