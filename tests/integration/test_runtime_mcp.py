"""Tools of MCP servers: programs inside a real sandbox, and HTTP servers of both kinds that the test runs itself."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from atoll.runtime import (
    CmdRunAction,
    E2BRuntime,
    FileWriteAction,
    MCPAction,
    MCPConfig,
    MCPSHTTPServerConfig,
    MCPSSEServerConfig,
    MCPStdioServerConfig,
)
from atoll.runtime.config import RuntimeConfig
from atoll.runtime.events.observations import ErrorObservation, MCPObservation
from atoll.runtime.mcp.bridge import MCPBridge
from atoll.runtime.mcp.client import MCPServers
from support.tiers import every_tier, one_tier

pytestmark = one_tier("programs that the runtime starts by the SDK")

SERVER = r"""
import json, os, sys, time
count = 0
print("a greeting that is no message", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "method" not in asked or "id" not in asked:
        continue
    method, params = asked["method"], asked.get("params", {})
    answer = {"jsonrpc": "2.0", "id": asked["id"]}
    if method == "initialize":
        answer["result"] = {"protocolVersion": params["protocolVersion"], "capabilities": {}, "serverInfo": {}}
    elif method == "tools/list":
        # two pages, and a question in between
        print(json.dumps({"jsonrpc": "2.0", "id": "q", "method": "ping"}), flush=True)
        names = ["count", "fail", "refuse"] if not params.get("cursor") else ["where", "sleep", "die", "big"]
        answer["result"] = {"tools": [{"name": n, "inputSchema": {"type": "object"}} for n in names]}
        if not params.get("cursor"):
            answer["result"]["nextCursor"] = "2"
    else:
        tool, given = params["name"], params["arguments"]
        text = lambda t, **m: {"content": [{"type": "text", "text": t}], **m}
        if tool == "count":
            count += given.get("by", 1)
            answer["result"] = text(str(count))
        elif tool == "where":
            answer["result"] = text(" ".join([os.getcwd(), os.environ.get("COLOUR", ""), os.environ.get("USER", "")]))
        elif tool == "fail":
            answer["result"] = text("it failed", isError=True)
        elif tool == "refuse":
            answer["error"] = {"code": -32602, "message": "no such argument"}
        elif tool == "sleep":
            time.sleep(60)
        elif tool == "big":
            answer["result"] = text("x" * 3_000_000)
        elif tool == "die":
            print("out of memory", file=sys.stderr, flush=True)
            sys.exit(3)
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def runtime(server: Any) -> Iterator[E2BRuntime]:
    local = MCPStdioServerConfig("local", "python3", ["/workspace/s.py"], {"COLOUR": "red"})
    broken = MCPStdioServerConfig("broken", "no-such-program")
    config = RuntimeConfig(mcp=MCPConfig(stdio_servers=[local, broken]))
    with E2BRuntime(config) as made:
        made.run_action(FileWriteAction("/workspace/s.py", SERVER))
        yield made


def call(runtime: E2BRuntime, name: str, timeout: float | None = None, **arguments: Any) -> dict[str, Any]:
    found = runtime.run_action(MCPAction(name, arguments, timeout=timeout))
    assert isinstance(found, MCPObservation), found
    assert (found.name, found.arguments) == (name, arguments)
    result: dict[str, Any] = json.loads(found.content)
    return result


@every_tier
def test_a_program_in_the_sandbox_keeps_its_state_between_calls(runtime: E2BRuntime) -> None:
    assert call(runtime, "count", by=2) == {
        "meta": None,
        "content": [{"type": "text", "text": "2", "annotations": None, "meta": None}],
        "structuredContent": None,
        "isError": False,
    }
    assert call(runtime, "count")["content"][0]["text"] == "3"
    assert call(runtime, "where")["content"][0]["text"] == "/workspace red user"
    assert len(call(runtime, "big")["content"][0]["text"]) == 3_000_000


def test_what_goes_wrong_at_a_server_is_an_observation_and_the_next_call_works(runtime: E2BRuntime) -> None:
    assert call(runtime, "fail")["isError"] is True
    assert call(runtime, "refuse") == {"isError": True, "error": "no such argument", "content": []}
    assert call(runtime, "sleep", timeout=1)["error"] == 'Tool "sleep" timed out after 1 seconds'
    assert "out of memory" in call(runtime, "die")["error"]
    assert call(runtime, "count")["content"][0]["text"] == "1"
    unknown = runtime.run_action(MCPAction("nothing", {}))
    assert isinstance(unknown, ErrorObservation)
    assert unknown.content.startswith("No matching MCP agent found for tool name: nothing\nbroken: ")
    assert "no-such-program" in unknown.content


def test_the_configuration_has_the_three_lists_and_takes_more_servers(runtime: E2BRuntime) -> None:
    more = MCPStdioServerConfig("more", "python3", ["/workspace/s.py"])
    config = runtime.get_mcp_config([more])
    assert [one.name for one in config.stdio_servers] == ["local", "broken", "more"]
    assert (list(config.sse_servers), list(config.shttp_servers)) == ([], [])
    assert call(runtime, "more_count", by=5)["content"][0]["text"] == "5"
    assert call(runtime, "count")["content"][0]["text"] == "1"


def test_a_runtime_that_ends_takes_its_programs_with_it_and_one_without_servers_says_so(server: Any) -> None:
    with E2BRuntime() as bare:
        found = bare.run_action(MCPAction("x", {}))
        assert isinstance(found, ErrorObservation)
        assert found.content == "No MCP clients found"
        bare.run_action(FileWriteAction("/workspace/s.py", SERVER))
        bare.get_mcp_config([MCPStdioServerConfig("s", "python3", ["/workspace/s.py"])])
        assert call(bare, "count")["content"][0]["text"] == "1"
        bare.mcp_servers.close()
        left = bare.run_action(CmdRunAction("pgrep -fc '[s].py'"))
        assert left.content == "0"


def test_clients_of_this_machine_reach_the_sandboxs_tools_by_url_and_key(runtime: E2BRuntime) -> None:
    servers = runtime.mcp_servers
    bridge = MCPBridge(servers)
    try:
        assert httpx.post(bridge.url, json={"method": "ping", "id": 1}).status_code == 401
        outside = MCPServers(runtime.sandbox, "/workspace", "sid", dict)
        outside.use(MCPConfig(shttp_servers=[MCPSHTTPServerConfig(bridge.url, bridge.api_key)]))
        assert {"count", "where"} <= set(outside.tools())
        found = outside.call(MCPAction("count", {"by": 4}))
        assert json.loads(found.content)["content"][0]["text"] == "4"
        refused = outside.call(MCPAction("refuse", {}))
        assert json.loads(refused.content)["error"] == "no such argument"
        outside.close()
    finally:
        bridge.close()


class Elsewhere(BaseHTTPRequestHandler):
    """Both kinds of HTTP server: /mcp streams or answers at once, /sse is the older one."""

    protocol_version = "HTTP/1.1"
    streams: queue.SimpleQueue[str]
    seen: list[str]

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append(self.headers.get("authorization", ""))
        answer = {"jsonrpc": "2.0", "id": asked.get("id"), "result": self._result(asked)}
        if self.path == "/messages":
            self._send(202, "", "")
            if "id" in asked:
                self.streams.put(json.dumps(answer))
        elif "id" not in asked:
            self._send(202, "", "")
        elif asked["method"] == "initialize":
            self._send(200, "application/json", json.dumps(answer))
        elif self.headers.get("mcp-session-id") != "S1":
            self._send(404, "", "")
        else:
            note = json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": {}})
            self._send(200, "text/event-stream", f"data: {note}\n\nevent: message\ndata: {json.dumps(answer)}\n\n")

    def _result(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["method"] == "tools/list":
            return {"tools": [{"name": "far", "inputSchema": {}}]}
        if asked["method"] == "tools/call":
            return {"content": [{"type": "text", "text": f"far {asked['params']['arguments']['x']}"}]}
        return {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "e"}}

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"event: endpoint\ndata: /messages\n\n")
        while True:
            self.wfile.write(f"event: message\ndata: {self.streams.get()}\n\n".encode())
            self.wfile.flush()

    def do_DELETE(self) -> None:
        self._send(200, "", "")

    def _send(self, status: int, kind: str, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Mcp-Session-Id", "S1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, type[Elsewhere]]]:
    handler = type("Handler", (Elsewhere,), {"streams": queue.SimpleQueue(), "seen": []})
    served = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    served.daemon_threads = True
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_address[1]}", handler
    served.shutdown()
    served.server_close()


def test_servers_elsewhere_are_called_over_both_kinds_of_http(
    server: Any, elsewhere: tuple[str, type[Elsewhere]]
) -> None:
    url, handler = elsewhere
    for config in (
        MCPConfig(shttp_servers=[MCPSHTTPServerConfig(f"{url}/mcp", "k1")]),
        MCPConfig(sse_servers=[MCPSSEServerConfig(f"{url}/sse", "k1")]),
    ):
        with E2BRuntime(RuntimeConfig(mcp=config)) as runtime:
            assert call(runtime, "far", x=3)["content"][0]["text"] == "far 3"
        assert set(handler.seen) == {"Bearer k1"}


def test_a_server_that_is_not_there_is_named_with_its_reason(server: Any) -> None:
    config = MCPConfig(sse_servers=[MCPSSEServerConfig("http://127.0.0.1:9/sse")])
    with E2BRuntime(RuntimeConfig(mcp=config)) as runtime:
        found = runtime.run_action(MCPAction("far", {}))
        assert isinstance(found, ErrorObservation)
        assert "http://127.0.0.1:9/sse: " in found.content


async def test_a_tool_is_called_from_within_a_running_event_loop_as_well(server: Any) -> None:
    local = MCPStdioServerConfig("local", "python3", ["/workspace/s.py"])
    runtime = E2BRuntime(RuntimeConfig(mcp=MCPConfig(stdio_servers=[local])))
    try:
        await runtime.connect()
        runtime.run_action(FileWriteAction("/workspace/s.py", SERVER))
        action = MCPAction("count", {"by": 2})
        found = [
            runtime.run_action(action),
            await runtime.call_tool_mcp(action),
            await asyncio.to_thread(runtime.run_action, action),
        ]
    finally:
        runtime.close()
    assert [json.loads(each.content)["content"][0]["text"] for each in found] == ["2", "4", "6"]
