"""`atoll stress` as a user types it, with sizes for a test; the scenarios' own findings, not their times."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atoll.images.recipes import RECIPES, Recipe
from atoll.images.store import TemplateStore
from atoll.model.errors import BuildFailed
from atoll.stress import SCENARIOS, Sizes, run
from support.tiers import one_tier

pytestmark = one_tier("measures the runtime under load; what it does in each tier is in test_runtime*.py")

SMALL = Sizes(edits=10, requests=10, iterations=2, cpu_s=1.0, at_once=4, jobs=6, actions=2, hard_timeout_s=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_every_scenario_finds_the_runtime_correct(server: Any, interpreter_template: Any, name: str) -> None:
    found = run([name], SMALL, {}).scenarios[0]
    assert found.error == ""
    truths = {"correct", "success_rate", "stopped", "usable_after"} & set(found.figures)
    assert {truth: found.figures[truth] for truth in truths} == dict.fromkeys(truths, 1.0)
    assert found.figures.get("share", 0) <= 1.5


@pytest.fixture
def equipped(templates_dir: Path, tmp_path: Path) -> Iterator[str]:
    """A template with stress-ng beside the session's; skips where Debian's cannot be had."""
    script, name = tmp_path / "layer.sh", f"with-stress-ng-{os.getpid()}"
    install = "apt-get install -y -qq --no-install-recommends $APT_PACKAGES"
    script.write_text(f"set -eu\nexport DEBIAN_FRONTEND=noninteractive\napt-get update -qq\n{install} >/dev/null\n")
    recipe = Recipe(name, "a test", str(script), parent="base", apt_packages=("stress-ng",))
    try:
        TemplateStore(templates_dir, {**RECIPES, name: recipe}).ensure_template(name)
    except BuildFailed as error:
        pytest.skip(f"stress-ng cannot be had here: {error}")
    yield name
    shutil.rmtree(templates_dir / name)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_stress_ng_is_refused_or_killed_with_the_documented_codes(server: Any, equipped: str) -> None:
    found = run(["memory"], replace(SMALL, template=equipped), {}).scenarios[0]
    assert found.error == ""
    assert found.notes[0] == "memory was asked for by stress-ng"
    assert found.figures["refused_exit_code"] == 3.0
    assert (found.figures["stopped"], found.figures["usable_after"]) == (1.0, 1.0), found.notes


def test_a_missed_threshold_is_the_exit_code_and_stands_in_the_report(
    server: Any, templates_dir: Path, tmp_path: Path
) -> None:
    page, data = tmp_path / "r.html", tmp_path / "r.json"
    command = [sys.executable, "-m", "atoll", "stress", "network", "--quick", "--report", str(page)]
    command += ["--json-file", str(data)]
    environ = {**os.environ, "ATOLL_TEMPLATES_DIR": str(templates_dir)}

    def stress(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], env=environ, capture_output=True, text=True, timeout=100, check=False)

    missed = stress("--threshold", "network.request_ms_p50<=0")
    assert missed.returncode == 1, missed.stderr
    assert "thresholds were missed" in missed.stdout
    assert "Missed: network.request_ms_p50 ≤ 0" in page.read_text()
    assert json.loads(data.read_text())["scenarios"][0]["figures"]["success_rate"] == 1.0
    wrong = stress("--threshold", "nonsense")
    assert (wrong.returncode, "is no threshold" in wrong.stderr) == (1, True)
