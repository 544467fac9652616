"""The short form of `make soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.world import World
from soak.run import soak
from support.host import requires


@requires("root")
@pytest.mark.timeout(400)
def test_nothing_is_left_and_no_process_keeps_open_files(tier: str, tmp_path: Path, templates_dir: Path) -> None:
    cycles, pauses = (20, 4) if tier == "namespaces" else (2, 2)
    with World(tier, tmp_path, templates_dir) as world:
        report = soak(world, cycles, pauses)
    assert report["left"] == {}, report
    for role, before in report["before"].items():
        assert report["after"][role]["files"] < before["files"] + 20, (
            report
        )  # connections that clients keep come and go
