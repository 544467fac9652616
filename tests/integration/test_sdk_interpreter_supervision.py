"""What a cell may do to its kernel, and to whoever reads it: each ends as people expect, and the next cell runs."""

from __future__ import annotations

import os
import threading
from ast import literal_eval
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
from e2b_code_interpreter import Execution, OutputMessage, Result, Sandbox
from sdk_support import eventually

from support.tiers import one_tier

Run = Callable[..., Execution]


def health(sandbox: Sandbox) -> int:
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49999"}
    return httpx.get(f"{os.environ['E2B_SANDBOX_URL']}/health", headers=headers, timeout=30).status_code


@contextmanager
def watched(sandbox: Sandbox) -> Iterator[list[int]]:
    """What its health was meanwhile, each change once."""
    seen: list[int] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.01):
            status = health(sandbox)
            if seen[-1:] != [status]:
                seen.append(status)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        stop.set()
        looking.join()


def test_a_killed_kernel_is_back_by_itself_and_the_other_contexts_did_not_notice(interpreter: Sandbox) -> None:
    other = interpreter.create_code_context()
    interpreter.run_code("kept = 'other'", context=other)
    pid = interpreter.run_code("import os, time; time.sleep(3.5); os.getpid()").text
    with watched(interpreter) as seen:
        eventually(lambda: seen == [200], what="all is well")
        interpreter.commands.run(f"kill -9 {pid}")
        eventually(lambda: seen[-2:] == [503, 200], what="it went bad and came back without a cell")
    assert interpreter.run_code("kept", context=other).text == "other"
    told = interpreter.run_code("'kept' in globals()")
    assert (told.text, "SIGKILL" in "".join(told.logs.stderr)) == ("False", True)
    interpreter.restart_code_context(interpreter.list_code_contexts()[0])
    assert interpreter.run_code("'again'").text == "again"
    assert health(interpreter) == 200


def test_nobody_inside_can_end_the_interpreters_service(shared_interpreter: Sandbox) -> None:
    shared_interpreter.commands.run("kill -9 1; kill -STOP 1; pkill -9 -x atoll-guest; true", user="root")
    assert shared_interpreter.run_code("6 * 7").text == "42"
    assert health(shared_interpreter) == 200
    inside = "curl -s http://localhost:49999/health; curl -s -o /dev/null -w ' %{http_code}' localhost:49999/contexts"
    assert shared_interpreter.commands.run(inside).stdout == "OK 403", "who is inside may ask, and no more"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os\nos.execv('/bin/sleep', ['sleep', '600'])", "closed its connection"),
        ("import os\nos.abort()", "SIGABRT"),
    ],
    ids=["exec that goes on", "abort"],
)
def test_a_cell_that_ends_its_kernel_is_told_how_and_the_next_one_runs(run: Run, code: str, said: str) -> None:
    died = run(code, timeout=60)
    assert died.error is not None
    assert (died.error.name, said in died.error.value) == ("KernelDied", True), died.error
    assert run("6 * 7").text == "42"


def test_what_programs_of_every_kind_do_is_what_people_expect(run: Run, shared_interpreter: Sandbox) -> None:
    assert run("import sys\nsys.exit(3)").error.name == "SystemExit"
    assert run("import asyncio\nawait asyncio.gather(*[asyncio.sleep(0, n) for n in (1, 2)])").text == "[1, 2]"
    assert run("async def f(): return 7\nasyncio.get_event_loop()\nawait f()").text == "7"
    threads = "import threading\nt = [threading.Thread(target=print, args=(n,)) for n in range(20)]\n"
    threads += "[x.start() for x in t]; [x.join() for x in t]; None"
    assert sorted("".join(run(threads).logs.stdout).split(), key=int) == [str(n) for n in range(20)]
    alive = run("import subprocess\np = subprocess.Popen(['sleep', '595'])\np.pid").text
    assert shared_interpreter.commands.run(f"kill -0 {alive} && echo alive").stdout == "alive\n"
    assert run("p.poll() is None").text == "True"
    binary = run("import os\nos.write(1, b'caf\\xc3\\xa9 \\xff\\n')\nprint('\\0\\udc80 žluť')")
    assert all(part in "".join(binary.logs.stdout) for part in ("café \ufffd", "žluť"))
    assert run("bytes([0, 255])").text == r"b'\x00\xff'"
    assert run("input('name? ')").error.name == "StdinNotImplementedError"
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.savefig('/tmp/a.png')"
    assert [result.png is not None for result in run(plot).results] == [True], "shown, though it was saved"
    drawn = shared_interpreter.commands.run(f'python3 -c "{plot}; plt.show()"', timeout=120)
    assert drawn.exit_code == 0, "there is no display, and none is needed"
    assert run("1").text == "1"


def test_a_large_table_and_what_memory_does_not_hold(run: Run) -> None:
    shown = run("import numpy as np, pandas as pd\npd.DataFrame(np.zeros((6_000_000, 8)))", timeout=120)
    assert shown.error is None, shown.error
    assert "6000000 rows" in shown.results[0].text
    assert shown.results[0].data is None
    failed = run("np.zeros(200_000_000_000_000)")
    assert failed.error is not None
    assert failed.error.name in ("MemoryError", "_ArrayMemoryError")
    assert run("6 * 7").text == "42"


@one_tier("the guest hands it on, the same program in every tier")
@pytest.mark.timeout(600)
def test_ten_thousand_results_and_a_hundred_megabytes_arrive_in_order(run: Run) -> None:
    results: list[str | None] = []

    def hear(result: Result) -> None:
        results.append(result.text)

    execution = run("for n in range(10_000): display(n)", on_result=hear, timeout=250)
    assert execution.error is None, execution.error
    assert results == [str(n) for n in range(10_000)]
    sizes: list[int] = []

    def count(message: OutputMessage) -> None:
        sizes.append(len(message.line))

    run("import sys\nfor n in range(100): sys.stdout.write(chr(65 + n % 26) * 1_000_000)", on_stdout=count, timeout=300)
    assert sum(sizes) == 100_000_000
    assert run("6 * 7").text == "42"


def test_the_usual_libraries_wait_for_the_first_cell(interpreter: Sandbox) -> None:
    """A sandbox that nobody asks for anything is one that waits for its owner: the imports are done meanwhile."""
    loaded = "cat /proc/[0-9]*/maps 2>/dev/null | grep -q /matplotlib/ && echo yes || true"
    eventually(lambda: interpreter.commands.run(loaded).stdout, what="matplotlib is loaded", within_s=60)
    interpreter.commands.run("touch /usr/local/lib/python3*/dist-packages/pandas/__init__.py", user="root")
    names = "import sys; sorted({name.partition('.')[0] for name in sys.modules} & {'numpy', 'pandas', 'matplotlib'})"
    assert interpreter.run_code(names).text == "[]"
    first = interpreter.run_code("import numpy as np, pandas as pd, matplotlib.pyplot as plt\nplt.plot(np.ones(3))")
    assert first.error is None, first.error
    assert any(result.chart for result in first.results)
    assert "pandas: installed after this kernel had loaded it" in "".join(first.logs.stderr)
    assert interpreter.run_code("import pandas.testing\npd.DataFrame({'a': [1]})").results[0].data == {"a": [1]}


@one_tier("in gVisor a fork copies 2 MiB for a page that is written: kernels are started there, and 25 fit")
def test_32_python_contexts_fit_into_a_gibibyte_and_share_nothing_but_memory(interpreter: Sandbox) -> None:
    made = [interpreter.create_code_context() for _ in range(32)]
    for n, context in enumerate(made):
        assert interpreter.run_code(f"import os, random\nmine = {n}", context=context).error is None
    told = [interpreter.run_code("mine, os.getpid(), random.random()", context=one).text for one in made]
    values = [literal_eval(text or "") for text in told]
    assert [mine for mine, _, _ in values] == list(range(32))
    assert {len({pid for _, pid, _ in values}), len({drawn for _, _, drawn in values})} == {32}

    loaded = "grep -lz -e '^exec(open(0' /proc/[0-9]*/cmdline | sed 's/cmdline/maps/' | xargs grep -l /matplotlib/"
    eventually(lambda: interpreter.commands.run(f"{loaded}; true").stdout, what="the libraries are there", within_s=60)
    drawn = []
    for context in made[:2]:
        interpreter.restart_code_context(context)
        plotted = interpreter.run_code(
            "import numpy, matplotlib.pyplot as plt\nplt.plot(numpy.ones(3))", context=context
        )
        assert any(result.chart for result in plotted.results), plotted.error
        drawn.append(interpreter.run_code("numpy.random.random()", context=context).text)
    assert drawn[0] != drawn[1]
    assert interpreter.run_code("mine", context=made[2]).text == "2"


@one_tier("in gVisor kernels are not forked")
def test_a_fork_server_that_is_killed_takes_no_kernel_with_it_and_is_not_missed(interpreter: Sandbox) -> None:
    before = interpreter.create_code_context()
    interpreter.run_code("kept = 1", context=before)
    servers = "grep -lz -e '^exec(open(0' /proc/[0-9]*/cmdline | cut -d / -f 3 | sort -n | head -1"
    interpreter.commands.run(f"kill -9 $({servers})")
    after = interpreter.create_code_context(cwd="/tmp")
    assert interpreter.run_code("import os; os.getcwd()", context=after).text == "/tmp"
    assert interpreter.run_code("kept", context=before).text == "1"


@one_tier("the guest hands it on, the same program in every tier")
def test_many_contexts_are_listed_apart_and_gone(shared_interpreter: Sandbox) -> None:
    made = [shared_interpreter.create_code_context(language="bash") for _ in range(100)]
    some = made[::10]
    for n, context in enumerate(some):
        shared_interpreter.run_code(f"mine={n}", context=context)
    values = [shared_interpreter.run_code("echo $mine", context=context).logs.stdout for context in some]
    assert values == [[f"{n}\n"] for n in range(10)]
    assert {context.id for context in made} <= {context.id for context in shared_interpreter.list_code_contexts()}
    for context in made:
        shared_interpreter.remove_code_context(context)
    assert not {context.id for context in made} & {context.id for context in shared_interpreter.list_code_contexts()}
