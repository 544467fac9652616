"""What a team keeps on nodes' disks: layers of its templates, snapshots, all that they stand on, paused sandboxes.

An image counts for every team that has it, or one on it, in a template, and on each node that has it. One that a team
has made and nothing names any more (a deleted template's, a fork's) stays with its node for an hour or two: those are
counted too, or deleting and making in turn would fill the disk, but a team may have half as much again with them.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping

import structlog

from atoll.control.nodes.registry import NodeRegistry
from atoll.control.store.templates import TemplateTables
from atoll.model.errors import AtollError, QuotaExceeded
from atoll.model.seams import NodeClient, NodeImage

_FRESH_S = 5.0
_ANSWER_WITHIN_S = 5.0
_MIB = 1 << 20

_log = structlog.get_logger("atoll.control")


class TeamImages:
    """See the module.

    Args:
        most_mib: of one team; None: anything, and nothing is counted.
        paused: the bytes that paused sandboxes of a team take.
    """

    def __init__(
        self,
        tables: TemplateTables,
        nodes: NodeRegistry,
        most_mib: int | None,
        paused: Callable[[str], int] = lambda _: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tables = tables
        self._nodes = nodes
        self._most_mib = most_mib
        self._paused = paused
        self._clock = clock
        self._made: dict[str, dict[str, float]] = defaultdict(dict)
        """By team: what it has made since this server runs, as long as a node may have it, and when."""
        self._listed: dict[str, Mapping[str, NodeImage]] = {}
        self._listed_at = float("-inf")
        self._listing = asyncio.Lock()

    def made(self, team_id: str, image_id: str) -> None:
        """It counts from now on."""
        if self._most_mib is not None:
            self._made[team_id][image_id] = self._clock()

    async def check_room(self, team_id: str) -> None:
        """Raises QuotaExceeded: the team has as much as it may. What is begun before that may end beyond it."""
        if self._most_mib is None:
            return
        made = self._made[team_id]
        await self._look(max(made.values(), default=float("-inf")))
        there = {image_id for images in self._listed.values() for image_id in images}
        for image_id in [name for name, at in made.items() if at < self._listed_at and name not in there]:
            del made[image_id]
        named = await self._tables.images_of_team(team_id)
        for images, most_mib, hint in (
            (named, self._most_mib, "delete or kill some, or raise ATOLL_TEAM_IMAGES_MIB"),
            (named | made.keys(), self._most_mib * 3 // 2, "what was deleted is there for up to two hours: try later"),
        ):
            if (mib := (self._size(images) + self._paused(team_id)) // _MIB) >= most_mib:
                whose = "the team's templates, snapshots and paused sandboxes"
                raise QuotaExceeded(f"{whose} take {mib} MiB of disk and may take {most_mib}", hint=hint)

    def _size(self, image_ids: Collection[str]) -> int:
        total = 0
        for images in self._listed.values():
            found = [images[image_id] for image_id in image_ids if image_id in images]
            all_ids = {image.image_id for image in found}.union(*(image.stands_on for image in found))
            total += sum(images[image_id].size for image_id in all_ids if image_id in images)
        return total

    async def _look(self, made_at: float) -> None:
        """Asks the nodes, unless that was done just now and after the newest image was made."""
        arrived = self._clock()
        async with self._listing:
            now = self._clock()
            if self._listed_at > made_at and self._listed_at >= min(arrived, now - _FRESH_S):
                return
            asked = self._nodes.worth_asking()
            answers = await asyncio.gather(*(self._ask(*one) for one in asked.items()))
            fresh = {node_id: images for node_id, images in answers if images is not None}
            known = {node_id: images for node_id, images in self._listed.items() if self._nodes.find(node_id)}
            self._listed, self._listed_at = known | fresh, now

    async def _ask(self, node_id: str, node: NodeClient) -> tuple[str, Mapping[str, NodeImage] | None]:
        """None: its last answer counts."""
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                return node_id, {image.image_id: image for image in await node.images()}
        except (AtollError, TimeoutError) as error:
            _log.warning("template.images_not_listed", node=node_id, error=str(error))
            return node_id, None
