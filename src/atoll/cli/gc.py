"""`atoll gc`: what dead servers have left on this machine, and what of this data directory nobody needs.

Without `--yes` it only looks. Sandboxes, whatever runs, and records that cannot be read are never touched; nor is
anything of this data directory while a server runs on it, which clears up after itself.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import make_url

from atoll.cli import recover, running
from atoll.config import Settings
from atoll.control.store import Store
from atoll.images.layers import ImageLayers
from atoll.images.recipes.build import remove_tree
from atoll.images.store import TemplateStore
from atoll.isolation import directory
from atoll.isolation.directory import Recorded
from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.isolation.linux.disk import loops
from atoll.isolation.linux.run_dir import RunDir
from atoll.model.sealing import Seal, kept_key
from atoll.server.plan import control_dir, database_url

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
    yield from _devices(settings, begun)
    images = ImageLayers(settings.templates_dir, settings.data_dir)
    for path in images.unfinished_ones():
        yield Rest("an image whose making was cut off", str(path), images.remove_unfinished)
    store = TemplateStore(settings.templates_dir, holder=settings.data_dir)
    for path in store.unused_builds():
        yield Rest("a build that a newer one has superseded", str(path), store.remove_unused_builds)
    yield from _that_nothing_names(settings, images, begun)


def _devices(settings: Settings, begun: list[Path]) -> Iterator[Rest]:
    """On files of this data directory that are no sandbox's and no volume's. A file without a name may be that of any
    sandbox that there is, and on a layer of a template any may stand."""
    data_dir = settings.data_dir.absolute()
    kept = [data_dir / "volumes", *(path.absolute() for path in begun)]
    for device, shown in sorted(loops.shown().items()):
        file = Path(shown.removesuffix(loops.DELETED))
        if not file.is_relative_to(data_dir) or any(file.is_relative_to(path) for path in kept):
            continue
        may_be_any = shown.endswith(loops.DELETED) or file.is_relative_to(settings.templates_dir)
        if not may_be_any or not begun:
            yield Rest("a loop device without a sandbox", f"/dev/{device} ({shown})", partial(loops.let_go, device))


def _that_nothing_names(settings: Settings, images: ImageLayers, begun: list[Path]) -> Iterator[Rest]:
    """Images, and records of images that are gone. Nothing, unless the database fits what is here (see `recover`)."""
    url, key = make_url(database_url(settings)), settings.data_dir / "secret-key"
    if (
        settings.nodes
        or settings.cluster
        or not key.exists()
        or (url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists())
    ):
        return  # images may be on other nodes; or there is no database
    seal = Seal(kept_key(key))
    there = [directory.read(path, seal.open_spec) for path in begun]
    in_use = {layer for one in there if isinstance(one, Recorded) for layer in one.layers}
    named = asyncio.run(_named(settings, seal))
    if named is None or not all(isinstance(one, Recorded) and one.layers for one in there):
        return
    by_builds, by_steps = named
    unneeded = images.unneeded(by_builds, in_use)
    for path in unneeded:
        yield Rest("an image that nothing names", str(path), partial(images.keep, by_builds, in_use))
    for image_id in sorted(one for one in by_steps if not images.has(one)):
        yield Rest("a record of an image that is gone", image_id, partial(_forget, settings, seal, image_id))


async def _named(settings: Settings, seal: Seal) -> tuple[set[str], set[str]] | None:
    """The images that builds name, and those that steps and imports remember; None: the database does not fit, or
    there are other nodes."""
    async with Store(database_url(settings), seal) as store:
        mark = control_dir(settings.data_dir) / "state-mark"
        found = await recover.look(settings.data_dir, store, mark, seal)
        if any(line.needs_yes for line in found.lines) or any(one.address for one in await store.nodes.all()):
            return None
        builds = await store.templates.all_builds()
        return {image for build in builds for image in build.images}, await store.layers.images()


def _forget(settings: Settings, seal: Seal, image_id: str) -> None:
    async def work() -> None:
        async with Store(database_url(settings), seal) as store:
            await store.layers.forget([image_id])

    asyncio.run(work())


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
