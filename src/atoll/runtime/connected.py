"""All that a runtime has in its sandbox between connect and close: shell, kernel, files, browser, MCP servers, editor.

Knows no events and no status: what fails raises. One action at a time: the caller holds the lock.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from atoll.runtime.browser.browser import Browser
from atoll.runtime.environment import Environment
from atoll.runtime.errors import AgentRuntimeError
from atoll.runtime.events.actions import CmdRunAction, IPythonRunCellAction
from atoll.runtime.events.observations import CmdOutputMetadata, CmdOutputObservation, IPythonRunCellObservation
from atoll.runtime.files.file_actions import FileActions
from atoll.runtime.files.sandbox_files import SandboxFiles
from atoll.runtime.kernel import skills
from atoll.runtime.kernel.ipython import Jupyter
from atoll.runtime.mcp.client import MCPServers
from atoll.runtime.mcp.config import MCPConfig
from atoll.runtime.sandbox import vscode
from atoll.runtime.sandbox.box import E2BBox
from atoll.runtime.shell.shell import TIMEOUT_MESSAGE, Shell
from atoll.runtime.shell.terminal_link import SandboxTerminal

_SHELL_STATE = "~/.atoll-shell-state"
_SHOW_SHELL_STATE = (
    "( export -p; alias -p; for f in $(compgen -A function); do"
    ' case $f in __atoll_*) ;; *) declare -f "$f" ;; esac; done )'  # those belong to the shell's own protocol
)


@dataclass(frozen=True, slots=True)
class Setup:
    """How a sandbox is set up. `fresh` is what only its first runtime sets up; None: attached to an existing one."""

    sid: str
    workspace: str
    soft_timeout_s: float
    skills: bool
    mcp: Any
    fresh: Fresh | None


@dataclass(frozen=True, slots=True)
class Fresh:
    """`vscode`: whether to start the editor, on `vscode_port` (None: its default)."""

    variables: Mapping[str, str]
    git_name: str
    git_email: str
    vscode: bool
    vscode_port: int | None


class ConnectedSandbox:
    """Set up when this returns. Raises AgentRuntimeError, RuntimeError, and what the SDK raises; nothing stays open."""

    def __init__(self, box: E2BBox, setup: Setup) -> None:
        self.box = box
        self.workspace = setup.workspace
        files = SandboxFiles(box.sandbox, box.user)
        self.files = FileActions(files, setup.workspace)
        self.environment = Environment(box)
        self._make_workspace()
        if setup.fresh is not None:
            self.environment.set(setup.fresh.variables)
        self.shell = Shell(
            lambda cwd, bare: SandboxTerminal(
                box.sandbox, user=box.user, cwd=cwd, envs=self.environment.of_process, bare=bare
            ),
            files,
            cwd=setup.workspace,
            soft_timeout_s=setup.soft_timeout_s,
        )
        self.jupyter = Jupyter(box.sandbox, skills.init_code() if setup.skills else "")
        self.mcp = MCPServers(box, setup.workspace, setup.sid, lambda: self.environment.variables)
        self.vscode: vscode.VSCode | None = None
        try:
            self.mcp.use(setup.mcp or MCPConfig())
            if setup.fresh is not None:
                self._finish_fresh(setup.fresh)
        except BaseException:
            self.close()
            raise

    @cached_property
    def browser(self) -> Browser:
        """Made when it is first used: most runtimes never do."""
        return Browser(self.box, self.workspace)

    def close(self, *, shell: bool = True) -> None:
        """Ends the MCP sessions and, if `shell`, the shell; the sandbox is the caller's. Never raises."""
        with suppress(Exception):
            self.mcp.close()
        if shell:
            with suppress(Exception):
                self.shell.close()

    def run_static(self, action: CmdRunAction) -> CmdOutputObservation:
        """A command in a process of its own."""
        cwd = action.cwd or self.workspace
        done = self.box.execute(action.command, timeout=action.timeout or 0, cwd=cwd, envs=self.environment.of_process)
        state = self.shell.state
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

    def run_cell(self, action: IPythonRunCellAction, timeout_s: float) -> IPythonRunCellObservation:
        """A cell on the kernel, in the shell's directory. Raises AgentRuntimeError: there is no kernel."""
        cwd = self.shell.cwd
        text, images = self.jupyter.run(
            action.code,
            timeout_s=timeout_s,
            cwd=cwd,
            envs=self.environment.variables,
            init_code=action.kernel_init_code,
        )
        text = text.rstrip()
        if action.include_extra:
            text += f"\n[Jupyter current working directory: {cwd}]"
            text += f"\n[Jupyter Python interpreter: {self.jupyter.interpreter}]"
        return IPythonRunCellObservation(text, code=action.code, image_urls=images or None)

    def add_variables(self, variables: Mapping[str, str], *, in_kernel: bool) -> None:
        """In the shell, in every later process and, `in_kernel`, in the kernel. Raises RuntimeError."""
        exports = "; ".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
        done = self.shell.execute(CmdRunAction(exports, blocking=True, timeout=60, hidden=True))
        if not isinstance(done, CmdOutputObservation) or done.exit_code != 0:
            reason = done.metadata.suffix if isinstance(done, CmdOutputObservation) else done.content
            raise RuntimeError(f"Failed to add env vars {sorted(variables)} to environment: {reason.strip()}")
        self.environment.set(variables)
        if in_kernel:
            self.jupyter.set_variables(variables)

    def keep_shell_state(self) -> None:
        """What the agent's shell has defined goes to a file of its home, for `take_shell_state`. Best effort."""
        self.shell.execute(
            CmdRunAction(
                f"{_SHOW_SHELL_STATE} > {_SHELL_STATE} 2>/dev/null; true",
                blocking=True, timeout=30, hidden=True,
            )
        )  # fmt: skip

    def drop_shell_state(self) -> None:
        """The file goes."""
        self.box.execute(f"rm -f {_SHELL_STATE}")

    def take_shell_state(self, cwd: str) -> None:
        """In a sandbox made of a snapshot: the shell goes to `cwd` and has again what the other one had defined."""
        self.shell.execute(
            CmdRunAction(
                f"[ ! -f {_SHELL_STATE} ] || . {_SHELL_STATE} 2>/dev/null; rm -f {_SHELL_STATE}; "
                f"cd -- {shlex.quote(cwd)} 2>/dev/null; true",
                blocking=True, timeout=30, hidden=True,
            )
        )  # fmt: skip

    def _make_workspace(self) -> None:
        workspace, owner = shlex.quote(self.workspace), shlex.quote(self.box.user or "user")
        made = self.box.execute(f"mkdir -p -- {workspace} && chown {owner}: {workspace}", user="root")
        if made.exit_code != 0:
            raise AgentRuntimeError(f"the workspace {self.workspace} could not be made: {made.output.strip()}")

    def _finish_fresh(self, fresh: Fresh) -> None:
        if fresh.vscode:
            self.vscode = vscode.start(self.box, self.workspace, fresh.vscode_port)
        self.environment.set_git_identity(fresh.git_name, fresh.git_email)
