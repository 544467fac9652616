"""Chooses the isolation tier of this node and says why. Owns no sandbox.

`auto` tries every installed tier in order of preference and takes the first whose `doctor` finds nothing that fails
and whose `start` works.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from atoll.isolation import registry
from atoll.isolation.base import BackendConfig, IsolationBackend, Verdict
from atoll.model.errors import AtollError, BackendUnavailable

AUTO = "auto"
PREFERENCE = ("gvisor", "namespaces")
"""Strongest wall first; a tier from elsewhere comes after ours."""

NEVER_AUTOMATIC = frozenset({"fake"})
"""No wall at all: only when asked for by name."""

_log = structlog.get_logger("atoll.node")


@dataclass(frozen=True, slots=True)
class ChosenBackend:
    """A started backend, and in words why it is this one."""

    backend: IsolationBackend
    reason: str


def automatic_order(installed: Sequence[str]) -> list[str]:
    """The tiers that `auto` tries, best first."""
    ours = [name for name in PREFERENCE if name in installed]
    return ours + sorted(name for name in installed if name not in PREFERENCE and name not in NEVER_AUTOMATIC)


def may_be_asked_for(tier: str, chosen: str) -> bool:
    """Whether a create call or a template may name `tier` on a server that runs `chosen`: no weaker wall than that."""
    if tier == chosen:
        return True
    return tier in PREFERENCE and chosen in PREFERENCE and PREFERENCE.index(tier) < PREFERENCE.index(chosen)


Load = Callable[[str], registry.BackendFactory]
"""How a tier's factory is found by name: the registry's `load`, or a test's own."""


async def start_backend(
    name: str, run_dir: Path, load: Load = registry.load, common: BackendConfig | None = None
) -> IsolationBackend:
    """Makes and starts the tier of that name with its own directory below `run_dir`; `common`: what all tiers get.

    Raises BackendUnavailable with the findings that failed.
    """
    directory = run_dir / name
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = replace(common, run_dir=directory) if common is not None else BackendConfig(run_dir=directory)
    backend = load(name)(config)
    starting = asyncio.create_task(backend.start()) if backend.starts_beside_doctor else None
    try:
        failed = [finding for finding in await backend.doctor() if finding.verdict is Verdict.FAIL]
    except BaseException:
        await _undo(backend, starting)
        raise
    if failed:
        await _undo(backend, starting)
        raise BackendUnavailable(
            f"isolation tier {name!r} does not work here: "
            + "; ".join(f"{one.subject}: {one.detail}" for one in failed),
            hint="; ".join(one.fix for one in failed if one.fix),
        )
    await (starting or backend.start())
    return backend


async def _undo(backend: IsolationBackend, starting: asyncio.Task[None] | None) -> None:
    """Ends a start whose machine turned out not to be fit; why it was not is what the doctor says."""
    if starting is None:
        return
    await asyncio.wait([starting])
    if not starting.cancelled():
        starting.exception()  # retrieved, so that asyncio does not log it
    await backend.aclose()


async def choose_backend(
    name: str, run_dir: Path, load: Load = registry.load, common: BackendConfig | None = None
) -> ChosenBackend:
    """The tier named `name`, or for `auto` the best that works on this machine. The caller closes the backend.

    Raises BackendUnavailable: the named tier does not work, or none does.
    """
    if name != AUTO:
        return ChosenBackend(await start_backend(name, run_dir, load, common), "asked for by name")
    refused: list[str] = []
    for tier in automatic_order(registry.names()):
        try:
            backend = await start_backend(tier, run_dir, load, common)
        except AtollError as error:
            refused.append(f"{tier}: {error}")
            continue
        reason = "the best that works here" + (f" ({'; '.join(refused)})" if refused else "")
        return ChosenBackend(backend, reason)
    raise BackendUnavailable(
        "no isolation tier works on this machine" + (f": {'; '.join(refused)}" if refused else ""),
        hint="run `atoll doctor`",
    )
