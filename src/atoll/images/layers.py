"""Images that sandboxes have made: layers on top of others, by an id that says what they hold. A node's disk.

    TEMPLATES_DIR/.images/<image_id>/image.json    its layers, top first, relative to TEMPLATES_DIR
    TEMPLATES_DIR/.images/<image_id>/parts/        what it adds: a layer (none where it adds nothing), perhaps memory
    TEMPLATES_DIR/.images/<image_id>/folded-…/     a layer that stands for all of its chain, once image.json names it
    TEMPLATES_DIR/.images/<image_id>/unsettled     while the machine's disk need not have all of it
    TEMPLATES_DIR/.building/image-<image_id>-…/    one that is being made, and locked; or the rest of one cut off

Each image belongs to the server (its data directory) that has made it: several may share one TEMPLATES_DIR, and only
its own server knows who needs it. Those of a data directory that is gone belong to nobody.

An image is complete once its directory has its name, and never changes, but that its layers may become one. Who needs
which is control's to say (`keep`).
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from atoll.images import leases
from atoll.images.marks import apply_marks
from atoll.images.recipes.build import remove_tree
from atoll.model import durable
from atoll.model.errors import TemplateNotFound
from atoll.model.seams import NodeImage

FORMAT = 1
IMAGE_ID = re.compile(r"[0-9a-f]{40}")
DIRECTORY = re.compile(r"[a-z]{1,40}")
"""Of layers, in the root directory of the sandbox that has unpacked them."""
KEPT_S = 3600.0
"""How long one that nobody names is kept all the same: a build may be about to use it."""
MAX_LAYERS = 300
"""Layers of one image; overlayfs itself takes 500, and each costs time at every look-up."""

FOLD_ABOVE = 12
"""Layers made by sandboxes: of more the newest image is folded. Kernels before 6.7 take about fifteen in all."""


_PARTS = "parts"
_UNSETTLED = "unsettled"


class Parts(Protocol):
    """What an image adds, below the directory that its maker was given (`isolation.base.Captured`)."""

    @property
    def layer(self) -> Path | None: ...

    @property
    def memory(self) -> Path | None: ...


@dataclass(slots=True)
class Capturing:
    """An image that is being made: `target` is an empty directory to be filled."""

    target: Path
    layer: Path | None = None
    memory: Path | None = None

    def put(self, parts: Parts) -> None:
        """What lies in `target` now."""
        self.layer, self.memory = parts.layer, parts.memory


class ImageLayers:
    """The images below one directory. Safe to use from several processes at once.

    `holder`: the data directory of the server whose images these are.
    """

    def __init__(self, templates_dir: Path, holder: Path | None = None) -> None:
        self._holder = str(holder.absolute()) if holder is not None else ""
        self._templates = templates_dir.absolute()
        self._images = self._templates / ".images"
        self._sizes: dict[tuple[str, int, int], int] = {}

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
    def capturing(
        self, image_id: str, below: Sequence[Path], tier: str, *, durable: bool = True
    ) -> Iterator[Capturing]:
        """The caller fills its `target`, and `put`s what lies there; leaving the block makes it an image on `below`,
        unless an error does.

        What is in `target` is on the machine's disk by then; without `durable` nothing need be before `settle`.
        `tier`: whose sandbox has made it; "": none has, it came from elsewhere. Raises OSError, ValueError (not an id,
        too many layers).
        """
        if not IMAGE_ID.fullmatch(image_id):
            raise ValueError(f"{image_id[:100]!r} is no image's id")
        if len(below) >= MAX_LAYERS:
            raise ValueError(f"an image has at most {MAX_LAYERS} layers")
        with self._work(image_id) as work:
            made = Capturing(work / _PARTS)
            made.target.mkdir(mode=0o700)
            yield made
            self._complete(image_id, work, made, below, tier, durable=durable)

    def chain(self, image_id: str) -> tuple[Sequence[Path], Sequence[Path]] | None:
        """Its layers that sandboxes have made and those below, where they are so many that they are to be folded."""
        layers = self._read(image_id) or ()
        made = list(itertools.takewhile(self._is_foldable, layers))
        return (made, layers[len(made) :]) if len(made) > FOLD_ABOVE and len(made) < len(layers) else None

    def _is_foldable(self, layer: Path) -> bool:
        """An image that came from elsewhere is what chains stand on, as a template is."""
        if not layer.is_relative_to(self._images):
            return False
        return not (self._record(layer.relative_to(self._images).parts[0]) or {}).get("imported")

    @contextmanager
    def folding(self, image_id: str, below: Sequence[Path]) -> Iterator[Capturing]:
        """The caller fills `target` with a layer that stands for the chain above `below`, on the machine's disk.

        Leaving the block makes it the image's, unless an error does. Sandboxes that stand on the chain already
        still do: it goes with the last of them. Raises OSError, ValueError (the image is gone).
        """
        with self._work(image_id) as work:
            made = Capturing(work / _PARTS)
            made.target.mkdir(mode=0o700)
            yield made
            if made.layer is not None:
                with leases.exclusive(self._templates):
                    self._name_folded(image_id, made.target, made.layer.relative_to(made.target), below)

    def _name_folded(self, image_id: str, parts: Path, layer: Path, below: Sequence[Path]) -> None:
        image, record = self._images / image_id, self._record(image_id)
        if record is None:
            raise ValueError(f"the image {image_id} is gone")
        before = [self._templates / one for one in record["layers"]]
        folded = image / f"folded-{secrets.token_hex(4)}"
        parts.rename(folded)
        own = [str(one.relative_to(self._templates)) for one in before if one.is_relative_to(image)]
        record["layers"] = [str(one.relative_to(self._templates)) for one in (folded / layer, *below)]
        record["superseded"] = [*record.get("superseded", []), *own]
        draft = image / "image.json.new"
        draft.write_text(json.dumps(record) + "\n")
        _sync(folded)
        _sync(draft)
        draft.rename(image / "image.json")
        _sync(image)

    @contextmanager
    def unfinished(self) -> Iterator[Path]:
        """An empty directory beside the images; whatever is left in it goes when the block ends. Raises OSError."""
        with self._work(secrets.token_hex(20)) as work:
            yield work

    @contextmanager
    def _work(self, image_id: str) -> Iterator[Path]:
        work = self._templates / ".building" / f"image-{image_id}-{secrets.token_hex(8)}"
        draft = work.with_name(f"new-{work.name}")
        draft.mkdir(parents=True)
        # Held while it is being made, so that the rest of one that was cut off can be recognised.
        held = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            draft.rename(work)
            yield work
        finally:
            os.close(held)
            remove_tree(work)

    def make_of(self, place: Path, directory: str, first: int, image_ids: Sequence[str], below: Sequence[Path]) -> None:
        """Makes images of the directories `first`, `first` + 1, … of `place`/`directory`, each on the one before.

        What they hold is a stranger's: nothing in it is followed. Blocks. Raises OSError, ValueError.
        """
        if not DIRECTORY.fullmatch(directory):
            raise ValueError(f"{directory[:100]!r} is no directory of layers")
        os.sync()  # a copy of many files: one by one would take longer
        for number, image_id in enumerate(image_ids, first):
            source = place / directory / str(number)
            if not all(stat.S_ISDIR(os.lstat(path).st_mode) for path in (source.parent, source)):
                raise ValueError(f"layer {number} is no directory")
            apply_marks(source)
            with self.capturing(image_id, below, "") as made:
                if any(source.iterdir()):
                    made.layer = source.rename(made.target / "layer")
            below = self.find(image_id)

    def settle(self, layers: Collection[Path]) -> None:
        """Those of them that images have made are on the machine's disk when this returns. Raises OSError."""
        for image in {self._images / layer.relative_to(self._images).parts[0] for layer in self._made(layers)}:
            marker = image / _UNSETTLED
            if not marker.exists():
                continue
            for path in image.rglob("*"):
                _sync(path)
            _sync(image)
            _sync(self._images)
            marker.unlink(missing_ok=True)

    def _made(self, layers: Collection[Path]) -> list[Path]:
        return [layer for layer in layers if layer.is_relative_to(self._images)]

    def unfinished_ones(self) -> list[Path]:
        """What is left of images whose making was cut off."""
        return [path for path in (self._templates / ".building").glob("image-*") if _is_cut_off(path)]

    def remove_unfinished(self) -> int:
        """Removes what is left of images whose making was cut off; returns how many. Blocks. Raises OSError."""
        left = self.unfinished_ones()
        for path in left:
            with suppress(FileNotFoundError):  # somebody else removes it too
                remove_tree(path)
        return len(left)

    def listed(self) -> list[NodeImage]:
        """This server's that are complete, by id. Blocks for as long as it takes to look at the files of new ones."""
        found = []
        for path in sorted(self._images.glob("*/image.json")):
            image_id, record = path.parent.name, self._record(path.parent.name)
            if record is None or record.get("data_dir", self._holder) != self._holder:
                continue
            below = {self._templates / one for one in record["layers"]}
            others = {one.relative_to(self._images).parts[0] for one in self._made(below)} - {image_id}
            with suppress(FileNotFoundError):  # it is removed meanwhile
                size, has_memory = self._size(path), bool(record.get("memory"))
                found.append(NodeImage(image_id, size, len(record["layers"]), has_memory, tuple(sorted(others))))
        there = {one.image_id for one in found}
        self._sizes = {key: size for key, size in list(self._sizes.items()) if key[0] in there}
        return found

    def _size(self, record: Path) -> int:
        """Of the directory that it lies in: an image's files change with its record alone."""
        image, status = record.parent, record.stat()
        known = (image.name, status.st_ino, status.st_mtime_ns)
        size = self._sizes.get(known)
        if size is None:
            self._sizes[known] = size = sum(one.lstat().st_blocks * 512 for one in image.rglob("*"))
        return size

    def record(self, image_id: str) -> dict[str, Any] | None:
        """What is kept of an image that is here, for another machine's `adopt`; None: it is not here."""
        return self._record(image_id)

    def adopt(self, image_id: str, record: Mapping[str, Any]) -> None:
        """An image of another machine, whose parts are here by now, is one of this node's. Raises OSError."""
        image = self._images / image_id
        image.mkdir(parents=True, exist_ok=True)
        draft = image / "image.json.new"
        draft.write_text(json.dumps({**record, "data_dir": self._holder}) + "\n")
        _sync(draft)
        draft.rename(image / "image.json")
        _sync(image)

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
            for path, is_needed, needed in list(self._old_ones(image_ids, in_use)):
                if is_needed:
                    if superseded := self._superseded(path.name, needed):
                        doomed += superseded
                        self._sizes = {key: size for key, size in list(self._sizes.items()) if key[0] != path.name}
                    continue
                aside = self._templates / ".building" / f"image-{path.name}-{secrets.token_hex(8)}"
                aside.parent.mkdir(exist_ok=True)
                path.rename(aside)
                doomed.append(aside)
        for path in doomed:
            remove_tree(path)
        self.remove_unfinished()
        return len(doomed)

    def unneeded(self, image_ids: Collection[str], in_use: Collection[Path] = ()) -> list[Path]:
        """The images that `keep` would remove. Raises OSError."""
        with leases.exclusive(self._templates):
            return [path for path, is_needed, _ in self._old_ones(image_ids, in_use) if not is_needed]

    def _old_ones(
        self, image_ids: Collection[str], in_use: Collection[Path]
    ) -> Iterator[tuple[Path, bool, Collection[Path]]]:
        """Those that are not new, whether somebody needs them, and which layers are needed. Another server's that it
        alone may judge are left out."""
        held = leases.held(self._templates)
        kept = set(in_use)
        for image_id in image_ids:
            kept |= set(self._read(image_id) or ())
        for path in list(self._images.glob("*")):
            owner = self._owner(path.name)
            needed = kept if owner == self._holder else kept | held
            if _age_s(path) < KEPT_S:
                continue
            if path.name in image_ids or any(layer.is_relative_to(path) for layer in needed):
                yield path, True, needed
            elif owner == self._holder or not Path(owner).is_dir():
                yield path, False, needed

    def _superseded(self, image_id: str, needed: Collection[Path]) -> list[Path]:
        """Own layers for which a folded one stands now, and that nobody stands on any more, moved aside."""
        aside = []
        for name in (self._record(image_id) or {}).get("superseded", ()):
            layer = self._templates / name
            if layer.exists() and layer not in needed:
                place = self._templates / ".building" / f"image-{image_id}-{secrets.token_hex(8)}"
                place.mkdir(parents=True)
                layer.rename(place / layer.name)
                aside.append(place)
        return aside

    def _owner(self, image_id: str) -> str:
        """The data directory of the server that has made it; of one that cannot be read, this one's."""
        return str((self._record(image_id) or {}).get("data_dir", self._holder))

    def _complete(
        self,
        image_id: str,
        work: Path,
        made: Capturing,
        below: Sequence[Path],
        tier: str,
        *,
        durable: bool,
    ) -> None:
        final = self._images / image_id
        own = [final / made.layer.relative_to(work)] if made.layer is not None else []
        record = {
            "format": FORMAT,
            "data_dir": self._holder,
            "layers": [str(path.relative_to(self._templates)) for path in (*own, *below)],
        }
        if not tier:
            record["imported"] = True
        if made.memory is not None:
            kept = (final / made.memory.relative_to(work)).relative_to(self._templates)
            record |= {"memory": str(kept), "tier": tier}
        (work / "image.json").write_text(json.dumps(record) + "\n")
        if durable:
            for path in (work / "image.json", made.target, work):
                _sync(path)
        else:
            (work / _UNSETTLED).touch()
        self._images.mkdir(exist_ok=True)
        try:
            work.rename(final)
        except OSError:
            if self._read(image_id) is None:  # else somebody else has made the same meanwhile
                raise
        if durable:
            _sync(self._images)

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


def _is_cut_off(work: Path) -> bool:
    """Nobody makes it any more: it got its lock before its name."""
    try:
        descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _sync(path: Path) -> None:
    """Of anything that is no file and no directory there is nothing to write."""
    if not path.is_symlink() and (path.is_file() or path.is_dir()):
        durable.sync(path)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
