"""Code contexts: named, long-lived places where cells run one after another. Owns their kernels; knows nothing of HTTP.

    Context ─ turn (one cell at a time, first come first served) ─► no kernel ─► starting ─► live ─► dead ─► next cell

A kernel that died is replaced when the next cell comes, which is shown; that of a default context at once, and the
interpreter's health is bad until it is back. One that dies as soon as it has started waits for the next cell: a kernel
that cannot run costs nothing while it is not asked.
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator, Mapping

from atoll.guest.errors import GuestError
from atoll.guest.interpreter import jupyter, kernelspecs, variables
from atoll.guest.interpreter.bash import BashKernel
from atoll.guest.interpreter.forkserver import ForkServer, can_fork
from atoll.guest.interpreter.kernel import (
    LIBRARIES_CELL,
    CwdMissing,
    Kernel,
    KernelDied,
    KernelPlace,
    KernelStartFailed,
)
from atoll.guest.interpreter.kernelspecs import BASH, KernelSpec
from atoll.guest.interpreter.output import Output
from atoll.guest.log import CellLog
from atoll.guest.pid1.reaper import Reaper
from atoll.guest.process.users import User
from atoll.guest.state import GuestState
from atoll.model.tasks import OwnedTasks

MAX_CONTEXTS = 256
RUNTIME_DIR = "/run/jupyter"
_INTERRUPT_AGAIN_S = 2.0
_NEVER_INTERRUPTED = "javascript"
"""Deno's kernel has no interrupt, and a signal ends it: a cell that goes on when nobody waits for it any more would run
for ever."""
_REVIVED_AFTER_S = 3.0
"""A kernel that lived shorter is not started again before it is asked for."""
_WAITS_AFTER_S = 2.0
"""A kernel that nobody has asked for anything so long after its start is one of a sandbox that waits for a create."""
_WARM_LANGUAGE, _READY_LANGUAGES = "python", ("python", "javascript")
"""The kernel that starts with the sandbox, and the contexts that are listed from then on."""

AnyKernel = Kernel | BashKernel


class UnknownContext(GuestError):
    """No context of that id."""


class UnknownLanguage(GuestError):
    """No kernel for that language; the message says which there are."""


class TooManyContexts(GuestError):
    """MAX_CONTEXTS are there already."""


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
        self._kernel: AnyKernel | None = None
        self._started_at = 0.0
        self._is_down = False
        self._lost: str | None = None
        """How the kernel before this one died by itself, until a cell has reported it."""
        self._known_env: dict[str, str] = {}
        self._removed = False
        self._cells = OwnedTasks()

    def is_python_of(self, user: User) -> bool:
        """Whether its kernel is one that may be forked, and runs as `user`."""
        return user == self._user and can_fork(self._spec)

    @property
    def is_running(self) -> bool:
        """It has a kernel."""
        return self._kernel is not None and self._kernel.ended is None

    def describe(self) -> dict[str, str]:
        """As E2B's `Context`."""
        return {"id": self.id, "language": self.language, "cwd": self.cwd}

    @property
    def has_died(self) -> bool:
        """Its kernel ended by itself and there is no other yet."""
        return self._is_down and not self._removed

    async def warm_up(self) -> None:
        """Starts the kernel if there is none. Raises KernelStartFailed, CwdMissing."""
        async with self._turn:
            await self._live_kernel()

    async def load_libraries(self) -> None:
        """For a kernel that has run nothing yet: the imports of its first cell will be quick. Raises KernelDied."""
        async with self._turn:
            kernel = self._kernel
            if kernel is not None and kernel.ended is None and not self._contexts.in_use:
                await kernel.run_silently(LIBRARIES_CELL)

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
        kernel, self._kernel, self._lost = self._kernel, None, None
        if kernel is not None:
            kernel.end("the context was restarted")
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

    async def _run(self, kernel: AnyKernel, code: str, env: Mapping[str, str], output: Output) -> None:
        changed = {k: v for k, v in self._contexts.state.env_vars.items() if self._known_env.get(k) != v}
        enter, leave = variables.code_around(self._spec.name, env, changed)
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
            if self._spec.name != _NEVER_INTERRUPTED:
                await kernel.interrupt()
            await asyncio.wait([cell], timeout=_INTERRUPT_AGAIN_S)
            if self._spec.name == _NEVER_INTERRUPTED and not cell.done():
                kernel.end("the kernel was ended because a cell that nobody waited for went on")

    async def _live_kernel(self) -> AnyKernel:
        if self._kernel is not None and self._kernel.ended is None:
            return self._kernel
        if self._kernel is not None:
            self._lost = self._kernel.ended
        self._known_env = dict(self._contexts.state.env_vars)
        try:
            try:
                return await self._start(self._user)
            except CwdMissing:
                # Closed to the user, who is root by `sudo` when asked: a directory of root's is worked in as root.
                if not os.path.isdir(self.cwd):  # noqa: ASYNC240
                    raise
                return await self._start(self._contexts.state.user_named("root"))
        except BaseException:
            self._kernel = None
            raise

    async def _start(self, user: User) -> AnyKernel:
        place, reaper = self._contexts.place(user, self.cwd), self._contexts.reaper
        kernel: AnyKernel
        if self._spec is BASH:
            kernel = BashKernel(place, reaper)
        else:
            kernel = Kernel(self._spec, place, reaper, self._contexts.forkserver_for(self, user))
        self._kernel = kernel
        await kernel.start()
        self._started_at = asyncio.get_running_loop().time()
        self._is_down = False
        if self._contexts.is_default(self):
            kernel.when_ended = self._on_end
        return kernel

    def _on_end(self) -> None:
        self._is_down = True
        if not self._removed and asyncio.get_running_loop().time() - self._started_at >= _REVIVED_AFTER_S:
            self._contexts.background.start(self._revive())

    async def _revive(self) -> None:
        if not self.has_died:
            return  # somebody has restarted it
        try:
            await self.warm_up()
        except (KernelStartFailed, CwdMissing) as error:
            print(f"interpreter: a kernel that died was not started again: {error}", file=sys.stderr)


class Contexts:
    """All contexts of a sandbox, and the default one of each language."""

    def __init__(self, state: GuestState, reaper: Reaper, runtime_dir: str = RUNTIME_DIR) -> None:
        self.state = state
        self.reaper = reaper
        self._runtime_dir = runtime_dir
        self._contexts: dict[str, Context] = {}
        self._defaults: dict[str, Context] = {}
        self._forkserver = ForkServer(reaper)
        self.background = OwnedTasks(_report)
        self.in_use = False
        """Somebody has asked for a cell or a context."""

    def all(self) -> list[Context]:
        return list(self._contexts.values())

    def find(self, context_id: str) -> Context:
        """Raises UnknownContext."""
        context = self._contexts.get(context_id)
        if context is None:
            raise UnknownContext(context_id)
        return context

    def is_default(self, context: Context) -> bool:
        return any(default is context for default in self._defaults.values())

    def trouble(self) -> str | None:
        """What is wrong with the contexts that every sandbox has, for people; None if nothing."""
        died = [language for language, context in self._defaults.items() if context.has_died]
        return f"the kernel of the default context died and is being started again: {', '.join(died)}" if died else None

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
        """Makes the contexts that every sandbox has; starts Python's kernel in the background.

        A failure is reported by the first cell.
        """
        self.background.start(self._warm_up())

    async def _warm_up(self) -> None:
        for language in _READY_LANGUAGES:
            try:
                context = self.default_for(language)
                if language == _WARM_LANGUAGE:
                    self.background.start(self._start_ahead(context))
            except UnknownLanguage:
                continue  # a template of somebody's own; the first cell is shown why

    async def _start_ahead(self, context: Context) -> None:
        try:
            await context.warm_up()
            await asyncio.sleep(_WAITS_AFTER_S)
            await context.load_libraries()
        except KernelDied:
            return  # reported by the next cell
        except (KernelStartFailed, CwdMissing) as error:
            print(f"interpreter: the default context is not ready: {error}", file=sys.stderr)

    def forkserver_for(self, context: Context, user: User) -> ForkServer | None:
        """What forks the kernel of `context`, which runs as `user`. None: it is started, as the only Python kernel of a
        sandbox always is, and all of a tier where a fork costs more memory than a start."""
        if not (self.state.tier.forks_share_memory and context.is_python_of(user)):
            return None
        others = (one for one in self._contexts.values() if one is not context and one.is_running)
        further = self._forkserver.is_running or any(one.is_python_of(user) for one in others)
        return self._forkserver if further else None

    def place(self, user: User, cwd: str) -> KernelPlace:
        """Where a kernel of `user` runs."""
        env = self.state.environment_of(user)
        # Programs that `pip install` put into the user's home are found, as in a login shell.
        env["PATH"] = f"{user.home}/.local/bin:{env['PATH']}"
        env.setdefault("LANG", "C.UTF-8")
        return KernelPlace(user, cwd, env, f"{self._runtime_dir}/{user.uid}", self.state.tier.start_in)


def _report(error: BaseException) -> None:
    print(f"interpreter: background task failed: {error!r}", file=sys.stderr)
