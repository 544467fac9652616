"""A memory image: what `runsc checkpoint` wrote, and beside it what it takes to restore it.

    <sandbox>/memory/  or  <snapshot>/memory/
        checkpoint.img, pages.img, pages_meta.img      runsc's own
        image.json                                     written last: without it there is no image

An image is for the release of runsc that wrote it, for the very files that the guest ran on, and for its platform;
with anything else it is refused before anything is started.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.model.durable import sync
from atoll.model.errors import MemoryLost

MEMORY = "memory"
USED = "memory.used"
"""What an image is called from the moment at which programs may go on from it: the disk is another's then."""

_FACTS = "image.json"
_VERSION = 1
_HINT = 'connect with on_resume="reboot" starts it anew on its disk'


@dataclass(frozen=True, slots=True)
class Engine:
    """By what a sandbox runs, and alone can be restored."""

    runsc: str
    """Its release, in full."""
    platform: str
    runtime: str
    """The name of the directory that the guest runs on: a digest of its files."""


@dataclass(frozen=True, slots=True)
class Image:
    """One that is complete."""

    place: Path
    engine: Engine


def write(place: Path, engine: Engine, *, durable: bool = True) -> None:
    """Declares what lies in `place` to be an image, which with `durable` stays when the machine goes down.

    Raises OSError.
    """
    files = sorted(path for path in place.iterdir() if path.name != _FACTS)
    for path in files if durable else ():
        sync(path)
    facts = {
        "version": _VERSION,
        "files": {path.name: path.stat().st_size for path in files},
        "engine": {"runsc": engine.runsc, "platform": engine.platform, "runtime": engine.runtime},
    }
    draft = place / f"{_FACTS}.new"
    draft.write_text(json.dumps(facts))
    if durable:
        sync(draft)
    draft.rename(place / _FACTS)
    if durable:
        sync(place)
        sync(place.parent)


def is_there(place: Path) -> bool:
    """Whether there is a complete image, for whatever engine."""
    return (place / _FACTS).is_file()


def find(place: Path, current: Engine, runtimes: Path) -> Image:
    """The image, checked. `runtimes`: where the guest's runtimes are. Raises MemoryLost with the reason."""
    try:
        facts = json.loads((place / _FACTS).read_bytes())
        if facts["version"] != _VERSION:
            raise MemoryLost(f"the memory image was written by another Atoll (version {facts['version']})", hint=_HINT)
        engine = Engine(**facts["engine"])
        sizes = {name: (place / os.path.basename(name)).stat().st_size for name in facts["files"]}
    except FileNotFoundError as error:
        raise MemoryLost(f"there is no whole memory image: {error}", hint=_HINT) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MemoryLost(f"the memory image is damaged: {error}", hint=_HINT) from error
    if sizes != facts["files"]:
        raise MemoryLost("the memory image is damaged: a file has another size than was written", hint=_HINT)
    if (engine.runsc, engine.platform) != (current.runsc, current.platform):
        raise MemoryLost(
            f"the memory image is of runsc {engine.runsc} ({engine.platform}), which cannot be read by "
            f"{current.runsc} ({current.platform})",
            hint=_HINT,
        )
    if not (runtimes / os.path.basename(engine.runtime)).is_dir():
        raise MemoryLost("the files that its guest ran on are no more", hint=_HINT)
    return Image(place, engine)


def remove(state_dir: Path) -> None:
    """Any image of a sandbox, also half of one. Idempotent."""
    for name in (MEMORY, USED):
        if (state_dir / name).exists():
            shutil.rmtree(state_dir / name, ignore_errors=True)


def engine_of(record: Mapping[str, Any]) -> Engine | None:
    """From a sandbox's record; None for one of an Atoll that could save none."""
    found = record.get("engine")
    return Engine(**found) if isinstance(found, dict) else None
