"""What the namespaces tier promises beyond the contract: deaths of its zygote, and leaving nothing behind."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.isolation.base import BackendConfig, Capability, SandboxHandle
from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.isolation.linux.disk import image, kept, loops
from atoll.isolation.namespaces.handle import NamespacesHandle
from atoll.isolation.namespaces.layout import RunLayout
from atoll.isolation.namespaces.tier import NamespacesBackend
from atoll.model.errors import BackendUnavailable, CreateFailed, SandboxGone
from atoll.model.sandbox import Limits, PauseMode, SandboxPaths, SandboxSpec
from atoll.testing import inside
from atoll.testing.backend_contract import Asked, eventually
from support.host import requires

pytestmark = requires("namespaces")

CYCLES = 60


class Place:
    """A run directory and the sandboxes' own directories beside it."""

    def __init__(self, root: Path, layers: tuple[Path, ...]) -> None:
        self.root = root
        self.layers = layers
        self.run_dir = root / "run"
        self._count = 0

    def asked(self, *, memory_mib: int = 256, **env: str) -> Asked:
        self._count += 1
        name = f"n{self._count:05}"
        (self.root / name).mkdir(mode=0o700)
        limits = Limits(cpu_count=1, memory_mib=memory_mib, pids=100)
        return Asked(SandboxSpec(name, "base", limits, env_vars=env), SandboxPaths(self.layers, self.root / name))

    def backend(self, *, parked: int = 2) -> NamespacesBackend:
        return NamespacesBackend(BackendConfig(self.run_dir), parked=parked)

    def groups(self) -> set[str]:
        return Cgroups.probe(RunLayout(self.run_dir).cgroup_base).names()


@pytest.fixture
def place(tmp_path: Path, templates_dir: Path) -> Place:
    from atoll.images.store import TemplateStore

    return Place(tmp_path, TemplateStore(templates_dir).find_template("base").layers)


@pytest.fixture
async def backend(place: Place) -> AsyncIterator[NamespacesBackend]:
    tier = place.backend()
    await tier.start()
    yield tier
    await tier.aclose()


@pytest.fixture
def disks(backend: NamespacesBackend) -> None:
    if Capability.LIMITS_DISK not in backend.capabilities:
        pytest.skip("this machine makes no loop devices or has no mkfs.ext4")


def _zygote_pid(backend: NamespacesBackend) -> int:
    assert backend._zygote is not None
    return backend._zygote.pid


async def test_sandboxes_survive_the_zygote_and_a_new_one_makes_more(place: Place, backend: NamespacesBackend) -> None:
    first = await backend.create(*place.asked())
    os.kill(_zygote_pid(backend), signal.SIGKILL)
    second = await backend.create(*place.asked())
    assert await inside.health(first) == 204
    assert await inside.health(second) == 204
    await first.kill()
    await second.kill()
    with pytest.raises(SandboxGone):
        await first.dial(49983)


async def test_creates_in_flight_are_done_by_the_next_zygote(place: Place, backend: NamespacesBackend) -> None:
    creates = [asyncio.create_task(backend.create(*place.asked())) for _ in range(8)]
    await asyncio.sleep(0.012)
    os.kill(_zygote_pid(backend), signal.SIGKILL)
    handles = await asyncio.gather(*creates)
    assert [await inside.health(handle) for handle in handles] == [204] * 8
    for handle in handles:
        await handle.kill()
    assert await eventually(lambda: len(place.groups()) == 2 or not backend.capabilities)


async def test_a_root_made_ahead_serves_the_next_sandbox_of_that_template_only(
    place: Place, backend: NamespacesBackend, tmp_path: Path
) -> None:
    await (await backend.create(*place.asked())).kill()
    prepared = place.run_dir / "prepared"
    assert await eventually(lambda: prepared.is_dir() and len(os.listdir(prepared)) == 2)
    other = tmp_path / "layer"
    (other / "only-here").mkdir(parents=True)
    place.layers = (other, *place.layers)
    handle = await backend.create(*place.asked())
    assert (await inside.run(handle, "ls -d /only-here /usr")).out.split() == ["/only-here", "/usr"]
    await handle.kill()
    os.rename(other, tmp_path / "gone")
    (other / "built-anew").mkdir(parents=True)
    assert await eventually(lambda: len(os.listdir(prepared)) == 2)
    handle = await backend.create(*place.asked())
    assert (await inside.run(handle, "ls -d /only-here /built-anew")).out.split() == ["/built-anew"]
    await handle.kill()
    await backend.aclose()
    assert os.listdir(prepared) == []


async def test_whoever_asks_for_what_is_not_booted_gets_what_was_asked_for(
    place: Place, backend: NamespacesBackend
) -> None:
    prepared = place.run_dir / "prepared"
    for memory_mib in (256, 128, 192, 256, 128, 192):
        handle = await backend.create(*place.asked(memory_mib=memory_mib))
        shown = (await inside.run(handle, "df -m --output=size /dev/shm | tail -1; hostname; cat /etc/hostname")).out
        assert shown.split() == [str(memory_mib // 2), handle.sandbox_id, handle.sandbox_id]
        await handle.kill()
        # Whatever is asked for in turn: those who wait are there again, each in a root of its own.
        assert await eventually(lambda: prepared.is_dir() and len(os.listdir(prepared)) == 2)
    assert await eventually(lambda: len(place.groups()) == 2 or not backend.capabilities)


async def test_a_state_directory_of_a_failed_attempt_can_be_used_again(
    place: Place, backend: NamespacesBackend
) -> None:
    asked = place.asked()
    for _ in range(2):
        handle = await backend.create(*asked)
        assert await inside.health(handle) == 204
        await handle.kill()


async def test_a_guest_that_cannot_be_imported_is_a_reason_and_no_hang(place: Place) -> None:
    backend = NamespacesBackend(BackendConfig(place.run_dir, guest_entry="atoll.nothing:main"))
    with pytest.raises(BackendUnavailable, match="zygote"):
        await backend.start()
    await backend.aclose()


async def test_the_end_of_the_guest_is_told_with_its_cause(place: Place, backend: NamespacesBackend) -> None:
    handle = await backend.create(*place.asked())
    os.kill(int(handle.record()["pid"]), signal.SIGKILL)
    report = await asyncio.wait_for(handle.wait(), 5)
    assert not report.killed
    assert "SIGKILL" in report.detail
    assert not place.groups() & {handle.record()["group"]}


async def test_orphans_are_reaped(place: Place, backend: NamespacesBackend) -> None:
    handle = await backend.create(*place.asked())
    await inside.run(handle, "for i in 1 2 3 4 5; do (sleep 0.05 & ) ; done")
    await asyncio.sleep(0.3)
    done = await inside.run(handle, "cat /proc/[0-9]*/stat | grep -c ' Z ' ; true")
    assert done.out.strip() == "0"
    await handle.kill()


async def test_siblings_share_no_randomness_and_no_files(place: Place, backend: NamespacesBackend) -> None:
    handles = [await backend.create(*place.asked()) for _ in range(3)]
    answers = [await inside.run(handle, "echo $RANDOM $(hostname); echo x > /etc/mine; ls /tmp") for handle in handles]
    assert len({answer.out for answer in answers}) == 3
    bases = {handle.record()["id_base"] for handle in handles}
    assert len(bases) == 3
    for handle in handles:
        await handle.kill()


@pytest.mark.usefixtures("disks")
async def test_what_a_sandbox_writes_lies_on_a_disk_of_its_own_and_out_of_reach(
    place: Place, backend: NamespacesBackend
) -> None:
    asked = place.asked()
    handle = await backend.create(*asked)
    await inside.run(handle, "cp /bin/sleep /set-id && chown 0:0 /set-id && chmod 4755 /set-id")
    assert {path.name for path in asked.state_dir.iterdir()} >= {"disk.img", "guest.log", "guest.sock"}
    assert not (asked.state_dir / "upper").exists(), "a set-user-id file of the sandbox is no file of the host"
    assert os.stat(asked.state_dir / "disk.img").st_mode & 0o777 == 0o600
    assert os.stat(asked.state_dir).st_mode & 0o777 == 0o700
    assert not (place.layers[0] / "set-id").exists()
    stats = await handle.stats()
    assert stats.disk_used is not None
    assert stats.disk_used > 0
    await handle.kill()


@pytest.mark.usefixtures("disks")
async def test_a_full_disk_says_so_and_spares_the_neighbours(place: Place, backend: NamespacesBackend) -> None:
    limits = Limits(cpu_count=1, memory_mib=256, disk_mib=32, pids=100)
    spec, paths = place.asked()
    handle, other = await backend.create(replace(spec, limits=limits), paths), await backend.create(*place.asked())
    fill = await inside.run(handle, "head -c 100m /dev/zero > /big")
    assert fill.code == 1
    assert "No space left on device" in fill.err
    assert (await inside.run(handle, "rm /big; echo x > /small; cat /small")).out == "x\n"
    names = "python3 -c 'for i in range(99999): open(str(i), chr(119)).close()'"
    assert "No space left on device" in (await inside.run(handle, f"mkdir /many; cd /many; {names}")).err
    assert (await inside.run(other, "head -c 100m /dev/zero > /big && echo room")).out == "room\n"
    with pytest.raises(BackendUnavailable, match="32 MiB"):
        await handle.update(replace(limits, disk_mib=64))
    await handle.update(replace(limits, pids=120))
    for one in (handle, other):
        await one.kill()


@pytest.mark.usefixtures("disks")
async def test_a_size_that_is_slow_to_make_keeps_no_neighbour_waiting(
    place: Place, backend: NamespacesBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, go_on = image._make_template, threading.Event()

    def slow(size_mib: int) -> Sequence[image.Piece]:
        if size_mib > 10240:
            go_on.wait(30)
        if size_mib == 16384:
            raise OSError("there is no room for it")
        return real(size_mib)

    monkeypatch.setattr(image, "_make_template", slow)

    async def create(size_mib: int) -> SandboxHandle:
        spec, paths = place.asked()
        return await backend.create(replace(spec, limits=Limits(1, 256, size_mib, 100)), paths)

    odd = [asyncio.create_task(create(size)) for size in (12288, 20480, 16384, 12288)]
    await asyncio.sleep(0.1)
    given_up = asyncio.create_task(create(20480))
    usual = await asyncio.gather(*(create(size) for size in (32, 10240, 32, 10240, 10240)))
    assert not any(one.done() for one in odd), "the control: those sizes are still being made"
    given_up.cancel()
    go_on.set()
    done = await asyncio.gather(*odd, return_exceptions=True)
    assert isinstance(done[2], CreateFailed)
    assert "16384 MiB cannot be made: there is no room" in str(done[2])
    made = [one for one in (*done, *usual) if isinstance(one, NamespacesHandle)]
    assert len(made) == 8
    assert [await inside.health(handle) for handle in made] == [204] * 8
    assert [(await handle.stats()).disk_total for handle in made[:3]] == [size << 20 for size in (12288, 20480, 12288)]
    for handle in made:
        await handle.kill()


async def test_disks_of_a_zygote_that_was_killed_are_removed(place: Place, backend: NamespacesBackend) -> None:
    disks = place.run_dir / "disks"
    assert await eventually(lambda: len(os.listdir(disks)) == 8 or not backend.capabilities)
    before = set(os.listdir(disks))
    os.kill(_zygote_pid(backend), signal.SIGKILL)
    await (await backend.create(*place.asked())).kill()
    assert await eventually(lambda: not before & set(os.listdir(disks)))


async def test_a_configuration_beyond_bounds_is_refused(place: Place, backend: NamespacesBackend) -> None:
    with pytest.raises(CreateFailed, match="too large"):
        await backend.create(*place.asked(BIG="x" * (9 << 20)))
    handle = await backend.create(*place.asked(LONG="x" * 100_000))
    assert (await inside.run(handle, "echo -n $LONG | wc -c")).out.strip() == "100000"
    await handle.kill()


DISKS_HELD = 24
"""At most so many disks wait for a sandbox, each a descriptor of the zygote."""


async def test_nothing_is_left_after_many_sandboxes(place: Place) -> None:
    backend = place.backend(parked=0)
    await backend.start()
    await (await backend.create(*place.asked())).kill()
    before = _held()
    for _ in range(CYCLES // 6):
        handles = await asyncio.gather(*(backend.create(*place.asked()) for _ in range(6)))
        await asyncio.gather(*(handle.kill() for handle in handles))
    # (At first the server may still make disks ahead of need, and hold a descriptor or two more.)
    assert await eventually(lambda: all(_held()[name] <= count for name, count in before.items())), (before, _held())
    assert place.groups() == set()
    assert await eventually(lambda: len(os.listdir(f"/proc/{_zygote_pid(backend)}/fd")) <= 8 + DISKS_HELD)
    zygote = _zygote_pid(backend)
    await backend.aclose()
    assert str(zygote) not in os.listdir("/proc")
    assert not any((point / backend._layout.cgroup_base).exists() for point in backend._cgroups.v1.values())


def _held() -> dict[str, int]:
    with open("/proc/self/mountinfo") as mounts:
        return {"descriptors": len(os.listdir("/proc/self/fd")), "mounts": len(mounts.readlines())}


async def test_a_group_that_is_to_be_spared_outlives_a_start_with_all_that_is_in_it(place: Place) -> None:
    """So a sandbox whose record is of a newer version is left alone, though nobody adopts it."""
    spared, lost = place.asked(), place.asked()
    first = place.backend(parked=0)
    await first.start()
    records = [dict((await first.create(*asked)).record()) for asked in (spared, lost)]
    await first.aclose()
    second = place.backend(parked=0)
    await second.start()
    await second.reclaim({records[0]["group"], ""})
    handle = await second.adopt(spared.spec, spared.state_dir, records[0])
    assert await inside.health(handle) == 204
    with pytest.raises(SandboxGone):
        await second.adopt(lost.spec, lost.state_dir, records[1])
    await handle.kill()
    await second.aclose()


async def test_children_that_wait_end_with_the_server(place: Place) -> None:
    backend = place.backend(parked=3)
    await backend.start()
    assert await eventually(lambda: len(place.groups()) == 3 or not backend.capabilities)
    await backend.aclose()
    assert place.groups() == set()


@pytest.mark.usefixtures("disks")
async def test_a_kill_is_answered_before_its_mounts_go_and_leaves_no_disk(
    place: Place, backend: NamespacesBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, paths = place.asked()
    handle = await backend.create(spec, paths)
    disk, may_go = paths.state_dir / image.IMAGE, asyncio.Event()
    let_go = handle._let_go_of_mounts  # type: ignore[attr-defined]

    async def later() -> None:
        await asyncio.wait_for(may_go.wait(), 10)
        await let_go()

    monkeypatch.setattr(handle, "_let_go_of_mounts", lambda: asyncio.ensure_future(later()))
    await asyncio.wait_for(handle.stop(), 10)
    assert loops.device_of(disk) is not None
    may_go.set()
    await handle.kill()
    assert await eventually(lambda: loops.device_of(disk) is None)


@pytest.mark.usefixtures("disks")
async def test_a_pause_whose_end_takes_too_long_keeps_the_sandbox_all_the_same(
    place: Place, backend: NamespacesBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a node that was stopped meanwhile: whatever it waits for is late when it goes on."""
    spec, paths = place.asked()
    handle = await backend.create(spec, paths)
    assert (await inside.run(handle, "echo kept > ~/kept")).code == 0
    late = []

    async def is_emptied() -> bool:
        late.append("group")
        return False

    def wait(image: Path) -> None:
        late.append("disk")
        raise OSError(errno.EBUSY, "the disk is still in use")

    with monkeypatch.context() as slow:
        slow.setattr(handle, "_empty_group", is_emptied)
        record = await handle.pause(PauseMode.FILESYSTEM)
    again = await backend.resume(spec, paths, record, PauseMode.FILESYSTEM)
    with monkeypatch.context() as slow:
        slow.setattr(kept, "wait_until_released", wait)
        record = await again.pause(PauseMode.FILESYSTEM)
    assert set(late) == {"group", "disk"}
    last = await backend.resume(spec, paths, record, PauseMode.FILESYSTEM)
    assert (await inside.run(last, "cat ~/kept")).out == "kept\n"
    await last.kill()
