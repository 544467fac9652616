"""Every collection finds the same tests by the same names, else a session with workers refuses to start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]


def _collected(seed: str) -> list[str]:
    """The names of all tests, as a process with this hash seed collects them."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"]
    environ = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run(command, cwd=TREE, env=environ, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.timeout(600)
def test_names_depend_on_neither_the_time_nor_the_process() -> None:
    first, second = _collected("1"), _collected("2")
    assert len(first) > 1000
    assert set(first) ^ set(second) == set()
    assert first == second
