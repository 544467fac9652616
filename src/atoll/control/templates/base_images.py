"""What a build stands on when it names an image: an import of it, or a built-in template in its place.

Images that E2B has made itself are the built-in ones, and no registry is asked. For a few well-known ones that are made
of Debian, a built-in template stands in where no registry answers; the build's log says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import structlog

from atoll.control.clock import Clock
from atoll.control.store.layers import ImportedImage
from atoll.control.templates.build_log import BuildLog
from atoll.control.templates.builder import StepFailed
from atoll.control.templates.catalog import TemplateService
from atoll.control.templates.image import reference
from atoll.control.templates.image.answers import ImportRefused
from atoll.control.templates.image.importer import TOOLS, ImageImporter, ImageOrder
from atoll.control.templates.node_restarts import despite_restarts
from atoll.control.templates.uploads import Uploads
from atoll.model.errors import AtollError, BuildFailed, TemplateNotFound
from atoll.model.sandbox import Limits
from atoll.model.seams import NodeClient
from atoll.model.template import Template

ASKED_AGAIN_S = 300.0
"""A registry that did not answer is not asked for so long, where something stands in."""
TOOLS_WITHIN_S = 900.0

_log = structlog.get_logger("atoll.control")


@dataclass(frozen=True, slots=True)
class BaseOrder:
    """What a build is to stand on. `credentials`: for the registry, as the client says them."""

    team_id: str
    image: str
    limits: Limits
    credentials: Mapping[str, str] | None = field(default=None, repr=False)
    force: bool = False


class BaseImages:
    """Remembers for a while which registries did not answer."""

    def __init__(self, catalog: TemplateService, importer: ImageImporter, uploads: Uploads, clock: Clock) -> None:
        self._catalog = catalog
        self._importer = importer
        self._uploads = uploads
        self._clock = clock
        self._silent: dict[str, float] = {}

    async def find(self, order: BaseOrder, nodes: Mapping[str, NodeClient], log: BuildLog) -> Template:
        """Ready to be built on; `nodes`: those worth asking. Raises StepFailed."""
        if archive := reference.uploaded(order.image):
            return await self._import_archive(order, archive, nodes, log)
        image = reference.parse(order.image)
        if image is None:
            raise StepFailed("base", f"image '{order.image[:200]}' not found: this is not the name of an image")
        if built_in := reference.built_in(image):
            return await self._built_in(built_in, order.team_id)
        stand_in = reference.stand_in(image)
        if stand_in and not order.credentials and not order.force and self._is_silent(image.registry):
            return await self._stand_in(stand_in, order, f"no answer from the registry {image.registry}", log)
        try:
            return await self._import(order, nodes, log, image=image)
        except ImportRefused as error:
            message = f"image '{order.image[:200]}'"
            match error.kind:
                case "missing":
                    raise StepFailed("base", f"{message} not found: {error}") from error
                case "denied":
                    raise StepFailed("base", f"access denied to '{order.image[:200]}': {error}") from error
                case "unreachable" if stand_in:
                    self._silent[image.registry] = self._clock.now().timestamp()
                    return await self._stand_in(stand_in, order, str(error), log)
                case "unreachable":
                    why = f"its registry does not answer: {error}; images that need none: {reference.stand_ins()}"
                    raise StepFailed("base", f"{message} not found: {why}") from error
                case _:
                    raise StepFailed("base", f"{message} cannot be used: {error}") from error
        except _NoTools as error:
            if stand_in:
                return await self._stand_in(stand_in, order, error.message, log)
            raise

    async def _import_archive(
        self, order: BaseOrder, archive: str, nodes: Mapping[str, NodeClient], log: BuildLog
    ) -> Template:
        path = self._uploads.find(order.team_id, archive)
        if path is None:
            raise StepFailed("base", "the archive has not been uploaded")
        try:
            return await self._import(order, nodes, log, archive=archive)
        except ImportRefused as error:
            raise StepFailed("base", f"the archive cannot be used: {error}") from error

    async def _import(
        self,
        order: BaseOrder,
        nodes: Mapping[str, NodeClient],
        log: BuildLog,
        *,
        image: reference.Reference | None = None,
        archive: str = "",
    ) -> Template:
        try:
            await self._catalog.prepare(TOOLS, TOOLS_WITHIN_S)
            tools = await self._catalog.find(TOOLS, order.team_id)
        except (TemplateNotFound, BuildFailed) as error:
            raise _NoTools("base", f"the tools for images cannot be had: {error.message}") from error
        node = next((nodes[one] for one in sorted(self._catalog.holders(tools)) if one in nodes), None)
        if node is None:
            raise StepFailed("base", "no node that can import images answers")
        wanted = ImageOrder(
            node=node,
            team_id=order.team_id,
            tools=tools,
            name=order.image if image is not None else "the archive",
            limits=order.limits,
            reference=image,
            archive=self._uploads.find(order.team_id, archive) if archive else None,
            archive_hash=archive,
            credentials=order.credentials,
            force=order.force,
        )
        try:
            made = await despite_restarts(partial(self._importer.make, wanted, log), log)
            return _as_template(made, tools, node.node_id)
        except AtollError as error:
            _log.warning("template.import_failed", image=order.image[:200], error=str(error))
            raise StepFailed("base", f"the image was not imported: {error}") from error

    async def _built_in(self, name: str, team_id: str) -> Template:
        try:
            await self._catalog.prepare(name, TOOLS_WITHIN_S)
            return await self._catalog.find(name, team_id)
        except (TemplateNotFound, BuildFailed) as error:
            raise StepFailed("base", error.message) from error

    async def _stand_in(self, name: str, order: BaseOrder, why: str, log: BuildLog) -> Template:
        log.write(
            f"no registry can be reached ({why[:300]}): the built-in template '{name}' (Debian with Python and Node) "
            f"stands in for the image '{order.image[:200]}'",
            level="warn",
        )
        return await self._built_in(name, order.team_id)

    def _is_silent(self, registry: str) -> bool:
        since = self._silent.get(registry)
        if since is not None and self._clock.now().timestamp() - since < ASKED_AGAIN_S:
            return True
        self._silent.pop(registry, None)
        return False


class _NoTools(StepFailed):
    """Nothing can be imported on this machine."""


def _as_template(image: ImportedImage, tools: Template, node_id: str) -> Template:
    return Template(
        template_id=tools.template_id,
        names=(),
        build_id="",
        layers=(),
        limits=tools.limits,
        created_at=tools.created_at,
        env_vars=image.env,
        default_user=image.user,
        default_workdir=image.workdir,
        image_id=image.image_id,
        node_id=node_id,
        tier=tools.tier,
    )
