"""On which node a sandbox goes: what is known of the nodes, with what they hold by the quota's count."""

from __future__ import annotations

from atoll.control.nodes.placement import choose_node
from atoll.control.nodes.registry import NodeRegistry
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

    def node_for(self, template: Template, limits: Limits, only: str | None = None) -> str:
        """Its id; `only`: that one or none. Raises QuotaExceeded: none has room."""
        holders, quota = self._templates.holders(template), self._quota
        loads = self._nodes.loads(holders, quota.on_node, lambda node_id: quota.node_lacks(node_id, limits))
        return choose_node([load for load in loads if only in (None, load.node_id)])
