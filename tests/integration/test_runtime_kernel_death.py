"""The agent's kernel dies: the next cell finds everything that the runtime had put there, and says what is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from atoll.runtime import (
    AgentSkillsRequirement,
    CmdOutputObservation,
    CmdRunAction,
    E2BRuntime,
    IPythonRunCellAction,
    JupyterRequirement,
)
from atoll.runtime.kernel.ipython import RESTARTED
from support.tiers import one_tier

pytestmark = one_tier("what the runtime makes of what test_sdk_interpreter_death.py shows in each tier")

PROBE = "import os; print('init_ran' in globals(), 'file_editor' in globals(), os.getcwd(), os.environ.get('ADDED'))"
READY = "True True /tmp yes"


@pytest.fixture(scope="module")
def runtime(server: Any, interpreter_template: Any) -> Iterator[E2BRuntime]:
    with E2BRuntime(plugins=[JupyterRequirement(), AgentSkillsRequirement()]) as made:
        made.add_env_vars({"ADDED": "yes"})
        made.run_action(CmdRunAction(command="cd /tmp"))
        yield made


def cell(runtime: E2BRuntime, code: str, **more: Any) -> str:
    action = IPythonRunCellAction(code=code, kernel_init_code="init_ran = True", include_extra=False, **more)
    return runtime.run_action(action).content


def test_a_kernel_that_lives_is_not_called_restarted(runtime: E2BRuntime) -> None:
    cell(runtime, "kept = 1")
    assert cell(runtime, PROBE) == READY
    assert cell(runtime, "print(kept)") == "1"


def test_after_a_death_in_a_cell_everything_is_back_and_the_loss_is_told(runtime: E2BRuntime) -> None:
    cell(runtime, "kept = 1")
    died = cell(runtime, "import os; os._exit(1)")
    assert "KernelDied" in died
    assert "variables are lost" in died
    after = cell(runtime, PROBE)
    assert after.splitlines()[0] == READY
    assert after.endswith(RESTARTED)
    assert cell(runtime, "print('kept' in globals())") == "False"


def test_after_a_death_between_two_cells_everything_is_back_and_the_loss_is_told(runtime: E2BRuntime) -> None:
    pid = cell(runtime, "import os; print(os.getpid())").splitlines()[0]
    killed = runtime.run_action(CmdRunAction(f"kill -9 {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.1; done"))
    assert isinstance(killed, CmdOutputObservation)
    after = cell(runtime, PROBE)
    assert after == f"{READY}\n{RESTARTED}"
    assert cell(runtime, PROBE) == READY


def test_a_cell_without_output_says_it_too(runtime: E2BRuntime) -> None:
    cell(runtime, "import os; os._exit(1)")
    assert RESTARTED in cell(runtime, "x = 1")


def test_forgetting_variables_is_no_death(runtime: E2BRuntime) -> None:
    cell(runtime, "%reset -f")
    assert RESTARTED not in cell(runtime, "print(1)")


def test_a_cell_behind_one_that_cannot_be_interrupted_is_over_its_time(runtime: E2BRuntime) -> None:
    stubborn = (
        "import time\nend = time.time() + 12\n"
        "while time.time() < end:\n    try: time.sleep(0.2)\n    except KeyboardInterrupt: pass"
    )
    cell(runtime, "kept = 'yes'")
    assert "timed out" in cell(runtime, stubborn, timeout=1)
    assert cell(runtime, "print(1)", timeout=2) == "[Execution timed out (2 seconds).]"
    assert cell(runtime, "print(kept)", timeout=60) == "yes"
