# type: ignore
"""Runs inside the environment with the newer OpenHands SDK: both kinds of workspace; prints what was seen as JSON."""

import json
import os
import shlex
import tempfile
from pathlib import Path

from openhands.sdk.workspace import BaseWorkspace, RemoteWorkspace

from atoll.runtime.workspace import E2BAgentServerWorkspace, E2BWorkspace

# Stands in for the agent server, which needs a template of its own: the same address, key and health check.
SERVER = """
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers.get("X-Session-API-Key") == os.environ["OH_SESSION_API_KEYS_0"]
        body = json.dumps({"path": self.path, "known": known, "cwd": os.getcwd()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""


def light() -> dict:
    seen = {}
    with E2BWorkspace() as workspace:
        seen["is_workspace"] = isinstance(workspace, BaseWorkspace)
        seen["failing"] = workspace.execute_command("echo out; echo err >&2; exit 3").model_dump()
        seen["slow"] = workspace.execute_command("echo begun; sleep 30", timeout=1).model_dump()
        seen["cwd"] = workspace.execute_command("pwd", cwd="/tmp").stdout
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "a"
            source.write_bytes(bytes(range(256)) * 100)
            seen["up"] = workspace.file_upload(source, "b/a").success
            seen["down"] = workspace.file_download("b/a", Path(folder) / "new" / "c").file_size
            seen["same"] = (Path(folder) / "new" / "c").read_bytes() == source.read_bytes()
            seen["none"] = workspace.file_download("b/none", Path(folder) / "d").success
        workspace.execute_command(
            "git init -q r && cd r && git config user.email a@b && git config user.name a"
            " && echo 1 > kept && echo 1 > gone && git add . && git commit -qm 1"
            " && echo 2 > kept && rm gone && echo n > 'new file'"
        )
        changes = workspace.git_changes("r")
        seen["changes"] = [[change.status.value, str(change.path)] for change in changes]
        seen["diff"] = workspace.git_diff("r/kept").model_dump()
        seen["new"] = workspace.git_diff("r/new file").model_dump()
        try:
            workspace.git_changes("b")
            seen["no_repository"] = ""
        except Exception as error:
            seen["no_repository"] = type(error).__name__
    return seen


def remote() -> dict:
    command = shlex.join(["python3", "-c", SERVER])
    with E2BAgentServerWorkspace(server_command=command, health_check_timeout=60) as workspace:
        found = workspace.client.get("/api/x", headers=workspace._headers).json()
        return {"is_remote": isinstance(workspace, RemoteWorkspace), **found}


if __name__ == "__main__":
    print("\n" + json.dumps({"light": light(), "remote": remote()}), flush=True)
    os._exit(0)
