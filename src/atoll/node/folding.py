"""Long chains of layers become one, in the background, one chain at a time. The chain itself serves until then."""

from __future__ import annotations

import asyncio

import structlog

from atoll.images.layers import ImageLayers
from atoll.isolation.base import IsolationBackend
from atoll.model.errors import NotOffered
from atoll.model.tasks import OwnedTasks
from atoll.node.blocking import in_thread

_log = structlog.get_logger("atoll.node")


class Folding:
    """Part of the supervisor. What is under way when the node stops is begun anew when the chain grows again."""

    def __init__(self, images: ImageLayers) -> None:
        self._images = images
        self._turn = asyncio.Lock()
        self._tasks = OwnedTasks()

    def soon(self, image_id: str, backend: IsolationBackend) -> None:
        """Folds the image's chain if it is long."""
        if self._images.chain(image_id) is not None:
            self._tasks.start(self._fold(image_id, backend), name=f"fold {image_id}")

    async def aclose(self) -> None:
        """What is under way leaves nothing. Idempotent."""
        await self._tasks.aclose()

    async def _fold(self, image_id: str, backend: IsolationBackend) -> None:
        async with self._turn:
            if (chain := self._images.chain(image_id)) is None:
                return
            made, below = chain
            try:
                async with in_thread(self._images.folding(image_id, below)) as capture:
                    capture.put(await backend.fold(made, below, capture.target))
            except NotOffered:
                return
            except (OSError, ValueError, TimeoutError) as error:
                _log.warning("image.not_folded", image=image_id, layers=len(made), error=str(error))
            else:
                _log.info("image.folded", image=image_id, layers=len(made))
