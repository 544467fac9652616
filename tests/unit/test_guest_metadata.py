"""Metadata that no file system keeps: it lives as long as its file, whose number may then be another's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.guest.files import metadata
from atoll.guest.files.metadata import Kept


@pytest.fixture
def kept() -> Iterator[Kept]:
    made = Kept()
    yield made
    made.close()


def _put(kept: Kept, path: Path, value: dict[str, str]) -> None:
    with path.open("a") as file:
        kept.put(file.fileno(), value)


def test_it_follows_the_file_and_is_replaced_as_a_whole(kept: Kept, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    _put(kept, one, {"a": "1"})
    one.rename(two)
    assert kept.get(two.stat()) == {"a": "1"}
    _put(kept, two, {"b": "2"})
    assert kept.get(two.stat()) == {"b": "2"}
    _put(kept, two, {})
    assert kept.get(two.stat()) == {}


def test_it_ends_with_the_file_whatever_gets_its_number(kept: Kept, tmp_path: Path) -> None:
    path = tmp_path / "one"
    _put(kept, path, {"a": "1"})
    dead = path.stat()
    path.unlink()
    assert kept.get(dead) == {}
    _put(kept, path, {"a": "1"})
    dead = path.stat()
    (tmp_path / "two").touch()
    (tmp_path / "two").rename(path)
    assert kept.get(dead) == {}


def test_a_file_that_is_open_has_not_ended(kept: Kept, tmp_path: Path) -> None:
    path = tmp_path / "one"
    with path.open("w") as file:
        kept.put(file.fileno(), {"a": "1"})
        path.unlink()
        assert kept.get(os.fstat(file.fileno())) == {"a": "1"}
        dead = os.fstat(file.fileno())
    assert kept.get(dead) == {}


def test_there_is_room_for_so_much_and_what_ends_makes_room(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "MAX_KEPT", 10_000)
    for number in range(4):
        _put(kept, tmp_path / str(number), {"k": "v" * 1000})
    with pytest.raises(OSError, match="No space left"):
        _put(kept, tmp_path / "more", {"k": "v" * 1000})
    (tmp_path / "0").unlink()
    _put(kept, tmp_path / "more", {"k": "v" * 1000})
    assert kept.get((tmp_path / "more").stat()) == {"k": "v" * 1000}
