"""E2BRuntime: OpenHands' runtime contract on a sandbox, from one action to one observation.

Owns the dispatch of actions and the texts around them. Its life is `lifecycle.py`; the shell, the kernel, the editor
and the transfers are modules of their own. Only the public SDK is used.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from e2b import SandboxException

from atoll.runtime.browser.browser import NO_BROWSER, Browser
from atoll.runtime.errors import (
    LOST,
    AgentRuntimeDisconnectedError,
    AgentRuntimeError,
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
    CmdOutputMetadata,
    CmdOutputObservation,
    ErrorObservation,
    FileEditObservation,
    FileReadObservation,
    FileWriteObservation,
    IPythonRunCellObservation,
    NullObservation,
    UserRejectObservation,
)
from atoll.runtime.lifecycle import QUIET_PAGERS, Lifecycle
from atoll.runtime.mcp.client import MCPServers
from atoll.runtime.mcp.config import MCPConfig
from atoll.runtime.repository.microagents import Microagent
from atoll.runtime.repository.repository import (
    PRE_COMMIT,
    SETUP_SCRIPT,
    Repository,
    clone_source,
    is_setup,
    owner_repository,
)
from atoll.runtime.sandbox.box import JUPYTER_TEMPLATE
from atoll.runtime.shell.shell import TIMEOUT_MESSAGE
from atoll.runtime.status import RuntimeStatus
from atoll.runtime.variables import checked_variables


class E2BRuntime(Lifecycle):
    """See the module; its arguments are those of Lifecycle."""

    _browser: Browser | None = None
    _mcp: MCPServers | None = None

    # ------------------------------------------------------------------------------------------------ actions

    def run_action(self, action: Action) -> Observation:
        """The observation of an action. Raises AgentRuntimeUnavailableError only: all else is an observation."""
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
        with self._on_sandbox():
            try:
                return self._run_static(action) if action.is_static else self._need_shell().execute(action)
            except AgentRuntimeUnavailableError:
                raise
            except LOST:
                raise
            except (AgentRuntimeError, SandboxException) as error:
                return ErrorObservation(f"Failed to execute command: {error}")

    def _run_static(self, action: CmdRunAction) -> CmdOutputObservation:
        cwd = action.cwd or self.workspace
        envs = {**QUIET_PAGERS, **self._env_vars}
        done = self._box.execute(action.command, timeout=action.timeout or 0, cwd=cwd, envs=envs)
        state = self._need_shell().state
        if done.exit_code == -1:
            suffix = f"\n[The command timed out after {float(action.timeout or 0)} seconds. {TIMEOUT_MESSAGE}]"
        else:
            suffix = f"\n[The command completed with exit code {done.exit_code}.]"
        metadata = CmdOutputMetadata(
            exit_code=done.exit_code,
            username=state.username,
            hostname=state.hostname,
            working_dir=cwd,
            py_interpreter_path=state.python or None,
            suffix=suffix,
        )
        return CmdOutputObservation(
            done.output.rstrip(), command=action.command, metadata=metadata, hidden=action.hidden
        )

    def run_ipython(self, action: IPythonRunCellAction) -> Observation:
        """A cell on the sandbox's kernel. A failing cell is an IPythonRunCellObservation like any other."""
        if not self.has_jupyter:
            return ErrorObservation(
                "JupyterRequirement not found. Unable to run IPython action. "
                f"The sandbox's template is {self._template!r}; ask for the plugin `jupyter`, or for the template "
                f"{JUPYTER_TEMPLATE!r}."
            )
        timeout_s = action.timeout if action.timeout is not None else float(self._settings.timeout)
        with self._on_sandbox():
            jupyter, cwd = self._need_jupyter(), self._need_shell().cwd
            try:
                text, images = jupyter.run(
                    action.code, timeout_s=timeout_s, cwd=cwd, envs=self._env_vars, init_code=action.kernel_init_code
                )
                text = text.rstrip()
                if action.include_extra:
                    text += f"\n[Jupyter current working directory: {cwd}]"
                    text += f"\n[Jupyter Python interpreter: {jupyter.interpreter}]"
            except AgentRuntimeDisconnectedError:
                raise
            except AgentRuntimeError as error:
                return ErrorObservation(str(error))
        return IPythonRunCellObservation(text, code=action.code, image_urls=images or None)

    def read(self, action: FileReadAction) -> FileReadObservation | ErrorObservation:
        """A file's lines, or the editor's view; images, PDF and video as data URLs."""
        with self._on_sandbox():
            return self._need_files().read(action, self._need_shell().cwd)

    def write(self, action: FileWriteAction) -> FileWriteObservation | ErrorObservation:
        """Replaces a file, or lines of it. Mode and owner of a file that is there are kept."""
        with self._on_sandbox():
            return self._need_files().write(action, self._need_shell().cwd)

    def edit(self, action: FileEditAction) -> FileEditObservation | ErrorObservation:
        """An editor command; without one, lines `start` to `end` become `content`."""
        with self._on_sandbox():
            return self._need_files().edit(action, self._need_shell().cwd)

    def browse(self, action: BrowseURLAction) -> Observation:
        """Visits a URL; the page's text. Needs a template with a browser, such as `browser`."""
        return self._browse(action)

    def browse_interactive(self, action: BrowseInteractiveAction) -> Observation:
        """BrowserGym's actions; the page's accessibility tree."""
        return self._browse(action)

    def _browse(self, action: BrowseURLAction | BrowseInteractiveAction) -> Observation:
        if not getattr(self.config, "enable_browser", True):
            return ErrorObservation(NO_BROWSER)
        with self._on_sandbox():
            if self._browser is None:
                self._browser = Browser(self._box, self.workspace)
            return self._browser.browse(action)

    async def call_tool_mcp(self, action: MCPAction) -> Observation:
        """A tool of a server inside the sandbox or elsewhere. What goes wrong there is an observation."""
        return await asyncio.to_thread(self._call_tool, action)

    def _call_tool(self, action: MCPAction) -> Observation:
        with self._on_sandbox():
            return self._need_mcp().call(action)

    def get_mcp_config(self, extra_stdio_servers: Sequence[Any] | None = None) -> Any:
        """The configured servers and the given ones; an object with `sse_servers`, `stdio_servers`, `shttp_servers`."""
        configured = getattr(self.config, "mcp", None) or MCPConfig()
        config = MCPConfig(
            sse_servers=list(configured.sse_servers),
            stdio_servers=[*configured.stdio_servers, *(extra_stdio_servers or ())],
            shttp_servers=list(configured.shttp_servers),
        )
        if self.sandbox is not None:
            self._need_mcp().use(config)
        return config

    @property
    def mcp_servers(self) -> MCPServers:
        """The servers behind `call_tool_mcp`. Raises AgentRuntimeNotReadyError before `connect`."""
        return self._need_mcp()

    def _need_mcp(self) -> MCPServers:
        if self._mcp is None:
            self._mcp = MCPServers(self._box, self.workspace, self.sid, lambda: self._env_vars)
            self._mcp.use(getattr(self.config, "mcp", None) or MCPConfig())
        return self._mcp

    def close(self) -> None:
        """See Lifecycle.close; MCP sessions end before."""
        if self._mcp is not None:
            self._mcp.close()
            self._mcp = None
        super().close()

    def _not_runnable(self, action: Action) -> Observation:
        if isinstance(action, AgentThinkAction):
            return AgentThinkObservation("Your thought has been logged.")
        if isinstance(action, TaskTrackingAction):
            return self._tasks.track(action)
        return NullObservation("")

    # ------------------------------------------------------------------------------------------------ files

    def list_files(self, path: str | None = None) -> list[str]:
        """Names in a directory (default: the workspace): directories first, with a final `/`. [] if there is none."""
        where = str(PurePosixPath(self.workspace) / path) if path else self.workspace
        with self._on_sandbox():
            try:
                return self._need_files().listing(where)
            except OSError:
                return []

    def copy_to(self, host_src: str, sandbox_dest: str, recursive: bool = False) -> None:
        """See E2BBox.copy_to; a relative destination is below the workspace."""
        with self._on_sandbox():
            self._box.copy_to(host_src, str(PurePosixPath(self.workspace) / sandbox_dest), recursive)

    def copy_from(self, path: str) -> Path:
        """See E2BBox.copy_from; a relative path is below the workspace."""
        with self._on_sandbox():
            return self._box.copy_from(str(PurePosixPath(self.workspace) / path))

    def get_working_directory(self) -> str:
        """Where the persistent shell is."""
        return self._need_shell().cwd

    def subscribe_to_shell_stream(self, callback: Callable[[str], None] | None = None) -> bool:
        """Not offered: False."""
        return False

    # ------------------------------------------------------------------------------------------------ repository

    @property
    def _repository(self) -> Repository:
        return Repository(self, self._tell, logging.getLogger("atoll.runtime"))

    def _tell(self, event: Event, source: EventSource) -> None:
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
            await asyncio.to_thread(self._box.authorize, source.authorization)
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
            self._box.authorize(source.authorization)
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

        Raises ValueError for a name that no shell takes, RuntimeError if the shell could not be told.
        """
        chosen = checked_variables(env_vars)
        if not chosen:
            return
        with self._on_sandbox():
            exports = "; ".join(f"export {name}={shlex.quote(value)}" for name, value in chosen.items())
            told = self._need_shell().execute(CmdRunAction(exports, blocking=True, timeout=60, hidden=True))
            if not isinstance(told, CmdOutputObservation) or told.exit_code != 0:
                reason = told.metadata.suffix if isinstance(told, CmdOutputObservation) else told.content
                raise RuntimeError(f"Failed to add env vars {sorted(chosen)} to environment: {reason.strip()}")
            self._env_vars.update(chosen)
            self._persist_variables(chosen)
            if self.has_jupyter:
                self._need_jupyter().set_variables(chosen)
