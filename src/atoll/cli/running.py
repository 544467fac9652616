"""The server of a data directory as other processes see it: the lock that it holds and the file with its address.

DATA_DIR/server.lock   locked for as long as a server runs on this directory
DATA_DIR/server.json   what `RunningServer` holds: written when it is ready, removed when it stops
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from atoll.model.errors import Conflict

LOCK = "server.lock"
RECORD = "server.json"
_KILLED_WITHIN_S = 3.0


@dataclass(frozen=True, slots=True)
class RunningServer:
    """What a ready server publishes of itself. `keys`: `generated` (DATA_DIR/api-key) or `configured` (ATOLL_API_KEYS).

    `domain` is served over TLS (None: no TLS); `ca_bundle` is the file with the authority that its clients must trust.
    """

    pid: int
    url: str
    started_at: str
    keys: str
    domain: str | None = None
    ca_bundle: str | None = None


@contextmanager
def exclusive(data_dir: Path) -> Iterator[None]:
    """Holds the data directory's lock. Raises Conflict when a server runs on it already."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(data_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            _lock(lock, data_dir)
        except BlockingIOError:
            other = _read(data_dir)
            where = f" (pid {other.pid}, {other.url})" if other else ""
            raise Conflict(
                f"a server runs on {data_dir} already{where}", hint="stop it, or choose another --data-dir"
            ) from None
        yield
    finally:
        os.close(lock)


def _lock(lock: int, data_dir: Path) -> None:
    """Waits a little for a killed server, whose processes hold the lock until the kernel has ended them too.

    Raises BlockingIOError.
    """
    deadline = time.monotonic() + _KILLED_WITHIN_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            other = _read(data_dir)
            if (other is not None and _is_alive(other.pid)) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


@contextmanager
def announced(
    data_dir: Path, url: str, keys: str, domain: str | None = None, ca_bundle: str | None = None
) -> Iterator[RunningServer]:
    """Publishes where this server is, for as long as the block runs."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    server = RunningServer(os.getpid(), url, now, keys, domain, ca_bundle)
    record = data_dir / RECORD
    draft = data_dir / f".{RECORD}.{server.pid}"
    draft.write_text(json.dumps(asdict(server)) + "\n")
    draft.replace(record)
    try:
        yield server
    finally:
        record.unlink(missing_ok=True)


def find(data_dir: Path) -> RunningServer | None:
    """The server that runs on `data_dir` and is ready, or None. A record that a killed server left does not count."""
    if not _is_locked(data_dir):
        return None
    return _read(data_dir)


def _is_locked(data_dir: Path) -> bool:
    try:
        lock = os.open(data_dir / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _read(data_dir: Path) -> RunningServer | None:
    try:
        return RunningServer(**json.loads((data_dir / RECORD).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
