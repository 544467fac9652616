"""Which Jupyter kernels a sandbox has: kernel.json files in Jupyter's folders. Reads, starts nothing.

Format: https://jupyter-client.readthedocs.io/en/stable/kernels.html#kernel-specs. What is read belongs to the sandbox's
user and only ever decides what is started as that user.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from atoll.guest.files.safe_open import read_regular

_MAX_FILE = 256 * 1024
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")

_SYSTEM_FOLDERS = ("/usr/local/share/jupyter/kernels", "/usr/share/jupyter/kernels")

# E2B's language names → Jupyter's kernel names; TypeScript runs on the JavaScript kernel. Others name a kernel
# directly.
_KERNELS = {"python": "python3", "javascript": "javascript", "typescript": "javascript", "r": "ir"}
_SHORT = {"js": "javascript", "ts": "typescript"}


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """One installed kernel."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    interrupted_by_message: bool = False
    """On its control channel; else by SIGINT."""


BASH = KernelSpec("bash", ("/bin/bash", "--noediting", "-i"))
"""The guest's own (`bash.py`), in every template."""


def language_name(asked: str | None) -> str:
    """The language as answers name it: `ts` → `typescript`, None → `python`."""
    name = (asked or "python").lower()
    return _SHORT.get(name, name)


def kernel_name(language: str) -> str:
    """The Jupyter kernel that runs `language`."""
    return _KERNELS.get(language, language)


def folders(home: str) -> tuple[str, ...]:
    """Where kernels are installed, the user's own first."""
    return (os.path.join(home, ".local/share/jupyter/kernels"), *_SYSTEM_FOLDERS)


def find(name: str, where: tuple[str, ...]) -> KernelSpec | None:
    """The kernel called `name`; None if there is none or its file is damaged."""
    if name == BASH.name:
        return BASH
    if not _NAME.fullmatch(name):
        return None
    for folder in where:
        try:
            spec = json.loads(read_regular(os.path.join(folder, name, "kernel.json"), _MAX_FILE))
            argv = tuple(str(word).replace("{resource_dir}", os.path.join(folder, name)) for word in spec["argv"])
            env = {str(key): str(value) for key, value in (spec.get("env") or {}).items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if argv:
            return KernelSpec(name, argv, env, spec.get("interrupt_mode") == "message")
    return None


def installed(where: tuple[str, ...]) -> list[str]:
    """Names of all kernels that can be found."""
    names = {BASH.name}
    for folder in where:
        try:
            names.update(entry for entry in os.listdir(folder) if find(entry, (folder,)) is not None)
        except OSError:
            continue
    return sorted(names)
