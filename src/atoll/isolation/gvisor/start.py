"""One gVisor sandbox from nothing to "waiting for the host's word", and from there to a running guest.

    launch ──► PooledSandbox (runsc runs, the guest is imported, nothing of a user known) ──► take_over ──► guest runs
                  └── discard
    restore ──► the guest runs, and what else ran when its memory was saved

The line on which the word is given is connected at once and held: when the server dies, waiting ones end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from atoll.isolation import directory
from atoll.isolation.base import GUEST_SOCKET
from atoll.isolation.gvisor import launch, oci
from atoll.isolation.gvisor.boot import LISTENS
from atoll.isolation.gvisor.runsc import Runsc
from atoll.isolation.gvisor.saved import Engine, Image
from atoll.isolation.linux import process_identity as recorded
from atoll.isolation.linux.cgroups.groups import Cgroups, Group
from atoll.isolation.linux.disk import kept
from atoll.isolation.linux.disk.formats import Formats
from atoll.isolation.linux.disk.image import IMAGE, Piece, make_image
from atoll.isolation.linux.net import control, guest_socket
from atoll.isolation.linux.sys.id_ranges import IdRanges
from atoll.model.devices import DeviceEdits
from atoll.model.errors import CreateFailed
from atoll.model.sandbox import Limits, SandboxSpec
from atoll.model.volume import DeviceMount

LAUNCH_WITHIN_S = 30.0
_TAKE_OVER_WITHIN_S = 20.0
_DIE_WITHIN_S = 7.0
_POLL_S = 0.003
_BOOT = "import json,sys; sys.path[:] = json.loads(sys.argv[1]); from atoll.isolation.gvisor.launch import main; main()"
_OVERHEAD_MIB = 96
"""What the sentry and its helpers may use beside the sandbox's own memory, which is charged to the same group."""

_HOST_TASKS = (1024, 4)
"""The sentry's threads and stubs: the group's limit is this many and so many per process of the sandbox. Only a second
net: the sandbox's own limit is kept by the sentry."""


class NotLaunched(CreateFailed):
    """Nothing of the sandbox has run."""


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """What every launch of one backend uses."""

    runsc: Runsc
    platform: str
    runtime: Path
    entry: str
    cgroups: Cgroups
    ids: IdRanges
    network: bool
    """Whether sandboxes get a network namespace with a way out."""
    disks: Formats | None
    """What disks are made from; None where this machine offers none: sandboxes write into a directory."""
    unfinished: set[str] = field(default_factory=set)
    """Groups being made or waiting now: not yet a sandbox, and not left over by an earlier server either."""

    @property
    def engine(self) -> Engine:
        """By what it runs its sandboxes."""
        return Engine(self.runsc.version, self.platform, self.runtime.name)

    @property
    def runtimes(self) -> Path:
        """Where the guest's runtimes are, earlier ones too."""
        return self.runtime.parent

    def flags(self, state: str, *, nvidia: bool = False) -> list[str]:
        """runsc's global flags for a sandbox about which it keeps its notes in `state`. `nvidia`: it has a GPU."""
        known = sorted(self.runsc.flags)
        return oci.flags(state, platform=self.platform, network=self.network, known=known, nvidia=nvidia)


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """What is to be launched."""

    lowers: tuple[str, ...]
    limits: Limits
    place: Path
    on_disk: bool = False
    """Whether it stands on what `place` holds already, instead of a new disk."""
    image: Image | None = None
    """What it goes on from, instead of a guest that starts."""
    volumes: tuple[DeviceMount, ...] = ()
    devices: DeviceEdits = field(default_factory=DeviceEdits)


@dataclass(slots=True)
class PooledSandbox:
    """A sandbox without an owner yet. Owns `line` and `pidfd`."""

    group: Group
    id_base: int
    place: Path
    pidfd: int
    line: socket.socket
    record: dict[str, Any]
    """As in its directory. `egress`: who has the way out, as `recorded` describes a process; None: there is none."""
    stages: dict[str, float] = field(default_factory=dict)


def host_limits(limits: Limits) -> Limits:
    """What the group of a sandbox with these limits gets."""
    base, each = _HOST_TASKS
    return replace(limits, memory_mib=limits.memory_mib + _OVERHEAD_MIB, pids=base + each * limits.pids)


async def launch_waiting(context: LaunchContext, plan: LaunchOrder) -> PooledSandbox:
    """Starts one in its place, which it makes if need be. Raises CreateFailed; nothing is left running then."""
    place, limits = plan.place, plan.limits
    stages = {"launch": time.monotonic()}
    group = context.cgroups.group(f"g{secrets.token_hex(6)}")
    id_base = context.ids.take()
    context.unfinished.add(group.name)
    try:
        pieces = None
        if context.disks is not None and not plan.on_disk:
            pieces = await context.disks.pieces(limits.disk_mib)
        await asyncio.to_thread(_make_place, plan, group, pieces)
        pid = await _run_launcher(context, group, id_base, plan)
        stages["started"] = time.monotonic()
        pidfd = os.pidfd_open(pid)
        try:
            record = {
                "group": group.name,
                "id_base": id_base,
                "egress": _holder(place) if context.network else None,
                "disk_mib": limits.disk_mib if context.disks is not None else None,
                "engine": asdict(plan.image.engine if plan.image is not None else context.engine),
                **recorded.describe(pid),
            }
            directory.begin(place, "gvisor", record)
            line = await connect(place, pidfd)
        except BaseException:
            os.close(pidfd)
            raise
    except BaseException as error:
        await asyncio.shield(_undo(context, group, id_base, place))
        if isinstance(error, OSError | ValueError | TimeoutError):
            kind = NotLaunched if "started" not in stages else CreateFailed
            raise kind(f"gVisor sandbox not started: {error or type(error).__name__}{_tail_of(place)}") from error
        raise
    stages["waiting"] = time.monotonic()
    return PooledSandbox(group, id_base, place, pidfd, line, record, stages)


async def restore(context: LaunchContext, plan: LaunchOrder, spec: SandboxSpec, *, renamed: bool) -> PooledSandbox:
    """One that goes on from `plan.image`; its line is closed. `renamed`: it is to be the sandbox of `spec`, another.

    Raises CreateFailed; nothing is left running then.
    """
    made = await launch_waiting(context, plan)
    made.line.close()
    try:
        if renamed:
            body = {"spec": spec.for_guest().as_json()}
            await control.request(plan.place / GUEST_SOCKET, "POST", "/identity", body, within_s=_TAKE_OVER_WITHIN_S)
    except BaseException as error:
        os.close(made.pidfd)
        await asyncio.shield(_undo(context, made.group, made.id_base, plan.place))
        if isinstance(error, OSError | ValueError | TimeoutError):
            raise CreateFailed(f"it cannot take another name: {error or type(error).__name__}") from error
        raise
    context.unfinished.discard(made.group.name)
    return made


async def take_over(
    context: LaunchContext, waiting: PooledSandbox, spec: SandboxSpec, state_dir: Path
) -> dict[str, Any]:
    """Makes it the sandbox that `spec` asks for; returns its record. Raises CreateFailed; nothing is left then."""
    try:
        if waiting.place != state_dir:
            await asyncio.to_thread(_move, waiting.place, state_dir)
            waiting.place = state_dir
        await asyncio.to_thread(waiting.group.limit, host_limits(spec.limits))
        word = {"spec": spec.for_guest().as_json(), "elevation": not context.runsc.honours_setuid}
        answer = await asyncio.wait_for(_ask(waiting.line, json.dumps(word).encode() + b"\n"), _TAKE_OVER_WITHIN_S)
        if answer.get("error"):
            raise OSError(str(answer["error"])[:500])
    except BaseException as error:
        os.close(waiting.pidfd)
        await asyncio.shield(_undo(context, waiting.group, waiting.id_base, waiting.place))
        if isinstance(error, OSError | ValueError | TimeoutError):
            output = _tail_of(waiting.place)
            raise CreateFailed(f"gVisor sandbox not started: {error or type(error).__name__}{output}") from error
        raise
    finally:
        waiting.line.close()
    context.unfinished.discard(waiting.group.name)
    waiting.stages["taken"] = time.monotonic()
    return waiting.record


async def discard(context: LaunchContext, waiting: PooledSandbox, *, keep_place: bool = False) -> None:
    """Ends one that is not needed. `keep_place`: its directory is another's to remove."""
    waiting.line.close()
    os.close(waiting.pidfd)
    await _undo(context, waiting.group, waiting.id_base, waiting.place)
    if not keep_place:
        await asyncio.to_thread(shutil.rmtree, waiting.place, ignore_errors=True)


async def end_group(group: Group) -> bool:
    """Kills every process of the group and removes it. False when it cannot be emptied in time."""
    deadline = time.monotonic() + _DIE_WITHIN_S
    while True:
        for pid in group.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        group.thaw()
        if await asyncio.to_thread(group.try_remove):
            return True
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL_S)


async def connect(place: Path, pidfd: int) -> socket.socket:
    """Waits until the guest listens, takes its socket out of the sandbox's sight and connects. Raises OSError."""
    deadline = time.monotonic() + LAUNCH_WITHIN_S
    listens, outer = place / launch.IO / LISTENS, place / GUEST_SOCKET
    while not listens.exists():
        if recorded.has_ended(pidfd):
            raise OSError("its first process ended")
        if time.monotonic() > deadline:
            raise TimeoutError("the guest did not come up in time")
        await asyncio.sleep(_POLL_S)
    listens.unlink()
    (place / launch.IO / GUEST_SOCKET).rename(outer)
    os.chmod(outer, 0o600)
    return await guest_socket.connect(outer, b"")


# -- inside ------------------------------------------------------------------------------------------------------------


def _make_place(plan: LaunchOrder, group: Group, disk: Sequence[Piece] | None) -> None:
    """`disk`: what a new one consists of; None: there is one, or none is used."""
    place = plan.place
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in (launch.BUNDLE, launch.STATE):  # of what ran here before
        shutil.rmtree(place / name, ignore_errors=True)
        (place / name).mkdir(mode=0o700)
    (place / launch.MARK).unlink(missing_ok=True)
    if plan.on_disk:
        kept.wait_until_released(place / IMAGE)
    elif disk is not None:
        (place / IMAGE).unlink(missing_ok=True)  # of an attempt that failed
        make_image(place / IMAGE, plan.limits.disk_mib, disk)
    group.create()
    group.limit(host_limits(plan.limits))


async def _run_launcher(context: LaunchContext, group: Group, id_base: int, plan: LaunchOrder) -> int:
    place, limits, image = plan.place, plan.limits, plan.image
    stage = launch.choose_stage(sys.path)
    config = oci.config(
        root=f"{stage}/{launch.ROOT}",
        shared=f"{stage}/{launch.IO}",
        runtime=f"{stage}/{launch.RUNTIME}",
        entry=context.entry,
        limits=limits,
        network=f"{stage}/{launch.NETWORK}" if context.network else "",
        volumes={one.path: f"{stage}/{launch.volume_name(number)}" for number, one in enumerate(plan.volumes)},
        shown={one.path: f"{stage}/{launch.shown_name(number)}" for number, one in enumerate(plan.devices.mounts)},
        devices=[one.path for one in plan.devices.nodes],
    )
    (place / launch.BUNDLE / "config.json").write_text(json.dumps(config))
    action = ["run"] if image is None else ["restore", f"--image-path={stage}/{launch.MEMORY}"]
    order = launch.Order(
        place=str(place),
        lowers=list(plan.lowers),
        runtime=str(context.runtime if image is None else context.runtimes / image.engine.runtime),
        id_base=id_base,
        ids=oci.HOST_IDS_PER_SANDBOX,
        groups=[str(path / "cgroup.procs") for path in group.paths()],
        stage=stage,
        network=context.network,
        disk=context.disks is not None,
        memory_mib=limits.memory_mib,
        command=[
            f"{stage}/{launch.PROGRAM}", *context.flags(f"{stage}/{launch.STATE}", nvidia=bool(plan.devices.nodes)),
            *action, "--detach",
            f"--bundle={stage}/{launch.BUNDLE}", f"--pid-file={stage}/{launch.BUNDLE}/pid", group.name,
        ],
        program=str(context.runsc.path),
        memory=str(image.place) if image is not None else "",
        volumes=[one.device for one in plan.volumes],
        shown=[one.source for one in plan.devices.mounts],
    )  # fmt: skip
    with (place / directory.LOG).open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-c", _BOOT, json.dumps(sys.path),
            stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, env={"PATH": os.defpath},
        )  # fmt: skip
    try:
        await asyncio.wait_for(process.communicate(order.to_json().encode()), LAUNCH_WITHIN_S)
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if process.returncode != 0:
        raise OSError(f"runsc ended with {process.returncode}")
    _note_place(place, f"{stage}/{launch.STATE}", str(place / launch.STATE))
    return int((place / launch.BUNDLE / "pid").read_text())


def _holder(place: Path) -> dict[str, Any]:
    return recorded.describe(int((place / launch.BUNDLE / launch.HOLDER).read_text()))


async def _ask(line: socket.socket, word: bytes) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(line, word)
    answer = b""
    while not answer.endswith(b"\n"):
        piece = await loop.sock_recv(line, 65536)
        if not piece or len(answer) > 65536:
            raise OSError("the guest ended before it was ready")
        answer += piece
    message = json.loads(answer)
    return message if isinstance(message, dict) else {"error": "nonsense"}


def _move(place: Path, state_dir: Path) -> None:
    """Into the directory that the node has made; mounts and sockets do not mind, runsc's notes do. Same file system."""
    for entry in os.listdir(place):
        os.rename(place / entry, state_dir / entry)
    place.rmdir()
    _note_place(state_dir, str(place / launch.STATE), str(state_dir / launch.STATE))


def _note_place(place: Path, before: str, after: str) -> None:
    """Changes in runsc's notes where they are, and its socket: in them it has the name under which runsc made it."""
    for note in (place / launch.STATE).glob("*.state"):
        text = note.read_text()
        for end in ('"', "/"):
            text = text.replace(f"{json.dumps(before)[:-1]}{end}", f"{json.dumps(after)[:-1]}{end}")
        note.write_text(text)


async def _undo(context: LaunchContext, group: Group, id_base: int, place: Path) -> None:
    await end_group(group)
    context.ids.give_back(id_base)
    context.unfinished.discard(group.name)
    with contextlib.suppress(OSError):
        (place / GUEST_SOCKET).unlink()


def _tail_of(place: Path) -> str:
    """The end of what the launcher, runsc or the guest printed; it may come from inside the sandbox."""
    with contextlib.suppress(OSError):
        with (place / directory.LOG).open("rb") as log:
            log.seek(max(0, os.path.getsize(place / directory.LOG) - 400))
            words = log.read().decode(errors="replace").strip().splitlines()
        if words:
            return f": {words[-1]}"
    return ""
