"""`call_tool_mcp`: the tools of MCP servers, programs inside the sandbox as well as servers elsewhere.

Owns which servers there are, their sessions (kept from call to call, so that a server may have a state), and the
observation. A server that fails is left out, with its reason in the text of a call that finds no tool.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from atoll.runtime.events.actions import MCPAction
from atoll.runtime.events.base import Observation
from atoll.runtime.events.observations import ErrorObservation, MCPObservation
from atoll.runtime.mcp.session import MCPError, MCPSession
from atoll.runtime.mcp.transports import (
    MCPTimeout,
    MCPUnreachable,
    SSETransport,
    StdioTransport,
    StreamableHTTPTransport,
    Transport,
    stdio_line,
)
from atoll.runtime.sandbox.box import E2BBox

DEFAULT_CALL_S = 120.0


@dataclass
class Server:
    """One server: how to reach it, and its session once there is one."""

    name: str
    key: tuple[Any, ...]
    connect: Callable[[], Transport]
    call_s: float | None = None
    inside: bool = False
    session: MCPSession | None = None
    problem: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


class MCPServers:
    """The servers of one runtime. Thread-safe. Raises AgentRuntimeDisconnectedError when the sandbox is lost."""

    def __init__(self, box: E2BBox, workspace: str, sid: str, envs: Callable[[], Mapping[str, str]]) -> None:
        self._box = box
        self._workspace = workspace
        self._sid = sid
        self._envs = envs
        self._servers: list[Server] = []
        self._changing = threading.Lock()

    def use(self, config: Any) -> None:
        """Adds servers of a configuration that are not there yet; those that are stay, with their sessions."""
        configured = [self._stdio(one) for one in getattr(config, "stdio_servers", ())]
        configured += [self._http(one, "sse") for one in getattr(config, "sse_servers", ())]
        configured += [self._http(one, "http") for one in getattr(config, "shttp_servers", ())]
        with self._changing:
            known = {server.key for server in self._servers}
            self._servers += [server for server in configured if server.key not in known]

    def tools(self, *, inside_only: bool = False) -> dict[str, tuple[Server, dict[str, Any]]]:
        """Tool name → server and description. A name that two servers have is `<server>_<name>` for the second."""
        found: dict[str, tuple[Server, dict[str, Any]]] = {}
        for server in list(self._servers):
            if inside_only and not server.inside:
                continue
            session = self._session(server)
            for name, tool in (session.tools if session else {}).items():
                found[name if name not in found else f"{server.name}_{name}"] = (server, tool)
        return found

    def call(self, action: MCPAction) -> Observation:
        """Everything that goes wrong at the server is an observation."""
        if not self._servers:
            return ErrorObservation("No MCP clients found")
        found = self.tools().get(action.name)
        if found is None:
            problems = "".join(f"\n{server.name}: {server.problem}" for server in self._servers if server.problem)
            return ErrorObservation(f"No matching MCP agent found for tool name: {action.name}{problems}")
        server, tool = found
        seconds = server.call_s or action.timeout or DEFAULT_CALL_S
        try:
            result = call_result(self.invoke(server, str(tool["name"]), action.arguments, seconds))
        except MCPTimeout:
            error = f'Tool "{action.name}" timed out after {seconds:g} seconds'
            result = {"isError": True, "error": error, "content": []}
        except (MCPError, MCPUnreachable) as failed:
            result = {"isError": True, "error": str(failed), "content": []}
        return MCPObservation(json.dumps(result), name=action.name, arguments=action.arguments)

    def invoke(self, server: Server, tool: str, arguments: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Raises MCPTimeout, MCPError, MCPUnreachable; after the last the next use begins a new session."""
        session = self._session(server)
        if session is None:
            raise MCPUnreachable(server.problem)
        with server.lock:
            try:
                return session.call(tool, arguments, seconds)
            except (MCPUnreachable, MCPTimeout):
                # After a time-out the late answer would be taken for the next one's on a shared line.
                session.close()
                server.session = None
                raise

    def close(self) -> None:
        """Ends the sessions, and the programs that belong to them."""
        with self._changing:
            servers, self._servers = self._servers, []
        for server in servers:
            if server.session is not None:
                server.session.close()

    # ------------------------------------------------------------------------------------------------ within

    def _session(self, server: Server) -> MCPSession | None:
        with server.lock:
            if server.session is None:
                try:
                    server.session = MCPSession(server.connect())
                    server.problem = ""
                except MCPTimeout:
                    server.problem = "it did not answer in time"
                except (MCPUnreachable, MCPError) as error:
                    server.problem = str(error)
            return server.session

    def _stdio(self, one: Any) -> Server:
        args, env = tuple(one.args or ()), dict(one.env or {})
        line = stdio_line(one.command, args)
        return Server(
            name=str(one.name),
            key=("stdio", one.name, one.command, args, tuple(sorted(env.items()))),
            connect=lambda: StdioTransport(self._box, line, envs={**self._envs(), **env}, cwd=self._workspace),
            inside=True,
        )

    def _http(self, one: Any, kind: str) -> Server:
        secret = getattr(one.api_key, "get_secret_value", lambda: one.api_key)()
        headers = {"X-OpenHands-ServerConversation-ID": self._sid}
        if secret:
            headers |= {"Authorization": f"Bearer {secret}", "s": secret, "X-Session-API-Key": secret}
        return Server(
            name=str(one.url),
            key=(kind, one.url, secret),
            connect=lambda: _http_transport(kind, str(one.url), headers),
            call_s=float(one.timeout) if getattr(one, "timeout", None) else None,
        )


def _http_transport(kind: str, url: str, headers: Mapping[str, str]) -> Transport:
    return SSETransport(url, headers) if kind == "sse" else StreamableHTTPTransport(url, headers)


def call_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's result with all the fields that OpenHands writes down, those that are not there as null."""
    contents: Iterable[Any] = result.get("content") or ()
    filled = [{**one, "annotations": one.get("annotations"), "meta": one.get("_meta")} for one in contents]
    for one in filled:
        one.pop("_meta", None)
    return {
        "meta": result.get("_meta"),
        "content": filled,
        "structuredContent": result.get("structuredContent"),
        "isError": bool(result.get("isError", False)),
    }
