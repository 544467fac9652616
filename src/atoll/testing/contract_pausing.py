"""The part of the contract that is about what is kept of a sandbox: pause, resume, snapshot, another one made from it.

`~` stands for the disk: that is kept in every tier. See `backend_contract`.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from atoll.isolation import directory
from atoll.isolation.base import Capability, IsolationBackend, SandboxHandle
from atoll.model.errors import CreateFailed, MemoryLost, SandboxGone
from atoll.model.sandbox import PauseMode, SandboxPaths, SandboxSpec, SandboxState
from atoll.testing import inside

_COUNT = "nohup bash -c 'i=0; while :; do i=$((i+1)); echo $i > ~/count.new; mv ~/count.new ~/count; sleep 0.02; done'"
_START_COUNTING = f"{_COUNT} >/dev/null 2>&1 & echo $! > ~/pid; until test -s ~/count; do sleep 0.01; done"
_STILL_THERE = "kill -0 $(cat ~/pid)"
_STOOD_STILL = "before=$(cat ~/count); sleep 0.3; test $before = $(cat ~/count)"


class Asked(NamedTuple):
    """The arguments of one create."""

    spec: SandboxSpec
    paths: SandboxPaths

    @property
    def sandbox_id(self) -> str:
        return self.spec.sandbox_id

    @property
    def state_dir(self) -> Path:
        return self.paths.state_dir


class PausingContract(ABC):
    """Mixed into BackendContract."""

    @abstractmethod
    def asked(self, place: Path, **changes: object) -> Asked:
        """A sandbox with a state directory of its own below `place`."""

    @abstractmethod
    def started(self, run_dir: Path) -> AbstractAsyncContextManager[IsolationBackend]:
        """A backend, closed afterwards."""

    # -- pause and resume ----------------------------------------------------------------------------------------------

    async def test_a_pause_of_the_disk_keeps_what_was_written_and_ends_what_ran(self, tmp_path: Path) -> None:
        async with self.started(tmp_path / "run") as backend:
            if Capability.PAUSE not in backend.capabilities:
                pytest.skip("this tier does not claim PAUSE")
            asked = self.asked(tmp_path)
            handle = await backend.create(*asked)
            await _run(handle, "echo first > ~/kept; touch ~/doomed")
            for attempt in (1, 2):
                await _run(handle, f"{_START_COUNTING}; rm -f ~/doomed; echo {attempt} >> ~/kept")
                record = await _pause(handle, asked, PauseMode.FILESYSTEM)
                assert backend.kept(asked.state_dir, record) is PauseMode.FILESYSTEM
                await _is_used_up(handle)
                assert (await backend.reclaim(set())).processes == 0, "no process is left"
                with pytest.raises(MemoryLost):
                    await _resume(backend, asked, record, PauseMode.MEMORY)
                handle = await _resume(backend, asked, record, PauseMode.FILESYSTEM)
                assert (await _run(handle, "cat ~/kept")).split() == ["first", *map(str, range(1, attempt + 1))]
                await _run(handle, _STOOD_STILL)
                assert (await inside.run(handle, "ls ~/doomed")).code != 0
            await handle.kill()

    async def test_a_resume_that_fails_leaves_it_paused(self, tmp_path: Path) -> None:
        async with self.started(tmp_path / "run") as backend:
            if Capability.PAUSE not in backend.capabilities:
                pytest.skip("this tier does not claim PAUSE")
            asked = self.asked(tmp_path)
            handle = await backend.create(*asked)
            await _run(handle, "echo first > ~/kept")
            record = await _pause(handle, asked, PauseMode.FILESYSTEM)
            nowhere = SandboxPaths((tmp_path / "no such layer",), asked.state_dir)
            with pytest.raises(CreateFailed):
                await _resume(backend, Asked(asked.spec, nowhere), record, PauseMode.FILESYSTEM)
            task = asyncio.create_task(_resume(backend, asked, record, PauseMode.FILESYSTEM))
            await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                record = await _pause(task.result(), asked, PauseMode.FILESYSTEM)
            assert (await backend.reclaim(set())).processes == 0
            handle = await _resume(backend, asked, record, PauseMode.FILESYSTEM)
            assert await _run(handle, "cat ~/kept") == "first\n"
            await handle.kill()

    async def test_a_pause_with_memory_stops_what_runs_and_lets_it_go_on(self, tmp_path: Path) -> None:
        async with self.started(tmp_path / "run") as backend:
            if Capability.PAUSE_MEMORY not in backend.capabilities:
                pytest.skip("this tier does not claim PAUSE_MEMORY")
            asked = self.asked(tmp_path)
            handle = await backend.create(*asked)
            await _run(handle, _START_COUNTING)
            for _ in range(2):
                record = await _pause(handle, asked, PauseMode.MEMORY)
                assert backend.kept(asked.state_dir, record) is PauseMode.MEMORY
                await _is_used_up(handle)
                handle = await _resume(backend, asked, record, PauseMode.MEMORY)
                assert await inside.health(handle) == 204
                first = await _run(handle, f"{_STILL_THERE} && cat ~/count")
                second = await _run(handle, "sleep 0.3; cat ~/count")
                assert int(second) > int(first)
            await handle.kill()

    async def test_a_paused_one_outlives_the_backend_and_resumes_at_the_next(self, tmp_path: Path) -> None:
        async with self.started(tmp_path / "run") as backend:
            if Capability.PAUSE_MEMORY not in backend.capabilities:
                pytest.skip("this tier does not claim PAUSE_MEMORY")
            asked, other = self.asked(tmp_path), self.asked(tmp_path)
            records = []
            for one in (asked, other):
                handle = await backend.create(*one)
                await _run(handle, _START_COUNTING)
                records.append(await _pause(handle, one, PauseMode.MEMORY))
        async with self.started(tmp_path / "run") as successor:
            await successor.reclaim({str(record.get("group", "")) for record in records})
            assert successor.kept(asked.state_dir, records[0]) is PauseMode.MEMORY
            handle = await _resume(successor, asked, records[0], PauseMode.MEMORY)
            assert int(await _run(handle, f"{_STILL_THERE} && cat ~/count")) > 0
            await handle.kill()
            # The other is started anew on its disk.
            handle = await _resume(successor, other, records[1], PauseMode.FILESYSTEM)
            assert int(await _run(handle, "cat ~/count")) > 0
            await _run(handle, _STOOD_STILL)
            await handle.kill()
            assert (await successor.reclaim(set())).processes == 0

    async def test_a_paused_one_can_be_ended(self, tmp_path: Path) -> None:
        async with self.started(tmp_path / "run") as backend:
            for mode, needed in (
                (PauseMode.FILESYSTEM, Capability.PAUSE),
                (PauseMode.MEMORY, Capability.PAUSE_MEMORY),
            ):
                if needed not in backend.capabilities:
                    continue
                asked = self.asked(tmp_path)
                record = await _pause(await backend.create(*asked), asked, mode)
                await backend.end_paused(asked.spec, asked.state_dir, record)
                await backend.end_paused(asked.spec, asked.state_dir, record)
                report = await backend.reclaim(set())
                assert (report.processes, report.cgroups) == (0, 0)

    # -- snapshots -----------------------------------------------------------------------------------------------------

    async def test_a_snapshot_is_a_layer_for_others_and_the_source_goes_on(self, tmp_path: Path) -> None:
        async with self.started(tmp_path / "run") as backend:
            if Capability.SNAPSHOT not in backend.capabilities:
                pytest.skip("this tier does not claim SNAPSHOT")
            source = self.asked(tmp_path)
            handle = await backend.create(*source)
            await _run(handle, f"mkdir -p ~/d/e; echo first > ~/d/e/kept; touch ~/doomed; {_START_COUNTING}")
            target = tmp_path / "snapshot"
            target.mkdir()
            captured = await handle.snapshot(PauseMode.FILESYSTEM, target)
            assert captured.memory is None
            assert captured.layer is not None
            assert captured.layer.parent == target
            await _run(handle, f"{_STILL_THERE} && echo later > ~/d/e/kept")
            layers = (captured.layer, *source.paths.lower_dirs)
            children = [self.asked(tmp_path, lower_dirs=layers) for _ in range(2)]
            one, two = await asyncio.gather(*(backend.create(*child) for child in children))
            await _run(one, "echo mine > ~/d/e/kept; rm ~/doomed; mv ~/d ~/moved")
            assert await _run(two, "cat ~/d/e/kept; ls ~/doomed >/dev/null && echo there") == "first\nthere\n"
            await two.kill()
            # A chain: of what was made from a snapshot there can be another.
            next_target = tmp_path / "next"
            next_target.mkdir()
            again = await one.snapshot(PauseMode.FILESYSTEM, next_target, durable=False)
            await one.kill()
            assert again.layer is not None
            grandchild = await backend.create(*self.asked(tmp_path, lower_dirs=(again.layer, *layers)))
            assert await _run(grandchild, "cat ~/moved/e/kept; ls ~/d ~/doomed 2>/dev/null | wc -l") == "mine\n0\n"
            assert await _run(handle, "cat ~/d/e/kept") == "later\n"
            await grandchild.kill()
            await handle.kill()

    async def test_a_snapshot_with_memory_goes_on_in_others_as_themselves(self, tmp_path: Path) -> None:
        async with self.started(tmp_path / "run") as backend:
            if Capability.SNAPSHOT_MEMORY not in backend.capabilities:
                pytest.skip("this tier does not claim SNAPSHOT_MEMORY")
            source = self.asked(tmp_path)
            handle = await backend.create(*source)
            await _run(handle, _START_COUNTING)
            target = tmp_path / "snapshot"
            target.mkdir()
            captured = await handle.snapshot(PauseMode.MEMORY, target)
            assert captured.memory is not None
            assert captured.layer is not None
            layers = (captured.layer, *source.paths.lower_dirs)
            children = [self.asked(tmp_path, lower_dirs=layers) for _ in range(2)]
            made = [await backend.create(one.spec, replace(one.paths, memory=captured.memory)) for one in children]
            look = f"{_STILL_THERE} && hostname && head -c 16 /dev/urandom | od -An -tx1 && cat /etc/machine-id"
            seen = [await _run(one, look) for one in (handle, *made)]
            for line in range(3):
                assert len({one.splitlines()[line] for one in seen}) == 3, "each has an identity of its own"
            await asyncio.gather(*(one.kill() for one in (handle, *made)))


async def _run(handle: SandboxHandle, script: str) -> str:
    """What it prints. It has to succeed."""
    done = await inside.run(handle, script)
    assert done.code == 0, done
    return done.out


async def _pause(handle: SandboxHandle, asked: Asked, mode: PauseMode) -> Mapping[str, Any]:
    """As a node does it: with what it knows written down before and after."""
    tier, running = handle.tier, handle.record()
    directory.write_spec(asked.state_dir, asked.spec, asked.paths.lower_dirs)
    record: Mapping[str, Any] = json.loads(json.dumps(dict(await handle.pause(mode))))
    assert running
    paused = directory.StateRecord(SandboxState.PAUSED, tier, record, paused=directory.Paused(mode, record))
    directory.rewrite(asked.state_dir, paused)
    return record


async def _resume(backend: IsolationBackend, asked: Asked, record: Mapping[str, Any], mode: PauseMode) -> SandboxHandle:
    directory.move(asked.state_dir, SandboxState.RESUMING)
    handle = await backend.resume(asked.spec, asked.paths, record, mode)
    found = directory.read(asked.state_dir)
    assert isinstance(found, directory.Recorded)
    assert found.state.state is SandboxState.RESUMING
    assert found.state.handle == handle.record()
    return handle


async def _is_used_up(handle: SandboxHandle) -> None:
    for call in (handle.stats, handle.thaw):
        with pytest.raises(SandboxGone):
            await call()
    with pytest.raises(SandboxGone):
        await handle.dial(8123)
