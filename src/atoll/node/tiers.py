"""The isolation tiers that run on this node: the chosen one, and others from when they are first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import structlog

from atoll.isolation import registry
from atoll.isolation.base import BackendConfig, Capability, IsolationBackend
from atoll.model.errors import AtollError, BackendUnavailable, NotOffered
from atoll.node.backends import ChosenBackend, Load, choose_backend, may_be_asked_for, start_backend

_LIMITS = {
    "cpu": Capability.LIMITS_CPU,
    "memory": Capability.LIMITS_MEMORY,
    "pids": Capability.LIMITS_PIDS,
    "disk": Capability.LIMITS_DISK,
}

_log = structlog.get_logger("atoll.node")


class Tiers:
    """`open` starts the chosen tier; `aclose` closes every one that was started.

    Args:
        isolation: the name of a tier, or `auto`.
        run_dir: each tier gets a directory below it.
        load: how a tier's factory is found by its name.
        common: what every tier gets (its `run_dir` is set here).
    """

    def __init__(
        self, isolation: str, run_dir: Path, load: Load = registry.load, common: BackendConfig | None = None
    ) -> None:
        self._isolation = isolation
        self._run_dir = run_dir
        self._load = load
        self._common = common
        self._running: dict[str, IsolationBackend] = {}
        self._starting = asyncio.Lock()
        self._closing = False
        self.chosen: ChosenBackend

    async def open(self) -> None:
        """Raises BackendUnavailable: the tier (or for `auto` every tier) does not work here."""
        self.chosen = await choose_backend(self._isolation, self._run_dir, self._load, self._common)
        self._running[self.chosen.backend.name] = self.chosen.backend
        _log.info("node.tier", tier=self.chosen.backend.name, reason=self.chosen.reason)

    def start_no_more(self) -> None:
        """From now on a tier that does not run yet is refused: the node is stopping."""
        self._closing = True

    async def aclose(self) -> None:
        """Closes all; a failure is logged."""
        for backend in self._running.values():
            try:
                await backend.aclose()
            except AtollError as error:
                _log.error("backend.close_failed", tier=backend.name, error=str(error))

    async def for_create(self, tier: str | None) -> IsolationBackend:
        """The tier of a new sandbox; None: the chosen one. Raises NotOffered."""
        chosen = self.chosen.backend.name
        name = tier or chosen
        if not may_be_asked_for(name, chosen):
            raise _not_offered(name, f"it runs {chosen!r}, and no weaker wall may be asked for")
        if (backend := self._running.get(name)) is not None:
            return backend
        try:
            return await self.get(name)
        except BackendUnavailable as error:
            raise _not_offered(name, str(error)) from error

    async def get(self, name: str) -> IsolationBackend:
        """Started if it does not run yet. Raises BackendUnavailable."""
        async with self._starting:
            if name not in self._running:
                if self._closing:
                    raise BackendUnavailable("the server is stopping")
                self._running[name] = await start_backend(name, self._run_dir, self._load, self._common)
            return self._running[name]

    def running(self) -> dict[str, Sequence[str]]:
        """Each tier that runs, and the limits that its sandboxes do not keep."""
        return {name: self.unenforced(name) for name in self._running}

    def unenforced(self, tier: str) -> Sequence[str]:
        """The limits that sandboxes of that tier do not keep; all of them for a tier that does not run."""
        backend = self._running.get(tier)
        kept = backend.capabilities if backend is not None else frozenset()
        return [name for name, capability in _LIMITS.items() if capability not in kept]


def _not_offered(tier: str, why: str) -> NotOffered:
    return NotOffered(f"this server offers no sandbox of the tier {tier[:64]!r}: {why}", hint="see `atoll doctor`")
