"""`atoll gc`: what dead servers have left on this machine, and what of this data directory nobody needs.

Without `--yes` it only looks. Sandboxes, whatever runs, and records that cannot be read are never touched; nor is
anything of this data directory while a server runs on it, which clears up after itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from atoll.cli import running
from atoll.config import Settings
from atoll.images.layers import ImageLayers
from atoll.images.recipes.build import remove_tree
from atoll.images.store import TemplateStore
from atoll.isolation import directory
from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.isolation.linux.run_dir import RunDir

IDLE_S = 60.0
"""A group of another server that is empty for so long is none that is just being made."""
TIERS = ("namespaces", "gvisor")


@dataclass(frozen=True, slots=True)
class Rest:
    """Something that can go."""

    kind: str
    name: str
    remove: Callable[[], object]


def collect(settings: Settings, *, yes: bool) -> list[tuple[str, str]]:
    """What can go, as (kind, name); gone, if `yes`. Raises OSError, Conflict."""
    if running.find(settings.data_dir) is not None:
        return _carry_out([*_of_dead_servers(settings)], yes=yes)
    with running.exclusive(settings.data_dir):
        return _carry_out([*_of_dead_servers(settings), *_of_this(settings)], yes=yes)


def _carry_out(rests: list[Rest], *, yes: bool) -> list[tuple[str, str]]:
    for rest in rests if yes else ():
        rest.remove()
    return [(rest.kind, rest.name) for rest in rests]


def own_base(settings: Settings) -> str:
    """The name of the group that this data directory's servers put all their sandboxes into."""
    return RunDir(settings.data_dir / "run" / "any").cgroup_base.partition("/")[0]


def _of_dead_servers(settings: Settings) -> Iterator[Rest]:
    """Groups of other data directories without any process: a server that was killed and never started again."""
    own = own_base(settings)
    for base in sorted({path for point in _hierarchies() for path in point.glob("atoll-*") if path.name != own}):
        if not _processes(base) and _idle_s(base) > IDLE_S:
            yield Rest("groups of a server that is gone", str(base), partial(_remove_groups, base))


def _of_this(settings: Settings) -> Iterator[Rest]:
    place = settings.data_dir / "sandboxes"
    found = sorted(place.iterdir()) if place.is_dir() else []
    begun = [path for path in found if any(_has_content(path / name) for name in directory.FILES)]
    for path in found:
        if path not in begun:
            yield Rest("a sandbox that was never finished", str(path), partial(remove_tree, path))
    for name in ("trash", "ready"):
        folder = settings.data_dir / name
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            yield Rest("a directory that nobody needs", str(path), partial(remove_tree, path))
    if not begun:
        for point in _hierarchies():
            base = point / own_base(settings)
            if base.is_dir() and not _processes(base):
                yield Rest("groups of a server that is gone", str(base), partial(_remove_groups, base))
    images = ImageLayers(settings.templates_dir, settings.data_dir)
    for path in images.unfinished_ones():
        yield Rest("an image whose making was cut off", str(path), images.remove_unfinished)
    store = TemplateStore(settings.templates_dir, holder=settings.data_dir)
    for path in store.unused_builds():
        yield Rest("a build that a newer one has superseded", str(path), store.remove_unused_builds)


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _hierarchies() -> list[Path]:
    groups = Cgroups.probe("atoll-none")
    return sorted({*groups.v1.values(), *([groups.v2] if groups.v2 is not None else [])})


def _processes(base: Path) -> bool:
    for folder, _, _ in os.walk(base):
        try:
            if Path(folder, "cgroup.procs").read_text():
                return True
        except OSError:
            continue
    return False


def _idle_s(base: Path) -> float:
    """Since a group below it was made or removed last."""
    return time.time() - max((os.stat(folder).st_mtime for folder, _, _ in os.walk(base)), default=0.0)


def _remove_groups(base: Path) -> None:
    """The kernel refuses to remove one that has a process."""
    for folder, _, _ in os.walk(base, topdown=False):
        os.rmdir(folder)
