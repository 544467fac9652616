"""Runs inside a Python kernel that nobody has asked for anything yet; sent by the guest as a silent cell.

Imports what most first cells import and puts it aside: the import of a cell takes it from there, in milliseconds. Until
then nothing of it is to be seen in `sys.modules`. Standard library only.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from types import ModuleType
from typing import Any

LIBRARIES = ("numpy", "pandas", "matplotlib.pyplot")


def _stamp(package: str) -> tuple[str | None, int] | None:
    """Which file an import of it would run, and when that was written."""
    spec = importlib.machinery.PathFinder.find_spec(package, None)
    if spec is None or spec.origin is None:
        return None
    with contextlib.suppress(OSError):
        return spec.origin, os.stat(spec.origin).st_mtime_ns
    return None


class _Aside(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives all of it back when any of it is imported."""

    def __init__(self, modules: dict[str, ModuleType], stamps: dict[str, tuple[str | None, int] | None]) -> None:
        self.atoll_aside = modules
        self._stamps = stamps
        self._backend = os.environ.get("MPLBACKEND")

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        module = self.atoll_aside.get(name)
        if module is None or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        # But for the one that is asked for: found there it would be loaded anew, by its own loader.
        sys.modules.update({n: m for n, m in self.atoll_aside.items() if n != name and n not in sys.modules})
        self._say_what_is_old()
        return importlib.machinery.ModuleSpec(name, self, loader_state=module.__spec__)

    def create_module(self, spec: Any) -> ModuleType:
        return self.atoll_aside[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state

    def _say_what_is_old(self) -> None:
        if (backend := os.environ.get("MPLBACKEND")) not in (None, self._backend):
            self.atoll_aside["matplotlib"].rcParams["backend"] = backend
        if changed := [name for name, stamp in self._stamps.items() if _stamp(name) != stamp]:
            names = ", ".join(changed)
            print(
                f"[{names}: installed after this kernel had loaded it; restart the context to use it]", file=sys.stderr
            )


def _put_aside() -> None:
    stamps = {name: _stamp(name) for name in (library.partition(".")[0] for library in LIBRARIES)}
    before = set(sys.modules)
    for name in LIBRARIES:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    new = [name for name in sys.modules if name not in before]
    packages = {name for name in (n.partition(".")[0] for n in new) if name not in sys.stdlib_module_names}
    # A package of which something was there before stays whole.
    packages -= {name.partition(".")[0] for name in before}
    modules = {name: sys.modules.pop(name) for name in new if name.partition(".")[0] in packages}
    if modules:
        sys.meta_path.insert(0, _Aside(modules, stamps))


_put_aside()
