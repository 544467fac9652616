"""The class that plugs into OpenHands: `RUNTIME=atoll.runtime.openhands.E2BRuntime`, with openhands-ai installed.

Owns the translation between OpenHands' own classes (Runtime, events, statuses, exceptions) and this package's runtime,
which does the work; both speak the same JSON. Needs Python 3.12 or newer, as OpenHands does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openhands.core import exceptions as _theirs  # type: ignore[import-not-found]
from openhands.core.config.mcp_config import MCPSHTTPServerConfig  # type: ignore[import-not-found]
from openhands.events.serialization import (  # type: ignore[import-not-found]
    event_from_dict as _their_event,
)
from openhands.events.serialization import event_to_dict as _their_dict
from openhands.runtime.base import Runtime  # type: ignore[import-not-found]
from openhands.runtime.runtime_status import RuntimeStatus as _TheirStatus  # type: ignore[import-not-found]

from atoll.runtime import runtime as _ours
from atoll.runtime.branches import Checkpoint
from atoll.runtime.errors import AgentRuntimeError
from atoll.runtime.events.actions import MCPAction
from atoll.runtime.events.base import Observation
from atoll.runtime.events.serialization import action_from_dict, event_to_dict
from atoll.runtime.files.filestore import E2BFileStore
from atoll.runtime.mcp.bridge import MCPBridge
from atoll.runtime.repository.repository import is_setup
from atoll.runtime.sandbox.box import E2BBox
from atoll.runtime.status import RuntimeStatus


@contextmanager
def _their_errors() -> Iterator[None]:
    """Our errors as OpenHands' of the same name: its event loop distinguishes them by class."""
    try:
        yield
    except AgentRuntimeError as error:
        names = (cls.__name__ for cls in type(error).__mro__)
        found = next((getattr(_theirs, name) for name in names if hasattr(_theirs, name)), None)
        if found is None:
            raise
        raise found(str(error)) from error


class E2BRuntime(Runtime):  # type: ignore[misc]
    """OpenHands' runtime on a sandbox. The arguments are OpenHands'; `sandbox` is one that is there already.

    Which template: `runtime_container_image` of the sandbox configuration, else `code-interpreter-v1` for agents with
    Jupyter, else `base`. For browsing set it to `browser`.
    """

    def __init__(
        self,
        config: Any,
        event_stream: Any,
        llm_registry: Any,
        sid: str = "default",
        plugins: Any = None,
        env_vars: dict[str, str] | None = None,
        status_callback: Any = None,
        attach_to_existing: bool = False,
        headless_mode: bool = True,
        user_id: str | None = None,
        git_provider_tokens: Any = None,
        sandbox: E2BBox | None = None,
        **more: Any,
    ) -> None:
        self._inner: _ours.E2BRuntime | None = None
        self._bridge: MCPBridge | None = None
        super().__init__(
            config,
            event_stream,
            llm_registry,
            sid,
            plugins,
            env_vars,
            status_callback,
            attach_to_existing,
            headless_mode,
            user_id,
            git_provider_tokens,
            **more,
        )
        self._inner = _ours.E2BRuntime(
            config=self.config,
            sid=sid,
            plugins=self.plugins,
            env_vars=self.initial_env_vars,
            status_callback=self._report_status,
            attach_to_existing=attach_to_existing,
            headless_mode=headless_mode,
            user_id=user_id,
            sandbox=sandbox,
        )

    @property
    def _runtime(self) -> _ours.E2BRuntime:
        assert self._inner is not None
        return self._inner

    def _report_status(self, level: str, status: RuntimeStatus, message: str) -> None:
        self.set_runtime_status(_TheirStatus[status.name], message, level)

    # ------------------------------------------------------------------------------------------------ lifecycle

    async def connect(self) -> None:
        """Raises OpenHands' AgentRuntimeDisconnectedError when there is nothing to attach to."""
        with _their_errors():
            await self._runtime.connect()
        self._runtime_initialized = True

    def close(self) -> None:
        """Synchronous and idempotent, as OpenHands calls it."""
        if self._bridge is not None:
            self._bridge.close()
            self._bridge = None
        if self._inner is not None:
            self._inner.close()
        super().close()

    @classmethod
    async def delete(cls, conversation_id: str) -> None:
        with _their_errors():
            await _ours.E2BRuntime.delete(conversation_id)

    def check_if_alive(self) -> None:
        with _their_errors():
            self._runtime.check_if_alive()

    @property
    def action_execution_server_url(self) -> str:
        return self._runtime.action_execution_server_url

    @property
    def sandbox(self) -> E2BBox | None:
        """The sandbox, once connected."""
        return self._runtime.sandbox

    @property
    def file_store(self) -> E2BFileStore | None:
        return self._runtime.file_store

    @property
    def vscode_url(self) -> str | None:
        return self._runtime.vscode_url

    def get_vscode_token(self) -> str:
        return self._runtime.get_vscode_token()

    @property
    def web_hosts(self) -> dict[str, int]:
        with _their_errors():
            return self._runtime.web_hosts

    @property
    def workspace_root(self) -> Path:
        return self._runtime.workspace_root

    # ------------------------------------------------------------------------------------------------ actions

    def on_event(self, event: Any) -> None:
        """The set-up script is left out: OpenHands puts it on the event stream and runs it itself as well."""
        if not is_setup(event):
            super().on_event(event)

    def run_action(self, action: Any) -> Any:
        """As OpenHands', and a tool can be called as well, with or without a running event loop."""
        if action.action == MCPAction.kind:
            self.get_mcp_config()
            return self._do(action)
        observation = super().run_action(action)
        if is_setup(action):
            observation._cause = action.id
            self.event_stream.add_event(observation, action.source)
        return observation

    def _do(self, action: Any) -> Any:
        with _their_errors():
            return _to_theirs(self._runtime.run_action(action_from_dict(_their_dict(action))))

    def run(self, action: Any) -> Any:
        return self._do(action)

    def run_ipython(self, action: Any) -> Any:
        return self._do(action)

    def read(self, action: Any) -> Any:
        return self._do(action)

    def write(self, action: Any) -> Any:
        return self._do(action)

    def edit(self, action: Any) -> Any:
        """An edit by a model is OpenHands' own business, on top of read and write."""
        if getattr(action.impl_source, "value", action.impl_source) == "llm_based_edit" and not action.command:
            return self.llm_based_edit(action)
        return self._do(action)

    def browse(self, action: Any) -> Any:
        return self._do(action)

    def browse_interactive(self, action: Any) -> Any:
        return self._do(action)

    async def call_tool_mcp(self, action: Any) -> Any:
        ours = action_from_dict(_their_dict(action))
        assert isinstance(ours, MCPAction)
        self.get_mcp_config()
        with _their_errors():
            return _to_theirs(await self._runtime.call_tool_mcp(ours))

    def get_mcp_config(self, extra_stdio_servers: Any = None) -> Any:
        """OpenHands' MCPConfig; programs inside the sandbox are reached by one more URL of this machine."""
        config = self.config.mcp.model_copy(deep=True)
        with _their_errors():
            servers = self._runtime.get_mcp_config(extra_stdio_servers)
            if servers.stdio_servers and self._bridge is None and self._runtime_initialized:
                self._bridge = MCPBridge(self._runtime.mcp_servers)
        if self._bridge is not None:
            config.shttp_servers.append(MCPSHTTPServerConfig(url=self._bridge.url, api_key=self._bridge.api_key))
        return config

    # ------------------------------------------------------------------------------------------------ files

    def add_env_vars(self, env_vars: dict[str, str]) -> None:
        with _their_errors():
            self._runtime.add_env_vars(env_vars)

    def copy_to(self, host_src: str, sandbox_dest: str, recursive: bool = False) -> None:
        with _their_errors():
            self._runtime.copy_to(host_src, sandbox_dest, recursive)

    def copy_from(self, path: str) -> Path:
        with _their_errors():
            return self._runtime.copy_from(path)

    def list_files(self, path: str | None = None) -> list[str]:
        with _their_errors():
            return self._runtime.list_files(path)

    def checkpoint(self, note: str = "") -> Checkpoint:
        """See atoll.runtime.E2BRuntime.checkpoint."""
        with _their_errors():
            return self._runtime.checkpoint(note)

    def get_working_directory(self) -> str:
        with _their_errors():
            return self._runtime.get_working_directory()


def _to_theirs(observation: Observation) -> Any:
    return _their_event(event_to_dict(observation))
