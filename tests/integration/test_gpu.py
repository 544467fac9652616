"""GPUs, from a CDI file to a device inside: with a harmless device of the test's own, for no GPU need be there.

The device is /dev/zero under another name. What NVIDIA's proxy of gVisor does with a real one is tried nowhere here.
"""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import NotFoundException, RateLimitException, Sandbox, SandboxException, Template

from support.server import ServerProcess

Make = Callable[..., ServerProcess]
NODE = "/dev/atoll-test-gpu"
READ = "import os; print(len(os.read(os.open({!r}, os.O_RDONLY), 16)))"


@pytest.fixture
def nodes() -> Iterator[tuple[str, str]]:
    """Two character devices that give zeros."""
    made = (f"{NODE}{os.getpid()}a", f"{NODE}{os.getpid()}b")
    try:
        try:
            for path in made:
                os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
                os.chmod(path, 0o666)
        except OSError as error:
            pytest.skip(f"device nodes cannot be made here: {error}")
        yield made
    finally:
        for path in made:
            Path(path).unlink(missing_ok=True)


@pytest.fixture
def gpus(nodes: tuple[str, str], tmp_path: Path) -> dict[str, str]:
    """What a server's environment says of a machine that has two."""
    library = tmp_path / "libatoll-test.so.1.2.3"
    library.write_text("a library of the driver\n")
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho '0, GPU-a, 12, 34, 5678, 40'\necho '1, GPU-b, 0, 1, 5678, 30'\n")
    program.chmod(0o755)
    cdi = tmp_path / "cdi"
    cdi.mkdir()
    inside = "/usr/lib/x86_64-linux-gnu/libatoll-test.so.1.2.3"
    (cdi / "nvidia.json").write_text(
        json.dumps(
            {
                "cdiVersion": "0.6.0",
                "kind": "nvidia.com/gpu",
                "devices": [
                    {"name": f"{at}", "containerEdits": {"deviceNodes": [{"path": f"/dev/gpu{at}", "hostPath": node}]}}
                    for at, node in enumerate(nodes)
                ],
                "containerEdits": {
                    "env": ["ATOLL_TEST_DRIVER=1.2.3"],
                    "mounts": [{"hostPath": str(library), "containerPath": inside, "options": ["ro", "bind"]}],
                },
            }
        )
    )  # fmt: skip
    return {"ATOLL_CDI_DIRS": str(cdi), "PATH": f"{program.parent}:{os.environ['PATH']}"}


def _pointing_at(server: ServerProcess, patch: pytest.MonkeyPatch) -> None:
    for name, value in server.environ.items():
        patch.setenv(name, value)


def _sees(sandbox: Sandbox) -> str:
    return sandbox.commands.run("ls /dev | grep ^gpu || true").stdout.strip()


def test_a_sandbox_gets_a_gpu_of_its_own(
    make_server: Make, gpus: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--isolation", "namespaces"]
    server = make_server(data_dir=tmp_path / "data", options=options, environ=gpus)
    _pointing_at(server, monkeypatch)
    first = Sandbox.create(metadata={"atoll.gpu": "1"})
    assert _sees(first) == "gpu0"
    for user in ("user", "root"):
        assert first.commands.run(f'python3 -c "{READ.format("/dev/gpu0")}"', user=user).stdout == "16\n"
    library = "/usr/lib/x86_64-linux-gnu/libatoll-test.so.1"
    assert first.commands.run(f"cat {library} {library}.2.3; echo $ATOLL_TEST_DRIVER").stdout == (
        "a library of the driver\na library of the driver\n1.2.3\n"
    )
    refused = first.commands.run(
        f"echo x >{library}.2.3 || umount /dev/gpu0 || rm {library}.2.3 || echo no", user="root"
    )
    assert refused.stdout == "no\n"

    second = Sandbox.create(metadata={"atoll.gpu": "index:1"})
    assert (_sees(second), _sees(Sandbox.create())) == ("gpu1", "")
    for asked in ("1", "all", "index:0"):
        with pytest.raises(RateLimitException, match="GPUs are free"):
            Sandbox.create(metadata={"atoll.gpu": asked})
    for asked, why in (("3", "2 GPUs, not 3"), ("index:7", "no GPU"), ("some", "index:0,1")):
        with pytest.raises(SandboxException, match=why):
            Sandbox.create(metadata={"atoll.gpu": asked})

    headers = {"X-API-Key": server.api_key}
    readings = httpx.get(f"{server.url}/sandboxes/{first.sandbox_id}/metrics", headers=headers).json()
    assert readings[-1]["gpus"] == [
        {"name": "0", "usedPct": 12.0, "memUsed": 34 << 20, "memTotal": 5678 << 20, "temperatureC": 40.0}
    ]
    assert first.get_metrics()[-1].mem_total > 0, "the published SDK reads the same answer"

    # A paused one keeps its GPU, and finds it again, through a killed server too.
    first.pause(keep_memory=False)
    server.stop(signal.SIGKILL)
    server = make_server(data_dir=tmp_path / "data", options=[*options, "--end-sandboxes"], environ=gpus)
    _pointing_at(server, monkeypatch)
    with pytest.raises(RateLimitException, match="0 of 2 GPUs are free"):
        Sandbox.create(metadata={"atoll.gpu": "1"})
    first = Sandbox.connect(first.sandbox_id)
    assert (_sees(first), _sees(Sandbox.connect(second.sandbox_id))) == ("gpu0", "gpu1")
    second = Sandbox.connect(second.sandbox_id)
    second.kill()
    first.kill()
    start = "test -e /dev/gpu0 && exec sleep 600"
    wish = Template().from_template("base").set_envs({"ATOLL_GPU": "1"}).set_start_cmd(start, "test -e /dev/gpu0")
    Template.build(wish, "on-a-gpu")
    built = Sandbox.create("on-a-gpu")
    assert _sees(built) == "gpu0"
    snapshot = built.create_snapshot()
    assert _sees(Sandbox.create(snapshot.snapshot_id)) == "gpu1", "as the one that it was taken of"
    for one in Sandbox.list().next_items():
        Sandbox.kill(one.sandbox_id)
    with pytest.raises(NotFoundException):
        Sandbox.connect(first.sandbox_id)
    assert _sees(Sandbox.create(metadata={"atoll.gpu": "all"})) == "gpu0\ngpu1"


def test_sandboxes_share_a_gpu_where_the_operator_lets_them(
    make_server: Make, gpus: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(
        options=["--isolation", "namespaces", "--end-sandboxes"], environ={**gpus, "ATOLL_GPU_SHARE": "2"}
    )
    _pointing_at(server, monkeypatch)
    seen = [_sees(Sandbox.create(metadata={"atoll.gpu": "1"})) for _ in range(4)]
    assert sorted(seen) == ["gpu0", "gpu0", "gpu1", "gpu1"]
    with pytest.raises(RateLimitException):
        Sandbox.create(metadata={"atoll.gpu": "1"})


def test_where_there_is_none_the_reason_is_told(create: Any) -> None:
    with pytest.raises(SandboxException, match="this server has no GPU"):
        create(metadata={"atoll.gpu": "1"})


def test_who_has_no_device_cannot_reach_it(
    make_server: Make, gpus: dict[str, str], nodes: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(options=["--isolation", "namespaces", "--end-sandboxes"], environ=gpus)
    _pointing_at(server, monkeypatch)
    owner, attacker = Sandbox.create(metadata={"atoll.gpu": "1"}), Sandbox.create()
    # By its numbers, in every place that takes a file, and through what shows other processes.
    attack = """
import ctypes, os, stat
libc = ctypes.CDLL(None, use_errno=True)
for place in ("/dev", "/tmp", "/dev/shm", "/home/user", "/run"):
    path = place + "/stolen"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
        print(place, len(os.read(os.open(path, os.O_RDONLY), 16)))
    except OSError as error:
        print(place, error.errno)
libc.mount(b"devtmpfs", b"/mnt", b"devtmpfs", 0, None)
found = [name for name in os.listdir("/mnt") + os.listdir("/dev") if "gpu" in name]
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        found += [name for name in os.listdir(f"/proc/{pid}/root/dev") if "gpu" in name]
    except OSError:
        pass
print(found)
"""
    attacker.files.write("/tmp/attack.py", attack)
    lines = attacker.commands.run("python3 /tmp/attack.py", user="root").stdout.splitlines()
    assert lines[:-1] == [f"{place} 1" for place in ("/dev", "/tmp", "/dev/shm", "/home/user", "/run")]
    assert lines[-1] == "[]"
    # The control: the same numbers are a device for whoever has it, on the host and in the sandbox that was given it.
    assert len(os.read(os.open(nodes[0], os.O_RDONLY), 16)) == 16
    assert owner.commands.run(f'python3 -c "{READ.format("/dev/gpu0")}"').stdout == "16\n"
