"""What an ended sandbox has written, copied out of its disk as a directory that can be a layer of others.

Owners on disk are the sandbox's own ids from 0 (see `namespaces.root`), whiteouts and opaque directories are
overlayfs's: the copy keeps both, so that it means the same below another sandbox.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from atoll.isolation.linux.disk.image import IMAGE, mount_image
from atoll.isolation.linux.disk.kept import UPPER, wait_until_released

OF_ONE_SANDBOX = ("etc/hostname", "etc/hosts", "etc/resolv.conf", "run/e2b")
"""What every guest writes anew at its start: it is not copied, so that nobody meets another sandbox's identity."""


def copy_written(state_dir: Path, target: Path) -> None:
    """Copies what the sandbox of `state_dir` has written into `target`, which exists and is empty. Blocks.

    None of its processes lives any more. Raises OSError.
    """
    image = state_dir / IMAGE
    if not image.exists():
        _copy(state_dir / UPPER, target)
        _strip(target)
        return
    wait_until_released(image)
    mount = mount_image(image)
    try:
        _copy(Path(f"/proc/self/fd/{mount}/{UPPER}"), target, mount)
    finally:
        os.close(mount)
    _strip(target)


def _strip(layer: Path) -> None:
    """Removes what belongs to one sandbox alone. Nothing runs that could put a link in the way."""
    for name in OF_ONE_SANDBOX:
        path = layer / name
        if any(part.is_symlink() for part in (path, *path.parents) if part.is_relative_to(layer)):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def _copy(source: Path, target: Path, *descriptors: int) -> None:
    if shutil.which("cp") is None:
        raise FileNotFoundError("cp is not installed")
    done = subprocess.run(
        ["cp", "-a", "--reflink=auto", "--sparse=auto", "-T", "--", str(source), str(target)],
        stdin=subprocess.DEVNULL, capture_output=True, check=False, pass_fds=descriptors,
    )  # fmt: skip
    if done.returncode != 0:
        raise OSError(f"what the sandbox has written cannot be copied: {done.stderr.decode(errors='replace')[-300:]}")
