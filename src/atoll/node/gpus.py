"""This machine's GPUs: which there are (CDI files), which a new sandbox gets, and what the host says of their use.

Who has which is not written down here: a sandbox's spec names its devices, and it is in its directory. What is in use
is counted over the sandboxes that this node has, running or paused, those adopted from an earlier server too; one that
has ended counts no more, however it ended.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from atoll.model.devices import DeviceEdits, GpuRequest, GpuUse, HostPath, parse_gpu
from atoll.model.errors import CreateFailed, NotOffered, QuotaExceeded
from atoll.model.sandbox import SandboxSpec
from atoll.node import cdi
from atoll.node.cdi import CdiDevice

_HINT = "`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` writes one; see docs/gpu.md"
_FRESH_S = 5.0
_SMI_WITHIN_S = 5.0
_QUERY = "index,uuid,utilization.gpu,memory.used,memory.total,temperature.gpu"
_MIB = 1 << 20

_log = structlog.get_logger("atoll.node")


class NodeGpus:
    """All that a node needs of them.

    Args:
        directories: of CDI files; what a later one says wins.
        share: how many sandboxes may have one GPU at the same time; 1: each is one sandbox's alone.
        path: where `nvidia-smi` is looked for, as PATH.
    """

    def __init__(self, directories: Sequence[Path] = (), share: int = 1, path: str | None = None) -> None:
        self._directories = tuple(directories)
        self._share = share
        self._path = path
        self._seen: tuple[tuple[str, int, int], ...] | None = None
        self._devices: dict[str, CdiDevice] = {}
        self._use: tuple[float, Mapping[str, GpuUse]] = (float("-inf"), {})
        self._asking = asyncio.Lock()
        self._hanging: asyncio.subprocess.Process | None = None

    async def prepared(self, spec: SandboxSpec, others: Iterable[SandboxSpec]) -> SandboxSpec:
        """With its devices, if it asks for any; the caller keeps others from being prepared until it is among them.

        `others`: those that this node has. Raises InvalidRequest, NotOffered (there is none, or none such),
        QuotaExceeded (others have them).
        """
        if spec.gpu is None:
            return spec
        await asyncio.to_thread(self.refresh)
        chosen = choose(parse_gpu(spec.gpu), self.usable(), Counter(_names(others)), self._share)
        edits = cdi.joined([device.edits for device in chosen])
        names = tuple(device.qualified for device in chosen)
        return replace(spec, devices=names, env_vars={**edits.env_vars, **spec.env_vars})

    async def run(self) -> None:
        """Looks after the files, so that `free` is of now; until it is cancelled."""
        while self._directories:
            try:
                await asyncio.to_thread(self.refresh)
            except Exception:  # a mistake in a file is not the node's end
                _log.exception("gpu.cdi_unread")
            await asyncio.sleep(_FRESH_S)

    def free(self, others: Iterable[SandboxSpec]) -> int:
        """How many of them one more sandbox could have, as of the last `refresh`."""
        if not self._devices:
            return 0
        in_use = Counter(_names(others))
        return sum(in_use[device.qualified] < self._share for device in self.usable())

    async def edits(self, spec: SandboxSpec) -> DeviceEdits:
        """What its tier adds for the devices that it was given. Raises CreateFailed: one is not there any more."""
        if not spec.devices:
            return DeviceEdits()
        await asyncio.to_thread(self.refresh)
        if missing := [name for name in spec.devices if name not in self._devices]:
            raise CreateFailed(f"sandbox {spec.sandbox_id!r} has {missing[0]}, which no CDI file describes any more")
        edits = cdi.joined([self._devices[name].edits for name in spec.devices])
        return await asyncio.to_thread(_that_are_there, edits)

    def refresh(self) -> list[str]:
        """Reads the files if they have changed; what of them cannot be used, in words. Blocking."""
        seen = tuple(_marks(self._directories))
        if seen == self._seen:
            return []
        self._devices, notes = cdi.read_all(self._directories)
        self._seen = seen
        if notes:
            _log.info("gpu.cdi", notes=notes[:20])
        return notes

    def usable(self) -> list[CdiDevice]:
        """Each GPU once, by its shortest name (an index before a UUID), in that order; after `refresh`."""
        gpus = [device for device in self._devices.values() if device.is_gpu and device.name != "all"]
        gpus.sort(key=lambda one: (one.kind, not one.name.isdigit(), len(one.name), one.name))
        once: dict[object, CdiDevice] = {}
        for device in gpus:
            once.setdefault(device.own_nodes or device.qualified, device)
        return list(once.values())

    async def use_of(self, names: Sequence[str]) -> tuple[GpuUse, ...]:
        """What `nvidia-smi` says of those of NVIDIA; at most every few seconds it is asked. Never raises."""
        nvidia = [name.partition("=")[2] for name in names if name.startswith("nvidia.com/")]
        if not nvidia:
            return ()
        async with self._asking:
            if time.monotonic() - self._use[0] > _FRESH_S:
                self._use = (time.monotonic(), await self._ask())
        return tuple(self._use[1].get(name, GpuUse(name)) for name in nvidia)

    async def _ask(self) -> Mapping[str, GpuUse]:
        program = shutil.which("nvidia-smi", path=self._path)
        if program is None or (self._hanging is not None and self._hanging.returncode is None):
            return {}
        try:
            process = await asyncio.create_subprocess_exec(
                program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits",
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            _log.warning("gpu.nvidia_smi", error=str(error))
            return {}
        try:
            async with asyncio.timeout(_SMI_WITHIN_S):
                out, _ = await process.communicate()
        except BaseException as error:
            process.kill()  # it may hang in the driver all the same: nobody waits for that
            self._hanging = process
            if not isinstance(error, TimeoutError):
                raise
            _log.warning("gpu.nvidia_smi", error=f"no answer within {_SMI_WITHIN_S:g} s")
            return {}
        return readings(out.decode(errors="replace"))


def choose(request: GpuRequest, devices: Sequence[CdiDevice], in_use: Mapping[str, int], share: int) -> list[CdiDevice]:
    """Those that a new sandbox gets, the least used first. Raises NotOffered, QuotaExceeded."""
    if not devices:
        raise NotOffered("this server has no GPU: no CDI file in /etc/cdi or /var/run/cdi describes one", hint=_HINT)
    wanted = [device for device in devices if device.name in request.names] if request.names else list(devices)
    known = {device.name for device in devices}
    if missing := [name for name in request.names if name not in known]:
        raise NotOffered(f"this server has no GPU {missing[0]!r}: it has {', '.join(sorted(known))}")
    count = len(wanted) if request.count is None else request.count
    if count > len(wanted):
        raise NotOffered(f"this server has {len(wanted)} GPUs, not {count}")
    free = [device for device in wanted if in_use.get(device.qualified, 0) < share]
    if len(free) < count:
        raise QuotaExceeded(
            f"{len(free)} of {len(wanted)} GPUs are free, {count} are asked for",
            hint="kill a sandbox that has one (a paused one keeps its own), or let sandboxes share: ATOLL_GPU_SHARE",
        )
    free.sort(key=lambda device: in_use.get(device.qualified, 0))
    return free[:count]


def readings(text: str) -> dict[str, GpuUse]:
    """By index and by UUID, what `nvidia-smi --query-gpu=… --format=csv,noheader,nounits` printed."""
    found: dict[str, GpuUse] = {}
    for line in text.splitlines()[:1024]:
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(_QUERY.split(",")):
            continue
        index, uuid, used, memory, total, temperature = cells
        mib = [_number(memory), _number(total)]
        memory_used, memory_total = (None if one is None else int(one * _MIB) for one in mib)
        for name in (index, uuid):
            found[name] = GpuUse(name, _number(used), memory_used, memory_total, _number(temperature))
    return found


def _number(text: str) -> float | None:
    """None for `[N/A]` and such."""
    try:
        return float(text)
    except ValueError:
        return None


def _names(specs: Iterable[SandboxSpec]) -> Iterable[str]:
    return (name for spec in specs for name in spec.devices)


def _marks(directories: Sequence[Path]) -> Iterable[tuple[str, int, int]]:
    for directory in directories:
        try:
            entries = sorted(os.scandir(directory), key=lambda one: one.name)
        except OSError:
            continue
        for entry in entries:
            try:
                status = entry.stat()
            except OSError:
                continue
            yield entry.path, status.st_mtime_ns, status.st_size


def _that_are_there(edits: DeviceEdits) -> DeviceEdits:
    """Without mounts that the host does not have (any more) or that are no files: a daemon's socket stays outside.

    Raises CreateFailed: a device is not there, is none, or is not for others than its owner.
    """
    for node in edits.nodes:
        try:
            status = os.stat(node.source)
        except OSError as error:
            raise CreateFailed(f"the device {node.source} cannot be used: {error.strerror}") from error
        if not stat.S_ISCHR(status.st_mode):
            raise CreateFailed(f"{node.source} is no character device")
        if os.geteuid() == 0 and status.st_mode & 0o006 != 0o006:
            raise CreateFailed(
                f"the device {node.source} is for its owner and group alone, and a sandbox is neither",
                hint=f"chmod 0666 {node.source}, for good by a udev rule",
            )
    mounts = tuple(one for one in edits.mounts if _is_plain(one))
    if (count := len(edits.nodes) + len(mounts)) > cdi.MOST_MOUNTS:
        raise CreateFailed(f"its devices need {count} mounts, more than {cdi.MOST_MOUNTS}: ask for fewer GPUs")
    return replace(edits, mounts=mounts)


def _is_plain(mount: HostPath) -> bool:
    try:
        mode = os.stat(mount.source).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
