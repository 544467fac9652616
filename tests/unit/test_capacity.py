"""What a machine has for sandboxes: finite whatever the machine, and the operator's word before ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atoll.config import Settings
from atoll.model.capacity import OVERCOMMIT, Amounts, Machine, Wishes, derive
from atoll.model.errors import InvalidRequest
from atoll.model.sandbox import Limits
from atoll.node.machine import machine_here

SERVER = Machine(processors=8, memory_mib=32768, pids=32768, disk_size_mib=500_000, disk_free_mib=400_000)
TINY = Machine(processors=1, memory_mib=512, pids=1000, disk_size_mib=1000, disk_free_mib=300)


def test_the_host_keeps_a_part_of_everything() -> None:
    found = derive(SERVER)
    assert found.at_once == Limits(8, 32768 - 3276, 400_000 - 10_240, 24_576)
    assert found.disk_reserve_mib == 10_240, "a twentieth, and no more than 10 GiB"
    assert found.maximum == Limits(8, 32768 - 3276, 400_000 - 10_240, 6144), "one sandbox: a quarter of the processes"


def test_sums_exceed_the_machine_by_stated_factors_and_no_team_has_all() -> None:
    found = derive(SERVER)
    for name, factor in OVERCOMMIT.items():
        assert getattr(found.total, name) == getattr(found.at_once, name) * factor
        assert 0 < getattr(found.team, name) < getattr(found.total, name)
    default = Limits()
    assert all(getattr(found.team, name) >= 300 * getattr(default, name) for name in Limits.__slots__)


def test_the_smallest_machine_may_have_a_sandbox() -> None:
    found = derive(TINY)
    assert found.maximum == Limits(1, 256, 256, 256)
    assert all(getattr(found.team, name) >= getattr(found.maximum, name) for name in Limits.__slots__)


def test_what_the_operator_says_holds_and_the_rest_follows_from_it() -> None:
    wishes = Wishes(
        maximum=Amounts(cpu_count=99), total=Amounts(pids=700), at_once=Amounts(pids=400), disk_reserve_mib=7
    )
    found = derive(SERVER, wishes)
    assert (found.maximum.cpu_count, found.maximum.pids) == (99, 256)
    assert (found.total.pids, found.team.pids, found.at_once.pids) == (700, 525, 400)
    assert found.disk_reserve_mib == 7
    assert found.total.memory_mib == derive(SERVER).total.memory_mib


def test_settings_name_each_amount() -> None:
    environ = {"ATOLL_TEAM_DISK_MIB": "5", "ATOLL_TOTAL_CPU": "6", "ATOLL_USED_PIDS": "7", "ATOLL_MAX_MEMORY_MIB": "8"}
    sizes = Settings.from_environ(environ).sizes
    assert sizes == Wishes(Amounts(memory_mib=8), Amounts(disk_mib=5), Amounts(cpu_count=6), Amounts(pids=7))
    with pytest.raises(InvalidRequest, match="ATOLL_TOTAL_PIDS"):
        Settings.from_environ({"ATOLL_TOTAL_PIDS": "many"})


def _root(place: Path, **files: str) -> Path:
    texts = {"proc/meminfo": "MemTotal: 1048576 kB\n", "proc/sys/kernel/pid_max": "4000\n", **files}
    for name, text in texts.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return place


def test_a_containers_bounds_are_the_machine(tmp_path: Path) -> None:
    bare = machine_here(tmp_path, _root(tmp_path / "bare"))
    assert (bare.memory_mib, bare.pids) == (1024, 4000)
    bounds = {"sys/fs/cgroup/memory.max": "268435456\n", "sys/fs/cgroup/pids.max": "max\n"}
    held = machine_here(tmp_path, _root(tmp_path / "held", **bounds, **{"proc/sys/kernel/threads-max": "3000\n"}))
    assert (held.memory_mib, held.pids) == (256, 3000)


def test_what_sandboxes_have_of_the_disk_counts_as_free(tmp_path: Path) -> None:
    image = tmp_path / "sandboxes/iabc/disk.img"
    image.parent.mkdir(parents=True)
    with image.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 512 << 20)
    counted = machine_here(tmp_path).disk_free_mib
    space = os.statvfs(tmp_path)
    assert counted - (space.f_bavail * space.f_frsize >> 20) > 400, "other programs write here too"
