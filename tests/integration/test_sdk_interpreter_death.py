"""A kernel that ends by itself or is killed: the cell under way says so, the next one knows what is lost."""

from __future__ import annotations

from e2b_code_interpreter import Sandbox
from sdk_support import eventually


def killed_between_cells(sandbox: Sandbox) -> None:
    pid = sandbox.run_code("import os\nos.getpid()").text
    sandbox.commands.run(f"kill -9 {pid}")
    gone = f"kill -0 {pid} 2>/dev/null || echo gone"
    eventually(lambda: sandbox.commands.run(gone).stdout == "gone\n", what="the kernel is gone")


def test_the_cell_under_way_is_told_how_its_kernel_ended(interpreter: Sandbox) -> None:
    died = interpreter.run_code("print('before', flush=True)\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert died.error.name == "KernelDied"
    assert "SIGKILL" in died.error.value
    assert "variables are lost" in died.error.value


def test_running_out_of_memory_ends_the_kernel_not_the_sandbox(interpreter: Sandbox) -> None:
    other = interpreter.create_code_context()
    interpreter.run_code("kept = 'other'", context=other)
    interpreter.run_code("kept = 1")
    eats = "print('before')\nimport os\nhoard = []\nwhile True: hoard.append(bytearray(os.urandom(1) * (16 << 20)))"
    died = interpreter.run_code(eats, timeout=120)
    assert died.logs.stdout == ["before\n"]
    assert died.error.name in ("KernelDied", "MemoryError")
    if died.error.name == "KernelDied":
        assert "memory" in died.error.value
        assert interpreter.run_code("kept").error.name == "NameError"
    assert interpreter.run_code("6 * 7").text == "42"
    assert interpreter.run_code("kept", context=other).text == "other"


def test_a_cell_after_the_death_is_told_once_that_the_variables_are_lost(interpreter: Sandbox) -> None:
    interpreter.run_code("kept = 1")
    killed_between_cells(interpreter)
    first = interpreter.run_code("'kept' in globals()")
    assert first.text == "False"
    assert "variables of earlier cells are lost" in "".join(first.logs.stderr)
    assert interpreter.run_code("1").logs.stderr == []


def test_a_restart_through_the_sdk_is_no_news(interpreter: Sandbox) -> None:
    context = interpreter.create_code_context()
    interpreter.restart_code_context(context)
    assert interpreter.run_code("1", context=context).logs.stderr == []


def test_the_fresh_kernel_is_set_up_as_the_first_one_was(server, interpreter_template) -> None:
    with Sandbox.create(envs={"GLOBAL": "g"}) as sandbox:
        context = sandbox.create_code_context(cwd="/tmp")
        sandbox.run_code("import os\nos.chdir('/')\nos._exit(1)", context=context)
        assert sandbox.run_code("import os\nos.getcwd(), os.environ['GLOBAL']", context=context).text == "('/tmp', 'g')"
        assert sandbox.run_code("os.environ['CELL']", context=context, envs={"CELL": "c"}).text == "c"
        frame = sandbox.run_code("import pandas as pd\npd.DataFrame({'a': [1]})", context=context).results[0]
        assert frame.data == {"a": [1]}
        assert "\x1b" not in sandbox.run_code("1/0", context=context).error.traceback
