"""GPUs: what a call may ask for, what CDI files mean and what is refused of them, and who gets which device."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll.isolation.base import Capability
from atoll.isolation.gvisor import oci
from atoll.model.devices import DeviceEdits, GpuRequest, GpuUse, HostPath, parse_gpu
from atoll.model.errors import CreateFailed, InvalidRequest, NotOffered, QuotaExceeded
from atoll.model.sandbox import Limits, PauseMode, SandboxSpec
from atoll.node import cdi, pausing
from atoll.node.cdi import CdiDevice, parse
from atoll.node.gpus import NodeGpus, choose, readings

# As `nvidia-ctk cdi generate` writes it, shortened.
NVIDIA = """\
---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
    - name: "0"
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
    - name: GPU-8c3a0f1e-2d5b-4f6a-9e7c-1b2d3f4a5c6e
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
    - name: "1"
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia1
    - name: all
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
            - path: /dev/nvidia1
containerEdits:
    env:
        - NVIDIA_VISIBLE_DEVICES=void
    deviceNodes:
        - path: /dev/nvidiactl
        - path: /dev/nvidia-uvm
    hooks:
        - hookName: createContainer
          path: /usr/bin/nvidia-cdi-hook
          args:
            - nvidia-cdi-hook
            - create-symlinks
            - --link
            - libcuda.so.1::/usr/lib/x86_64-linux-gnu/libcuda.so
        - hookName: createContainer
          path: /usr/bin/nvidia-cdi-hook
          args:
            - nvidia-cdi-hook
            - update-ldcache
            - --folder
            - /usr/lib/x86_64-linux-gnu
    mounts:
        - hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15
          containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15
          options:
            - ro
            - nosuid
            - nodev
            - bind
        - hostPath: /usr/bin/nvidia-smi
          containerPath: /usr/bin/nvidia-smi
"""


def device(name: str, kind: str = "nvidia.com/gpu") -> CdiDevice:
    node = f"/dev/nvidia{name}"
    return CdiDevice(kind, name, DeviceEdits((HostPath(node, node),)), (node,))


def cdi_json(**changed: object) -> str:
    node = {"path": "/dev/x0"}
    spec = {
        "cdiVersion": "0.6.0",
        "kind": "example.org/gpu",
        "devices": [{"name": "0", "containerEdits": {"deviceNodes": [node]}}],
    }
    return json.dumps(spec | changed)


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("1", GpuRequest(count=1)),
        ("8", GpuRequest(count=8)),
        ("all", GpuRequest()),
        ("index:0", GpuRequest(names=("0",))),
        ("index:1, 0,1", GpuRequest(names=("1", "0"))),
        ("index:0:1", GpuRequest(names=("0:1",))),
    ],
)
def test_what_a_call_may_ask_for(text: str, request_: GpuRequest) -> None:
    assert parse_gpu(text) == request_


@pytest.mark.parametrize("text", ["", "0", "-1", "65", "1.5", "index", "index:", "index:../x", "some", "١", "index:0,"])
def test_anything_else_is_refused_with_what_is_known(text: str) -> None:
    with pytest.raises(InvalidRequest, match="'all', or 'index:0,1'"):
        parse_gpu(text)


def test_the_file_that_nvidia_ctk_writes() -> None:
    found = parse(NVIDIA, is_json=False)
    zero = found.devices[0]
    assert [one.name for one in found.devices] == ["0", "GPU-8c3a0f1e-2d5b-4f6a-9e7c-1b2d3f4a5c6e", "1", "all"]
    assert [node.path for node in zero.edits.nodes] == ["/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidiactl"]
    assert zero.edits.nvidia
    assert zero.edits.env_vars == {"NVIDIA_VISIBLE_DEVICES": "void"}
    library = "/usr/lib/x86_64-linux-gnu/libcuda.so"
    assert {one.path: one.source for one in zero.edits.mounts} == {
        "/usr/bin/nvidia-smi": "/usr/bin/nvidia-smi",
        f"{library}.550.54.15": f"{library}.550.54.15",
        f"{library}.1": f"{library}.550.54.15",
        library: f"{library}.550.54.15",
    }
    assert found.notes == ("the hook 'update-ldcache' is not run",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "cannot be read"),
        ("[]", "no mapping"),
        ("{}", "cdiVersion"),
        ("[" * 100_000, "cannot be read"),
        (cdi_json(kind="gpu"), "VENDOR/CLASS"),
        (cdi_json(devices=[{"name": "../x"}]), "no name of a device"),
        (cdi_json(devices=[{"name": "0"}] * 1025), "at most 1024"),
        (cdi_json(containerEdits={"deviceNodes": [{"path": "/etc/passwd"}]}), "no device can be shown"),
        (cdi_json(containerEdits={"deviceNodes": [{"path": "/dev/null"}]}), "no device can be shown"),
        (cdi_json(containerEdits={"deviceNodes": [{"path": "/dev/../etc"}]}), r"`\.\.`"),
        (cdi_json(containerEdits={"deviceNodes": [{"path": "/dev/sda", "type": "b"}]}), "only character"),
        (cdi_json(containerEdits={"deviceNodes": [{"path": "/dev/x", "permissions": "r"}]}), "cannot be held"),
        (cdi_json(containerEdits={"mounts": [{"hostPath": "/", "containerPath": "/usr/lib"}]}), "nothing can be"),
        (cdi_json(containerEdits={"mounts": [{"hostPath": "/x", "containerPath": "/proc/x"}]}), "nothing can be"),
        (cdi_json(containerEdits={"mounts": [{"hostPath": "x", "containerPath": "/opt/x"}]}), "absolute"),
        (cdi_json(containerEdits={"env": ["NAME"]}), "NAME=VALUE"),
    ],
    ids=str,
)
def test_a_file_that_is_none_says_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(text, is_json=True)


def test_a_small_file_cannot_mean_an_enormous_one() -> None:
    with pytest.raises(ValueError, match="aliases"):
        parse("a: &a [1, 2]\nb: [*a, *a]\n", is_json=False)


def test_what_is_no_plain_file_holds_up_nobody(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(cdi_json())
    os.mkfifo(tmp_path / "a.json", 0o600)
    (tmp_path / "b.json").symlink_to("/dev/zero")
    (tmp_path / "c.json").mkdir()
    devices, notes = cdi.read_all([tmp_path])
    assert list(devices) == ["example.org/gpu=0"]
    assert [note.rpartition(": ")[2] for note in notes] == ["not a file", "not a file", "not a file"]


def test_a_file_that_others_can_write_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(cdi_json())
    path.chmod(0o666)
    devices, notes = cdi.read_all([tmp_path, tmp_path / "absent"])
    assert (devices, len(notes)) == ({}, 1)
    assert "chmod" in notes[0]
    path.chmod(0o644)
    assert list(cdi.read_all([tmp_path])[0]) == ["example.org/gpu=0"]
    path.write_text(" " * (cdi.MAX_BYTES + 1))
    assert "bytes" in cdi.read_all([tmp_path])[1][0]


def test_a_later_directory_wins(tmp_path: Path) -> None:
    for name, node in (("a", "/dev/x0"), ("b", "/dev/x9")):
        (tmp_path / name).mkdir()
        devices = [{"name": "0", "containerEdits": {"deviceNodes": [{"path": node}]}}]
        (tmp_path / name / "x.json").write_text(cdi_json(devices=devices))
    devices, _ = cdi.read_all([tmp_path / "a", tmp_path / "b"])
    assert devices["example.org/gpu=0"].own_nodes == ("/dev/x9",)


def test_each_gpu_counts_once_under_whatever_names(tmp_path: Path) -> None:
    (tmp_path / "nvidia.yaml").write_text(NVIDIA)
    (tmp_path / "other.json").write_text(cdi_json(kind="example.org/radio"))
    gpus = NodeGpus([tmp_path])
    gpus.refresh()
    assert [one.qualified for one in gpus.usable()] == ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]
    assert gpus.refresh() == []


def test_one_gpu_is_one_sandboxs_alone_unless_they_share() -> None:
    both = [device("0"), device("1")]
    in_use = Counter({"nvidia.com/gpu=0": 1})
    assert [one.name for one in choose(GpuRequest(count=1), both, in_use, 1)] == ["1"]
    assert [one.name for one in choose(GpuRequest(names=("1",)), both, in_use, 1)] == ["1"]
    for request in (GpuRequest(count=2), GpuRequest(), GpuRequest(names=("0",))):
        with pytest.raises(QuotaExceeded, match="ATOLL_GPU_SHARE"):
            choose(request, both, in_use, 1)
    assert [one.name for one in choose(GpuRequest(), both, in_use, 2)] == ["1", "0"], "the least used first"


def test_what_a_machine_does_not_have_is_refused_with_the_reason() -> None:
    with pytest.raises(NotOffered, match="nvidia-ctk cdi generate"):
        choose(GpuRequest(), [], {}, 1)
    with pytest.raises(NotOffered, match="1 GPUs, not 2"):
        choose(GpuRequest(count=2), [device("0")], {}, 1)
    both_makers = [device("0"), device("0", "amd.com/gpu")]
    for devices, names in (([device("0")], ("7",)), (both_makers, ("0", "7"))):
        with pytest.raises(NotOffered, match=r"no GPU '7': it has 0"):
            choose(GpuRequest(names=names), devices, {}, 1)


async def test_a_spec_keeps_what_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "nvidia.yaml").write_text(NVIDIA)
    gpus = NodeGpus([tmp_path])
    spec = SandboxSpec("abcd", "base", gpu="1", env_vars={"NVIDIA_VISIBLE_DEVICES": "mine"})
    given = await gpus.prepared(spec, [])
    assert given.devices == ("nvidia.com/gpu=0",)
    assert given.env_vars == {"NVIDIA_VISIBLE_DEVICES": "mine"}, "the caller's word wins"
    assert SandboxSpec.from_json(json.loads(json.dumps(given.as_json()))) == given
    assert (given.for_guest().devices, given.for_guest().gpu) == ((), None)
    other = await gpus.prepared(replace(spec, sandbox_id="efgh"), [given])
    assert other.devices == ("nvidia.com/gpu=1",)
    with pytest.raises(QuotaExceeded):
        await gpus.prepared(spec, [given, other])
    with pytest.raises(CreateFailed, match="/dev/nvidia"):
        await gpus.edits(given)
    (tmp_path / "nvidia.yaml").unlink()
    with pytest.raises(CreateFailed, match="no CDI file describes any more"):
        await gpus.edits(given)


def test_what_nvidia_smi_prints() -> None:
    found = readings("0, GPU-1, 37, 1024, 81559, 41\n1, GPU-2, [N/A], 0, 81559, [N/A]\nnonsense\n")
    assert found["GPU-1"] == GpuUse("GPU-1", 37.0, 1 << 30, 81559 << 20, 41.0)
    assert found["1"] == GpuUse("1", None, 0, 81559 << 20, None)
    assert len(found) == 4


async def test_nvidia_smi_is_asked_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.node.gpus._FRESH_S", 1e9)
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho x >>{tmp_path}/asked\necho '0, GPU-1, 5, 1, 2, 30'\n")
    program.chmod(0o755)
    gpus = NodeGpus(path=f"{tmp_path}:{os.defpath}")
    assert await gpus.use_of(["nvidia.com/gpu=0"]) == (GpuUse("0", 5.0, 1 << 20, 2 << 20, 30.0),)
    assert await gpus.use_of(["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=9"]) == (
        GpuUse("GPU-1", 5.0, 1 << 20, 2 << 20, 30.0),
        GpuUse("9"),
    )
    assert await gpus.use_of(["example.org/gpu=0"]) == ()
    assert (tmp_path / "asked").read_text() == "x\n"
    assert await NodeGpus(path=str(tmp_path / "none")).use_of(["nvidia.com/gpu=0"]) == (GpuUse("0"),)


def test_gvisor_gets_a_gpu_by_its_own_proxy() -> None:
    config = oci.config(
        root="/r", shared="/s", runtime="/t", entry="x:y", limits=Limits(), network="",
        shown={"/usr/lib/libcuda.so.1": "/mnt/shown0"}, devices=["/dev/zero"],
    )  # fmt: skip
    assert {"destination": "/usr/lib/libcuda.so.1", "type": "bind", "source": "/mnt/shown0",
            "options": ["ro", "nosuid", "nodev"]} in config["mounts"]  # fmt: skip
    assert config["linux"]["devices"] == [
        {"path": "/dev/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666, "uid": 0, "gid": 0}
    ]
    known = ["root", "nvproxy"]
    assert "--nvproxy=true" in oci.flags("/x", platform="systrap", network=False, known=known, nvidia=True)
    assert "--nvproxy=true" not in oci.flags("/x", platform="systrap", network=False, known=known)


async def test_an_nvidia_smi_that_never_answers_holds_up_one_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr("atoll.node.gpus._FRESH_S", -1.0)
    monkeypatch.setattr("atoll.node.gpus._SMI_WITHIN_S", 1.0)
    monkeypatch.setattr("asyncio.subprocess.Process.kill", lambda _: None)  # as one that hangs in the kernel
    gpus = NodeGpus(path=f"{tmp_path}:{os.defpath}")
    assert await gpus.use_of(["nvidia.com/gpu=0"]) == (GpuUse("0"),)
    hanging = gpus._hanging
    assert hanging is not None
    assert await gpus.use_of(["nvidia.com/gpu=0"]) == (GpuUse("0"),)
    assert gpus._hanging is hanging, "no second one is started beside it"
    os.kill(hanging.pid, signal.SIGKILL)
    await hanging.wait()


@pytest.mark.parametrize(
    ("devices", "can", "mode"),
    [
        (("nvidia.com/gpu=0",), {Capability.MEMORY_ON_DISK}, PauseMode.FILESYSTEM),
        (("nvidia.com/gpu=0",), set(), PauseMode.MEMORY),
        ((), {Capability.MEMORY_ON_DISK}, PauseMode.MEMORY),
    ],
    ids=["saved", "frozen", "without a GPU"],
)
def test_no_memory_of_a_gpu_is_saved(devices: tuple[str, ...], can: set[Capability], mode: PauseMode) -> None:
    spec = SandboxSpec("abcd", "base", devices=devices)
    live: Any = SimpleNamespace(spec=spec, making=SimpleNamespace(backend=SimpleNamespace(capabilities=can)))
    assert pausing._of_disk_alone(live, PauseMode.MEMORY) is mode


async def test_a_node_says_how_many_are_free_as_files_and_sandboxes_come(tmp_path: Path) -> None:
    gpus, spec = NodeGpus([tmp_path]), SandboxSpec("i0", "t")
    assert gpus.free([]) == 0
    (tmp_path / "a.json").write_text(cdi_json())
    gpus.refresh()
    assert gpus.free([spec]) == 1
    assert gpus.free([replace(spec, devices=("example.org/gpu=0",))]) == 0
