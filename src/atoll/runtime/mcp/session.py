"""One conversation with an MCP server: the greeting, its tools, calls. Knows the messages, not how they travel."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from atoll.runtime.mcp.transports import MCPUnreachable, Message, Transport

PROTOCOL = "2025-06-18"
GREETING_S = 60.0
MAX_PAGES = 100
_METHOD_NOT_FOUND = -32601


class MCPError(Exception):
    """The server refused a request; the text is its own."""


class MCPSession:
    """Raises MCPUnreachable, MCPTimeout (the transport's), MCPError from every call."""

    def __init__(self, transport: Transport, *, greeting_s: float = GREETING_S) -> None:
        self._transport = transport
        self._numbers = itertools.count(1)
        self._greeting_s = greeting_s
        self.tools: dict[str, dict[str, Any]] = {}
        try:
            self._greet()
        except BaseException:
            self.close()
            raise

    def _greet(self) -> None:
        offer = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": {"name": "atoll", "version": "1"}}
        self._request("initialize", offer, self._greeting_s)
        for _ in self._transport.exchange({"jsonrpc": "2.0", "method": "notifications/initialized"}, self._greeting_s):
            pass
        self.tools = self._list_tools()

    def _list_tools(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        params: dict[str, Any] = {}
        for _ in range(MAX_PAGES):
            page = self._request("tools/list", params, self._greeting_s)
            found |= {str(tool["name"]): tool for tool in page.get("tools", ()) if "name" in tool}
            if not page.get("nextCursor"):
                break
            params = {"cursor": page["nextCursor"]}
        return found

    def call(self, tool: str, arguments: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The tool's result as the protocol has it: `content`, `isError`, …"""
        return self._request("tools/call", {"name": tool, "arguments": dict(arguments)}, timeout_s)

    def close(self) -> None:
        self._transport.close()

    def _request(self, method: str, params: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        number = next(self._numbers)
        message: Message = {"jsonrpc": "2.0", "id": number, "method": method, "params": dict(params)}
        for received in self._transport.exchange(message, timeout_s):
            if "method" in received:
                self._answer(received)
            elif received.get("id") == number:
                return _result(received)
        raise MCPUnreachable("the server did not answer")

    def _answer(self, asked: Message) -> None:
        """The server may ask whether we live; nothing else is offered to it."""
        if "id" not in asked:
            return
        answer: Message = {"jsonrpc": "2.0", "id": asked["id"]}
        if asked["method"] == "ping":
            answer["result"] = {}
        else:
            answer["error"] = {"code": _METHOD_NOT_FOUND, "message": f"{asked['method']} is not offered"}
        for _ in self._transport.exchange(answer, self._greeting_s):
            pass


def _result(received: Message) -> dict[str, Any]:
    if "error" in received:
        error = received["error"]
        raise MCPError(str(error.get("message", error)) if isinstance(error, dict) else str(error))
    result = received.get("result")
    return result if isinstance(result, dict) else {}
