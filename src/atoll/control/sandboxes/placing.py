"""On which node a sandbox goes: what is known of the nodes, with what they hold by the quota's count."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from atoll.control.nodes.registry import NodeRegistry
from atoll.control.placement import NodeLoad, Wanted, choose_node
from atoll.control.sandboxes.quota import SandboxQuota
from atoll.control.templates.catalog import TemplateService
from atoll.model.devices import parse_gpu
from atoll.model.errors import QuotaExceeded
from atoll.model.sandbox import Limits
from atoll.model.template import Template


class Placing:
    """`node_for` is all."""

    def __init__(self, nodes: NodeRegistry, templates: TemplateService, quota: SandboxQuota) -> None:
        self._nodes = nodes
        self._templates = templates
        self._quota = quota

    def node_for(
        self,
        template: Template,
        limits: Limits,
        only: str | None = None,
        *,
        team_id: str = "",
        group: str = "",
        refused: Collection[str] = (),
        gpu: str | None = None,
    ) -> str:
        """Its id. Raises QuotaExceeded: none has room.

        `only`: that one or none. `group`: of the team's sandboxes, which are to be apart. `refused`: not those. `gpu`:
        as `SandboxSpec.gpu`; where no node has so many free, by its last word, one is chosen that will say why.
        """
        holders, quota = self._templates.holders(template), self._quota
        wanted = Wanted(holders, can_move=template.shared, only=only, refused=refused, gpus=_gpus(gpu))

        def look(node_id: str) -> NodeLoad | None:
            reported = self._nodes.load(node_id)
            if reported is None:
                return None
            return replace(
                reported,
                has_template=node_id in holders,
                sandboxes=max(reported.sandboxes, quota.on_node(node_id)),
                share=quota.share(node_id),
                together=quota.in_group(team_id, group, node_id),
                lacks=quota.node_lacks(node_id, limits),
            )

        try:
            return choose_node(self._nodes.registered_ids(), look, wanted)
        except QuotaExceeded:
            if not wanted.gpus:
                raise
            return choose_node(self._nodes.registered_ids(), look, replace(wanted, gpus=0))


def _gpus(gpu: str | None) -> int:
    """How many a node must have free to be worth asking."""
    if gpu is None:
        return 0
    request = parse_gpu(gpu)
    return request.count or len(request.names) or 1
