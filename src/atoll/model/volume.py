"""Volumes: storage of a team that outlives sandboxes and is mounted into several at once. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from atoll.model.errors import InvalidRequest

VOLUME_PORT = 49982
"""By this number the edge and a node speak of the program that serves a volume's contents; nothing listens there."""

MAX_MOUNTS = 8
"""Volumes of one sandbox."""
MAX_NAME = 128
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_PATH = 1024
_TAKEN = ("/proc", "/sys", "/dev", "/.atoll")
"""Where the platform has its own file systems."""
_WHOLE = ("/bin", "/boot", "/etc", "/home", "/lib", "/lib64", "/opt", "/root", "/run", "/sbin", "/tmp", "/usr", "/var")
"""What a sandbox needs: a volume may lie below, not on top."""


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """A volume of the sandbox: `name` as its team calls it, `path` where it lies inside."""

    volume_id: str
    name: str
    path: str

    def as_json(self) -> dict[str, str]:
        """The inverse of `from_json`."""
        return {"volume_id": self.volume_id, "name": self.name, "path": self.path}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> VolumeMount:
        """Raises TypeError, KeyError for what `as_json` did not make."""
        return VolumeMount(**value)


@dataclass(frozen=True, slots=True)
class DeviceMount:
    """A volume on the node that has it: the block device of its file system, and where it lies inside."""

    device: str
    path: str


def check_volume_name(name: str) -> str:
    """The name. Raises InvalidRequest."""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise InvalidRequest(
            f"Invalid volume name {name[:MAX_NAME]!r}",
            hint=f"letters, digits, `-` and `_`, at most {MAX_NAME} of them",
        )
    return name


def is_volume_id(text: str) -> bool:
    """A UUID, as `str(uuid)` writes it."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def check_paths(paths: Sequence[str]) -> list[str]:
    """Where volumes are to lie inside a sandbox, without `//` and such. Raises InvalidRequest."""
    if len(paths) > MAX_MOUNTS:
        raise InvalidRequest(f"volumeMounts: {len(paths)} are more than {MAX_MOUNTS}, the most of one sandbox")
    clean = [_check_path(path) for path in paths]
    for one in clean:
        for other in clean:
            if other.startswith(f"{one}/"):
                raise InvalidRequest(f"volumeMounts: {other!r} lies within {one!r}", hint="put them beside each other")
    if len(set(clean)) < len(clean):
        raise InvalidRequest("volumeMounts: two volumes at the same path")
    return clean


def _check_path(path: str) -> str:
    shown = repr(path[:100])
    if not path.startswith("/") or len(path) > _LONGEST_PATH or not path.isprintable():
        raise InvalidRequest(f"volumeMounts: {shown} is no absolute path")
    if ".." in path.split("/"):
        raise InvalidRequest(f"volumeMounts: {shown} has a `..` in it")
    clean = "/" + posixpath.normpath(path).strip("/")
    if clean == "/" or clean in _WHOLE or any(clean == one or clean.startswith(f"{one}/") for one in _TAKEN):
        raise InvalidRequest(f"volumeMounts: no volume can lie at {shown}", hint="take a directory such as /data")
    return clean
