"""What programs of a sandbox are shown of the machine: the files' contents, and who reads and writes them when."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from atoll.guest.machine import files, sysinfo
from atoll.guest.machine.shown import PROCESSOR_LIST, Machine, Readings
from atoll.isolation.linux.cgroups.groups import Group
from atoll.isolation.linux.cgroups.meter import Meter
from atoll.isolation.linux.sys.machine import Machine as Hardware
from atoll.model.sandbox import Limits

GIB = 1 << 30
CPUINFO = "".join(
    f"processor\t: {number}\nmodel name\t: a: b\nphysical id\t: 3\nsiblings\t: 64\ncore id\t\t: 9\ncpu cores\t: 32\n\n"
    for number in range(8)
)


def _meminfo(memory: Mapping[str, int], total: int = GIB) -> dict[str, int]:
    rows = re.findall(r"^([\w()]+): +(\d+) kB$", files.meminfo(total, memory), re.M)
    return {name: int(size) for name, size in rows}


def test_free_memory_is_what_the_limit_leaves_and_available_what_caches_could_give() -> None:
    found = _meminfo({"usage": 600 << 20, "cache": 300 << 20, "shared": 100 << 20})
    assert found["MemTotal"] == 1024 << 10
    assert found["MemFree"] == 424 << 10
    assert found["MemAvailable"] == 624 << 10
    assert (found["Cached"], found["Shmem"], found["SwapTotal"]) == (300 << 10, 100 << 10, 0)


@pytest.mark.parametrize("memory", [{}, {"usage": 5 * GIB}, {"cache": 5 * GIB}, {"shared": GIB}])
def test_memory_is_never_less_than_none_nor_more_than_all(memory: dict[str, int]) -> None:
    found = _meminfo(memory)
    assert 0 <= found["MemFree"] <= found["MemTotal"]
    assert found["MemFree"] <= found["MemAvailable"] <= found["MemTotal"]


def test_files_that_change_keep_their_length() -> None:
    few, many = (
        {"usage": 1, "user_us": 1},
        dict.fromkeys(("usage", "cache", "anonymous", "user_us", "system_us"), 1 << 36),
    )
    for text in (
        lambda of: files.meminfo(64 * GIB, of),
        lambda of: files.vmstat(64 * GIB, of, 4096),
        lambda of: files.stat((0, 1), of, 1e6, 1.7e9, 9),
        lambda of: files.loadavg([of["usage"] / 1e9] * 3, 3, 9),
    ):
        assert len(text(few)) == len(text(many))


def test_processor_time_is_shared_out_and_the_rest_was_idle() -> None:
    rows = files.stat((3, 7), {"user_us": 4_000_000, "system_us": 2_000_000}, 100.0, 1.5e9, 42).splitlines()
    assert [row.split()[:5] for row in rows[:3]] == [
        ["cpu", "400", "0", "200", "19400"],
        ["cpu3", "200", "0", "100", "9700"],
        ["cpu7", "200", "0", "100", "9700"],
    ]
    assert ["btime", "1500000000"] in [row.split() for row in rows]


def test_more_time_than_there_was_is_no_negative_idleness() -> None:
    assert files.stat((0,), {"user_us": 9_000_000}, 1.0, 0, 1).split()[4] == "0"


@pytest.mark.parametrize(("numbers", "text"), [((0,), "0"), ((0, 1, 2, 5), "0-2,5"), ((7, 3), "3,7")])
def test_lists_of_processors_are_the_kernels(numbers: tuple[int, ...], text: str) -> None:
    assert files.number_list(numbers) == f"{text}\n"


def test_each_processor_is_a_core_of_one_package() -> None:
    text = files.cpuinfo(Hardware(range(8), CPUINFO).describe((2, 5)))
    assert re.findall(r"^processor\t: (\d+)$", text, re.M) == ["2", "5"]
    assert re.findall(r"^core id\t\t: (\d+)$", text, re.M) == ["0", "1"]
    assert set(re.findall(r"^(?:siblings|cpu cores)\t: (\d+)$", text, re.M)) == {"2"}
    assert "model name\t: a: b\n" in text


def test_processors_that_fewest_have_come_first() -> None:
    hardware = Hardware(range(4), CPUINFO)
    given = [hardware.take(2) for _ in range(4)]
    assert sorted(number for one in given for number in one) == [0, 0, 1, 1, 2, 2, 3, 3]
    hardware.give_back(given[0])
    assert hardware.take(2) == given[0]
    assert hardware.take(9) == (0, 1, 2, 3)


def test_a_struct_sysinfo_has_the_kernels_layout() -> None:
    data = sysinfo.packed(up_s=5, loads=(1.0, 0.5, 0.0), total=GIB, free=7, shared=3, cache=2, processes=70_000)
    assert len(data) == 112
    words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, 80, 8)]
    assert words == [5, 65536, 32768, 0, GIB, 7, 3, 2, 0, 0]
    assert int.from_bytes(data[80:82], "little") == 65535
    assert int.from_bytes(data[104:108], "little") == 1


# -- who reads and writes ----------------------------------------------------------------------------------------------


class _Hardware:
    def take(self, count: int) -> tuple[int, ...]:
        return tuple(sorted(os.sched_getaffinity(0)))

    def describe(self, chosen: Iterable[int]) -> Mapping[int, str]:
        return {number: f"processor\t: {number}\n" for number in chosen}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / PROCESSOR_LIST).parent.mkdir(parents=True)
    return Machine(os.open(tmp_path, os.O_PATH), _Hardware(), Readings(lambda: {"usage": GIB}, dict), 0, -1)


def test_other_limits_are_shown_at_once(machine: Machine, tmp_path: Path) -> None:
    for memory_mib in (4096, 64, 999_999):
        machine.resize(Limits(memory_mib=memory_mib))
        shown = (tmp_path / "meminfo").read_text()
        assert int(shown.split()[1]) == memory_mib << 10
        assert shown == files.meminfo(memory_mib << 20, {"usage": GIB})


def test_a_link_in_the_place_of_a_file_is_not_followed(machine: Machine, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "meminfo").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        machine.resize(Limits())
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("version", [1, 2])
def test_a_meter_reads_both_versions_of_control_groups(version: int, tmp_path: Path) -> None:
    if version == 1:
        group = Group("g", {"memory": tmp_path, "cpuacct": tmp_path}, None, frozenset())
        told = {
            "memory.usage_in_bytes": "500\n",
            "memory.stat": "cache 1\ntotal_cache 300\ntotal_rss 150\ntotal_shmem 20\n",
        }
        told["cpuacct.stat"] = "user 200\nsystem 100\n"
    else:
        group = Group("g", {}, tmp_path, frozenset({"memory", "cpu"}))
        told = {"memory.current": "500\n", "memory.stat": "anon 150\nfile 300\nshmem 20\nslab_reclaimable 9\n"}
        told["cpu.stat"] = "usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\n"
    for name, text in told.items():
        (tmp_path / name).write_text(text)
    meter = Meter.of(group)
    memory = meter.memory()
    assert {name: memory[name] for name in ("usage", "cache", "anonymous", "shared")} == {
        "usage": 500,
        "cache": 300,
        "anonymous": 150,
        "shared": 20,
    }
    assert meter.cpu() == {"user_us": 2_000_000, "system_us": 1_000_000}
    meter.close()
    assert (meter.memory(), meter.cpu(), meter.descriptors) == ({}, {}, [])


def test_without_controllers_there_is_nothing_to_read() -> None:
    meter = Meter.of(Group("g", {}, None, frozenset()))
    assert (meter.memory(), meter.cpu()) == ({}, {})
