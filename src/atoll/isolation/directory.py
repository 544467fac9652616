"""A sandbox's directory on the host: what it was asked to be and where it is in its life. All else in it is its tier's.

    <data_dir>/sandboxes/<id>/     0700
        spec.json      what was asked for, secrets sealed (`model.sealing`), and the layers that it stands on; complete
                       before the sandbox is RUNNING, and replaced once where it was made ahead of need
        state.json     where it is in its life, and by what its tier finds its process and its cgroup
        …              its disk, its log, its socket, the memory of a paused one where its tier keeps that in files

There is no other record: a server that starts reads these and nothing else. Who forks writes `state.json` before
the sandbox can run (`begin`, CREATING); the node moves it on. ENDED is the absence of the directory.

    missing, half-written     it was never finished: no caller got its id, and it is removed
    PAUSING … RESUMING        `paused` says what is kept, or was to be; from PAUSED on its disk holds all it ever wrote
    of a newer version        refused and left alone, with its processes: an older Atoll does not know what it means
    version 3                 of an earlier Atoll, which kept its tokens and environment in clear
    version 2                 of an earlier Atoll, which could not pause: its layers are not known
    `record.json`             version 1, of an earlier Atoll: read as far as it goes

`version` and `handle.group` keep their meaning in every version. Whatever else changes in either file raises VERSION.

The state is a field of fixed width that is overwritten in place: a single write of ten bytes, which can neither be half
done nor need room on a full disk, and costs a tenth of a new file. Nothing is synced, for a machine that goes down
takes its sandboxes with it; but what is PAUSED survives that, so `settle` syncs.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from atoll.model import durable
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import Limits, PauseMode, SandboxSpec, SandboxState

SPEC = "spec.json"
STATE = "state.json"
LOG = "guest.log"
"""What the sandbox's first process says: of its set-up, and of its own faults."""

VERSION = 4

_RECORD = "record.json"
"""What version 1 had in place of both."""

FILES = (SPEC, STATE, _RECORD)
"""One in which none of these has content was never finished."""

_READ = (2, 3, 4)
"""Versions of these two files that can be read. 2 knows neither layers nor pauses."""

Closed = Callable[[SandboxSpec], Mapping[str, Any]]
"""A spec as it may lie on disk (`Seal.close_spec`)."""

Opened = Callable[[Mapping[str, Any]], SandboxSpec]
"""The inverse. Raises KeyError, TypeError, ValueError for what the other did not make."""

_LONGEST_LOG = 10**9
"""Entries of one guest."""

_HEAD = f'{{"version":{VERSION},"state":'.encode()
_WIDTH = max(len(state.value) for state in SandboxState) + 2
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Paused:
    """What a pause keeps, and the record that `SandboxHandle.pause` returned (while PAUSING: that of the process)."""

    mode: PauseMode
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StateRecord:
    """What `state.json` says. `handle` is the tier's own part (`SandboxHandle.record`), opaque here."""

    state: SandboxState
    tier: str
    handle: Mapping[str, Any]
    network: NetworkPolicy | None = field(default=None, repr=False)
    """What it may reach, where that has been changed since it was made."""
    paused: Paused | None = None
    """Of the last pause. It means something while PAUSING, PAUSED and RESUMING."""
    log_base: int = 0
    """What is added to the numbers of its log's entries: more than any of a guest before this one had."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A directory that this version can read; `version` is the one that wrote it."""

    spec: SandboxSpec
    state: StateRecord
    layers: tuple[Path, ...] = ()
    """What it stands on (`SandboxPaths.lower_dirs`); none: made by an Atoll that did not write that down."""
    version: int = VERSION

    @property
    def network(self) -> NetworkPolicy:
        """What it may reach now."""
        return self.state.network if self.state.network is not None else self.spec.network


@dataclass(frozen=True, slots=True)
class Newer:
    """A directory of a newer version. `group`: the name of its cgroup, "" where it has none."""

    version: int
    group: str


def prepare(directory: Path) -> None:
    """Makes it, with its files still empty. Raises OSError."""
    directory.mkdir(mode=0o700)
    for name in (SPEC, STATE, LOG):
        os.close(os.open(directory / name, _CREATE, 0o600))


def write_spec(
    directory: Path, spec: SandboxSpec, layers: Sequence[Path] = (), closed: Closed = SandboxSpec.as_json
) -> None:
    """Raises OSError."""
    _write(directory / SPEC, _encode_spec(spec, layers, closed))


def rewrite_spec(
    directory: Path, spec: SandboxSpec, layers: Sequence[Path], closed: Closed = SandboxSpec.as_json
) -> None:
    """Another in place of the earlier: all of it or none. Raises OSError."""
    _replace(directory / SPEC, _encode_spec(spec, layers, closed))


def begin(directory: Path, tier: str, handle: Mapping[str, Any]) -> None:
    """The first record of a process that will be the sandbox: CREATING, or still RESUMING. Raises OSError."""
    earlier = _earlier(directory)
    if earlier is not None and earlier.state is SandboxState.RESUMING:
        rewrite(directory, replace(earlier, tier=tier, handle=handle))
    else:
        _write(directory / STATE, _encode(StateRecord(SandboxState.CREATING, tier, handle)))


def move(directory: Path, state: SandboxState) -> None:
    """The next state; everything else stays. Raises OSError, with the earlier state still written."""
    descriptor = os.open(directory / STATE, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, _padded(state), len(_HEAD))
    finally:
        os.close(descriptor)


def rewrite(directory: Path, record: StateRecord) -> None:
    """Another record in place of the earlier: all of it or none. Raises OSError."""
    _replace(directory / STATE, _encode(record))


def _replace(path: Path, body: bytes) -> None:
    draft = path.with_name(f"{path.name}.new")
    try:
        _write(draft, body)
        os.rename(draft, path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def begin_pause(directory: Path, mode: PauseMode) -> None:
    """PAUSING, with what is to be kept. Raises OSError (no room for it), with the earlier still written."""
    found = _known(directory)
    paused = Paused(mode, found.handle)
    rewrite(directory, replace(found, state=SandboxState.PAUSING, paused=paused))


def end_pause(directory: Path, mode: PauseMode, record: Mapping[str, Any]) -> None:
    """PAUSED, found again by `record`. On a full disk the state alone is written, which is enough for `kept`.

    Raises OSError when not even that can be done, or when it is not on the machine's disk.
    """
    found = _known(directory)
    paused = Paused(mode, record)
    try:
        rewrite(directory, replace(found, state=SandboxState.PAUSED, handle=record, paused=paused))
    except OSError:
        move(directory, SandboxState.PAUSED)
    settle(directory)


def begin_boot(directory: Path) -> int:
    """RESUMING by a new guest. Returns its `log_base`. Raises OSError."""
    found = _known(directory)
    log_base = found.log_base + _LONGEST_LOG
    rewrite(directory, replace(found, state=SandboxState.RESUMING, log_base=log_base))
    return log_base


def settle(directory: Path) -> None:
    """What is written in it stays when the machine goes down. Raises OSError."""
    for path in (directory / SPEC, directory / STATE, directory, directory.parent):
        durable.sync(path)


def change_network(
    directory: Path,
    network: NetworkPolicy,
    opened: Opened = SandboxSpec.from_json,
    closed: Closed = SandboxSpec.as_json,
) -> None:
    """What it may reach from now on, for the server that adopts it. Raises OSError."""
    found = read(directory, opened)
    if not isinstance(found, Recorded):
        raise _damaged(directory)
    changed = replace(found.state, network=network)
    if found.version < VERSION:
        upgrade(directory, replace(found, state=changed), closed)
    else:
        rewrite(directory, changed)


def upgrade(directory: Path, recorded: Recorded, closed: Closed = SandboxSpec.as_json) -> None:
    """Writes what an earlier version has written in this one's way. Raises OSError, with the earlier still readable."""
    rewrite_spec(directory, recorded.spec, recorded.layers, closed)
    rewrite(directory, recorded.state)
    (directory / _RECORD).unlink(missing_ok=True)


def read(directory: Path, opened: Opened = SandboxSpec.from_json) -> Recorded | Newer | None:
    """None: it was never finished. Raises OSError for a file that is there and cannot be read."""
    spec, state = _load(directory / SPEC), _load(directory / STATE)
    versions = [body.get("version") for body in (spec, state) if body is not None]
    if newer := [version for version in versions if type(version) is int and version > VERSION]:
        return Newer(max(newer), _group(state or {}))
    if state is None:  # never begun, or not upgraded yet
        return _read_version_1(directory)
    known = [version for version in versions if type(version) is int and version in _READ]
    if spec is None or len(known) != 2:
        return None
    try:
        layers = tuple(Path(layer) for layer in spec.get("layers", ()))
        recorded = Recorded(opened(spec["spec"]), _decode(state), layers, min(known))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return recorded if recorded.spec.sandbox_id == directory.name else None


def read_handle(directory: Path) -> Mapping[str, Any]:
    """The tier's own part of what `begin` wrote; empty where that is not whole. Raises OSError."""
    found = (_load(directory / STATE) or {}).get("handle")
    return found if isinstance(found, dict) else {}


def _encode_spec(spec: SandboxSpec, layers: Sequence[Path], closed: Closed) -> bytes:
    body = {"version": VERSION, "spec": dict(closed(spec)), "layers": [str(layer) for layer in layers]}
    return json.dumps(body).encode()


def _padded(state: SandboxState) -> bytes:
    return f'"{state.value}"'.ljust(_WIDTH).encode()


def _encode(record: StateRecord) -> bytes:
    network = record.network.as_json() if record.network is not None else None
    paused = record.paused
    kept = {"mode": paused.mode.value, "record": dict(paused.record)} if paused is not None else None
    rest = {
        "tier": record.tier,
        "handle": dict(record.handle),
        "network": network,
        "paused": kept,
        "log_base": record.log_base,
    }
    return _HEAD + _padded(record.state) + b"," + json.dumps(rest)[1:].encode()


def _decode(body: Mapping[str, Any]) -> StateRecord:
    network = NetworkPolicy.from_json(body["network"]) if body["network"] is not None else None
    kept = body.get("paused")
    paused = Paused(PauseMode(kept["mode"]), dict(kept["record"])) if kept is not None else None
    log_base = int(body.get("log_base", 0))
    return StateRecord(SandboxState(body["state"]), str(body["tier"]), dict(body["handle"]), network, paused, log_base)


def _known(directory: Path) -> StateRecord:
    if (found := _earlier(directory)) is None:
        raise _damaged(directory)
    return found


def _damaged(directory: Path) -> FileNotFoundError:
    return FileNotFoundError(f"{directory / STATE} is missing or damaged")


def _earlier(directory: Path) -> StateRecord | None:
    """None where nothing whole is written yet."""
    body = _load(directory / STATE)
    try:
        return _decode(body) if body is not None else None
    except (KeyError, TypeError, ValueError):
        return None


def _group(state: Mapping[str, Any]) -> str:
    handle = state.get("handle")
    group = handle.get("group") if isinstance(handle, dict) else None
    return group if isinstance(group, str) else ""


def _read_version_1(directory: Path) -> Recorded | None:
    body = _load(directory / _RECORD)
    if body is None or body.get("version") != 1 or body.get("sandbox_id") != directory.name:
        return None
    try:
        spec = SandboxSpec(
            sandbox_id=body["sandbox_id"],
            template_id=body["template_id"],
            limits=Limits.from_json(body["handle"].get("limits", {})),
            access_token=body["envd_access_token"],
            traffic_access_token=body["traffic_access_token"],
            mask_request_host=body["mask_request_host"],
            network=NetworkPolicy.from_json(body.get("network")),
        )
        return Recorded(spec, StateRecord(SandboxState.RUNNING, str(body["tier"]), dict(body["handle"])), version=1)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _load(path: Path) -> dict[str, Any] | None:
    """None for a file that is missing or not whole: no part of a JSON object that was cut off is one."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, _CREATE, 0o600)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    finally:
        os.close(descriptor)
