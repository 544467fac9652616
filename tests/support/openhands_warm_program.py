# type: ignore
"""Runs inside the environment with the newer OpenHands SDK: workspaces on agent servers that waited started for them.

Prints what was seen as JSON. ROUNDS: how many workspaces to make, one after the other.
"""

import json
import os
import time

import httpx

from atoll.runtime.workspace import E2BAgentServerWorkspace

TEMPLATE = "agent-server-warm"


def main(rounds):
    seen = {"seconds": []}
    for _ in range(rounds):
        began = time.monotonic()
        with E2BAgentServerWorkspace(template=TEMPLATE, envs={"OF_THE_CALL": "yes"}) as workspace:
            seen["seconds"].append(round(time.monotonic() - began, 3))
            seen["info"] = workspace.get_server_info()
            seen["ran"] = workspace.execute_command("echo $OF_THE_CALL; pwd").model_dump()
            keyless = {name: value for name, value in workspace._headers.items() if "api-key" not in name.lower()}
            seen["keyless"] = httpx.get(f"{workspace.host}/api/bash/bash_events/search", headers=keyless).status_code
            same = E2BAgentServerWorkspace(
                template=TEMPLATE, sandbox_id=workspace.sandbox_id, api_key=workspace.api_key
            )
            seen["again"] = same.execute_command("pwd").stdout
            same.cleanup()
        time.sleep(float(os.environ.get("BETWEEN_S", "0")))
    return seen


if __name__ == "__main__":
    print("\n" + json.dumps(main(int(os.environ.get("ROUNDS", "1")))), flush=True)
    os._exit(0)
