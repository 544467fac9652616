"""What an ended sandbox has written, kept as a layer of others: its disk as it is, moved, not copied.

Owners on disk are the sandbox's own ids from 0 (see `namespaces.root`), whiteouts and opaque directories are
overlayfs's: a layer keeps both, so that it means the same below another sandbox.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

from atoll.isolation.linux.disk import kept
from atoll.isolation.linux.disk.image import IMAGE, UPPER, mount_image
from atoll.isolation.linux.disk.layers import SUFFIX
from atoll.model import durable

OF_ONE_SANDBOX = ("etc/hostname", "etc/hosts", "etc/resolv.conf", "run/e2b")
"""What every guest writes anew at its start: it is not kept, so that nobody meets another sandbox's identity."""

_FITRIM = 0xC0185879


def keep_written(state_dir: Path, target: Path) -> Path | None:
    """What the sandbox of `state_dir` has written moves to `target` as a layer; None: it has written nothing.

    Blocks. None of its processes lives any more. The layer is on the machine's disk when this returns. Raises OSError.
    """
    image = state_dir / IMAGE
    if not image.exists():
        return _keep_directory(state_dir / UPPER, target / "layer")
    kept.wait_until_released(image)
    mount = mount_image(image)
    try:
        written = Path(f"/proc/self/fd/{mount}/{UPPER}")
        _strip(written)
        if not any(written.iterdir()):
            return None
        _trim(mount)
    finally:
        os.close(mount)
    kept.wait_until_released(image)
    layer = target / f"layer{SUFFIX}"
    _move(image, layer)
    durable.sync(layer)
    return layer


def copy_written(state_dir: Path, target: Path) -> None:
    """Copies what the sandbox has written into `target`, an empty directory. Otherwise as `keep_written`."""
    image = state_dir / IMAGE
    if not image.exists():
        _copy_tree(state_dir / UPPER, target)
        _strip(target)
        return
    kept.wait_until_released(image)
    mount = mount_image(image)
    try:
        _copy_tree(Path(f"/proc/self/fd/{mount}/{UPPER}"), target, mount)
    finally:
        os.close(mount)
    _strip(target)


def _keep_directory(written: Path, layer: Path) -> Path | None:
    _strip(written)
    if not any(written.iterdir()):
        return None
    try:
        os.rename(written, layer)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_tree(written, layer)
    kept.sync_tree(layer)
    return layer


def _move(image: Path, layer: Path) -> None:
    try:
        os.rename(image, layer)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        kept.copy_file(image, layer)


def _trim(mount: int) -> None:
    """What was written and removed again takes no room in a layer. A host's file system without holes keeps it."""
    inside = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    try:
        fcntl.ioctl(inside, _FITRIM, struct.pack("QQQ", 0, 2**64 - 1, 0))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
            raise
    finally:
        os.close(inside)


def _strip(layer: Path) -> None:
    """Removes what belongs to one sandbox alone. Nothing runs that could put a link in the way."""
    for name in OF_ONE_SANDBOX:
        path = layer / name
        if any(part.is_symlink() for part in (path, *path.parents) if part != layer and part.is_relative_to(layer)):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def _copy_tree(source: Path, target: Path, *descriptors: int) -> None:
    if shutil.which("cp") is None:
        raise FileNotFoundError("cp is not installed")
    done = subprocess.run(
        ["cp", "-a", "--reflink=auto", "--sparse=auto", "-T", "--", str(source), str(target)],
        stdin=subprocess.DEVNULL, capture_output=True, check=False, pass_fds=descriptors,
    )  # fmt: skip
    if done.returncode != 0:
        raise OSError(f"what the sandbox has written cannot be copied: {done.stderr.decode(errors='replace')[-300:]}")
