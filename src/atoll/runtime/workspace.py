"""Workspaces for the newer OpenHands SDK (`openhands-sdk` 1.58), on a sandbox.

    E2BWorkspace             commands, files and git straight through the platform; the agent's loop runs here
    E2BAgentServerWorkspace  the SDK's own agent server runs inside the sandbox, and the agent in it

Owns the sandboxes that it makes: they end with the workspace, at the latest minutes after this process. Needs
`openhands-sdk` and Python 3.12 or newer.
"""

from __future__ import annotations

import secrets
import shlex
import time
from pathlib import Path, PurePosixPath
from typing import Any, Self

import httpx
from e2b import CommandExitException, TimeoutException
from openhands.sdk.git.models import GitChange, GitChangeStatus, GitDiff  # type: ignore[import-not-found]
from openhands.sdk.workspace import BaseWorkspace, RemoteWorkspace  # type: ignore[import-not-found]
from openhands.sdk.workspace.models import CommandResult, FileOperationResult  # type: ignore[import-not-found]
from pydantic import Field, PrivateAttr

from atoll.runtime.errors import LOST, AgentRuntimeDisconnectedError, AgentRuntimeError
from atoll.runtime.sandbox.box import E2BBox
from atoll.runtime.workspace_start import AGENT_SERVER, INIT_KEY, WORKING_DIR

SERVER_LOG = "/tmp/openhands-agent-server.log"
LEFT_S = 3600
"""How long a sandbox of somebody else's lives on after we have left it."""
_EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
_STATUS = {
    "A": GitChangeStatus.ADDED,
    "D": GitChangeStatus.DELETED,
    "M": GitChangeStatus.UPDATED,
    "T": GitChangeStatus.UPDATED,
    "U": GitChangeStatus.UPDATED,
}

# What changes are compared with: the branch as it is at its origin, else where it left the origin's main branch, else
# nothing at all.
_REFERENCE = f"""
branch=$(git branch --show-current 2>/dev/null)
git rev-parse --verify -q "origin/$branch^{{commit}}" ||
  git merge-base HEAD "$(git rev-parse --abbrev-ref origin/HEAD 2>/dev/null)" 2>/dev/null ||
  git rev-parse --verify -q HEAD^{{commit}} || echo {_EMPTY_TREE}
"""


class E2BWorkspace(BaseWorkspace):  # type: ignore[misc]
    """A sandbox of `template`, or the one named by `sandbox_id`, which is left running. Ends with `cleanup`."""

    working_dir: str = WORKING_DIR
    template: str | None = None
    sandbox_id: str | None = None
    envs: dict[str, str] = Field(default_factory=dict)

    _box: E2BBox | None = PrivateAttr(default=None)
    _owned: bool = PrivateAttr(default=True)

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        self._owned = self.sandbox_id is None
        self._box = E2BBox(sandbox_id=self.sandbox_id, template=self.template, envs=self.envs)
        self.sandbox_id = self._box.sandbox_id
        made = self._box.execute(
            f"mkdir -p -- {shlex.quote(self.working_dir)} && chown user: {shlex.quote(self.working_dir)}", user="root"
        )
        if made.exit_code != 0:
            self.cleanup()
            raise AgentRuntimeError(f"{self.working_dir} could not be made: {made.output.strip()}")

    @property
    def box(self) -> E2BBox:
        """The sandbox. Raises AgentRuntimeDisconnectedError after `pause` or `cleanup`."""
        if self._box is None:
            raise AgentRuntimeDisconnectedError("the workspace is paused or closed")
        return self._box

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        self._send_completion_callback(exc_type, exc_val)
        self.cleanup()

    def cleanup(self) -> None:
        """Ends the sandbox if it is ours. Idempotent."""
        box, self._box = self._box, None
        if box is None:
            return
        _part_from(box, owned=self._owned)

    def pause(self) -> None:
        """Raises what the platform says where it cannot pause."""
        self.box.sandbox.pause()
        _leave(self.box)
        self._box = None

    def resume(self) -> None:
        """Connects again, which wakes a paused sandbox."""
        if self._box is None:
            self._box = E2BBox(sandbox_id=self.sandbox_id, template=self.template)

    # ------------------------------------------------------------------------------------------------ commands, files

    def execute_command(self, command: str, cwd: str | Path | None = None, timeout: float = 30.0) -> CommandResult:
        """Exit code -1 means that the time was up. Raises AgentRuntimeDisconnectedError: never a command's result."""
        out: list[str] = []
        err: list[str] = []
        where = str(PurePosixPath(self.working_dir) / str(cwd)) if cwd is not None else self.working_dir
        timed_out = False
        try:
            code = self.box.sandbox.commands.run(
                command,
                cwd=where,
                timeout=timeout,
                envs=self.envs,
                on_stdout=out.append,
                on_stderr=err.append,
            ).exit_code
        except CommandExitException as ended:
            code = ended.exit_code
        except LOST as error:
            raise AgentRuntimeDisconnectedError(f"the sandbox is lost: {error}") from error
        except TimeoutException:
            code, timed_out = -1, True
            err.append(f"Command timed out after {timeout:g} seconds")
        return CommandResult(
            command=command, exit_code=code, stdout="".join(out), stderr="".join(err), timeout_occurred=timed_out
        )

    def file_upload(self, source_path: str | Path, destination_path: str | Path) -> FileOperationResult:
        target = str(PurePosixPath(self.working_dir) / str(destination_path))
        try:
            with open(source_path, "rb") as source:
                self.box.filesystem.write(target, source)
            size = Path(source_path).stat().st_size
        except LOST as error:
            raise AgentRuntimeDisconnectedError(f"the sandbox is lost: {error}") from error
        except Exception as error:
            return _failed(source_path, target, error)
        return FileOperationResult(success=True, source_path=str(source_path), destination_path=target, file_size=size)

    def file_download(self, source_path: str | Path, destination_path: str | Path) -> FileOperationResult:
        source = str(PurePosixPath(self.working_dir) / str(source_path))
        target = Path(destination_path)
        size = 0
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.box.filesystem.read(source, format="stream") as reader, target.open("wb") as out:
                for piece in reader:
                    size += out.write(piece)
        except LOST as error:
            raise AgentRuntimeDisconnectedError(f"the sandbox is lost: {error}") from error
        except Exception as error:
            return _failed(source, target, error)
        return FileOperationResult(success=True, source_path=source, destination_path=str(target), file_size=size)

    # ------------------------------------------------------------------------------------------------ git

    def _git(self, directory: str, script: str) -> str:
        done = self.execute_command(script, cwd=directory, timeout=120)
        if done.exit_code != 0:
            raise AgentRuntimeError(f"git failed in {directory}: {(done.stderr or done.stdout).strip()}")
        return str(done.stdout)

    def git_changes(self, path: str | Path) -> list[GitChange]:
        """Against the branch at its origin; renames are a deletion and an addition. Raises AgentRuntimeError."""
        script = (
            "git rev-parse --git-dir >/dev/null || exit 1\n"
            f"ref=$({_REFERENCE})\n"
            "git --no-pager diff --name-status --no-renames -z --relative $ref\n"
            "git ls-files --others --exclude-standard -z | sed -z 's/^/A\\x00/'"
        )
        words = self._git(str(path), script).split("\0")
        pairs = zip(words[0::2], words[1::2], strict=False)
        found = {name: _STATUS.get(status[:1], GitChangeStatus.UPDATED) for status, name in pairs if name}
        return [GitChange(status=status, path=Path(name)) for name, status in sorted(found.items())]

    def git_diff(self, path: str | Path) -> GitDiff:
        """Both sides of a file, None where there is none. Raises AgentRuntimeError."""
        whole = PurePosixPath(self.working_dir) / str(path)
        name = shlex.quote(whole.name)
        self._git(str(whole.parent), "git rev-parse --git-dir >/dev/null")
        before = self.execute_command(f'git --no-pager show "$({_REFERENCE})":./{name}', cwd=str(whole.parent))
        after = self.execute_command(f"cat -- {name}", cwd=str(whole.parent))
        return GitDiff(
            modified=after.stdout if after.exit_code == 0 else None,
            original=before.stdout if before.exit_code == 0 else None,
        )


class E2BAgentServerWorkspace(RemoteWorkspace):  # type: ignore[misc]
    """The SDK's agent server inside a sandbox of `template`, which has to have Python 3.12 and the server.

    With `sandbox_id` and `api_key` of one in which it runs already, it is that one, and is left running.

    `server_command` starts it; it listens on `port`, and what it prints goes to SERVER_LOG in the sandbox. Where the
    template has started it already by `workspace_start.dormant`, it only gets its keys and `envs`. Ready when GET
    /health answers. A sandbox made here ends with `cleanup`, or minutes after this process.
    """

    working_dir: str = WORKING_DIR
    host: str = ""
    template: str | None = None
    sandbox_id: str | None = None
    envs: dict[str, str] = Field(default_factory=dict)
    server_command: str = AGENT_SERVER
    port: int = 8000
    health_check_timeout: float = Field(default=120.0, gt=0)

    _box: E2BBox | None = PrivateAttr(default=None)
    _owned: bool = PrivateAttr(default=True)

    def model_post_init(self, context: Any) -> None:
        self._owned = self.sandbox_id is None
        object.__setattr__(self, "api_key", self.api_key or secrets.token_urlsafe(24))
        self._box = box = E2BBox(sandbox_id=self.sandbox_id, template=self.template, envs=self.envs)
        self.sandbox_id = box.sandbox_id
        try:
            where = shlex.quote(self.working_dir)
            key = box.execute(f"mkdir -p -- {where} && chown user: {where}; cat {INIT_KEY} 2>/dev/null", user="root")
            object.__setattr__(self, "host", self._address(box))
            super().model_post_init(context)
            if self._owned and (init_key := key.output.strip()):
                self._initialize(init_key)
                pid = None
            else:
                pid = self._start(box) if self._owned or self._ailment() else None
            self._wait_for_health(box, pid)
        except BaseException:
            self.cleanup()
            raise

    def _address(self, box: E2BBox) -> str:
        """The port's URL: the platform's own address where it was given, else the sandbox's host name."""
        direct = str(box.sandbox.connection_config.get_sandbox_url(box.sandbox_id, box.sandbox.sandbox_domain))
        return direct if direct.startswith("http://") else f"https://{box.sandbox.get_host(self.port)}"

    @property
    def _headers(self) -> dict[str, str]:
        """The routing headers say which sandbox and port where the host name does not."""
        routed = {"E2b-Sandbox-Id": str(self.sandbox_id), "E2b-Sandbox-Port": str(self.port)}
        return {**super()._headers, **routed}

    def _start(self, box: E2BBox) -> int:
        """The server's process id."""
        keys = dict.fromkeys(("OH_SESSION_API_KEYS_0", "SESSION_API_KEY"), str(self.api_key))
        started = box.sandbox.commands.run(
            f"{{ {self.server_command}\n}} >{SERVER_LOG} 2>&1",
            background=True,
            cwd=self.working_dir,
            envs={**self.envs, **keys},
            timeout=0,
        )
        started.disconnect()
        return int(started.pid)

    def _initialize(self, init_key: str) -> None:
        """Gives a server that waits its keys and environment. Raises AgentRuntimeError."""
        key = str(self.api_key)
        body = {"session_api_keys": [key], "secret_key": key, "env": self.envs}
        headers = {**self._headers, "X-Init-API-Key": init_key}
        end = time.monotonic() + self.health_check_timeout
        while True:
            try:
                answer = self.client.post("/api/init", json=body, headers=headers, timeout=self.health_check_timeout)
                found = "" if answer.is_success else f"{answer.status_code} {answer.text[:200]}"
                is_final = answer.status_code < 500
            except httpx.HTTPError as error:
                found, is_final = str(error) or type(error).__name__, False
            if not found:
                return
            if is_final or time.monotonic() > end:
                raise AgentRuntimeError(f"the agent server that the template has started takes no keys: {found}")
            time.sleep(0.2)

    def _ailment(self) -> str:
        """What is wrong with the server, "" when it is healthy."""
        try:
            answer = self.client.get("/health", headers=self._headers, timeout=5)
        except httpx.HTTPError as error:
            return str(error) or type(error).__name__
        return "" if answer.is_success else f"{answer.status_code} {answer.text[:200]}"

    def _wait_for_health(self, box: E2BBox, pid: int | None) -> None:
        end, why = time.monotonic() + self.health_check_timeout, f"within {self.health_check_timeout:g} seconds"
        while found := self._ailment():
            if pid is not None and pid not in [each.pid for each in box.sandbox.commands.list()]:
                why = "before it ended"
            elif time.monotonic() < end:
                time.sleep(0.5)
                continue
            printed = box.execute(f"tail -c 2000 {SERVER_LOG}").output.strip()
            raise AgentRuntimeError(
                f"the agent server did not become healthy {why}: {found}; it printed: {printed or 'nothing'}",
                hint="the template needs Python 3.12 or newer and the package openhands-agent-server",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        self._send_completion_callback(exc_type, exc_val)
        self.cleanup()

    def cleanup(self) -> None:
        """Ends the sandbox if it is ours. Idempotent."""
        box, self._box = self._box, None
        if box is not None:
            _part_from(box, owned=self._owned)
        self.reset_client()

    def pause(self) -> None:
        """Raises what the platform says where it cannot pause."""
        if self._box is not None:
            self._box.sandbox.pause()
            _leave(self._box)
            self._box = None

    def resume(self) -> None:
        """Wakes the sandbox and waits for its server."""
        if self._box is None:
            self._box = E2BBox(sandbox_id=self.sandbox_id, template=self.template)
            self.reset_client()
            self._wait_for_health(self._box, None)


def _part_from(box: E2BBox, *, owned: bool) -> None:
    if owned:
        box.close()
    else:
        box.release(seconds=LEFT_S, pause=False)


def _leave(box: E2BBox) -> None:
    """A paused sandbox stays as it is: its time-out is no longer ours to renew."""
    box.closed = True
    box._lease.stop()


def _failed(source: str | Path, target: str | Path, error: Exception) -> FileOperationResult:
    return FileOperationResult(
        success=False, source_path=str(source), destination_path=str(target), error=f"{type(error).__name__}: {error}"
    )
