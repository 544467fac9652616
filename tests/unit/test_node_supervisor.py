"""The node: nothing is left behind whatever happens, survivors are adopted, news of deaths reach control."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import stat
import subprocess
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sdk_support import eventually_async

from atoll.control import state_mark
from atoll.control.clock import SystemClock
from atoll.isolation import directory
from atoll.isolation.base import BackendConfig, Finding, IsolationBackend, SandboxHandle, Verdict
from atoll.isolation.directory import Recorded
from atoll.model.errors import (
    BackendUnavailable,
    Conflict,
    CreateFailed,
    MemoryLost,
    PlatformError,
    SandboxGone,
    StateLost,
    StorageFull,
    TemplateNotFound,
)
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import ENVD_PORT, EndReason, PauseMode, SandboxPaths, SandboxSpec, SandboxState
from atoll.model.template import Template
from atoll.node.adoption import Fate, fate
from atoll.node.backends import automatic_order, choose_backend
from atoll.node.supervisor import Supervisor
from atoll.node.trash import Trash
from atoll.testing.fake import FakeBackend
from support.control import MemoryTemplates, load_fake, plane, supervisor
from support.host import requires


def _request(sandbox_id: str = "i0001", **fields) -> SandboxSpec:
    return SandboxSpec(sandbox_id, **{"template_id": "tid0", "access_token": "secret-token", **fields})


class _Events:
    def __init__(self) -> None:
        self.told: list[tuple[str, EndReason]] = []
        self.news = asyncio.Event()

    async def sandbox_ended(self, sandbox_id: str, reason: EndReason, detail: str) -> None:
        self.told.append((sandbox_id, reason))
        self.news.set()


def _handle(node: Supervisor, sandbox_id: str = "i0001") -> SandboxHandle:
    return node.live.handle(sandbox_id)


async def test_a_sandbox_is_routed_until_it_is_killed(tmp_path: Path) -> None:
    async with supervisor(tmp_path) as node:
        made = await node.create(_request(traffic_access_token="traffic", mask_request_host="x"))
        assert (made.sandbox_id, made.tier) == ("i0001", "fake")
        route = node.find("i0001")
        assert route is not None
        assert (route.envd_access_token, route.traffic_access_token, route.mask_request_host) == (
            "secret-token", "traffic", "x",
        )  # fmt: skip
        assert list(node.routes()) == [route]
        (await route.dial(ENVD_PORT)).close()
        assert (await node.stats("i0001")).pids is not None
        assert await node.kill("i0001", EndReason.KILLED) is True
        assert node.find("i0001") is None
        assert list(node.routes()) == []
        assert await node.sandboxes() == []
        with pytest.raises(SandboxGone):
            await route.dial(ENVD_PORT)


async def test_the_state_directory_is_private_and_goes_with_the_sandbox(tmp_path: Path) -> None:
    async with supervisor(tmp_path) as node:
        await node.create(_request())
        state_dir = tmp_path / "sandboxes" / "i0001"
        assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
        for name in (directory.SPEC, directory.STATE):
            assert stat.S_IMODE((state_dir / name).stat().st_mode) == 0o600
        await node.kill("i0001", EndReason.KILLED)
        assert not state_dir.exists()
        await asyncio.wait_for(node.directories.trash.settled(), 20)
        assert list((tmp_path / "trash").iterdir()) == []


async def test_killing_is_idempotent_and_false_for_the_unknown(tmp_path: Path) -> None:
    async with supervisor(tmp_path) as node:
        assert await node.kill("i9999", EndReason.KILLED) is False
        await node.create(_request())
        outcomes = await asyncio.gather(*(node.kill("i0001", EndReason.KILLED) for _ in range(5)))
        assert outcomes[0] is True
        assert await node.kill("i0001", EndReason.KILLED) is False


async def test_what_is_gone_says_so(tmp_path: Path) -> None:
    async with supervisor(tmp_path) as node:
        await node.create(_request())
        await node.kill("i0001", EndReason.KILLED)
        with pytest.raises(SandboxGone):
            await node.stats("i0001")


@pytest.mark.parametrize("sandbox_id", ["../x", "", "A", "a/b", "x" * 65])
async def test_an_id_that_would_leave_the_directory_is_refused(tmp_path: Path, sandbox_id: str) -> None:
    async with supervisor(tmp_path) as node:
        with pytest.raises(CreateFailed):
            await node.create(_request(sandbox_id))
        assert list((tmp_path / "sandboxes").iterdir()) == []


async def test_an_id_in_use_is_refused_and_the_first_one_lives_on(tmp_path: Path) -> None:
    async with supervisor(tmp_path) as node:
        await node.create(_request())
        with pytest.raises(CreateFailed):
            await node.create(_request())
        assert node.find("i0001") is not None


async def test_an_unknown_template_makes_nothing(tmp_path: Path) -> None:
    async with supervisor(tmp_path) as node:
        with pytest.raises(TemplateNotFound):
            await node.create(_request(template_id="none"))
        assert list((tmp_path / "sandboxes").iterdir()) == []


async def test_a_death_is_told_and_everything_freed(tmp_path: Path) -> None:
    events = _Events()
    async with supervisor(tmp_path) as node:
        node.subscribe(events)
        await node.create(_request())
        await _handle(node).kill()  # behind the driver's back
        await asyncio.wait_for(events.news.wait(), 10)
        assert events.told == [("i0001", EndReason.DIED)]
        assert node.find("i0001") is None
        assert list((tmp_path / "sandboxes").iterdir()) == []


async def test_a_death_before_anybody_listened_is_told_later(tmp_path: Path) -> None:
    events = _Events()
    async with supervisor(tmp_path) as node:
        await node.create(_request())
        driver = node.live.get("i0001").driver
        await _handle(node).kill()
        await asyncio.wait_for(driver.finished.wait(), 10)
        node.subscribe(events)
        await asyncio.wait_for(events.news.wait(), 10)
        assert events.told == [("i0001", EndReason.DIED)]


async def test_a_kill_that_was_asked_for_is_no_news(tmp_path: Path) -> None:
    events = _Events()
    async with supervisor(tmp_path) as node:
        node.subscribe(events)
        await node.create(_request())
        await node.kill("i0001", EndReason.KILLED)
        await asyncio.sleep(0.05)
        assert events.told == []


class _WatchedTemplates(MemoryTemplates):
    """Notes what a node says of the builds that it stands on; the first that is held has just been taken away."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def find_template(self, name: str) -> Template:
        self.said.append("look")
        return super().find_template(name)

    def hold(self, layers: Collection[Path]) -> bool:
        assert layers == (Path("/"),)
        self.said.append("hold")
        return self.said.count("hold") > 1

    def hold_nothing(self) -> None:
        self.said.append("hold nothing")


async def test_a_build_is_held_before_the_first_sandbox_on_it_and_while_one_lives(tmp_path: Path) -> None:
    def node(templates: MemoryTemplates) -> Supervisor:
        return supervisor(tmp_path, keep=True, templates=templates)

    templates = _WatchedTemplates()
    async with node(templates) as first:
        assert templates.said == ["hold nothing"]
        await first.create(_request())
        assert templates.said == ["hold nothing", "look", "hold", "look", "hold"]
    templates = _WatchedTemplates()
    async with node(templates) as second:
        assert templates.said == []
        await second.kill("i0001", EndReason.KILLED)
    templates = _WatchedTemplates()
    async with node(templates):
        assert templates.said == ["hold nothing"]


async def test_the_next_server_adopts_what_lives(tmp_path: Path) -> None:
    async with supervisor(tmp_path, keep=True) as node:
        await node.create(_request(traffic_access_token="traffic"))
    async with supervisor(tmp_path) as node:
        assert node.start_report.adopted == 1
        route = node.find("i0001")
        assert route is not None
        assert (route.envd_access_token, route.traffic_access_token) == ("secret-token", "traffic")
        (await route.dial(ENVD_PORT)).close()
        assert await node.kill("i0001", EndReason.KILLED) is True


async def test_the_next_server_frees_what_died_meanwhile_and_what_has_no_record(tmp_path: Path) -> None:
    async with supervisor(tmp_path, keep=True) as node:
        await node.create(_request("i0001"))
        await node.create(_request("i0002"))
        handle = _handle(node, "i0002")
    await handle.kill()
    (tmp_path / "sandboxes" / "halfmade").mkdir()
    (tmp_path / "sandboxes" / "damaged").mkdir()
    (tmp_path / "sandboxes" / "damaged" / directory.STATE).write_text('{"version": 2')
    async with supervisor(tmp_path) as node:
        assert (node.start_report.adopted, node.start_report.removed) == (1, 3)
        assert {path.name for path in (tmp_path / "sandboxes").iterdir()} == {"i0001"}


async def test_a_server_that_keeps_none_ends_all_on_leaving(tmp_path: Path) -> None:
    async with supervisor(tmp_path) as node:
        await asyncio.gather(*(node.create(_request(f"i000{n}")) for n in range(3)))
        handles = [_handle(node, f"i000{n}") for n in range(3)]
    for handle in handles:
        assert (await asyncio.wait_for(handle.wait(), 5)).killed
    assert list((tmp_path / "sandboxes").iterdir()) == []
    assert list((tmp_path / "trash").iterdir()) == []


# A backend that fails where the contract allows it to


class _Troubled(FakeBackend):
    def __init__(self, config: BackendConfig, trouble: Callable[[SandboxSpec], Exception] | None) -> None:
        super().__init__(config)
        self.trouble = trouble
        self.hold: asyncio.Event | None = None
        self.made: list[SandboxHandle] = []

    async def create(self, spec: SandboxSpec, paths: SandboxPaths) -> SandboxHandle:
        (paths.state_dir / "litter").write_text("x")
        if self.trouble is not None:
            raise self.trouble(spec)
        handle = await super().create(spec, paths)
        self.made.append(handle)
        if self.hold is not None:
            await self.hold.wait()
        return handle


@asynccontextmanager
async def _troubled(
    tmp_path: Path, trouble: Callable[[SandboxSpec], Exception] | None = None
) -> AsyncIterator[tuple[Supervisor, _Troubled]]:
    made: list[_Troubled] = []

    def load(_name: str) -> Callable[[BackendConfig], IsolationBackend]:
        def factory(config: BackendConfig) -> IsolationBackend:
            made.append(_Troubled(config, trouble))
            return made[-1]

        return factory

    node = supervisor(tmp_path, load=load)
    async with node:
        yield node, made[0]


@pytest.mark.parametrize(
    "error", [CreateFailed("no"), BackendUnavailable("no"), RuntimeError("a bug"), OSError(28, "full")]
)
async def test_a_failed_create_is_undone_and_told_in_our_own_words(tmp_path: Path, error: Exception) -> None:
    async with _troubled(tmp_path, lambda _: error) as (node, _):
        with pytest.raises(PlatformError):
            await node.create(_request())
        assert await node.sandboxes() == []
        assert list((tmp_path / "sandboxes").iterdir()) == []
        assert await node.kill("i0001", EndReason.KILLED) is False


async def test_a_kill_during_a_create_ends_it_as_soon_as_it_is_made(tmp_path: Path) -> None:
    async with _troubled(tmp_path) as (node, backend):
        backend.hold = asyncio.Event()
        asking = asyncio.create_task(node.create(_request()))
        await asyncio.sleep(0)
        killing = asyncio.create_task(node.kill("i0001", EndReason.KILLED))
        await asyncio.sleep(0)
        backend.hold.set()
        assert await asyncio.wait_for(killing, 20) is True
        await asyncio.wait([asking])
        assert node.find("i0001") is None
        assert list((tmp_path / "sandboxes").iterdir()) == []


@pytest.mark.parametrize("step", ["write_spec", "move"])
async def test_a_record_that_cannot_be_written_undoes_the_create(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async with _troubled(tmp_path) as (node, backend):
        with monkeypatch.context() as patch:
            patch.setattr(directory, step, _full_disk)
            with pytest.raises(StorageFull, match="No space left"):
                await node.create(_request())
        for handle in backend.made:
            assert (await asyncio.wait_for(handle.wait(), 5)).killed
        assert list((tmp_path / "sandboxes").iterdir()) == []
        await node.create(_request())


async def test_an_end_that_cannot_be_written_down_is_an_end_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _troubled(tmp_path) as (node, _):
        await node.create(_request())
        monkeypatch.setattr(directory, "move", _full_disk)
        assert await node.kill("i0001", EndReason.KILLED) is True
        assert list((tmp_path / "sandboxes").iterdir()) == []


def _full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


@requires("root")
async def test_on_a_full_disk_creates_fail_and_what_runs_is_kept_and_can_be_ended(small_disk: Path) -> None:
    data_dir = small_disk / "data"
    async with supervisor(data_dir, keep=True) as node:
        await node.create(_request())
        await node.create(_request("i0002"))
        with pytest.raises(OSError, match="No space left"):
            (small_disk / "filler").write_bytes(b"x" * (1 << 20))
        for number in range(3, 15):  # more than there are directories made ahead
            with pytest.raises(StorageFull, match="No space left"):
                await node.create(_request(f"i{number:04}"))
        with pytest.raises(OSError, match="No space left"):
            directory.change_network(data_dir / "sandboxes" / "i0001", NetworkPolicy(allow_internet=False))
        assert await node.kill("i0002", EndReason.KILLED) is True
        assert {path.name for path in (data_dir / "sandboxes").iterdir()} == {"i0001"}
    async with supervisor(data_dir, keep=True) as node:
        assert node.start_report.adopted == 1
        (small_disk / "filler").unlink()
        await node.create(_request("i0003"))
        for name in ("i0001", "i0003"):
            assert await node.kill(name, EndReason.KILLED) is True


# What a start makes of the directories that it finds


def _found(state: SandboxState) -> Recorded:
    return Recorded(SandboxSpec("i0001", "tid0"), directory.StateRecord(state, "fake", {}))


def test_a_directory_that_was_never_finished_is_discarded_and_a_newer_one_is_left() -> None:
    assert fate(None) is Fate.DISCARD
    assert fate(directory.Newer(99, "")) is Fate.LEAVE


@pytest.mark.parametrize("state", SandboxState)
def test_only_what_was_told_of_is_kept(state: SandboxState) -> None:
    told_of = {SandboxState.RUNNING, SandboxState.PAUSING, SandboxState.PAUSED, SandboxState.RESUMING}
    assert (fate(_found(state)) in (Fate.ADOPT, Fate.KEEP, Fate.SETTLE)) == (state in told_of)


@pytest.mark.parametrize("state", [SandboxState.CREATING, SandboxState.KILLING])
async def test_what_was_half_made_or_to_be_ended_is_ended_at_the_next_start(
    tmp_path: Path, state: SandboxState
) -> None:
    async with supervisor(tmp_path, keep=True) as node:
        await node.create(_request())
        pid = int(_handle(node).record()["pid"])
    directory.move(tmp_path / "sandboxes" / "i0001", state)
    async with supervisor(tmp_path) as node:
        assert (node.start_report.adopted, node.start_report.removed) == (0, 1)
        assert list((tmp_path / "sandboxes").iterdir()) == []
        assert not _is_alive(pid)


async def test_a_paused_sandbox_is_resumed_by_another_server(tmp_path: Path) -> None:
    async with supervisor(tmp_path, keep=True) as node:
        await node.create(_request())
        kept = await node.pause("i0001", PauseMode.FILESYSTEM, True)
        assert (kept.mode, kept.guest_answered, kept.holds_memory) == (PauseMode.FILESYSTEM, True, False)
        with pytest.raises(Conflict):
            await node.pause("i0001", PauseMode.FILESYSTEM, True)
        with pytest.raises(SandboxGone):
            await node.stats("i0001")
    async with supervisor(tmp_path) as node:
        assert (node.start_report.adopted, node.start_report.removed) == (1, 0)
        assert [one.paused for one in await node.sandboxes()] == [kept]
        assert node.find("i0001") is None
        with pytest.raises(MemoryLost):
            await node.resume("i0001", PauseMode.MEMORY, NetworkPolicy())
        await node.resume("i0001", PauseMode.FILESYSTEM, NetworkPolicy())
        with pytest.raises(Conflict):
            await node.resume("i0001", PauseMode.FILESYSTEM, NetworkPolicy())
        assert node.find("i0001") is not None
        assert [one.paused for one in await node.sandboxes()] == [None]
        await node.pause("i0001", PauseMode.FILESYSTEM, True)
        assert await node.kill("i0001", EndReason.KILLED)
        assert await node.sandboxes() == []


async def test_one_that_is_being_resumed_is_always_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control takes what its node does not tell of for lost, and ends it."""
    async with supervisor(tmp_path) as node:
        await node.create(_request())
        await node.pause("i0001", PauseMode.FILESYSTEM, True)
        told: list[list[str]] = []
        attach = node._egress.attach_adopted

        async def look_and_attach(*arguments: Any) -> None:
            told.append([one.sandbox_id for one in await node.sandboxes()])
            await attach(*arguments)

        monkeypatch.setattr(node._egress, "attach_adopted", look_and_attach)
        await node.resume("i0001", PauseMode.FILESYSTEM, NetworkPolicy())
        assert told == [["i0001"]]


@pytest.mark.parametrize("state", [SandboxState.PAUSING, SandboxState.RESUMING])
@pytest.mark.parametrize("lives", [True, False])
async def test_a_pause_or_resume_that_was_cut_off_leaves_a_sandbox_that_can_be_used(
    tmp_path: Path, state: SandboxState, lives: bool
) -> None:
    """It runs if its guest does; else what it wrote is there."""
    place = tmp_path / "sandboxes" / "i0001"
    async with supervisor(tmp_path, keep=True) as node:
        await node.create(_request())
        handle = _handle(node)
        directory.begin_pause(place, PauseMode.FILESYSTEM)
        directory.move(place, state)
    if not lives:
        await handle.kill()
    async with supervisor(tmp_path) as node:
        (found,) = await node.sandboxes()
        assert (found.paused is None) == lives
        if not lives:
            await node.resume("i0001", PauseMode.FILESYSTEM, NetworkPolicy())
        assert node.find("i0001") is not None


async def test_a_sandbox_of_a_newer_version_is_left_alone_as_it_is(tmp_path: Path) -> None:
    place = tmp_path / "sandboxes" / "i0001"
    place.mkdir(parents=True)
    version = directory.VERSION + 1
    newer = {
        directory.SPEC: json.dumps({"version": version, "what": "is this"}),
        directory.STATE: json.dumps({"version": version, "handle": {}}),
    }
    for name, text in newer.items():
        (place / name).write_text(text)
    async with supervisor(tmp_path) as node:
        assert (node.start_report.adopted, node.start_report.removed) == (0, 0)
        with pytest.raises(CreateFailed):
            await node.create(_request())
        await node.create(_request("i0002"))
    assert {path.name: path.read_text() for path in place.iterdir()} == newer


async def test_a_sandbox_of_the_version_before_is_adopted_and_its_record_brought_up_to_date(tmp_path: Path) -> None:
    place = tmp_path / "sandboxes" / "i0001"
    async with supervisor(tmp_path, keep=True) as node:
        await node.create(_request(traffic_access_token="traffic"))
        handle = _handle(node).record()
    old = {
        "version": 1, "sandbox_id": "i0001", "tier": "fake", "template_id": "tid0", "envd_access_token": "secret-token",
        "traffic_access_token": "traffic", "mask_request_host": None, "network": NetworkPolicy().as_json(),
        "handle": {**handle, "sandbox_id": "i0001"},
    }  # fmt: skip
    for name in (directory.SPEC, directory.STATE):
        (place / name).unlink()
    (place / "record.json").write_text(json.dumps(old))
    for _ in range(2):
        async with supervisor(tmp_path, keep=True) as node:
            assert node.start_report.adopted == 1
            route = node.find("i0001")
            assert route is not None
            assert (route.envd_access_token, route.traffic_access_token) == ("secret-token", "traffic")
        assert not (place / "record.json").exists()
    async with supervisor(tmp_path) as node:
        assert await node.kill("i0001", EndReason.KILLED) is True


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# The choice of a tier


def test_auto_prefers_the_stronger_wall_and_never_takes_none() -> None:
    assert automatic_order(["zeta", "namespaces", "fake", "gvisor"]) == ["gvisor", "namespaces", "zeta"]


class _Hopeless(FakeBackend):
    async def doctor(self) -> list[Finding]:
        return [Finding("kernel", Verdict.FAIL, "too old", "get a newer one")]


async def test_a_tier_that_does_not_work_here_says_why_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"kernel: too old.*get a newer one"):
        await choose_backend("fake", tmp_path, lambda _: _Hopeless)


async def test_the_reason_for_a_tier_is_kept(tmp_path: Path) -> None:
    chosen = await choose_backend("fake", tmp_path, load_fake)
    assert chosen.reason == "asked for by name"
    await chosen.backend.aclose()


async def test_auto_without_any_working_tier_lists_what_each_lacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atoll.isolation.registry.names", lambda: ["namespaces"])
    with pytest.raises(BackendUnavailable, match=r"namespaces: .*too old"):
        await choose_backend("auto", tmp_path, lambda _: _Hopeless)


# Trash


@asynccontextmanager
async def _trash(directory: Path) -> AsyncIterator[Trash]:
    trash = Trash(directory)
    trash.open()
    worker = asyncio.create_task(trash.run())
    try:
        yield trash
    finally:
        worker.cancel()
        await asyncio.wait([worker])


async def test_a_directory_deeper_than_any_path_is_removed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    descriptor = os.open(victim, os.O_RDONLY)
    for _ in range(3000):  # 3000 × 11 bytes: several times PATH_MAX, three times Python's recursion limit
        os.mkdir("0123456789", dir_fd=descriptor)
        inner = os.open("0123456789", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    async with _trash(tmp_path / "trash") as trash:
        trash.put(victim)
        assert not victim.exists()
        await asyncio.wait_for(trash.settled(), 30)
    assert list((tmp_path / "trash").iterdir()) == []


async def test_names_that_look_like_options_and_links_out_are_only_names(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    victim = tmp_path / "victim"
    (victim / "-rf").mkdir(parents=True)
    (victim / "a\nb").write_text("x")
    (victim / "link").symlink_to(outside)
    victim.chmod(0)
    async with _trash(tmp_path / "trash") as trash:
        trash.put(victim)
        trash.put(tmp_path / "never there")
        await asyncio.wait_for(trash.settled(), 30)
    assert list((tmp_path / "trash").iterdir()) == []
    assert (outside / "kept").read_text() == "kept"


async def test_what_a_stopped_server_left_in_the_trash_goes_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "trash" / "old.1.1").mkdir(parents=True)
    async with _trash(tmp_path / "trash") as trash:
        await asyncio.wait_for(trash.settled(), 30)
    assert list((tmp_path / "trash").iterdir()) == []


# Node and control together over a restart


async def test_a_restart_keeps_running_sandboxes_and_settles_the_others(tmp_path: Path) -> None:
    async with plane(tmp_path, keep=True) as world:
        lives, dies, stranger = [await world.create() for _ in range(3)]
        died = _handle(world.node, dies)
    await died.kill()
    async with plane(tmp_path, keep=True) as world:
        assert (await world.client.get(f"/sandboxes/{lives}")).status_code == 200
        assert (await world.client.get(f"/sandboxes/{dies}")).status_code == 404
        record = await world.store.find(dies)
        assert record is not None
        assert (record.state, record.end_reason) == (SandboxState.ENDED, EndReason.LOST)
    assert stranger != lives


async def _refusal(data_dir: Path) -> str:
    """Why a server does not start."""
    said = ""
    try:
        async with plane(data_dir, keep=True):
            pass
    except* StateLost as refused:
        said = str(refused.exceptions[0])
    return said


async def test_an_empty_database_facing_sandboxes_ends_none(tmp_path: Path) -> None:
    async with plane(tmp_path, keep=True) as world:
        stranger = await world.create()
        await eventually_async(lambda: state_mark.read(tmp_path / "state-mark"), what="the first event is marked")
    (tmp_path / "atoll.db").rename(tmp_path / "aside")
    assert "ends at event 0, 1 was seen" in await _refusal(tmp_path)
    (tmp_path / "state-mark").unlink()  # nor does anything say which database it was
    assert re.search(f"does not know 1 of 1 sandboxes.*{stranger}.*atoll recover", await _refusal(tmp_path))
    (tmp_path / "aside").replace(tmp_path / "atoll.db")
    async with plane(tmp_path) as world:
        assert (await world.client.get(f"/sandboxes/{stranger}")).status_code == 200


async def test_what_a_database_lacks_that_is_the_right_one_was_never_told_to_anybody(tmp_path: Path) -> None:
    """The front was killed before the row of a create was written: nobody has its id, and it goes."""
    async with plane(tmp_path, keep=True) as world:
        lives, unheard = [await world.create() for _ in range(2)]
    with sqlite3.connect(tmp_path / "atoll.db") as connection:
        connection.execute("DELETE FROM sandboxes WHERE sandbox_id = ?", (unheard,))
    async with plane(tmp_path, keep=True) as world:
        assert (await world.client.get(f"/sandboxes/{lives}")).status_code == 200
        assert [one.sandbox_id for one in await world.node.sandboxes()] == [lives]
        (tmp_path / "state-mark").unlink()  # nothing says any more which database it was
    with sqlite3.connect(tmp_path / "atoll.db") as connection:
        connection.execute("DELETE FROM sandboxes WHERE sandbox_id = ?", (lives,))
    assert "does not know 1 of 1" in await _refusal(tmp_path)


async def test_a_database_that_was_put_back_from_an_old_copy_ends_none(tmp_path: Path) -> None:
    """It knows the sandbox, but not that its timeout was put off, nor the snapshots that were taken since."""
    async with plane(tmp_path, keep=True) as world:
        sandbox_id = await world.create(timeout=3600)
    copy = (tmp_path / "atoll.db").read_bytes()
    async with plane(tmp_path, keep=True) as world:
        await world.client.post(f"/sandboxes/{sandbox_id}/timeout", json={"timeout": 7200})
    async with plane(tmp_path, keep=True) as world:
        assert (await world.client.get(f"/sandboxes/{sandbox_id}")).status_code == 200
        state_mark.write(tmp_path / "state-mark", await world.store.events.newest())
    (tmp_path / "atoll.db").write_bytes(copy)
    for name in ("atoll.db-wal", "atoll.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    assert "older than what this server has done" in await _refusal(tmp_path)
    (tmp_path / "state-mark").unlink()
    async with plane(tmp_path) as world:
        assert (await world.client.get(f"/sandboxes/{sandbox_id}")).status_code == 200


async def test_the_mark_follows_the_database_and_its_newest_event_is_never_forgotten(tmp_path: Path) -> None:
    async with plane(tmp_path) as world:
        mark = state_mark.StateMark(tmp_path / "own", world.store, _Impatient())
        await world.create()
        await eventually_async(lambda: world.store.events.newest(), what="the event of the create")
        running = asyncio.create_task(mark.run())
        await eventually_async(lambda: state_mark.read(tmp_path / "own"), what="the mark is written")
        running.cancel()
        newest = await world.store.events.newest()
        assert state_mark.read(tmp_path / "own") == newest
        await world.store.events.forget(datetime(2999, 1, 1, tzinfo=UTC), 10)
        assert await world.store.events.newest() == newest


class _Impatient(SystemClock):
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0.01)


async def test_a_restart_finishes_a_kill_and_undoes_a_create_that_were_cut_off(tmp_path: Path) -> None:
    async with plane(tmp_path, keep=True) as world:
        killing, creating = [await world.create() for _ in range(2)]
        assert await world.store.begin_kill(killing, EndReason.TIMEOUT, None)
        row = await world.store.find(creating)
        assert row is not None
    with sqlite3.connect(tmp_path / "atoll.db") as connection:
        connection.execute("UPDATE sandboxes SET state = 'creating' WHERE sandbox_id = ?", (creating,))
    async with plane(tmp_path) as world:
        assert await world.node.sandboxes() == []
        ended = [await world.store.find(one) for one in (killing, creating)]
        assert [(one.state, one.end_reason) for one in ended if one is not None] == [
            (SandboxState.ENDED, EndReason.TIMEOUT),
            (SandboxState.ENDED, EndReason.CREATE_FAILED),
        ]


async def test_a_deadline_that_passed_while_the_server_was_down_is_kept_at_start(tmp_path: Path) -> None:
    async with plane(tmp_path, keep=True) as world:
        sandbox_id = await world.create(timeout=1)
    await asyncio.sleep(1.1)
    async with plane(tmp_path) as world, asyncio.timeout(10):
        while (await world.client.get(f"/sandboxes/{sandbox_id}")).status_code != 404:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        record = await world.store.find(sandbox_id)
        assert record is not None
        assert record.end_reason is EndReason.TIMEOUT
