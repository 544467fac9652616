"""How a kernel ends and how a reader leaves: what was printed before arrives, and the next cell runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from e2b_code_interpreter import Execution, Sandbox

from support.tiers import one_tier

Run = Callable[..., Execution]


@contextmanager
def stream(sandbox: Sandbox, body: dict[str, Any], *, token: bool = True) -> Iterator[httpx.Response]:
    """The lines of a cell as they come, for a reader that does what no SDK does."""
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49999"}
    if token and sandbox._envd_access_token:
        headers["X-Access-Token"] = sandbox._envd_access_token
    url = f"{os.environ['E2B_SANDBOX_URL']}/execute"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=120) as response:
        yield response


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("exit()", "exited with code 0"),
        ("quit()", "exited with code 0"),
        ("import os; os._exit(3)", "exited with code 3"),
        (
            "import os, threading, time; threading.Thread(target=os._exit, args=(4,)).start(); time.sleep(86385)",
            "exited with code 4",
        ),
        ("import os; os.execv('/bin/true', ['true'])", "exited with code 0"),
        (
            "import os, threading, time; open('none', 'w').write('no program'); os.chmod('none', 0o755)\n"
            "threading.Thread(target=os.execv, args=('none', ['none'])).start(); time.sleep(86384)",
            "exited with code 1",
        ),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
    ],
    ids=["exit", "quit", "_exit", "_exit of a thread", "exec", "exec of a thread that fails", "kill"],
)
def test_what_a_cell_printed_before_it_ended_its_kernel_arrives(run: Run, end: str, said: str) -> None:
    died = run(f"kept = 1\nfor n in range(5000): print(n)\n{end}\nprint('not reached')", timeout=60)
    assert "".join(died.logs.stdout) == "".join(f"{n}\n" for n in range(5000))
    assert died.error is not None
    assert (died.error.name, said in died.error.value) == ("KernelDied", True), died.error
    assert run("'kept' in globals()").text == "False"


def test_what_was_printed_before_a_kill_from_outside_arrives(run: Run, shared_interpreter: Sandbox) -> None:
    pid = run("import os; os.getpid()").text
    # Only once it is printed, however busy the machine is; a second is for what sends it, which nobody told to.
    kill = f"until [ -e said-{pid} ]; do sleep 0.1; done; sleep 1; kill -9 {pid}"
    begin = f"import subprocess; subprocess.Popen(['sh', '-c', {kill!r}], start_new_session=True)"
    died = run(f"{begin}\nimport time\nprint('before')\nopen('said-{pid}', 'w').close()\ntime.sleep(86386)", timeout=60)
    assert (died.logs.stdout, died.error and died.error.name) == (["before\n"], "KernelDied")


def test_handlers_of_exit_run_and_a_child_of_the_kernel_may_exit(run: Run) -> None:
    child = "import os\nif os.fork() == 0: os._exit(7)\nos.waitstatus_to_exitcode(os.wait()[1])"
    assert run(child).text == "7"
    pool = "import multiprocessing as m\nwith m.get_context('fork').Pool(1) as p: print(p.map(abs, [-1, -2]))"
    assert run(pool, timeout=60).logs.stdout == ["[1, 2]\n"]
    bye = run("import atexit\natexit.register(print, 'bye')\nexit()")
    assert "".join(bye.logs.stdout) == "bye\n"


@one_tier("the guest hands it on, the same program in every tier")
def test_a_reader_that_looks_away_and_returns_gets_all_of_it(shared_interpreter: Sandbox) -> None:
    context = shared_interpreter.create_code_context()
    code = "import time\nbegan = time.monotonic()\nfor n in range(300): print(n, 'x' * 100_000)\nprint('end')"
    text = ""
    with stream(shared_interpreter, {"code": code, "context_id": context.id}) as response:
        lines = response.iter_lines()
        for count, line in enumerate(lines):
            if count in (2, 20):
                time.sleep(1.5)
            told = json.loads(line)
            text += told.get("text", "") if told["type"] == "stdout" else ""
    assert [int(line.partition(" ")[0]) for line in text.splitlines()[:-1]] == list(range(300))
    assert text.endswith("x\nend\n")
    shared_interpreter.remove_code_context(context)


def test_a_cell_that_prints_for_ever_ends_when_its_reader_leaves_and_the_reader_may_return(
    shared_interpreter: Sandbox,
) -> None:
    context = shared_interpreter.create_code_context()
    code = "n = 0\nwhile True:\n    n += 1\n    print(n)"
    with stream(shared_interpreter, {"code": code, "context_id": context.id}) as response:
        assert next(line for line in response.iter_lines() if '"stdout"' in line)
    back = shared_interpreter.run_code("n > 0", context=context, timeout=60)
    assert (back.text, back.logs.stdout) == ("True", []), "nothing of the earlier cell is in this one"
    shared_interpreter.remove_code_context(context)


def test_a_cell_that_prints_for_ever_waits_for_a_reader_who_is_away_and_takes_little_memory_meanwhile(
    shared_interpreter: Sandbox,
) -> None:
    context = shared_interpreter.create_code_context()
    pid = shared_interpreter.run_code("import itertools, os\nos.getpid()", context=context).text

    def resident_mib() -> int:
        status = shared_interpreter.commands.run(f"cat /proc/{pid}/status").stdout
        return int(status.partition("VmRSS:")[2].split()[0]) >> 10

    before = resident_mib()
    code = "for n in itertools.count(): print(n, 'x' * 100_000)"
    with stream(shared_interpreter, {"code": code, "context_id": context.id}) as response:
        printed = (told["text"] for told in map(json.loads, response.iter_lines()) if told["type"] == "stdout")
        text = next(printed)
        time.sleep(3)  # it could print hundreds of megabytes
        grown = resident_mib() - before
        while text.count("\n") < 300:
            text += next(printed)
    assert grown < 128
    assert [int(line.partition(" ")[0]) for line in text.splitlines()[:300]] == list(range(300))
    assert shared_interpreter.run_code("n > 300", context=context, timeout=60).text == "True"
    shared_interpreter.remove_code_context(context)


def test_packages_are_installed_in_a_cell(run: Run, shared_interpreter: Sandbox) -> None:
    files = {
        "pkg/pyproject.toml": "[build-system]\nrequires = ['setuptools']\nbuild-backend = 'setuptools.build_meta'\n"
        "[project]\nname = 'from-a-cell'\nversion = '1'\n[tool.setuptools]\npy-modules = ['from_a_cell']\n",
        "pkg/from_a_cell.py": "VALUE = 'python'\n",
        "npm/package.json": '{"name": "of-a-cell", "version": "1.0.0", "main": "index.js"}',
        "npm/index.js": "module.exports = 'javascript'\n",
    }
    for path, text in files.items():
        shared_interpreter.files.write(path, text)
    installed = run("!pip install --no-index --no-build-isolation ./pkg", timeout=120)
    assert run("import from_a_cell; from_a_cell.VALUE").text == "python", "".join(installed.logs.stdout)
    context = shared_interpreter.create_code_context()
    new = shared_interpreter.run_code("import from_a_cell; from_a_cell.VALUE", context=context)
    assert new.text == "python", "a kernel that is forked later finds it"
    shared_interpreter.remove_code_context(context)
    packed = run("!npm install --offline --no-audit --install-links ./npm", timeout=120)
    required = shared_interpreter.run_code("require('of-a-cell')", language="javascript", timeout=60)
    assert required.text == "javascript", (required.error, packed.logs)


@pytest.mark.parametrize("secure", [True, False], ids=["secure", "insecure"])
def test_contexts_of_a_sandbox_with_and_without_a_token(server: Any, interpreter_template: Any, secure: bool) -> None:
    if secure:
        made = Sandbox.create(timeout=300)
    else:  # as older SDKs ask for one: the newest always gets a secure sandbox
        body, key = {"templateID": "code-interpreter-v1", "timeout": 300}, {"X-API-Key": server.api_key}
        made = Sandbox.connect(httpx.post(f"{server.url}/sandboxes", json=body, headers=key).json()["sandboxID"])
    with made as sandbox:
        context = sandbox.create_code_context()
        assert sandbox.run_code("v = 7; v", context=context).text == "7"
        with stream(sandbox, {"code": "v", "context_id": context.id}, token=False) as response:
            assert response.status_code == (401 if secure else 200)
        again = Sandbox.connect(sandbox.sandbox_id)
        assert again.run_code("v", context=context).text == "7"
        again.restart_code_context(context)
        assert again.run_code("v", context=context).error.name == "NameError"
        again.remove_code_context(context)
        assert context.id not in {one.id for one in sandbox.list_code_contexts()}
