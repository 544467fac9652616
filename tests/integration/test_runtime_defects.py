"""What OpenHands' own E2B runtime got wrong, each a rule of ours; the numbers are those of docs/runtime.md."""

from __future__ import annotations

import asyncio
import inspect
import io
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from e2b import Sandbox, SandboxQuery, SandboxState

from atoll.runtime import (
    AgentRuntimeDisconnectedError,
    AgentRuntimeError,
    BrowseInteractiveAction,
    BrowseURLAction,
    CmdOutputObservation,
    CmdRunAction,
    E2BBox,
    E2BFileStore,
    E2BRuntime,
    ErrorObservation,
    FileEditAction,
    FileEditObservation,
    FileReadAction,
    FileReadObservation,
    FileWriteAction,
    FileWriteObservation,
    IPythonRunCellAction,
    IPythonRunCellObservation,
    JupyterRequirement,
    MCPAction,
    Observation,
    RuntimeConfig,
    RuntimeStatus,
    SandboxConfig,
)
from atoll.runtime.sandbox.box import SID_KEY
from atoll.runtime.sandbox.embedded import connection
from atoll.runtime.sandbox.lease import LEASE_S, Lease
from support.tiers import every_tier, one_tier

pytestmark = one_tier("what the runtime makes of the SDK's answers; what a tier may change is marked")

SOFT_S = 1.0
MakeRuntime = Callable[..., E2BRuntime]


NOT_OURS = "-I .X11-unix"
"""What /tmp has from the beginning in gVisor (support/tiers.py)."""


@pytest.fixture
def make(server: Any) -> Iterator[MakeRuntime]:
    """Connected runtimes that end with the test."""
    made: list[E2BRuntime] = []

    def start(*args: Any, **more: Any) -> E2BRuntime:
        runtime = E2BRuntime(*args, **{"soft_timeout_s": SOFT_S, **more})
        made.append(runtime)
        runtime.connect_sync()
        return runtime

    yield start
    for runtime in made:
        runtime.close()
        if runtime.sandbox is not None:
            runtime.sandbox.sandbox.kill()


@pytest.fixture
def runtime(make: MakeRuntime) -> E2BRuntime:
    return make()


@pytest.fixture(scope="module")
def jupyter(server: Any, interpreter_template: Any) -> Iterator[E2BRuntime]:
    """A runtime with a Jupyter kernel, shared: tests leave nothing that another could notice."""
    runtime = E2BRuntime(plugins=[JupyterRequirement()], soft_timeout_s=SOFT_S, env_vars={"at_start": "yes"})
    runtime.connect_sync()
    yield runtime
    runtime.close()


def run(runtime: E2BRuntime, command: str, **more: Any) -> CmdOutputObservation:
    found = runtime.run_action(CmdRunAction(command, **more))
    assert isinstance(found, CmdOutputObservation), found
    return found


def cell(runtime: E2BRuntime, code: str, **more: Any) -> IPythonRunCellObservation:
    found = runtime.run_action(IPythonRunCellAction(code, **{"include_extra": False, **more}))
    assert isinstance(found, IPythonRunCellObservation), found
    return found


def good(found: Observation) -> str:
    assert not isinstance(found, ErrorObservation), found.content
    return found.content


# ---------------------------------------------------------------------------------------------------------- 1, 2


def test_01_a_failing_command_keeps_its_exit_code_and_output(runtime: E2BRuntime) -> None:
    found = run(runtime, "echo OUT; echo ERR >&2; sh -c 'exit 3'")
    assert found.exit_code == 3
    assert found.content == "OUT\nERR"


def test_01_so_it_does_for_a_box(server: Any) -> None:
    with E2BBox() as box:
        code, output = box.execute("echo OUT; echo ERR >&2; exit 3")
        assert (code, sorted(output.split())) == (3, ["ERR", "OUT"])


@every_tier
def test_02_the_time_limit_of_an_action_counts(runtime: E2BRuntime) -> None:
    found = run(runtime, "while true; do echo tick; sleep 0.1; done", timeout=1.5)
    assert found.exit_code == -1
    assert found.content.startswith("tick")
    assert "[The command timed out after 1.5 seconds." in found.metadata.suffix
    assert run(runtime, "C-c", is_input=True).exit_code == 130


def test_02_the_configured_limit_counts_and_zero_is_no_limit(make: MakeRuntime) -> None:
    runtime = make(SandboxConfig(timeout=1), soft_timeout_s=30)
    assert "timed out after 1.0 seconds" in run(runtime, "sleep 60").metadata.suffix
    assert run(runtime, "C-c", is_input=True).exit_code == 130
    box = runtime.sandbox
    assert box is not None
    assert box.execute("sleep 5", timeout=0.5)[0] == -1
    assert box.execute("sleep 1.5; echo on", timeout=0) == (0, "on\n")


# ---------------------------------------------------------------------------------------------------------- 3, 4, 5


def test_03_reading_keeps_newlines_and_ranges_are_lines(runtime: E2BRuntime) -> None:
    run(runtime, "printf 'l1\\nl2\\nl3\\n' > f")
    assert good(runtime.read(FileReadAction("f"))) == "l1\nl2\nl3\n"
    assert good(runtime.read(FileReadAction("f", start=1, end=2))) == "l2\n"
    assert good(runtime.read(FileReadAction("f", start=1))) == "l2\nl3\n"


def test_03_errors_of_reading_are_told_in_openhands_words(runtime: E2BRuntime) -> None:
    run(runtime, "mkdir d; head -c 100 /dev/zero > zeros; printf 'caf\\351\\n' > latin")
    for path, text in (
        ("none", "File not found: /workspace/none. Your current working directory is /workspace."),
        ("d", "Path is a directory: /workspace/d. You can only read files"),
        ("zeros", "ERROR_BINARY_FILE"),
        ("latin", "File could not be decoded as utf-8: /workspace/latin."),
    ):
        found = runtime.run_action(FileReadAction(path))
        assert isinstance(found, ErrorObservation)
        assert found.content == text


def test_05_a_directory_is_not_written(runtime: E2BRuntime) -> None:
    run(runtime, "mkdir d")
    for action in (FileWriteAction("d", "x"), FileWriteAction("d", "x", start=1)):
        found = runtime.run_action(action)
        assert isinstance(found, ErrorObservation)
        assert found.content == "Path is a directory: /workspace/d. You can only write to files"


def test_03_images_are_data_urls(runtime: E2BRuntime) -> None:
    run(runtime, "printf '\\211PNG\\r\\n' > i.png")
    assert good(runtime.read(FileReadAction("i.png"))) == "data:image/png;base64,iVBORw0K"


def test_04_every_editor_command_works(runtime: E2BRuntime) -> None:
    path = "/workspace/new/a.py"
    made = runtime.edit(FileEditAction(path, command="create", file_text="one\ntwo\nthree\n"))
    assert isinstance(made, FileEditObservation)
    assert made.content == f"File created successfully at: {path}"
    assert not made.prev_exist
    changed = runtime.edit(FileEditAction(path, command="str_replace", old_str="two", new_str="TWO"))
    assert isinstance(changed, FileEditObservation)
    assert changed.content == (
        f"The file {path} has been edited. Here's the result of running `cat -n` on a snippet of {path}:\n"
        "     1\tone\n     2\tTWO\n     3\tthree\n     4\t\n"
        "Review the changes and make sure they are as expected. Edit the file again if necessary."
    )
    assert changed.diff == f"--- {path}\n+++ {path}\n@@ -2 +2 @@\n-two\n+TWO"
    assert (changed.old_content, changed.new_content) == ("one\ntwo\nthree\n", "one\nTWO\nthree\n")
    good(runtime.edit(FileEditAction(path, command="insert", insert_line=1, new_str="one and a half")))
    assert run(runtime, f"cat {path}").content == "one\none and a half\nTWO\nthree"
    undone = good(runtime.edit(FileEditAction(path, command="undo_edit")))
    assert undone.startswith(
        f"Last edit to {path} undone successfully. Here's the result of running `cat -n` on {path}"
    )
    assert run(runtime, f"cat {path}").content == "one\nTWO\nthree"
    view = good(runtime.read(FileReadAction(path, impl_source=_aci(), view_range=[2, 3])))
    assert view == f"Here's the result of running `cat -n` on {path}:\n     2\tTWO\n     3\tthree\n"


def _aci() -> Any:
    from atoll.runtime import FileReadSource

    return FileReadSource.OH_ACI


def test_04_a_failed_edit_changes_nothing(runtime: E2BRuntime) -> None:
    run(runtime, "printf 'x\\nx\\n' > f")
    found = runtime.edit(FileEditAction("/workspace/f", command="str_replace", old_str="x", new_str="y"))
    assert found.content == (
        "ERROR:\nNo replacement was performed. Multiple occurrences of old_str `x` in lines [1, 2]. "
        "Please ensure it is unique."
    )
    assert run(runtime, "cat f").content == "x\nx"


def test_04_line_ranges_count_from_one_both_ends_included(runtime: E2BRuntime) -> None:
    run(runtime, "printf '1\\n2\\n3\\n4\\n' > f")
    found = runtime.edit(FileEditAction("/workspace/f", content="two\nthree", start=2, end=3))
    assert isinstance(found, FileEditObservation)
    assert run(runtime, "cat f").content == "1\ntwo\nthree\n4"
    good(runtime.edit(FileEditAction("/workspace/f", content="5", start=-1)))
    assert run(runtime, "cat f").content == "1\ntwo\nthree\n4\n5"
    assert isinstance(runtime.edit(FileEditAction("/workspace/f", content="x", start=9, end=9)), ErrorObservation)


def test_05_a_ranged_write_changes_only_the_range(runtime: E2BRuntime) -> None:
    run(runtime, "printf '1\\n2\\n3\\n' > f; chmod 750 f")
    assert isinstance(runtime.write(FileWriteAction("f", "two", start=1, end=2)), FileWriteObservation)
    assert run(runtime, "cat f; stat -c %a f").content == "1\ntwo\n3\n750"
    good(runtime.write(FileWriteAction("f", "all")))
    assert run(runtime, "cat f; stat -c %a f").content == "all\n750"


# ---------------------------------------------------------------------------------------------------------- 6


@pytest.mark.parametrize(
    "action", [BrowseURLAction("http://x/'; touch /workspace/injected; '"), BrowseInteractiveAction("goto('x')")]
)
def test_06_browsing_without_a_browser_is_an_observation_and_runs_nothing(runtime: E2BRuntime, action: Any) -> None:
    found = runtime.run_action(action)
    assert isinstance(found, ErrorObservation)
    assert found.content.startswith("Browser functionality is not supported or disabled.")
    assert runtime.list_files() == []


# ---------------------------------------------------------------------------------------------------------- 7


def test_07_a_cell_shows_prints_results_and_errors_in_order(jupyter: E2BRuntime) -> None:
    found = cell(jupyter, "import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7")
    assert sorted(found.content.split()) == ["42", "err", "out"]
    assert found.content.startswith("out")
    failed = cell(jupyter, "print('before')\n1 / 0")
    assert failed.content.startswith("before\n")
    assert "ZeroDivisionError: division by zero" in failed.content
    assert "\x1b" not in failed.content
    assert cell(jupyter, "x = 1").content == "[Code executed successfully with no output]"
    assert cell(jupyter, "x + 1").content == "2"


def test_07_the_jupyter_lines_tell_directory_and_interpreter(jupyter: E2BRuntime) -> None:
    run(jupyter, "mkdir -p /tmp/elsewhere && cd /tmp/elsewhere")
    found = cell(jupyter, "import os; print(os.getcwd())", include_extra=True)
    lines = found.content.split("\n")
    assert lines[0] == "/tmp/elsewhere"
    assert lines[1] == "[Jupyter current working directory: /tmp/elsewhere]"
    assert lines[2].startswith("[Jupyter Python interpreter: /")
    run(jupyter, "cd /workspace")


def test_07_images_are_data_urls(jupyter: E2BRuntime) -> None:
    found = cell(jupyter, "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()", timeout=90)
    assert found.image_urls
    assert found.image_urls[0].startswith("data:image/png;base64,iVBOR")


@every_tier
def test_07_a_cell_over_its_time_is_interrupted_and_the_state_stays(jupyter: E2BRuntime) -> None:
    cell(jupyter, "kept = 5")
    found = cell(jupyter, "print('begin')\nimport time\ntime.sleep(60)", timeout=2)
    assert found.content == "begin\n[Execution timed out (2 seconds).]"
    assert cell(jupyter, "kept", timeout=20).content == "5"


def test_07_without_a_kernel_it_says_what_to_do(runtime: E2BRuntime) -> None:
    found = runtime.run_action(IPythonRunCellAction("1"))
    assert isinstance(found, ErrorObservation)
    assert found.content.startswith("JupyterRequirement not found. Unable to run IPython action.")
    assert "code-interpreter-v1" in found.content


# ---------------------------------------------------------------------------------------------------------- 8, 9


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "sub" / "empty").mkdir(parents=True)
    (root / ".hidden").write_text("dot\n")
    (root / "sub" / "run.sh").write_text("#!/bin/sh\necho hi\n")
    (root / "sub" / "run.sh").chmod(0o755)
    (root / "sub" / "ünï cödé").write_bytes(os.urandom(300_000))
    (root / "link").symlink_to("sub/run.sh")
    (root / "dangling").symlink_to("/nowhere")
    (root / ("long" * 40)).write_text("x")
    return root


def test_08_copy_to_puts_a_file_into_the_directory(runtime: E2BRuntime, tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("hello")
    runtime.copy_to(str(tmp_path / "a b.txt"), "/workspace/new/dir/")
    assert run(runtime, "cat '/workspace/new/dir/a b.txt'; stat -c %U /workspace/new").content == "hellouser"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b.txt"]


@every_tier
def test_08_copy_to_takes_a_tree_whole(runtime: E2BRuntime, tree: Path) -> None:
    runtime.copy_to(str(tree), "/workspace", recursive=True)
    shown = run(runtime, "cd /workspace/project && find . -printf '%p %y %m %l\\n' | LC_ALL=C sort && ./link").content
    lines = shown.split("\n")
    assert "./.hidden f 644 " in lines
    assert "./sub/run.sh f 755 " in lines
    assert "./link l 777 sub/run.sh" in lines
    assert "./dangling l 777 /nowhere" in lines
    assert "./sub/empty d 755 " in lines
    assert lines[-1] == "hi"
    assert f"./{'long' * 40} f 644 " in lines
    sha = subprocess.run(["sha256sum", tree / "sub" / "ünï cödé"], capture_output=True, text=True, check=True)
    assert run(runtime, "sha256sum < 'sub/ünï cödé'").content.split()[0] == sha.stdout.split()[0]


def test_08_a_second_copy_adds_to_the_tree_that_is_there(runtime: E2BRuntime, tree: Path) -> None:
    runtime.copy_to(str(tree), "/workspace", recursive=True)
    run(runtime, "touch /workspace/project/mine")
    (tree / ".hidden").write_text("changed\n")
    runtime.copy_to(str(tree), "/workspace", recursive=True)
    assert run(runtime, "cat /workspace/project/.hidden; ls /workspace/project/mine; ls -A /workspace").content == (
        "changed\n/workspace/project/mine\nproject"
    )


def test_08_a_tree_of_many_files_arrives_whole_with_progress(server: Any, tmp_path: Path) -> None:
    root = tmp_path / "many"
    for number in range(2000):
        (root / str(number % 40)).mkdir(parents=True, exist_ok=True)
        (root / str(number % 40) / f"{number}").write_bytes(b"x" * number)
    told: list[tuple[int, int]] = []
    with E2BBox() as box:
        box.copy_to(str(root), "/data", recursive=True, progress=lambda done, total: told.append((done, total)))
        count = "find /data/many -type f | wc -l; find /data/many -type f -printf '%s\\n' | awk '{s+=$1} END {print s}'"
        assert box.execute(count).output.split() == ["2000", str(sum(range(2000)))]
        assert told == sorted(told)
        assert len(told) > 2
        assert told[-1][0] == told[-1][1]
        # Replacing is by file: a program that reads one never sees half of it.
        watch = (
            "cd /data/many/39 && for i in $(seq 400); do stat -c %s 1999; sleep 0.002; done | sort -u | tr '\\n' ' '"
        )
        (root / "39" / "1999").write_bytes(b"y" * 5_000_000)
        watching = box.sandbox.commands.run(watch, background=True)
        box.copy_to(str(root), "/data", recursive=True)
        assert set(watching.wait().stdout.split()) <= {"1999", "5000000"}
        assert box.execute(f"ls -A {NOT_OURS} /data /tmp").output.split() == ["/data:", "many", "/tmp:"]


def test_08_wrong_copies_raise_and_leave_nothing(runtime: E2BRuntime, tree: Path) -> None:
    with pytest.raises(FileNotFoundError):
        runtime.copy_to("/no/such/file", "/workspace")
    with pytest.raises(IsADirectoryError):
        runtime.copy_to(str(tree), "/workspace")
    run(runtime, "touch /workspace/plain")
    with pytest.raises(NotADirectoryError):
        runtime.copy_to(str(tree / ".hidden"), "/workspace/plain")
    assert run(runtime, f"ls -A /workspace; ls -A {NOT_OURS} /tmp").content == "plain"


def test_09_copy_from_returns_a_zip(runtime: E2BRuntime) -> None:
    run(
        runtime,
        "mkdir -p d/sub; echo 1 > d/.dot; echo 2 > d/sub/x; ln d/sub/x d/hard; ln -s sub/x d/soft; chmod 750 d/sub/x",
    )
    found = runtime.copy_from("/workspace/d")
    try:
        with zipfile.ZipFile(found) as archive:
            assert sorted(name for name in archive.namelist() if not name.endswith("/")) == [
                ".dot",
                "hard",
                "soft",
                "sub/x",
            ]
            assert archive.read("sub/x") == archive.read("hard") == b"2\n"
            assert archive.getinfo("sub/x").external_attr >> 16 & 0o777 == 0o750
    finally:
        found.unlink()
    single = runtime.copy_from("/workspace/d/.dot")
    with zipfile.ZipFile(single) as archive:
        assert archive.namelist() == [".dot"]
    single.unlink()
    assert run(runtime, f"ls -A {NOT_OURS} /tmp").content == ""


def test_09_copy_from_of_nothing_raises(runtime: E2BRuntime) -> None:
    with pytest.raises(FileNotFoundError):
        runtime.copy_from("/workspace/none")


def test_09_a_program_in_tars_place_cannot_make_the_host_write_what_it_never_sent(runtime: E2BRuntime) -> None:
    """Root inside packs the archive: three blocks that declare a file of 64 MiB, all holes."""
    run(runtime, "mkdir d; echo 1 > d/x")
    runtime.copy_from("/workspace/d").unlink()
    sizes = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**26)}
    member = tarfile.TarInfo("big")
    member.size, member.pax_headers = 512, sizes
    hostile = member.tobuf(tarfile.PAX_FORMAT) + b"0\n".ljust(512, b"\0") + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(hostile)) as archive:
        assert archive.getmembers()[0].size == 2**26, "the control: Python's reader believes it"
    assert runtime.sandbox is not None
    files = runtime.sandbox.sandbox.files
    files.write("/usr/bin/tar", '#!/bin/bash\ncat /tmp/hostile > "$3"\n', user="root")
    files.write("/tmp/hostile", hostile)
    with pytest.raises(AgentRuntimeError, match="sparse"):
        runtime.copy_from("/workspace/d")


# ---------------------------------------------------------------------------------------------------------- 10


def test_10_the_file_store_has_openhands_types(runtime: E2BRuntime) -> None:
    store = runtime.file_store
    assert isinstance(store, E2BFileStore)
    store.write("/workspace/s/a.txt", "text\n")
    store.write("/workspace/s/deep/b.bin", b"\x00\x01")
    assert store.read("/workspace/s/a.txt") == "text\n"
    assert sorted(store.list("/workspace/s")) == ["/workspace/s/a.txt", "/workspace/s/deep/"]
    store.delete("/workspace/s/a.txt")
    store.delete("/workspace/s/deep")
    store.delete("/workspace/s/never")
    assert store.list("/workspace/s") == []
    with pytest.raises(FileNotFoundError):
        store.read("/workspace/s/a.txt")


# ---------------------------------------------------------------------------------------------------------- 11


def test_11_variables_persist_everywhere_in_upper_case(jupyter: E2BRuntime) -> None:
    value = 'it\'s "quoted" $HOME `x`\nsecond line'
    jupyter.add_env_vars({"my_var": value})
    assert run(jupyter, 'printf %s "$MY_VAR"').content == value
    assert run(jupyter, 'printf %s "$MY_VAR"', is_static=True).content == value
    assert cell(jupyter, "import os; print(os.environ['MY_VAR'], end='')").content == value
    run(jupyter, "exit")
    assert run(jupyter, 'printf %s "$MY_VAR"').content == value
    assert run(jupyter, "bash -ic 'printf %s \"$MY_VAR\"'").content == value


def test_11_variables_given_at_the_start_are_there(jupyter: E2BRuntime) -> None:
    assert run(jupyter, "echo $AT_START").content == "yes"
    assert cell(jupyter, "import os; print(os.environ['AT_START'])").content.strip() == "yes"


@pytest.mark.parametrize("name", ["1A", "A-B", "A B", "", "A=B", "X;touch /tmp/x"])
def test_11_a_name_that_no_shell_takes_is_refused(runtime: E2BRuntime, name: str) -> None:
    with pytest.raises(ValueError, match="environment variable"):
        runtime.add_env_vars({name: "x"})


# ---------------------------------------------------------------------------------------------------------- 12, 13


def test_12_the_directory_persists_and_is_told(runtime: E2BRuntime) -> None:
    found = run(runtime, "mkdir -p sub && cd sub")
    assert found.metadata.working_dir == "/workspace/sub" == runtime.get_working_directory()
    assert run(runtime, "pwd").content == "/workspace/sub"


def test_12_metadata_is_complete(runtime: E2BRuntime) -> None:
    found = run(runtime, "sleep 30 & echo $!")
    metadata = found.metadata
    assert metadata.pid == int(found.content.split()[-1])
    assert (metadata.exit_code, metadata.username) == (0, "user")
    assert metadata.hostname
    assert metadata.py_interpreter_path == run(runtime, "command -v python || command -v python3").content
    assert metadata.suffix == "\n[The command completed with exit code 0.]"


@every_tier
def test_12_soft_timeout_poll_input_and_refusal(runtime: E2BRuntime) -> None:
    asked = run(runtime, "read -p 'Continue? [Y/n] ' a && echo \"got $a\"")
    assert (asked.content, asked.exit_code) == ("Continue? [Y/n]", -1)
    assert asked.metadata.suffix.startswith("\n[The command has no new output after 1 seconds. You may wait longer")
    refused = run(runtime, "ls")
    assert 'Your command "ls" is NOT executed. The previous command is still running' in refused.metadata.suffix
    answered = run(runtime, "Y", is_input=True)
    assert (answered.content, answered.exit_code) == ("got Y", 0)


def test_12_blocking_and_static_and_hidden_count(runtime: E2BRuntime) -> None:
    assert run(runtime, "sleep 1.6; echo on", blocking=True, timeout=20).content == "on"
    assert run(runtime, "pwd", is_static=True, cwd="/usr").content == "/usr"
    assert runtime.get_working_directory() == "/workspace"
    assert run(runtime, "seq 20000", hidden=True).content.endswith("\n20000")
    assert "truncated" not in run(runtime, "seq 9000", hidden=True).content


def test_12_static_commands_run_while_the_shell_is_busy(runtime: E2BRuntime) -> None:
    assert run(runtime, "sleep 100").exit_code == -1
    assert run(runtime, "echo beside", is_static=True).content == "beside"
    assert run(runtime, "C-c", is_input=True).exit_code == 130


def test_13_the_workspace_is_where_everything_begins(make: MakeRuntime) -> None:
    runtime = make(RuntimeConfig(workspace_mount_path_in_sandbox="/work space"))
    assert run(runtime, "pwd").content == "/work space"
    written = runtime.write(FileWriteAction("a/b.txt", "x"))
    assert isinstance(written, FileWriteObservation)
    assert written.path == "/work space/a/b.txt"
    read = runtime.read(FileReadAction("a/b.txt"))
    assert isinstance(read, FileReadObservation)
    assert (read.path, read.content) == ("/work space/a/b.txt", "x\n")


@every_tier
def test_13_root_when_not_run_as_openhands(make: MakeRuntime) -> None:
    runtime = make(RuntimeConfig(run_as_openhands=False))
    assert run(runtime, "whoami; echo ~; pwd").content == "root\n/root\n/workspace"


# ---------------------------------------------------------------------------------------------------------- 14, 15


def test_14_close_is_synchronous_idempotent_and_ends_the_sandbox(make: MakeRuntime) -> None:
    assert not inspect.iscoroutinefunction(E2BRuntime.close)
    runtime = make(sid="to-be-closed")
    sandbox_id = runtime.sandbox_id
    runtime.close()
    runtime.close()
    assert _alive("to-be-closed") == []
    assert sandbox_id


def _alive(sid: str) -> list[str]:
    pages = Sandbox.list(query=SandboxQuery(metadata={SID_KEY: sid}))
    return [info.sandbox_id for info in pages.next_items()]


def test_14_a_process_that_ends_without_close_leaves_no_sandbox(server: Any) -> None:
    code = (
        "from atoll.runtime import E2BRuntime\nr = E2BRuntime(sid='forgotten')\nr.connect_sync()\nprint(r.sandbox_id)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert made.stdout.strip()
    assert _alive("forgotten") == []


def test_15_a_failed_connect_raises_its_own_error_and_leaves_nothing(server: Any) -> None:
    seen: list[tuple[str, RuntimeStatus]] = []
    runtime = E2BRuntime(
        template="no-such-template",
        sid="failed",
        status_callback=lambda level, status, text: seen.append((level, status)),
    )
    with pytest.raises(Exception, match="no-such-template"):
        asyncio.run(runtime.connect())
    assert seen[-1] == ("error", RuntimeStatus.ERROR)
    assert _alive("failed") == []
    runtime.close()


def test_15_a_connect_that_fails_late_leaves_nothing(server: Any) -> None:
    runtime = E2BRuntime(RuntimeConfig(workspace_mount_path_in_sandbox="/etc/passwd/below"), sid="failed-late")
    with pytest.raises(AgentRuntimeError, match="workspace"):
        runtime.connect_sync()
    assert _alive("failed-late") == []


def test_15_statuses_are_told_in_order(server: Any) -> None:
    seen: list[RuntimeStatus] = []
    with E2BRuntime(status_callback=lambda level, status, text: seen.append(status)):
        pass
    assert [seen[0], seen[-2], seen[-1]] == [RuntimeStatus.STARTING_RUNTIME, RuntimeStatus.READY, RuntimeStatus.STOPPED]


# ---------------------------------------------------------------------------------------------------------- 16


def test_16_mcp_configuration_has_attributes_and_a_call_is_observed(runtime: E2BRuntime) -> None:
    server = SimpleNamespace(name="broken", command="false", args=[], env={})
    config = runtime.get_mcp_config([server])
    assert (config.sse_servers, config.stdio_servers, config.shttp_servers) == ([], [server], [])
    assert isinstance(runtime.run_action(MCPAction("tool")), ErrorObservation)


# ---------------------------------------------------------------------------------------------------------- 17, 18


def test_17_another_process_attaches_by_session_and_leaves_it_running(make: MakeRuntime) -> None:
    runtime = make(sid="shared-session")
    run(runtime, "echo here > /workspace/f")
    runtime.add_env_vars({"seen": "yes"})
    code = (
        "from atoll.runtime import *\n"
        "r = E2BRuntime(sid='shared-session', attach_to_existing=True)\n"
        "r.connect_sync()\n"
        "print(r.sandbox_id, r.run(CmdRunAction('cat f; echo $SEEN')).content.split())\n"
        "r.close()\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert made.stdout.strip() == f"{runtime.sandbox_id} ['here', 'yes']"
    assert run(runtime, "echo alive").content == "alive"


def test_17_attaching_to_an_unknown_session_raises_and_makes_nothing(server: Any) -> None:
    runtime = E2BRuntime(sid="never-was", attach_to_existing=True)
    with pytest.raises(AgentRuntimeDisconnectedError, match="never-was"):
        runtime.connect_sync()
    assert runtime.runtime_status is RuntimeStatus.ERROR_RUNTIME_DISCONNECTED
    assert _alive("never-was") == []


def test_17_a_sandbox_that_was_given_is_ended_by_close_like_our_own(make: MakeRuntime) -> None:
    box = E2BBox(metadata={SID_KEY: "given"})
    runtime = make(sandbox=box)
    assert runtime.sandbox_id == box.sandbox_id
    runtime.close()
    assert _alive("given") == []


def test_17_keep_alive_leaves_the_sandbox_for_the_next_attach(make: MakeRuntime) -> None:
    config = SandboxConfig(keep_runtime_alive=True, pause_closed_runtimes=False, close_delay=600)
    first = make(config, sid="kept")
    run(first, "echo kept > /workspace/f")
    first.close()
    again = make(sid="kept", attach_to_existing=True)
    assert run(again, "cat f").content == "kept"
    asyncio.run(E2BRuntime.delete("kept"))
    assert _alive("kept") == []


@every_tier
def test_17_close_pauses_and_where_nothing_can_be_paused_it_is_said_and_it_goes_on_for_the_delay(
    make: MakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    first = make(SandboxConfig(keep_runtime_alive=True, close_delay=600), sid="kept-paused")
    run(first, "echo kept > /workspace/f")
    assert first.sandbox is not None
    first.close()
    info = first.sandbox.sandbox.get_info()
    if any("does not pause" in record.message for record in caplog.records):
        assert "goes on running for 600 seconds (close_delay)" in caplog.text
        assert 500 < (info.end_at - datetime.now(UTC)).total_seconds() <= 600
    else:
        assert info.state is SandboxState.PAUSED
    assert run(make(sid="kept-paused", attach_to_existing=True), "cat f").content == "kept"


def test_17_delete_ends_every_sandbox_of_the_session(make: MakeRuntime) -> None:
    make(sid="deleted")
    make(sid="deleted")
    assert len(_alive("deleted")) == 2
    asyncio.run(E2BRuntime.delete("deleted"))
    asyncio.run(E2BRuntime.delete("deleted"))
    assert _alive("deleted") == []


def test_18_the_time_out_is_renewed_while_the_runtime_lives(make: MakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease.__init__, "__kwdefaults__", {"lease_s": LEASE_S, "renew_s": 0.2})
    runtime = make()
    assert runtime.sandbox is not None
    sandbox = runtime.sandbox.sandbox

    def left_s() -> float:
        return (sandbox.get_info().end_at - datetime.now(UTC)).total_seconds()

    sandbox.set_timeout(20)
    deadline = time.monotonic() + 20
    while left_s() < LEASE_S - 60 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_s() > LEASE_S - 60


# ---------------------------------------------------------------------------------------------------------- 19


@pytest.mark.parametrize(
    "environ",
    [{"E2B_API_KEY": "e2b_x"}, {"E2B_API_KEY": "e2b_x", "E2B_DOMAIN": "e.example"}, {"E2B_API_URL": "http://x"}],
)
def test_19_the_sdk_reads_its_own_variables(environ: dict[str, str]) -> None:
    before = dict(os.environ)
    assert connection(environ) == {}
    assert dict(os.environ) == before


# ---------------------------------------------------------------------------------------------------------- 20


def test_20_list_files_is_sorted_marks_directories_and_takes_any_name(runtime: E2BRuntime) -> None:
    run(runtime, "mkdir -p B a '; rm -rf x' && touch Z.txt b.txt .dot && ln -s a link && ln -s nowhere broken")
    assert runtime.list_files() == ["; rm -rf x/", "a/", "B/", "link/", ".dot", "b.txt", "broken", "Z.txt"]
    assert runtime.list_files("/no/such") == []
    assert runtime.list_files("b.txt") == []


def test_20_alive_is_asked_of_the_sandbox_and_a_lost_one_is_never_a_result(make: MakeRuntime) -> None:
    runtime = make()
    runtime.check_if_alive()
    assert runtime.sandbox is not None
    runtime.sandbox.sandbox.kill()
    with pytest.raises(AgentRuntimeDisconnectedError):
        runtime.check_if_alive()
    assert runtime.runtime_status is RuntimeStatus.ERROR_RUNTIME_DISCONNECTED
    for action in (
        CmdRunAction("echo hi"),
        CmdRunAction("echo hi", is_static=True),
        FileReadAction("f"),
        FileWriteAction("f", "x"),
        FileEditAction("/f", command="view"),
    ):
        with pytest.raises(AgentRuntimeDisconnectedError):
            runtime.run_action(action)
    runtime.close()


@every_tier
def test_20_a_sandbox_lost_during_a_command_raises(make: MakeRuntime) -> None:
    import threading

    runtime = make(soft_timeout_s=60)
    assert runtime.sandbox is not None
    killer = threading.Timer(1.0, runtime.sandbox.sandbox.kill)
    killer.start()
    with pytest.raises(AgentRuntimeDisconnectedError):
        run(runtime, "sleep 50")
    killer.join()


def test_20_actions_of_several_threads_take_turns(runtime: E2BRuntime) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda number: run(runtime, f"echo {number}; sleep 0.05; echo {number}").content, range(12))
        )
    assert found == [f"{number}\n{number}" for number in range(12)]
