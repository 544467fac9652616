"""The server that is attacked, as its owner and its machine see it: started again, and counted from outside."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from e2b import Sandbox

from atoll.images.layers import ImageLayers
from atoll.testing import footprint
from atoll.testing.footprint import Footprint
from support.server import STALLS, ServerProcess
from support.tiers import SERVER_ENVIRON

DISK_MIB, RESERVE_MIB = 6000, 200
MOST_AHEAD_S = 1200.0
"""Far less than what a sandbox is given to live."""
_SERVER_BACK_S = 60.0
SIZE = {"atoll.memory": "256", "atoll.cpu": "1", "atoll.disk": "1024"}
"""Of every sandbox: what is made ahead of need is made for those that were asked for last."""


class World:
    """`with World(tier, place, templates_dir) as world:`; what is left in it ends with the block."""

    def __init__(self, tier: str, place: Path, templates_dir: Path) -> None:
        self.tier = tier
        self.data_dir = place / "data"
        self._templates = templates_dir
        self._mark = footprint.new_mark()
        self._port = _free_port()
        self._bases: frozenset[Path] = frozenset()
        self._offset_file, self._offset_s = self.data_dir / "control" / "clock-offset", 0.0
        self.server = self._start()
        self.restarts_refused: list[str] = []

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self.server.stop()
        with contextlib.suppress(Exception):
            self._start("--end-sandboxes").stop()
        STALLS[:] = [line for line in STALLS if not line.startswith(f"{self.server.log}:")]  # it was frozen

    def _start(self, *options: str) -> ServerProcess:
        return ServerProcess.start(
            self.data_dir,
            templates_dir=self._templates,
            port=self._port,
            options=["--isolation", self.tier, *options],
            environ={
                footprint.MARKER: self._mark,
                "ATOLL_DISK_RESERVE_MIB": str(RESERVE_MIB),
                "ATOLL_CLOCK_OFFSET_FILE": str(self._offset_file),
                **SERVER_ENVIRON[self.tier],
            },
        )

    @property
    def options(self) -> dict[str, Any]:
        """For the SDK. They stay the same over restarts."""
        return {"api_key": self.server.api_key, "api_url": self.server.url, "sandbox_url": self.server.url}

    # Faults

    def restart(self) -> None:
        """After a SIGKILL to the launcher, as an owner does."""
        self.server.stop(signal.SIGKILL)
        deadline = time.monotonic() + _SERVER_BACK_S
        while True:
            try:
                self.server = self._start()
                return
            except Exception as error:
                self.restarts_refused.append(f"{error}"[-600:])
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def pids_of(self, role: str) -> list[int]:
        """Empty while it is being started."""
        if role == "launcher":
            return [self.server.pid]
        if role == "zygote":
            helpers = footprint.helpers_of(self._mark)
            return [pid for pid in helpers if _command_line(pid).startswith(b"atoll-zygote")]
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            return [self.server.pid_of(role)]
        return []

    def jump(self, seconds: float) -> None:
        """Of the clock that timeouts are of."""
        self._offset_s = min(self._offset_s + seconds, MOST_AHEAD_S)
        draft = self._offset_file.with_suffix(".new")
        draft.write_text(str(self._offset_s))
        draft.rename(self._offset_file)

    @contextlib.contextmanager
    def disk_filled(self) -> Iterator[None]:
        """Down to a part of what the server keeps for itself."""
        ballast = self.data_dir.parent / "ballast"
        space = os.statvfs(self.data_dir)
        size = space.f_bavail * space.f_frsize - (RESERVE_MIB << 20) // 4
        try:
            if size > 0:
                with ballast.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
            yield
        finally:
            ballast.unlink(missing_ok=True)

    # What is there

    def listed(self) -> dict[str, str] | None:
        """Id → state; None where it does not answer."""
        headers, found, token = {"X-API-Key": self.server.api_key}, {}, None
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
            while True:
                query = {"state": "running,paused", "limit": "100"} | ({"nextToken": token} if token else {})
                answer = httpx.get(f"{self.server.url}/v2/sandboxes", params=query, headers=headers, timeout=10)
                found |= {one["sandboxID"]: one["state"] for one in answer.json()}
                token = answer.headers.get("x-next-token")
                if not token:
                    return found
        return None

    def snapshots(self) -> list[str]:
        """Their ids."""
        pages, found = Sandbox.list_snapshots(**self.options), []
        while pages.has_next:
            found += [one.snapshot_id for one in pages.next_items()]
        return found

    def footprint(self) -> tuple[Footprint, dict[str, int]]:
        """Counts that must come back to what they were."""
        named = str(self.data_dir)
        loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=False).stdout.splitlines()
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return footprint.take(self._mark, self._bases), {
            "directories": len(self.directories()),
            "loop devices": sum(named in line for line in loops),
            "mounts of the host": sum(f"{named}/" in line for line in mounts),
            "unfinished images": len(ImageLayers(self._templates).unfinished_ones()),
        }

    def at_rest(self, within_s: float = 60.0) -> tuple[Footprint, dict[str, int]]:
        """The counts once nothing changes any more."""
        with Sandbox.create(timeout=60, metadata=SIZE, **self.options) as sandbox:
            sandbox.commands.run("true")
            self._bases = self._bases or footprint.cgroup_bases(self._mark)
        deadline = time.monotonic() + within_s
        while True:
            first = self.footprint()
            time.sleep(2.0)
            if (first == self.footprint() and not self.directories()) or time.monotonic() > deadline:
                return first

    def groups(self) -> list[str]:
        """Control groups below this server's bases without a process, to say which are left, and since when (s)."""
        found = [place for base in self._bases for place in base.iterdir() if place.is_dir()]
        ages = {
            f"{one.parent.name}/{one.name}": time.time() - one.stat().st_ctime for one in found if not _members(one)
        }
        return sorted(f"{name} {age:.0f} s" for name, age in ages.items())

    def directories(self) -> list[Path]:
        """Of sandboxes, and of what is on its way out."""
        places = [self.data_dir / name for name in ("sandboxes", "trash")]
        return [path for place in places if place.is_dir() for path in place.iterdir()]


def grown(before: tuple[Footprint, dict[str, int]], now: tuple[Footprint, dict[str, int]]) -> dict[str, Any]:
    """What there is more of."""
    names = ("processes", "namespaces", "mounts", "cgroups")
    pairs = {name: (getattr(before[0], name), getattr(now[0], name)) for name in names}
    pairs |= {name: (before[1][name], now[1][name]) for name in before[1]}
    more: dict[str, Any] = {name: pair for name, pair in pairs.items() if pair[1] > pair[0]}
    if fds := now[0].fds - before[0].fds:
        more["fds"] = dict(fds)
        opened = now[0].opened - before[0].opened
        more["opened"] = {what: count for (kind, what), count in opened.items() if kind in fds}
    return more


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path | None]:
    """A file system of its own that can be filled; None where this machine cannot."""
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control") or shutil.which("mkfs.ext4") is None:
        yield None
        return
    image, mounted = place / "disk.img", place / "disk"
    mounted.mkdir()
    subprocess.run(["truncate", "-s", f"{DISK_MIB}M", image], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
    try:
        yield mounted
    finally:
        for _ in range(50):
            if subprocess.run(["umount", mounted], check=False, capture_output=True).returncode == 0:
                break
            time.sleep(0.2)
        else:
            print(f"{mounted} is still in use", file=sys.stderr)


def _members(group: Path) -> str:
    try:
        return "".join(path.read_text() for path in group.rglob("cgroup.procs"))
    except OSError:
        return "gone"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # ended meanwhile
        return b""
