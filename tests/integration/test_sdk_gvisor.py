"""The published SDK against a server whose sandboxes run in gVisor: one sandbox, everything a user does first."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2b import CommandExitException, Sandbox
from e2b.exceptions import SandboxException
from e2b.sandbox.commands.command_handle import PtySize
from e2b_code_interpreter import Sandbox as CodeSandbox
from sdk_support import LEAVE_AFTER_S, ask_and_leave, eventually

from support.host import TOOLS, skip_without
from support.server import ServerProcess

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gvisor(
    templates_dir: Path, interpreter_template: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server of its own; the SDK's settings are given with each call, so that no other test sees it."""
    skip_without("gvisor")
    running = ServerProcess.start(
        tmp_path_factory.mktemp("gvisor") / "data",
        templates_dir=templates_dir,
        options=["--end-sandboxes", "--isolation", "gvisor"],
        environ={"ATOLL_TOOLS_DIR": str(TOOLS), "ATOLL_GVISOR_READY": "1"},
    )
    yield running
    assert running.stop() == 0, running.log_tail()


def _options(server: ServerProcess) -> dict[str, str]:
    return {"api_key": server.api_key, "api_url": server.url, "sandbox_url": server.url}


def test_commands_files_and_terminals_work(gvisor: ServerProcess) -> None:
    sandbox = Sandbox.create(timeout=300, **_options(gvisor))
    try:
        assert sandbox.commands.run("uname -r").stdout.strip() == "4.4.0", "not the host's kernel"
        assert sandbox.commands.run("sudo id -u").stdout.strip() == "0"
        sandbox.files.write("/home/user/note.txt", "hällo")
        assert sandbox.files.read("/home/user/note.txt") == "hällo"
        assert [entry.name for entry in sandbox.files.list("/home/user")].count("note.txt") == 1
        heard: list[bytes] = []
        terminal = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=60)
        sandbox.pty.send_stdin(terminal.pid, b"echo $((6*7)); exit\n")
        terminal.wait(on_pty=heard.append)
        assert b"42" in b"".join(heard)
    finally:
        sandbox.kill()


def test_the_interpreter_keeps_state(gvisor: ServerProcess) -> None:
    sandbox = CodeSandbox.create(timeout=300, **_options(gvisor))
    try:
        sandbox.run_code("x = 20")
        assert sandbox.run_code("x + 1").text == "21"
    finally:
        sandbox.kill()


def test_clients_that_leave_during_a_create_leave_no_sandbox(gvisor: ServerProcess) -> None:
    def listed() -> set[str]:
        return {one.sandbox_id for one in Sandbox.list(**_options(gvisor)).next_items()}

    before = listed()
    answered = {ask_and_leave(gvisor, after_s) for after_s in LEAVE_AFTER_S}
    assert None in answered, "no client left before it had its answer"
    answered -= {None}
    eventually(lambda: listed() - before == answered, what="none but those whose makers know of them", within_s=60)
    for sandbox_id in answered:
        Sandbox.kill(str(sandbox_id), **_options(gvisor))


def test_every_answer_names_the_tier(gvisor: ServerProcess) -> None:
    sandbox = Sandbox.create(timeout=120, metadata={"atoll.tier": "gvisor"}, **_options(gvisor))
    try:
        request = urllib.request.Request(
            f"{gvisor.url}/sandboxes/{sandbox.sandbox_id}", headers={"X-API-Key": gvisor.api_key}
        )
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["tier"] == "gvisor"
    finally:
        sandbox.kill()


def test_no_weaker_wall_can_be_asked_for(gvisor: ServerProcess) -> None:
    with pytest.raises(SandboxException, match="no weaker wall"):
        Sandbox.create(timeout=120, metadata={"atoll.tier": "namespaces"}, **_options(gvisor))


HOG = "import os\nprint(os.getpid(), flush=True)\nkept = []\nwhile True:\n    kept.append(b'x' * (8 << 20))\n"


def _get(server: ServerProcess, path: str) -> Any:
    request = urllib.request.Request(f"{server.url}{path}", headers={"X-API-Key": server.api_key})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_the_process_that_took_all_memory_is_named_and_the_sandbox_lives_on(gvisor: ServerProcess) -> None:
    sandbox = Sandbox.create(timeout=300, metadata={"atoll.memory": "256"}, **_options(gvisor))
    try:
        bystander = sandbox.commands.run("sleep 600", background=True)
        sandbox.files.write("hog.py", HOG)
        with pytest.raises(CommandExitException) as ended:
            sandbox.commands.run("exec python3 hog.py", timeout=120)
        pid = int(ended.value.stdout)
        assert sandbox.commands.run("echo alive").stdout == "alive\n"
        assert bystander.pid in [one.pid for one in sandbox.commands.list()]

        def told() -> list[Any]:
            events = _get(gvisor, f"/events/sandboxes/{sandbox.sandbox_id}")
            return [one for one in events if one["type"] == "sandbox.lifecycle.out_of_memory"]

        first = eventually(told, what="an event")[0]["eventData"]["process"]
        assert (first["name"], first["pid"]) == ("python3", pid)
        assert first["memory_mb"] > 100

        def logged() -> list[Any]:
            logs = _get(gvisor, f"/v2/sandboxes/{sandbox.sandbox_id}/logs")["logs"]
            return [one for one in logs if one["fields"].get("event_type") == "oom_kill"]

        assert eventually(logged, what="a line of the log")[0]["fields"]["pid"] == str(pid)
    finally:
        sandbox.kill()


def test_low_ports_can_be_served(gvisor: ServerProcess) -> None:
    sandbox = Sandbox.create(timeout=300, **_options(gvisor))
    try:
        sandbox.commands.run("python3 -m http.server 80", background=True, user="root", cwd="/etc")
        command = "curl -s --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1/hostname"
        assert sandbox.commands.run(command, timeout=60).stdout.strip()
    finally:
        sandbox.kill()
