"""Directories made ahead: taken by a rename, never over what is there, made on the spot when none is left."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from atoll.isolation import directory
from atoll.node.ready import ReadyDirectories
from atoll.testing.backend_contract import eventually


@pytest.fixture
async def ready(tmp_path: Path) -> AsyncIterator[ReadyDirectories]:
    stock = ReadyDirectories(tmp_path / "ready", 2)
    stock.open()
    maker = asyncio.create_task(stock.run())
    assert await eventually(lambda: len(os.listdir(tmp_path / "ready")) == 2)
    await asyncio.sleep(0)
    yield stock
    maker.cancel()
    await asyncio.wait([maker])
    stock.close()
    assert not (tmp_path / "ready").exists()


async def test_all_that_are_taken_are_alike_whether_made_ahead_or_not(ready: ReadyDirectories, tmp_path: Path) -> None:
    for number in range(5):
        place = tmp_path / f"i{number}"
        ready.take(place)
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        files = {path.name: (path.stat().st_size, stat.S_IMODE(path.stat().st_mode)) for path in place.iterdir()}
        assert files == dict.fromkeys((directory.SPEC, directory.STATE, directory.LOG), (0, 0o600))
        assert directory.read(place) is None
    assert await eventually(lambda: len(os.listdir(tmp_path / "ready")) == 2)


async def test_what_is_there_is_left_as_it_is(ready: ReadyDirectories, tmp_path: Path) -> None:
    (tmp_path / "i1").mkdir()
    with pytest.raises(FileExistsError):
        ready.take(tmp_path / "i1")
    assert list((tmp_path / "i1").iterdir()) == []


async def test_what_somebody_removed_is_not_missed(ready: ReadyDirectories, tmp_path: Path) -> None:
    for left in (tmp_path / "ready").iterdir():
        for path in left.iterdir():
            path.unlink()
        left.rmdir()
    ready.take(tmp_path / "i1")
    assert (tmp_path / "i1" / directory.STATE).exists()
