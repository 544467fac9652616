"""A small MCP server over standard streams, for tests to install: one tool whose answer says where it runs."""

import json
import os
import sys

NAME = os.environ.get("TOOL_NAME", "where")
TOOL = {
    "name": NAME,
    "description": "where it runs",
    "inputSchema": {"type": "object", "properties": {"word": {"type": "string"}}},
}


def answer(method, params):
    if method == "initialize":
        info = {"name": "where", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": info}
    if method == "tools/list":
        return {"tools": [TOOL]}
    if method == "tools/call":
        word = params.get("arguments", {}).get("word", "")
        if word == "end":
            os._exit(3)
        installed = os.path.exists("installed")
        text = f"{os.getcwd()} {os.environ.get('GIVEN', '-')} {installed} {word} {'GATEWAY_ACCESS_TOKEN' in os.environ}"
        return {"content": [{"type": "text", "text": text}]}
    return {}


def main():
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" in asked:
            found = {"jsonrpc": "2.0", "id": asked["id"], "result": answer(asked["method"], asked.get("params") or {})}
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
