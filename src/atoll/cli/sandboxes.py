"""`atoll ls`, `exec`, `shell`, `logs` and `kill`: daily work with sandboxes, through the public SDK.

Where: the service that the environment names (E2B_API_KEY), else the server that runs on the data directory.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from atoll.cli.api import get_of_sandbox
from atoll.cli.environment import client_environ
from atoll.cli.run import TIMED_OUT, temporary_environ, to_stream
from atoll.config import Settings
from atoll.model.errors import NotFound, PlatformError

if TYPE_CHECKING:
    from e2b import CommandHandle, Sandbox, SandboxInfo

_POLL_S = 1.0
_CHUNK = 64 * 1024


@contextmanager
def platform(settings: Settings) -> Iterator[None]:
    """Within the block the SDK's variables name a running service; the SDK's errors are the platform's.

    Raises Conflict (no server runs), NotFound (no such sandbox), PlatformError.
    """
    from e2b import NotFoundException, SandboxException, SandboxNotFoundException

    with temporary_environ({} if os.environ.get("E2B_API_KEY") else client_environ(settings)):
        try:
            yield
        except SandboxNotFoundException as error:
            raise NotFound(str(error), hint="`atoll ls` shows the sandboxes that there are") from error
        except NotFoundException as error:
            raise NotFound(str(error)) from error
        except SandboxException as error:
            raise PlatformError(str(error)) from error


def rows() -> list[dict[str, Any]]:
    """All sandboxes of the key's team, oldest first."""
    from e2b import Sandbox

    pages, found = Sandbox.list(), []
    while pages.has_next:
        found += pages.next_items()
    return [_row(one) for one in sorted(found, key=lambda one: one.started_at)]


def _row(info: SandboxInfo) -> dict[str, Any]:
    return {
        "sandbox_id": info.sandbox_id,
        "template": info.name or info.template_id,
        "state": getattr(info.state, "value", info.state),
        "started_at": info.started_at.isoformat(timespec="seconds"),
        "end_at": info.end_at.isoformat(timespec="seconds"),
        "cpu_count": info.cpu_count,
        "memory_mb": info.memory_mb,
        "metadata": dict(info.metadata or {}),
    }


def print_rows(found: list[dict[str, Any]]) -> None:
    """One line a sandbox."""
    table = Table(box=None, pad_edge=False)
    for title in ("SANDBOX", "TEMPLATE", "STATE", "AGE", "LEFT", "CPU", "MB"):
        table.add_column(title, no_wrap=True)
    now = datetime.now(UTC)
    for row in found:
        age = now - datetime.fromisoformat(row["started_at"])
        left = datetime.fromisoformat(row["end_at"]) - now
        ends = _duration(left.total_seconds()) if row["state"] == "running" else "-"
        table.add_row(
            row["sandbox_id"], row["template"], row["state"], _duration(age.total_seconds()), ends,
            str(row["cpu_count"]), str(row["memory_mb"]),
        )  # fmt: skip
    console = Console()
    console.print(table, soft_wrap=not console.is_terminal)


def _duration(seconds: float) -> str:
    whole = max(0, int(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if whole >= 2 * size:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def kill(sandbox_ids: Sequence[str]) -> list[str]:
    """Ends these sandboxes; returns those that were not there."""
    from e2b import Sandbox

    return [one for one in sandbox_ids if not Sandbox.kill(one)]


def execute(
    sandbox_id: str,
    words: Sequence[str],
    *,
    user: str | None,
    cwd: str | None,
    envs: Mapping[str, str],
    timeout_s: float,
) -> int:
    """Runs a command with our standard input, output and error; returns its exit code, 124 after `timeout_s`.

    One word is a shell command line; several are a program and its arguments. `timeout_s` 0: no limit.
    """
    from e2b import CommandExitException, TimeoutException

    line = words[0] if len(words) == 1 else shlex.join(words)
    sandbox = attached(sandbox_id)
    piped = not sys.stdin.isatty()
    handle = sandbox.commands.run(
        line, background=True, stdin=piped, user=user, cwd=cwd, envs=dict(envs), timeout=timeout_s, request_timeout=0
    )
    if piped:
        threading.Thread(target=_feed, args=(sandbox, handle.pid), daemon=True).start()
    with _signals_end(handle):
        try:
            return handle.wait(on_stdout=to_stream(sys.stdout), on_stderr=to_stream(sys.stderr)).exit_code
        except CommandExitException as ended:
            return ended.exit_code
        except TimeoutException:
            print(f"atoll: ended after {timeout_s:g} s", file=sys.stderr)
            return TIMED_OUT


def attached(sandbox_id: str) -> Sandbox:
    """The sandbox, resumed if it was paused; it lives five minutes more at least. Raises NotFoundException."""
    from e2b import Sandbox

    return Sandbox.connect(sandbox_id)


def _feed(sandbox: Sandbox, pid: int) -> None:
    """Our standard input becomes the command's, up to its end."""
    with contextlib.suppress(Exception):  # the command has ended: nobody reads any more
        while data := os.read(sys.stdin.fileno(), _CHUNK):
            sandbox.commands.send_stdin(pid, data)
        sandbox.commands.close_stdin(pid)


@contextmanager
def _signals_end(handle: CommandHandle) -> Iterator[None]:
    """^C and a request to end reach the command too, not us alone."""

    def end(number: int, _frame: Any) -> None:
        handle.kill()
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def shell(sandbox_id: str, *, user: str | None, cwd: str | None) -> int:
    """A terminal in the sandbox, until its shell ends; returns the shell's exit code."""
    from e2b import CommandExitException, PtySize

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise PlatformError("this is no terminal", hint="use `atoll exec` in scripts")
    sandbox = attached(sandbox_id)

    def size() -> PtySize:
        columns, lines = shutil.get_terminal_size()
        return PtySize(rows=lines, cols=columns)

    handle = sandbox.pty.create(size(), user=user, cwd=cwd, envs={"TERM": os.environ.get("TERM", "xterm")}, timeout=0)
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    old = signal.signal(signal.SIGWINCH, lambda *_: sandbox.pty.resize(handle.pid, size()))
    threading.Thread(target=_type, args=(sandbox, handle.pid, terminal), daemon=True).start()
    try:
        tty.setraw(terminal)
        return handle.wait(on_pty=_show).exit_code
    except CommandExitException as ended:
        return ended.exit_code
    finally:
        signal.signal(signal.SIGWINCH, old)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _type(sandbox: Sandbox, pid: int, terminal: int) -> None:
    with contextlib.suppress(Exception):  # the shell has ended
        while data := os.read(terminal, 4096):
            sandbox.pty.send_stdin(pid, data)


def _show(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def logs(sandbox_id: str, *, follow: bool, limit: int) -> Iterator[str]:
    """Lines of a sandbox's log, oldest first; with `follow` until the sandbox has ended. Raises NotFound."""
    entries = _log(sandbox_id, {"direction": "backward", "limit": limit})[::-1]
    cursor, seen = 0, set[str]()
    while True:
        for entry in entries:
            line = f"{entry['timestamp']} {entry['level']:<5} {entry['message']}"
            if line not in seen:
                yield line
            at = int(datetime.fromisoformat(entry["timestamp"]).timestamp() * 1000)
            if at > cursor:
                cursor, seen = at, set()
            seen.add(line)
        if not follow:
            return
        if len(entries) < limit:
            time.sleep(_POLL_S)
            if not _runs(sandbox_id):
                follow = False
        entries = _log(sandbox_id, {"cursor": cursor, "limit": limit})


def _log(sandbox_id: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get_of_sandbox(os.environ, sandbox_id, "logs", query, version="/v2")["logs"]
    return found


def _runs(sandbox_id: str) -> bool:
    from e2b import NotFoundException, Sandbox

    try:
        Sandbox.get_info(sandbox_id)
    except NotFoundException:
        return False
    return True
