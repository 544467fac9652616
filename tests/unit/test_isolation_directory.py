"""A sandbox's directory: what was written comes back; what is half, newer or another's is told apart."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest

from atoll.isolation import directory
from atoll.isolation.directory import Newer, Paused, Recorded, StateRecord
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import Limits, PauseMode, SandboxSpec, SandboxState
from support.host import requires

SPEC = SandboxSpec("i0001", "base", Limits(1, 2, 3, 4), {"A": "secret"}, "token")
LAYERS = (Path("/layers/snapshot.img"), Path("/layers/base"))
HANDLE = {"pid": 7, "group": "g1"}
POLICY = NetworkPolicy.checked(allow_internet=False, deny_out=["10.0.0.0/8"])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "i0001"
    made.mkdir()
    return made


def _write(place: Path, state: SandboxState = SandboxState.CREATING) -> None:
    directory.write_spec(place, SPEC, LAYERS)
    directory.begin(place, "fake", HANDLE)
    directory.move(place, state)


@pytest.mark.parametrize("state", SandboxState)
def test_every_state_comes_back_with_everything_else(place: Path, state: SandboxState) -> None:
    _write(place, state)
    assert directory.read(place) == Recorded(SPEC, StateRecord(state, "fake", HANDLE), LAYERS)
    for path in place.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_state_is_changed_in_place(place: Path) -> None:
    """So it needs no room and can not be half done: the file keeps its length and its inode."""
    _write(place)
    before = (place / directory.STATE).stat()
    for state in SandboxState:
        directory.move(place, state)
        after = (place / directory.STATE).stat()
        assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)


def test_a_changed_network_is_kept_beside_what_was_asked_for(place: Path) -> None:
    _write(place, SandboxState.RUNNING)
    directory.change_network(place, POLICY)
    found = directory.read(place)
    assert isinstance(found, Recorded)
    assert (found.network, found.spec, found.state.state) == (POLICY, SPEC, SandboxState.RUNNING)
    directory.move(place, SandboxState.KILLING)
    moved = directory.read(place)
    assert isinstance(moved, Recorded)
    assert (moved.network, moved.state.state) == (POLICY, SandboxState.KILLING)


def test_a_process_that_resumes_takes_nothing_from_what_was_paused(place: Path) -> None:
    """A server that is killed then finds both: what to end, and what to resume once more."""
    _write(place)
    paused = StateRecord(SandboxState.PAUSED, "fake", HANDLE, POLICY, Paused(PauseMode.MEMORY, {"image": "m"}))
    directory.rewrite(place, paused)
    directory.settle(place)
    assert directory.read(place) == Recorded(SPEC, paused, LAYERS)
    directory.move(place, SandboxState.RESUMING)
    directory.begin(place, "fake", {"pid": 8})
    found = directory.read(place)
    assert isinstance(found, Recorded)
    assert found.state == replace(paused, state=SandboxState.RESUMING, handle={"pid": 8})


def test_what_version_2_wrote_is_read_and_brought_up_to_date(place: Path) -> None:
    _write(place, SandboxState.RUNNING)
    for name, unknown in ((directory.SPEC, "layers"), (directory.STATE, "paused")):
        body = json.loads((place / name).read_text())
        del body[unknown]
        (place / name).write_text(json.dumps(body | {"version": 2}))
    found = directory.read(place)
    assert found == Recorded(SPEC, StateRecord(SandboxState.RUNNING, "fake", HANDLE), (), 2)
    directory.upgrade(place, found)
    assert directory.read(place) == replace(found, version=directory.VERSION)


@pytest.mark.parametrize("name", [directory.SPEC, directory.STATE])
def test_what_is_cut_off_anywhere_or_missing_was_never_finished(place: Path, name: str) -> None:
    _write(place)
    whole = (place / name).read_bytes()
    for length in range(len(whole)):
        (place / name).write_bytes(whole[:length])
        assert directory.read(place) is None, length
    (place / name).unlink()
    assert directory.read(place) is None


def test_what_speaks_of_another_sandbox_is_none_of_this_directory(place: Path, tmp_path: Path) -> None:
    _write(place)
    moved = place.rename(tmp_path / "i0002")
    assert directory.read(moved) is None


@pytest.mark.parametrize("name", [directory.SPEC, directory.STATE])
def test_a_newer_version_is_recognised_by_either_file_and_keeps_its_group(place: Path, name: str) -> None:
    _write(place)
    body = json.loads((place / name).read_text()) | {"version": directory.VERSION + 1, "unheard": "of"}
    (place / name).write_text(json.dumps(body))
    assert directory.read(place) == Newer(directory.VERSION + 1, "g1")


@pytest.mark.parametrize("text", ["[]", "null", "7", '{"version": 2}', '{"version": true}', '{"version": "2"}'])
def test_nonsense_is_no_record(place: Path, text: str) -> None:
    _write(place)
    (place / directory.STATE).write_text(text)
    assert directory.read(place) is None


def test_a_record_that_cannot_be_read_is_not_taken_for_none(place: Path) -> None:
    """Or a server that has run out of descriptors would clear away what lives."""
    _write(place)
    (place / directory.STATE).unlink()
    (place / directory.STATE).mkdir()
    with pytest.raises(IsADirectoryError):
        directory.read(place)


def test_whoever_changes_what_is_written_raises_the_version() -> None:
    written = [one.name for kind in (SandboxSpec, Limits, StateRecord, Paused, NetworkPolicy) for one in fields(kind)]
    assert (directory.VERSION, written) == (
        4,
        ["sandbox_id", "template_id", "limits", "env_vars", "access_token", "default_user", "default_workdir",
         "start_cmd", "interpreter", "ca_certificate", "image_id", "one_off", "tier", "traffic_access_token",
         "mask_request_host", "network", "no_new_privileges", "volumes", "disk_mib_s", "generation", "gpu",
         "devices",
         "cpu_count", "memory_mib", "disk_mib", "pids",
         "state", "tier", "handle", "network", "paused", "log_base", "mode", "record",
         "allow_internet", "allow_out", "deny_out", "dns_servers", "rules", "mib_s", "registries"],
    )  # fmt: skip


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A sandbox's directory on a file system without room for another page."""
    mount = tmp_path / "mount"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(mount)], check=True)
    try:
        made = mount / "i0001"
        made.mkdir()
        _write(made, SandboxState.RUNNING)
        with pytest.raises(OSError, match="No space left"):
            (mount / "filler").write_bytes(b"x" * 65536)
        yield made
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


@requires("root")
def test_on_a_full_disk_a_sandbox_can_still_be_ended_and_nothing_written_is_lost(full: Path) -> None:
    before = directory.read(full)
    with pytest.raises(OSError, match="No space left"):
        directory.change_network(full, POLICY)
    assert directory.read(full) == before
    assert {path.name for path in full.iterdir()} == {directory.SPEC, directory.STATE}
    with pytest.raises(OSError, match="No space left"):
        directory.write_spec(full.parent, SPEC)
    directory.move(full, SandboxState.KILLING)
    found = directory.read(full)
    assert isinstance(found, Recorded)
    assert found.state.state is SandboxState.KILLING
