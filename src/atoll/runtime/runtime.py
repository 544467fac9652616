"""E2BRuntime: OpenHands' runtime contract on a sandbox, from one action to one observation.

Owns the contract's public face, the dispatch of actions, the order of connect and close, and the rule that a lost
sandbox is a status and an exception, never a result. What it is made of: `connected` (shell, kernel, files … in the
sandbox), `sandbox.ownership` (whose sandbox it is), `status`, `repository`. Only the public SDK is used.

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
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

from e2b import SandboxException

from atoll.runtime.branches import BranchTree, Checkpoint
from atoll.runtime.branching import branching, settings_at
from atoll.runtime.browser.browser import NO_BROWSER
from atoll.runtime.config import RuntimeConfig, SandboxConfig
from atoll.runtime.connected import ConnectedSandbox, Fresh, Setup
from atoll.runtime.errors import (
    LOST,
    AgentRuntimeDisconnectedError,
    AgentRuntimeError,
    AgentRuntimeNotReadyError,
    AgentRuntimeUnavailableError,
)
from atoll.runtime.events.actions import (
    ACTIONS,
    AgentThinkAction,
    BrowseInteractiveAction,
    BrowseURLAction,
    CmdRunAction,
    FileEditAction,
    FileReadAction,
    FileWriteAction,
    IPythonRunCellAction,
    MCPAction,
    TaskTrackingAction,
)
from atoll.runtime.events.base import Action, ActionConfirmationStatus, Event, EventSource, Observation
from atoll.runtime.events.observations import (
    AgentThinkObservation,
    CmdOutputObservation,
    ErrorObservation,
    FileEditObservation,
    FileReadObservation,
    FileWriteObservation,
    NullObservation,
    UserRejectObservation,
)
from atoll.runtime.files.filestore import E2BFileStore
from atoll.runtime.mcp.client import MCPServers
from atoll.runtime.mcp.config import MCPConfig
from atoll.runtime.options import sandbox_options
from atoll.runtime.plugins import plugin_names
from atoll.runtime.repository.microagents import Microagent
from atoll.runtime.repository.repository import (
    PRE_COMMIT,
    SETUP_SCRIPT,
    Repository,
    clone_source,
    is_setup,
    owner_repository,
)
from atoll.runtime.sandbox.box import JUPYTER_TEMPLATE, E2BBox
from atoll.runtime.sandbox.ownership import SandboxOwnership, delete_sandboxes
from atoll.runtime.sandbox.vscode import listening, url_of
from atoll.runtime.shell.shell import DEFAULT_SOFT_TIMEOUT_S
from atoll.runtime.shell.tasks import TaskList
from atoll.runtime.status import RuntimeStatus, StatusCallback, StatusReport
from atoll.runtime.variables import checked_variables, variables_of_environ

_log = logging.getLogger("atoll.runtime")


class E2BRuntime:
    """A runtime. `config` is a RuntimeConfig, a SandboxConfig or any object with OpenHands' names.

    `event_stream` and `llm_registry` may be None; with a stream, `on_event` answers actions on it. `template` and
    `soft_timeout_s` (seconds without output until a command is reported as running) are this runtime's own, and so is
    `checkpoint`: it goes on from there, in a sandbox of its own. `branches`: where checkpoints are kept, by default
    DATA_DIR/branches.

    Methods that need the sandbox raise AgentRuntimeNotReadyError before `connect` and after `close`, and
    AgentRuntimeDisconnectedError, after status ERROR_RUNTIME_DISCONNECTED, when it is lost.
    """

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
        checkpoint: Checkpoint | str | None = None,
        branches: Path | None = None,
    ) -> None:
        self.config = RuntimeConfig(sandbox=config) if isinstance(config, SandboxConfig) else config or RuntimeConfig()
        self._settings = settings = SandboxConfig.of(self.config.sandbox)
        self.event_stream = event_stream
        self.llm_registry = llm_registry
        self.sid = sid
        self.plugins = list(plugins or ())
        self.attach_to_existing = attach_to_existing
        self.headless_mode = headless_mode
        self.user_id = user_id
        self.git_provider_tokens = git_provider_tokens
        self.sandbox = sandbox
        self.file_store: E2BFileStore | None = None
        self.initial_env_vars = {**variables_of_environ(os.environ, settings), **(env_vars or {})}
        self._plugin_names = plugin_names(plugins) if settings.initialize_plugins else frozenset()
        needs_kernel = bool(self._plugin_names & {"jupyter", "agent_skills"})
        self._branching = branching(branches, checkpoint)
        if (begun_at := self._branching.at) is not None:
            settings = settings_at(settings)
            template = begun_at.snapshot
        chosen = template or settings.runtime_container_image or (JUPYTER_TEMPLATE if needs_kernel else None)
        made_of = sandbox_options(settings, chosen).template
        self._template: str = begun_at.template if begun_at is not None else made_of
        user = None if self.config.run_as_openhands else "root"
        self._ownership = SandboxOwnership(sid, settings, chosen, user, attach=attach_to_existing)
        self._soft_timeout_s = soft_timeout_s if soft_timeout_s is not None else _default_soft_timeout(settings)
        self._status = StatusReport(status_callback)
        self._repository = Repository(self, self._add_event, logging.getLogger("atoll.runtime"))
        self._tasks = TaskList(f"sessions/{sid}/TASKS.md")
        self._acting = threading.RLock()
        self._connected: ConnectedSandbox | None = None
        self._runtime_initialized = False
        self._runtime_closed = False
        if self.config.workspace_base is not None:
            _log.warning("workspace_base is ignored: the workspace is the sandbox's own, use copy_to to fill it")

    # ------------------------------------------------------------------------------------------------ life

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
                self.sandbox = self._ownership.open()
            self.file_store = E2BFileStore(self.sandbox.filesystem)
            self.set_runtime_status(RuntimeStatus.SETTING_UP_WORKSPACE)
            self._connected = ConnectedSandbox(self.sandbox, self._setup())
            if self._branching.at is not None:
                self._connected.take_shell_state(self._branching.at.cwd)
        except BaseException as error:
            if self.sandbox is not None and self.sandbox is not given:
                self._ownership.undo(self.sandbox)
            self.sandbox = given
            lost = isinstance(error, AgentRuntimeDisconnectedError)
            status = RuntimeStatus.ERROR_RUNTIME_DISCONNECTED if lost else RuntimeStatus.ERROR
            self.set_runtime_status(status, f"{type(error).__name__}: {error}", level="error")
            raise
        self._runtime_initialized = True
        atexit.register(self.close)
        self.set_runtime_status(RuntimeStatus.READY)

    def _setup(self) -> Setup:
        fresh = None
        if not self.attach_to_existing:
            fresh = Fresh(
                variables=checked_variables({**self.initial_env_vars, **self._settings.runtime_startup_env_vars}),
                git_name=str(self.config.git_user_name),
                git_email=str(self.config.git_user_email),
                vscode=self.vscode_enabled,
                vscode_port=self._settings.vscode_port,
            )
        return Setup(
            sid=self.sid,
            workspace=self.workspace,
            soft_timeout_s=self._soft_timeout_s,
            skills="agent_skills" in self._plugin_names,
            mcp=getattr(self.config, "mcp", None),
            fresh=fresh,
        )

    def close(self) -> None:
        """Ends the runtime, and its sandbox unless it was attached to or is to be kept alive. Idempotent."""
        if self._runtime_closed:
            return
        self._runtime_closed = True
        atexit.unregister(self.close)
        self._branching.log.close()
        if self._connected is not None:
            self._connected.close(shell=self._ownership.is_kept)  # a sandbox that ends takes its shell with it
        if self.sandbox is None:
            return
        self._ownership.end(self.sandbox)
        self.set_runtime_status(RuntimeStatus.STOPPED)

    @classmethod
    async def delete(cls, conversation_id: str) -> None:
        """Ends every sandbox of that session, whichever process made it. Nothing happens if there is none."""
        await asyncio.to_thread(delete_sandboxes, conversation_id)

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

    # ------------------------------------------------------------------------------------------------ state

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
        return self._live.box.sandbox_id

    @property
    def web_hosts(self) -> dict[str, int]:
        """URL → port of everything that listens in the sandbox now."""
        with self._on_sandbox() as live:
            return {url_of(live.box, port): port for port in listening(live.box)}

    @property
    def vscode_enabled(self) -> bool:
        return "vscode" in self._plugin_names

    @property
    def vscode_url(self) -> str | None:
        """The editor for people, where the plugin `vscode` is asked for and the template has one."""
        vscode = self._connected.vscode if self._connected is not None else None
        return vscode.url if vscode is not None else None

    def get_vscode_token(self) -> str:
        """What the editor asks of its users; "" where there is none."""
        vscode = self._connected.vscode if self._connected is not None else None
        return vscode.token if vscode is not None else ""

    @property
    def additional_agent_instructions(self) -> str:
        """What an agent should know of this runtime beyond its tools: nothing."""
        return ""

    def get_host(self, port: int) -> str:
        """The host name under which a port of the sandbox is reached from outside."""
        return str(self._live.box.sandbox.get_host(port))

    @property
    def has_jupyter(self) -> bool:
        """Whether cells can be run: by plugin, or by the template's name."""
        return bool({"jupyter", "agent_skills"} & self._plugin_names) or self._template.startswith("code-interpreter")

    @property
    def status_callback(self) -> StatusCallback | None:
        """Called with (level, status, message) at each change; may be set at any time."""
        return self._status.callback

    @status_callback.setter
    def status_callback(self, callback: StatusCallback | None) -> None:
        self._status.callback = callback

    @property
    def runtime_status(self) -> RuntimeStatus | None:
        """The last one; None before `connect`."""
        return self._status.last

    def set_runtime_status(self, status: RuntimeStatus, msg: str = "", level: str = "info") -> None:
        """Calls the status callback. A callback that fails does not stop the runtime."""
        self._status.set(status, msg, level)

    def log(self, level: str, message: str) -> None:
        getattr(_log, level)("[runtime %s] %s", self.sid, message)

    def check_if_alive(self) -> None:
        """Raises AgentRuntimeDisconnectedError when the sandbox does not answer."""
        with self._on_sandbox() as live:
            if not live.box.sandbox.is_running():
                raise AgentRuntimeDisconnectedError(f"the sandbox {self.sandbox_id} is gone")

    @property
    def _live(self) -> ConnectedSandbox:
        if self._connected is None or self._runtime_closed:
            raise AgentRuntimeNotReadyError("the runtime is not connected", hint="call connect() first")
        return self._connected

    @contextmanager
    def _on_sandbox(self) -> Iterator[ConnectedSandbox]:
        """One action at a time; a lost sandbox becomes a status and AgentRuntimeDisconnectedError."""
        with self._acting:
            try:
                yield self._live
            except (AgentRuntimeDisconnectedError, *LOST) as error:
                text = f"{type(error).__name__}: {error}"
                self.set_runtime_status(RuntimeStatus.ERROR_RUNTIME_DISCONNECTED, text, level="error")
                if isinstance(error, AgentRuntimeDisconnectedError):
                    raise
                raise AgentRuntimeDisconnectedError(f"the sandbox is lost: {error}") from error

    # ------------------------------------------------------------------------------------------------ actions

    def run_action(self, action: Action) -> Observation:
        """The observation of an action. Raises AgentRuntimeUnavailableError only: all else is an observation."""
        observation = self._observe(action)
        with self._acting:
            if not self._runtime_closed:
                self._branching.log.note(action, observation)
        return observation

    def _observe(self, action: Action) -> Observation:
        if not getattr(action, "runnable", False):
            if action.action in ACTIONS:
                return self._not_runnable(action)
            return ErrorObservation(f"Action {action.action} does not exist.")
        confirmation = getattr(action, "confirmation_state", None)
        if confirmation == ActionConfirmationStatus.AWAITING_CONFIRMATION:
            return NullObservation("")
        method = getattr(self, action.action, None)
        if method is None:
            return ErrorObservation(f"Action {action.action} is not supported in the current runtime.")
        if confirmation == ActionConfirmationStatus.REJECTED:
            return UserRejectObservation("Action has been rejected by the user! Waiting for further user input.")
        try:
            if isinstance(action, MCPAction):
                return self._call_tool(action)
            found: Observation = method(action)
        except PermissionError as error:
            return ErrorObservation(str(error))
        return found

    def on_event(self, event: Any) -> None:
        """Answers an action on the event stream; a failure of the runtime becomes a status, never silence.

        The set-up script is there as a record only: who put it there runs it.
        """
        if not isinstance(event, Action) or is_setup(event):
            return
        try:
            observation = self.run_action(event)
        except AgentRuntimeDisconnectedError:
            return  # the status has been set where it was noticed
        except Exception as error:
            self.set_runtime_status(RuntimeStatus.ERROR, f"{type(error).__name__}: {error}", level="error")
            observation = ErrorObservation(f"{type(error).__name__}: {error}")
        if not isinstance(observation, NullObservation) and self.event_stream is not None:
            answer = replace(observation, cause=event.id, tool_call_metadata=event.tool_call_metadata)
            self.event_stream.add_event(answer, event.source)

    def run(self, action: CmdRunAction) -> CmdOutputObservation | ErrorObservation:
        """A command in the persistent shell, or (`is_static`) in a process of its own."""
        if action.timeout is None:
            action = action.with_hard_timeout(float(self._settings.timeout), blocking=False)
        with self._on_sandbox() as live:
            try:
                return live.run_static(action) if action.is_static else live.shell.execute(action)
            except AgentRuntimeUnavailableError:
                raise
            except LOST:
                raise
            except (AgentRuntimeError, SandboxException) as error:
                return ErrorObservation(f"Failed to execute command: {error}")

    def run_ipython(self, action: IPythonRunCellAction) -> Observation:
        """A cell on the sandbox's kernel. A failing cell is an IPythonRunCellObservation like any other."""
        if not self.has_jupyter:
            return ErrorObservation(
                "JupyterRequirement not found. Unable to run IPython action. "
                f"The sandbox's template is {self._template!r}; ask for the plugin `jupyter`, or for the template "
                f"{JUPYTER_TEMPLATE!r}."
            )
        timeout_s = action.timeout if action.timeout is not None else float(self._settings.timeout)
        with self._on_sandbox() as live:
            try:
                return live.run_cell(action, timeout_s)
            except AgentRuntimeDisconnectedError:
                raise
            except AgentRuntimeError as error:
                return ErrorObservation(str(error))

    def read(self, action: FileReadAction) -> FileReadObservation | ErrorObservation:
        """A file's lines, or the editor's view; images, PDF and video as data URLs."""
        with self._on_sandbox() as live:
            return live.files.read(action, live.shell.cwd)

    def write(self, action: FileWriteAction) -> FileWriteObservation | ErrorObservation:
        """Replaces a file, or lines of it. Mode and owner of a file that is there are kept."""
        with self._on_sandbox() as live:
            return live.files.write(action, live.shell.cwd)

    def edit(self, action: FileEditAction) -> FileEditObservation | ErrorObservation:
        """An editor command; without one, lines `start` to `end` become `content`."""
        with self._on_sandbox() as live:
            return live.files.edit(action, live.shell.cwd)

    def browse(self, action: BrowseURLAction) -> Observation:
        """Visits a URL; the page's text. Needs a template with a browser, such as `browser`."""
        return self._browse(action)

    def browse_interactive(self, action: BrowseInteractiveAction) -> Observation:
        """BrowserGym's actions; the page's accessibility tree."""
        return self._browse(action)

    def _browse(self, action: BrowseURLAction | BrowseInteractiveAction) -> Observation:
        if not getattr(self.config, "enable_browser", True):
            return ErrorObservation(NO_BROWSER)
        with self._on_sandbox() as live:
            return live.browser.browse(action)

    async def call_tool_mcp(self, action: MCPAction) -> Observation:
        """A tool of a server inside the sandbox or elsewhere. What goes wrong there is an observation."""
        return await asyncio.to_thread(self._call_tool, action)

    def _call_tool(self, action: MCPAction) -> Observation:
        with self._on_sandbox() as live:
            return live.mcp.call(action)

    def get_mcp_config(self, extra_stdio_servers: Sequence[Any] | None = None) -> Any:
        """The configured servers and the given ones; an object with `sse_servers`, `stdio_servers`, `shttp_servers`."""
        configured = getattr(self.config, "mcp", None) or MCPConfig()
        config = MCPConfig(
            sse_servers=list(configured.sse_servers),
            stdio_servers=[*configured.stdio_servers, *(extra_stdio_servers or ())],
            shttp_servers=list(configured.shttp_servers),
        )
        if self._connected is not None:
            self._live.mcp.use(config)
        return config

    @property
    def mcp_servers(self) -> MCPServers:
        """The servers behind `call_tool_mcp`. Raises AgentRuntimeNotReadyError before `connect`."""
        return self._live.mcp

    def _not_runnable(self, action: Action) -> Observation:
        if isinstance(action, AgentThinkAction):
            return AgentThinkObservation("Your thought has been logged.")
        if isinstance(action, TaskTrackingAction):
            return self._tasks.track(action)
        return NullObservation("")

    # ------------------------------------------------------------------------------------------------ branches

    def checkpoint(self, note: str = "") -> Checkpoint:
        """Keeps what the sandbox is now and what led there. This runtime and `E2BRuntime(checkpoint=…)` go on from it.

        Processes are in it where the platform keeps memory; `keeps` and `why` say so. Raises
        AgentRuntimeDisconnectedError, OSError (it cannot be written down; nothing is kept then), and what the SDK
        raises for a platform without snapshots.
        """
        with self._on_sandbox() as live:
            return self._branching.take(live, self.sid, self._template, note, jupyter=self.has_jupyter)

    @property
    def branches(self) -> BranchTree:
        """Where its checkpoints are kept."""
        return self._branching.tree

    @property
    def history(self) -> list[Event]:
        """All that has happened on this branch: up to the last checkpoint, and since."""
        with self._acting:
            return self._branching.history()

    # ------------------------------------------------------------------------------------------------ files

    def list_files(self, path: str | None = None) -> list[str]:
        """Names in a directory (default: the workspace): directories first, with a final `/`. [] if there is none."""
        where = str(PurePosixPath(self.workspace) / path) if path else self.workspace
        with self._on_sandbox() as live:
            try:
                return live.files.listing(where)
            except OSError:
                return []

    def copy_to(self, host_src: str, sandbox_dest: str, recursive: bool = False) -> None:
        """See E2BBox.copy_to; a relative destination is below the workspace."""
        with self._on_sandbox() as live:
            live.box.copy_to(host_src, str(PurePosixPath(self.workspace) / sandbox_dest), recursive)

    def copy_from(self, path: str) -> Path:
        """See E2BBox.copy_from; a relative path is below the workspace."""
        with self._on_sandbox() as live:
            return live.box.copy_from(str(PurePosixPath(self.workspace) / path))

    def get_working_directory(self) -> str:
        """Where the persistent shell is."""
        return self._live.shell.cwd

    def subscribe_to_shell_stream(self, callback: Callable[[str], None] | None = None) -> bool:
        """Not offered: False."""
        return False

    # ------------------------------------------------------------------------------------------------ repository

    def _add_event(self, event: Event, source: EventSource) -> None:
        if self.event_stream is not None:
            self.event_stream.add_event(event, source)

    async def clone_or_init_repo(
        self,
        git_provider_tokens: Mapping[Any, Any] | None,
        selected_repository: str | None,
        selected_branch: str | None,
    ) -> str:
        """Clones a repository into the workspace, by default that of the configuration; its directory's name.

        `selected_repository` is `owner/name` at GitHub, or any URL that git can clone. Without one an empty repository
        is made if the configuration says so, and "" returned. Raises AgentRuntimeError, ValueError.
        """
        chosen = selected_repository or self._settings.selected_repo
        if not chosen:
            if self.config.init_git_in_empty_workspace:
                await asyncio.to_thread(self._repository.initialise)
            return ""
        self.set_runtime_status(RuntimeStatus.SETTING_UP_WORKSPACE, "Setting up workspace...")
        source = clone_source(
            chosen, git_provider_tokens if git_provider_tokens is not None else self.git_provider_tokens
        )
        if source.authorization is not None:
            await asyncio.to_thread(self._live.box.authorize, source.authorization)
        await asyncio.to_thread(self._repository.clone, source.url, source.name, selected_branch)
        return source.name

    def maybe_run_setup_script(self) -> None:
        """Sources `.openhands/setup.sh` in the agent's shell, where the shell is, if there is one."""
        if self._has_file(SETUP_SCRIPT):
            self.set_runtime_status(RuntimeStatus.SETTING_UP_WORKSPACE, "Setting up workspace...")
            self._repository.run_setup_script()

    def maybe_setup_git_hooks(self) -> None:
        """Makes git run `.openhands/pre-commit.sh` before each commit, if there is one."""
        if self._has_file(PRE_COMMIT):
            self.set_runtime_status(RuntimeStatus.SETTING_UP_GIT_HOOKS, "Setting up git hooks...")
            self._repository.install_hook()

    def _has_file(self, path: str) -> bool:
        return isinstance(self.read(FileReadAction(path)), FileReadObservation)

    def get_microagents_from_selected_repo(self, selected_repository: str | None) -> list[Microagent]:
        """The micro-agents of a repository in the workspace, or of the workspace itself."""
        owners = self.get_microagents_from_org_or_user(selected_repository) if selected_repository else []
        return owners + self._repository.microagents(selected_repository)

    def get_microagents_from_org_or_user(self, selected_repository: str) -> list[Microagent]:
        """Those in the repository `.openhands` (at GitLab `openhands-config`) of the selected one's owner."""
        if (owners := owner_repository(selected_repository)) is None:
            return []
        try:
            source = clone_source(owners, self.git_provider_tokens)
        except ValueError:
            return []
        if source.authorization is not None:
            self._live.box.authorize(source.authorization)
        return self._repository.microagents_of_owner(source.url)

    def get_git_changes(self, cwd: str) -> list[dict[str, str]] | None:
        """See Repository.changes."""
        return self._repository.changes(cwd)

    def get_git_diff(self, file_path: str, cwd: str) -> dict[str, str]:
        """See Repository.diff."""
        return self._repository.diff(file_path, cwd)

    def get_workspace_branch(self, primary_repo_path: str | None = None) -> str | None:
        """The current branch of the workspace, or of a repository in it."""
        return self._repository.branch(str(PurePosixPath(self.workspace) / (primary_repo_path or "")))

    # ------------------------------------------------------------------------------------------------ environment

    def add_env_vars(self, env_vars: Mapping[str, str]) -> None:
        """Sets variables, with upper-case names, in the shell, the kernel and every later process of this runtime.

        Raises ValueError for a name that no shell takes, RuntimeError if the shell failed to set them.
        """
        chosen = checked_variables(env_vars)
        if not chosen:
            return
        with self._on_sandbox() as live:
            live.add_variables(chosen, in_kernel=self.has_jupyter)


def _default_soft_timeout(settings: SandboxConfig) -> float:
    name = "NO_CHANGE_TIMEOUT_SECONDS"
    text = settings.runtime_startup_env_vars.get(name) or os.environ.get(name) or ""
    try:
        return float(text) if text else DEFAULT_SOFT_TIMEOUT_S
    except ValueError:
        raise ValueError(f"{name} is a number of seconds, not {text!r}") from None
