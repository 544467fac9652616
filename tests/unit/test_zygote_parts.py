"""The zygote's parts that need no privilege: its disks, the queue of creates, and what children may say."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.isolation.linux.disk import image
from atoll.isolation.linux.disk.image import Disk, Piece, Templates
from atoll.isolation.namespaces.children import ChildState, MalformedReport, read_report
from atoll.isolation.namespaces.disk_shelf import DISKS_OF_A_SIZE, SIZES, DiskShelf
from atoll.isolation.namespaces.requests import Request, RequestQueue
from atoll.model.sandbox import Limits


def a_disk(folder: Path, size_mib: int) -> Disk:
    number = len(list(folder.iterdir()))
    file = folder / f"{number}.img"
    file.touch()
    return Disk(file, os.open(file, os.O_RDONLY), size_mib)


def test_the_shelf_holds_few_disks_of_few_sizes_and_frees_the_others(tmp_path: Path) -> None:
    shelf = DiskShelf()
    for size in range(1, SIZES + 2):
        for _ in range(DISKS_OF_A_SIZE + 3):
            shelf.put(a_disk(tmp_path, size))
        if size == 2:
            shelf.put(shelf.take(1) or pytest.fail("the first size is there"))
    assert [shelf.count(size) for size in range(1, SIZES + 2)] == [8, 0, 8, 8], "the one used least recently goes"
    assert shelf.take(2) is None
    shelf.put(a_disk(tmp_path, 3), used_elsewhere=DISKS_OF_A_SIZE)
    assert shelf.count(3) == 8
    shelf.close()
    assert not any(name.startswith(str(tmp_path)) for name in map(os.path.realpath, Path("/proc/self/fd").iterdir()))


def test_empty_file_systems_are_made_once_and_the_oldest_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def make(size_mib: int) -> list[Piece]:
        made.append(size_mib)
        return [Piece(0, bytes(size_mib))]

    monkeypatch.setattr(image, "_make_template", make)
    templates = Templates(remembered=3, most_bytes=100)
    for size in (1, 2, 1, 3, 4, 1, 2):
        templates.pieces(size)
    assert made == [1, 2, 3, 4, 2], "1 was used again before it was its turn to go, 2 was not"
    templates.pieces(99)
    assert templates.known(1) is None, "by size: what is held is bounded"
    templates.pieces(1000)
    assert templates.known(1000) is not None, "the last one is held, however large"
    assert templates.known(99) is None


def a_request(number: int, size_mib: int) -> Request:
    body: dict[str, Any] = {
        "id": number,
        "lower_dirs": [],
        "state_dir": "/",
        "limits": Limits(disk_mib=size_mib).as_json(),
        "one_off": False,
        "resumes": False,
        "volumes": [],
        "devices": [],
        "shown": [],
    }
    return Request(body, *(socket.socket().detach() for _ in range(2)))


def test_a_disk_is_for_the_first_who_waits_for_one_of_its_size(tmp_path: Path) -> None:
    queue = RequestQueue()
    requests = [a_request(number, size) for number, size in enumerate((16, 32, 32, 32))]
    for request in requests:
        queue.add(request)
    assert queue.first_awaiting(32) is None, "nobody has asked for one yet"
    for request in requests[1:]:
        request.awaits_disk = True
    assert queue.first_awaiting(32) is requests[1]
    requests[1].disk = a_disk(tmp_path, 32)
    assert queue.first_awaiting(32) is requests[2]
    queue.remove(requests[2])
    queue.add_first(requests[2])
    assert [request.number for request in queue] == [2, 0, 1, 3]
    requests[1].disk.discard()
    for request in requests:
        request.close()
        request.close()


def test_a_child_says_in_each_state_only_what_belongs_to_it() -> None:
    assert read_report({"op": "parked", "egress": [5, 6]}, ChildState.PREPARING).egress == [5, 6]
    assert read_report({"op": "booted"}, ChildState.BOOTING).op == "booted"
    assert read_report({"op": "started", "stages": {"go": 1.5}}, ChildState.STARTING).stages == {"go": 1.5}
    assert read_report({"op": "failed", "error": "proc: no"}, ChildState.STARTING).error == "proc: no"
    for body, state in [
        ({"op": "started"}, ChildState.PARKED),
        ({"op": "parked"}, ChildState.BOOTING),
        ({"op": "created"}, ChildState.STARTING),
        ({}, ChildState.STARTING),
        ({"op": "parked", "egress": [1, 2]}, ChildState.PREPARING),
        ({"op": "parked", "egress": ["5", "6"]}, ChildState.PREPARING),
        ({"op": "parked", "egress": [5, 6, 7]}, ChildState.PREPARING),
        ({"op": "started", "stages": {"go": "x"}}, ChildState.STARTING),
        ({"op": "started", "stages": {str(n): 1.0 for n in range(100)}}, ChildState.STARTING),
        ({"op": "failed", "error": {}}, ChildState.PARKED),
    ]:
        with pytest.raises(MalformedReport):
            read_report(body, state)


VALUES = [None, True, 5, -1, 1e999, "parked", "started", [5, 6], [5, "6"], [[]], {"go": 1.0}, {"go": []}, {"x": {}}]


@given(
    st.dictionaries(st.sampled_from(["op", "egress", "stages", "error"]), st.sampled_from(VALUES)),
    st.sampled_from(ChildState),
)
def test_no_report_is_believed_half(body: dict[str, Any], state: ChildState) -> None:
    try:
        report = read_report(body, state)
    except MalformedReport:
        return
    assert report.op in ("parked", "booted", "started", "failed")
