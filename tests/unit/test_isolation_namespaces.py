"""The parts of the namespaces tier that need no privilege: messages, records, id ranges, disk usage, the codec."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest

from atoll.isolation.linux.disk import usage as disk_usage
from atoll.isolation.linux.process_identity import open_recorded
from atoll.isolation.linux.sys import shared_limits
from atoll.isolation.linux.sys.id_ranges import IdRanges, delegated
from atoll.isolation.linux.sys.syscalls import boot_id, start_time
from atoll.isolation.namespaces import messages
from atoll.isolation.namespaces.layout import RunLayout


def test_what_a_machine_has_once_is_looked_at(tmp_path: Path) -> None:
    def verdicts(**changed: str) -> dict[str, str]:
        texts = {"core": "core", "files": "9223372036854775807", "pty": "4096", "reserve": "1024"} | changed
        places = {
            "core": "sys/kernel/core_pattern", "files": "sys/fs/file-max", "pty": "sys/kernel/pty/max",
            "reserve": "sys/kernel/pty/reserve",
        }  # fmt: skip
        for name, place in places.items():
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place).write_text(f"{texts[name]}\n")
        (tmp_path / "meminfo").write_text("MemTotal:       16777216 kB\n")
        return {one.subject: one.verdict.value for one in shared_limits.findings(256, tmp_path)}

    assert set(verdicts().values()) == {"ok"}
    for pattern in ("|/usr/share/apport/apport %p", "@/run/systemd/coredump"):
        assert verdicts(core=pattern)["core_pattern"] == "warn"
    assert verdicts(files="2466170")["open files"] == "warn"
    assert verdicts(pty="2048")["terminals"] == "warn"


@pytest.mark.parametrize("size", [0, 59_000, 70_000, 1_000_000])
def test_messages_of_any_size_arrive_whole_with_their_descriptors(size: int) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()
    with left, right:
        messages.send(left, {"op": "x", "text": "é" * size}, [writer])
        os.close(writer)
        body, descriptors = messages.receive(right)
        assert body == {"op": "x", "text": "é" * size}
        assert len(descriptors) == 1
        os.write(descriptors[0], b"through")
        os.close(descriptors[0])
        assert os.read(reader, 100) == b"through"
        os.close(reader)


def test_a_message_beyond_all_bounds_is_refused_before_it_is_sent() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right, pytest.raises(ValueError, match="too large"):
        messages.send(left, {"text": "x" * (9 << 20)})


def test_the_other_sides_end_is_a_message_without_body() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.close()
    with right:
        assert messages.receive(right).body is None


def test_what_is_sealed_comes_out_whole_and_cannot_be_changed_on_its_way() -> None:
    memory = messages.seal({"text": "é" * 100_000})
    with pytest.raises(PermissionError):
        os.pwrite(memory, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(memory, 0)
    assert messages.unseal(memory) == {"text": "é" * 100_000}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory)
    with pytest.raises(ValueError, match="too large"):
        messages.seal({"text": "x" * (9 << 20)})


def test_delegated_ranges_of_users_are_not_used() -> None:
    lines = ["alice:524288:65536", "bob:700000:1", "carol:100000:65536", "broken", "x:y:z", "zero:900000:0"]
    assert delegated(lines) == {524288 // 65536, 700000 // 65536}


def test_ranges_are_aligned_and_never_given_twice() -> None:
    ranges = IdRanges({8}, random.Random(1))
    taken = [ranges.take() for _ in range(500)]
    assert len(set(taken)) == 500
    assert all(base % 65536 == 0 and base >= 524288 and base != 8 * 65536 for base in taken)
    ranges.give_back(taken[0])


def test_two_run_directories_have_two_cgroup_bases(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "one")
    bases = [RunLayout(tmp_path / name).cgroup_base for name in ("one", "two", "link")]
    assert bases[0] != bases[1]
    assert bases[0] == bases[2]


def test_a_record_names_one_process_and_no_later_one_with_its_number() -> None:
    own = {"pid": os.getpid(), "started_ticks": start_time(os.getpid()), "boot_id": boot_id()}
    found = open_recorded(own)
    assert found is not None
    os.close(found)
    assert open_recorded({**own, "started_ticks": own["started_ticks"] - 1}) is None
    assert open_recorded({**own, "boot_id": "another boot"}) is None
    with pytest.raises(KeyError):
        open_recorded({})


def test_disk_usage_counts_allocated_bytes_and_gives_up_in_time(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_bytes(b"x" * 100_000)
    os.truncate(tmp_path / "d" / "file", 10_000_000)
    found = disk_usage.of_tree(tmp_path)
    assert found is not None
    assert 100_000 <= found < 1_000_000
    assert disk_usage.of_tree(tmp_path, give_up_after_s=-1) is None
