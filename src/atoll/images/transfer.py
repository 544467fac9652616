"""Images on their way between machines, through an object store that both reach.

    images/<image_id>.json     its record, and for each of its parts the blob that holds it
    parts/<digest of path>     which blob holds a part, so that no machine packs again what another has packed
    blobs/<sha256>             a part: an uncompressed `tar` archive with owners, attributes and holes

A part is a layer or what a snapshot keeps of memory. Its path below TEMPLATES_DIR names it: every build and every image
has an id that is used once. A blob's name is the digest of what it holds: it is stored once, and what was fetched is
checked against it before it is unpacked. A part that a machine has already is not fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from atoll.images.layers import IMAGE_ID, ImageLayers
from atoll.images.recipes.build import remove_tree
from atoll.model.errors import NotOffered, PlatformError, TemplateNotFound

_FORMAT = 1
_PIECE = 1 << 20
_KEEP = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls"]


class Objects(Protocol):
    """`atoll.objects.Objects`."""

    def has(self, key: str) -> bool: ...

    def put(self, key: str, source: Path) -> None: ...

    def get(self, key: str, target: Path) -> bool: ...


class ImageTransfer:
    """Of one node. `objects`: None: images stay where they are made. Everything blocks: call it in a thread."""

    def __init__(self, templates_dir: Path, images: ImageLayers, objects: Objects | None) -> None:
        self._templates = templates_dir.absolute()
        self._images = images
        self._objects = objects
        self._sharing, self._fetching = threading.Lock(), threading.Lock()
        """One of each at a time: two at once would pack or fetch the same layers twice."""

    def share(self, image_id: str) -> None:
        """Whatever it stands on is in the store when this returns.

        Raises NotOffered (no store), TemplateNotFound, PlatformError.
        """
        objects = self._store()
        with self._sharing, _failures(f"image {image_id} cannot be shared"):
            if objects.has(_image_key(image_id)):
                return
            record = self._images.record(image_id)
            if record is None:
                raise TemplateNotFound(image_id)
            with self._images.unfinished() as place:
                parts = {path: self._share_part(objects, path, place) for path in _parts(record)}
                draft = place / "image.json"
                draft.write_text(json.dumps({"format": _FORMAT, "record": record, "parts": parts}) + "\n")
                objects.put(_image_key(image_id), draft)

    def fetch(self, image_id: str) -> None:
        """The image is here when this returns. Raises TemplateNotFound (the store has none such), PlatformError."""
        if self._objects is None or not IMAGE_ID.fullmatch(image_id):
            raise TemplateNotFound(image_id)
        with self._fetching, _failures(f"image {image_id} cannot be fetched"):
            if self._images.has(image_id):
                return
            with self._images.unfinished() as place:
                draft = place / "image.json"
                if not self._objects.get(_image_key(image_id), draft):
                    raise TemplateNotFound(image_id)
                found = json.loads(draft.read_bytes())
                if found["format"] != _FORMAT:
                    raise PlatformError(f"image {image_id} was shared by a newer Atoll", hint="upgrade this node")
                for path in _parts(found["record"]):
                    self._fetch_part(self._objects, path, found["parts"][path], place)
                os.sync()  # one that is named is whole, also after a power cut
                self._images.adopt(image_id, found["record"])

    def _store(self) -> Objects:
        if self._objects is None:
            raise NotOffered("this node has no object store", hint="set ATOLL_OBJECTS on it and on the server")
        return self._objects

    def _share_part(self, objects: Objects, path: str, place: Path) -> str:
        """Its blob's name."""
        key, note = part_key(path), place / "part"
        if objects.get(key, note):
            return note.read_text().strip()
        packed = place / "packed"
        digest = _pack(self._templates / path, packed)
        if not objects.has(f"blobs/{digest}"):
            objects.put(f"blobs/{digest}", packed)
        packed.unlink()
        note.write_text(digest + "\n")
        objects.put(key, note)
        return digest

    def _fetch_part(self, objects: Objects, path: str, digest: str, place: Path) -> None:
        target = self._templates / path
        if not target.is_relative_to(self._templates) or ".." in target.parts:
            raise PlatformError(f"the object store names a part {path[:100]!r} that is no layer's")
        if target.exists():
            return
        packed, unpacked = place / "packed", place / "unpacked"
        if not objects.get(f"blobs/{digest}", packed):
            raise PlatformError(f"the object store lacks the blob {digest}")
        if (found := _digest(packed)) != digest:
            raise PlatformError(f"the blob {digest} is damaged: it holds {found}")
        unpacked.mkdir(mode=0o700)
        _tar("--extract", "--same-owner", "--same-permissions", *_KEEP, "--file", str(packed), "-C", str(unpacked))
        packed.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            (unpacked / target.name).rename(target)
        except OSError:
            if not target.exists():  # else another node with these templates has fetched it too
                raise
        remove_tree(unpacked)


def _parts(record: Mapping[str, Any]) -> Sequence[str]:
    """Paths of what an image consists of, below TEMPLATES_DIR."""
    return [*record["layers"], *([record["memory"]] if record.get("memory") else [])]


def _image_key(image_id: str) -> str:
    return f"images/{image_id}.json"


def part_key(path: str) -> str:
    """Where the store notes which blob holds the part at `path` below TEMPLATES_DIR."""
    return f"parts/{hashlib.sha256(path.encode()).hexdigest()}"


def _pack(source: Path, target: Path) -> str:
    """Returns the archive's digest."""
    _tar("--create", "--sparse", "--sort=name", *_KEEP, "--file", str(target), "-C", str(source.parent), source.name)
    return _digest(target)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _tar(*words: str) -> None:
    environ = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(["tar", *words], stdin=subprocess.DEVNULL, capture_output=True, check=False, env=environ)
    if done.returncode != 0:
        raise OSError(f"tar failed: {done.stderr.decode(errors='replace')[-300:]}")


@contextlib.contextmanager
def _failures(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlatformError(f"{what}: {error}") from error
