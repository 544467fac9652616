"""Run in a fresh interpreter: imports all that the guest needs and prints, as JSON, which files that took.

Not what might be needed but what was loaded: the same rule as in a zygote, which can import nothing later either.
"""

from __future__ import annotations

import ctypes
import encodings
import importlib
import json
import os
import pkgutil
import sys
from typing import Any

BOOT = "atoll.isolation.gvisor.boot"
SUDO = "atoll.isolation.gvisor.sudo"
_BY_NAME = (
    "unicodedata", "stringprep", "traceback", "linecache", "tokenize", "zipimport", "importlib.machinery",
    "importlib.util", "inspect", "warnings", "runpy", "pkgutil", "locale", "asyncio.unix_events", "ctypes.util",
)  # fmt: skip
"""Modules that code asks for at run time, when there is a zip and nothing else to load them from."""


class _Info(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]


def _libraries() -> list[str]:
    """Paths of the shared objects in this process, under the names by which the loader was asked for them."""
    found: list[str] = []
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Info), ctypes.c_size_t, ctypes.c_void_p)

    def note(info: Any, size: int, data: object) -> int:
        if name := info.contents.name:
            found.append(os.fsdecode(name))
        return 0

    ctypes.CDLL(None).dl_iterate_phdr(callback(note), None)
    return [path for path in found if path.startswith("/")]


def main(entry: str) -> None:
    """`entry` is the import path of the guest (module:function)."""
    for name in (BOOT, SUDO, entry.partition(":")[0], *_BY_NAME):
        importlib.import_module(name)
    for module in pkgutil.iter_modules(encodings.__path__):
        if module.name not in ("mbcs", "oem"):
            importlib.import_module(f"encodings.{module.name}")
    modules = {
        name: path
        for name, module in list(sys.modules.items())
        if name != "__main__" and (path := getattr(module, "__file__", None)) is not None
    }
    print(
        json.dumps(
            {
                "executable": os.path.realpath(sys.executable),
                "version": list(sys.version_info[:2]),
                "modules": modules,
                "libraries": _libraries(),
            }
        )
    )
