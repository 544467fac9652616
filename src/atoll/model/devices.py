"""GPUs of sandboxes: what a call asks for, and what a node adds to a sandbox that has some. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from atoll.model.errors import InvalidRequest

MOST = 64
"""GPUs of one sandbox."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_FORMS = "'1' (or another number), 'all', or 'index:0,1'"


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """How many (`count`), which (`names`, as CDI files call them), or all of the node's (neither)."""

    count: int | None = None
    names: tuple[str, ...] = ()


def parse_gpu(text: str, where: str = "metadata atoll.gpu") -> GpuRequest:
    """`1`, `all` or `index:0,1`. `where` is who asks, for the message. Raises InvalidRequest."""
    if text == "all":
        return GpuRequest()
    if text.isascii() and text.isdigit() and len(text) <= 3 and 0 < int(text) <= MOST:
        return GpuRequest(count=int(text))
    kind, _, rest = text.partition(":")
    names = tuple(name.strip() for name in rest.split(","))
    if kind == "index" and len(names) <= MOST and all(map(_NAME.fullmatch, names)):
        return GpuRequest(names=tuple(dict.fromkeys(names)))
    raise InvalidRequest(f"{where}: {text[:100]!r} is not {_FORMS}")


@dataclass(frozen=True, slots=True)
class HostPath:
    """Something of the host's at `source` that is shown inside at `path`."""

    source: str
    path: str


@dataclass(frozen=True, slots=True)
class DeviceEdits:
    """What a node adds to a sandbox for its devices.

    `nodes` are character devices of the host, `mounts` its files and directories, shown read-only.
    """

    nodes: tuple[HostPath, ...] = ()
    mounts: tuple[HostPath, ...] = ()
    env_vars: Mapping[str, str] = field(default_factory=dict)
    nvidia: bool = False
    """All of them are NVIDIA's."""

    def __bool__(self) -> bool:
        return bool(self.nodes or self.mounts)


@dataclass(frozen=True, slots=True)
class GpuUse:
    """One reading of a GPU, by the host's `nvidia-smi`: of the whole card, with all its users. None: it does not say.

    Percent, bytes, degrees Celsius.
    """

    name: str
    used_pct: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    temperature_c: float | None = None
