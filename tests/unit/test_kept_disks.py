"""Copies of a sandbox's disk: whole, with its holes, and also onto another file system."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from atoll.isolation.linux.disk import kept


def _image(path: Path) -> bytes:
    """3 MiB with a hole in the middle and one at the end."""
    with path.open("wb") as file:
        file.write(b"a" * (1 << 20))
        file.seek(2 << 20)
        file.write(b"b" * 100)
        file.truncate(3 << 20)
    return path.read_bytes()


def test_a_copy_is_whole_also_where_templates_lie_on_another_file_system(tmp_path: Path) -> None:
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system in /dev/shm")
    content = _image(tmp_path / "image")
    kept._copy_file(tmp_path / "image", tmp_path / "beside")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        kept._copy_file(tmp_path / "image", Path(other) / "copy")
        for copy in (tmp_path / "beside", Path(other) / "copy"):
            assert copy.read_bytes() == content
            assert copy.stat().st_blocks * 512 < 2 << 20, "holes stay holes"
