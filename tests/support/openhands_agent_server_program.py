# type: ignore
"""Runs inside the environment with the newer OpenHands SDK: its own agent server in a sandbox, by way of the edge.

Prints what was seen as JSON. The sandbox's template has this environment at DEBIAN_13 in it.
"""

import json
import os
import shlex
import tempfile
from pathlib import Path

import httpx

from atoll.runtime.workspace import E2BAgentServerWorkspace

TREE = os.environ["DEBIAN_13"]
PACKAGES = [str(path).replace("/opt/", f"{TREE}/opt/", 1) for path in Path("/opt").glob("*/lib/python3*/site-packages")]
PACKAGES.sort(reverse=True)  # "later" before "first"
START = (
    f"import runpy, sys; sys.path[:0] = {PACKAGES};"
    "runpy.run_module('openhands.agent_server', run_name='__main__', alter_sys=True)"
)
# Python of another Debian than the sandbox's own: with its own loader and libraries.
COMMAND = shlex.join(
    [
        *(f"{TREE}/lib64/ld-linux-x86-64.so.2", "--library-path", f"{TREE}/usr/lib/x86_64-linux-gnu"),
        *(f"{TREE}/usr/bin/python3", "-c", START, "--host", "0.0.0.0", "--port", "8000"),
    ]
)


def main() -> dict:
    seen = {}
    envs = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with E2BAgentServerWorkspace(
        template="agent-server", server_command=COMMAND, envs=envs, health_check_timeout=400
    ) as workspace:
        seen["info"] = workspace.get_server_info()
        seen["failing"] = workspace.execute_command("echo out; echo err >&2; pwd; exit 3").model_dump()
        seen["slow"] = workspace.execute_command("sleep 300", timeout=1).model_dump()
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "a", Path(folder) / "b"
            source.write_bytes(bytes(range(256)) * 1000)
            seen["up"] = workspace.file_upload(source, "/workspace/sub/a").success
            seen["down"] = workspace.file_download("/workspace/sub/a", target).success
            seen["same"] = source.read_bytes() == target.read_bytes()
        workspace.execute_command(
            "git init -q r && cd r && git config user.email a@b && git config user.name a && echo 1 > kept"
            " && git add . && git commit -qm 1 && echo 2 > kept && echo n > new"
        )
        seen["changes"] = [[change.status.value, str(change.path)] for change in workspace.git_changes("r")]
        seen["diff"] = workspace.git_diff("r/kept").model_dump()
        keyless = {name: value for name, value in workspace._headers.items() if "api-key" not in name.lower()}
        seen["keyless"] = httpx.get(f"{workspace.host}/api/bash/bash_events/search", headers=keyless).status_code
        same = E2BAgentServerWorkspace(
            template="agent-server", sandbox_id=workspace.sandbox_id, server_command="true", api_key=workspace.api_key
        )
        seen["again"] = same.execute_command("ls /workspace").stdout
        same.cleanup()
        seen["lives"] = workspace.execute_command("true").exit_code
    try:
        E2BAgentServerWorkspace(template="agent-server", server_command="echo no; exit 4", health_check_timeout=3)
    except Exception as error:
        seen["broken"] = str(error)
    return seen


if __name__ == "__main__":
    print("\n" + json.dumps(main()), flush=True)
    os._exit(0)
