"""One process of the server, as the launcher sees it: started by a fork, ready when it says so, known by its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
from enum import StrEnum
from typing import NoReturn

import structlog
import uvloop

from atoll.isolation.linux.sys.fork import rewrite_command_line
from atoll.model.errors import AtollError, PlatformError
from atoll.server import front, node
from atoll.server.plan import Plan, control_dir, node_dir, root_place
from atoll.server.rights import Rights, end_with_parent, give_up
from atoll.wire.node.codec import error_from_json, error_to_json

STOP_S = 30.0
NODE_STOP_S = 30.0
"""A stop that takes longer ends the process as it is; the next start reclaims what is left."""
_FIRST_WORDS_MAX = 65536

_log = structlog.get_logger("atoll.serve")


class Role(StrEnum):
    """Which process it is; also its name in `ps`."""

    NODE = "node"
    FRONT = "front"


class Child:
    """`start` may be called again after an end. Everything else looks at the process that was started last."""

    def __init__(self, role: Role, plan: Plan) -> None:
        self.role = role
        self._plan = plan
        self._pid: int | None = None
        self._status: int | None = None
        self._words = b""
        self.ear: int | None = None
        """Readable when the child says something: that it is ready, or why it could not start."""
        self.is_ready = False
        self.failure: AtollError | None = None

    def start(self) -> None:
        """Raises OSError (the machine has no room for a process)."""
        self._hang_up()
        reading, writing = os.pipe()
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(reading)
            _be(self.role, self._plan, parent, writing)
        os.close(writing)
        os.set_blocking(reading, False)
        self.ear, self._words, self._status = reading, b"", None
        self.is_ready, self.failure = False, None

    def listen(self) -> None:
        """Takes what the child has said. Its words are trusted no further than that it is ready."""
        if self.ear is None:
            return
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.ear, 4096):
                self._words += piece
                if len(self._words) > _FIRST_WORDS_MAX:
                    break
            self._hang_up()
            with contextlib.suppress(ValueError):
                said = json.loads(self._words)
                self.is_ready = said == "ready"
                self.failure = None if self.is_ready else error_from_json(said)

    def _hang_up(self) -> None:
        if self.ear is not None:
            os.close(self.ear)
            self.ear = None

    def has_ended(self) -> bool:
        """Never waits."""
        if self._pid is not None and self._status is None:
            found, status = os.waitpid(self._pid, os.WNOHANG)
            if found:
                self._status = status
        return self._pid is None or self._status is not None

    @property
    def how_it_ended(self) -> str:
        """For people."""
        if self._status is None:
            return "it runs"
        if os.WIFSIGNALED(self._status):
            return f"ended by {signal.Signals(os.WTERMSIG(self._status)).name}"
        return f"exit status {os.waitstatus_to_exitcode(self._status)}"

    def terminate(self) -> None:
        """Asks it to stop."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it and waits for that."""
        self._signal(signal.SIGKILL)
        if self._pid is not None and self._status is None:
            _, self._status = os.waitpid(self._pid, 0)

    def _signal(self, number: signal.Signals) -> None:
        if self._pid is not None and not self.has_ended():
            os.kill(self._pid, number)


def _be(role: Role, plan: Plan, parent: int, writing: int) -> NoReturn:
    """The child's life. Whatever happens, it never returns into the launcher's code."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.set_inheritable(writing, False)
        rewrite_command_line(f"atoll: {role.value}")
        if role is Role.NODE:
            plan.close_sockets()
        if role is Role.FRONT:
            _give_up(plan)
        end_with_parent(parent)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(role, plan, writing))
        status = 0
    except AtollError as error:
        _say(writing, error_to_json(error))
    except OSError as error:
        _say(writing, error_to_json(PlatformError(f"the {role.value} process cannot start: {error}")))
    except BaseException:
        _log.exception("process.failed", process=role.value)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _give_up(plan: Plan) -> None:
    data_dir = plan.settings.data_dir
    give_up(Rights(plan.user, writable=(control_dir(data_dir),), readable=(node_dir(data_dir),)), root_place(data_dir))


def _say(writing: int, words: object) -> None:
    with contextlib.suppress(OSError):
        os.write(writing, json.dumps(words).encode())


async def _run(role: Role, plan: Plan, writing: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    starting = True

    def ready() -> None:
        nonlocal starting
        starting = False
        _say(writing, "ready")
        os.close(writing)
        gc.freeze()  # what is here now stays: neither collections nor the exit need to look at it again

    def ask_to_stop() -> None:
        stop.set()
        if starting:
            work.cancel()

    loop.add_signal_handler(signal.SIGTERM, ask_to_stop)
    # A terminal's ^C reaches every process; the launcher turns it into an orderly stop.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    work = asyncio.create_task((node if role is Role.NODE else front).run(plan, ready, stop))
    try:
        await work
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
