# type: ignore
"""Runs inside the environment with OpenHands: its own functions drive our class; prints what was seen as JSON."""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from openhands.core.config import OpenHandsConfig
from openhands.core.config.llm_config import LLMConfig
from openhands.core.config.mcp_config import MCPConfig, MCPStdioServerConfig
from openhands.core.exceptions import AgentRuntimeDisconnectedError
from openhands.core.main import run_controller
from openhands.core.setup import create_runtime
from openhands.events import EventSource
from openhands.events.action import (
    BrowseURLAction,
    CmdRunAction,
    FileEditAction,
    FileReadAction,
    FileWriteAction,
    IPythonRunCellAction,
    NullAction,
)
from openhands.events.action.mcp import MCPAction
from openhands.events.serialization import event_to_dict
from openhands.mcp.utils import fetch_mcp_tools_from_config
from openhands.runtime import get_runtime_cls
from openhands.runtime.base import Runtime

NAME = "atoll.runtime.openhands.E2BRuntime"
STORE = tempfile.mkdtemp()
MCP_SERVER = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked: continue
    method = asked["method"]
    result = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}}
    if method == "tools/list":
        result = {"tools": [{"name": "greet", "description": "greets", "inputSchema": {"type": "object"}}]}
    elif method == "tools/call":
        result = {"content": [{"type": "text", "text": "hello " + asked["params"]["arguments"]["who"]}]}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


def config(**more):
    made = OpenHandsConfig(runtime=NAME, file_store="local", file_store_path=STORE, **more)
    made.set_llm_config(LLMConfig(model="openai/none", api_key="none", base_url="http://127.0.0.1:9"))
    return made


def actions() -> dict:
    seen = {"is_runtime": issubclass(get_runtime_cls(NAME), Runtime)}
    runtime = create_runtime(config(), sid="openhands-test")
    told = []
    runtime.status_callback = lambda level, status, message: told.append(status.name)
    asyncio.run(runtime.connect())
    with runtime:
        for name, action in {
            "run": CmdRunAction("echo out; echo err >&2; (exit 3)"),
            "cd": CmdRunAction("cd /tmp && export X=1"),
            "cd2": CmdRunAction("echo $PWD $X"),
            "cell": IPythonRunCellAction("print(1 + 1)"),
            "write": FileWriteAction("/workspace/a.txt", "one\ntwo"),
            "read": FileReadAction("/workspace/a.txt"),
            "edit": FileEditAction("/workspace/a.txt", command="str_replace", old_str="one", new_str="1"),
            "browse": BrowseURLAction("http://localhost"),
        }.items():
            seen[name] = event_to_dict(runtime.run_action(action))
        source = Path(STORE) / "tree"
        (source / "sub").mkdir(parents=True)
        (source / "sub" / ".hidden").write_text("x")
        runtime.copy_to(str(source), "/workspace", recursive=True)
        seen["files"] = runtime.list_files()
        seen["zip"] = runtime.copy_from("/workspace/tree").stat().st_size > 0
        runtime.run_action(CmdRunAction("cd /workspace && git init -q . && git add -A"))
        seen["changes"] = runtime.get_git_changes("/workspace")
        seen["setup"] = setup(runtime)
        attached = get_runtime_cls(NAME)(config(), None, None, sid="openhands-test", attach_to_existing=True)
        asyncio.run(attached.connect())
        seen["attached"] = attached.run_action(CmdRunAction("cat /workspace/a.txt")).content
        attached.close()
    runtime.close()
    seen["status"] = told
    lost = get_runtime_cls(NAME)(config(), None, None, sid="openhands-test", attach_to_existing=True)
    try:
        asyncio.run(lost.connect())
    except AgentRuntimeDisconnectedError as error:
        seen["lost"] = f"{type(error).__name__} {lost.runtime_status.name}"
    return seen


def setup(runtime) -> dict:
    """The set-up script, then an action that the event stream brings to the runtime after it."""
    stream = runtime.event_stream
    runtime.run_action(FileWriteAction("/workspace/.openhands/setup.sh", "echo ran | tee -a /tmp/ran\nexport SET=up\n"))
    runtime.run_action(CmdRunAction("cd /workspace"))
    runtime.maybe_run_setup_script()
    after = CmdRunAction("echo $SET $(cat /tmp/ran)")
    stream.add_event(after, EventSource.USER)
    deadline = time.monotonic() + 60
    while not any(event.cause == after.id for event in stream.search_events()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return {"events": [event_to_dict(event) for event in stream.search_events()]}


def tools() -> dict:
    servers = MCPConfig(stdio_servers=[MCPStdioServerConfig(name="s", command="python3", args=["/workspace/s.py"])])
    runtime = create_runtime(config(mcp=servers), sid="openhands-mcp")

    async def talk() -> dict:
        await runtime.connect()
        await asyncio.to_thread(runtime.run_action, FileWriteAction("/workspace/s.py", MCP_SERVER))
        offered = await fetch_mcp_tools_from_config(runtime.get_mcp_config())
        answer = await runtime.call_tool_mcp(MCPAction(name="greet", arguments={"who": "you"}))
        inside = runtime.run_action(MCPAction(name="greet", arguments={"who": "the loop"}))
        tools = [tool["function"]["name"] for tool in offered]
        return {"tools": tools, "answer": event_to_dict(answer), "inside": event_to_dict(inside)}

    try:
        found = asyncio.run(talk())
        outside = runtime.run_action(MCPAction(name="greet", arguments={"who": "nobody's loop"}))
        return {**found, "outside": event_to_dict(outside)}
    finally:
        runtime.close()


def replayed(trajectory: str) -> dict:
    """The recorded run through OpenHands' own controller and event stream."""
    made = config(replay_trajectory_path=trajectory, max_iterations=30)
    state = asyncio.run(run_controller(made, NullAction(), sid="openhands-replay", exit_on_message=True))
    return {
        "state": state.agent_state.value,
        "error": state.last_error,
        "events": [event_to_dict(event) for event in state.history],
    }


if __name__ == "__main__":
    print("\n" + json.dumps({"actions": actions(), "tools": tools(), "replay": replayed(os.environ["TRAJECTORY"])}))
    sys.stdout.flush()
    os._exit(0)  # OpenHands leaves threads that nobody waits for
