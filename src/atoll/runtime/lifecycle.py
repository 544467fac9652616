"""A runtime's life: from connect to close, the sandbox that it stands on, and what is told about its state.

Owns making, finding, leaving and ending the sandbox, the environment that it begins with, and the rule that a lost
sandbox is a status and an exception, never a result. What is done in the sandbox is `runtime.py`.

    connect() ─► READY ─► actions, one at a time
                   │ the sandbox is lost: ERROR_RUNTIME_DISCONNECTED and AgentRuntimeDisconnectedError
                   ▼
                close(): killed, or with keep_runtime_alive left to the next attach
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from atoll.runtime.config import RuntimeConfig, SandboxConfig
from atoll.runtime.errors import (
    LOST,
    AgentRuntimeDisconnectedError,
    AgentRuntimeError,
    AgentRuntimeNotReadyError,
)
from atoll.runtime.files.file_actions import FileActions
from atoll.runtime.files.filestore import E2BFileStore
from atoll.runtime.files.sandbox_files import SandboxFiles
from atoll.runtime.kernel import skills
from atoll.runtime.kernel.ipython import Jupyter
from atoll.runtime.options import sandbox_options
from atoll.runtime.plugins import plugin_names
from atoll.runtime.sandbox import vscode
from atoll.runtime.sandbox.box import JUPYTER_TEMPLATE, SID_KEY, E2BBox, connection_of, find_sandboxes
from atoll.runtime.sandbox.embedded import connection
from atoll.runtime.sandbox.lease import LEASE_S
from atoll.runtime.sandbox.vscode import listening, url_of
from atoll.runtime.shell.shell import DEFAULT_SOFT_TIMEOUT_S, Shell
from atoll.runtime.shell.tasks import TaskList
from atoll.runtime.shell.terminal_link import SandboxTerminal
from atoll.runtime.status import RuntimeStatus
from atoll.runtime.variables import checked_variables, variables_of_environ

StatusCallback = Callable[[str, RuntimeStatus, str], None]
"""(level, status, message)"""

QUIET_PAGERS = {"PAGER": "cat", "GIT_PAGER": "cat", "SYSTEMD_PAGER": "cat", "MANPAGER": "cat"}
"""An agent cannot scroll: whatever would open a pager prints instead."""
_log = logging.getLogger("atoll.runtime")


class Lifecycle:
    """See the module. `config` is a RuntimeConfig, a SandboxConfig or any object with OpenHands' names.

    `event_stream` and `llm_registry` may be None; with a stream, `on_event` answers actions on it. `template` and
    `soft_timeout_s` (seconds without output until a command is reported as running) are this runtime's own.
    """

    _sandbox_id_cache: ClassVar[dict[str, str]] = {}
    """sid → sandbox id, to spare a look-up; the server's metadata decides."""

    def __init__(
        self,
        config: Any = None,
        event_stream: Any = None,
        llm_registry: Any = None,
        sid: str = "default",
        plugins: Sequence[Any] | None = None,
        env_vars: Mapping[str, str] | None = None,
        status_callback: StatusCallback | None = None,
        attach_to_existing: bool = False,
        headless_mode: bool = True,
        user_id: str | None = None,
        git_provider_tokens: Mapping[Any, Any] | None = None,
        sandbox: E2BBox | None = None,
        *,
        template: str | None = None,
        soft_timeout_s: float | None = None,
    ) -> None:
        self.config = RuntimeConfig(sandbox=config) if isinstance(config, SandboxConfig) else config or RuntimeConfig()
        self._settings = SandboxConfig.of(self.config.sandbox)
        self.event_stream = event_stream
        self.llm_registry = llm_registry
        self.sid = sid
        self.plugins = list(plugins or ())
        self.status_callback = status_callback
        self.attach_to_existing = attach_to_existing
        self.headless_mode = headless_mode
        self.user_id = user_id
        self.git_provider_tokens = git_provider_tokens
        self.sandbox = sandbox
        self.file_store: E2BFileStore | None = None
        self.runtime_status: RuntimeStatus | None = None
        self.initial_env_vars = {**variables_of_environ(os.environ, self._settings), **(env_vars or {})}
        self._plugin_names = plugin_names(plugins) if self._settings.initialize_plugins else frozenset()
        needs_kernel = bool(self._plugin_names & {"jupyter", "agent_skills"})
        self._chosen = (
            template or self._settings.runtime_container_image or (JUPYTER_TEMPLATE if needs_kernel else None)
        )
        self._options = sandbox_options(self._settings, self._chosen)
        self._template: str = self._options.template
        self._soft_timeout_s = soft_timeout_s if soft_timeout_s is not None else self._default_soft_timeout()
        self._env_vars: dict[str, str] = {}
        self._acting = threading.RLock()
        self._runtime_initialized = False
        self._runtime_closed = False
        self._owns_sandbox = not attach_to_existing
        self._shell: Shell | None = None
        self._jupyter: Jupyter | None = None
        self._files: FileActions | None = None
        self._vscode: vscode.VSCode | None = None
        self._tasks = TaskList(f"sessions/{sid}/TASKS.md")
        if self.config.workspace_base is not None:
            _log.warning("workspace_base is ignored: the workspace is the sandbox's own, use copy_to to fill it")

    # ------------------------------------------------------------------------------------------------ lifecycle

    @property
    def runtime_initialized(self) -> bool:
        return self._runtime_initialized

    @property
    def workspace(self) -> str:
        """The workspace's path in the sandbox."""
        return str(self.config.workspace_mount_path_in_sandbox or "/workspace")

    @property
    def workspace_root(self) -> Path:
        return Path(self.workspace)

    @property
    def action_execution_server_url(self) -> str:
        """There is no action server in the sandbox; this only says that the runtime is connected.

        Raises RuntimeError before `connect`.
        """
        if not self._runtime_initialized:
            raise RuntimeError("E2B runtime not connected. Call connect() first.")
        return "direct://e2b-sandbox"

    @property
    def sandbox_id(self) -> str:
        """Raises AgentRuntimeNotReadyError before `connect`."""
        return self._box.sandbox_id

    @property
    def web_hosts(self) -> dict[str, int]:
        """URL → port of everything that listens in the sandbox now."""
        with self._on_sandbox():
            return {url_of(self._box, port): port for port in listening(self._box)}

    @property
    def vscode_enabled(self) -> bool:
        return "vscode" in self._plugin_names

    @property
    def vscode_url(self) -> str | None:
        """The editor for people, where the plugin `vscode` is asked for and the template has one."""
        return self._vscode.url if self._vscode is not None else None

    def get_vscode_token(self) -> str:
        """What the editor asks of its users; "" where there is none."""
        return self._vscode.token if self._vscode is not None else ""

    @property
    def additional_agent_instructions(self) -> str:
        """What an agent is told of this runtime beyond its tools: nothing."""
        return ""

    def get_host(self, port: int) -> str:
        """The host name under which a port of the sandbox is reached from outside."""
        return str(self._box.sandbox.get_host(port))

    async def connect(self) -> None:
        """Makes or attaches to the sandbox and gets it ready. Raises what went wrong, after status ERROR.

        Attaching to a session without a sandbox raises AgentRuntimeDisconnectedError.
        """
        await asyncio.to_thread(self.connect_sync)

    def connect_sync(self) -> None:
        """`connect` for callers without an event loop."""
        self.set_runtime_status(RuntimeStatus.STARTING_RUNTIME)
        given = self.sandbox
        try:
            if self.sandbox is None:
                self.sandbox = self._attach() if self.attach_to_existing else self._create()
            self._begin(self.sandbox)
        except BaseException as error:
            self._undo_connect(given)
            lost = isinstance(error, AgentRuntimeDisconnectedError)
            status = RuntimeStatus.ERROR_RUNTIME_DISCONNECTED if lost else RuntimeStatus.ERROR
            self.set_runtime_status(status, f"{type(error).__name__}: {error}", level="error")
            raise
        self._runtime_initialized = True
        atexit.register(self.close)
        self.set_runtime_status(RuntimeStatus.READY)

    def _create(self) -> E2BBox:
        box = E2BBox(
            self._settings,
            template=self._chosen,
            metadata={SID_KEY: self.sid},
            user=None if self.config.run_as_openhands else "root",
        )
        self._sandbox_id_cache[self.sid] = box.sandbox_id
        return box

    def _attach(self) -> E2BBox:
        try:
            found = find_sandboxes(self.sid, connection_of(self._options))
        except LOST as error:
            raise AgentRuntimeDisconnectedError(f"the sandbox of session {self.sid!r} is gone: {error}") from error
        if not found:
            self._sandbox_id_cache.pop(self.sid, None)
            raise AgentRuntimeDisconnectedError(f"there is no sandbox for session {self.sid!r}")
        user = None if self.config.run_as_openhands else "root"
        return E2BBox(self._settings, found[0], template=self._chosen, user=user)

    def _begin(self, box: E2BBox) -> None:
        files = SandboxFiles(box.sandbox, box.user)
        self._files = FileActions(files, self.workspace)
        self.file_store = E2BFileStore(box.filesystem)
        self.set_runtime_status(RuntimeStatus.SETTING_UP_WORKSPACE)
        workspace, owner = shlex.quote(self.workspace), shlex.quote(box.user or "user")
        made = box.execute(f"mkdir -p -- {workspace} && chown {owner}: {workspace}", user="root")
        if made.exit_code != 0:
            raise AgentRuntimeError(f"the workspace {self.workspace} could not be made: {made.output.strip()}")
        if not self.attach_to_existing:
            self._env_vars.update(self._startup_variables())
            self._persist_variables(self._env_vars)
        self._shell = Shell(
            lambda cwd, bare: SandboxTerminal(
                box.sandbox, user=box.user, cwd=cwd, envs={**QUIET_PAGERS, **self._env_vars}, bare=bare
            ),
            files,
            cwd=self.workspace,
            soft_timeout_s=self._soft_timeout_s,
        )
        self._jupyter = Jupyter(box.sandbox, skills.init_code() if "agent_skills" in self._plugin_names else "")
        if self.vscode_enabled and not self.attach_to_existing:
            self._vscode = vscode.start(box, self.workspace, self._settings.vscode_port)
        if not self.attach_to_existing:
            self._set_git_identity()

    def _undo_connect(self, given: E2BBox | None) -> None:
        """After a failed connect: nothing that it made is left, and what it was given is as it was."""
        with suppress(Exception):
            if self._shell is not None:
                self._shell.close()
        self._shell = None
        if self.sandbox is not None and self.sandbox is not given:
            with suppress(Exception):
                if self._owns_sandbox:
                    self.sandbox.close()
                else:
                    self.sandbox.release(seconds=LEASE_S, pause=False)
        self.sandbox = given

    def close(self) -> None:
        """Ends the runtime, and its sandbox unless it was attached to or is to be kept alive. Idempotent."""
        if self._runtime_closed:
            return
        self._runtime_closed = True
        atexit.unregister(self.close)
        box, settings = self.sandbox, self._settings
        if box is None:
            return
        if settings.rm_all_containers:
            box.close()
            self._delete(self.sid)
        elif self._owns_sandbox and not settings.keep_runtime_alive:
            box.close()
            self._sandbox_id_cache.pop(self.sid, None)
        else:
            if self._shell is not None:
                self._shell.close()
            pause = bool(self._owns_sandbox and settings.pause_closed_runtimes)
            box.release(seconds=max(1, settings.close_delay), pause=pause)
        self.set_runtime_status(RuntimeStatus.STOPPED)

    @classmethod
    async def delete(cls, conversation_id: str) -> None:
        """Ends every sandbox of that session, whichever process made it. Nothing happens if there is none."""
        await asyncio.to_thread(cls._delete, conversation_id)

    @classmethod
    def _delete(cls, sid: str) -> None:
        from e2b_code_interpreter import Sandbox

        params = connection()
        for sandbox_id in find_sandboxes(sid, params):
            Sandbox.kill(sandbox_id, **params)
        cls._sandbox_id_cache.pop(sid, None)

    @classmethod
    def setup(cls, config: Any, headless_mode: bool = False) -> None:
        """Nothing to prepare before the first runtime."""

    @classmethod
    def teardown(cls, config: Any) -> None:
        """Nothing is left after the last one."""

    def __enter__(self) -> Self:
        if not self._runtime_initialized:
            self.connect_sync()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def set_runtime_status(self, status: RuntimeStatus, msg: str = "", level: str = "info") -> None:
        """Tells the status callback. A callback that fails does not stop the runtime."""
        self.runtime_status = status
        if self.status_callback is not None:
            try:
                self.status_callback(level, status, msg)
            except Exception:
                _log.exception("the status callback failed")

    def log(self, level: str, message: str) -> None:
        getattr(_log, level)("[runtime %s] %s", self.sid, message)

    def check_if_alive(self) -> None:
        """Raises AgentRuntimeDisconnectedError when the sandbox does not answer."""
        with self._on_sandbox():
            if not self._box.sandbox.is_running():
                raise AgentRuntimeDisconnectedError(f"the sandbox {self.sandbox_id} is gone")

    def _startup_variables(self) -> dict[str, str]:
        return checked_variables({**self.initial_env_vars, **self._settings.runtime_startup_env_vars})

    def _persist_variables(self, variables: Mapping[str, str]) -> None:
        """For shells of other processes that attach later: ~/.bashrc, the last line for a name counts."""
        if not variables:
            return
        lines = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
        done = self._box.execute(f"printf '%s\\n' {shlex.quote(lines)} >> ~/.bashrc")
        if done.exit_code != 0:
            raise RuntimeError(f"Failed to add env vars {sorted(variables)} to .bashrc: {done.output.strip()}")

    def _set_git_identity(self) -> None:
        name, email = (shlex.quote(str(value)) for value in (self.config.git_user_name, self.config.git_user_email))
        done = self._box.execute(
            f"! command -v git >/dev/null || {{ git config --global user.name {name} && "
            f"git config --global user.email {email}; }}"
        )
        if done.exit_code != 0:
            _log.warning("git could not be told who commits: %s", done.output.strip())

    # ------------------------------------------------------------------------------------------------ within

    @contextmanager
    def _on_sandbox(self) -> Iterator[None]:
        """One action at a time; a lost sandbox becomes a status and AgentRuntimeDisconnectedError."""
        with self._acting:
            try:
                yield
            except (AgentRuntimeDisconnectedError, *LOST) as error:
                text = f"{type(error).__name__}: {error}"
                self.set_runtime_status(RuntimeStatus.ERROR_RUNTIME_DISCONNECTED, text, level="error")
                if isinstance(error, AgentRuntimeDisconnectedError):
                    raise
                raise AgentRuntimeDisconnectedError(f"the sandbox is lost: {error}") from error

    @property
    def has_jupyter(self) -> bool:
        """Whether cells can be run: by plugin, or by the template's name."""
        return bool({"jupyter", "agent_skills"} & self._plugin_names) or self._template.startswith("code-interpreter")

    @property
    def _box(self) -> E2BBox:
        if self.sandbox is None or self._runtime_closed:
            raise _not_ready()
        return self.sandbox

    def _need_shell(self) -> Shell:
        if self._shell is None or self._runtime_closed:
            raise _not_ready()
        return self._shell

    def _need_files(self) -> FileActions:
        if self._files is None or self._runtime_closed:
            raise _not_ready()
        return self._files

    def _need_jupyter(self) -> Jupyter:
        if self._jupyter is None:
            raise _not_ready()
        return self._jupyter

    def _default_soft_timeout(self) -> float:
        name = "NO_CHANGE_TIMEOUT_SECONDS"
        text = self._settings.runtime_startup_env_vars.get(name) or os.environ.get(name) or ""
        try:
            return float(text) if text else DEFAULT_SOFT_TIMEOUT_S
        except ValueError:
            raise ValueError(f"{name} is a number of seconds, not {text!r}") from None


def _not_ready() -> AgentRuntimeNotReadyError:
    return AgentRuntimeNotReadyError("the runtime is not connected", hint="call connect() first")
