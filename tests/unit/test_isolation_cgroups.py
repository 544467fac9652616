"""Control groups on a pretended /sys/fs/cgroup: which hierarchies are chosen, what is written where."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.model.sandbox import Limits

LIMITS = Limits(cpu_count=2, memory_mib=64, pids=10)


def _hierarchies(root: Path, **points: str) -> str:
    """Directories and the mount table for them: name → "type options"."""
    lines = []
    for name, kind in points.items():
        (root / name).mkdir(parents=True)
        filesystem, options = kind.split(" ")
        lines.append(f"x {root / name} {filesystem} rw,{options} 0 0")
    return "\n".join(lines)


def _v2(root: Path, controllers: str) -> None:
    (root / "cgroup.controllers").write_text(controllers)
    (root / "cgroup.subtree_control").write_text("")


def _files(directory: Path, *names: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_text("")


def test_version_one_hierarchies_are_found_also_when_mounted_together(tmp_path: Path) -> None:
    mounts = _hierarchies(tmp_path, memory="cgroup memory", both="cgroup cpu,cpuacct", pids="cgroup pids")
    found = Cgroups.probe("b", mounts)
    assert found.limited == {"memory", "cpu", "pids"}
    assert found.v1["cpu"] == found.v1["cpuacct"] == tmp_path / "both"
    assert not found.can_freeze


def test_an_empty_unified_hierarchy_beside_version_one_is_left_alone(tmp_path: Path) -> None:
    mounts = _hierarchies(tmp_path, freezer="cgroup freezer", unified="cgroup2 rw")
    _v2(tmp_path / "unified", "")
    found = Cgroups.probe("b", mounts)
    assert found.v2 is None
    assert found.can_freeze
    assert found.limited == frozenset()


def test_version_two_is_found(tmp_path: Path) -> None:
    mounts = _hierarchies(tmp_path, unified="cgroup2 rw")
    _v2(tmp_path / "unified", "cpuset cpu io memory pids")
    found = Cgroups.probe("b", mounts)
    assert found.v2 == tmp_path / "unified"
    assert found.limited == {"memory", "cpu", "pids"}
    assert found.can_freeze


def test_without_cgroups_nothing_is_pretended(tmp_path: Path) -> None:
    found = Cgroups.probe("b", "proc /proc proc rw 0 0")
    assert found.limited == frozenset()
    assert not found.can_freeze
    group = found.group("x")
    group.create()
    group.limit(LIMITS)
    assert group.usage().memory_bytes is None
    assert group.try_remove()


def test_limits_of_version_one(tmp_path: Path) -> None:
    mounts = _hierarchies(tmp_path, memory="cgroup memory", cpu="cgroup cpu", pids="cgroup pids")
    group = Cgroups.probe("b", mounts).group("g")
    _files(tmp_path / "memory/b/g", "memory.limit_in_bytes")
    _files(tmp_path / "cpu/b/g", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.shares")
    _files(tmp_path / "pids/b/g", "pids.max")
    group.limit(LIMITS)
    assert (tmp_path / "memory/b/g/memory.limit_in_bytes").read_text() == str(64 << 20)
    assert (tmp_path / "cpu/b/g/cpu.cfs_quota_us").read_text() == "200000"
    assert (tmp_path / "cpu/b/g/cpu.shares").read_text() == "2048"
    assert (tmp_path / "pids/b/g/pids.max").read_text() == "10"


def test_limits_of_version_two(tmp_path: Path) -> None:
    mounts = _hierarchies(tmp_path, unified="cgroup2 rw")
    _v2(tmp_path / "unified", "cpu memory pids")
    group = Cgroups.probe("b", mounts).group("g")
    place = tmp_path / "unified/b/g"
    _files(place, "memory.max", "memory.swap.max", "pids.max", "cpu.max", "cpu.weight")
    group.limit(LIMITS)
    read = {name: (place / name).read_text() for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.max")}
    assert read == {"memory.max": str(64 << 20), "memory.swap.max": "0", "pids.max": "10", "cpu.max": "200000 100000"}
    assert (place / "cpu.weight").read_text() == "200"


def test_all_sandboxes_together_weigh_less_than_one_program_of_the_host(tmp_path: Path) -> None:
    one = Cgroups.probe("b", _hierarchies(tmp_path / "one", cpu="cgroup cpu", pids="cgroup pids"))
    _files(tmp_path / "one/cpu/b", "cpu.shares")
    one.prepare()
    assert (tmp_path / "one/cpu/b/cpu.shares").read_text() == "64", "a program has 1024"
    mounts = _hierarchies(tmp_path / "two", unified="cgroup2 rw")
    _v2(tmp_path / "two/unified", "cpu memory pids")
    _files(tmp_path / "two/unified/b", "cgroup.subtree_control", "cpu.weight")
    Cgroups.probe("b", mounts).prepare()
    assert (tmp_path / "two/unified/b/cpu.weight").read_text() == "6", "a program has 100"


def test_usage_leaves_out_cache_that_the_kernel_would_give_up(tmp_path: Path) -> None:
    mounts = _hierarchies(tmp_path, unified="cgroup2 rw")
    _v2(tmp_path / "unified", "cpu memory pids")
    place = tmp_path / "unified/b/g"
    place.mkdir(parents=True)
    (place / "memory.current").write_text("1000\n")
    (place / "memory.stat").write_text("file 700\nshmem 100\ninactive_file 200\n")
    (place / "memory.events").write_text("oom 1\noom_kill 2\n")
    (place / "cpu.stat").write_text("usage_usec 1500000\n")
    (place / "pids.current").write_text("3\n")
    usage = Cgroups.probe("b", mounts).group("g").usage()
    assert (usage.memory_bytes, usage.cache_bytes, usage.oom_kills, usage.pids) == (400, 700, 2, 3)
    assert usage.cpu_s == pytest.approx(1.5)


def test_rates_of_disks_stand_where_the_kernels_own_writers_are_counted(tmp_path: Path) -> None:
    mounts = _hierarchies(tmp_path / "one", blkio="cgroup blkio", pids="cgroup pids")
    files = [tmp_path / "one/blkio" / f"blkio.throttle.{way}_bps_device" for way in ("read", "write")]
    _files(tmp_path / "one/blkio", *(file.name for file in files))
    first = Cgroups.probe("b", mounts)
    assert first.group("g").limit_disk("7:3", 8 << 20)
    assert [file.read_text() for file in files] == ["7:3 8388608"] * 2
    assert "blkio" not in {path.parent.parent.name for path in first.group("g").paths()}, "its programs stay at the top"

    for file in files:
        file.write_text("7:999999 5\n8:0 6\n")
    first.lift_unused_disks()
    assert [file.read_text()[:11] for file in files] == ["7:999999 0\n"] * 2, "the disk 8:0 is the host's"

    mounts = _hierarchies(tmp_path / "two", unified="cgroup2 rw")
    _v2(tmp_path / "two/unified", "cpu io memory pids")
    second = Cgroups.probe("b", mounts)
    _files(tmp_path / "two/unified/b/g", "io.max")
    assert second.group("g").limit_disk("7:3", 8 << 20)
    assert (tmp_path / "two/unified/b/g/io.max").read_text() == "7:3 rbps=8388608 wbps=8388608"
    _files(tmp_path / "two/unified/b/g", "io.max")
    assert second.group("g").limit_disk("7:3", None)
    assert (tmp_path / "two/unified/b/g/io.max").read_text() == "7:3 rbps=max wbps=max"

    assert not Cgroups.probe("b", "").group("g").limit_disk("7:3", 1), "nothing is pretended"
