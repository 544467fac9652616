"""The floors: the least that could do the same thing, measured in the same run on the same files."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from e2b import Sandbox
from e2b.connection_config import ConnectionConfig
from packaging.version import Version

HERE = Path(__file__).parent
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@contextlib.contextmanager
def template_root(layers: Sequence[Path], work: Path) -> Iterator[Path]:
    """One directory that shows a template's layers joined; what is written to it goes to `work` and ends with it."""
    root, upper, scratch = work / "root", work / "upper", work / "scratch"
    for directory in (root, upper, scratch):
        directory.mkdir(parents=True)
    lower = ":".join(str(layer) for layer in layers)
    options = f"lowerdir={lower},upperdir={upper},workdir={scratch}"
    subprocess.run(["mount", "-t", "overlay", "atoll-bench", "-o", options, str(root)], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", "-l", str(root)], check=False)
        shutil.rmtree(work, ignore_errors=True)


def skeleton_home(root: Path, work: Path) -> Path:
    """A home with nothing but the template's skeleton: a developer's own login files are not the product's rival."""
    home = work / "skeleton-home"
    skeleton = root / "etc" / "skel"
    if skeleton.is_dir():
        shutil.copytree(skeleton, home, symlinks=True)
    else:
        home.mkdir(parents=True)
    return home


class Bwrap:
    """`bwrap --unshare-all` on the template's root, then a login shell that does nothing."""

    def __init__(self, root: Path) -> None:
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise FileNotFoundError("bwrap is not installed: apt-get install bubblewrap")
        self._command = [
            *(bwrap, "--unshare-all", "--ro-bind", str(root), "/", "--proc", "/proc", "--dev", "/dev"),
            *("--tmpfs", "/tmp", "--die-with-parent", "--clearenv", "--setenv", "HOME", "/home/user"),
            *("--setenv", "PATH", PATH, "--chdir", "/home/user"),
        ]

    def once(self) -> None:
        run_to_end([*self._command, "/bin/bash", "-l", "-c", "true"], {})

    def idle(self) -> subprocess.Popen[bytes]:
        """A sandbox that only exists."""
        return subprocess.Popen([*self._command, "/bin/sleep", "infinity"], stdin=subprocess.DEVNULL)


class PlainBash:
    """`bash -l -c true` on the host, with a clean home."""

    def __init__(self, home: Path) -> None:
        self._environ = {"HOME": str(home), "PATH": PATH, "USER": "root", "LOGNAME": "root"}

    def once(self) -> None:
        run_to_end(["/bin/bash", "-l", "-c", "true"], self._environ)


def run_to_end(command: list[str], environ: dict[str, str]) -> None:
    """The cheapest way to run a program and have its output and exit status. Raises RuntimeError if it fails."""
    reading, writing = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, writing, 1), (os.POSIX_SPAWN_DUP2, writing, 2)]
    pid = os.posix_spawn(command[0], command, environ, file_actions=actions)
    os.close(writing)
    output = b""
    while piece := os.read(reading, 65536):
        output += piece
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise RuntimeError(f"{command[0]} ended with {status}: {output!r}")


@contextlib.contextmanager
def jupyter(root: Path) -> Iterator[RawJupyter]:
    """A kernel in the template's root, in mount, pid and network namespaces that end with it."""
    shutil.copy(HERE / "jupyter_floor.py", root / "jupyter_floor.py")
    script = (
        "mount -t proc proc $0/proc; mount --rbind /dev $0/dev; mount -t tmpfs tmp $0/tmp;"
        " for p in /opt/*/bin/python3 /usr/local/bin/python3 /usr/bin/python3; do"
        " if chroot $0 $p -c 'import jupyter_client' 2>/dev/null; then"
        " exec chroot --userspec=1000:1000 $0 env -i HOME=/home/user PATH=$1 LANG=C.UTF-8 $p /jupyter_floor.py;"
        " fi; done;"
        " echo 'no python in the template has jupyter_client' >&2; exit 1"
    )
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", script, str(root), PATH]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield RawJupyter(process)
    finally:
        process.kill()
        process.wait()


class RawJupyter:
    """Asks the floor process for one timed cell at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._to, self._from = process.stdin, process.stdout
        if self._from.readline().strip() != "ready":
            raise RuntimeError("the floor kernel did not start")

    def run(self, code: str) -> float:
        """Milliseconds."""
        self._to.write(code + "\n")
        self._to.flush()
        return float(self._from.readline())


@contextlib.contextmanager
def answers_only() -> Iterator[dict[str, str]]:
    """A server that answers create, run and kill by heart, as options of the SDK's calls."""
    process = subprocess.Popen([sys.executable, str(HERE / "answers_only.py")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        yield {"api_key": "e2b_" + "0" * 40, "api_url": url, "sandbox_url": url}
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def file_server(directory: Path) -> Iterator[Sandbox]:
    """The bare file server, behind the SDK's own sandbox object."""
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(HERE / "fileserver.py"), str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PATH": os.environ["PATH"]})
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield Sandbox(
            sandbox_id="floor",
            sandbox_domain=None,
            envd_version=Version("0.6.13"),
            envd_access_token=None,
            traffic_access_token=None,
            connection_config=ConnectionConfig(api_key="floor", sandbox_url=f"http://127.0.0.1:{port}"),
        )
    finally:
        process.kill()
        process.wait()
