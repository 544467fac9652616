"""The host's disk fills up, on a file system of the test's own: no neighbour loses a write, and the server goes on.

One sandbox writes what it can, another keeps a database; the file system under both is far smaller than their disks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from e2b import CommandExitException, Sandbox
from e2b.exceptions import RateLimitException
from sdk_support import eventually

from support.tiers import SERVER_ENVIRON

MIB = 1 << 20
SIZE_MIB, RESERVE_MIB = 1200, 160

LEDGER = """
import os, sqlite3, sys, time
rows = sqlite3.connect("ledger.db", isolation_level=None)
rows.execute("pragma synchronous=full")
rows.execute("create table if not exists ledger (number integer primary key, text blob)")
number, said = 0, open("/dev/shm/said", "w", buffering=1)
while not os.path.exists("stop"):
    try:
        rows.execute("insert into ledger values (?, ?)", (number + 1, b"x" * 20000))
    except sqlite3.OperationalError as error:
        print("refused", error, file=said)
        time.sleep(0.2)
    else:
        number += 1
        print(number, file=said)
        time.sleep(0.02)
"""
COUNT = """
import sqlite3
rows = sqlite3.connect("ledger.db")
print(*rows.execute("pragma integrity_check").fetchone(), *rows.execute("select count(*) from ledger").fetchone())
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of SIZE_MIB of its own."""
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control") or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root, loop devices and mkfs.ext4")
    image, place = tmp_path / "host.img", tmp_path / "host"
    with image.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, SIZE_MIB * MIB)
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    yield place
    eventually(lambda: subprocess.run(["umount", place], check=False).returncode == 0, what="an idle file system")


@pytest.fixture
def world(small_disk: Path, make_server: Callable[..., Any], tier: str) -> Iterator[Callable[[], Sandbox]]:
    """Makes sandboxes of a server whose data lie there."""
    server = make_server(
        small_disk / "data",
        options=["--isolation", tier, "--end-sandboxes"],
        environ={**SERVER_ENVIRON[tier], "ATOLL_DISK_RESERVE_MIB": str(RESERVE_MIB)},
    )
    yield lambda: Sandbox.create(timeout=600, api_key=server.api_key, api_url=server.url, sandbox_url=server.url)
    server.stop()


def _free_mib(place: Path) -> int:
    space = os.statvfs(place)
    return space.f_bavail * space.f_frsize // MIB


def test_one_that_fills_the_hosts_disk_is_refused_and_no_neighbour_loses_a_write(
    small_disk: Path, world: Callable[[], Sandbox]
) -> None:
    filler, keeper = world(), world()
    keeper.files.write("ledger.py", LEDGER)
    running = keeper.commands.run("python3 ledger.py", background=True, timeout=0)
    eventually(lambda: _acknowledged(keeper) > 5, what="a ledger that is kept")

    with pytest.raises(CommandExitException, match="No space left on device"):
        filler.commands.run("dd if=/dev/zero of=big bs=1M", timeout=300)
    # Space that is only asked for is space too: the file system says no before anything is written.
    with pytest.raises(CommandExitException, match="No space left on device"):
        filler.commands.run("fallocate -l 600M more", timeout=60)
    assert _free_mib(small_disk) > RESERVE_MIB // 2, "the host's own file system never was full"
    with pytest.raises(RateLimitException, match=r"no room on the disk.*ATOLL_DISK_RESERVE_MIB"):
        world()
    assert filler.is_running(), "the server answers, and what there is goes on"
    assert filler.commands.run("rm more; tail -c 1 big | wc -c").stdout.strip() == "1"

    said = len(_said(keeper))
    eventually(lambda: len(_said(keeper)) > said, what="a neighbour that still gets an answer")
    filler.kill()
    third = eventually(lambda: _made(world), what="room for another sandbox", within_s=60)
    third.commands.run("dd if=/dev/zero of=big bs=1M count=100", timeout=60)
    wrote = _acknowledged(keeper)
    eventually(lambda: _acknowledged(keeper) > wrote, what="new rows")

    keeper.files.write("stop", "")
    running.wait()
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("1")  # from the disk, not from memory
    found = keeper.commands.run(f"python3 - <<'END'\n{COUNT}END").stdout.split()
    assert found == ["ok", str(_acknowledged(keeper))]


def _said(keeper: Sandbox) -> list[str]:
    return keeper.commands.run("cat /dev/shm/said 2>/dev/null || true").stdout.splitlines()


def _acknowledged(keeper: Sandbox) -> int:
    """The newest row that the database has said is written."""
    return max((int(line) for line in _said(keeper) if line.isdigit()), default=0)


def _made(world: Callable[[], Sandbox]) -> Sandbox | None:
    try:
        return world()
    except RateLimitException:
        return None
