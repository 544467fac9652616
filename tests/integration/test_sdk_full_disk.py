"""A sandbox's disk that is full, through the published Python SDK: what did not fit, what is free, nothing is lost."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable

import pytest
from e2b import NotEnoughSpaceException, Sandbox, SandboxException

MIB = 1024 * 1024
BIG = 9 * MIB
LEFT = 5 * MIB
FILL = f"fallocate -l $(($(df --output=avail -B1 / | tail -1) - {LEFT})) /var/filler"


@pytest.fixture
def full(sandbox: Sandbox) -> Sandbox:
    """A sandbox with about LEFT bytes free, and a file of somebody's."""
    sandbox.files.write("kept", "kept")
    sandbox.commands.run(FILL, user="root")
    return sandbox


def numbers(error: BaseException) -> tuple[int, int]:
    """What was needed and what was free, of the right file system."""
    found = re.search(r": (?:at least )?(\d+) bytes.* needed, (\d+) bytes free in the file system at '/'$", str(error))
    assert found is not None, str(error)
    return int(found[1]), int(found[2])


WRITES: dict[str, Callable[[Sandbox], object]] = {
    "bytes": lambda sandbox: sandbox.files.write("new", os.urandom(BIG)),
    "over a file": lambda sandbox: sandbox.files.write("kept", os.urandom(BIG)),
    "a stream": lambda sandbox: sandbox.files.write("new", io.BytesIO(os.urandom(BIG))),
    "gzipped": lambda sandbox: sandbox.files.write("new", os.urandom(BIG), gzip=True),
    "one of several": lambda sandbox: sandbox.files.write_files(
        [{"path": "small", "data": "fits"}, {"path": "new", "data": os.urandom(BIG)}]
    ),
}


def test_a_write_that_does_not_fit_says_what_it_needed_and_what_is_free(full: Sandbox) -> None:
    for name, write in WRITES.items():
        with pytest.raises(NotEnoughSpaceException) as caught:
            write(full)
        needed, free = numbers(caught.value)
        assert LEFT * 0.9 < free < needed <= BIG, name
    assert full.files.read("kept") == "kept"
    assert full.files.read("small") == "fits"
    assert not full.files.exists("new")
    full.commands.run("rm /var/filler", user="root")
    assert full.files.write("new", os.urandom(BIG)).name == "new"


def test_a_move_from_another_file_system_that_does_not_fit_leaves_the_source(full: Sandbox) -> None:
    full.files.write("/dev/shm/big", bytes(BIG))
    with pytest.raises(SandboxException, match=r"not enough disk space: \d+ bytes free in the file system at '/'"):
        full.files.rename("/dev/shm/big", "big")
    assert full.files.get_info("/dev/shm/big").size == BIG
    assert not full.files.exists("big")
