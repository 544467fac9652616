"""The short form of `make chaos`: a fixed seed and few faults, in each tier."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.run import run
from chaos.world import World, small_disk
from support.host import requires

SEED, FAULTS = 11, 10


@requires("root")
@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_and_nothing_is_left(tier: str, tmp_path: Path, templates_dir: Path) -> None:
    with small_disk(tmp_path) as mounted, World(tier, mounted or tmp_path, templates_dir) as world:
        report = run(world, SEED, FAULTS, can_fill=mounted is not None)
        assert report.violations == [], f"{report}\n{world.server.log_tail()}"
        assert sum(report.faults.values()) >= FAULTS // 2, "the control: it was attacked"
        assert sum(report.answered.values()) > 5, "the control: there was something to lose"
