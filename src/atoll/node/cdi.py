"""CDI files (Container Device Interface): which devices a machine has, and what a sandbox needs to use each.

The format is the CDI specification's (`cdiVersion` 0.3 to 1.x), as JSON or YAML; `nvidia-ctk cdi generate` writes such
files. Read are `kind`, `devices[].name` and, of `containerEdits`, `deviceNodes`, `mounts` and `env`. Hooks are programs
for the host to run and are never run: of `nvidia-ctk`'s, `create-symlinks` says names of libraries in its arguments,
which become mounts; what else is left out is listed in `CdiFile.notes`.

A file is the operator's word, but a mistake in it must not open the host: sizes are bounded, devices are character
devices below /dev, mounts are read-only files or directories and lie where no file system of the platform does.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from atoll.model.devices import DeviceEdits, HostPath

MAX_BYTES = 256 * 1024
_MAX_FILES = 64
_MAX_ITEMS = 1024
_LONGEST = 4096
_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_OWN_DEVICES = re.compile(r"/dev/(null|zero|full|random|urandom|tty|console|ptmx|shm|pts|mqueue|fd|std\w+)(/.*)?")
_TAKEN = re.compile(r"/(dev|proc|sys|\.atoll)(/.*)?")
_SYSTEM = "bin boot etc home lib lib64 opt root run sbin tmp usr usr/bin usr/lib var"
_WHOLE = frozenset(["/", *(f"/{name}" for name in _SYSTEM.split())])
MOST_MOUNTS = 200
"""Nodes, files and directories of one sandbox."""


@dataclass(frozen=True, slots=True)
class CdiDevice:
    """One device. `edits` are its own and those that its file asks for with every device of it."""

    kind: str
    name: str
    edits: DeviceEdits
    own_nodes: tuple[str, ...]
    """Host paths of the nodes that are its alone: two devices with the same ones are one device under two names."""

    @property
    def qualified(self) -> str:
        """`vendor/class=name`, as CDI writes it."""
        return f"{self.kind}={self.name}"

    @property
    def is_gpu(self) -> bool:
        return self.kind.endswith("/gpu")


@dataclass(frozen=True, slots=True)
class CdiFile:
    """What one file says. `notes`: what of it is not carried out."""

    devices: tuple[CdiDevice, ...]
    notes: tuple[str, ...] = ()


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Without aliases, by which a small file can mean an enormous one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


def read_all(directories: Iterable[Path]) -> tuple[dict[str, CdiDevice], list[str]]:
    """Every device by its qualified name, and in words what could not be used of which file. Blocking."""
    devices: dict[str, CdiDevice] = {}
    notes: list[str] = []
    for directory in directories:
        try:
            paths = sorted(path for path in directory.iterdir() if path.suffix in (".json", ".yaml", ".yml"))
        except FileNotFoundError:
            continue
        except OSError as error:
            notes.append(f"{directory}: {error.strerror}")
            continue
        for path in paths[:_MAX_FILES]:
            try:
                found = parse(_read(path), is_json=path.suffix == ".json")
            except (OSError, ValueError) as error:
                notes.append(f"{path}: {error}")
                continue
            devices |= {device.qualified: device for device in found.devices}
            notes += [f"{path}: {note}" for note in found.notes]
    return devices, notes


def _read(path: Path) -> str:
    # A pipe that nobody writes is no reason to wait. What a link leads to is looked at below.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise ValueError(error.strerror) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ValueError("not a file")
    with open(descriptor, "rb") as file:
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise ValueError("others than its owner, root, can write it: it is not read (chmod 0644, chown root)")
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    return data.decode()


def parse(text: str, *, is_json: bool) -> CdiFile:
    """Raises ValueError saying what is wrong; touches no file."""
    try:
        top = json.loads(text) if is_json else yaml.load(text, _Loader)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"cannot be read: {str(error).splitlines()[0] if str(error) else 'too deep'}") from error
    spec = _mapping(top, "the file")
    if not isinstance(spec.get("cdiVersion"), str):
        raise ValueError("no cdiVersion: not a CDI file")
    kind = spec.get("kind")
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise ValueError("kind is not VENDOR/CLASS")
    notes: list[str] = []
    common = _edits(spec.get("containerEdits"), notes)
    devices = []
    for item in _list(spec.get("devices"), "devices"):
        device = _mapping(item, "a device")
        name = device.get("name")
        if not isinstance(name, str) or not _DEVICE.fullmatch(name):
            raise ValueError(f"{str(name)[:40]!r} is no name of a device")
        own = _edits(device.get("containerEdits"), notes)
        edits = joined([common, own])
        devices.append(
            CdiDevice(
                kind,
                name,
                replace(edits, nvidia=kind.startswith("nvidia.com/")),
                tuple(sorted(node.source for node in own.nodes)),
            )
        )
    return CdiFile(tuple(devices), tuple(dict.fromkeys(notes)))


def joined(parts: Sequence[DeviceEdits]) -> DeviceEdits:
    """All of them, each thing once; of two for one place the first."""
    nodes = {one.path: one for part in reversed(parts) for one in part.nodes}
    mounts = {one.path: one for part in reversed(parts) for one in part.mounts}
    env = {name: value for part in parts for name, value in part.env_vars.items()}
    return DeviceEdits(
        tuple(nodes[path] for path in sorted(nodes)),
        tuple(mounts[path] for path in sorted(mounts)),
        env,
        nvidia=bool(parts) and all(part.nvidia for part in parts),
    )


def _edits(value: Any, notes: list[str]) -> DeviceEdits:
    edits = _mapping(value or {}, "containerEdits")
    unknown = sorted(str(name)[:40] for name in edits.keys() - {"deviceNodes", "mounts", "env", "hooks"})
    notes += [f"{name} is not carried out" for name in unknown]
    nodes = [_node(_mapping(one, "a device node"), notes) for one in _list(edits.get("deviceNodes"), "deviceNodes")]
    mounts = [
        found
        for one in _list(edits.get("mounts"), "mounts")
        if (found := _mount(_mapping(one, "a mount"), notes)) is not None
    ]
    hooks = [_mapping(one, "a hook") for one in _list(edits.get("hooks"), "hooks")]
    named = [*mounts, *_sonames(mounts)]
    for hook in hooks:
        arguments = [str(word) for word in _list(hook.get("args"), "args")]
        if "create-symlinks" in arguments:
            named += _links(arguments, named)
        else:
            notes.append(f"the hook {' '.join(arguments[1:2])[:40] or hook.get('hookName')!r} is not run")
    env = {}
    for line in _list(edits.get("env"), "env"):
        name, equals, setting = str(line).partition("=")
        if not name or not equals or "\0" in setting:
            raise ValueError(f"{name[:40]!r} is not NAME=VALUE")
        env[name] = setting[:_LONGEST]
    return DeviceEdits(tuple(nodes), tuple({one.path: one for one in reversed(named)}.values()), env)


def _node(node: Mapping[str, Any], notes: list[str]) -> HostPath:
    path = _path(node.get("path"), "a device node's path")
    source = _path(node.get("hostPath", path), "a device node's hostPath")
    if not path.startswith("/dev/") or _OWN_DEVICES.fullmatch(path):
        raise ValueError(f"no device can be shown at {path[:100]}")
    if node.get("type", "c") not in ("c", "u"):
        raise ValueError(f"{path[:100]}: only character devices are shown")
    if not {"r", "w"} <= set(str(node.get("permissions", "rwm"))):
        raise ValueError(f"{path[:100]}: a device that may not be read and written cannot be held to that")
    notes += [f"{name} of a device node is not carried out" for name in ("fileMode", "uid", "gid") if name in node]
    return HostPath(source, path)


def _mount(mount: Mapping[str, Any], notes: list[str]) -> HostPath | None:
    if mount.get("type") not in (None, "", "bind"):
        notes.append("a mount that is no file or directory of the host is left out")
        return None
    source = _path(mount.get("hostPath"), "hostPath")
    path = _path(mount.get("containerPath"), "containerPath")
    if path in _WHOLE or _TAKEN.fullmatch(path):
        raise ValueError(f"nothing can be mounted at {path[:100]}")
    return HostPath(source, path)


def _sonames(mounts: Sequence[HostPath]) -> list[HostPath]:
    """`libcuda.so.1` of `libcuda.so.550.54.15`: the name that programs ask for, which `ldconfig` would have made."""
    made = []
    for one in mounts:
        stem, _, version = one.path.partition(".so.")
        if "." in version and version.replace(".", "").isdigit():
            made.append(HostPath(one.source, f"{stem}.so.1"))
    return made


def _links(arguments: Sequence[str], mounts: Sequence[HostPath]) -> list[HostPath]:
    """What `create-symlinks --link TARGET::LINK …` asks for, so far as the target is a file that is mounted."""
    sources = {one.path: one.source for one in mounts}
    made: list[HostPath] = []
    for option, following in zip(arguments, [*arguments[1:], ""], strict=True):
        text = option.partition("=")[2] if option.startswith("--link=") else following if option == "--link" else ""
        target, separator, link = text.partition("::")
        if not separator or not link.startswith("/") or ".." in link.split("/") or _TAKEN.fullmatch(link):
            continue
        source = sources.get(posixpath.normpath(posixpath.join(posixpath.dirname(link), target)))
        if source is not None and len(link) <= _LONGEST:
            sources[link] = source
            made.append(HostPath(source, link))
    return made


def _path(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.startswith("/") or len(value) > _LONGEST or not value.isprintable():
        raise ValueError(f"{what} is no absolute path: {str(value)[:100]!r}")
    if ".." in value.split("/"):
        raise ValueError(f"{what} has a `..` in it: {value[:100]!r}")
    return posixpath.normpath(value)


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no mapping")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > _MAX_ITEMS:
        raise ValueError(f"{what} is no list of at most {_MAX_ITEMS}")
    return value
