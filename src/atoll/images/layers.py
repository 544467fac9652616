"""Images that sandboxes have made: layers on top of others, by an id that says what they hold. A node's disk.

    TEMPLATES_DIR/.images/<image_id>/image.json    its layers, top first, relative to TEMPLATES_DIR
    TEMPLATES_DIR/.images/<image_id>/layer/        what it adds; missing where it adds nothing
    TEMPLATES_DIR/.images/<image_id>/parts/        or what a snapshot has kept: a layer, and perhaps memory
    TEMPLATES_DIR/.building/image-<image_id>-…/    one that is being made, or the rest of one that was cut off

Each image belongs to the server (its data directory) that has made it: several may share one TEMPLATES_DIR, and only
its own server knows who needs it. Those of a data directory that is gone belong to nobody.

An image is complete once its directory has its name, and never changes. Who needs which is control's to say (`keep`).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.images import leases
from atoll.images.marks import apply_marks
from atoll.images.recipes.build import remove_tree
from atoll.model.errors import TemplateNotFound

FORMAT = 1
IMAGE_ID = re.compile(r"[0-9a-f]{40}")
DIRECTORY = re.compile(r"[a-z]{1,40}")
"""Of layers, in the root directory of the sandbox that has unpacked them."""
KEPT_S = 3600.0
"""How long one that nobody names is kept all the same: a build may be about to use it."""
MAX_LAYERS = 300
"""Layers of one image; overlayfs itself takes 500, and each costs time at every look-up."""

_LEFTOVER_AFTER_S = 86400.0


@dataclass(slots=True)
class Capturing:
    """A snapshot that is being taken."""

    parts: Path
    layer: Path | None = None
    memory: Path | None = None


class ImageLayers:
    """The images below one directory. Safe to use from several processes at once.

    `holder`: the data directory of the server whose images these are.
    """

    def __init__(self, templates_dir: Path, holder: Path | None = None) -> None:
        self._holder = str(holder.absolute()) if holder is not None else ""
        self._templates = templates_dir.absolute()
        self._images = self._templates / ".images"

    def find(self, image_id: str) -> tuple[Path, ...]:
        """Its layers, top first. Raises TemplateNotFound."""
        layers = self._read(image_id) if IMAGE_ID.fullmatch(image_id) else None
        if layers is None or not all(layer.exists() for layer in layers):
            raise TemplateNotFound(image_id)
        return layers

    def memory(self, image_id: str) -> tuple[Path, str] | None:
        """What it keeps of what ran, and the tier that can make it go on; None: it is of files alone."""
        record = self._record(image_id) or {}
        if not record.get("memory"):
            return None
        return self._templates / record["memory"], str(record["tier"])

    def has(self, image_id: str) -> bool:
        """Whether `find` would find it."""
        try:
            self.find(image_id)
        except TemplateNotFound:
            return False
        return True

    @contextmanager
    def making(self, image_id: str, below: Sequence[Path]) -> Iterator[Path]:
        """An empty directory to be filled; leaving the block makes it an image on `below`, unless an error does.

        Raises OSError, ValueError (not an id, too many layers).
        """
        with self._work(image_id, below) as work:
            layer = work / "layer"
            layer.mkdir(mode=0o755)
            yield layer
            own = [layer] if any(layer.iterdir()) else []
            if not own:
                layer.rmdir()
            self._complete(image_id, work, own, below)

    @contextmanager
    def capturing(self, image_id: str, below: Sequence[Path], tier: str) -> Iterator[Capturing]:
        """The same for a snapshot: the caller fills its `parts`, and sets `layer` and `memory` to what lies there.

        Raises as `making`.
        """
        with self._work(image_id, below) as work:
            made = Capturing(work / "parts")
            made.parts.mkdir(mode=0o700)
            yield made
            if made.layer is None:
                raise ValueError("a snapshot without a layer")
            self._complete(image_id, work, [made.layer], below, made.memory, tier)

    @contextmanager
    def unfinished(self) -> Iterator[Path]:
        """An empty directory beside the images; whatever is left in it goes when the block ends. Raises OSError."""
        work = self._templates / ".building" / f"image-{secrets.token_hex(20)}-{secrets.token_hex(8)}"
        work.mkdir(parents=True)
        try:
            yield work
        finally:
            remove_tree(work)

    def make_of(self, place: Path, directory: str, first: int, image_ids: Sequence[str], below: Sequence[Path]) -> None:
        """Makes images of the directories `first`, `first` + 1, … of `place`/`directory`, each on the one before.

        What they hold is a stranger's: nothing in it is followed. Blocks. Raises OSError, ValueError.
        """
        if not DIRECTORY.fullmatch(directory):
            raise ValueError(f"{directory[:100]!r} is no directory of layers")
        for number, image_id in enumerate(image_ids, first):
            source = place / directory / str(number)
            if not all(stat.S_ISDIR(os.lstat(path).st_mode) for path in (source.parent, source)):
                raise ValueError(f"layer {number} is no directory")
            apply_marks(source)
            with self.making(image_id, below) as layer:
                source.rename(layer)
            below = self.find(image_id)

    @contextmanager
    def _work(self, image_id: str, below: Sequence[Path]) -> Iterator[Path]:
        if not IMAGE_ID.fullmatch(image_id):
            raise ValueError(f"{image_id[:100]!r} is no image's id")
        if len(below) >= MAX_LAYERS:
            raise ValueError(f"an image has at most {MAX_LAYERS} layers")
        work = self._templates / ".building" / f"image-{image_id}-{secrets.token_hex(8)}"
        work.mkdir(parents=True)
        try:
            yield work
        finally:
            remove_tree(work)

    def layers_in_use(self) -> set[Path]:
        """Every layer that an image stands on."""
        found: set[Path] = set()
        for path in self._images.glob("*/image.json"):
            found |= set(self._read(path.parent.name) or ())
        return found

    def keep(self, image_ids: Collection[str], in_use: Collection[Path] = ()) -> int:
        """Removes those of this server that are not new, and that neither `image_ids`, nor an image among them, nor a
        sandbox that stands on `in_use` needs; of a server that is gone, those that no other one's sandboxes need.

        Returns how many were removed. Blocks. Raises OSError.
        """
        doomed = []
        with leases.exclusive(self._templates):
            held = leases.held(self._templates)
            kept = set(in_use)
            for image_id in image_ids:
                kept |= set(self._read(image_id) or ())
            for path in self._images.glob("*"):
                own = {layer for layer in self._read(path.name) or () if layer.is_relative_to(path)}
                owner = self._owner(path.name)
                needed = kept if owner == self._holder else kept | held
                if path.name in image_ids or own & needed or _age_s(path) < KEPT_S:
                    continue
                if owner != self._holder and Path(owner).is_dir():
                    continue
                aside = self._templates / ".building" / f"image-{path.name}-{secrets.token_hex(8)}"
                aside.parent.mkdir(exist_ok=True)
                path.rename(aside)
                doomed.append(aside)
        unfinished = (self._templates / ".building").glob("image-*")
        for path in (*doomed, *(path for path in unfinished if _age_s(path) > _LEFTOVER_AFTER_S)):
            remove_tree(path)
        return len(doomed)

    def _owner(self, image_id: str) -> str:
        """The data directory of the server that has made it; of one that cannot be read, this one's."""
        return str((self._record(image_id) or {}).get("data_dir", self._holder))

    def _complete(
        self,
        image_id: str,
        work: Path,
        own: Sequence[Path],
        below: Sequence[Path],
        memory: Path | None = None,
        tier: str = "",
    ) -> None:
        final = self._images / image_id
        own = [final / layer.relative_to(work) for layer in own]
        record = {
            "format": FORMAT,
            "data_dir": self._holder,
            "layers": [str(path.relative_to(self._templates)) for path in (*own, *below)],
        }
        if memory is not None:
            kept = (final / memory.relative_to(work)).relative_to(self._templates)
            record |= {"memory": str(kept), "tier": tier}
        target = work / "image.json"
        with target.open("w") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._images.mkdir(exist_ok=True)
        try:
            work.rename(final)
        except OSError:
            if self._read(image_id) is None:  # else somebody else has made the same meanwhile
                raise

    def _record(self, image_id: str) -> dict[str, Any] | None:
        try:
            record: Any = json.loads((self._images / image_id / "image.json").read_bytes())
            return record if record["format"] == FORMAT else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _read(self, image_id: str) -> tuple[Path, ...] | None:
        record = self._record(image_id)
        try:
            return tuple(self._templates / layer for layer in record["layers"]) if record is not None else None
        except (KeyError, TypeError):
            return None


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
