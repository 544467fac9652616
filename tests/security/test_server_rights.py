"""What the front or the egress gateway could do if it was taken over: each attempt beside the same without the wall."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only a server of root has rights to give up")

_PROGRAM = """
import ctypes, json, os, socket, subprocess, sys
from pathlib import Path
place, role, victim = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if role != "nobody":
    from atoll.server.rights import Rights, give_up, unused_users
    front, gateway = unused_users(2)
    if role == "front":
        give_up(Rights(front, writable=(place / "own",), readable=(place / "shown",)), place / "scratch")
    else:
        give_up(Rights(gateway), place / "scratch")
libc = ctypes.CDLL(None, use_errno=True)

def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")

def raw_socket():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()

def trace():
    checked(libc.ptrace(0x4206, victim, 0, 0))  # PTRACE_SEIZE: it does not stop for that

attempts = {
    "start a program": lambda: subprocess.run(["/bin/true"], check=True),
    "read the host's password hashes": lambda: Path("/etc/shadow").read_bytes(),
    "change the host's settings": lambda: Path("/etc/atoll-was-here").write_text("x"),
    "read what lies beside its own directory": lambda: (place / "secret").read_bytes(),
    "write where it may only look": lambda: (place / "shown" / "x").write_text("x"),
    "become root again": lambda: os.setuid(0) if os.getuid() else None,
    "get a user namespace": lambda: os.fork() == 0 and (os._exit(libc.unshare(0x10000000) != 0)) or waited(),
    "mount": lambda: checked(libc.mount(b"none", str(place / "own").encode(), b"tmpfs", 0, None)),
    "trace another process": trace,
    "end another process": lambda: os.kill(victim, 0),
    "read another process's memory": lambda: os.close(os.open(f"/proc/{victim}/mem", os.O_RDONLY)),
    "see another process": lambda: os.stat(f"/proc/{victim}/status"),
    "open a raw socket": raw_socket,
    "see the host's devices": lambda: os.stat("/dev/kmsg"),
    "read the kernel's memory map": lambda: os.stat("/sys/kernel"),
    "make its memory unbounded": lambda: bytearray(3 << 30),
}

def waited():
    _, status = os.wait()
    if status:
        raise OSError("refused")

if role != "front":
    attempts |= {
        "read the front's directory": lambda: list((place / "own").iterdir()),
        "write into the front's directory": lambda: (place / "own" / "y").write_text("x"),
        "look where the front may look": lambda: list((place / "shown").iterdir()),
    }

done = {}
for name, attempt in attempts.items():
    try:
        attempt()
        done[name] = True
    except (OSError, MemoryError, subprocess.SubprocessError):
        done[name] = False
if role == "front":
    (place / "own" / "it still works").write_text("x")
print(json.dumps(done))
"""

# Without the wall the machine's own limits decide these two, so the control says nothing.
_NO_CONTROL = {"become root again", "make its memory unbounded"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    from atoll.server.rights import unused_users

    for name in ("own", "shown", "scratch"):
        (tmp_path / name).mkdir()
    os.chown(tmp_path / "own", unused_users(1)[0], unused_users(1)[0])
    (tmp_path / "shown").chmod(0o777)  # so that nothing but the mount keeps it from writing
    (tmp_path / "secret").write_text("canary")
    (tmp_path / "secret").chmod(0o644)
    return tmp_path


def _attempts(place: Path, role: str, **environ: str) -> dict[str, bool]:
    victim = subprocess.Popen(["/bin/sleep", "60"])
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, place, role, str(victim.pid)],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **environ},
        )
    finally:
        victim.kill()
        victim.wait()
        Path("/etc/atoll-was-here").unlink(missing_ok=True)
        subprocess.run(["umount", place / "own"], capture_output=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, bool] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("role", ["front", "egress"])
def test_a_process_that_gave_up_its_rights_can_do_none_of_it(place: Path, role: str) -> None:
    assert [name for name, worked in _attempts(place, role).items() if worked] == []
    assert (place / "own" / "it still works").exists() is (role == "front")


def test_its_own_directory_may_lie_below_one_that_python_looks_into(place: Path) -> None:
    """As when a script beside the data directory starts a server."""
    assert place.parent.stat().st_mode & 0o077 == 0, "the control: nobody else may pass there"
    assert not any(_attempts(place, "front", PYTHONPATH=str(place.parent)).values())


def test_each_attempt_works_without_the_wall(place: Path) -> None:
    failed = {name for name, worked in _attempts(place, "nobody").items() if not worked}
    assert failed <= _NO_CONTROL
