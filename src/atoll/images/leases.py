"""Which builds of templates a server's sandboxes may stand on, for the processes that remove builds.

    TEMPLATES_DIR/.in-use/<digest of the data directory>.json    {"data_dir": …, "builds": ["base/builds/…", …]}
    TEMPLATES_DIR/.in-use/lock                                   held while a file changes, and while builds are taken

Several servers may share one directory of templates, and sandboxes outlive their server. So a server writes a build
down before the first sandbox on it, and its file stays while it is stopped. It begins anew at a start that finds no
sandbox alive. A file whose data directory is gone counts for nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

_log = structlog.get_logger("atoll.node")


class Leases:
    """One server's file."""

    def __init__(self, templates_dir: Path, data_dir: Path) -> None:
        self._templates = templates_dir
        self._data_dir = data_dir.absolute()
        digest = hashlib.sha256(os.fsencode(self._data_dir)).hexdigest()[:16]
        self._file = _directory(templates_dir) / f"{digest}.json"
        self._held: set[Path] = set()
        self._written = False

    def hold(self, layers: Collection[Path]) -> bool:
        """From now on these are not taken away. False: one of them has been already."""
        new = set(layers) - self._held
        if new:
            self._change(lambda known: known | new)
            self._held |= new
        return not new or all(layer.exists() for layer in new)

    def begin_anew(self) -> None:
        """There is no sandbox: nothing is held."""
        self._held.clear()
        if self._file.exists():
            self._change(lambda known: set())

    def _change(self, change: Callable[[set[Path]], set[Path]]) -> None:
        try:
            with exclusive(self._templates):
                builds = sorted(str(path.relative_to(self._templates)) for path in change(self._read()))
                draft = self._file.with_suffix(".new")
                draft.write_text(json.dumps({"data_dir": str(self._data_dir), "builds": builds}))
                draft.rename(self._file)
        except OSError as error:
            # Somebody else's templates, only lent to us: who may not write there takes nothing away either.
            if not self._written:
                _log.warning("templates.not_held", directory=str(self._templates), error=str(error))
            self._written = True

    def _read(self) -> set[Path]:
        return {self._templates / build for build in _parse(self._file)[1]}


def held(templates_dir: Path) -> set[Path]:
    """What any server holds. Call it within `exclusive`; what it does not name may go until the block ends."""
    found: set[Path] = set()
    for path in _directory(templates_dir).glob("*.json"):
        data_dir, builds = _parse(path)
        if data_dir is None or data_dir.is_dir():
            found |= {templates_dir / build for build in builds}
        else:
            path.unlink(missing_ok=True)
    return found


@contextmanager
def exclusive(templates_dir: Path) -> Iterator[None]:
    """Held for moments only, by servers and by who takes builds away. Raises OSError."""
    directory = _directory(templates_dir)
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _directory(templates_dir: Path) -> Path:
    return templates_dir / ".in-use"


def _parse(path: Path) -> tuple[Path | None, list[str]]:
    """Of a file that cannot be read nothing is known."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        record = json.loads(path.read_bytes())
        return Path(record["data_dir"]), [str(build) for build in record["builds"]]
    return None, []
