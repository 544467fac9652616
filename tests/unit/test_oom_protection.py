"""Who the OOM killer spares: protection where it is permitted, an honest word where it is not, and never passed on."""

from __future__ import annotations

import subprocess
import sys

from atoll.cli.doctor import _oom_killer
from atoll.isolation.base import Verdict
from atoll.isolation.linux.sys import caps, oom
from atoll.isolation.linux.sys.caps import Cap
from support.raising import raised

PROTECTS_ITSELF = """
from atoll.isolation.linux.sys import oom
protected = oom.protect()
now = oom.score_of()
oom.make_ordinary()
print(protected, now, oom.score_of())
"""


def run(code: str) -> list[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_a_process_is_protected_where_it_may_and_ordinary_again_before_it_is_anothers() -> None:
    before = oom.score_of()
    if caps.is_held(Cap.SYS_RESOURCE):
        assert run(PROTECTS_ITSELF) == ["True", str(oom.PROTECTED), "0"]
        assert _oom_killer().verdict is Verdict.OK
    else:
        assert run(PROTECTS_ITSELF) == ["False", str(before), str(max(before, 0))]
        assert _oom_killer().verdict is Verdict.WARN
        assert f"OOMScoreAdjust={oom.PROTECTED}" in _oom_killer().fix


def test_a_score_that_is_higher_than_ordinary_stays() -> None:
    code = "open('/proc/self/oom_score_adj', 'w').write('700')\n" + PROTECTS_ITSELF
    assert run(code)[2] in ("700", "0") if caps.is_held(Cap.SYS_RESOURCE) else run(code)[2] == "700"


def test_of_a_process_that_has_ended_nothing_is_said() -> None:
    assert raised(oom.make_ordinary, (1 << 22) - 1) is None
