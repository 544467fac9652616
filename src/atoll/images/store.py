"""The templates on a node's disk: which are there, and building a built-in one when it is missing.

    TEMPLATES_DIR/
      <template_id>/template.json        the build in use: facts and its layers, top first, relative to TEMPLATES_DIR
      <template_id>/builds/<build_id>/   one layer; never changed once it is here
      .building/<template_id>-…/         a build under way (or the rest of one that was cut off)
      .locks/<template_id>               held while building: two processes that need the same template build it once
      .logs/<template_id>-<build_id>.log
      .in-use/                           which builds the servers of this machine hold, see `leases`

A build is made in `.building`, renamed into `builds`, and only then named by an atomically replaced template.json; so a
half-built one is never used, and a newer build never pulls the floor from under running sandboxes.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from atoll.images import leases
from atoll.images.layers import ImageLayers
from atoll.images.recipes.build import Workplace, build_layer, remove_tree
from atoll.images.recipes.builtin import RECIPES, recipe_named
from atoll.images.recipes.recipe import OnProgress, Progress, Recipe, revision
from atoll.images.transfer import ImageTransfer, Objects
from atoll.model import durable
from atoll.model.errors import BuildFailed, TemplateNotFound
from atoll.model.sandbox import Limits
from atoll.model.template import Template

FORMAT = 1
_LOCK_POLL_S = 0.25

Builder = Callable[[Recipe, tuple[Path, ...], Workplace, OnProgress], None]


def _silent(_: Progress) -> None:
    """Nobody watches."""


class TemplateStore:
    """The templates below one directory. Safe to use from several processes at once.

    `holder`: the data directory of the server whose sandboxes will stand on them; see `leases`.
    """

    def __init__(
        self,
        templates_dir: Path,
        recipes: Mapping[str, Recipe] = RECIPES,
        *,
        holder: Path | None = None,
        objects: Objects | None = None,
        build: Builder = build_layer,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._dir = templates_dir.absolute()
        self.images = ImageLayers(self._dir, holder)
        self.transfer = ImageTransfer(self._dir, self.images, objects)
        self._leases = leases.Leases(self._dir, holder) if holder is not None else None
        self._recipes = recipes
        self._build = build
        self._now = now

    def list_templates(self) -> list[Template]:
        """Every usable template, by id. One with a damaged record or a missing layer is left out."""
        if not self._dir.is_dir():
            return []
        found = (self._read(path.name) for path in sorted(self._dir.iterdir()) if not path.name.startswith("."))
        return [template for template in found if template is not None]

    def find_template(self, name: str) -> Template:
        """By id, then by name. Raises TemplateNotFound."""
        templates = self.list_templates()
        for template in templates:
            if template.template_id == name:
                return template
        for template in templates:
            if name in template.names:
                return template
        known = {t.template_id for t in templates} | set(self._recipes)
        raise TemplateNotFound(name, tuple(sorted(known)))

    def is_current(self, name: str) -> bool:
        """True when `ensure_template(name)` would build nothing."""
        recipe = self._recipe(name)
        return self._current(recipe) is not None

    def ensure_template(self, name: str, on_progress: OnProgress = _silent) -> Template:
        """The built-in template `name`, built first (with its parents) if it is missing or its recipe has changed.

        Takes minutes when it builds; call it outside an event loop. Raises TemplateNotFound (no such recipe),
        BuildFailed, BackendUnavailable; nothing half-built is left.
        """
        recipe = self._recipe(name)
        if (ready := self._current(recipe)) is not None:
            return ready
        parent = self.ensure_template(recipe.parent, on_progress) if recipe.parent else None
        with self._building_lock(recipe.name, on_progress):
            if (ready := self._current(recipe)) is not None:
                return ready
            return self._build_now(recipe, parent, on_progress)

    def remove_unused_builds(self) -> int:
        """Removes builds that no template.json names and no server holds (`leases`). Returns how many.

        A template that somebody builds just now is left to them. Raises OSError.
        """
        removed = 0
        for name in sorted(path.parent.name for path in self._dir.glob("*/builds")):
            with self._idle_lock(name) as idle:
                if idle:
                    taken = self._take_unused(name)
                    removed += len(taken)
                    for build in taken:
                        remove_tree(build)
        return removed

    def unused_builds(self) -> list[Path]:
        """What `remove_unused_builds` would remove. Raises OSError."""
        with leases.exclusive(self._dir):
            return [build for path in sorted(self._dir.glob("*/builds")) for build in self._unused(path.parent.name)]

    def _unused(self, name: str) -> list[Path]:
        kept = {layer for template in self.list_templates() for layer in template.layers}
        if self._read(name) is None:  # a record that cannot be read may name any of them
            return []
        kept |= leases.held(self._dir) | self.images.layers_in_use()
        return [build for build in (self._dir / name / "builds").iterdir() if build not in kept]

    def _take_unused(self, name: str) -> list[Path]:
        """Moves them to where the rests of builds are removed from: what a crash leaves of them goes with those."""
        taken = []
        with leases.exclusive(self._dir):
            for build in self._unused(name):
                aside = self._dir / ".building" / f"{name}-{build.name}"
                aside.parent.mkdir(exist_ok=True)
                build.rename(aside)
                taken.append(aside)
        return taken

    def hold(self, layers: Collection[Path]) -> bool:
        """See `Templates.hold`."""
        return self._leases is None or self._leases.hold(layers)

    def hold_nothing(self) -> None:
        """See `Templates.hold_nothing`."""
        if self._leases is not None:
            self._leases.begin_anew()

    # ------------------------------------------------------------------------------------------------ building

    def _recipe(self, name: str) -> Recipe:
        return recipe_named(name, self._recipes)

    def _revision(self, recipe: Recipe) -> str:
        return revision(recipe, self._revision(self._recipe(recipe.parent)) if recipe.parent else "")

    def _current(self, recipe: Recipe) -> Template | None:
        record = self._record(recipe.name)
        if record is None or record.get("recipe_revision") != self._revision(recipe):
            return None
        return self._read(recipe.name)

    def _build_now(self, recipe: Recipe, parent: Template | None, on_progress: OnProgress) -> Template:
        build_id = secrets.token_hex(8)
        work = self._dir / ".building" / f"{recipe.name}-{build_id}"
        log = self._dir / ".logs" / f"{recipe.name}-{build_id}.log"
        for folder in (work, log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        place = Workplace(layer=work / "layer", scratch=work / "scratch", log=log)
        below = parent.layers if parent else ()
        try:
            self._build(recipe, below, place, on_progress)
            final = self._dir / recipe.name / "builds" / build_id
            final.parent.mkdir(parents=True, exist_ok=True)
            place.layer.rename(final)
        except OSError as error:
            raise BuildFailed(f"building {recipe.name!r} failed: {error}", hint=f"the whole log: {log}") from error
        finally:
            remove_tree(work)
        self._write(recipe, build_id, (final, *below))
        on_progress(Progress(recipe.name, "done", 1.0, f"{recipe.name} is ready"))
        return self.find_template(recipe.name)

    @contextmanager
    def _building_lock(self, name: str, on_progress: OnProgress) -> Iterator[None]:
        locks = self._dir / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / name).open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    on_progress(Progress(name, "wait", 0.0, f"another process is building {name}"))
                    time.sleep(_LOCK_POLL_S)
            self._remove_leftovers(name)
            yield

    @contextmanager
    def _idle_lock(self, name: str) -> Iterator[bool]:
        """The lock without waiting for it: whether nobody builds `name`."""
        locks = self._dir / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / name).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                self._remove_leftovers(name)
                yield True

    def _remove_leftovers(self, name: str) -> None:
        """What a build of `name` left that was cut off. The caller holds the lock, so nobody is at it."""
        for path in (self._dir / ".building").glob(f"{name}-" + "[0-9a-f]" * 16):
            remove_tree(path)

    # ------------------------------------------------------------------------------------------------ records

    def _record(self, template_id: str) -> dict[str, Any] | None:
        try:
            record = json.loads((self._dir / template_id / "template.json").read_bytes())
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) and record.get("format") == FORMAT else None

    def _read(self, template_id: str) -> Template | None:
        record = self._record(template_id)
        if record is None:
            return None
        try:
            template = Template(
                template_id=template_id,
                names=tuple(record["names"]),
                build_id=record["build_id"],
                layers=tuple(self._dir / layer for layer in record["layers"]),
                limits=Limits(**record["limits"]),
                created_at=datetime.fromisoformat(record["created_at"]),
                env_vars=MappingProxyType(dict(record["env_vars"])),
                default_user=record["default_user"],
                default_workdir=record["default_workdir"],
                start_cmd=record["start_cmd"],
                interpreter=record["interpreter"],
                tier=record.get("tier"),
                no_new_privileges=record.get("no_new_privileges", False) is True,
                gpu=record.get("gpu"),
            )
        except (KeyError, TypeError, ValueError):
            return None
        return template if template.layers and all(layer.is_dir() for layer in template.layers) else None

    def _write(self, recipe: Recipe, build_id: str, layers: tuple[Path, ...]) -> None:
        limits = recipe.limits
        record = {
            "format": FORMAT,
            "build_id": build_id,
            "names": list(recipe.names),
            "layers": [str(layer.relative_to(self._dir)) for layer in layers],
            "limits": {name: getattr(limits, name) for name in ("cpu_count", "memory_mib", "disk_mib", "pids")},
            "created_at": self._now().isoformat(),
            "env_vars": dict(recipe.env_vars),
            "default_user": "user",
            "default_workdir": None,
            "start_cmd": None,
            "interpreter": recipe.interpreter,
            "no_new_privileges": recipe.no_new_privileges,
            "gpu": recipe.gpu,
            "recipe_revision": self._revision(recipe),
        }
        target = self._dir / recipe.name / "template.json"
        durable.write(target, f"{json.dumps(record, indent=2)}\n".encode(), mode=0o644)
