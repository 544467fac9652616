"""The node's view of its templates: look-ups on the way to a sandbox, and builds of those that are missing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

from atoll.images.builds import TemplateBuilds
from atoll.images.layers import ImageLayers
from atoll.images.lookup import Templates
from atoll.model.errors import TemplateNotFound
from atoll.model.sandbox import SandboxSpec
from atoll.model.template import Template

_FRESH_S = 2.0

_log = structlog.get_logger("atoll.node")


class Base(NamedTuple):
    """Layers, top first; the tier that they need; what runs in a snapshot and goes on, for that tier."""

    layers: tuple[Path, ...]
    tier: str | None
    memory: Path | None = None


class NodeTemplates:
    """`store`: what a create may name. `builds` makes built-in ones that are missing; None: nothing does."""

    def __init__(self, store: Templates, builds: TemplateBuilds | None = None) -> None:
        self._store = store
        self._builds = builds
        self._recent: dict[str, tuple[float, Template]] = {}
        # Who waits for another's transfer takes no thread meanwhile: the node has few for all of its files.
        self._sharing, self._fetching = asyncio.Lock(), asyncio.Lock()

    def find_and_hold(self, name: str) -> Template:
        """The template of that name; its layers stay from now on. Raises TemplateNotFound.

        A look-up reads files, so an answer up to _FRESH_S old is used again. Layers never change.
        """
        now = asyncio.get_running_loop().time()
        known = self._recent.get(name)
        if known is not None and now - known[0] < _FRESH_S:
            return known[1]
        template = self._store.find_template(name)
        if not self._store.hold(template.layers):
            template = self._store.find_template(name)  # superseded and removed between the look-up and the hold
            self._store.hold(template.layers)
        fresh = {key: entry for key, entry in self._recent.items() if now - entry[0] < _FRESH_S}
        self._recent = fresh | {name: (now, template)}
        return template

    @property
    def images(self) -> ImageLayers:
        """Those that sandboxes have made."""
        return self._store.images

    def base_of(self, spec: SandboxSpec) -> Base:
        """What it will stand on, held from now on. Raises TemplateNotFound."""
        if spec.image_id is None:
            template = self.find_and_hold(spec.template_id)
            return Base(template.layers, template.tier)
        layers = self.images.find(spec.image_id)
        if not self._store.hold(layers):
            raise TemplateNotFound(spec.template_id)
        memory = self.images.memory(spec.image_id)
        return Base(layers, None) if memory is None else Base(layers, memory[1], memory[0])

    async def fetch(self, spec: SandboxSpec) -> None:
        """What it is to stand on comes from another machine, where it is not here. Raises TemplateNotFound,
        PlatformError."""
        if spec.image_id is not None and not self.images.has(spec.image_id):
            async with self._fetching:
                await asyncio.to_thread(self._store.transfer.fetch, spec.image_id)

    async def share(self, image_id: str) -> None:
        """See NodeClient.share_image."""
        async with self._sharing:
            await asyncio.to_thread(self._store.transfer.share, image_id)

    def list(self) -> Sequence[Template]:
        """All that a create may name."""
        return self._store.list_templates()

    async def make(self, name: str, wait_s: float) -> None:
        """See NodeClient.make_template."""
        try:
            self._store.find_template(name)
        except TemplateNotFound:
            if self._builds is None:
                raise
            await self._builds.make(name, wait_s)

    def hold_nothing(self) -> None:
        """No sandbox of this node is alive."""
        self._store.hold_nothing()

    async def remove_unused_builds(self) -> None:
        """Those that newer builds have superseded and that no sandbox uses. A failure is logged."""
        try:
            await asyncio.to_thread(self._store.images.remove_unfinished)
            removed = await asyncio.to_thread(self._store.remove_unused_builds)
        except OSError as error:
            _log.warning("templates.not_removed", error=str(error))
        else:
            if removed:
                _log.info("templates.removed", builds=removed)
