"""Frameworks that have E2B built in, as they are published: nothing is changed but the SDK's environment variables.

Each runs a small real program (`tests/clients`) in an environment of its own, with the versions that are written down
in `tests/clients/requirements`; the first run installs them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from e2b import NotFoundException, Sandbox

from matrix.run import client_environ, domain_server
from support.host import skip_without
from support.python_environment import InstallFailed, python_environment
from support.server import ServerProcess
from support.tiers import one_tier

CLIENTS = Path(__file__).parents[1] / "clients"
RUN_S = 600
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    one_tier("frameworks over the SDK, whose calls are tested in each tier"),
]


def python_of(environment: str) -> Path:
    """The Python of the clients' environment, installed if needed; skips where that cannot be, but not in CI."""
    lines = (CLIENTS / "requirements" / f"{environment}.txt").read_text().splitlines()
    try:
        return python_environment(
            f"clients-{environment}", [line for line in lines if not line.startswith("#")], resolve=False
        )
    except InstallFailed as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the packages of {environment} cannot be installed here: {error}")


def run(environment: str, arguments: list[str], variables: dict[str, str], tmp_path: Path) -> str:
    """What a program of the environment prints. It must end with 0."""
    environ = {**client_environ(variables), "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(python_of(environment)), *arguments]
    done = subprocess.run(
        command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=RUN_S, check=False
    )
    assert done.returncode == 0, f"{arguments} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def found_by(name: str, environment: str, variables: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    """The last line that the client's program prints, as JSON."""
    out = run(environment, [str(CLIENTS / f"{name}_program.py")], variables, tmp_path)
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


def is_gone(sandbox_id: str) -> bool:
    with pytest.raises(NotFoundException):
        Sandbox.get_info(sandbox_id)
    return True


def test_smolagents_runs_an_agents_code_in_a_sandbox(
    server: ServerProcess, interpreter_template: None, tmp_path: Path
) -> None:
    found = found_by("smolagents", "agents", server.environ, tmp_path)
    assert found["answer"] == {"state": 20, "note": "2020"}
    assert [("seen" in text, "/home/user" in text) for text in found["observations"][:2]] == [
        (True, False),
        (False, True),
    ]
    assert ["ZeroDivisionError" in error for error in found["errors"]] == [False, False, True, False]
    assert is_gone(found["sandbox"])


def test_agnos_tools_work(server: ServerProcess, interpreter_template: None, tmp_path: Path) -> None:
    found = found_by("agno", "agents", server.environ, tmp_path)
    assert "Result 1: 42" in found["code"]
    assert "out" in found["code"]
    assert found["error"].startswith("Error: ZeroDivisionError\ndivision by zero\n")
    assert (found["png"], found["png_begins"]) == (1, "89504e47")
    assert (found["uploaded"], found["read"]) == ("/home/user/up.txt", "from here")
    assert found["written"] == "/home/user/made.txt"
    assert {"- made.txt (File, 4 bytes)", "- up.txt (File, 9 bytes)"} <= set(found["listed"].splitlines())
    assert json.loads(found["command"]) == ["STDOUT:\none\n/home/user\n", "STDERR:\ntwo\n"]
    assert json.loads(found["streamed"]) == ["STDOUT: streamed\n"]
    assert found["killed"] == "Background command terminated successfully."
    assert f"8000-{found['sandbox']}" in found["url"]
    assert found["timeout"] == "60"
    assert json.loads(found["shutdown"])["status"] == "success"
    assert is_gone(found["sandbox"])


def test_haystacks_tools_work(server: ServerProcess, tmp_path: Path) -> None:
    found = found_by("haystack", "agents", server.environ, tmp_path)
    assert found["run_bash_command"] == "exit_code: 3\nstdout:\nhello\n\nstderr:\nerr\n"
    assert found["write_file"] == "File written successfully: /tmp/a/note.txt"
    assert found["read_file"] == "größe"
    assert found["list_directory"] == "note.txt"
    assert is_gone(found["sandbox"])


def test_the_openai_agents_sdks_sandbox_sessions_work(server: ServerProcess, tmp_path: Path) -> None:
    found = found_by("openai_agents", "openai_agents", server.environ, tmp_path)
    assert found["exec"] == ["hello\n/workspace\n", "err\n", 3]
    assert (found["read"], found["moved"], found["same"]) == ("größe",) * 3
    assert found["ls"] == ["note.txt"]
    assert "got word" in found["pty"]
    assert found["port"].startswith(f"8000-{found['sandbox']}.")
    assert found["running"] is True
    assert is_gone(found["sandbox"])


def test_camels_interpreter_works_by_domain_with_an_sdk_of_version_one(
    interpreter_template: None, tmp_path: Path
) -> None:
    skip_without("*.localhost")
    with domain_server() as variables:
        found = found_by("camel", "camel", variables, tmp_path)
    assert found["sdk"].startswith("1.")
    assert found["state"] == ["Code executed successfully (no output).", "42\nResult(42)"]
    assert (found["printed"], found["bash"]) == ("out\n", "42\n")
    assert found["error"].startswith("ZeroDivisionError: division by zero")
    assert found["plot"].strip().startswith("![image](data:image/png;base64,iVBORw0K")
    assert found["command"] == "/home/user\n"
    assert found["unknown"].startswith("Unsupported code type cobol.")


def test_langchains_standard_suite_for_sandboxes_passes_whole(server: ServerProcess, tmp_path: Path) -> None:
    assert passed_by_langchain("TestE2BSandbox", server, tmp_path) == "86 passed"


def test_langchains_standard_suite_passes_whole_for_the_asynchronous_class(
    server: ServerProcess, tmp_path: Path
) -> None:
    assert passed_by_langchain("TestAsyncE2BSandbox", server, tmp_path) == "86 passed"


def passed_by_langchain(name: str, server: ServerProcess, tmp_path: Path) -> str:
    """How many tests passed, and whatever else became of some."""
    options = ["-q", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(CLIENTS)]
    suite = ["-m", "pytest", *options, f"{CLIENTS / 'langchain_suite.py'}::{name}"]
    summary = run("langchain", suite, server.environ, tmp_path).strip().splitlines()[-1]
    return re.sub(r"(, \d+ warnings?)? in .*", "", summary)
