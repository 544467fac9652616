"""Runs the tests of `js/` (published npm packages `e2b`, `@e2b/code-interpreter`) and shows each as one test here."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.npm import JS, install_node_modules
from support.tiers import one_tier

pytestmark = one_tier("the requests are those of the Python SDK, which is tested in each tier")

FILES = sorted(JS.glob("*.test.mjs"))
CASES = [(file.name, name) for file in FILES for name in re.findall(r"^test\('([^']+)'", file.read_text(), re.M)]
NEEDS_INTERPRETER = {"interpreter.test.mjs"}
FILE_TIME_S = 240


@pytest.fixture(scope="session")
def node_modules() -> Path:
    return install_node_modules()


@pytest.fixture(scope="session")
def js_results(node_modules: Path, server: Any) -> Any:
    """file → {test name: result}; a file runs when its first test is asked for."""
    results: dict[str, dict[str, dict[str, Any]]] = {}

    def of(file: str) -> dict[str, dict[str, Any]]:
        if file not in results:
            environ = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **server.environ}
            done = subprocess.run(
                ["node", "--test", "--test-reporter=./reporter.mjs", "--test-timeout=90000", file],
                cwd=JS,
                env=environ,
                capture_output=True,
                text=True,
                timeout=FILE_TIME_S,
                check=False,
            )
            lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            results[file] = {line["name"]: line for line in lines}
            assert lines, f"{file} told nothing: {done.stdout[-2000:]} {done.stderr[-2000:]}"
        return results[file]

    return of


def test_every_javascript_file_has_tests() -> None:
    assert {file for file, _ in CASES} == {file.name for file in FILES} != set()
    assert len(CASES) == len(set(CASES))


@pytest.mark.timeout(FILE_TIME_S + 60)
@pytest.mark.parametrize(("file", "name"), CASES, ids=[f"{file.split('.')[0]}: {name}" for file, name in CASES])
def test_javascript(js_results: Any, request: pytest.FixtureRequest, file: str, name: str) -> None:
    if file in NEEDS_INTERPRETER:
        request.getfixturevalue("interpreter_template")
    result = js_results(file).get(name)
    assert result is not None, f"{file} ended before {name!r}"
    assert result["passed"], result["detail"]
