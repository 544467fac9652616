"""The control plane's disk is full during a transition: nothing acknowledged is lost, nothing is left behind."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from atoll.control.sandboxes.ending import RETRY_S
from atoll.model.sandbox import SandboxState
from atoll.testing.clock import ManualClock
from support.control import API_KEY, World, plane
from support.host import requires

_LIVE = [state for state in SandboxState if state is not SandboxState.ENDED]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def _client(world: World) -> httpx.AsyncClient:
    """One that gets an answer where the application failed, as over a socket."""
    transport = httpx.ASGITransport(world.app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://control", headers={"X-API-Key": API_KEY})


async def _listed(world: World) -> set[str]:
    return {one["sandboxID"] for one in (await world.client.get("/v2/sandboxes")).json()}


async def _on_node(world: World) -> set[str]:
    return {one.sandbox_id for one in await world.node.sandboxes()}


@requires("root")
async def test_on_a_full_disk_no_sandbox_is_made_and_what_runs_is_kept(small_disk: Path) -> None:
    async with plane(small_disk / "data") as world:
        kept = await world.create()
        with pytest.raises(OSError, match="No space left"):
            (small_disk / "filler").write_bytes(b"x" * (8 << 20))
        for _ in range(30):  # more than the database's own file has room for
            answer = await _client(world).post("/v2/sandboxes", json={"templateID": "base"})
        assert answer.status_code == 507
        assert answer.json()["error_code"] == "storage_full"
        assert "make room" in answer.json()["message"]
        kill = await _client(world).delete(f"/sandboxes/{kept}")
        assert kill.status_code == 507, "an end that cannot be written is not begun"
        assert await _listed(world) == await _on_node(world) == {kept}
        (small_disk / "filler").unlink()
        more = await world.create()
        for sandbox_id in (kept, more):
            assert (await world.client.delete(f"/sandboxes/{sandbox_id}")).status_code == 204
        assert await _listed(world) == await _on_node(world) == set()


def _full(*_: object, **__: object) -> None:
    raise OperationalError("a statement", {}, Exception("database or disk is full"))


@pytest.mark.parametrize("step", ["add", "running"])
async def test_a_step_of_a_create_that_cannot_be_written_undoes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async with plane(tmp_path) as world:
        with monkeypatch.context() as patch:
            patch.setattr(world.store, step, _full)
            answer = await _client(world).post("/v2/sandboxes", json={"templateID": "base"})
            assert answer.status_code >= 500
        assert await _listed(world) == await _on_node(world) == set()
        await world.create()


@pytest.mark.parametrize("step", ["begin_kill", "end"])
async def test_a_step_of_an_end_that_cannot_be_written_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    clock = ManualClock()
    async with plane(tmp_path, clock=clock) as world:
        sandbox_id = await world.create(timeout=60)
        with monkeypatch.context() as patch:
            patch.setattr(world.store, step, _full)
            answer = await _client(world).delete(f"/sandboxes/{sandbox_id}")
            if step == "end":
                assert answer.status_code == 204, "it is gone, and the store says so"
                assert await _listed(world) == await _on_node(world) == set()
            else:
                assert answer.status_code >= 500
                assert await _listed(world) == await _on_node(world) == {sandbox_id}, "nothing was begun"
            await clock.advance(60 + RETRY_S)
        async with asyncio.timeout(20):
            while await _on_node(world) or await world.store.in_states(_LIVE):
                await clock.advance(RETRY_S)
                await asyncio.sleep(0.01)
        assert await _listed(world) == set()
