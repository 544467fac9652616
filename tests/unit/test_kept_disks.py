"""Copies of a sandbox's disk: whole, with its holes, and also onto another file system."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from atoll.isolation.linux.disk import image as disk_image
from atoll.isolation.linux.disk import kept, loops
from support.host import requires


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
    kept.copy_file(tmp_path / "image", tmp_path / "beside")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        kept.copy_file(tmp_path / "image", Path(other) / "copy")
        for copy in (tmp_path / "beside", Path(other) / "copy"):
            assert copy.read_bytes() == content
            assert copy.stat().st_blocks * 512 < 2 << 20, "holes stay holes"


@requires("root")
def test_the_device_of_a_disk_is_found_by_the_file_whatever_path_the_kernel_tells(tmp_path: Path) -> None:
    """It tells another one for a data directory that is a mount of its own, attached in another mount namespace."""
    image, other = tmp_path / "disk.img", tmp_path / "other.img"
    for path in (image, other):
        path.write_bytes(bytes(1 << 20))
    attached = subprocess.run(["losetup", "--show", "-f", image], capture_output=True, text=True, check=False)
    if attached.returncode != 0:
        pytest.skip(f"needs loop devices: {attached.stderr.strip()}")
    device = attached.stdout.strip()
    try:
        moved = image.rename(tmp_path / "moved.img")  # what was told is then not where it is
        assert loops.device_of(moved) == device.removeprefix("/dev/")
        assert loops.is_on(device.removeprefix("/dev/"), moved)
        assert not loops.is_on(device.removeprefix("/dev/"), other)
        assert loops.device_of(other) is None
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
    assert loops.device_of(moved) is None


def test_a_file_system_is_made_in_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is killed meanwhile leaves nothing that anybody would have to look for."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    real, seen = disk_image.mkfs, []

    def mkfs(*given: Any, **named: Any) -> None:
        real(*given, **named)
        seen.append(list(tmp_path.iterdir()))

    monkeypatch.setattr(disk_image, "mkfs", mkfs)
    assert sum(len(piece.data) for piece in disk_image.Templates().pieces(16)) > 4096
    assert seen == [[]]
