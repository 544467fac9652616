"""Servers inside the sandbox, offered to MCP clients of this machine: OpenHands asks a URL for its tools.

Owns a small HTTP server on the loopback interface that speaks streamable HTTP, guarded by a key of its own, and hands
tool calls to the sandbox. It lives as long as its runtime.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from atoll.runtime.errors import AgentRuntimeError
from atoll.runtime.mcp.client import DEFAULT_CALL_S, MCPServers
from atoll.runtime.mcp.session import PROTOCOL, MCPError
from atoll.runtime.mcp.transports import MCPTimeout, MCPUnreachable

MAX_REQUEST = 16 * 2**20


class MCPBridge:
    """Serves the tools of `servers` that run inside the sandbox at `url`, to clients with `api_key`."""

    def __init__(self, servers: MCPServers) -> None:
        self.api_key = secrets.token_urlsafe(24)
        bridge, key = self, self.api_key

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                size = int(self.headers.get("content-length") or 0)
                given = self.headers.get("authorization", "").removeprefix("Bearer ")
                if not hmac.compare_digest(given.encode(), key.encode()):
                    self._send(401, {"error": "the key is wrong"})
                elif not 0 < size <= MAX_REQUEST:
                    self.close_connection = True
                    self._send(413, {"error": f"a request has between 1 and {MAX_REQUEST} bytes"})
                else:
                    self._send(*bridge.answer(self.rfile.read(size)))

            def do_GET(self) -> None:
                self._send(405, {"error": "there is no stream of events"})

            do_DELETE = do_GET

            def _send(self, status: int, body: dict[str, Any] | None) -> None:
                data = b"" if body is None else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Silent: requests hold arguments of tools."""

        self._servers = servers
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/mcp"
        threading.Thread(target=self._server.serve_forever, name="atoll-mcp-bridge", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, raw: bytes) -> tuple[int, dict[str, Any] | None]:
        """Status and body for one message."""
        try:
            message = json.loads(raw)
            method, number = message["method"], message.get("id")
        except (ValueError, KeyError, TypeError, RecursionError):
            return 400, {"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "not a message"}}
        if number is None:
            return 202, None
        head = {"jsonrpc": "2.0", "id": number}
        try:
            return 200, {**head, "result": self._result(method, message.get("params") or {})}
        except LookupError as error:
            return 200, {**head, "error": {"code": -32601, "message": str(error.args[0])}}
        except MCPTimeout:
            return 200, {**head, "error": {"code": -32001, "message": "the tool did not answer in time"}}
        except (MCPError, MCPUnreachable, AgentRuntimeError) as error:
            return 200, {**head, "error": {"code": -32000, "message": str(error)}}

    def _result(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "initialize":
            return {
                "protocolVersion": params.get("protocolVersion", PROTOCOL),
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "atoll", "version": "1"},
            }
        if method == "ping":
            return {}
        tools = self._servers.tools(inside_only=True)
        if method == "tools/list":
            return {"tools": [{**tool, "name": name} for name, (_, tool) in tools.items()]}
        if method == "tools/call":
            if params.get("name") not in tools:
                raise LookupError(f"there is no tool {params.get('name')!r}")
            server, tool = tools[params["name"]]
            return self._servers.invoke(server, str(tool["name"]), params.get("arguments") or {}, DEFAULT_CALL_S)
        raise LookupError(f"{method} is not offered")
