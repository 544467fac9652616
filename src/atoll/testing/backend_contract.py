"""What every isolation tier must hold to, as tests: `isolation/base.py` is the law, this is the court.

A tier's test module subclasses `BackendContract`, says how to make a backend and which layers a sandbox gets:

    class TestMyTier(BackendContract):
        def make_backend(self, run_dir: Path) -> IsolationBackend: ...
        def layers(self) -> tuple[Path, ...]: ...

The guest inside is the real one. What a tier cannot do is asked of its `capabilities`: a test of an optional ability
demands BackendUnavailable where the ability is not claimed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import socket
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from atoll.isolation import directory
from atoll.isolation.base import CONTROL_PORT, Capability, IsolationBackend, SandboxHandle, Verdict
from atoll.model.errors import BackendUnavailable, CreateFailed, NotOffered, PortClosed, SandboxGone
from atoll.model.sandbox import ENVD_PORT, INTERPRETER_PORT, Limits, PauseMode, SandboxPaths, SandboxSpec, SandboxState
from atoll.testing import inside
from atoll.testing.contract_inside import InsideContract
from atoll.testing.contract_pausing import Asked, PausingContract

_numbers = itertools.count(1)
_SERVE = (
    'nohup python3 -c \'import socket as s; l=s.create_server(("{host}",{port}),family=s.{family}); '
    '[c.sendall(b"here") or c.close() for c,_ in iter(l.accept,0)]\' >/dev/null 2>&1 & '
    "for i in $(seq 200); do python3 -c 'import socket as s; s.create_connection((\"{host}\",{port}))' 2>/dev/null "
    "&& exit 0; sleep 0.05; done; exit 1"
)


async def eventually(claim: Callable[[], bool | Awaitable[bool]], within_s: float = 10.0) -> bool:
    """Whether the claim becomes true in time."""
    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        outcome = claim()
        if outcome if isinstance(outcome, bool) else await outcome:
            return True
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.02)


class BackendContract(InsideContract, PausingContract):
    """Subclass it as `Test…`."""

    gaps: Mapping[str, str] = MappingProxyType({})
    """Test → why this tier is excused from it."""

    @pytest.fixture(autouse=True)
    def _excused(self, request: pytest.FixtureRequest) -> None:
        if (reason := self.gaps.get(request.node.originalname)) is not None:
            pytest.skip(reason)

    @abstractmethod
    def make_backend(self, run_dir: Path) -> IsolationBackend:
        """A backend that has not been started."""

    @abstractmethod
    def layers(self) -> tuple[Path, ...]:
        """The layers of a template with bash, coreutils and python3, top first."""

    # -- tools ---------------------------------------------------------------------------------------------------------

    def asked(self, place: Path, **changes: object) -> Asked:
        """A sandbox with a state directory of its own below `place`."""
        sandbox_id = str(changes.pop("sandbox_id", f"contract{os.getpid()}x{next(_numbers)}"))
        state_dir = place / sandbox_id
        state_dir.mkdir(mode=0o700, parents=True)
        limits = changes.pop("limits", Limits(cpu_count=1, memory_mib=256, pids=200))
        assert isinstance(limits, Limits)
        layers = changes.pop("lower_dirs", None) or self.layers()
        assert isinstance(layers, tuple)
        assert not changes
        spec = SandboxSpec(sandbox_id, "contract", limits, env_vars={"FROM_SPEC": "yes"})
        return Asked(spec, SandboxPaths(layers, state_dir))

    @asynccontextmanager
    async def started(self, run_dir: Path) -> AsyncIterator[IsolationBackend]:
        backend = self.make_backend(run_dir)
        await backend.start()
        try:
            yield backend
        finally:
            await backend.aclose()

    @asynccontextmanager
    async def sandbox(self, place: Path) -> AsyncIterator[tuple[IsolationBackend, SandboxHandle]]:
        async with self.started(place / "run") as backend:
            handle = await backend.create(*self.asked(place))
            try:
                yield backend, handle
            finally:
                await handle.kill()

    # -- backend -------------------------------------------------------------------------------------------------------

    async def test_doctor_works_before_start_and_finds_no_fault_where_the_tier_is_tested(self, tmp_path: Path) -> None:
        run_dir = tmp_path / "run"
        findings = await self.make_backend(run_dir).doctor()
        assert findings
        assert [finding for finding in findings if finding.verdict is Verdict.FAIL] == []
        assert not run_dir.exists() or not any(run_dir.iterdir()), "doctor changes nothing"

    async def test_aclose_leaves_sandboxes_alone_and_is_idempotent(self, tmp_path: Path) -> None:
        async with self.started(tmp_path / "run") as backend:
            asked = self.asked(tmp_path)
            record = json.loads(json.dumps(dict((await backend.create(*asked)).record())))
            await backend.aclose()
            await backend.aclose()
        async with self.started(tmp_path / "run") as successor:
            handle = await successor.adopt(asked.spec, asked.state_dir, record)
            assert await inside.health(handle) == 204
            assert handle.sandbox_id == asked.sandbox_id
            await handle.kill()
            with pytest.raises(SandboxGone):
                await successor.adopt(asked.spec, asked.state_dir, record)

    async def test_adopting_nonsense_says_gone(self, tmp_path: Path) -> None:
        async with self.started(tmp_path / "run") as backend:
            for record in ({}, {"sandbox_id": "x", "pid": "no"}, {"version": 99}):
                with pytest.raises(SandboxGone):
                    await backend.adopt(SandboxSpec("x", "contract"), tmp_path, record)

    async def test_an_adopted_sandbox_reports_its_end(self, tmp_path: Path) -> None:
        asked = self.asked(tmp_path)
        async with self.started(tmp_path / "run") as backend:
            record = dict((await backend.create(*asked)).record())
        async with self.started(tmp_path / "run") as successor:
            handle = await successor.adopt(asked.spec, asked.state_dir, record)
            waiting = asyncio.create_task(handle.wait())
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await handle.kill()
            assert (await asyncio.wait_for(waiting, 5)).killed

    async def test_reclaim_ends_all_that_is_not_adopted(self, tmp_path: Path) -> None:
        kept, lost = self.asked(tmp_path), self.asked(tmp_path)
        async with self.started(tmp_path / "run") as backend:
            records = {asked.sandbox_id: dict((await backend.create(*asked)).record()) for asked in (kept, lost)}
        async with self.started(tmp_path / "run") as successor:
            handle = await successor.adopt(kept.spec, kept.state_dir, records[kept.sandbox_id])
            report = await successor.reclaim(set())
            assert report.processes >= 1
            with pytest.raises(SandboxGone):
                await successor.adopt(lost.spec, lost.state_dir, records[lost.sandbox_id])
            assert await inside.health(handle) == 204
            again = await successor.reclaim(set())
            assert again.processes == 0
            await handle.kill()

    async def test_what_a_killed_server_needs_is_in_the_directory_before_the_sandbox_runs(self, tmp_path: Path) -> None:
        async with self.started(tmp_path / "run") as backend:
            asked = self.asked(tmp_path)
            handle = await backend.create(*asked)
            try:
                directory.write_spec(asked.state_dir, asked.spec)
                found = directory.read(asked.state_dir)
                assert isinstance(found, directory.Recorded)
                assert found.state == directory.StateRecord(SandboxState.CREATING, backend.name, handle.record())
                assert (asked.state_dir / directory.STATE).stat().st_mode & 0o777 == 0o600
            finally:
                await handle.kill()

    async def test_reclaim_touches_nothing_of_another_run_dir(self, tmp_path: Path) -> None:
        async with self.started(tmp_path / "one") as one, self.started(tmp_path / "two") as two:
            handle = await one.create(*self.asked(tmp_path))
            await two.reclaim(set())
            assert await inside.health(handle) == 204
            await handle.kill()

    # -- create --------------------------------------------------------------------------------------------------------

    async def test_a_sandbox_answers_as_soon_as_create_returns(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            assert await inside.health(handle) == 204
            assert handle.tier

    async def test_many_at_once_all_come_up_and_are_apart(self, tmp_path: Path) -> None:
        async with self.started(tmp_path / "run") as backend:
            handles = await asyncio.gather(*(backend.create(*self.asked(tmp_path)) for _ in range(12)))
            try:
                done = await asyncio.gather(*(inside.run(handle, "echo $$ > /tmp/mine; ls /tmp") for handle in handles))
                assert {one.out for one in done} == {done[0].out}
                assert len({handle.sandbox_id for handle in handles}) == 12
            finally:
                await asyncio.gather(*(handle.kill() for handle in handles))

    async def test_a_create_that_fails_leaves_nothing_and_harms_nobody(self, tmp_path: Path) -> None:
        async with self.started(tmp_path / "run") as backend:
            asked = self.asked(tmp_path, lower_dirs=(tmp_path / "no such layer",))
            for _ in range(8):
                with pytest.raises(CreateFailed) as failure:
                    await backend.create(*asked)
            assert failure.value.message
            assert not (asked.state_dir / "guest.sock").exists()
            handle = await backend.create(*self.asked(tmp_path))
            assert await inside.health(handle) == 204
            await handle.kill()
            assert (await backend.reclaim(set())).processes == 0

    async def test_a_cancelled_create_leaves_nothing(self, tmp_path: Path) -> None:
        async with self.started(tmp_path / "run") as backend:
            for delay in (0.0, 0.001, 0.003, 0.006, 0.01, 0.02):
                asked = self.asked(tmp_path)
                task = asyncio.create_task(backend.create(*asked))
                await asyncio.sleep(delay)
                task.cancel()
                try:
                    handle = await task
                except asyncio.CancelledError:
                    assert not (asked.state_dir / "guest.sock").exists()
                else:
                    await handle.kill()
            assert (await backend.reclaim(set())).processes == 0

    # -- dial ----------------------------------------------------------------------------------------------------------

    async def test_the_guests_ports_take_connections(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            for port in (ENVD_PORT, INTERPRETER_PORT, CONTROL_PORT):
                connection = await handle.dial(port)
                assert connection.getblocking() is False
                connection.close()

    async def test_a_port_where_nothing_listens_is_closed(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            with pytest.raises(PortClosed):
                await handle.dial(8123)

    @pytest.mark.parametrize(
        ("host", "family"), [("127.0.0.1", "AF_INET"), ("0.0.0.0", "AF_INET"), ("::1", "AF_INET6")]
    )
    async def test_a_service_is_reached_wherever_it_listens_inside(
        self, tmp_path: Path, host: str, family: str
    ) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            port = 20000 + os.getpid() % 10000 + len(host)
            reached = await inside.run(handle, _SERVE.format(host=host, port=port, family=family))
            assert reached.code == 0, reached
            connection = await handle.dial(port)
            with connection:
                assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 10), 5) == b"here"

    async def test_dialling_a_killed_sandbox_says_gone(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            await handle.kill()
            for port in (ENVD_PORT, CONTROL_PORT, 8123):
                with pytest.raises(SandboxGone):
                    await handle.dial(port)

    # -- life and end --------------------------------------------------------------------------------------------------

    async def test_kill_is_idempotent_and_wait_returns(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            waiters = [asyncio.create_task(handle.wait()) for _ in range(3)]
            waiters[0].cancel()
            await asyncio.gather(handle.kill(), handle.kill())
            await handle.kill()
            assert [(await waiter).killed for waiter in waiters[1:]] == [True, True]
            assert (await handle.wait()).killed

    async def test_kill_ends_what_runs_and_the_stream_breaks(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            running = asyncio.create_task(inside.run(handle, "trap '' TERM INT HUP; sleep 1000 & sleep 1000"))
            await asyncio.sleep(0.2)
            await handle.kill()
            with pytest.raises((EOFError, ConnectionError, SandboxGone)):
                await asyncio.wait_for(running, 5)

    async def test_after_the_end_every_method_says_gone(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            await handle.kill()
            for call in (handle.stats, handle.thaw):
                with pytest.raises(SandboxGone):
                    await call()
            with pytest.raises(SandboxGone):
                await handle.update(Limits())
            with pytest.raises((SandboxGone, BackendUnavailable)):
                await handle.freeze()

    async def test_the_state_directory_stays_for_its_owner(self, tmp_path: Path) -> None:
        async with self.started(tmp_path / "run") as backend:
            asked = self.asked(tmp_path)
            handle = await backend.create(*asked)
            await handle.kill()
            assert asked.state_dir.is_dir()
            assert not (asked.state_dir / "guest.sock").exists()
            await asyncio.to_thread(shutil.rmtree, asked.state_dir)

    # -- abilities that a tier may lack --------------------------------------------------------------------------------

    async def test_stats_show_what_is_used(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (backend, handle):
            stats = await handle.stats()
            assert stats.memory_total > 0
            if Capability.LIMITS_PIDS in backend.capabilities:
                assert stats.pids is not None
                assert stats.pids >= 1
            if Capability.LIMITS_MEMORY in backend.capabilities:
                assert stats.memory_used is not None
                assert 0 < stats.memory_used < stats.memory_total

    async def test_freeze_stops_and_thaw_lets_go_on(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (backend, handle):
            if Capability.FREEZE not in backend.capabilities:
                with pytest.raises(BackendUnavailable):
                    await handle.freeze()
                return
            await handle.freeze()
            await handle.freeze()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(inside.health(handle), 0.3)
            await handle.thaw()
            await handle.thaw()
            assert await asyncio.wait_for(inside.health(handle), 5) == 204

    async def test_a_frozen_sandbox_can_be_killed(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (backend, handle):
            if Capability.FREEZE not in backend.capabilities:
                return
            await handle.freeze()
            await asyncio.wait_for(handle.kill(), 10)

    async def test_the_way_out_is_two_sockets_or_honestly_none(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (backend, handle):
            sockets = await handle.egress_sockets()
            assert (sockets is not None) == (Capability.EGRESS_POLICY in backend.capabilities)
            if sockets is None:
                return
            with sockets.connections as connections, sockets.questions as questions:
                connections.setblocking(False)
                questions.settimeout(5)
                script = (
                    "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
                    "s.sendto(b'question', ('192.0.2.53', 53)); s.settimeout(5); print(s.recv(99)); "
                    "t = socket.create_connection(('192.0.2.1', 80), 5); print(t.recv(99))"
                )
                running = asyncio.create_task(inside.run(handle, f'python3 -c "{script}"'))
                loop = asyncio.get_running_loop()
                question, sender = await loop.run_in_executor(None, questions.recvfrom, 99)
                assert question == b"question"
                questions.sendto(b"answer", sender)
                accepted, _ = await asyncio.wait_for(loop.sock_accept(connections), 5)
                with accepted:
                    # Linux's SO_ORIGINAL_DST: port and address as the program meant them.
                    assert accepted.getsockopt(socket.SOL_IP, 80, 16)[2:8] == b"\x00\x50\xc0\x00\x02\x01"
                    accepted.sendall(b"hello")
                done = await running
                assert done.out.splitlines() == ["b'answer'", "b'hello'"], done

    async def test_what_a_tier_does_not_claim_is_not_offered(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (backend, handle):
            claimed = backend.capabilities
            asked = self.asked(tmp_path)
            for mode, pausing, copying in (
                (PauseMode.FILESYSTEM, Capability.PAUSE, Capability.SNAPSHOT),
                (PauseMode.MEMORY, Capability.PAUSE_MEMORY, Capability.SNAPSHOT_MEMORY),
            ):
                if pausing not in claimed:
                    with pytest.raises(NotOffered, match=backend.name):
                        await handle.pause(mode)
                if copying not in claimed:
                    with pytest.raises(NotOffered, match=backend.name):
                        await handle.snapshot(mode, tmp_path)
            if Capability.PAUSE not in claimed:
                with pytest.raises(NotOffered, match=backend.name):
                    await backend.resume(*asked, {}, PauseMode.FILESYSTEM)
            assert Capability.PAUSE_MEMORY not in claimed or Capability.PAUSE in claimed
            assert Capability.SNAPSHOT_MEMORY not in claimed or Capability.SNAPSHOT in claimed
            assert await inside.health(handle) == 204

    async def test_the_process_limit_holds(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (backend, handle):
            if Capability.LIMITS_PIDS not in backend.capabilities:
                return
            bomb = "for i in $(seq 400); do sleep 5 & done 2>/dev/null; jobs -r | wc -l"
            done = await inside.run(handle, bomb)
            stats = await handle.stats()
            assert stats.pids is not None
            assert stats.pids <= 200, done
            assert await eventually(lambda: self._can_run(handle)), "the sandbox recovers from a fork bomb"

    @staticmethod
    async def _can_run(handle: SandboxHandle) -> bool:
        done = await inside.run(handle, "pkill -9 sleep; echo alive")
        return "alive" in done.out

    async def test_the_memory_limit_holds_and_the_guest_outlives_it(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (backend, handle):
            if Capability.LIMITS_MEMORY not in backend.capabilities:
                return
            hog = await inside.run(handle, "python3 -c 'x = bytearray(600 << 20); print(len(x))'")
            assert hog.code != 0
            assert hog.out == ""
            assert await inside.health(handle) == 204

    async def test_the_disk_limit_holds_and_says_so(self, tmp_path: Path) -> None:
        small = Limits(cpu_count=1, memory_mib=256, disk_mib=64, pids=200)
        async with self.started(tmp_path / "run") as backend:
            if Capability.LIMITS_DISK not in backend.capabilities:
                return
            handle = await backend.create(*self.asked(tmp_path, limits=small))
            try:
                full = await inside.run(handle, "head -c 100M /dev/zero > /var/tmp/big; stat -c %s /var/tmp/big")
                assert "No space left" in full.err
                assert 16 << 20 < int(full.out) < 64 << 20
                assert (await handle.stats()).disk_total == 64 << 20
                freed = await inside.run(handle, "rm /var/tmp/big && head -c 16M /dev/zero > /var/tmp/again && echo ok")
                assert freed.out == "ok\n", freed
                with pytest.raises(BackendUnavailable):
                    await handle.update(replace(small, disk_mib=128))
            finally:
                await handle.kill()

    async def test_limits_can_be_changed_while_it_runs(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (backend, handle):
            claimed = {Capability.LIMITS_MEMORY, Capability.LIMITS_CPU, Capability.LIMITS_PIDS}
            if not claimed <= backend.capabilities:
                return
            await handle.update(Limits(cpu_count=2, memory_mib=1024, pids=300))
            assert (await handle.stats()).memory_total == 1024 << 20
            hog = await inside.run(handle, "python3 -c 'x = bytearray(600 << 20); print(len(x))'")
            assert hog.out.strip() == str(600 << 20)
            seen = await inside.run(
                handle, "awk '/MemTotal/{print $2}' /proc/meminfo; nproc; grep -c ^processor /proc/cpuinfo"
            )
            processors = min(2, len(os.sched_getaffinity(0)))
            assert list(map(int, seen.out.split())) == [1024 << 10, processors, processors]
