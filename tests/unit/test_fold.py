"""A folded chain of layers shows what the chain shows: any operations, in any number of layers, on real overlays."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from atoll.isolation.linux.disk import fold, mounts

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
OPERATIONS = st.one_of(
    st.tuples(st.sampled_from(["write", "mkdir", "remove", "chmod", "chown", "attribute", "fifo", "touch"]), PATHS),
    st.tuples(st.sampled_from(["rename", "link", "symlink"]), PATHS, PATHS),
)
LAYERS = st.lists(st.lists(OPERATIONS, min_size=1, max_size=8), min_size=2, max_size=4)


def act(root: Path, number: int, name: str, path: str, other: str = "") -> None:
    """What does not work here changes nothing."""
    at = root / path
    try:
        match name:
            case "write":
                at.write_bytes(b"%d" % number * (number + 1))
            case "mkdir":
                at.mkdir()
            case "remove":
                shutil.rmtree(at) if at.is_dir() and not at.is_symlink() else at.unlink()
            case "chmod":
                at.lchmod(0o4755) if not at.is_symlink() and hasattr(at, "lchmod") else os.chmod(
                    at, 0o2750 + number % 8
                )
            case "chown":
                os.chown(at, 1000 + number, 7, follow_symlinks=False)
            case "attribute":
                os.setxattr(at, "trusted.mine", b"%d" % number, follow_symlinks=False)
            case "fifo":
                os.mkfifo(at)
            case "touch":
                os.utime(at, ns=(1, 2_000_000_000 + number))
            case "rename":
                at.rename(root / other)
            case "link":
                (root / other).hardlink_to(at)
            case "symlink":
                at.symlink_to(other)
    except OSError:
        pass


def look(root: Path) -> dict[str, Any]:
    """All that can be seen, by path. Files with several names that can be seen are named by the first of them."""
    seen: dict[str, Any] = {}
    first: dict[tuple[int, int], str] = {}
    paths = sorted(root.rglob("*"))
    names = Counter((found.st_dev, found.st_ino) for found in map(os.lstat, paths))
    for path in paths:
        name, found = str(path.relative_to(root)), os.lstat(path)
        content: Any = ""
        if stat.S_ISREG(found.st_mode):
            content = path.read_bytes(), found.st_mtime_ns
            inode = found.st_dev, found.st_ino
            content = *content, first.setdefault(inode, name) if names[inode] > 1 else ""
        elif stat.S_ISLNK(found.st_mode):
            content = os.readlink(path)
        attributes = {
            one: os.getxattr(path, one, follow_symlinks=False) for one in os.listxattr(path, follow_symlinks=False)
        }
        seen[name] = found.st_mode, found.st_uid, found.st_gid, content, attributes
    return seen


@contextmanager
def shown(layers: list[Path]) -> Iterator[Path]:
    descriptors = [os.open(layer, os.O_PATH) for layer in layers]
    mount = mounts.overlay_shown(descriptors)
    try:
        yield Path(f"/proc/self/fd/{mount}/.")
    finally:
        for descriptor in (mount, *descriptors):
            os.close(descriptor)


def make_layer(place: Path, below: list[Path], number: int, operations: list[Any]) -> Path:
    upper, work = place / f"layer{number}", place / f"work{number}"
    upper.mkdir()
    work.mkdir()
    descriptors = [os.open(path, os.O_PATH) for path in (*below, upper, work)]
    mount = mounts.overlay(descriptors[:-2], *descriptors[-2:], volatile=True)
    for step, operation in enumerate(operations):
        act(Path(f"/proc/self/fd/{mount}"), number * 10 + step, *operation)
    for descriptor in (mount, *descriptors):
        os.close(descriptor)
    return upper


@pytest.fixture(scope="module", autouse=True)
def _able() -> None:
    if os.geteuid() != 0:
        pytest.skip("this needs root, which alone may mount overlays of layers with other owners")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(LAYERS)
@example([[("write", "a")], [("write", "a/a"), ("rename", "c", "a/b/a")]])  # the only name left of two
def test_a_folded_chain_shows_what_the_chain_shows(layers: list[list[Any]]) -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        place = Path(scratch)
        base = place / "base"
        for name in ("a/b", "b/c", "c"):
            (base / name).mkdir(parents=True)
        for name in ("a/a", "a/b/c", "b/a"):
            (base / name).write_text(name)
        (base / "c" / "c").hardlink_to(base / "a" / "a")
        chain = [base]
        for number, operations in enumerate(layers):
            chain.insert(0, make_layer(place, chain, number, operations))
        target = place / "target"
        target.mkdir()
        folded = fold.fold([str(one) for one in chain[:-1]], [str(base)], target)
        assert os.listdir(target) == ["layer"]
        with shown(chain) as before, shown([folded, base]) as after:
            assert look(after) == look(before)


async def test_what_cannot_be_folded_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(OSError, match="No such file"):
        await asyncio.wait_for(fold.run([tmp_path / "missing"], [tmp_path], tmp_path / "target"), 60)
