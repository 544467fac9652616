"""Every collection finds the same tests by the same names, else a session with workers refuses to start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_names_depend_on_neither_the_time_nor_the_process(request: pytest.FixtureRequest) -> None:
    """This session's own are compared with those of a later process with another seed."""
    here = [item.nodeid for item in request.session.items]
    files = sorted({name.partition("::")[0] for name in here})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    environ = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run(command, cwd=TREE, env=environ, capture_output=True, text=True, check=True)
    there = set(done.stdout.splitlines())
    assert [name for name in here if name not in there] == []
