"""The inside of one of the server's processes: it says that it is ready, serves until it is to stop, and never returns.

The launcher reads the first words: "ready", or the error that kept the process from starting.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog
import uvloop

from atoll.isolation.linux.sys.fork import rewrite_command_line
from atoll.isolation.linux.sys.syscalls import end_with_parent
from atoll.model.errors import AtollError, PlatformError
from atoll.wire.node.codec import error_to_json

Work = Callable[[Callable[[], None], asyncio.Event], Awaitable[None]]
"""(ready, stop): calls `ready` once it serves, and returns after `stop`. Raises AtollError, OSError."""

_log = structlog.get_logger("atoll.serve")


def live(name: str, parent: int, writing: int, give_up: Callable[[], None], work: Work) -> NoReturn:
    """The process's life. `parent`: with whom it ends; `writing`: where its first words go, which it takes over."""
    status = 1
    try:
        os.set_inheritable(writing, False)
        rewrite_command_line(f"atoll: {name}")
        give_up()
        end_with_parent(parent)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(writing, work))
        status = 0
    except AtollError as error:
        say(writing, error_to_json(error))
    except OSError as error:
        say(writing, error_to_json(PlatformError(f"the {name} process cannot start: {error}")))
    except BaseException:
        _log.exception("process.failed", process=name)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def say(writing: int, words: object) -> None:
    """To the launcher, which may be gone."""
    with contextlib.suppress(OSError):
        os.write(writing, json.dumps(words).encode())


async def _run(writing: int, work: Work) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    starting = True

    def ready() -> None:
        nonlocal starting
        starting = False
        say(writing, "ready")
        os.close(writing)
        gc.freeze()  # what is here now stays: neither collections nor the exit need to look at it again

    def ask_to_stop() -> None:
        stop.set()
        if starting:
            working.cancel()

    loop.add_signal_handler(signal.SIGTERM, ask_to_stop)
    # A terminal's ^C reaches every process; the launcher turns it into an orderly stop.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    working = asyncio.ensure_future(work(ready, stop))
    try:
        await working
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
