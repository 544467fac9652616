"""What the zygote does to its heap before it forks, tried by every interpreter that this machine has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src"

_TRIED = """
import ctypes, gc, json, os, sys
sys.path.insert(0, {sources!r})
from atoll.isolation.linux.sys import shared_heap

class Thing:
    def __init__(self, number):
        self.name, self.number = f"thing {{number}}", 10**6 + number

def use(things):
    return sum(len(one.name) + one.number for one in things)

things = [Thing(number) for number in range(1000)]
whole = [*things, *(one.name for one in things), use, use.__code__, use.__code__.co_consts, Thing, shared_heap]
expected = use(things)
held = shared_heap.settle()
before = [sys.getrefcount(one) for one in whole]
more = [whole, list(whole)] + [list(whole) for _ in range(3)]
changed = sum(then != sys.getrefcount(one) for then, one in zip(before, whole))
if (pid := os.fork()) == 0:
    gc.enable()
    del more, held
    for _ in range(3):
        assert use(things) == expected and json.loads(json.dumps([one.name for one in things]))[7] == "thing 7"
        things[:500], things[0].name = [Thing(number) for number in range(500)], "thing 0"
        gc.collect()
    os._exit(0)
ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(json.dumps({{"stands": shared_heap.counts_can_stand(), "changed": changed, "of": len(whole), "ended": ended}}))
"""


def _environ(name: str) -> dict[str, str]:
    return {**os.environ, "PYENV_VERSION": name.removeprefix("python")}  # where pyenv has several, that one


def _works(name: str) -> bool:
    found = shutil.which(name)
    return found is not None and not subprocess.run([found, "-c", ""], env=_environ(name), check=False).returncode


@pytest.mark.parametrize("name", [sys.executable, "python3.12", "python3.13", "python3.14"])
def test_what_is_there_before_a_fork_is_not_counted_any_more_and_works(name: str) -> None:
    if not _works(name):
        pytest.skip(f"this machine has no {name}")
    program = _TRIED.format(sources=str(SOURCES))
    done = subprocess.run(
        [name, "-c", program], capture_output=True, text=True, check=True, timeout=60, env=_environ(name)
    )
    said = json.loads(done.stdout)
    assert said["ended"] == 0
    if name != sys.executable or sys.version_info >= (3, 12):
        assert said["stands"]
    assert said["changed"] == (0 if said["stands"] else said["of"])
