"""A process that the kernel ended because memory ran out: its sandbox says which one, in its log and as an event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import CommandExitException, Sandbox
from sdk_support import eventually

# The eater stays a zombie until its parent ends, so that its number inside can be looked up however late.
EATER = (
    "import os, sys, time\n"
    "pid = os.fork()\n"
    "if pid == 0:\n"
    "    open('/proc/self/comm', 'w').write('eater)') and None\n"
    "    hoard = []\n"
    "    while True: hoard.append(bytearray(os.urandom(1) * (16 << 20)))\n"
    "print(pid, flush=True)\n"
    "os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)\n"
    "time.sleep(4)\n"
)
BEYOND_MB = {"namespaces": 0, "gvisor": 256}


def _get(server: Any, path: str, **query: Any) -> Any:
    response = httpx.get(f"{server.url}{path}", params=query, headers={"X-API-Key": server.api_key}, timeout=30)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture
def kernel_log_is_readable(tier: str) -> None:
    """Where the name is found in the namespaces tier."""
    if tier != "namespaces":
        return
    try:
        with Path("/dev/kmsg").open("rb"):
            return
    except OSError as error:
        pytest.skip(f"the kernel's log cannot be read here: {error}")


def _of_kind(server: Any, sandbox: Sandbox, kind: str) -> list[dict[str, Any]]:
    events = _get(server, f"/events/sandboxes/{sandbox.sandbox_id}", orderAsc="true")
    return [one for one in events if one["type"] == kind]


def test_which_process_died_is_told_as_an_event_and_in_the_log(
    server: Any, sandbox: Sandbox, kernel_log_is_readable: None, tier: str
) -> None:
    bystander = sandbox.commands.run("sleep 600", background=True)
    sandbox.files.write("eater.py", EATER)
    ran = sandbox.commands.run("python3 eater.py", timeout=120)
    eater = int(ran.stdout)
    found = eventually(
        lambda: _of_kind(server, sandbox, "sandbox.lifecycle.out_of_memory"), what="an event of the end", within_s=30
    )
    assert len(found) == 1
    process = found[0]["eventData"]["process"]
    total_mb = sandbox.get_info().memory_mb
    assert process["name"] == "eater)"
    assert process["pid"] == eater
    assert total_mb // 2 < process["memory_mb"] <= total_mb + BEYOND_MB[tier]

    def told() -> list[dict[str, Any]]:
        logs = _get(server, f"/v2/sandboxes/{sandbox.sandbox_id}/logs")["logs"]
        return [one for one in logs if one["fields"].get("event_type") == "oom_kill"]

    (entry,) = eventually(told, what="a line of the log")
    assert entry["level"] == "error"
    assert entry["fields"]["process"] == "eater)"
    assert entry["fields"]["pid"] == str(eater)
    assert f"the kernel ended eater) (process {eater})" in entry["message"]
    assert sandbox.commands.run("echo alive").stdout == "alive\n"
    assert bystander.pid in [one.pid for one in sandbox.commands.list()]


def test_a_kill_by_a_signal_is_not_taken_for_it(server: Any, sandbox: Sandbox) -> None:
    with pytest.raises(CommandExitException):
        sandbox.commands.run("sh -c 'kill -9 $$'")
    sandbox.get_metrics()
    sandbox.get_metrics()
    assert _of_kind(server, sandbox, "sandbox.lifecycle.out_of_memory") == []
