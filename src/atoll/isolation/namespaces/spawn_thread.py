"""The thread of a sandbox's first process in which its programs are started: it lives in the users' control group.

    guest (main thread, the sandbox's group) ── run(start) ──► this thread (the users' group) ── posix_spawn ──► program

What a thread starts is born in the thread's group, before it runs a single instruction: no program and nothing that it
forks can be in the guest's group for a moment, and no command pays for being moved (5 to 16 ms on a quiet machine).
As part of pid 1 it cannot be killed from inside. While it works the main thread waits: there is never more than one of
them at work.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

NUMBER = 2
"""Its thread id inside: it is made before anything else is, so that the filter can name it."""

_STACK = 512 * 1024
_T = TypeVar("_T")


class SpawnThread:
    """Begins with `prepare`, in the new thread. Raises what that raises, RuntimeError when there can be no thread."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        self._go = _thread.allocate_lock()
        self._done = _thread.allocate_lock()
        self._go.acquire()
        self._done.acquire()
        self._work: Callable[[], object] = prepare
        self._result: object = None
        self._error: BaseException | None = None
        usual = _thread.stack_size(_STACK)
        try:
            _thread.start_new_thread(self._serve, ())
        finally:
            _thread.stack_size(usual)
        self._wait()

    def run(self, work: Callable[[], _T]) -> _T:
        """`work()`, in the thread; the caller waits. Raises what it raises."""
        self._work = work
        self._go.release()
        return self._wait()  # type: ignore[return-value]

    def _wait(self) -> object:
        self._done.acquire()
        result, error = self._result, self._error
        self._result = self._error = None
        if error is not None:
            raise error
        return result

    def _serve(self) -> None:
        # Signals are the main thread's, which has the loop.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            try:
                if threading.get_native_id() != NUMBER:
                    raise OSError(f"the thread that starts programs has the number {threading.get_native_id()}")
                self._result = self._work()
            except BaseException as error:
                self._error = error
            self._done.release()
            self._go.acquire()
