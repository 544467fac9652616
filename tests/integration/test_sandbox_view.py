"""What programs in a sandbox see of themselves and of the machine is the sandbox's, in every tier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox
from e2b_code_interpreter import Sandbox as CodeSandbox

from support.host import TOOLS, skip_without
from support.server import ServerProcess

VARIABLES = "E2B_SANDBOX", "E2B_SANDBOX_ID", "E2B_TEMPLATE_ID"


@pytest.fixture(scope="module", params=["namespaces", pytest.param("gvisor", marks=pytest.mark.slow)])
def options(
    request: pytest.FixtureRequest,
    templates_dir: Path,
    interpreter_template: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Any]]:
    """A server of that tier, as the SDK's arguments."""
    skip_without(request.param)
    running = ServerProcess.start(
        tmp_path_factory.mktemp(request.param) / "data",
        templates_dir=templates_dir,
        options=["--end-sandboxes", "--isolation", request.param],
        environ={"ATOLL_TOOLS_DIR": str(TOOLS), "ATOLL_GVISOR_READY": "1"},
    )
    yield {"api_key": running.api_key, "api_url": running.url, "sandbox_url": running.url}
    assert running.stop() == 0, running.log_tail()


@pytest.fixture(scope="module")
def sandbox(options: dict[str, Any]) -> Iterator[CodeSandbox]:
    """One for all that change nothing."""
    made = CodeSandbox.create(timeout=600, **options)
    yield made
    made.kill()


def test_commands_terminals_and_cells_know_their_sandbox(sandbox: CodeSandbox) -> None:
    ours = f"true {sandbox.sandbox_id} {sandbox.get_info().template_id}"
    words = " ".join(f"${name}" for name in VARIABLES)
    assert sandbox.commands.run(f"echo {words}").stdout.strip() == ours
    cell = sandbox.run_code(f"import os; print(*(os.environ[name] for name in {VARIABLES}))")
    assert "".join(cell.logs.stdout).strip() == ours
    heard: list[bytes] = []
    terminal = sandbox.pty.create(size=_size(), timeout=60)
    sandbox.pty.send_stdin(terminal.pid, f"echo {words}; exit\n".encode())
    terminal.wait(on_pty=heard.append)
    assert ours.encode() in b"".join(heard)


def test_files_say_the_same_as_the_variables(sandbox: CodeSandbox) -> None:
    for name in VARIABLES:
        assert sandbox.files.read(f"/run/e2b/.{name}") == sandbox.commands.run(f'printf %s "${name}"').stdout


def test_variables_of_the_user_come_before_the_sandboxes_own(options: dict[str, Any]) -> None:
    sandbox = Sandbox.create(timeout=120, envs={"E2B_TEMPLATE_ID": "mine"}, **options)
    try:
        assert sandbox.commands.run("echo $E2B_TEMPLATE_ID $E2B_SANDBOX").stdout.split() == ["mine", "true"]
        assert sandbox.commands.run("echo $E2B_SANDBOX", envs={"E2B_SANDBOX": "no"}).stdout.strip() == "no"
    finally:
        sandbox.kill()


def _size() -> Any:
    from e2b.sandbox.commands.command_handle import PtySize

    return PtySize(rows=24, cols=200)
