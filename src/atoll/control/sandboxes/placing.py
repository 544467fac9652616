"""On which node a sandbox goes: what is known of the nodes, with what they hold by the quota's count."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from atoll.control.nodes.registry import NodeRegistry
from atoll.control.placement import NodeLoad, Wanted, choose_node
from atoll.control.sandboxes.quota import SandboxQuota
from atoll.control.templates.catalog import TemplateService
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
    ) -> str:
        """Its id. Raises QuotaExceeded: none has room.

        `only`: that one or none. `group`: of the team's sandboxes, which are to be apart. `refused`: not those.
        """
        holders, quota = self._templates.holders(template), self._quota
        wanted = Wanted(holders, can_move=template.shared, only=only, refused=refused)

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

        return choose_node(self._nodes.registered_ids(), look, wanted)
