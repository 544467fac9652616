"""Code contexts: named, long-lived places where cells run one after another. Owns their kernels; knows nothing of HTTP.

    Context ─ turn (one cell at a time, first come first served) ─► no kernel ─► starting ─► live ─► dead ─► next cell

A kernel that died is replaced when the next cell comes: a template whose kernel cannot start costs nothing while it
is not asked, and a killed kernel never needs a hand.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import uuid
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

from atoll.guest.errors import GuestError
from atoll.guest.interpreter import jupyter, kernelspecs
from atoll.guest.interpreter.kernel import CwdMissing, Kernel, KernelDied, KernelPlace, KernelStartFailed
from atoll.guest.interpreter.kernelspecs import KernelSpec
from atoll.guest.log import CellLog
from atoll.guest.pid1.reaper import Reaper
from atoll.guest.process.users import User
from atoll.guest.state import GuestState
from atoll.model.tasks import OwnedTasks

KEEPALIVE_S = 5.0
BUFFERED_BYTES = 8 * 1024 * 1024
"""Output that waits for a slow client before the kernel's output is no longer read."""
MAX_CONTEXTS = 64
RUNTIME_DIR = "/run/jupyter"
_INTERRUPT_AGAIN_S = 2.0


class UnknownContext(GuestError):
    """No context of that id."""


class UnknownLanguage(GuestError):
    """No kernel for that language; the message says which there are."""


class TooManyContexts(GuestError):
    """MAX_CONTEXTS are there already."""


class Output:
    """The lines of one execution on their way to its client: bounded by pausing the kernel, never by losing lines.

    `take` gives all that is there as one piece of bytes. Once the client is gone (`abandon`) lines go nowhere.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._abandoned = False
        self._waiter: asyncio.Future[None] | None = None
        self.source: Kernel | None = None
        self.log: CellLog | None = None
        """What goes into the sandbox's log, whether the client is still there or not; from the cell's turn on."""

    @property
    def abandoned(self) -> bool:
        return self._abandoned

    def put(self, line: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log.line(line)
        if self._abandoned or self._ended:
            return
        data = jupyter.encode_line(line)
        self._lines.append(data)
        self._size += len(data)
        if self._size >= BUFFERED_BYTES and self.source is not None:
            self.source.pause_output()
        self._wake()

    def end(self) -> None:
        """After this `take` gives what is left, then nothing."""
        self.put(jupyter.END_OF_EXECUTION)
        if self.log is not None:
            self.log.ended()
        self._ended = True
        self._wake()

    def abandon(self) -> None:
        self._abandoned = True
        self._lines.clear()
        self._size = 0
        if self.source is not None:
            self.source.resume_output()

    async def take(self) -> bytes:
        """Empty at the end. A keepalive line when nothing came for KEEPALIVE_S."""
        if not self._lines and not self._ended:
            self._waiter = self._loop.create_future()
            timer = self._loop.call_later(KEEPALIVE_S, self._keep_alive)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        data = b"".join(self._lines)
        self._lines.clear()
        self._size = 0
        if self.source is not None:
            self.source.resume_output()
        return data

    def _keep_alive(self) -> None:
        self.put(jupyter.KEEPALIVE)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Context:
    """One context. Its kernel is started by the first cell, or ahead of it by `warm_up`."""

    def __init__(self, language: str, cwd: str, user: User, spec: KernelSpec, contexts: Contexts) -> None:
        self.id = str(uuid.uuid4())
        self.language = language
        self.cwd = cwd
        self._user = user
        self._spec = spec
        self._contexts = contexts
        self._turn = asyncio.Lock()
        self._kernel: Kernel | None = None
        self._lost: str | None = None
        """How the kernel before this one died by itself, until a cell has reported it."""
        self._known_env: dict[str, str] = {}
        self._removed = False
        self._cells = OwnedTasks()

    def describe(self) -> dict[str, str]:
        """As E2B's `Context`."""
        return {"id": self.id, "language": self.language, "cwd": self.cwd}

    async def warm_up(self) -> None:
        """Starts the kernel if there is none. Raises KernelStartFailed, CwdMissing."""
        async with self._turn:
            await self._live_kernel()

    async def execute(self, code: str, env: Mapping[str, str]) -> AsyncIterator[bytes]:
        """Runs a cell; gives its lines as they come, ended by `end_of_execution`.

        Closing the iterator before its end interrupts the cell (or takes it out of the queue).
        """
        output = Output(asyncio.get_running_loop())
        cell = self._cells.start(self._cell(code, env, output))
        ended = False
        try:
            while data := await output.take():
                yield data
            ended = True
        finally:
            if not ended:
                output.abandon()
                if output.source is None:
                    cell.cancel()  # still waiting for its turn, or for the kernel to start
                else:
                    self._contexts.background.start(self._interrupt(cell))

    async def restart(self) -> None:
        """A fresh kernel; whatever runs in the old one ends with an error. Raises KernelStartFailed, CwdMissing."""
        self._stop("the context was restarted")
        self._kernel = self._lost = None
        await self.warm_up()

    def remove(self) -> None:
        """Ends the kernel; cells that run or wait end with an error."""
        self._removed = True
        self._stop("the context was removed")

    def _stop(self, reason: str) -> None:
        if self._kernel is not None:
            self._kernel.end(reason)

    # -- one cell ---------------------------------------------------------------------------------------------------

    async def _cell(self, code: str, env: Mapping[str, str], output: Output) -> None:
        try:
            async with self._turn:
                if self._removed:
                    output.put(jupyter.error_line("ContextRemoved", "the context was removed", ""))
                    return
                output.log = CellLog(self._contexts.state.log, self.id, self.language, code)
                kernel = await self._live_kernel()
                output.source = kernel
                if self._lost is not None:
                    note = f"[{self._lost}; this cell runs on a fresh one, the variables of earlier cells are lost]\n"
                    output.put(jupyter.stream_line("stderr", note))
                    self._lost = None
                await self._run(kernel, code, env, output)
        except KernelDied as error:
            value = f"{error}; its variables are lost, the next cell starts a fresh kernel"
            output.put(jupyter.error_line("KernelDied", value, ""))
        except (KernelStartFailed, CwdMissing) as error:
            output.put(jupyter.error_line(type(error).__name__, str(error), ""))
        except Exception as error:
            print(f"interpreter: a cell failed: {error!r}", file=sys.stderr)
            output.put(jupyter.error_line("InternalError", repr(error), ""))
        finally:
            output.end()

    async def _run(self, kernel: Kernel, code: str, env: Mapping[str, str], output: Output) -> None:
        changed = {k: v for k, v in self._contexts.state.env_vars.items() if self._known_env.get(k) != v}
        enter, leave = _variables(self._spec.name, env, changed)
        if not enter:
            await kernel.run(code, output.put)
            return
        await kernel.run_silently(enter)
        self._known_env.update(changed)
        try:
            if not output.abandoned:
                await kernel.run(code, output.put)
        finally:
            if leave and kernel.ended is None:
                await kernel.run_silently(leave)

    async def _interrupt(self, cell: asyncio.Task[None]) -> None:
        """Until the cell is over: code may swallow KeyboardInterrupt. The turn stays taken meanwhile."""
        kernel = self._kernel
        while kernel is not None and kernel.ended is None and not cell.done():
            kernel.interrupt()
            await asyncio.wait([cell], timeout=_INTERRUPT_AGAIN_S)

    async def _live_kernel(self) -> Kernel:
        if self._kernel is not None and self._kernel.ended is None:
            return self._kernel
        if self._kernel is not None:
            self._lost = self._kernel.ended
        place = self._contexts.place(self._user, self.cwd)
        self._known_env = dict(self._contexts.state.env_vars)
        kernel = Kernel(self._spec, place, self._contexts.reaper)
        self._kernel = kernel
        try:
            await kernel.start()
        except BaseException:
            self._kernel = None
            raise
        return kernel


class Contexts:
    """All contexts of a sandbox, and the default one of each language."""

    def __init__(self, state: GuestState, reaper: Reaper, runtime_dir: str = RUNTIME_DIR) -> None:
        self.state = state
        self.reaper = reaper
        self._runtime_dir = runtime_dir
        self._contexts: dict[str, Context] = {}
        self._defaults: dict[str, Context] = {}
        self.background = OwnedTasks(_report)

    def all(self) -> list[Context]:
        return list(self._contexts.values())

    def find(self, context_id: str) -> Context:
        """Raises UnknownContext."""
        context = self._contexts.get(context_id)
        if context is None:
            raise UnknownContext(context_id)
        return context

    def default_for(self, language: str) -> Context:
        """The context of cells that name none; made on first use. Raises UnknownLanguage, TooManyContexts."""
        context = self._defaults.get(language)
        if context is None:
            context = self._defaults[language] = self.make(language, None)
        return context

    def make(self, language: str, cwd: str | None) -> Context:
        """A new context, its kernel not started. Raises UnknownLanguage, TooManyContexts, ConnectError (path, user)."""
        if len(self._contexts) >= MAX_CONTEXTS:
            raise TooManyContexts(f"a sandbox has at most {MAX_CONTEXTS} contexts; remove one first")
        user = self.state.user_named(None)
        folders = kernelspecs.folders(user.home)
        name = kernelspecs.kernel_name(language)
        spec = kernelspecs.find(name, folders)
        if spec is None:
            known = ", ".join(kernelspecs.installed(folders)) or "none"
            raise UnknownLanguage(
                f"language {language!r} is not available: no Jupyter kernel called {name!r} is installed here "
                f"(installed: {known})"
            )
        context = Context(language, self.state.resolve(cwd or "", user), user, spec, self)
        self._contexts[context.id] = context
        return context

    def remove(self, context_id: str) -> None:
        """Raises UnknownContext."""
        context = self.find(context_id)
        del self._contexts[context_id]
        for language in [name for name, default in self._defaults.items() if default is context]:
            del self._defaults[language]
        context.remove()

    def warm_up(self) -> None:
        """Starts the default Python context in the background. A failure is reported by the first cell."""
        self.background.start(self._warm_up())

    async def _warm_up(self) -> None:
        try:
            await self.default_for("python").warm_up()
        except (UnknownLanguage, KernelStartFailed, CwdMissing) as error:
            print(f"interpreter: the default context is not ready: {error}", file=sys.stderr)

    def place(self, user: User, cwd: str) -> KernelPlace:
        """Where a kernel of `user` runs."""
        env = self.state.environment_of(user)
        # Programs that `pip install` put into the user's home are found, as in a login shell.
        env["PATH"] = f"{user.home}/.local/bin:{env['PATH']}"
        env.setdefault("LANG", "C.UTF-8")
        return KernelPlace(user, cwd, env, self._runtime_dir, self.state.tier.start_in)


def _report(error: BaseException) -> None:
    print(f"interpreter: background task failed: {error!r}", file=sys.stderr)


def _variables(kernel: str, env: Mapping[str, str], permanent: Mapping[str, str]) -> tuple[str, str]:
    """Code that sets variables before a cell, and code that undoes `env` after it; "" for nothing to do."""
    if not env and not permanent:
        return "", ""
    if kernel == "python3":
        # JSON is not Python, but a JSON string literal is one.
        given = json.dumps(json.dumps([dict(env), dict(permanent)]))
        enter = f"get_ipython().atoll_variables.enter(*__import__('json').loads({given}))"
        return enter, "get_ipython().atoll_variables.leave()" if env else ""
    if kernel == "bash":
        lines = [f"export {name}={shlex.quote(value)}" for name, value in permanent.items()]
        lines += [
            f'__atoll_had_{n}="${{{n}+x}}" __atoll_was_{n}="${{{n}-}}"; export {n}={shlex.quote(v)}'
            for n, v in env.items()
        ]
        undo = [
            f'if [ -n "$__atoll_had_{n}" ]; then export {n}="$__atoll_was_{n}"; else unset {n}; fi; '
            f"unset __atoll_had_{n} __atoll_was_{n}"
            for n in env
        ]
        return "\n".join(lines), "\n".join(undo)
    if kernel == "javascript":
        keep = (
            f"globalThis.__atoll={{}};for(const[n,v]of Object.entries({json.dumps(dict(permanent))}))Deno.env.set(n,v);"
        )
        sets = (
            f"for(const[n,v]of Object.entries({json.dumps(dict(env))})){{__atoll[n]=Deno.env.get(n);Deno.env.set(n,v)}}"
        )
        restore = "{for(const[n,v]of Object.entries(__atoll))v===undefined?Deno.env.delete(n):Deno.env.set(n,v);}"
        return f"{{{keep}{sets}}}", restore if env else ""
    return "", ""
