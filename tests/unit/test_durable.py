"""Files that are there whole or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from atoll.model import durable


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert durable.write(path, b"one")
    assert durable.write(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_that_make_it_the_first_wins(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert durable.write(path, b"one", replace=False)
    assert not durable.write(path, b"two", replace=False)
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    with pytest.raises(IsADirectoryError):
        durable.write(tmp_path / "key", b"one")
    assert [one.name for one in tmp_path.iterdir()] == ["key"]
