# ruff: noqa: E501 (the texts that agents know stand here whole)
"""The agent runtime on a real server: the editor's texts, long output, replays, the embedded platform."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from atoll.runtime import (
    AgentFinishAction,
    AgentThinkAction,
    CmdOutputObservation,
    CmdRunAction,
    E2BRuntime,
    EmbeddedPlatform,
    ErrorObservation,
    FileEditAction,
    FileReadAction,
    FileReadSource,
    FileWriteAction,
    NullObservation,
    Observation,
    Step,
    TaskTrackingAction,
    load_run,
    replay,
)
from atoll.runtime.events.actions import UnknownAction
from atoll.runtime.events.base import Action, ActionConfirmationStatus
from atoll.runtime.replay import Outcome
from support.host import skip_without
from support.tiers import one_tier

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "create-and-serve.json"
TRAJECTORIES = REPOSITORY.parent / "shared" / "trajectories"


@pytest.fixture
def runtime(server: Any) -> Iterator[E2BRuntime]:
    with E2BRuntime(soft_timeout_s=1.0) as made:
        yield made


def run(runtime: E2BRuntime, command: str, **more: Any) -> CmdOutputObservation:
    found = runtime.run_action(CmdRunAction(command, **more))
    assert isinstance(found, CmdOutputObservation), found
    return found


# ---------------------------------------------------------------------------------------------------------- editor


def edit(runtime: E2BRuntime, path: str, command: str, **more: Any) -> str:
    return runtime.run_action(FileEditAction(path, command=command, **more)).content


def view(runtime: E2BRuntime, path: str, view_range: list[int] | None = None) -> str:
    return runtime.run_action(FileReadAction(path, impl_source=FileReadSource.OH_ACI, view_range=view_range)).content


def test_the_editors_refusals_have_the_texts_agents_know(runtime: E2BRuntime) -> None:
    run(
        runtime,
        "mkdir d; printf 'a\\nb\\nc\\n' > f; head -c 50 /dev/zero > zeros; touch x.pdf; head -c 11000000 /dev/zero > big",
    )
    f = "/workspace/f"
    cases = [
        (
            edit(runtime, f, "create", file_text="x"),
            f"Invalid `path` parameter: {f}. File already exists at: {f}. Cannot overwrite files using command `create`.",
        ),
        (edit(runtime, "/workspace/n", "create"), "Parameter `file_text` is required for command: create."),
        (
            edit(runtime, "f", "str_replace", old_str="a"),
            "Invalid `path` parameter: f. The path should be an absolute path, starting with `/`. Maybe you meant /workspace/f?",
        ),
        (
            edit(runtime, "none", "str_replace", old_str="a"),
            "Invalid `path` parameter: none. The path should be an absolute path, starting with `/`.",
        ),
        (
            edit(runtime, "/none", "str_replace", old_str="a"),
            "Invalid `path` parameter: /none. The path /none does not exist. Please provide a valid path.",
        ),
        (
            edit(runtime, "/workspace/d", "insert"),
            "Invalid `path` parameter: /workspace/d. The path /workspace/d is a directory and only the `view` command can be used on directories.",
        ),
        (
            edit(runtime, "/workspace/x.pdf", "insert"),
            "Invalid `path` parameter: /workspace/x.pdf. The path /workspace/x.pdf points to a binary file (.pdf) and only the `view` command can be used on supported binary files.",
        ),
        (edit(runtime, f, "str_replace"), "Parameter `old_str` is required for command: str_replace."),
        (
            edit(runtime, f, "str_replace", old_str="a", new_str="a"),
            "Invalid `new_str` parameter: a. No replacement was performed. `new_str` and `old_str` must be different.",
        ),
        (
            edit(runtime, f, "str_replace", old_str="zz"),
            f"No replacement was performed, old_str `zz` did not appear verbatim in {f}.",
        ),
        (edit(runtime, f, "insert", new_str="x"), "Parameter `insert_line` is required for command: insert."),
        (edit(runtime, f, "insert", insert_line=1), "Parameter `new_str` is required for command: insert."),
        (
            edit(runtime, f, "insert", insert_line=9, new_str="x"),
            "Invalid `insert_line` parameter: 9. It should be within the range of allowed values: [0, 3]",
        ),
        (edit(runtime, f, "undo_edit"), f"No edit history found for {f}."),
        (
            edit(runtime, f, "shuffle"),
            "Unrecognized command shuffle. The allowed commands for the oh_editor tool are: view, create, str_replace, insert, undo_edit",
        ),
        (
            view(runtime, f, [0, 2]),
            "Invalid `view_range` parameter: [0, 2]. Its first element `0` should be within the range of lines of the file: [1, 3].",
        ),
        (
            view(runtime, f, [3, 2]),
            "Invalid `view_range` parameter: [3, 2]. Its second element `2` should be greater than or equal to the first element `3`.",
        ),
        (view(runtime, f, [1]), "Invalid `view_range` parameter: [1]. It should be a list of two integers."),
        (
            view(runtime, "/workspace/d", [1, 2]),
            "Invalid `view_range` parameter: [1, 2]. The `view_range` parameter is not allowed when `path` points to a directory.",
        ),
        (
            view(runtime, "/workspace/zeros"),
            "File validation failed for /workspace/zeros: File appears to be binary and this file type cannot be read or edited by this tool.",
        ),
        (
            view(runtime, "/workspace/big"),
            "File validation failed for /workspace/big: File is too large (10.5MB). Maximum allowed size is 10MB.",
        ),
    ]
    assert [given for given, _ in cases] == [f"ERROR:\n{expected}" for _, expected in cases]
    assert run(runtime, "cat f").content == "a\nb\nc"


def test_views_of_files_and_directories(runtime: E2BRuntime) -> None:
    run(runtime, "mkdir -p p/sub/deep p/.git; touch p/.env p/b p/a p/sub/x p/sub/.y p/sub/deep/z; seq 1 6 > n")
    assert view(runtime, "/workspace/p") == (
        "Here's the files and directories up to 2 levels deep in /workspace/p, excluding hidden items:\n"
        "/workspace/p/\n/workspace/p/a\n/workspace/p/b\n/workspace/p/sub/\n/workspace/p/sub/deep/\n/workspace/p/sub/x\n\n"
        "2 hidden files/directories in this directory are excluded. You can use 'ls -la /workspace/p' to see them."
    )
    assert view(runtime, "/workspace/n", [5, 99]) == (
        "NOTE: We only show up to 6 since there're only 6 lines in this file.\n"
        "Here's the result of running `cat -n` on /workspace/n:\n     5\t5\n     6\t6\n"
    )


def test_an_edit_keeps_line_ends_encoding_and_mode(runtime: E2BRuntime) -> None:
    run(runtime, "printf 'one\\r\\ntwo\\r\\n' > dos; printf 'caf\\351 one\\n' > latin; chmod 755 dos")
    edit(runtime, "/workspace/dos", "str_replace", old_str="one\ntwo", new_str="1\n2")
    edit(runtime, "/workspace/latin", "str_replace", old_str="one", new_str="1")
    shown = run(runtime, "od -An -c dos; stat -c %a dos; od -An -c latin").content
    assert " ".join(shown.split()) == r"1 \r \n 2 \r \n 755 c a f 351 1 \n"


def test_undo_goes_back_step_by_step(runtime: E2BRuntime) -> None:
    path = "/workspace/u"
    run(runtime, "echo 0 > u")
    for number in range(12):
        edit(runtime, path, "str_replace", old_str=str(number), new_str=str(number + 1))
    for number in range(11, 1, -1):
        assert edit(runtime, path, "undo_edit").startswith(f"Last edit to {path} undone successfully.")
        assert run(runtime, "cat u").content == str(number)
    assert edit(runtime, path, "undo_edit") == f"ERROR:\nNo edit history found for {path}."


def test_a_path_that_cannot_be_written_is_told(runtime: E2BRuntime) -> None:
    run(runtime, "echo x > f")
    found = edit(runtime, "/workspace/f/below", "create", file_text="x")
    assert found.startswith("ERROR:\nRan into [Errno")
    assert found.endswith("while trying to write to /workspace/f/below")
    assert isinstance(runtime.run_action(FileWriteAction("f/below", "x")), ErrorObservation)
    assert run(runtime, "cat f").content == "x"


# ---------------------------------------------------------------------------------------------------------- actions


def test_actions_that_need_no_sandbox(runtime: E2BRuntime) -> None:
    answers: list[tuple[Action, type[Observation] | None, str]] = [
        (AgentThinkAction("hm"), None, "Your thought has been logged."),
        (AgentFinishAction(), NullObservation, ""),
        (UnknownAction("dance"), ErrorObservation, "Action dance does not exist."),
        (CmdRunAction("ls", confirmation_state=ActionConfirmationStatus.AWAITING_CONFIRMATION), NullObservation, ""),
        (
            CmdRunAction("touch /workspace/no", confirmation_state=ActionConfirmationStatus.REJECTED),
            None,
            "Action has been rejected by the user! Waiting for further user input.",
        ),
    ]
    for action, kind, content in answers:
        found = runtime.run_action(action)
        assert found.content == content
        assert kind is None or isinstance(found, kind)
    assert runtime.list_files() == []
    runtime.run_action(TaskTrackingAction("plan", task_list=[{"title": "t", "status": "done", "notes": "n"}]))
    assert runtime.run_action(TaskTrackingAction("view")).content == "# Task List\n\n1. ✅ t\nn\n"


def test_a_hundred_thousand_lines(runtime: E2BRuntime) -> None:
    found = run(runtime, "seq 1 100000", timeout=60, blocking=True)
    assert found.exit_code == 0
    assert found.metadata.prefix == (
        "[Previous command outputs are truncated. Showing the last 11000 lines of the output below.]\n"
    )
    assert found.content.endswith("\n100000")
    assert "[... Observation truncated due to length ...]" in found.content


@one_tier("gVisor can lose an interrupt that comes between two short programs of a loop: docs/compatibility.md")
def test_long_output_and_interrupts_again_and_again(runtime: E2BRuntime) -> None:
    for number in range(3):
        loop = f'i=0; while true; do i=$((i+1)); echo "Line $i - Iteration {number} {"x" * 1000}"; sleep 0.01; done'
        found = run(runtime, loop, timeout=1)
        assert (found.exit_code, f"Line 1 - Iteration {number}" in found.content) == (-1, True)
        assert "The previous command is still running" in run(runtime, "ls").metadata.suffix
        assert run(runtime, "C-c", is_input=True).exit_code == 130
        assert run(runtime, "ls").exit_code == 0


@pytest.mark.parametrize("line", ["exit 3", "set -e; false"])
def test_a_broken_start_up_file_does_not_lock_the_agent_out(runtime: E2BRuntime, line: str) -> None:
    run(runtime, f"echo '{line}' >> ~/.bashrc")
    found = run(runtime, "exit 5", timeout=60)
    assert found.exit_code == 5
    assert "Mend ~/.bashrc" in found.metadata.suffix
    assert run(runtime, "echo ~; pwd; head -c 0 ~/.bashrc && echo there").content == "/home/user\n/workspace\nthere"


def test_a_static_command_in_a_directory_that_is_not_there_is_an_observation(runtime: E2BRuntime) -> None:
    found = runtime.run_action(CmdRunAction("ls", is_static=True, cwd="/no/such"))
    assert isinstance(found, ErrorObservation)
    assert "/no/such" in found.content


def test_a_directory_that_was_removed_under_the_shell(runtime: E2BRuntime) -> None:
    run(runtime, "mkdir gone && cd gone && rm -rf ../gone")
    assert run(runtime, "exit").exit_code == 0
    assert run(runtime, "pwd").content == "/workspace"


def test_a_program_that_wants_a_terminal_has_one(runtime: E2BRuntime) -> None:
    found = run(runtime, "test -t 0 && test -t 1 && echo yes; stty size")
    assert found.content == "yes\n50 1000"


def test_a_script_of_half_a_megabyte(runtime: E2BRuntime) -> None:
    body = f"cat > big <<'EOF'\n{'x' * 500_000}\nEOF"
    assert run(runtime, body, timeout=60).exit_code == 0
    assert run(runtime, "wc -c < big").content == "500001"


# ---------------------------------------------------------------------------------------------------------- replay


def fetch(runtime: E2BRuntime, server: Any, port: int, path: str) -> httpx.Response:
    headers = {"E2b-Sandbox-Id": runtime.sandbox_id, "E2b-Sandbox-Port": str(port)}
    return httpx.get(f"{server.url}{path}", headers=headers, timeout=10)


def test_our_example_replays_as_recorded_and_serves_its_page(runtime: E2BRuntime, server: Any) -> None:
    told: list[Step] = []
    summary = replay(EXAMPLE, runtime, told.append)
    assert [(step.number, step.difference) for step in summary.differing] == []
    assert summary.errors == []
    assert [step.outcome for step in told].count(Outcome.RUNNING) == summary.executed == 8
    page = fetch(runtime, server, 8000, "/")
    assert page.status_code == 200
    assert "<h1>Tides today</h1>" in page.text


@pytest.mark.skipif(not TRAJECTORIES.is_dir(), reason="the recorded runs beside the repository are not there")
@pytest.mark.parametrize("name", ["basic.json", "basic_gui_mode.json"])
def test_recorded_runs_of_older_versions_replay_as_recorded(runtime: E2BRuntime, server: Any, name: str) -> None:
    summary = replay(TRAJECTORIES / name, runtime)
    assert summary.executed == {"basic.json": 1, "basic_gui_mode.json": 4}[name]
    assert [(step.number, step.difference) for step in summary.differing] == []
    if name == "basic_gui_mode.json":
        assert "<title>Vue Todo App</title>" in fetch(runtime, server, 8000, "/").text


def test_a_loaded_run_can_be_replayed_twice(server: Any) -> None:
    events = load_run(EXAMPLE)
    for _ in range(2):
        with E2BRuntime(soft_timeout_s=1.0) as fresh:
            assert replay(events, fresh).differing == []


# ---------------------------------------------------------------------------------------------------------- embedded


@pytest.fixture
def no_server(tmp_path: Path, templates_dir: Path) -> dict[str, str]:
    """An environment that names no platform, with the built templates."""
    skip_without("namespaces")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ATOLL_", "E2B_"))}
    return {**clean, "ATOLL_DATA_DIR": str(tmp_path / "data"), "ATOLL_TEMPLATES_DIR": str(templates_dir)}


def test_without_a_server_a_runtime_brings_its_own(no_server: dict[str, str]) -> None:
    code = (
        "from atoll.runtime import *\n"
        "a, b = E2BRuntime(sid='a'), E2BBox()\n"
        "a.connect_sync()\n"
        "print(a.run(CmdRunAction('echo hi')).content, b.execute('echo there').output.strip())\n"
    )
    made = subprocess.run(
        [sys.executable, "-c", code], env=no_server, capture_output=True, text=True, timeout=90, check=False
    )
    assert made.stdout == "hi there\n", made.stderr
    assert list((Path(no_server["ATOLL_DATA_DIR"]) / "embedded").iterdir()) == []


def test_the_embedded_platform_ends_with_a_process_that_is_killed(no_server: dict[str, str]) -> None:
    code = (
        "from atoll.runtime.sandbox.embedded import shared\nimport time\n"
        "p = shared(); p.start(); print(p._process.pid, p.url, flush=True); time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], env=no_server, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        pid, url = owner.stdout.readline().split()
        assert httpx.get(f"{url}/health").is_success
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    deadline = time.monotonic() + 30
    while _runs(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(int(pid))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_embedded_platform_can_be_closed_and_started_again(no_server: dict[str, str]) -> None:
    platform = EmbeddedPlatform(no_server)
    for _ in range(2):
        with platform:
            assert httpx.get(f"{platform.url}/health").is_success
            assert platform.environ["E2B_API_URL"] == platform.url
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{platform.url}/health")
    platform.close()


def test_a_server_of_the_default_directory_is_used(no_server: dict[str, str], make_server: Any) -> None:
    server = make_server(Path(no_server["ATOLL_DATA_DIR"]), options=["--end-sandboxes"])
    code = "from atoll.runtime import E2BBox\nbox = E2BBox()\nprint(box._connection['api_url'])\nbox.close()"
    made = subprocess.run([sys.executable, "-c", code], env=no_server, capture_output=True, text=True, check=True)
    assert made.stdout.strip() == server.url
